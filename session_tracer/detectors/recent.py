"""Remembers by key, and forgets what was asked for least recently when it is full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Recent", "remember"]

Key = TypeVar("Key", bound="Hashable")
Value = TypeVar("Value")

_MOST: Final = 1_000


def remember(values: dict[Key, Value], key: Key, value: Value, most: int = _MOST) -> None:
    """Take a new key in as the last one, and forget the first one if there are too many."""
    if len(values) >= most:
        del values[next(iter(values))]
    values[key] = value


class Recent(Generic[Key, Value]):
    """The memory of a detector that counts by site, by statement and the like."""

    __slots__ = ("_key", "_last", "_make", "_values")

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        # What was asked for last, which a loop asks for again and again; then all the others.
        self._last: Value | None = None
        self._key: Key
        self._values: dict[Key, Value] = {}

    def of(self, key: Key) -> Value:
        """What is remembered by that key, which is made where there is nothing yet."""
        last = self._last
        if last is not None:
            if key == self._key:
                return last
            remember(self._values, self._key, last)
        value = self._values.pop(key, None)
        if value is None:
            value = self._make()
        self._key, self._last = key, value
        return value

    def forget(self, which: Callable[[Value], bool]) -> None:
        """Forget the values of which that is true."""
        if self._last is not None and which(self._last):
            self._last = None
        if self._values:
            self._values = {key: value for key, value in self._values.items() if not which(value)}

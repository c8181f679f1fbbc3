"""Remembers by key, and forgets what was asked for least recently when it is full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Recent"]

Key = TypeVar("Key", bound="Hashable")
Value = TypeVar("Value")

_MOST: Final = 1_000


class Recent(Generic[Key, Value]):
    """The memory of a detector that counts by site, by statement and the like."""

    __slots__ = ("_make", "_most", "_values")

    def __init__(self, make: Callable[[], Value], most: int = _MOST) -> None:
        self._make = make
        self._most = most
        self._values: dict[Key, Value] = {}

    def of(self, key: Key) -> Value:
        """What is remembered by that key, which is made where there is nothing yet."""
        value = self._values.pop(key, None)
        if value is None:
            value = self._make()
            if len(self._values) >= self._most:
                del self._values[next(iter(self._values))]
        self._values[key] = value
        return value

    def forget(self, which: Callable[[Value], bool]) -> None:
        """Forget the values of which that is true."""
        self._values = {key: value for key, value in self._values.items() if not which(value)}

"""Memories of detectors, with a bounded size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["MOST_REPORTED", "Once", "Recent"]

Key = TypeVar("Key", bound="Hashable")
Value = TypeVar("Value")

MOST_REPORTED: Final = 100
_MOST_KEYS: Final = 1_000


class Once(set["Hashable"]):
    """The keys for which a finding was reported. After a hundred, no other one is reported."""

    def first(self, key: Hashable) -> bool:
        """Return whether a finding is to be reported for the key, which is true once."""
        if key in self or len(self) >= MOST_REPORTED:
            return False
        self.add(key)
        return True


class Recent(dict[Key, Value]):
    """A value for each line, statement or the like. When it is full, the least recent is deleted.

    Args:
        make: Makes the value of a new key.
    """

    __slots__ = ("_is_begun", "_make")

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._is_begun = False

    def of(self, key: Key) -> Value:
        """Return the value of a key, a new one if there is none."""
        value = self.pop(key, None)
        if value is None:
            value = self._make()
            if len(self) >= _MOST_KEYS:
                del self[next(iter(self))]
        self[key] = value
        return value

    def begin(self) -> bool:
        """Return whether this is the first call: events before it must be read from the ledger."""
        is_first, self._is_begun = not self._is_begun, True
        return is_first

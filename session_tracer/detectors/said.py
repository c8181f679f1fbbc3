"""Remembers what was said of a scope, so that a loop does not say it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Said"]

_MOST: Final = 100


class Said:
    """The memory of a detector that says each thing once; what comes after a hundred is silent."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: tuple[Hashable, ...] = ()

    def first(self, key: Hashable) -> bool:
        """Whether this is to be said, now and no more."""
        if key in self._keys or len(self._keys) >= _MOST:
            return False
        self._keys = (*self._keys, key)
        return True

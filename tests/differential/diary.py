"""Writes down what happens in a world, in order and in plain values."""

from __future__ import annotations

import itertools
import re
from typing import Any, Final

__all__ = ["DIARY", "Diary", "name", "plain"]

_PLAIN: Final = (int, float, bytes, bool, type(None))
# Where something lies in memory, and which number a session, a transaction or a thread got in this
# process.
_ADDRESS: Final = re.compile(r"0x[0-9a-f]+")
_SESSION: Final = re.compile(r"(session|\(this is) '\d+'")
_THREAD: Final = re.compile(r"(thread id |Thread-|started daemon )\d+")


class Diary:
    """What one world's driver, listeners and mapped classes have seen; worlds run one by one."""

    def __init__(self) -> None:
        self.entries: list[tuple[object, ...]] = []
        self._numbers = itertools.count(1)

    def write(self, *entry: object) -> None:
        """Add a line."""
        self.entries.append(entry)

    def take(self) -> list[tuple[object, ...]]:
        """What was written since the last time."""
        taken, self.entries = self.entries, []
        return taken

    def begin(self) -> None:
        """Begin anew, for another world."""
        self.entries = []
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """The next number that nothing in this world has."""
        return next(self._numbers)


DIARY: Final = Diary()


def name(instance: Any) -> str:
    """What a mapped object is called: by its class, and when it was first seen.

    SQLAlchemy's own `session.new` can hold None: an object that was collected as it was added.
    """
    if instance is None:
        return "None"
    number = vars(instance).get("_number")
    if number is None:
        number = vars(instance)["_number"] = DIARY.number()
    return f"{type(instance).__name__} {number}"


def plain(value: Any) -> Any:
    """The value as one that can be compared between two worlds; it asks no mapped class."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if issubclass(kind, str):
        return _THREAD.sub(r"\1", _SESSION.sub(r"\1", _ADDRESS.sub("0x", value)))
    if "_sa_class_manager" in vars(kind):
        return name(value)
    if issubclass(kind, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if issubclass(kind, set | frozenset):
        return sorted(map(repr, map(plain, value)))
    if issubclass(kind, list | tuple) or kind.__name__ == "Row":
        return tuple(map(plain, value))
    if issubclass(kind, type):
        return value.__qualname__
    return kind.__qualname__

"""Counts rows that are written by a statement each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from session_tracer.where.callsite import CallSite

__all__ = ["Rows", "SingleRows"]

_MOST: Final = 1_000

# The line, whether a flush did it, the verb and the table.
_Key: TypeAlias = "tuple[CallSite | None, bool, str, str]"


class Rows:
    """Rows of one table that were written one by one, in one way.

    `same` counts the statements that had the text of the one before, `differing` those that had
    another one; `flushes` is in how many flushes they were.
    """

    __slots__ = ("_flush", "_text", "count", "differing", "flushes", "same")

    def __init__(self) -> None:
        self.count = 0
        self.flushes = 0
        self.same = 0
        self.differing = 0
        self._text = 0
        self._flush = 0

    def add(self, text: int, flush: int) -> None:
        """Take one more row into account."""
        self.count += 1
        if flush != self._flush:
            self._flush = flush
            self.flushes += 1
        if text and self._text:
            if text == self._text:
                self.same += 1
            else:
                self.differing += 1
        self._text = text


class SingleRows:
    """The single-row statements of a scope.

    A flush that a read or a commit asks for is counted by itself: that there are many of those is
    another finding. Flushes that the application asks for are counted by their line.
    """

    __slots__ = ("_flush", "_of_flush", "_of_lines", "last", "text")

    def __init__(self) -> None:
        self._flush = 0
        self._of_flush: dict[_Key, Rows] = {}
        self._of_lines: dict[_Key, Rows] = {}
        # What the last row belongs to, and the statement that wrote it where a flush did.
        self.last = Rows()
        self.text = ""

    def add(self, key: _Key, statement: str, flush: int, *, by_line: bool, least: int) -> int:
        """Take one more row into account; how many there are of its kind by now."""
        if not by_line and flush != self._flush:
            # What was reported once is not reported of the next flush too.
            self._flush = flush
            self._of_flush = {
                kept: rows for kept, rows in self._of_flush.items() if rows.count >= least
            }
        known = self._of_lines if by_line else self._of_flush
        rows = known.get(key)
        if rows is None:
            if len(known) >= _MOST:
                del known[next(iter(known))]
            rows = known[key] = Rows()
        rows.add(hash(statement), flush)
        self.last = rows
        self.text = statement if flush else ""
        return rows.count

"""Counts rows that are written by a statement each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from session_tracer.model.totals import Tally

if TYPE_CHECKING:
    from session_tracer.ledger.loads import Passed
    from session_tracer.where.callsite import CallSite

__all__ = ["Rows", "Run", "SingleRows"]

_MOST: Final = 1_000

# The line, whether a flush did it, the verb and the table.
_Key: TypeAlias = "tuple[CallSite | None, bool, str, str]"
# Of rows that one text wrote one after the other: the key, the text's hash, the flush's number (0
# outside of a flush), and whether they are counted with others of their line.
Run: TypeAlias = tuple[_Key, int, int, bool]


class Rows:
    """Rows of one table that were written one by one, in one way.

    `differing` counts the statements with another text than the one before; `flushes` is in how
    many flushes they were; `passed` is what was at work one row before a threshold.
    """

    __slots__ = ("_flush", "_text", "differing", "flushes", "passed", "tally")

    def __init__(self) -> None:
        self.tally = Tally()
        self.flushes = 0
        self.differing = 0
        self.passed: Passed = {}
        self._text = 0
        self._flush = 0

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.tally.count

    def add(self, text: int, flush: int, count: int, ns: int) -> None:
        """Take more rows of one text into account, which took that many nanoseconds."""
        self.tally.count += count
        self.tally.ns += ns
        if flush != self._flush:
            self._flush = flush
            self.flushes += 1
        if text and self._text and text != self._text:
            self.differing += 1
        self._text = text


class SingleRows:
    """The single-row statements of a scope.

    A flush that a read or a commit asks for is counted by itself: that there are many of those is
    another finding. Flushes that the application asks for are counted by their line.
    """

    __slots__ = ("_flush", "_of_flush", "_of_lines", "last")

    def __init__(self) -> None:
        self._flush = 0
        self._of_flush: dict[_Key, Rows] = {}
        self._of_lines: dict[_Key, Rows] = {}
        # What the last rows belong to.
        self.last = Rows()

    def before(self, run: Run, least: int) -> int:
        """How many rows of this kind there are so far."""
        rows = self._known(run, least).get(run[0])
        return 0 if rows is None else rows.count

    def add(self, run: Run, count: int, ns: int, least: int) -> None:
        """Take more rows into account."""
        known, key = self._known(run, least), run[0]
        rows = known.get(key)
        if rows is None:
            if len(known) >= _MOST:
                del known[next(iter(known))]
            rows = known[key] = Rows()
        rows.add(run[1], run[2], count, ns)
        self.last = rows

    def _known(self, run: Run, least: int) -> dict[_Key, Rows]:
        _, _, flush, by_line = run
        if by_line:
            return self._of_lines
        if flush != self._flush:
            # What was reported once is not reported of the next flush too.
            self._flush = flush
            self._of_flush = {
                kept: rows for kept, rows in self._of_flush.items() if rows.count >= least
            }
        return self._of_flush

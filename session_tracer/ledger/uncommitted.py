"""Adds up what a transaction has flushed and not committed, savepoint by savepoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from session_tracer.facts import FlushCompleted, TransactionBegan, TransactionEnded
from session_tracer.publisher.timeline import add_counts

if TYPE_CHECKING:
    from session_tracer.facts import Counts
    from session_tracer.where.callsite import CallSite

__all__ = ["ByState", "Uncommitted"]

# What becomes of a savepoint's content: it is the outer transaction's now, or still is.
_KEPT: Final = frozenset({"committed", "closed", "abandoned"})
# What becomes of a transaction's: nobody decided.
_UNDECIDED: Final = frozenset({"closed", "abandoned"})

ByState: TypeAlias = "dict[str, Counts]"


class Uncommitted:
    """What was flushed in the open transaction, or in one that was closed undecided."""

    # What `take` is to be given.
    facts: Final = (TransactionBegan, FlushCompleted, TransactionEnded)

    __slots__ = ("_flush", "_levels", "site")

    def __init__(self) -> None:
        # The transaction's own, then those of the savepoints within.
        self._levels: list[ByState] = [{}]
        # The last flush is added up when there is another: most transactions have one.
        self._flush: FlushCompleted | None = None
        # Where it was.
        self.site: CallSite | None = None

    def __bool__(self) -> bool:
        return self._flush is not None or any(self._levels)

    def take(self, fact: FlushCompleted | TransactionBegan | TransactionEnded) -> None:
        """Take a fact into the account."""
        if isinstance(fact, FlushCompleted):
            self._add_up()
            self._flush = fact
            self.site = fact.site
        elif fact.nested:
            self._add_up()
            self._savepoint(fact)
        elif isinstance(fact, TransactionBegan) or fact.outcome not in _UNDECIDED or fact.error:
            self._flush = None
            self._levels = [{}]

    def _savepoint(self, fact: TransactionBegan | TransactionEnded) -> None:
        if isinstance(fact, TransactionBegan):
            self._levels.append({})
        elif len(self._levels) > 1:
            inner = self._levels.pop()
            if fact.outcome in _KEPT:
                _add(self._levels[-1], inner)

    def _add_up(self) -> None:
        flush, self._flush = self._flush, None
        if flush is not None:
            told = {
                "flushed_new": flush.new,
                "flushed_dirty": flush.dirty,
                "flushed_deleted": flush.deleted,
            }
            _add(self._levels[-1], told)

    def content(self) -> ByState:
        """All that would be lost, by the keys of evidence."""
        self._add_up()
        content: ByState = {}
        for level in self._levels:
            _add(content, level)
        return content


def _add(total: ByState, more: ByState) -> None:
    for state, counts in more.items():
        if counts:
            add_counts(total.setdefault(state, {}), counts)

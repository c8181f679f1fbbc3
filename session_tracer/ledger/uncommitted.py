"""Adds up what a transaction has flushed and not committed, savepoint by savepoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from session_tracer.model.counts import add_counts

if TYPE_CHECKING:
    from session_tracer.facts import Counts, Outcome
    from session_tracer.where.callsite import CallSite

__all__ = ["ByState", "Uncommitted"]

# What becomes of a savepoint's content: it is the outer transaction's now, or still is.
_KEPT: Final = frozenset({"committed", "closed", "abandoned"})
# What becomes of a transaction's: nothing was decided.
_UNDECIDED: Final = frozenset({"closed", "abandoned"})

ByState: TypeAlias = "dict[str, Counts]"


class Uncommitted:
    """What was flushed in the open transaction, or in one that was closed undecided."""

    __slots__ = ("_flush", "_levels", "site")

    def __init__(self) -> None:
        # Those of the transaction's savepoints that are open, with the transaction's own first.
        self._levels: tuple[ByState, ...] = ()
        # The last flush is added up when there is another: most transactions have one.
        self._flush: tuple[Counts, Counts, Counts] | None = None
        # Where it was.
        self.site: CallSite | None = None

    def __bool__(self) -> bool:
        return self._flush is not None or any(self._levels)

    def flushed(self, site: CallSite | None, new: Counts, dirty: Counts, deleted: Counts) -> None:
        """A flush wrote these objects."""
        if self._flush is not None:
            self._add_up()
        self._flush = (new, dirty, deleted)
        self.site = site

    def savepoint_began(self) -> None:
        """What is flushed now is the savepoint's."""
        self._add_up()
        self._levels = (*(self._levels or ({},)), {})

    def savepoint_ended(self, outcome: Outcome) -> None:
        """What the savepoint has flushed is the outer transaction's, or is gone."""
        self._add_up()
        if len(self._levels) > 1:
            *outer, inner = self._levels
            self._levels = tuple(outer)
            if outcome in _KEPT:
                _add(self._levels[-1], inner)

    def began(self) -> None:
        """Another transaction has begun."""
        self._flush = None
        self._levels = ()

    def ended(self, outcome: Outcome, error: str) -> None:
        """The transaction ended: what it has flushed is decided, unless nothing decided it."""
        if outcome not in _UNDECIDED or error:
            self.began()

    def _add_up(self) -> None:
        flush, self._flush = self._flush, None
        if flush is not None:
            self._levels = self._levels or ({},)
            new, dirty, deleted = flush
            flushed = {"flushed_new": new, "flushed_dirty": dirty, "flushed_deleted": deleted}
            _add(self._levels[-1], flushed)

    def content(self) -> ByState:
        """All that would be lost, by the keys of evidence."""
        self._add_up()
        content: ByState = {}
        for level in self._levels:
            _add(content, level)
        return content


def _add(so_far: ByState, more: ByState) -> None:
    for state, counts in more.items():
        if counts:
            add_counts(so_far.setdefault(state, {}), counts)

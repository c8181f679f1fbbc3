"""Finds sessions that nobody ends, that end before their work is saved, or are used after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import places
from session_tracer.detectors.protocol import always
from session_tracer.detectors.unsaved import Lost
from session_tracer.detectors.watched import TAKEN, block, called, ms
from session_tracer.detectors.wording import lasted
from session_tracer.facts import (
    FlushCompleted,
    SessionClosed,
    SessionOpened,
    TransactionBegan,
    TransactionCancelled,
    TransactionEnded,
)
from session_tracer.ledger.uncommitted import Uncommitted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.detectors.protocol import Wakes
    from session_tracer.ledger.record import SessionRecord
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = ["AbandonedSession", "DiscardedChanges", "ReusedAfterClose"]


class _GivenUp:
    """Whether the transaction was given up, and what the scope had done last when it was."""

    __slots__ = ("cancelled", "given_up", "last_at", "last_site")

    def __init__(self) -> None:
        self.cancelled = False
        self.given_up = False
        self.last_at = 0
        self.last_site: CallSite | None = None


def _given_up(fact: TransactionEnded, record: SessionRecord) -> bool:
    del record
    return fact.outcome == "abandoned"


class AbandonedSession:
    """`abandoned-session`: the garbage collector, or the process's end, takes an open scope."""

    facts = (TransactionCancelled, TransactionEnded, SessionClosed)
    wakes: Final[Wakes] = {TransactionCancelled: always, TransactionEnded: _given_up}

    def memory(self) -> _GivenUp:
        """Whether the transaction was given up, and what the scope did last."""
        return _GivenUp()

    def judge(
        self,
        fact: TransactionCancelled | TransactionEnded | SessionClosed,
        record: SessionRecord,
        memory: _GivenUp,
    ) -> Iterable[Finding]:
        """One finding for a scope whose transaction is open as it is taken.

        Where its task was cancelled amid the transaction, `cancelled-transaction` tells of it.
        What is joined to another transaction loses nothing: that one decides.
        """
        if isinstance(fact, TransactionCancelled):
            memory.cancelled = True
        elif isinstance(fact, TransactionEnded):
            if not fact.nested:
                memory.given_up = fact.outcome == "abandoned"
                memory.last_at = record.last_activity_at
                memory.last_site = record.last_activity_site
        elif memory.given_up and fact.ending in TAKEN and not (memory.cancelled or fact.joined):
            return (_abandoned(fact, record, memory),)
        return ()


def _abandoned(fact: SessionClosed, record: SessionRecord, memory: _GivenUp) -> Finding:
    lost = Lost(fact, record.uncommitted or Uncommitted())
    age = fact.at - record.opened_at
    if lost:
        harm = f"and lost {lost}"
    elif record.last_held:
        harm = f"and held a connection for {lasted(record.last_held)}"
    else:
        harm = "with its transaction open"
    evidence: dict[str, Any] = {
        "ending": fact.ending,
        "age_ms": ms(age),
        **({"held_ms": ms(record.last_held)} if record.last_held else {}),
        **lost.evidence(),
        **places(last_activity_at=memory.last_site),
        "last_activity_ms_ago": ms(fact.at - memory.last_at),
    }
    return record.finding(
        "abandoned-session",
        "error",
        f"{called(record)} {TAKEN[fact.ending]}, {harm}",
        block(record),
        record.opened_site,
        entity=lost.entity(),
        count=max(lost.count(), 1),
        evidence=evidence,
    )


def _loses(fact: SessionClosed, record: SessionRecord) -> bool:
    if not (fact.added or fact.modified or fact.removed or record.uncommitted):
        return False
    # An error that leaves is a reason to discard; what is joined decides nothing by its end.
    return fact.ending in ("close", "reset") and not (fact.leaving or fact.error or fact.joined)


class DiscardedChanges:
    """`discarded-changes`: a scope is closed with changes that nobody committed or rolled back."""

    facts = (*Uncommitted.facts, SessionClosed)
    wakes: Final[Wakes] = {SessionClosed: _loses}

    def memory(self) -> Uncommitted:
        """What was flushed and not committed."""
        return Uncommitted()

    def recall(self, fact: SessionClosed, record: SessionRecord) -> Uncommitted:
        """The same, as the record has it."""
        del fact
        return record.uncommitted or self.memory()

    def judge(
        self,
        fact: TransactionBegan | FlushCompleted | TransactionEnded | SessionClosed,
        record: SessionRecord,
        memory: Uncommitted,
    ) -> Iterable[Finding]:
        """One finding for a scope that ends without an error, by its own transaction."""
        if not isinstance(fact, SessionClosed):
            memory.take(fact)
            return ()
        lost = Lost(fact, memory)
        return (_discarded(fact, lost, record),) if lost and _loses(fact, record) else ()


def _discarded(fact: SessionClosed, lost: Lost, record: SessionRecord) -> Finding:
    # A generator closes the sessions of many views, at one line: this leads to the view.
    known = (fact.site, lost.flushed_at, lost.unflushed_at)
    last = None if record.left_site in known else record.left_site
    awaited = "await " if record.is_async else ""
    return record.finding(
        "discarded-changes",
        "warning",
        f"{fact.ending}() discarded {lost}",
        f"{awaited}session.commit()  # before the session is closed",
        fact.site,
        entity=lost.entity(),
        count=lost.count(),
        evidence={**lost.evidence(), **places(last_activity_at=last)},
    )


class _Reopening:
    """How a scope came to begin on a session that was closed."""

    __slots__ = ("fact",)

    def __init__(self) -> None:
        self.fact: SessionOpened | None = None


def _by_its_closer(fact: SessionOpened, record: SessionRecord) -> bool:
    del record
    return fact.reopened and fact.last_ending == "close" and fact.same_owner


class ReusedAfterClose:
    """`reused-after-close`: whoever closed a session begins something on it again."""

    facts = (SessionOpened, TransactionBegan)
    wakes: Final[Wakes] = {SessionOpened: _by_its_closer}

    def memory(self) -> _Reopening:
        """The reopening, until it turns out to be for something."""
        return _Reopening()

    def judge(
        self, fact: SessionOpened | TransactionBegan, record: SessionRecord, memory: _Reopening
    ) -> Iterable[Finding]:
        """One finding for a scope, as its first transaction begins."""
        if isinstance(fact, SessionOpened):
            if _by_its_closer(fact, record):
                memory.fact = fact
            return ()
        opened, memory.fact = memory.fact, None
        return () if opened is None or fact.nested else (_reused(opened, fact, record),)


def _reused(opened: SessionOpened, fact: TransactionBegan, record: SessionRecord) -> Finding:
    return record.finding(
        "reused-after-close",
        "info",
        "this session was used again after close(), in a new transaction",
        block(record, "one for each unit of work"),
        fact.site or opened.site,
        evidence=places(closed_at=opened.last_closed_site),
    )

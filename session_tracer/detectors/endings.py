"""Finds sessions that nobody ends, that end before their work is saved, or are used after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_tracer.detectors.evidence import places
from session_tracer.detectors.unsaved import Lost, Unsaved
from session_tracer.detectors.watched import TAKEN, block, called, ms
from session_tracer.detectors.wording import lasted
from session_tracer.facts import (
    ConnectionReleased,
    FlushCompleted,
    SessionClosed,
    SessionOpened,
    TransactionBegan,
    TransactionCancelled,
    TransactionEnded,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.callsite import CallSite
    from session_tracer.findings import Finding
    from session_tracer.record import SessionRecord

__all__ = ["AbandonedSession", "DiscardedChanges", "ReusedAfterClose"]


class _Abandoned:
    """What is lost with a scope, as far as it is known when its transaction is given up."""

    __slots__ = ("cancelled", "given_up", "held", "last_at", "last_site", "unsaved")

    def __init__(self) -> None:
        self.unsaved = Unsaved()
        self.cancelled = False
        self.given_up = False
        self.held = 0
        self.last_at = 0
        self.last_site: CallSite | None = None


class AbandonedSession:
    """`abandoned-session`: the garbage collector, or the process's end, takes an open scope."""

    facts = (*Unsaved.facts, TransactionCancelled, ConnectionReleased, SessionClosed)

    def memory(self) -> _Abandoned:
        """What is not committed, and what the scope did last."""
        return _Abandoned()

    def judge(
        self,
        fact: TransactionBegan
        | FlushCompleted
        | TransactionEnded
        | TransactionCancelled
        | ConnectionReleased
        | SessionClosed,
        record: SessionRecord,
        memory: _Abandoned,
    ) -> Iterator[Finding]:
        """One finding for a scope whose transaction is open as it is taken.

        Where its task was cancelled amid the transaction, `cancelled-transaction` tells of it.
        What is joined to another transaction loses nothing: that one decides.
        """
        if isinstance(fact, SessionClosed):
            if memory.given_up and fact.ending in TAKEN and not (memory.cancelled or fact.joined):
                yield _abandoned(fact, record, memory)
            return
        if isinstance(fact, TransactionCancelled):
            memory.cancelled = True
            return
        if isinstance(fact, ConnectionReleased):
            memory.held = fact.held
            return
        memory.unsaved.take(fact)
        if isinstance(fact, TransactionBegan) and not fact.nested:
            memory.held = 0
        elif isinstance(fact, TransactionEnded) and not fact.nested:
            memory.given_up = fact.outcome == "abandoned"
            memory.last_at, memory.last_site = record.last_activity_at, record.last_activity_site


def _abandoned(fact: SessionClosed, record: SessionRecord, memory: _Abandoned) -> Finding:
    lost = Lost(fact, memory.unsaved)
    age = fact.at - record.opened_at
    if lost:
        harm = f"and lost {lost}"
    elif memory.held:
        harm = f"and held a connection for {lasted(memory.held)}"
    else:
        harm = "with its transaction open"
    evidence: dict[str, Any] = {
        "ending": fact.ending,
        "age_ms": ms(age),
        **({"held_ms": ms(memory.held)} if memory.held else {}),
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


class _Discarded:
    """What is not committed, and the line at which the scope did something last."""

    __slots__ = ("last_site", "unsaved")

    def __init__(self) -> None:
        self.unsaved = Unsaved()
        self.last_site: CallSite | None = None


class DiscardedChanges:
    """`discarded-changes`: a scope is closed with changes that nobody committed or rolled back."""

    facts = (*Unsaved.facts, SessionClosed)

    def memory(self) -> _Discarded:
        """What was flushed and not committed, and what the scope did last."""
        return _Discarded()

    def judge(
        self,
        fact: TransactionBegan | FlushCompleted | TransactionEnded | SessionClosed,
        record: SessionRecord,
        memory: _Discarded,
    ) -> Iterator[Finding]:
        """One finding for a scope that ends without an error, by its own transaction."""
        if not isinstance(fact, SessionClosed):
            memory.unsaved.take(fact)
            memory.last_site = record.last_activity_site
            return
        # An error that leaves is a reason to discard; what is joined decides nothing by its end.
        if fact.ending not in ("close", "reset") or fact.leaving or fact.error or fact.joined:
            return
        lost = Lost(fact, memory.unsaved)
        if not lost:
            return
        # A generator closes the sessions of many views, at one line: this leads to the view.
        known = (fact.site, lost.flushed_at, lost.unflushed_at)
        last = None if memory.last_site in known else memory.last_site
        awaited = "await " if record.is_async else ""
        yield record.finding(
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


class ReusedAfterClose:
    """`reused-after-close`: whoever closed a session begins something on it again."""

    facts = (SessionOpened, TransactionBegan)

    def memory(self) -> _Reopening:
        """The reopening, until it turns out to be for something."""
        return _Reopening()

    def judge(
        self, fact: SessionOpened | TransactionBegan, record: SessionRecord, memory: _Reopening
    ) -> Iterator[Finding]:
        """One finding for a scope, as its first transaction begins."""
        if isinstance(fact, SessionOpened):
            if fact.reopened and fact.last_ending == "close" and fact.same_owner:
                memory.fact = fact
            return
        opened, memory.fact = memory.fact, None
        if opened is None or fact.nested:
            return
        yield record.finding(
            "reused-after-close",
            "info",
            "this session was used again after close(), in a new transaction",
            block(record, "one for each unit of work"),
            fact.site or opened.site,
            evidence=places(closed_at=opened.last_closed_site),
        )

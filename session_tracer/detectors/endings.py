"""Finds sessions that nobody ends, that end before their work is saved, or are used after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import places
from session_tracer.detectors.unsaved import Lost
from session_tracer.detectors.watched import TAKEN, block, called, ms
from session_tracer.detectors.wording import lasted
from session_tracer.facts import (
    SessionClosed,
    SessionOpened,
    TransactionBegan,
    TransactionCancelled,
    TransactionEnded,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.ledger.report import Report
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


class AbandonedSession:
    """`abandoned-session`: the garbage collector, or the process's end, takes an open scope."""

    facts: Final = ()
    candidates = (TransactionCancelled, TransactionEnded, SessionClosed)

    def memory(self) -> _GivenUp:
        """Whether the transaction was given up, and what the scope did last."""
        return _GivenUp()

    def judge(
        self,
        fact: TransactionCancelled | TransactionEnded | SessionClosed,
        report: Report,
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
                memory.last_at = report.ledger.last_activity_at
                memory.last_site = report.ledger.last_activity_site
        elif memory.given_up and fact.ending in TAKEN and not (memory.cancelled or fact.joined):
            return (_abandoned(fact, report, memory),)
        return ()


def _abandoned(fact: SessionClosed, report: Report, memory: _GivenUp) -> Finding:
    lost = Lost(fact, report.ledger)
    age = fact.at - report.ledger.opened_at
    if lost:
        harm = f"and lost {lost}"
    elif report.ledger.last_held:
        harm = f"and held a connection for {lasted(report.ledger.last_held)}"
    else:
        harm = "with its transaction open"
    evidence: dict[str, Any] = {
        "ending": fact.ending,
        "age_ms": ms(age),
        **({"held_ms": ms(report.ledger.last_held)} if report.ledger.last_held else {}),
        **lost.evidence(),
        **places(last_activity_at=memory.last_site),
        "last_activity_ms_ago": ms(fact.at - memory.last_at),
    }
    return report.finding(
        "abandoned-session",
        "error",
        f"{called(report)} {TAKEN[fact.ending]}, {harm}",
        block(report),
        report.ledger.opened_site,
        entity=lost.entity(),
        count=max(lost.count(), 1),
        evidence=evidence,
    )


def _loses(fact: SessionClosed, report: Report) -> bool:
    if not (fact.added or fact.modified or fact.removed or report.ledger.has_uncommitted):
        return False
    # An error that leaves is a reason to discard; what is joined decides nothing by its end.
    return fact.ending in ("close", "reset") and not (fact.leaving or fact.error or fact.joined)


class DiscardedChanges:
    """`discarded-changes`: a scope is closed with changes that nobody committed or rolled back."""

    facts: Final = ()
    candidates = (SessionClosed,)

    def memory(self) -> None:
        """The ledger knows what was flushed and not committed."""

    def judge(self, fact: SessionClosed, report: Report, memory: None) -> Iterable[Finding]:
        """One finding for a scope that ends without an error, by its own transaction."""
        del memory
        if not _loses(fact, report):
            return ()
        lost = Lost(fact, report.ledger)
        return (_discarded(fact, lost, report),) if lost else ()


def _discarded(fact: SessionClosed, lost: Lost, report: Report) -> Finding:
    # A generator closes the sessions of many views, at one line: this leads to the view.
    known = (fact.site, lost.flushed_at, lost.unflushed_at)
    last = None if report.ledger.left_site in known else report.ledger.left_site
    awaited = "await " if report.ledger.is_async else ""
    return report.finding(
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


def _by_its_closer(fact: SessionOpened) -> bool:
    return fact.reopened and fact.last_ending == "close" and fact.same_owner


class ReusedAfterClose:
    """`reused-after-close`: whoever closed a session begins something on it again."""

    facts: Final = ()
    candidates = (SessionOpened, TransactionBegan)

    def memory(self) -> _Reopening:
        """The reopening, until it turns out to be for something."""
        return _Reopening()

    def judge(
        self, fact: SessionOpened | TransactionBegan, report: Report, memory: _Reopening
    ) -> Iterable[Finding]:
        """One finding for a scope, as its first transaction begins."""
        if isinstance(fact, SessionOpened):
            if _by_its_closer(fact):
                memory.fact = fact
            return ()
        opened, memory.fact = memory.fact, None
        return () if opened is None or fact.nested else (_reused(opened, fact, report),)


def _reused(opened: SessionOpened, fact: TransactionBegan, report: Report) -> Finding:
    return report.finding(
        "reused-after-close",
        "info",
        "this session was used again after close(), in a new transaction",
        block(report, "one for each unit of work"),
        fact.site or opened.site,
        evidence=places(closed_at=opened.last_closed_site),
    )

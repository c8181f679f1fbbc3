"""Finds what has been open for too long, and still is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import places
from session_tracer.detectors.watched import ENDED, TAKEN, block, called, connection, doing, ms
from session_tracer.detectors.wording import lasted
from session_tracer.facts import SessionClosed, TimePassed, TransactionEnded
from session_tracer.model.findings import Retraction

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.model.live_session import LiveSession
    from session_tracer.where.callsite import CallSite

__all__ = ["IdleOrLongTransaction", "LeakedSession"]


class _Leak:
    """What was said of a scope that does not end."""

    __slots__ = ("said",)

    def __init__(self) -> None:
        self.said: Finding | None = None


class LeakedSession:
    """`leaked-session`: a scope that has begun a transaction is open for too long."""

    facts: Final = ()
    candidates = (TimePassed, SessionClosed)

    def memory(self) -> _Leak:
        """What was said."""
        return _Leak()

    def judge(
        self, fact: TimePassed | SessionClosed, report: Report, memory: _Leak
    ) -> Iterator[Finding | Retraction]:
        """One finding for a scope, taken back if somebody closes it after all."""
        if isinstance(fact, TimePassed):
            after = report.settings.leak_after_seconds * 1e9
            if (
                memory.said
                or not report.ledger.transactions
                or fact.at - report.ledger.opened_at <= after
            ):
                return
            live = fact.look()
            if report.ledger.closed_at:
                return  # meanwhile
            memory.said = _leak(fact, live, report)
            report.ledger.is_suspect = True
            yield memory.said
        elif memory.said is not None and fact.ending not in TAKEN:
            age = fact.at - report.ledger.opened_at
            yield Retraction(
                finding=memory.said,
                message=f"{called(report)} was closed after {lasted(age)}",
                evidence={
                    "age_ms": ms(age),
                    **places(closed_at=fact.site),
                },
            )


def _leak(fact: TimePassed, live: LiveSession, report: Report) -> Finding:
    age = fact.at - report.ledger.opened_at
    if live.holds_connection:
        holds = f"and holds {connection(live, report)}"
    elif live.transaction == "none":
        holds = "with no transaction open any more"
    else:
        holds = "and has a transaction open"
    earlier = [
        id_ for id_ in ("idle-in-transaction", "long-transaction") if report.was_reported(id_)
    ]
    return report.finding(
        "leaked-session",
        "error",
        f"{called(report)} has been open for {lasted(age)} {holds}",
        _end_it(fact, live, report),
        report.ledger.opened_site,
        evidence={
            "age_ms": ms(age),
            **doing(live),
            **({"earlier": earlier} if earlier else {}),
        },
    )


def _end_it(fact: TimePassed, live: LiveSession, report: Report) -> str:
    if live.holds_connection and live.owner_stack and not fact.running:
        return f"commit before the wait at {live.owner_stack[0]}, or open the session after it"
    unsaved = any(live.objects.get(state) for state in ("pending", "modified", "deleted"))
    if unsaved or (live.transaction != "none" and report.ledger.wrote):
        with_block = block(report).partition(":")[0]
        return f"commit or roll back, then close it; `{with_block}:` closes it whatever happens"
    return block(report)


class _Watched:
    """The open transaction, and what was said of it.

    Written by the session's own thread and by the watch's, so it holds nothing that grows.
    """

    __slots__ = ("idle_began_at", "long", "long_began_at")

    def __init__(self) -> None:
        # When the transaction began that was said to be idle, or long.
        self.idle_began_at = 0
        self.long_began_at = 0
        self.long: Finding | None = None


class IdleOrLongTransaction:
    """`idle-in-transaction`, `long-transaction`: a connection waits, a transaction does not end.

    One detector, for a transaction that was said to be the one is not said to be the other.
    """

    facts: Final = ()
    candidates = (TransactionEnded, TimePassed)

    def memory(self) -> _Watched:
        """The open transaction, and what was said of it."""
        return _Watched()

    def judge(
        self,
        fact: TransactionEnded | TimePassed,
        report: Report,
        memory: _Watched,
    ) -> Iterable[Finding | Retraction]:
        """One finding for a transaction; a long one is taken back at its end."""
        if isinstance(fact, TimePassed):
            return self._passed(fact, report, memory)
        if fact.nested:
            return ()
        if memory.long is not None:
            said, memory.long = memory.long, None
            return (_ended(fact, memory.long_began_at, said, report),)
        return ()

    def _passed(self, fact: TimePassed, report: Report, memory: _Watched) -> Iterator[Finding]:
        began_at, began_site = (
            report.ledger.transaction_began_at,
            report.ledger.transaction_began_site,
        )
        if not began_at or _was_said(began_at, report, memory):
            return
        idle = 0 if fact.running else _idle_for(fact, report)
        is_idle = idle > report.settings.idle_in_transaction_seconds * 1e9
        is_idle = is_idle and memory.idle_began_at != began_at
        age = fact.at - began_at
        is_long = age > report.settings.long_transaction_seconds * 1e9
        is_long = is_long and memory.long_began_at != began_at
        if not (is_idle or is_long):
            return
        live = fact.look()
        if report.ledger.transaction_began_at != began_at:
            return  # it ended meanwhile
        if is_idle:
            memory.idle_began_at = began_at
            yield _idle(idle, live, report)
        else:
            memory.long_began_at = began_at
            report.ledger.is_suspect = True
            memory.long = _long(age, began_site, live, report)
            yield memory.long


def _was_said(began_at: int, report: Report, memory: _Watched) -> bool:
    """Whether the session, or this transaction, is suspected already."""
    # What the settings leave unsaid is not in the report, and speaks for nothing else.
    return (
        report.was_reported("leaked-session")
        or (memory.idle_began_at == began_at and report.was_reported("idle-in-transaction"))
        or (memory.long_began_at == began_at and report.was_reported("long-transaction"))
    )


def _idle_for(fact: TimePassed, report: Report) -> int:
    held_since = report.ledger.held_since
    return fact.at - max(held_since, report.ledger.last_statement_at) if held_since else 0


def _idle(idle: int, live: LiveSession, report: Report) -> Finding:
    wait = live.owner_stack[0] if live.owner_stack else None
    return report.finding(
        "idle-in-transaction",
        "warning",
        f"{called(report)} holds {connection(live, report)} "
        f"and has run no statement for {lasted(idle)}",
        "commit or close before this wait, or wait outside the transaction"
        if wait
        else "commit or close as soon as the last statement's result is read",
        wait or report.ledger.last_statement_site or report.ledger.transaction_began_site,
        evidence={"idle_ms": ms(idle), **doing(live), **_of_transaction(report)},
    )


def _long(age: int, site: CallSite | None, live: LiveSession, report: Report) -> Finding:
    sql = report.ledger.sql - report.ledger.sql_before
    if sql * 2 > age:
        remedy = "commit in batches, so that each holds its locks for a short time"
    elif live.owner_stack:
        remedy = f"commit before the work at {live.owner_stack[0]}, or begin after it"
    else:
        remedy = "commit as soon as its statements are done"
    return report.finding(
        "long-transaction",
        "warning",
        f"{called(report)} has had a transaction open for {lasted(age)}, "
        f"{lasted(sql)} of it in SQL",
        remedy,
        site,
        evidence={**doing(live), **_of_transaction(report)},
    )


def _of_transaction(report: Report) -> dict[str, float]:
    """What the transaction has done, which is not all that its scope has."""
    return {
        "statements": report.ledger.statements - report.ledger.statements_before,
        "sql_ms": ms(report.ledger.sql - report.ledger.sql_before),
    }


def _ended(fact: TransactionEnded, began_at: int, said: Finding, report: Report) -> Retraction:
    age = fact.at - began_at
    how = ENDED.get(fact.outcome, "ended")
    return Retraction(
        finding=said,
        message=f"the transaction of {called(report)} was {how} after {lasted(age)}",
        evidence={"transaction_ms": ms(age), "outcome": fact.outcome, **places(ended_at=fact.site)},
    )

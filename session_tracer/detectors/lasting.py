"""Finds what has been open for too long and still is."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import known, life_site, live_evidence, ms
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import (
    ENDED,
    NEVER_CLOSED,
    closing,
    connection,
    duration,
    removal,
    session,
    with_block,
)
from session_tracer.facts import SessionClosed, TimePassed, TransactionEnded
from session_tracer.ledger.owner_state import GONE
from session_tracer.model.findings import Lasting, Retraction

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from session_tracer.ledger.report import Report, Verdict
    from session_tracer.model.findings import Finding
    from session_tracer.model.live_session import LiveSession
    from session_tracer.where.callsite import CallSite


class _Leak:
    reported: Finding | None = None
    # How many objects had been added at the last look, -1 before the first: the time at which
    # an object was added is not known.
    added = -1


class LeakedSession(BuiltIn):
    """`leaked-session`: a scope in which nothing happens, or that no code is left to close."""

    candidates = (TimePassed, SessionClosed)
    memory = _Leak

    def judge(
        self, fact: TimePassed | SessionClosed, report: Report, memory: _Leak
    ) -> Iterator[Verdict]:
        """Report a scope, and retract the finding when it ends."""
        ledger = report.ledger
        age = fact.at - ledger.opened_at
        if isinstance(fact, TimePassed):
            is_inactive = _is_inactive(fact, report, memory)
            is_old = ledger.transactions and age > report.settings.leak_after_seconds * 1e9
            reported = memory.reported
            if not is_old or (reported is not None and not report.is_due(reported, fact.at)):
                return
            live = fact.look()
            if ledger.closed_at or not (is_inactive or live.owner_state in GONE):
                return  # it is at work, or it was closed meanwhile
            leak = _leak(age, fact, live, report)
            if reported is not None:
                yield Lasting(finding=reported, message=leak.message, evidence=leak.evidence)
                return
            memory.reported = leak
            ledger.is_suspect = True
            yield leak
        elif memory.reported is not None:
            # What is collected, or open as the process ends, holds nothing any more either.
            how = f"{NEVER_CLOSED[fact.ending]}," if fact.ending in NEVER_CLOSED else "was closed"
            yield Retraction(
                finding=memory.reported,
                message=f"{session(report)} {how} after {duration(age)}",
                evidence=known(age_ms=ms(age), closed_at=fact.site),
            )


def _is_inactive(fact: TimePassed, report: Report, memory: _Leak) -> bool:
    ledger = report.ledger
    before, memory.added = memory.added, ledger.added_before + sum(ledger.pending_by_class.values())
    return (
        not fact.running
        and before in (-1, memory.added)
        and fact.at - ledger.last_activity_at > report.settings.leak_after_seconds * 1e9
    )


def _leak(age: int, fact: TimePassed, live: LiveSession, report: Report) -> Finding:
    if live.owner_state in GONE:
        since = f"has been open for {duration(age)}"
        why = f"; no code is left to close it: {_gone(live, report)}"
    else:
        since = f"has done nothing for {duration(fact.at - report.ledger.last_activity_at)}"
        why = ""
    if live.holds_connection:
        state = f"and holds {connection(live, report)}"
    elif live.transaction == "none":
        state = "and has no open transaction"
    else:
        state = "and has an open transaction"
    earlier = [
        id_ for id_ in ("idle-in-transaction", "long-transaction") if report.was_reported(id_)
    ]
    return report.finding(
        "leaked-session",
        "error" if live.holds_connection else "warning",
        f"{session(report)} {since} {state}{why}",
        _end_it(fact, live, report),
        life_site(report),
        evidence={"age_ms": ms(age), **live_evidence(live), **known(earlier=earlier or None)},
    )


_ENDINGS: Final[Mapping[str, str]] = {
    "ended": "has ended",
    "cancelled": "was cancelled",
    "failed": "has failed",
}


def _gone(live: LiveSession, report: Report) -> str:
    """Return why the owner cannot close the session any more."""
    if live.owner_state in _ENDINGS:
        return f"{live.owner} {_ENDINGS[live.owner_state]}"
    if live.owner_state == "suspended":
        opened = report.ledger.opened_site
        return f"{_function(opened)} is a generator that is not resumed"
    return f"{_function(life_site(report))} has returned"


def _function(site: CallSite | None) -> str:
    return "the function" if site is None else f"{site.function}()"


def _end_it(fact: TimePassed, live: LiveSession, report: Report) -> str:
    remove, with_line = removal(report), _with_line(report)
    if live.owner_state == "suspended":
        inside = f"try, with {remove} in its finally" if remove else f"`{with_line}`"
        return f"yield inside {inside}, and close the generator when its caller is done"
    if live.holds_connection and live.owner_stack and not fact.running:
        return f"commit before {_doing('wait', live, report)}, or open the session after it"
    unsaved = any(live.objects.get(state) for state in ("pending", "modified", "deleted"))
    if unsaved or (live.transaction != "none" and report.ledger.wrote):
        if remove:
            return f"commit or roll back; {remove} at the end of each request or task"
        return f"commit or roll back, then close the session; `{with_line}` always closes it"
    return closing(report)


class _Watched:
    """Which transactions were reported, by the time at which they began.

    The session's own thread and the watchdog's write it, so it contains nothing that grows.
    """

    idle_began_at = 0
    long_began_at = 0
    idle: Finding | None = None
    long: Finding | None = None

    def reported(self, began_at: int, report: Report) -> Finding | None:
        """Return what was reported of the transaction that began then."""
        # A finding that the settings ignore is not in the report, and prevents no other finding.
        known = ((self.idle_began_at, self.idle), (self.long_began_at, self.long))
        for at, finding in known:
            if finding is not None and at == began_at and report.was_reported(finding.id):
                return finding
        return None


class IdleOrLongTransaction(BuiltIn):
    """`idle-in-transaction`, `long-transaction`: a connection waits, a transaction does not end.

    They are one detector because one transaction is not reported as both.
    """

    candidates = (TransactionEnded, TimePassed)
    memory = _Watched

    def judge(
        self, fact: TransactionEnded | TimePassed, report: Report, memory: _Watched
    ) -> Iterator[Verdict]:
        """Report a transaction, and retract the finding when it ends."""
        if isinstance(fact, TimePassed):
            yield from self._passed(fact, report, memory)
        elif not fact.nested:
            if memory.idle is not None:
                yield _retraction(memory.idle, memory.idle_began_at, fact, report)
            if memory.long is not None:
                yield _retraction(memory.long, memory.long_began_at, fact, report)
            memory.idle = memory.long = None

    def _passed(
        self, fact: TimePassed, report: Report, memory: _Watched
    ) -> Iterator[Finding | Lasting]:
        ledger = report.ledger
        began_at, began_site = ledger.transaction_began_at, ledger.transaction_began_site
        if not began_at or report.was_reported("leaked-session"):
            return
        reported = memory.reported(began_at, report)
        if reported is not None and not report.is_due(reported, fact.at):
            return
        idle, age = _idle_for(fact, report), fact.at - began_at
        settings = report.settings
        is_idle = idle > settings.idle_in_transaction_seconds * 1e9
        is_long = age > settings.long_transaction_seconds * 1e9
        if reported is None:
            is_idle = is_idle and memory.idle_began_at != began_at
            is_long = is_long and memory.long_began_at != began_at
        else:
            is_idle = is_idle and reported is memory.idle
            is_long = reported is memory.long
        if not (is_idle or is_long):
            return
        live = fact.look()
        if ledger.transaction_began_at != began_at:
            return  # it ended meanwhile
        found = _idle(idle, live, report) if is_idle else _long(age, fact, began_site, live, report)
        if reported is not None:
            yield Lasting(finding=reported, message=found.message, evidence=found.evidence)
            return
        ledger.is_suspect = True
        if is_idle:
            memory.idle_began_at, memory.idle = began_at, found
        else:
            memory.long_began_at, memory.long = began_at, found
        yield found


def _idle_for(fact: TimePassed, report: Report) -> int:
    held_since = report.ledger.held_since
    if fact.running or not held_since:
        return 0
    return fact.at - max(held_since, report.ledger.last_statement_at)


def _retraction(
    finding: Finding, began_at: int, fact: TransactionEnded, report: Report
) -> Retraction:
    age, how = fact.at - began_at, ENDED.get(fact.outcome, "ended")
    return Retraction(
        finding=finding,
        message=f"the transaction of {session(report)} was {how} after {duration(age)}",
        evidence=known(transaction_ms=ms(age), outcome=fact.outcome, ended_at=fact.site),
    )


def _idle(idle: int, live: LiveSession, report: Report) -> Finding:
    ledger = report.ledger
    wait = live.owner_stack[0] if live.owner_stack else None
    if wait is not None:
        before = _doing("wait", live, report)
        remedy = f"commit or close before {before}, or wait outside the transaction"
    elif live.owner_state in GONE:
        closes = removal(report) or f"`{_with_line(report)}`"
        remedy = f"close the session: {_gone(live, report)}; {closes} closes it"
    else:
        remedy = "commit or close as soon as the last statement's result is read"
    if ledger.is_lent:
        site = life_site(report)
    else:
        site = wait or ledger.last_statement_site or ledger.transaction_began_site
    return report.finding(
        "idle-in-transaction",
        "warning",
        f"{session(report)} holds {connection(live, report)} "
        f"and has run no statement for {duration(idle)}",
        remedy,
        site,
        evidence={"idle_ms": ms(idle), **live_evidence(live), **_of_transaction(report)},
    )


def _doing(what: str, live: LiveSession, report: Report) -> str:
    """Return where the owner waits or works, and what called it if that has a session lent to it.

    The innermost function may be a client of another service, which knows no session: the one that
    has used the session has it, or the one that the library has called which lends it.
    """
    ledger, (innermost, *outer) = report.ledger, live.owner_stack
    own = {_in(site) for site in (live.last_statement_site, ledger.first_used_site) if site}
    if not ledger.is_lent or _in(innermost) in own:
        return f"the {what} at {innermost}"
    having = [site for site in outer if _in(site) in own]
    having += list(takewhile(lambda site: not site.distance, outer))[-1:]
    return f"the {what} at {innermost}" + (f", called from {having[0]}" if having else "")


def _in(site: CallSite) -> tuple[str, str]:
    return site.file, site.function


def _with_line(report: Report) -> str:
    return with_block(report).partition("\n")[0]


def _long(
    age: int, fact: TimePassed, site: CallSite | None, live: LiveSession, report: Report
) -> Finding:
    sql = report.ledger.sql - report.ledger.sql_before
    if sql * 2 > age or fact.running:
        remedy = "commit in batches, so that locks are held for a short time"
    elif live.owner_stack:
        remedy = f"commit before {_doing('work', live, report)}, or begin after it"
    else:
        remedy = "commit as soon as the last statement is done"
    return report.finding(
        "long-transaction",
        "warning",
        f"{session(report)} has had a transaction open for {duration(age)}, "
        f"{duration(sql)} of it in SQL",
        remedy,
        site,
        evidence={**live_evidence(live), **_of_transaction(report)},
    )


def _of_transaction(report: Report) -> dict[str, float]:
    """Return the statements of the transaction, which may be fewer than those of its scope."""
    return {
        "statements": report.ledger.statements - report.ledger.statements_before,
        "sql_ms": ms(report.ledger.sql - report.ledger.sql_before),
    }

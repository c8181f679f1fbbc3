"""Finds sessions that use more connections than necessary, or than the pool has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import known, ms
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import duration
from session_tracer.facts import CheckoutTimedOut, ConnectionNested
from session_tracer.ledger.owner_state import GONE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.model.live_session import LiveSession
    from session_tracer.where.callsite import CallSite

_MOST_HOLDERS: Final = 20


_PASS_IT: Final = (
    "pass that session {}, or end it first: code that waits for a second connection "
    "while it holds one can deadlock the pool"
)
_CLOSE_IT: Final = "end the leaked session{}: it keeps a connection that this code may need"


class NestedSessions(BuiltIn):
    """`nested-sessions`: a session takes a connection while its thread or task holds another."""

    candidates = (ConnectionNested,)

    def judge(self, fact: ConnectionNested, report: Report, memory: None) -> Iterator[Finding]:
        """Report each pair of lines that is found: the ledger finds each of them once."""
        del memory
        called = None if fact.called_site == fact.site else fact.called_site
        where = "to this code" if called is None else f"on at {called}"
        owner = "task" if report.ledger.is_async else "thread"
        leaked = "the leaked session" if fact.is_leaked else "session"
        site = fact.other_opened_site
        opened = "" if site is None else f" that was opened at {site}"
        yield report.finding(
            "nested-sessions",
            "warning",
            f"a second connection was checked out while {leaked} {fact.other[:6]} "
            f"({fact.other_name}) of the same {owner} had held one for {duration(fact.held)}",
            _CLOSE_IT.format(opened) if fact.is_leaked else _PASS_IT.format(where),
            fact.site,
            evidence=known(
                called_at=called,
                other_session_id=fact.other,
                other_session_name=fact.other_name,
                other_held_ms=ms(fact.held),
                other_opened_at=fact.other_opened_site,
                other_acquired_at=fact.other_site,
                other_findings=["leaked-session"] if fact.is_leaked else None,
            ),
        )


class PoolExhausted(BuiltIn):
    """`pool-exhausted`: the pool had no connection for a session in time."""

    candidates = (CheckoutTimedOut,)

    def judge(self, fact: CheckoutTimedOut, report: Report, memory: None) -> Iterator[Finding]:
        """Report a timeout, with the sessions that hold a connection, the longest first."""
        del memory
        holders = sorted(fact.holders, key=lambda live: -live.held_seconds)
        waited = f" for {duration(fact.timeout)}" if fact.timeout else ""
        number = len(holders)
        hold = f"{number or 'no'} traced session{' holds' if number < 2 else 's hold'} one"
        if fact.untraced:
            # A session that gets or returns its connection at this moment does not hold it.
            hold += f", no traced session holds {fact.untraced} of the {fact.checked_out} in use"
        if fact.connecting:
            hold += f", {fact.connecting} {'is' if fact.connecting == 1 else 'are'} being opened"
        if fact.waiting:
            hold += f", {fact.waiting} more {'waits' if fact.waiting == 1 else 'wait'} for one"
        yield report.finding(
            "pool-exhausted",
            "error",
            f"the pool had no free connection{waited}: {hold}",
            _remedy(holders, fact.connecting),
            fact.site,
            count=max(number, 1),
            evidence=known(
                timeout_ms=ms(fact.timeout),
                pool_size=_if_known(fact.size),
                pool_overflow=_if_known(fact.overflow),
                checked_out=_if_known(fact.checked_out),
                untraced=fact.untraced or None,
                connecting=fact.connecting or None,
                waiting=fact.waiting or None,
                waiters=_waiters(fact.waiters) or None,
                holders=[_holder(live) for live in holders[:_MOST_HOLDERS]],
                other_holders=number - _MOST_HOLDERS if number > _MOST_HOLDERS else None,
            ),
        )


def _if_known(number: int) -> int | None:
    return number if number >= 0 else None


def _remedy(holders: list[LiveSession], connecting: int) -> str:
    if not holders and connecting:
        return "check why the database is slow to accept connections: the pool waits for it"
    if not holders:
        return (
            "look for connections that are not closed and sessions that are not traced; "
            "if there are none, increase pool_size"
        )
    left = [live for live in holders if live.owner_state in GONE]
    first = (left or holders)[0]
    where = f" opened at {first.opened_site}" if first.opened_site is not None else ""
    if left:
        number = f"{len(left)} sessions are" if len(left) > 1 else "a session is"
        return f"{number} left open: close session {first.id[:6]}{where} where its work ends"
    return (
        f"commit or close sooner, first of all session {first.id[:6]}{where}: it has held "
        f"a connection for {duration(first.held_seconds * 1e9)}"
    )


def _waiters(every: tuple[LiveSession, ...]) -> list[dict[str, Any]]:
    """Return how many wait at each line for each work, and the longest of them; most come first."""
    lines: dict[tuple[CallSite | None, str], list[LiveSession]] = {}
    for live in every:
        line = live.owner_stack[0] if live.owner_stack else live.first_used_site
        lines.setdefault((line, live.work), []).append(live)
    return [
        known(
            waits_at=line,
            work=work or None,
            sessions=len(waiting),
            waiting_ms=ms(max(live.waiting_seconds for live in waiting) * 1e9),
        )
        for (line, work), waiting in sorted(lines.items(), key=lambda one: -len(one[1]))
    ][:_MOST_HOLDERS]


def _holder(live: LiveSession) -> dict[str, Any]:
    """Return what is known of a session that holds a connection."""
    return known(
        session_id=live.id,
        session_name=live.name,
        work=live.work or None,
        opened_at=live.opened_site,
        first_used_at=live.first_used_site,
        last_statement_at=live.last_statement_site,
        held_ms=ms(live.held_seconds * 1e9),
        owner=live.owner,
        owner_state=live.owner_state or None,
        now_at=live.owner_stack[0] if live.owner_stack else None,
        process_id=live.process_id,
        findings=[finding.id for finding in live.findings] or None,
    )

"""Finds sessions that use more connections than necessary, or than the pool has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import known, ms
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import duration
from session_tracer.facts import CheckoutTimedOut, ConnectionNested

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.model.live_session import LiveSession

_MOST_HOLDERS: Final = 20


_PASS_IT: Final = (
    "pass that session to this code, or end it first: code that waits for a second connection "
    "while it holds one can deadlock the pool"
)
_CLOSE_IT: Final = (
    "end the leaked session that was opened at {}: it keeps a connection that this code may need"
)


class NestedSessions(BuiltIn):
    """`nested-sessions`: a session takes a connection while its thread or task holds another."""

    candidates = (ConnectionNested,)

    def judge(self, fact: ConnectionNested, report: Report, memory: None) -> Iterator[Finding]:
        """Report each pair of lines that is found: the ledger finds each of them once."""
        del memory
        owner = "task" if report.ledger.is_async else "thread"
        leaked = "the leaked session" if fact.is_leaked else "session"
        yield report.finding(
            "nested-sessions",
            "warning",
            f"a second connection was checked out while {leaked} {fact.other[:6]} "
            f"({fact.other_name}) of the same {owner} had held one for {duration(fact.held)}",
            _CLOSE_IT.format(fact.other_opened_site) if fact.is_leaked else _PASS_IT,
            fact.site,
            evidence=known(
                other_session=fact.other,
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
        """Report each timeout, with the sessions that hold a connection, the longest first."""
        del memory
        holders = sorted(fact.holders, key=lambda live: -live.held_seconds)
        waited = f" for {duration(fact.timeout)}" if fact.timeout else ""
        number = len(holders)
        hold = f"{number or 'no'} traced session{' holds' if number < 2 else 's hold'} one"
        lines = [_holder(live) for live in holders[:_MOST_HOLDERS]]
        if number > _MOST_HOLDERS:
            lines.append(f"and {number - _MOST_HOLDERS} more")
        yield report.finding(
            "pool-exhausted",
            "error",
            f"the pool had no free connection{waited}: {hold}",
            _remedy(holders),
            fact.site,
            count=max(number, 1),
            evidence={"timeout_ms": ms(fact.timeout), "holders": lines},
        )


def _remedy(holders: list[LiveSession]) -> str:
    if not holders:
        return (
            "look for connections that are not closed and sessions that are not traced; "
            "if there are none, increase pool_size"
        )
    longest = holders[0]
    where = f" opened at {longest.opened_site}" if longest.opened_site is not None else ""
    return (
        f"commit or close sooner, first of all session {longest.id[:6]}{where}: it has held "
        f"a connection for {duration(longest.held_seconds * 1e9)}"
    )


def _holder(live: LiveSession) -> str:
    """Return one line about a session that holds a connection."""
    opened = f" opened {live.opened_site}" if live.opened_site is not None else ""
    parts = [
        f"{live.name} {live.id[:6]}{opened}",
        f"has held a connection for {duration(live.held_seconds * 1e9)}",
    ]
    if live.last_statement_site is not None:
        parts.append(f"last statement {live.last_statement_site}")
    now = f" now at {live.owner_stack[0]}" if live.owner_stack else ""
    return ", ".join([*parts, f"{live.owner}{now}"])

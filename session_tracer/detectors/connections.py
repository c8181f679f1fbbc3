"""Finds sessions that take more connections than there are, or than they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import places
from session_tracer.detectors.said import Said
from session_tracer.detectors.watched import ms
from session_tracer.detectors.wording import lasted
from session_tracer.facts import CheckoutTimedOut, ConnectionNested

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.model.live_session import LiveSession

__all__ = ["NestedSessions", "PoolExhausted"]

_MOST_HOLDERS: Final = 20


class NestedSessions:
    """`nested-sessions`: a session takes a connection while its thread or task holds another."""

    facts: Final = ()
    candidates = (ConnectionNested,)

    def memory(self) -> Said:
        """The lines at which it was said."""
        return Said()

    def judge(self, fact: ConnectionNested, report: Report, memory: Said) -> Iterator[Finding]:
        """One finding for each line that takes a second connection."""
        if not memory.first(fact.site):
            return
        what = "task" if report.ledger.is_async else "thread"
        yield report.finding(
            "nested-sessions",
            "warning",
            f"a second connection was taken while session {fact.other[:6]} ({fact.other_name}) "
            f"of the same {what} held one, for {lasted(fact.held)} so far",
            "pass that session to this code: if every connection of the pool is held by somebody "
            "who waits for a second one, none ever comes free",
            fact.site,
            evidence={
                "other_session": fact.other,
                "other_session_name": fact.other_name,
                "other_held_ms": ms(fact.held),
                **places(other_opened_at=fact.other_opened_site, other_acquired_at=fact.other_site),
            },
        )


class PoolExhausted:
    """`pool-exhausted`: the pool had no connection for a session in time."""

    facts: Final = ()
    candidates = (CheckoutTimedOut,)

    def memory(self) -> None:
        """Each timeout speaks for itself."""

    def judge(self, fact: CheckoutTimedOut, report: Report, memory: None) -> Iterator[Finding]:
        """One finding for each timeout."""
        del memory
        # Who has held one for longest comes first.
        holders = sorted(fact.holders, key=lambda live: -live.held_seconds)
        waited = (
            f"no connection came free in {lasted(fact.timeout)}"
            if fact.timeout
            else ("no connection came free")
        )
        number = len(holders)
        hold = f"{number} traced session{' holds' if number == 1 else 's hold'} one"
        yield report.finding(
            "pool-exhausted",
            "error",
            f"{waited}: {hold if number else 'no traced session holds one'}",
            _remedy(holders),
            fact.site,
            count=max(number, 1),
            evidence={
                "timeout_ms": ms(fact.timeout),
                "holders": _told(holders),
            },
        )


def _remedy(holders: list[LiveSession]) -> str:
    if not holders:
        return (
            "look for connections that are not closed, and for sessions that are not traced; "
            "else raise pool_size"
        )
    longest = holders[0]
    where = f" opened at {longest.opened_site}" if longest.opened_site is not None else ""
    return (
        f"commit or close sooner, first of all session {longest.id[:6]}{where}: it has held "
        f"a connection for {_seconds(longest.held_seconds)}"
    )


def _told(holders: list[LiveSession]) -> list[str]:
    told = [_holder(live) for live in holders[:_MOST_HOLDERS]]
    more = len(holders) - _MOST_HOLDERS
    return [*told, f"and {more} more"] if more > 0 else told


def _holder(live: LiveSession) -> str:
    """One that holds a connection, in a line."""
    parts = [f"{live.name} {live.id[:6]}"]
    if live.opened_site is not None:
        parts[0] += f" opened {live.opened_site}"
    parts.append(f"holds a connection for {_seconds(live.held_seconds)}")
    if live.last_statement_site is not None:
        parts.append(f"last statement {live.last_statement_site}")
    if live.owner_stack:
        parts.append(f"{live.owner} now at {live.owner_stack[0]}")
    else:
        parts.append(live.owner)
    return ", ".join(parts)


def _seconds(seconds: float) -> str:
    return lasted(round(seconds * 1e9))

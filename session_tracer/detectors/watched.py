"""Says of an open session what it is, what it holds and what it is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import places

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_tracer.facts import Outcome
    from session_tracer.ledger.report import Report
    from session_tracer.model.live_session import LiveSession

__all__ = ["ENDED", "TAKEN", "block", "called", "connection", "doing", "ms"]

# How a transaction ended, as the end of a sentence.
ENDED: Final[Mapping[Outcome, str]] = {
    "committed": "committed",
    "rolled_back": "rolled back",
    "closed": "closed with its session",
    "abandoned": "abandoned",
}
# Nobody ended the session: it was taken.
TAKEN: Final[Mapping[str, str]] = {
    "collected": "was garbage collected without being closed",
    "exit": "was still open as the process ended",
}

_MOST_FRAMES: Final = 5
# What people call a database whose server has a process for each connection.
_DATABASES: Final = {"postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB"}


def called(report: Report) -> str:
    """`session 9b21e0 (orders-db)`."""
    return f"session {report.ledger.id[:6]} ({report.name})"


def block(report: Report, comment: str = "") -> str:
    """The code that closes a session whatever happens."""
    opening = f"{'async with' if report.ledger.is_async else 'with'} SessionLocal() as session:"
    return f"{opening}  # {comment}" if comment else f"{opening}\n    ..."


def connection(live: LiveSession, report: Report) -> str:
    """`a connection (PostgreSQL process 31877)`, as `pg_stat_activity` knows it."""
    if live.process_id is None:
        return "a connection"
    system = "" if report.ledger.database is None else report.ledger.database.system
    return f"a connection ({_DATABASES.get(system, 'server')} process {live.process_id})"


def doing(live: LiveSession) -> dict[str, Any]:
    """Who has the session, where that one is now, what is held and not yet written."""
    evidence: dict[str, Any] = {
        "owner": live.owner,
        "doing": [str(site) for site in live.owner_stack[:_MOST_FRAMES]],
        "transaction": live.transaction,
        "statements": live.statements,
        "sql_ms": ms(live.sql_seconds * 1e9),
    }
    if live.transaction != "none":
        evidence["transaction_ms"] = ms(live.transaction_seconds * 1e9)
    if live.holds_connection:
        evidence["held_ms"] = ms(live.held_seconds * 1e9)
    if live.process_id is not None:
        evidence["process_id"] = live.process_id
    if live.pending_entities:
        evidence["pending"] = dict(live.pending_entities)
    if live.objects.get("modified"):
        evidence["modified_objects"] = live.objects["modified"]
    if live.objects.get("deleted"):
        evidence["deleted_objects"] = live.objects["deleted"]
    if live.last_statement_seconds:
        evidence |= places(last_statement_at=live.last_statement_site)
        evidence["last_statement_ms_ago"] = ms(live.last_statement_seconds * 1e9)
    if live.last_activity_site != live.last_statement_site:
        evidence |= places(last_activity_at=live.last_activity_site)
        evidence["last_activity_ms_ago"] = ms(live.last_activity_seconds * 1e9)
    return evidence


def ms(nanoseconds: float) -> float:
    """Milliseconds, as evidence gives them."""
    return round(nanoseconds / 1e6, 3)

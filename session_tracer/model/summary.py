"""One session scope as a whole, as a value that outlives the session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from session_tracer.facts import Counts, Database, Outcome
    from session_tracer.model.findings import Finding
    from session_tracer.model.timeline import Step
    from session_tracer.where.callsite import CallSite

__all__ = ["COUNTS", "NUMBERS", "SessionSummary"]

# The totals of a scope: attributes of a ledger and of a summary, and keys of `session.closed`.
NUMBERS: Final = (
    "statements",
    "transactions",
    "savepoints",
    "commits",
    "rollbacks",
    "flushes",
    "failed_flushes",
    "expired",
    "expunged",
    "merged",
    "pending",
    "identity_map_size",
    "identity_map_peak",
)
# The totals that are counts by mapped class, by kind or by event.
COUNTS: Final = ("loaded", "new", "dirty", "unchanged", "deleted", "lazy_loads", "transitions")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSummary:
    """One session scope that has ended. Durations are in milliseconds.

    Attributes:
        work: What the session worked for, such as `GET /orders/{id}`. Empty if it is not known.
        outcome: How it ended, such as `committed`.
        opened_unix_ns: Nanoseconds since 1970.
        ending: The method that ended it, or `collected` or `exit`.
        error: The class of the exception that propagated, or an empty string.
        held_ms: Time for which connections were held.
        sql_ms: Time in the driver's execute calls.
        loaded: Number of loaded objects by mapped class. `new`, `dirty`, `unchanged` and `deleted`
            count the objects of flushes in the same way.
        lazy_loads: Number of loads by kind.
        transitions: Number of objects by SQLAlchemy's lifecycle event.
        pending: Number of objects that were added and never flushed.
        timeline: The first and the last steps.
        timeline_left_out: Number of the other steps.
        findings: The findings, in the order in which they were reported. Their totals are those of
            the scope.
    """

    id: str
    name: str
    is_async: bool
    outcome: Outcome
    opened_unix_ns: int
    opened_site: CallSite | None
    closed_site: CallSite | None
    ending: str
    error: str
    database: Database | None
    duration_ms: float
    held_ms: float
    sql_ms: float
    statements: int
    transactions: int
    savepoints: int
    commits: int
    rollbacks: int
    flushes: int
    failed_flushes: int
    work: str = ""
    loaded: Counts = field(default_factory=dict)
    new: Counts = field(default_factory=dict)
    dirty: Counts = field(default_factory=dict)
    unchanged: Counts = field(default_factory=dict)
    deleted: Counts = field(default_factory=dict)
    lazy_loads: Counts = field(default_factory=dict)
    expired: int = 0
    expunged: int = 0
    merged: int = 0
    pending: int = 0
    transitions: Counts = field(default_factory=dict)
    identity_map_size: int = 0
    identity_map_peak: int = 0
    timeline: tuple[Step, ...] = ()
    timeline_left_out: int = 0
    findings: tuple[Finding, ...] = ()

"""A finding, its retraction, and the ids of all findings."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from session_tracer.model.totals import Total
    from session_tracer.where.callsite import CallSite

__all__ = [
    "COSTS",
    "FINDING_IDS",
    "LASTING",
    "LEFT_OPEN",
    "REPEATS",
    "Finding",
    "Lasting",
    "Retraction",
    "Severity",
    "ranked",
]

Severity: TypeAlias = Literal["info", "warning", "error"]

_DISTRIBUTION: Final = "session-tracer"
# The label in `[project.urls]`.
_DOCUMENTATION: Final = "documentation"

# The findings of the built-in detectors. A detector of the application may use other ids.
FINDING_IDS: Final[tuple[str, ...]] = (
    "leaked-session",
    "abandoned-session",
    "discarded-changes",
    "reused-after-close",
    "long-transaction",
    "idle-in-transaction",
    "commit-in-loop",
    "split-writes",
    "nested-sessions",
    "pool-exhausted",
    "savepoint-churn",
    "cancelled-transaction",
    "refused-transaction",
    "interrupted-stream",
    "failed-flush",
    "pending-rollback",
    "autoflush-storm",
    "large-flush",
    "unchanged-dirty",
    "row-by-row-writes",
    "lost-link",
    "n-plus-one",
    "get-in-loop",
    "query-in-loop",
    "refresh-in-loop",
    "session-per-item",
    "repeated-select",
    "reload-after-commit",
    "refresh-after-write",
    "large-identity-map",
    "large-result",
    "stale-lock",
    "row-gone",
    "detached-lazy-load",
    "implicit-async-io",
    "crossed-sessions",
    "concurrent-use",
    "foreign-loop",
    "blocked-event-loop",
    "shared-session",
)
# Findings about something that lasts, which are retracted when it ends.
LASTING: Final = ("leaked-session", "long-transaction", "idle-in-transaction")
# Findings about something that is done again and again.
REPEATS: Final = frozenset(
    {
        "autoflush-storm",
        "commit-in-loop",
        "get-in-loop",
        "n-plus-one",
        "query-in-loop",
        "refresh-after-write",
        "refresh-in-loop",
        "reload-after-commit",
        "repeated-select",
        "row-by-row-writes",
        "savepoint-churn",
        "session-per-item",
    }
)
# Findings about what something costs, as against what is wrong.
COSTS: Final = REPEATS | {"large-flush", "large-identity-map", "large-result", "unchanged-dirty"}
# Reported by the pytest plugin, of a session that is open after its test.
LEFT_OPEN: Final = "left-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A mistake that was found in one session.

    Attributes:
        id: The fixed name in kebab-case.
        severity: `info`, `warning` or `error`.
        message: What happened, where and how often.
        remedy: What to change, as code if possible.
        site: The application's line to look at first. None if no line of the application took part.
        session_id: The session scope's id.
        session_name: The factory's name.
        session_site: The line that opened the session. None as for `site`.
        work: What the session worked for, such as `GET /orders/{id}`. Empty if it is not known.
        entity: The name of the mapped class.
        attribute: The name of the mapped attribute.
        count: Number of occurrences when the finding was reported.
        total: Number of occurrences so far, and their time; complete when the session has ended.
            None if the finding is not about something that repeats.
        evidence: More facts as JSON-ready values, never the value of a column. Keys that end in
            `_ms` are milliseconds.
    """

    id: str
    severity: Severity
    message: str
    remedy: str
    site: CallSite | None
    session_id: str
    session_name: str
    session_site: CallSite | None
    work: str = ""
    entity: str | None = None
    attribute: str | None = None
    count: int = 1
    evidence: Mapping[str, Any] = field(default_factory=dict)
    # Two findings are equal whatever has happened since.
    total: Total | None = field(default=None, compare=False, repr=False)

    @property
    def help(self) -> str:
        """What explains the finding: a page of the documentation, or the command that prints it."""
        address = documentation()
        if address:
            return f"{address.rstrip('/')}/findings/#{self.id}"
        return f"session-tracer findings {self.id}"


@functools.cache
def documentation() -> str:
    """Return the address of the documentation in the package's metadata, or an empty string."""
    from importlib.metadata import PackageNotFoundError, metadata  # with the first finding

    try:
        urls = metadata(_DISTRIBUTION).get_all("Project-URL") or []
    except PackageNotFoundError:  # run from a folder, without being installed
        return ""
    labels = (url.partition(",") for url in urls)
    return next((to.strip() for label, _, to in labels if label.lower() == _DOCUMENTATION), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraction:
    """A finding about something that lasted has ended.

    Attributes:
        finding: The finding that was reported.
        message: How it ended, and how long it took.
        evidence: As for a finding.
    """

    finding: Finding
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasting:
    """A finding about something that lasts still holds.

    Attributes:
        finding: The finding that was reported.
        message: What is the case now, and for how long.
        evidence: As for a finding, as it is now.
    """

    finding: Finding
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


_MOST_SEVERE_FIRST: Final[tuple[Severity, ...]] = ("error", "warning", "info")


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the most severe first, and of these the ones that took the most time."""
    return tuple(sorted(findings, key=_rank))


def _rank(finding: Finding) -> tuple[int, float]:
    lost = 0.0 if finding.total is None else finding.total.ms
    return _MOST_SEVERE_FIRST.index(finding.severity), -lost

"""What a detector concludes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_tracer.where.callsite import CallSite

__all__ = ["FINDING_IDS", "LEFT_OPEN", "Finding", "Retraction", "Severity"]

Severity: TypeAlias = Literal["info", "warning", "error"]

_DOCUMENTATION: Final = "docs/findings.md"

# What our own detectors draw; one of an application draws what it likes.
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
    "failed-flush",
    "pending-rollback",
    "autoflush-storm",
    "large-flush",
    "unchanged-dirty",
    "row-by-row-writes",
    "n-plus-one",
    "get-in-loop",
    "repeated-select",
    "reload-after-commit",
    "refresh-after-write",
    "large-identity-map",
    "large-result",
    "detached-lazy-load",
    "implicit-async-io",
    "crossed-sessions",
    "concurrent-use",
    "foreign-loop",
    "shared-session",
)
# What the pytest plugin concludes by itself, of a session that outlives its test.
LEFT_OPEN: Final = "left-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One conclusion about one session.

    `id` is the finding's fixed name in kebab-case. `message` says what, where and how often;
    `remedy` what to change, as code where that fits. `site` is the application's line to look at
    first, `session_site` where the session was opened (`session_id` and `session_name` say which
    session); either is None only where no line of the application took part. `entity` and
    `attribute` are mapped names. `evidence` is JSON-ready and never holds a column's value; a key
    that ends in `_ms` counts milliseconds.
    """

    id: str
    severity: Severity
    message: str
    remedy: str
    site: CallSite | None
    session_id: str
    session_name: str
    session_site: CallSite | None
    entity: str | None = None
    attribute: str | None = None
    count: int = 1
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def help(self) -> str:
        """Where the documentation explains it."""
        return f"{_DOCUMENTATION}#{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraction:
    """A finding said of something that lasted has an end after all.

    `message` says how it ended and how long it took.
    """

    finding: Finding
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

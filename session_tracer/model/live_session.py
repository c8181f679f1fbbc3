"""An open session at one moment, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_tracer.facts import Counts
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = ["LiveSession"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSession:
    """One session scope that is open now.

    Ages and durations are seconds. `owner` names the thread or task that used it last
    (`thread "export-3"`), `owner_stack` is where that one is now, the application's lines innermost
    first. `transaction` is `none`, `open` or `savepoint`, `transaction_seconds` its age.
    `process_id` is the server's for the connection it holds, where the driver knows it without a
    round trip. `last_activity_seconds` is how long ago it last did anything, at
    `last_activity_site`; `last_statement_site` is where its last statement came from.
    `objects` counts by state: what the identity map holds (`persistent`), and what is not flushed
    (`pending`, `modified`, `deleted`); `pending_entities` are the new ones by mapped class.
    """

    id: str
    name: str
    age_seconds: float
    opened_site: CallSite | None
    owner: str
    owner_stack: tuple[CallSite, ...] = ()
    transaction: str = "none"
    transaction_seconds: float = 0.0
    holds_connection: bool = False
    held_seconds: float = 0.0
    process_id: int | None = None
    statements: int = 0
    sql_seconds: float = 0.0
    objects: Counts = field(default_factory=dict)
    pending_entities: Counts = field(default_factory=dict)
    last_activity_seconds: float = 0.0
    last_activity_site: CallSite | None = None
    last_statement_seconds: float = 0.0
    last_statement_site: CallSite | None = None
    findings: tuple[Finding, ...] = ()

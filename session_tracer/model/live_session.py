"""An open session at one moment, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_tracer.facts import Counts
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = ["LiveSession"]


# Not frozen: there may be ten thousand to make at once, and each is made for one caller.
@dataclass(slots=True, kw_only=True)
class LiveSession:
    """One session scope that is open now. Ages and durations are in seconds.

    Attributes:
        id: The scope's id.
        name: The factory's name.
        work: What it works for, such as `GET /orders/{id}`. Empty if it is not known.
        age_seconds: Time since the scope began.
        opened_site: The line that opened the session.
        first_used_site: The line that used the session first.
        owner: The thread or task that used it last, such as `thread "export-3"`.
        owner_state: What the owner does: `running` (the function that opened or used the session is
            on its stack), `waiting` (that function awaits), `suspended` (it is a generator that no
            code resumes), `returned` (the owner goes on with other work), `ended`, `cancelled` or
            `failed`. Empty if it is unknown.
        owner_stack: The owner's current application lines, the innermost first, if what it does is
            the session's work. Only in findings.
        transaction: `none`, `open` or `savepoint`.
        transaction_seconds: Age of the open transaction.
        holds_connection: Whether it holds a connection.
        held_seconds: Time for which it has held the connection.
        process_id: The server's process id for the connection, if the driver knows it without a
            round trip.
        waits_for_pool: The name of the connection pool for whose connection it waits. Empty if it
            does not wait for one.
        waiting_seconds: Time for which it has waited.
        is_connecting: Whether the pool is opening a new connection for it, rather than having to
            wait until one is returned.
        statements: Number of statements.
        sql_seconds: Time in the driver's execute calls.
        objects: Number of objects by state: `persistent` (in the identity map), and not flushed
            (`pending`, `modified`, `deleted`).
        pending_entities: Number of pending objects by mapped class.
        last_activity_seconds: Time since its last activity.
        last_activity_site: The line of its last activity.
        last_statement_seconds: Time since its last statement.
        last_statement_site: The line of its last statement.
        findings: The findings reported so far.
    """

    id: str
    name: str
    age_seconds: float
    opened_site: CallSite | None
    owner: str
    work: str = ""
    first_used_site: CallSite | None = None
    owner_state: str = ""
    owner_stack: tuple[CallSite, ...] = ()
    transaction: str = "none"
    transaction_seconds: float = 0.0
    holds_connection: bool = False
    held_seconds: float = 0.0
    process_id: int | None = None
    waits_for_pool: str = ""
    waiting_seconds: float = 0.0
    is_connecting: bool = False
    statements: int = 0
    sql_seconds: float = 0.0
    objects: Counts = field(default_factory=dict)
    pending_entities: Counts = field(default_factory=dict)
    last_activity_seconds: float = 0.0
    last_activity_site: CallSite | None = None
    last_statement_seconds: float = 0.0
    last_statement_site: CallSite | None = None
    findings: tuple[Finding, ...] = ()

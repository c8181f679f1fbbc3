"""What can happen to a session, as plain values.

Every fact has `at`, nanoseconds of the tracer's monotonic clock, and all but a few have `site`, the
application's line that made it happen (None where no line of the application did). Durations are
nanoseconds. Counts by entity are `{"Author": 2}`, keyed by the mapped class's name. Facts are not
frozen: a frozen dataclass takes three times as long to make, and they are made in hot paths. Nobody
changes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from session_tracer.callsite import CallSite

Counts: TypeAlias = "dict[str, int]"
Outcome: TypeAlias = Literal["committed", "rolled_back", "closed", "failed", "abandoned", "unused"]
Trigger: TypeAlias = Literal["explicit", "autoflush", "commit", "savepoint"]
LoadKind: TypeAlias = Literal["relationship", "deferred", "expired", "refresh", "detached"]
Ending: TypeAlias = Literal["close", "reset", "invalidate", "collected"]
Expiry: TypeAlias = Literal["commit", "rollback", "expire", "expire_all"]
Departure: TypeAlias = Literal[
    "close", "reset", "invalidate", "expunge", "expunge_all", "deleted", "collected"
]


@dataclass(slots=True)
class Database:
    """Where a connection leads, in OpenTelemetry's terms; empty strings where it is unknown."""

    system: str = ""
    namespace: str = ""
    address: str = ""
    port: int | None = None


@dataclass(slots=True)
class SessionOpened:
    """A scope began: the Session was made, or used again after it was closed."""

    at: int
    site: CallSite | None
    reopened: bool = False


@dataclass(slots=True)
class SessionClosed:
    """A scope ended.

    `error` names the exception that was leaving, if one was; `detached` counts the objects that the
    session let go of.
    """

    at: int
    site: CallSite | None
    ending: Ending
    outcome: Outcome
    identity_map_size: int = 0
    pending: int = 0
    error: str = ""
    detached: Counts = field(default_factory=dict)


@dataclass(slots=True)
class TransactionBegan:
    """The session's transaction, or with `nested` a savepoint, began."""

    at: int
    site: CallSite | None
    nested: bool = False
    two_phase: bool = False


@dataclass(slots=True)
class TransactionEnded:
    """A transaction or savepoint ended.

    `took` is how long the COMMIT itself took, `error` names what made it fail.
    """

    at: int
    site: CallSite | None
    outcome: Outcome
    duration: int
    took: int = 0
    nested: bool = False
    two_phase: bool = False
    error: str = ""


@dataclass(slots=True)
class ConnectionAcquired:
    """The transaction used a connection for the first time."""

    at: int
    database: Database


@dataclass(slots=True)
class ConnectionReleased:
    """The transaction gave a connection back: how long it was held, how much of that was SQL."""

    at: int
    held: int
    busy: int
    database: Database


@dataclass(slots=True)
class StatementStarted:
    """A statement is about to go to the driver; told only where `statement_spans` asks for it."""

    at: int
    text: str
    summary: str
    operation: str
    collection: str
    batch_size: int
    database: Database


@dataclass(slots=True)
class StatementExecuted:
    """The driver's execute call returned, or raised `error`.

    `operation` is SQL's verb, `collection` the first table named, `entity` the mapped class the
    statement is for, `eager` the relationship (`Author.books`) that an eager loader reads with it.
    `status` is the database's own code for the error.
    """

    at: int
    site: CallSite | None
    operation: str
    collection: str
    entity: str
    duration: int
    eager: str = ""
    batch_size: int = 1
    in_flush: bool = False
    error: str = ""
    status: str = ""


@dataclass(slots=True)
class AttributeLoaded:
    """A statement ran because an attribute of one object was read or refreshed."""

    at: int
    site: CallSite | None
    kind: LoadKind
    entity: str
    attribute: str


@dataclass(slots=True)
class ObjectsLoaded:
    """Rows of the last statement became objects that were not in the identity map."""

    at: int
    site: CallSite | None
    loaded: Counts


@dataclass(slots=True)
class FlushBegan:
    """The unit of work started to write."""

    at: int
    site: CallSite | None
    trigger: Trigger


@dataclass(slots=True)
class FlushCompleted:
    """The unit of work was written.

    `dirty` holds the changed objects, `unchanged` those in `session.dirty` without a net change.
    """

    at: int
    site: CallSite | None
    trigger: Trigger
    duration: int
    new: Counts = field(default_factory=dict)
    dirty: Counts = field(default_factory=dict)
    deleted: Counts = field(default_factory=dict)
    unchanged: Counts = field(default_factory=dict)


@dataclass(slots=True)
class FlushFailed:
    """The unit of work could not be written; the transaction was rolled back."""

    at: int
    site: CallSite | None
    trigger: Trigger
    duration: int
    error: str
    new: Counts = field(default_factory=dict)
    dirty: Counts = field(default_factory=dict)
    deleted: Counts = field(default_factory=dict)
    constraint: str = ""


@dataclass(slots=True)
class ObjectsExpired:
    """`expire()` or `expire_all()` was called; `count` objects were in its reach."""

    at: int
    site: CallSite | None
    count: int


@dataclass(slots=True)
class ObjectsExpunged:
    """`expunge()` or `expunge_all()` took `count` objects out of the session."""

    at: int
    site: CallSite | None
    count: int


@dataclass(slots=True)
class ObjectMerged:
    """`merge()` copied an object's state into the session."""

    at: int
    site: CallSite | None
    entity: str


@dataclass(slots=True)
class DetachedLoadFailed:
    """A detached object's attribute needed a load, and SQLAlchemy refused.

    `load` says what was missing: a relationship, a deferred column, expired columns, or the query
    of a dynamic relationship. `loader` is the loader option that would have brought it, as code.
    The session that last held the object tells the rest: its id, where it was opened, where the
    object was loaded, what expired it (`expired_by`), and how, where and when the object left it
    (`departed_at`, monotonic).
    `departure` is empty where no traced session is known to have held the object.
    """

    at: int
    site: CallSite | None
    entity: str
    attribute: str
    load: Literal["relationship", "deferred", "expired", "dynamic"]
    loader: str = ""
    loaded_site: CallSite | None = None
    departure: Departure | Literal[""] = ""
    departed_at: int = 0
    departed_site: CallSite | None = None
    expired_by: Expiry | Literal[""] = ""
    expired_site: CallSite | None = None
    identity: str = ""


Fact: TypeAlias = (
    SessionOpened
    | SessionClosed
    | TransactionBegan
    | TransactionEnded
    | ConnectionAcquired
    | ConnectionReleased
    | StatementStarted
    | StatementExecuted
    | AttributeLoaded
    | ObjectsLoaded
    | FlushBegan
    | FlushCompleted
    | FlushFailed
    | ObjectsExpired
    | ObjectsExpunged
    | ObjectMerged
    | DetachedLoadFailed
)

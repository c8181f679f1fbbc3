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
    from collections.abc import Callable

    from session_tracer.model.live_session import LiveSession
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

Counts: TypeAlias = "dict[str, int]"
Outcome: TypeAlias = Literal["committed", "rolled_back", "closed", "failed", "abandoned", "unused"]
Trigger: TypeAlias = Literal["explicit", "autoflush", "commit", "savepoint"]
LoadKind: TypeAlias = Literal["relationship", "deferred", "expired", "refresh", "detached"]
Ending: TypeAlias = Literal["close", "reset", "invalidate", "collected", "exit"]
# A flush expires what the database generates, where it could not read that back with the write.
Expiry: TypeAlias = Literal["commit", "rollback", "expire", "expire_all", "flush"]
Departure: TypeAlias = Literal[
    "close", "reset", "invalidate", "expunge", "expunge_all", "deleted", "collected", "exit"
]
# Why an attribute was not there when it was read.
# The last is a column of a subclass whose object was selected by its base class.
Missing: TypeAlias = Literal["relationship", "deferred", "expired", "dynamic", "left_out"]


class _Value:
    """How facts are shown and compared.

    `@dataclass` would write both anew, as source, for each of them: 4 ms of the import.
    """

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__qualname__}({shown})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__match_args__)


@dataclass(slots=True, eq=False, repr=False)
class Database(_Value):
    """Where a connection leads, in OpenTelemetry's terms; empty strings where it is unknown."""

    system: str = ""
    namespace: str = ""
    address: str = ""
    port: int | None = None


@dataclass(slots=True, eq=False, repr=False)
class SessionOpened(_Value):
    """A scope began: the Session was made, or used again after it was closed.

    Where it was used again, `last_ending`, `last_closed_site` and `same_owner` tell how and where
    the scope before ended, and whether the same thread or task had ended it.
    """

    at: int
    site: CallSite | None
    reopened: bool = False
    last_ending: Ending | Literal[""] = ""
    last_closed_site: CallSite | None = None
    same_owner: bool = False


@dataclass(slots=True, eq=False, repr=False)
class SessionClosed(_Value):
    """A scope ended.

    `error` names the exception that was leaving, if one was, and `leaving` says so of a generator's
    early end too; `detached` counts the objects that the session let go of. `added`, `modified` and
    `removed` are the objects whose changes were never flushed, `added_site` where the last of the
    new ones was added. `joined` says that the transaction was part of one that its connection was
    in before, so that nothing was decided by ending it.
    """

    at: int
    site: CallSite | None
    ending: Ending
    outcome: Outcome
    identity_map_size: int = 0
    pending: int = 0
    error: str = ""
    detached: Counts = field(default_factory=dict)
    leaving: bool = False
    added: Counts = field(default_factory=dict)
    modified: Counts = field(default_factory=dict)
    removed: Counts = field(default_factory=dict)
    added_site: CallSite | None = None
    joined: bool = False


@dataclass(slots=True, eq=False, repr=False)
class TransactionBegan(_Value):
    """The session's transaction, or with `nested` a savepoint, began.

    `owner` is the thread or task that began it, `root` the task that awaits it outermost (itself
    where none does), `trace` the trace id of the caller's span, 0 where there is none.
    """

    at: int
    site: CallSite | None
    nested: bool = False
    two_phase: bool = False
    owner: Owner | None = None
    root: Owner | None = None
    trace: int = 0


@dataclass(slots=True, eq=False, repr=False)
class TransactionEnded(_Value):
    """A transaction or savepoint ended.

    `took` is how long the COMMIT itself took, `error` names what made it fail, `size` is how many
    objects the identity map held.
    """

    at: int
    site: CallSite | None
    outcome: Outcome
    duration: int
    took: int = 0
    nested: bool = False
    two_phase: bool = False
    error: str = ""
    size: int = 0


@dataclass(slots=True, eq=False, repr=False)
class ConnectionAcquired(_Value):
    """The transaction used a connection for the first time.

    `joined` says that the connection was in a transaction of somebody else's before, which decides
    what becomes of this one.
    """

    at: int
    database: Database
    site: CallSite | None = None
    joined: bool = False


@dataclass(slots=True, eq=False, repr=False)
class ConnectionReleased(_Value):
    """The transaction gave a connection back: how long it was held, how much of that was SQL."""

    at: int
    held: int
    busy: int
    database: Database


@dataclass(slots=True, eq=False, repr=False)
class StatementStarted(_Value):
    """A statement is about to go to the driver; published only with `statement_spans`."""

    at: int
    text: str
    summary: str
    operation: str
    collection: str
    batch_size: int
    database: Database


@dataclass(slots=True, eq=False, repr=False)
class StatementExecuted(_Value):
    """The driver's execute call returned, or raised `error`.

    `operation` is SQL's verb, `collection` the first table named, `entity` the mapped class the
    statement is for, `eager` the relationship (`Author.books`) that an eager loader reads with it.
    `status` is the database's own code for the error.

    `rows` is how many rows it wrote, as far as that is known without asking: -1 where it is not.
    `by_key` says that it selects one row of `entity` by its primary key, as `get()` and `merge()`
    do, and `key` the attribute that it is, where it is one. `fingerprint` is equal for two SELECTs
    of the same text with the same parameters, 0 where the parameters cannot be compared; no
    parameter can be told from it. `streamed` says that its
    rows are fetched as they are asked for. `text` is equal for two statements of the same text.
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
    rows: int = -1
    by_key: bool = False
    key: str = ""
    fingerprint: int = 0
    streamed: bool = False
    text: int = 0


@dataclass(slots=True, eq=False, repr=False)
class AttributeLoaded(_Value):
    """A statement ran because an attribute of one object was read or refreshed.

    `parent` is equal for two loads for the same object, and tells nothing else of it. `options` is
    what loads the attribute with its object, as the code of loader options
    (`selectinload(Author.books)`), and `root` the mapped class to select with them. `loaded_site`
    is where the object was loaded, `root_site` where the SELECT of `root` is that led to it.
    Where a commit, a rollback or `expire()` of this scope had taken the attribute's value (or may
    have), `expired_by` and `expired_site` say which. `left_out` says that it is a column of a
    subclass, which a SELECT of its base class does not read.
    """

    at: int
    site: CallSite | None
    kind: LoadKind
    entity: str
    attribute: str
    parent: int = 0
    root: str = ""
    options: str = ""
    loaded_site: CallSite | None = None
    expired_by: Expiry | Literal[""] = ""
    expired_site: CallSite | None = None
    root_site: CallSite | None = None
    left_out: bool = False


@dataclass(slots=True, eq=False, repr=False)
class ObjectsLoaded(_Value):
    """Rows of the last statement became objects that were not in the identity map.

    `at_once` is how many rows became objects at a time, 0 where all of them did.
    """

    at: int
    site: CallSite | None
    loaded: Counts
    at_once: int = 0


@dataclass(slots=True, eq=False, repr=False)
class FlushBegan(_Value):
    """The unit of work started to write."""

    at: int
    site: CallSite | None
    trigger: Trigger


@dataclass(slots=True, eq=False, repr=False)
class FlushCompleted(_Value):
    """The unit of work was written.

    `dirty` holds the changed objects, `unchanged` those in `session.dirty` without a net change;
    `unchanged_attributes` are the attributes of those that were set to what they were.
    """

    at: int
    site: CallSite | None
    trigger: Trigger
    duration: int
    new: Counts = field(default_factory=dict)
    dirty: Counts = field(default_factory=dict)
    deleted: Counts = field(default_factory=dict)
    unchanged: Counts = field(default_factory=dict)
    unchanged_attributes: tuple[str, ...] = ()


@dataclass(slots=True, eq=False, repr=False)
class FlushFailed(_Value):
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


@dataclass(slots=True, eq=False, repr=False)
class ObjectsExpired(_Value):
    """`expire()` or `expire_all()` was called; `count` objects were in its reach."""

    at: int
    site: CallSite | None
    count: int


@dataclass(slots=True, eq=False, repr=False)
class ObjectsExpunged(_Value):
    """`expunge()` or `expunge_all()` took `count` objects out of the session."""

    at: int
    site: CallSite | None
    count: int


@dataclass(slots=True, eq=False, repr=False)
class ObjectMerged(_Value):
    """`merge()` copied an object's state into the session."""

    at: int
    site: CallSite | None
    entity: str


@dataclass(slots=True, eq=False, repr=False)
class DetachedLoadFailed(_Value):
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
    load: Missing
    loader: str = ""
    loaded_site: CallSite | None = None
    departure: Departure | Literal[""] = ""
    departed_at: int = 0
    departed_site: CallSite | None = None
    expired_by: Expiry | Literal[""] = ""
    expired_site: CallSite | None = None
    identity: str = ""


@dataclass(slots=True, eq=False, repr=False)
class ImplicitLoadFailed(_Value):
    """Reading an attribute needed a load where none can be awaited (`MissingGreenlet`).

    `load` says what was missing; `options`, `root`, `root_site`, `loaded_site`, `expired_by` and
    `expired_site` are those of an `AttributeLoaded`.
    """

    at: int
    site: CallSite | None
    entity: str
    attribute: str
    load: Missing
    root: str = ""
    options: str = ""
    loaded_site: CallSite | None = None
    expired_by: Expiry | Literal[""] = ""
    expired_site: CallSite | None = None
    root_site: CallSite | None = None
    identity: str = ""


@dataclass(slots=True, eq=False, repr=False)
class LoadRefused(_Value):
    """`raiseload` or `lazy="raise"` refused a load, as the application has configured it."""

    at: int
    site: CallSite | None
    entity: str
    attribute: str


@dataclass(slots=True, eq=False, repr=False)
class RollbackPending(_Value):
    """The session was used after a failed flush without a rollback (`PendingRollbackError`).

    `swallowed` is the line of the `except` that caught the failure, where that can be told.
    `in_block` says that all of it was in the block of a transaction, or of a savepoint, which has
    to be left before anything else ("Can't operate on closed transaction inside context manager").
    """

    at: int
    site: CallSite | None
    swallowed: CallSite | None = None
    in_block: bool = False


@dataclass(slots=True, eq=False, repr=False)
class ObjectCrossed(_Value):
    """An object of another session was refused ("already attached to session").

    `other` is the id of that session's scope, empty where nobody traces it.
    """

    at: int
    site: CallSite | None
    entity: str
    other: str = ""
    other_name: str = ""
    other_opened_site: CallSite | None = None
    loaded_site: CallSite | None = None


@dataclass(slots=True, eq=False, repr=False)
class SessionUsedConcurrently(_Value):
    """A thread or task was inside an operation of the session, and another one began one.

    `site` and `owner` are the second one's, `other_site` and `other_owner` the first one's.
    """

    at: int
    site: CallSite | None
    owner: Owner
    other_site: CallSite | None
    other_owner: Owner


@dataclass(slots=True, eq=False, repr=False)
class EventLoopChanged(_Value):
    """The session is used on another event loop than the one on which its scope was first used.

    `thread` and `other_thread` are the names of the threads the two loops run in.
    """

    at: int
    site: CallSite | None
    thread: str
    other_thread: str
    other_site: CallSite | None = None


@dataclass(slots=True, eq=False, repr=False)
class TransactionCancelled(_Value):
    """A task was cancelled while its session had a transaction open."""

    at: int
    site: CallSite | None
    owner: Owner


@dataclass(slots=True, eq=False, repr=False)
class ConnectionNested(_Value):
    """A connection was acquired while the same thread or task held another of the same engine.

    `other` is the scope that holds it: its id, name, where it was opened and where it acquired the
    connection, `held` for how long it has had it.
    """

    at: int
    site: CallSite | None
    other: str
    other_name: str
    other_opened_site: CallSite | None
    other_site: CallSite | None
    held: int


@dataclass(slots=True, eq=False, repr=False)
class WritesSplit(_Value):
    """Two scopes that overlap in one thread or task have both committed writes.

    This scope's commit is the second one; `written` is what it wrote, `other_written` what the
    other one did.
    """

    at: int
    site: CallSite | None
    written: Counts
    other: str
    other_opened_site: CallSite | None
    other_site: CallSite | None
    other_written: Counts


@dataclass(slots=True, eq=False, repr=False)
class CheckoutTimedOut(_Value):
    """The pool had no connection for the session in time; `holders` are the scopes that have one.

    `timeout` is in nanoseconds.
    """

    at: int
    site: CallSite | None
    holders: tuple[LiveSession, ...]
    timeout: int = 0


@dataclass(slots=True, eq=False, repr=False)
class TimePassed(_Value):
    """Nothing happened for a while: what detectors that wait for time to pass are asked about.

    Told by the watch's thread, not the session's own, and only of scopes that have begun a
    transaction. `running` says that a statement is at the database right now, or that its rows are
    being fetched. `look()` is what `live_sessions()` would say of the session, with the live stack
    of its owner: it costs something, so it is for when there is a finding to draw.
    """

    at: int
    running: bool
    look: Callable[[], LiveSession]


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
    | ImplicitLoadFailed
    | LoadRefused
    | RollbackPending
    | ObjectCrossed
    | SessionUsedConcurrently
    | EventLoopChanged
    | TransactionCancelled
    | ConnectionNested
    | WritesSplit
    | CheckoutTimedOut
    | TimePassed
)

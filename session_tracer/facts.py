"""What can happen to a session, as plain values.

Every fact has `at`, in nanoseconds of the tracer's monotonic clock. Most have `site`, the line of
the application that caused it, or None if no line did. Durations are in nanoseconds. Counts by
entity are keyed by the name of the mapped class: `{"Author": 2}`. Facts are not frozen, because a
frozen dataclass takes three times as long to make. Do not change one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from session_tracer.model.live_session import LiveSession
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

Counts: TypeAlias = "dict[str, int]"
Outcome: TypeAlias = Literal["committed", "rolled_back", "closed", "failed", "abandoned", "unused"]
Trigger: TypeAlias = Literal["explicit", "autoflush", "commit", "savepoint"]
# Which part of a larger result a SELECT reads: a page by OFFSET, the rows that come next after a
# bound, a window between bounds, those of a list, or of a list of one.
Part: TypeAlias = Literal["", "page", "next", "window", "list", "one", "unknown"]
# What a SELECT reads of the rows of one key: all of them, what is counted or added up of them, the
# first one or ones in an order, the one at an OFFSET, or those that come next after a bound.
OfKey: TypeAlias = Literal["rows", "aggregate", "one", "first", "offset", "next"]
LoadKind: TypeAlias = Literal["relationship", "deferred", "expired", "refresh", "detached"]
# What a database does with the rows that refer to a row which is deleted.
OnDelete: TypeAlias = Literal["", "CASCADE", "SET NULL", "declared"]
Ending: TypeAlias = Literal["close", "reset", "invalidate", "collected", "exit", "shutdown"]
# Which statement of the last flush or commit wrote an object, if one did.
Write: TypeAlias = Literal["", "INSERT", "UPDATE"]
# A flush expires what the database generates, where it could not read that back with the write.
Expiry: TypeAlias = Literal["commit", "rollback", "expire", "expire_all", "flush"]
Departure: TypeAlias = Literal[
    "close", "reset", "invalidate", "expunge", "expunge_all", "deleted", "collected", "exit",
    "shutdown",
]  # fmt: skip
# Why a failed flush is not handled: its error left the scope, or the session was used on.
Unhandled: TypeAlias = Literal["", "left", "used_again"]
# Why a flush failed: a constraint, among them a row that exists (duplicate), an object with the key
# of another one of the session (same_key), a column that is NULL (null) and a key that the flush
# has set to NULL because its parent is gone (blank_key); a row that was changed or deleted
# elsewhere; a lock; a lost or failed transaction; a listener that uses the session.
FlushProblem: TypeAlias = Literal[
    "",
    "constraint",
    "duplicate",
    "same_key",
    "null",
    "blank_key",
    "stale",
    "locked",
    "lost",
    "aborted",
    "listener",
]
# Why an attribute was not there when it was read.
# The last is a column of a subclass whose object was selected by its base class.
Missing: TypeAlias = Literal["relationship", "deferred", "expired", "dynamic", "left_out"]


# Why an object has no row to load: its row is gone, or the object is not persistent in the session.
Rowless: TypeAlias = Literal[
    "gone", "pending", "rolled_back", "merged", "never_added", "deleted", "detached", "elsewhere"
]


class _Value:
    """How facts are shown and compared.

    `@dataclass` would compile both methods for each of them, which takes 4 ms of the import.
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
    """The database of a connection, in OpenTelemetry's terms; empty strings if it is unknown."""

    system: str = ""
    namespace: str = ""
    address: str = ""
    port: int | None = None


@dataclass(slots=True, eq=False, repr=False)
class SessionOpened(_Value):
    """A scope began: the Session was made, or used again after it was closed.

    If it was used again, `last_ending` and `last_closed_site` are how and where the scope before
    ended, and `same_owner` is whether the same thread or task had ended it. Where a generator that
    closed it was dropped, `last_dropped_site` is the line that had taken a value from it.
    """

    at: int
    site: CallSite | None
    reopened: bool = False
    last_ending: Ending | Literal[""] = ""
    last_closed_site: CallSite | None = None
    same_owner: bool = False
    last_dropped_site: CallSite | None = None


@dataclass(slots=True, eq=False, repr=False)
class SessionClosed(_Value):
    """A scope ended.

    `error` is the type of the exception that propagated, if one did. `leaving` is also true if a
    generator was closed early. `detached` counts the objects that left the session. `added`,
    `modified` and `removed` count the objects whose changes were never flushed, and `added_site` is
    where the last new one was added. `joined` is whether the connection was in an outer
    transaction, which decides whether the changes are committed. `changed_by_another` is whether
    the changes are those of another request or task than the one that closed the session.
    `modified_attributes` are names like `Author.name`.
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
    changed_by_another: bool = False
    modified_attributes: tuple[str, ...] = ()


@dataclass(slots=True, eq=False, repr=False)
class TransactionBegan(_Value):
    """The session's transaction, or with `nested` a savepoint, began.

    `owner` is the thread or task that began it, `root` the outermost task that awaits it (itself if
    none does), and `trace` the trace id of the caller's span, 0 if there is none.
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

    `took` is the duration of the COMMIT itself, `error` the type of the exception that made it
    fail, and `size` the number of objects in the identity map.
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

    `joined` is whether the connection was in an outer transaction, which decides whether the
    changes are committed.
    """

    at: int
    database: Database
    site: CallSite | None = None
    joined: bool = False


@dataclass(slots=True, eq=False, repr=False)
class ConnectionReleased(_Value):
    """The transaction released a connection: how long it was held, how much of that was SQL."""

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

    `operation` is the SQL verb, `collection` the first table named, `entity` the mapped class of
    the statement, and `eager` the relationship (`Author.books`) that an eager loader reads with it.
    `status` is the database's own code for the error.

    `rows` is the number of rows that it wrote, or -1 if that is not known without a query. `by_key`
    is whether it selects one row of `entity` by its primary key, as `get()` and `merge()` do, and
    `key` the attribute of that primary key, if it is one. `fingerprint` is equal for two SELECTs of
    the same text with the same parameters, and 0 if the parameters cannot be compared. It is a
    hash, which does not contain them. `streamed` is whether its rows are fetched one batch after
    another. `text` is equal for two statements of the same text.

    `number` is how many statements the scope had run with this one. `reads` has the tables that a
    SELECT reads, in lower case and without their schemas. It is empty if the result may differ
    although none of them is written to: the SELECT locks rows, or calls a volatile function.
    `query` is equal for two SELECTs that differ in their values only, and `part_of` for two that
    read parts of one result, `part` being what kind of part. `group` is equal for SELECTs that one
    SELECT could replace, which reads `of_key` for the keys of all of them, and `ignored` for parts
    whose values that choose no rows are the same. `is_tree` is whether rows of `entity` refer to
    other rows of it.
    `sql` is the text of a SELECT without its values, shortened. `clauses` has the methods that gave
    an INSERT more than its values, such as `returning`, if it is judged, or an UPDATE more than the
    values of the row that has a primary key.
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
    number: int = 0
    reads: frozenset[str] = frozenset()
    query: int = 0
    part: Part = ""
    part_of: int = 0
    group: int = 0
    ignored: int = 0
    of_key: OfKey = "rows"
    is_tree: bool = False
    sql: str = ""
    clauses: tuple[str, ...] = ()


@dataclass(slots=True, eq=False, repr=False)
class AttributeLoaded(_Value):
    """A statement ran because an attribute of one object was read or refreshed.

    `parent` is equal for two loads of the same object, and is a hash. `options` are the loader
    options, as code, that load the attribute with its object (`selectinload(Author.books)`), and
    `root` is the mapped class to select with them. `loaded_site` is where the object was loaded,
    and None if it was added; `root_site` is where the SELECT of `root` is, and `through` the
    relationship of `root` by which the object came. `replacement` is set if that SELECT has an
    option that leaves the attribute out: `lazyload(Author.books) by selectinload(Author.books)`.
    `for_delete` is whether the object is deleted, and the rows that refer to it are looked for.
    `on_delete` is what the database could do with these rows in place of the session: `CASCADE` or
    `SET NULL`, `declared` if its foreign key has that already, and empty if that would not be the
    same.
    `expired_by` and `expired_site` are the commit, rollback or `expire()` of this scope that
    expired, or may have expired, the attribute. `left_out` is whether it is a column of a subclass,
    which a SELECT of the base class does not read. `sql` is the text of the statement without its
    values, shortened.

    Of an object that is refreshed, `attribute` has the relationships and deferred columns that
    `refresh()` names. `root` is empty if the object is to be read again, and `options` then also
    load again what options had loaded with it. `key` is the attribute of its primary key, if it is
    one. `written` is empty also if `refresh()` loads relationships or deferred columns, which no
    write returns.
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
    through: str = ""
    replacement: str = ""
    for_delete: bool = False
    on_delete: OnDelete = ""
    left_out: bool = False
    duration: int = 0
    sql: str = ""
    key: str = ""
    written: Write = ""


@dataclass(slots=True, eq=False, repr=False)
class ObjectsLoaded(_Value):
    """Rows of the last statement became objects that were not in the identity map.

    `at_once` is the number of rows that became objects at a time, or 0 if all of them did.
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

    `dirty` counts the changed objects, `unchanged` the objects in `session.dirty` without a net
    change, and `unchanged_attributes` are their attributes that were set to the value they had.
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
    """The unit of work could not be written; the transaction was rolled back.

    `code` is the database's name or number of the error. `listener` is the line of the
    application's event listener that raised it, `added_site` where the one new object was added,
    `existing_site` where the object was loaded that has its key. `operation` is empty, but where
    it was no flush that another transaction's lock has refused: `SELECT books`, `COMMIT`. `holder`
    is the id of the scope that has the lock, where it is one of the same thread or task, and
    `holder_site` where that was opened.
    """

    at: int
    site: CallSite | None
    trigger: Trigger
    duration: int
    error: str
    new: Counts = field(default_factory=dict)
    dirty: Counts = field(default_factory=dict)
    deleted: Counts = field(default_factory=dict)
    constraint: str = ""
    in_savepoint: bool = False
    problem: FlushProblem = ""
    code: str = ""
    column: str = ""
    relationship: str = ""
    listener: CallSite | None = None
    added_site: CallSite | None = None
    existing_site: CallSite | None = None
    operation: str = ""
    holder: str = ""
    holder_site: CallSite | None = None


@dataclass(slots=True, eq=False, repr=False)
class FlushFailureDecided(_Value):
    """It is known now whether the application has handled a flush that failed.

    Or a statement that failed, or a COMMIT, because of another transaction's lock.

    `unhandled` is empty if it has: the error was caught, and what had failed was rolled back.
    `repeats` is how often flushes failed like this at this line in the last minute, in all
    sessions; 0 if a savepoint was rolled back for it.
    """

    at: int
    site: CallSite | None
    failed: FlushFailed
    unhandled: Unhandled = ""
    repeats: int = 0


@dataclass(slots=True, eq=False, repr=False)
class ObjectsExpired(_Value):
    """`expire()` or `expire_all()` was called for `count` objects."""

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
    """A detached object's attribute needed a load, and SQLAlchemy refused it.

    `load` is what was missing: a relationship, a deferred column, expired columns, or the query of
    a dynamic relationship. `options`, `root`, `root_site` and `replacement` are as in
    `AttributeLoaded`. The other fields are about the session that last held the object: where it
    loaded the object, what expired it, and how, where and when (`departed_at`, monotonic) the
    object left it. `departure` is empty if no traced session is known to have held the object.
    """

    at: int
    site: CallSite | None
    entity: str
    attribute: str
    load: Missing
    options: str = ""
    root: str = ""
    root_site: CallSite | None = None
    replacement: str = ""
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

    `load` is what was missing. `options`, `root`, `root_site`, `replacement`, `loaded_site`,
    `expired_by` and `expired_site` are as in `AttributeLoaded`. It is `expected` if the application
    catches the error by its name.
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
    replacement: str = ""
    identity: str = ""
    expected: bool = False


@dataclass(slots=True, eq=False, repr=False)
class LoadRefused(_Value):
    """`raiseload` or `lazy="raise"` refused a load, as the application has configured it."""

    at: int
    site: CallSite | None
    entity: str
    attribute: str


@dataclass(slots=True, eq=False, repr=False)
class RollbackPending(_Value):
    """The session was used after a failure without a rollback.

    SQLAlchemy refuses that with `PendingRollbackError`, and PostgreSQL because the transaction is
    aborted. What failed may have been a flush, a statement, or the connection.

    `swallowed` is the line of the `except` that caught the failure, if it is known. `in_block` is
    whether all of it happened in the block of a transaction or savepoint, which has to be left
    before the session is used ("Can't operate on closed transaction inside context manager").
    """

    at: int
    site: CallSite | None
    swallowed: CallSite | None = None
    in_block: bool = False


@dataclass(slots=True, eq=False, repr=False)
class TransactionRefused(_Value):
    """`begin()` was refused during a transaction, or a block was used after its transaction ended.

    `outcome` is how the transaction of the block ended, at `ended_site`, and empty if `begin()` was
    refused because one is open. `began_site` is where the transaction began: by `begin()`, or by
    the first use of the session if it is `implicit`. `nested` is whether it is a savepoint, and
    `in_block` whether it was the transaction of a `with` block.
    """

    at: int
    site: CallSite | None
    began_site: CallSite | None = None
    outcome: Outcome | Literal[""] = ""
    ended_site: CallSite | None = None
    nested: bool = False
    implicit: bool = False
    in_block: bool = False


@dataclass(slots=True, eq=False, repr=False)
class StreamInterrupted(_Value):
    """A streamed result was read on, at `read_site`, after its transaction had ended at `site`.

    `streamed_site` is the line of its statement, and `rows` the number of rows that had been
    fetched before.
    """

    at: int
    site: CallSite | None
    outcome: Outcome
    streamed_site: CallSite | None = None
    read_site: CallSite | None = None
    rows: int = 0


@dataclass(slots=True, eq=False, repr=False)
class ObjectCrossed(_Value):
    """An object of another session was refused ("already attached to session").

    `other` is the id of that session's scope, or empty if it is not traced.
    """

    at: int
    site: CallSite | None
    entity: str
    other: str = ""
    other_name: str = ""
    other_opened_site: CallSite | None = None
    loaded_site: CallSite | None = None


@dataclass(slots=True, eq=False, repr=False)
class LinkLost(_Value):
    """A link to an object of `entity` is lost, because a flush had left it out.

    SQLAlchemy warned that the object is not in the session. The relationship is `attribute` of the
    class `holder`, and `cascades` is whether it adds what is assigned to it. `removed` is whether
    the object was to be taken out of the relationship. `site` is the line of the flush, and
    `autoflush` is whether a query at that line has caused it.
    """

    at: int
    site: CallSite | None
    entity: str
    holder: str
    attribute: str
    removed: bool = False
    cascades: bool = True
    autoflush: bool = False


@dataclass(slots=True, eq=False, repr=False)
class RowGone(_Value):
    """An object without a row was loaded again (`call` is empty), refreshed or expired.

    `why` is what is known of the object: its row is gone; it is not flushed yet; its INSERT was
    rolled back; it was given to `merge()`, which returns another object; it was never added; it was
    deleted; it is detached; it is in another session. `cause_site` is the line of that, and
    `expired_by` and `expired_site` are what expired the object.
    """

    at: int
    site: CallSite | None
    entity: str
    why: Rowless
    call: Literal["", "refresh", "expire"] = ""
    cause_site: CallSite | None = None
    expired_by: Expiry | Literal[""] = ""
    expired_site: CallSite | None = None
    loaded_site: CallSite | None = None
    identity: str = ""


@dataclass(slots=True, eq=False, repr=False)
class CopyChanged(_Value):
    """A transaction was committed, and an object was changed after `merge()` had copied it.

    `site` is the line of `merge()`. The object is in no session, so that the changes of
    `attributes` are not written.
    """

    at: int
    site: CallSite | None
    entity: str
    attributes: tuple[str, ...]
    committed_site: CallSite | None = None


@dataclass(slots=True, eq=False, repr=False)
class StaleLocked(_Value):
    """SELECT ... FOR UPDATE returned objects whose values were loaded before, and left them.

    `counts` is their number by mapped class, and `loaded_site` the line that loaded the first of
    them, if it is known. The statement is one of `get()` if it is `by_key`.
    """

    at: int
    site: CallSite | None
    counts: Counts
    by_key: bool = False
    loaded_site: CallSite | None = None
    began_site: CallSite | None = None


@dataclass(slots=True, eq=False, repr=False)
class SessionUsedConcurrently(_Value):
    """A thread or task was inside an operation of the session, and another one began one.

    `site` and `owner` are the second one's, `other_site` and `other_owner` the first one's. Where
    `leaves`, the first one is inside, and the other one leaves the block that closes the session.
    """

    at: int
    site: CallSite | None
    owner: Owner
    other_site: CallSite | None
    other_owner: Owner
    leaves: bool = False


@dataclass(slots=True, eq=False, repr=False)
class SessionPassed(_Value):
    """Another task than before uses the session, or another thread that serves a WSGI request.

    `root` is the outermost task that awaits it, `request` is not 0 if it serves a request.
    The other fields are those of the user before. `pieces` is what each of them works at:
    its request if there is one, else its outermost task.
    """

    at: int
    site: CallSite | None
    owner: Owner
    root: Owner
    request: Hashable
    other_owner: Owner
    other_root: Owner
    other_request: Hashable
    trace: int = 0

    @property
    def pieces(self) -> tuple[Hashable, Hashable]:
        """What the user before works at, and what this one works at."""
        return self.other_request or self.other_root.key, self.request or self.root.key


@dataclass(slots=True, eq=False, repr=False)
class EventLoopChanged(_Value):
    """The session's connection was used on another event loop than the session before, and failed.

    `thread` and `other_thread` are the names of the threads in which the two loops run. `error` is
    the type of the error.
    """

    at: int
    site: CallSite | None
    thread: str
    other_thread: str
    other_site: CallSite | None = None
    error: str = ""


@dataclass(slots=True, eq=False, repr=False)
class EventLoopBlocked(_Value):
    """Statements of a session without AsyncSession kept an event loop from its other tasks.

    `site` is the line of the coroutine that ran them, `used_site` that of the last one, `duration`
    how long they took, and `waiting` the number of the other tasks.
    """

    at: int
    site: CallSite | None
    used_site: CallSite | None
    statements: int
    duration: int
    waiting: int


@dataclass(slots=True, eq=False, repr=False)
class ConnectionOnOtherLoop(_Value):
    """The driver refused a pooled connection, which was opened on another event loop.

    `thread` and `other_thread` are the names of the threads in which the two loops run; a loop
    that has ended has none. `error` is the type of the error. `in_pool` is whether the pool itself
    failed, before it gave out a connection.
    """

    at: int
    site: CallSite | None
    thread: str
    other_thread: str
    error: str
    in_pool: bool = False


@dataclass(slots=True, eq=False, repr=False)
class TransactionCancelled(_Value):
    """A task was cancelled while its session had a transaction open."""

    at: int
    site: CallSite | None
    owner: Owner


@dataclass(slots=True, eq=False, repr=False)
class ConnectionNested(_Value):
    """A connection was acquired while the same thread or task held another of the same engine.

    `other` is the id of the scope that holds it. The other fields are its name, where it was
    opened, where it acquired the connection, for how long it has held it, and whether it was
    reported as leaked. `called_site` is the line that called the function which opened this scope.
    """

    at: int
    site: CallSite | None
    other: str
    other_name: str
    other_opened_site: CallSite | None
    other_site: CallSite | None
    held: int
    is_leaked: bool = False
    called_site: CallSite | None = None


@dataclass(slots=True, eq=False, repr=False)
class WritesSplit(_Value):
    """Two scopes that overlap in one thread or task have both committed writes.

    This scope's commit is the second one; `written` is what it wrote, `other_written` what the
    other one did. `called_site` and `other_called_site` are the lines by which the function that
    runs both of them got to the two commits, if they are known. `is_inner` is whether this scope
    was opened after the other one.
    """

    at: int
    site: CallSite | None
    written: Counts
    other: str
    other_opened_site: CallSite | None
    other_site: CallSite | None
    other_written: Counts
    called_site: CallSite | None = None
    other_called_site: CallSite | None = None
    is_inner: bool = False


@dataclass(slots=True, eq=False, repr=False)
class CheckoutTimedOut(_Value):
    """The pool had no connection for the session in time; `holders` are the scopes that hold one.

    `timeout` is in nanoseconds. `size` is the pool's size, `overflow` how many connections it has
    beyond that, and `checked_out` how many are in use; -1 if this kind of pool does not know it.
    `untraced` is how many of those no traced session holds, and `connecting` how many are being
    opened for sessions. `waiting` is how many others still wait, and `waiters` are their scopes.
    """

    at: int
    site: CallSite | None
    holders: tuple[LiveSession, ...]
    timeout: int = 0
    size: int = -1
    overflow: int = -1
    checked_out: int = -1
    untraced: int = 0
    connecting: int = 0
    waiting: int = 0
    waiters: tuple[LiveSession, ...] = ()


@dataclass(slots=True, eq=False, repr=False)
class TimePassed(_Value):
    """Nothing happened for a while. Detectors that wait for time to pass are asked about it.

    The watch's thread publishes it, and only for scopes that have begun a transaction. `running` is
    whether the database executes a statement now, or its rows are being fetched. `look()` returns
    what `live_sessions()` has about the session, with the current stack of its owner. Call it only
    for a finding: it is slow.
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
    | FlushFailureDecided
    | ObjectsExpired
    | ObjectsExpunged
    | ObjectMerged
    | DetachedLoadFailed
    | ImplicitLoadFailed
    | LoadRefused
    | RollbackPending
    | TransactionRefused
    | StreamInterrupted
    | ObjectCrossed
    | LinkLost
    | RowGone
    | CopyChanged
    | StaleLocked
    | SessionUsedConcurrently
    | SessionPassed
    | EventLoopChanged
    | EventLoopBlocked
    | ConnectionOnOtherLoop
    | TransactionCancelled
    | ConnectionNested
    | WritesSplit
    | CheckoutTimedOut
    | TimePassed
)

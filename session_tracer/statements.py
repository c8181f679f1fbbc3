"""What each statement cost, why it ran, and on whose connection.

A listener on an engine's cursor events makes every connection take SQLAlchemy's slower path; the
dialect's `do_execute` costs a tenth of that and sees before, after and the error in one place. So
that is where statements are timed, and why each of them executes the statement itself.
"""

from __future__ import annotations

import weakref
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.engine.events import DialectEvents

from session_tracer import facts, reasons, sql
from session_tracer.misuse import raise_due
from session_tracer.probe import type_name
from session_tracer.underway import SLOT, SURROUNDED, Holding

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Dialect, ExecutionContext
    from sqlalchemy.engine.interfaces import DBAPICursor

    from session_tracer.callsite import CallSite
    from session_tracer.facts import Database
    from session_tracer.owner import Owner
    from session_tracer.probe import Probe
    from session_tracer.signals.spans import Attached

__all__ = ["hold", "is_timed", "remove"]

_DATABASES: Final[weakref.WeakKeyDictionary[Dialect, Database]] = weakref.WeakKeyDictionary()
# Whether the dialect said itself that it has events before we listened to it.
_HAD_EVENTS: Final[weakref.WeakKeyDictionary[Dialect, bool]] = weakref.WeakKeyDictionary()


def is_timed(connection: object) -> bool:
    """Whether this is a connection, and not what a test has put in its place."""
    return issubclass(type(connection), Connection)


def hold(connection: Connection, since: int, owner: Owner, site: CallSite | None) -> Holding:
    """Time what is executed on a connection that the session has begun on."""
    dialect = connection.dialect
    database = _DATABASES.get(dialect)
    if database is None:
        database = _DATABASES[dialect] = sql.database(connection.engine.url)
    if dialect not in _HAD_EVENTS:
        had_events = "_has_events" in dialect.__dict__
        for name, listener in _DIALECT_LISTENERS:
            event.listen(dialect, name, listener)
        _HAD_EVENTS[dialect] = had_events
    return Holding(connection, database, since, owner, site, surrounded=_surround(connection))


def remove() -> None:
    """Leave every dialect and engine as it was found."""
    for dialect, had_events in list(_HAD_EVENTS.items()):
        for name, listener in _DIALECT_LISTENERS:
            if event.contains(dialect, name, listener):
                event.remove(dialect, name, listener)
        # Somebody may have begun to listen after us.
        if not had_events and not _has_listeners(dialect):
            dialect.__dict__.pop("_has_events", None)
    _HAD_EVENTS.clear()


def _has_listeners(dialect: Dialect) -> bool:
    """Whether anybody listens to this very dialect."""
    listened_to: Any = dialect.dispatch
    return any(getattr(listened_to, name).listeners for name in _names(DialectEvents))


def _names(events: type) -> list[str]:
    return [name for name in vars(events) if not name.startswith("_") and name != "dispatch"]


def _surround(connection: Connection) -> bool:
    """Set the context around the connection's whole execution, where others listen to its cursor.

    They start their spans before `do_execute`, and some set a context of their own until after it:
    ours has to be the outer one. Where nobody listens, no context is set: what starts inside the
    driver finds the one that `do_execute` sets. Under asyncio a second task may have to wait for a
    cursor until the first is done, so that it would be seen too late to have met it.
    """
    engine: Any = connection.engine
    listened_to: Any = connection.dispatch
    if engine.dispatch.before_cursor_execute or listened_to.before_cursor_execute:
        enter = _attach
    elif connection.dialect.is_async:
        enter = _check
    else:
        return False
    # A connection that is forgotten must go back to its pool: it may not be held by its own method.
    reference = weakref.ref(connection)

    def surrounded(method: Any) -> Any:
        def execute(*args: Any, **kwargs: Any) -> Any:
            connection = reference()
            attached = enter(connection)
            try:
                return method(connection, *args, **kwargs)
            finally:
                if attached is not None:
                    attached.detach()

        return execute

    for name in SURROUNDED:
        connection.__dict__[name] = surrounded(getattr(type(connection), name))
    return True


def _check(connection: Connection | None) -> None:
    probe = None if connection is None else connection.__dict__.get(SLOT)
    if probe is None or probe.at_work is None:
        return
    try:
        probe.check_use(probe.site())
    except Exception as error:
        probe.failed("statements", error)


def _attach(connection: Connection | None) -> Attached | None:
    probe = None if connection is None else connection.__dict__.get(SLOT)
    if probe is None:
        return None
    try:
        if probe.at_work is not None:
            probe.check_use(probe.site())
        attached: Attached | None = probe.attach()
    except Exception as error:
        probe.failed("statements", error)
        return None
    return attached


def do_execute(
    cursor: DBAPICursor, statement: str, parameters: Any, context: ExecutionContext
) -> bool | None:
    probe = _probe(context)
    if probe is None:
        return None
    arguments = (cursor, statement, parameters, context)
    # An INSERT of many rows is one operation: only executemany() is a batch to the conventions.
    timing = _Timing(probe, context, statement, parameters, 1)
    return timing.run("do_execute", do_execute, arguments)


def do_executemany(
    cursor: DBAPICursor, statement: str, parameters: Any, context: ExecutionContext
) -> bool | None:
    probe = _probe(context)
    if probe is None:
        return None
    arguments = (cursor, statement, parameters, context)
    timing = _Timing(probe, context, statement, (), len(parameters))
    return timing.run("do_executemany", do_executemany, arguments)


def do_execute_no_params(
    cursor: DBAPICursor, statement: str, context: ExecutionContext
) -> bool | None:
    probe = _probe(context)
    if probe is None:
        return None
    arguments = (cursor, statement, context)
    timing = _Timing(probe, context, statement, (), 1)
    return timing.run("do_execute_no_params", do_execute_no_params, arguments)


# SQLAlchemy calls them experimental.
_DIALECT_LISTENERS: Final[tuple[tuple[str, Callable[..., Any]], ...]] = tuple(
    (listener.__name__, listener)
    for listener in (do_execute, do_executemany, do_execute_no_params)
    if hasattr(DialectEvents, listener.__name__)
)


def _probe(context: Any) -> Probe | None:
    try:
        probe: Probe | None = context.root_connection.__dict__.get(SLOT)
    except AttributeError:  # a dialect's own, or what a test has put in its place
        return None
    return probe


def _others_handle(
    listeners: Any, ours: Callable[..., bool | None], arguments: tuple[Any, ...]
) -> bool:
    """Give the dialect listeners after ours their turn, as SQLAlchemy does until one handles it."""
    after = False
    for listener in listeners:
        if after and listener(*arguments):
            return True
        after = after or listener is ours
    return False


class _Timing:
    """One statement on its way; of ours, nothing raises."""

    __slots__ = (
        "_attached",
        "_context",
        "_parameters",
        "_probe",
        "_shape",
        "_site",
        "_size",
        "_started",
        "_statement",
        "_works",
    )

    def __init__(
        self, probe: Probe, context: Any, statement: str, parameters: Any, size: int
    ) -> None:
        self._probe = probe
        self._context = context
        self._statement = statement
        self._parameters = parameters
        self._size = size
        self._started = 0
        self._works = False
        self._attached: Attached | None = None

    def run(
        self, name: str, listener: Callable[..., bool | None], arguments: tuple[Any, ...]
    ) -> bool:
        """Execute the statement as SQLAlchemy would have, and time it."""
        try:
            self._begin()
        except Exception as error:
            self._probe.failed("statements", error)
        try:
            dialect = self._context.dialect
            listeners = getattr(dialect.dispatch, name)
            if len(listeners) == 1 or not _others_handle(listeners, listener, arguments):
                getattr(dialect, name)(*arguments)
        except BaseException as error:
            self._stop(error)
            raise
        self._stop(None)
        for story in self._probe.stories:
            if story.record.misuses and self._may_raise():
                raise_due(self._probe.stories)
        return True

    def _begin(self) -> None:
        probe = self._probe
        flush = probe.flush
        self._site: CallSite | None = probe.site() if flush is None else flush.site
        self._shape = sql.shape(self._statement)
        now = probe.clock()
        if probe.counter.counts:
            probe.settle(now)
        if probe.at_work is None:
            probe.at_work = probe.enter(self._site)
            probe.at_work_site = self._site
            self._works = True
        else:
            probe.check_use(self._site)
        options = self._context.execution_options
        at_once = options.get("yield_per", 0) or 0
        streaming = probe.is_streaming = bool(at_once or options.get("stream_results"))
        probe.loading(self._site, at_once, in_portions=streaming and not at_once)
        if probe.tells_statements:
            self._announce(now)
        self._attached = probe.attach()
        self._started = probe.clock()

    def _announce(self, now: int) -> None:
        shape, database = self._shape, self._database()
        text = sql.without_values(self._statement, database.system)
        self._probe.tell(
            facts.StatementStarted(
                now, text, shape.summary, shape.operation, shape.collection, self._size, database
            )
        )

    def _stop(self, error: BaseException | None) -> None:
        probe = self._probe
        try:
            if self._works:
                probe.at_work = None
            try:
                ended = probe.clock()
            finally:
                if self._attached is not None:
                    self._attached.detach()
            if error is not None and isinstance(error, CancelledError):
                probe.note_cancelled(error)
            if self._started:
                self._tell(ended, ended - self._started, error)
        except Exception as failure:
            probe.failed("statements", failure)

    def _tell(self, ended: int, duration: int, error: BaseException | None) -> None:
        probe, context, flush = self._probe, self._context, self._probe.flush
        operation = self._shape.operation
        connection = context.root_connection
        for holding in probe.connections:
            if holding.holds(connection):
                holding.busy += duration
        reads = operation == "SELECT"
        eager = key = ""
        by_key = False
        fingerprint = 0
        rows = -1
        if reads or reasons.LOADS in context.execution_options:
            reason = reasons.reason(context, probe, ended, self._site)
            entity, eager = reason.entity, reason.eager
            if reason.load is not None and error is None:
                probe.tell(reason.load)
            if reads:
                if not (eager and reason.route is None):
                    probe.come_by(reason.route)
                by_key = reason.load is None and not eager and reasons.is_by_key(context)
                key = reasons.key_of(context) if by_key else ""
                fingerprint = sql.fingerprint(self._statement, self._parameters)
        else:
            entity = reasons.entity(context)
        if operation in _WRITES:
            if error is None:
                rows = _rows(context, operation, self._size)
            if flush is not None:
                if not entity:  # the unit of work writes to tables
                    entity = flush.entity_of(getattr(context.invoked_statement, "table", None))
            elif rows and error is None:
                subject = entity or self._shape.collection
                probe.written[subject] = probe.written.get(subject, 0) + max(rows, 1)
        probe.tell(
            facts.StatementExecuted(
                ended,
                self._site,
                operation,
                self._shape.collection,
                entity,
                duration,
                eager,
                self._size,
                flush is not None,
                "" if error is None else type_name(error),
                "" if error is None else sql.status_code(error),
                rows,
                by_key,
                key,
                fingerprint,
                probe.is_streaming,
                hash(self._statement),
            )
        )

    def _may_raise(self) -> bool:
        """Whether an exception now would only leave rows unread."""
        probe = self._probe
        writing = probe.flush is not None and probe.flush.began
        committing = bool(probe.transactions and probe.transactions[-1].committing_at)
        reads = bool(self._started) and self._shape.operation == "SELECT"
        return reads and not writing and not committing

    def _database(self) -> Database:
        return _DATABASES.get(self._context.dialect) or facts.Database()


_WRITES: Final = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"})


def _rows(context: Any, operation: str, size: int) -> int:
    """How many rows were written, as far as it is known without asking; -1 where it is not."""
    if operation not in _WRITES:
        return -1
    if size > 1:
        return size
    if operation == "INSERT":
        compiled = getattr(context, "compiled", None)
        if getattr(compiled, "_insertmanyvalues", None) is not None:
            # Split in batches, each of which runs by itself; how many rows it has only SQL tells.
            return 1 if len(context.compiled_parameters) == 1 else -1
        if getattr(getattr(compiled, "statement", None), "_multi_values", None):
            return -1
    rows = getattr(context.cursor, "rowcount", -1)
    if isinstance(rows, int) and rows > 0:
        return rows
    # With RETURNING, SQLite does not know before the rows are fetched.
    return 1 if operation == "INSERT" else -1

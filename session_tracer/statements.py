"""What each statement cost, why it ran, and on whose connection.

A listener on an engine's cursor events makes every connection take SQLAlchemy's slower path; the
dialect's `do_execute` costs a tenth of that and sees before, after and the error in one place. So
that is where statements are timed, and why each of them executes the statement itself.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.events import ConnectionEvents, DialectEvents

from session_tracer import facts, sql
from session_tracer.probe import SLOT, type_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Dialect, ExceptionContext, ExecutionContext
    from sqlalchemy.engine.interfaces import DBAPICursor

    from session_tracer.callsite import CallSite
    from session_tracer.facts import Database, LoadKind
    from session_tracer.probe import Probe

__all__ = ["listen", "remove"]

_DATABASES: Final[weakref.WeakKeyDictionary[Dialect, Database]] = weakref.WeakKeyDictionary()
# Whether the dialect said itself that it has events before we listened to it.
_HAD_EVENTS: Final[weakref.WeakKeyDictionary[Dialect, bool]] = weakref.WeakKeyDictionary()
# The same of the Engine class, while we listen to it.
_ENGINE_HAD_EVENTS: Final[list[bool]] = []

_REFRESH: Final = frozenset({"refresh"})
# immediateload() asks the lazy loader for each object as the objects are loaded.
_IMMEDIATE: Final = frozenset({"_load_for_path"})


def listen(connection: Connection) -> Database:
    """Time what this connection's dialect executes; say where it leads."""
    dialect = connection.dialect
    database = _DATABASES.get(dialect)
    if database is None:
        database = _DATABASES[dialect] = sql.database(connection.engine.url)
    if dialect not in _HAD_EVENTS:
        _HAD_EVENTS[dialect] = "_has_events" in dialect.__dict__
        for name, listener in _DIALECT_LISTENERS:
            event.listen(dialect, name, listener)
    _precede_cursor_listeners(connection.engine)
    return database


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
    while _ENGINE_HAD_EVENTS:
        had_events = _ENGINE_HAD_EVENTS.pop()
        for name, listener in _CURSOR_LISTENERS:
            if event.contains(Engine, name, listener):
                event.remove(Engine, name, listener)
        if not had_events and not _class_has_listeners():
            Engine._has_events = False


def _has_listeners(dialect: Dialect) -> bool:
    """Whether anybody listens to this very dialect."""
    listened_to: Any = dialect.dispatch
    return any(getattr(listened_to, name).listeners for name in _names(DialectEvents))


def _class_has_listeners() -> bool:
    """Whether anybody listens to all engines; yes where it cannot be told."""
    try:
        listened_to: Any = Engine.dispatch
        return any(
            getattr(listened_to, name)._clslevel.get(Engine) for name in _names(ConnectionEvents)
        )
    except AttributeError:
        return True


def _names(events: type) -> list[str]:
    return [name for name in vars(events) if not name.startswith("_") and name != "dispatch"]


def _precede_cursor_listeners(engine: Engine) -> None:
    """Set the context before anybody else's cursor listener starts a span.

    Where an engine has such listeners their cost is paid already; where it has none, nothing is
    added: what starts inside the driver finds the context set by `do_execute`.
    """
    listened_to: Any = engine.dispatch
    if _ENGINE_HAD_EVENTS or not listened_to.before_cursor_execute:
        return
    # An engine calls its listeners in the order in which they came, and its class's before those.
    _ENGINE_HAD_EVENTS.append(Engine._has_events)
    for name, listener in _CURSOR_LISTENERS:
        event.listen(Engine, name, listener, retval=listener is before_cursor_execute)


def before_cursor_execute(
    connection: Connection, _: object, statement: str, parameters: Any, *__: object
) -> tuple[str, Any]:
    probe = connection.__dict__.get(SLOT)
    if probe is not None:
        try:
            probe.attach()
        except Exception as error:
            probe.failed("before_cursor_execute", error)
    return statement, parameters


def after_cursor_execute(connection: Connection, *_: object) -> None:
    # Where somebody else's listener executed the statement before ours was asked.
    _detach(connection.__dict__.get(SLOT))


_CURSOR_LISTENERS: Final[tuple[tuple[str, Callable[..., Any]], ...]] = (
    ("before_cursor_execute", before_cursor_execute),
    ("after_cursor_execute", after_cursor_execute),
)


def handle_error(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is not None:
        _detach(connection.__dict__.get(SLOT))


def _detach(probe: Probe | None) -> None:
    if probe is not None:
        try:
            probe.detach()
        except Exception as error:
            probe.failed("statements", error)


def do_execute(
    cursor: DBAPICursor, statement: str, parameters: Any, context: ExecutionContext
) -> bool | None:
    probe = _probe(context)
    if probe is None:
        return None
    arguments = (cursor, statement, parameters, context)
    # An INSERT of many rows is one operation: only executemany() is a batch to the conventions.
    return _run(probe, "do_execute", do_execute, arguments, statement, 1, context)


def do_executemany(
    cursor: DBAPICursor, statement: str, parameters: Any, context: ExecutionContext
) -> bool | None:
    probe = _probe(context)
    if probe is None:
        return None
    arguments = (cursor, statement, parameters, context)
    size = len(parameters)
    return _run(probe, "do_executemany", do_executemany, arguments, statement, size, context)


def do_execute_no_params(
    cursor: DBAPICursor, statement: str, context: ExecutionContext
) -> bool | None:
    probe = _probe(context)
    if probe is None:
        return None
    arguments = (cursor, statement, context)
    return _run(
        probe, "do_execute_no_params", do_execute_no_params, arguments, statement, 1, context
    )


_DIALECT_LISTENERS: Final[tuple[tuple[str, Callable[..., Any]], ...]] = (
    ("do_execute", do_execute),
    ("do_executemany", do_executemany),
    ("do_execute_no_params", do_execute_no_params),
    ("handle_error", handle_error),
)


def _probe(context: Any) -> Probe | None:
    connection = getattr(context, "root_connection", None)
    if connection is None:
        return None
    probe: Probe | None = connection.__dict__.get(SLOT)
    return probe


def _run(
    probe: Probe,
    name: str,
    listener: Callable[..., bool | None],
    arguments: tuple[Any, ...],
    statement: str,
    size: int,
    context: Any,
) -> bool:
    """Execute the statement as SQLAlchemy would have, and time it."""
    timing = _Timing(probe, size, context)
    timing.start(statement)
    try:
        dialect = context.dialect
        if not _others_handle(getattr(dialect.dispatch, name), listener, arguments):
            getattr(dialect, name)(*arguments)
    except BaseException as error:
        timing.stop(error)
        raise
    timing.stop(None)
    return True


def _others_handle(
    listeners: Any, ours: Callable[..., bool | None], arguments: tuple[Any, ...]
) -> bool:
    """Give the dialect listeners after ours their turn, as SQLAlchemy does until one handles it."""
    if len(listeners) == 1:
        return False
    after = False
    for listener in listeners:
        if after and listener(*arguments):
            return True
        after = after or listener is ours
    return False


class _Timing:
    """One statement on its way; neither `start` nor `stop` raises."""

    __slots__ = ("_context", "_probe", "_shape", "_site", "_size", "_started")

    def __init__(self, probe: Probe, size: int, context: Any) -> None:
        self._probe = probe
        self._context = context
        self._size = size
        self._started = 0

    def start(self, statement: str) -> None:
        try:
            self._begin(statement)
        except Exception as error:
            self._probe.failed("statements", error)

    def _begin(self, statement: str) -> None:
        probe = self._probe
        flush = probe.flush
        self._site: CallSite | None = flush.site if flush is not None else probe.site()
        self._shape = sql.shape(statement)
        now = probe.now()
        probe.settle(now)
        probe.loading(self._site, self._context.execution_options.get("yield_per") or 0)
        if probe.tells_statements:
            shape, database = self._shape, self._database()
            text = sql.without_values(statement, database.system)
            probe.tell(
                facts.StatementStarted(
                    now,
                    text,
                    shape.summary,
                    shape.operation,
                    shape.collection,
                    self._size,
                    database,
                )
            )
            probe.detach()  # the span is new: what was set for a cursor listener is not innermost
        probe.attach()
        self._started = probe.now()

    def stop(self, error: BaseException | None) -> None:
        probe = self._probe
        try:
            try:
                ended = probe.now()
            finally:
                probe.detach()
            if self._started:
                self._tell(ended, ended - self._started, error)
        except Exception as failure:
            probe.failed("statements", failure)

    def _tell(self, ended: int, duration: int, error: BaseException | None) -> None:
        probe, shape = self._probe, self._shape
        for holding in probe.connections:
            if holding.holds(self._context.root_connection):
                holding.busy += duration
        load, entity, eager = _reason(self._context, probe)
        if load is not None and error is None:
            kind, parent, attribute = load
            probe.tell(facts.AttributeLoaded(ended, self._site, kind, parent, attribute))
        probe.tell(
            facts.StatementExecuted(
                ended,
                self._site,
                shape.operation,
                shape.collection,
                entity,
                duration,
                eager,
                self._size,
                probe.flush is not None,
                "" if error is None else type_name(error),
                "" if error is None else sql.status_code(error),
            )
        )

    def _database(self) -> Database:
        return _DATABASES.get(self._context.dialect) or facts.Database()


def _reason(context: Any, probe: Probe) -> tuple[tuple[LoadKind, str, str] | None, str, str]:
    """Why the statement runs: the attribute it loads, the entity it is for, what it loads eagerly.

    SQLAlchemy's loaders leave it in the statement's and the execution's options, where
    `ORMExecuteState` reads it too. Asking there costs nothing, while a `do_orm_execute` listener
    has every statement prepared twice.
    """
    statement = getattr(context, "invoked_statement", None)
    if statement is None:
        return None, "", ""
    mapper = getattr(statement, "_propagate_attrs", _EMPTY).get("plugin_subject")
    entity = "" if mapper is None else mapper.class_.__name__
    options = context.execution_options.get("_sa_orm_load_options")
    if options is None:
        return None, entity, ""
    compile_options = getattr(statement, "_compile_options", None)
    path = getattr(compile_options, "_current_path", None)
    parent = getattr(options, "_lazy_loaded_from", None)
    if parent is not None:
        attribute = path.prop.key if path is not None and not path.is_root else ""
        if probe.tracers[0].locator.called_by(_IMMEDIATE):
            return None, entity, f"{parent.class_.__name__}.{attribute}"
        return ("relationship", parent.class_.__name__, attribute), entity, ""
    state = getattr(options, "_refresh_state", None)
    if state is not None and getattr(compile_options, "_for_refresh_state", False):
        wanted = getattr(compile_options, "_only_load_props", None)
        kind, attribute = _column_load(state, wanted, probe)
        return (kind, state.class_.__name__, attribute), entity, ""
    if path is not None and not path.is_root:
        prop = path.prop
        return None, entity, f"{prop.parent.class_.__name__}.{prop.key}"
    return None, entity, ""


def _column_load(state: Any, wanted: Any, probe: Probe) -> tuple[LoadKind, str]:
    if wanted is None or probe.tracers[0].locator.called_by(_REFRESH):
        return "refresh", ""
    columns = sorted(wanted)
    if not state.expired_attributes.intersection(wanted):
        return "deferred", columns[0] if len(columns) == 1 else ", ".join(columns)
    return "expired", ""


_EMPTY: Final[dict[str, Any]] = {}

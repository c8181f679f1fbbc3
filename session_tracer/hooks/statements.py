"""What each statement cost, why it ran, and on whose connection.

A listener on an engine's cursor events makes every connection take SQLAlchemy's slower path; the
dialect's `do_execute` costs a tenth of that and sees before, after and the error in one place. So
that is where statements are timed, and why each of them executes the statement itself. It is called
experimental: where it cannot be listened to, the cursor events are.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.engine.events import ConnectionEvents, DialectEvents
from sqlalchemy.engine.interfaces import ExecuteStyle
from sqlalchemy.exc import InvalidRequestError

from session_tracer import facts
from session_tracer.facts import StatementExecuted
from session_tracer.hooks import load_reason, sql
from session_tracer.hooks.patching import as_sqlalchemys
from session_tracer.hooks.sql import fingerprint as fingerprint_of
from session_tracer.ledger.in_progress import SLOT, SURROUNDED, Holding
from session_tracer.ledger.ledger import Ledger, type_name
from session_tracer.runtime import process, threads
from session_tracer.runtime.degraded import without
from session_tracer.verdicts.misuse import raise_due

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Dialect, Engine, ExceptionContext

    from session_tracer.facts import Database
    from session_tracer.hooks.sql import Shape
    from session_tracer.ledger.in_progress import Flush
    from session_tracer.ledger.report import Attached
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

__all__ = ["LOST", "begin", "hold", "is_timed", "remove"]

# What is lost where the dialect cannot be listened to.
LOST: Final = (
    "statements are timed by the engine's cursor events, which makes connections slower; where "
    "others listen to the cursor too, what the driver starts is below the transaction's span, not "
    "the statement's"
)

_DATABASES: Final[weakref.WeakKeyDictionary[Dialect, Database]] = weakref.WeakKeyDictionary()
# Whether the dialect, or the engine, said itself that it has events before we listened to it.
_HAD_EVENTS: Final[weakref.WeakKeyDictionary[Any, bool]] = weakref.WeakKeyDictionary()
# Held while it changes who is listened to.
_CHANGING: Final = process.PerProcess(threads.RLock)
# The dialects whose engines' cursor events are listened to instead.
_BY_CURSOR: Final[weakref.WeakSet[Dialect]] = weakref.WeakSet()


class _Listening:
    """Whether dialects and engines are listened to."""

    is_on = False


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
        _listen_to_dialect(dialect)
    if dialect in _BY_CURSOR and connection.engine not in _HAD_EVENTS:
        with _CHANGING.value:
            if _Listening.is_on and connection.engine not in _HAD_EVENTS:
                _listen(connection.engine, _CURSOR_LISTENERS)
    return Holding(connection, database, since, owner, site, surrounded=_surround(connection))


def begin() -> None:
    """Listen to the dialects of the connections that sessions take from now on."""
    _Listening.is_on = True


def _listen_to_dialect(dialect: Dialect) -> None:
    with _CHANGING.value:
        # Another thread may have been first, or may have uninstrumented meanwhile.
        if _Listening.is_on and dialect not in _HAD_EVENTS:
            _listen_as_it_can(dialect)


def _listen_as_it_can(dialect: Dialect) -> None:
    try:
        _listen(dialect, _DIALECT_LISTENERS)
    except InvalidRequestError:
        _unlisten(dialect, _DIALECT_LISTENERS)
        without("DialectEvents.do_execute", LOST)
        _BY_CURSOR.add(dialect)
        with suppress(InvalidRequestError):  # of a dialect without any event
            _listen(dialect, _ERROR_LISTENERS)


def _listen(target: Dialect | Engine, listeners: _Listeners) -> None:
    _HAD_EVENTS[target] = "_has_events" in target.__dict__
    for name, listener in listeners:
        event.listen(target, name, listener)


def _unlisten(target: Dialect | Engine, listeners: _Listeners) -> None:
    for name, listener in listeners:
        with suppress(InvalidRequestError):
            if event.contains(target, name, listener):
                told: Any = getattr(target.dispatch, name)
                # What an engine with options of its own hears besides are its parent's.
                own = getattr(told, "local", told)
                if isinstance(getattr(own, "listeners", None), deque):
                    # Another thread may be amid an iteration over the listeners there are.
                    own.listeners = deque(own.listeners)
                event.remove(target, name, listener)


def remove() -> None:
    """Leave every dialect and engine as it was found."""
    with _CHANGING.value:
        _Listening.is_on = False
        for target, had_events in list(_HAD_EVENTS.items()):
            if not had_events:
                # While it has none, SQLAlchemy asks no listeners, and other threads are not
                # disturbed.
                _forget_events(target)
            _unlisten(target, _LISTENERS)
            if not had_events:
                # An engine's listeners are wrapped, and were not known to be ours.
                _forget_events(target)
        _HAD_EVENTS.clear()
        _BY_CURSOR.clear()


def _forget_events(target: Any) -> None:
    # Somebody may have begun to listen after us.
    if not _has_other_listeners(target):
        target.__dict__.pop("_has_events", None)


def _has_other_listeners(target: Any) -> bool:
    """Whether anybody but us listens to this very dialect or engine."""
    ours = [listener for _, listener in _LISTENERS]
    listened_to = [getattr(target.dispatch, name, None) for name in _EVENTS]
    # What an engine with options of its own hears besides are its parent's.
    own = [getattr(one, "local", one) for one in listened_to]
    return any(told not in ours for one in own for told in getattr(one, "listeners", ()))


_EVENTS: Final = [
    name
    for events in (DialectEvents, ConnectionEvents)
    for name in vars(events)
    if not name.startswith("_") and name != "dispatch"
]


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
        enter = _attached
    elif connection.dialect.is_async:
        enter = _check
    else:
        return False
    # A connection that is forgotten must go back to its pool: it may not be held by its own method.
    reference = weakref.ref(connection)

    def surrounded(method: Any) -> Any:
        def execute(*args: Any, **kwargs: Any) -> Any:
            connection = reference()
            attached = outer = None
            try:
                with suppress(Exception):  # there may be no memory to call it
                    outer = connection.__dict__.get(_UNDER_WAY)
                    attached = enter(connection)
                    if attached is not None:
                        attached.attach()
                return method(connection, *args, **kwargs)
            finally:
                try:
                    _give_up(connection, outer)
                    if attached is not None:
                        attached.detach()
                except BaseException as error:
                    # Not left to an interrupt either.
                    if attached is not None:
                        attached.detach()
                    if not isinstance(error, Exception):
                        raise

        return as_sqlalchemys(execute)

    for name in SURROUNDED:
        connection.__dict__[name] = surrounded(getattr(type(connection), name))
    return True


def _check(connection: Connection | None) -> None:
    ledger = None if connection is None else connection.__dict__.get(SLOT)
    if ledger is None or ledger.at_work is None:
        return
    try:
        ledger.check_use(ledger.site())
    except Exception as error:
        ledger.failed("statements", error)


def _attached(connection: Connection | None) -> Attached | None:
    ledger = None if connection is None else connection.__dict__.get(SLOT)
    if ledger is None:
        return None
    try:
        if ledger.at_work is not None:
            ledger.check_use(ledger.site())
        attached: Attached | None = ledger.attach()
    except Exception as error:
        ledger.failed("statements", error)
        return None
    return attached


# The dialect's events.


def _executing(name: str) -> Callable[..., bool | None]:
    """The listener that executes as SQLAlchemy would have, and times it; of ours, nothing raises.

    Python looks for an interrupt as a function begins and as one returns: while the context is in
    force, that is within a `try` only, and what an interrupt leaves undone is done again.
    """
    is_batch = name == "do_executemany"

    def listener(cursor: Any, statement: str, parameters: Any, context: Any = None) -> bool | None:
        ledger = None
        try:
            arguments: tuple[Any, ...] = (cursor, statement, parameters, context)
            if context is None:  # do_execute_no_params has none
                arguments = (cursor, statement, parameters)
                parameters, context = (), parameters
            ledger = context.root_connection.__dict__.get(SLOT)
            if ledger is None:
                return None
            dialect = context.dialect
            execute = getattr(dialect, name)
            listeners = getattr(dialect.dispatch, name)
            others = () if len(listeners) == 1 else _after(listener, listeners)
            # An INSERT of many rows is one operation: only executemany() is a batch to the
            # conventions.
            size = len(parameters) if is_batch else 1
            site, shape, works = _begin(ledger, context, statement, size)
            attached = ledger.attach()
            started = ledger.clock()
        except Exception as error:
            if ledger is not None:  # else a dialect's own, or what a test has put in its place
                ledger.failed("statements", error)
            return None
        failed = None
        try:
            if works is not None:
                ledger.at_work = works
                ledger.at_work_site = site
            if attached is not None:
                try:
                    attached.attach()
                except Exception as error:
                    ledger.failed("statements", error)
            for other in others:
                if other(*arguments):
                    break
            else:
                execute(*arguments)
        except BaseException as error:
            failed = error
            raise
        finally:
            try:
                if works is not None:
                    ledger.at_work = None
                ended = ledger.clock()
                if attached is not None:
                    attached.detach()
                is_due = _end(
                    ledger,
                    context,
                    statement,
                    parameters,
                    size,
                    site,
                    shape,
                    started,
                    ended,
                    failed,
                )
            except BaseException as error:
                if attached is not None:
                    attached.detach()
                if not isinstance(error, Exception):
                    raise
                is_due = False
                ledger.failed("statements", error)
            failed = None  # the error's traceback holds this frame
        if is_due and _may_raise(ledger, shape):
            raise_due(ledger.reports)
        return True

    # What it looks for among the listeners is itself as it is registered.
    listener = as_sqlalchemys(listener)
    return listener


def _after(ours: Callable[..., bool | None], listeners: Any) -> list[Any]:
    """The dialect listeners after ours, which SQLAlchemy would ask until one handles it."""
    known = list(listeners)
    return known[known.index(ours) + 1 :]


# The cursor's events.

# The attribute of a connection that has the statement under way on it.
_UNDER_WAY: Final = "_session_tracer_statement"


class _UnderWay(NamedTuple):
    connection: Connection
    ledger: Ledger
    context: Any
    statement: str
    parameters: Any
    size: int
    site: CallSite | None
    shape: Shape
    works: bool
    attached: Attached | None
    started: int
    # A listener of somebody else's may execute statements amid another.
    outer: _UnderWay | None

    def end(self, error: BaseException | None) -> bool:
        """It has been executed, or has failed; whether a finding may be due."""
        ledger, attached = self.ledger, self.attached
        try:
            if self.works:
                ledger.at_work = None
            ended = ledger.clock()
            if attached is not None:
                attached.detach()
            return _end(ledger, *self[2:8], self.started, ended, error)
        except BaseException as failure:
            if attached is not None:
                attached.detach()
            if not isinstance(failure, Exception):
                raise
            ledger.failed("statements", failure)
            return False
        finally:
            self.connection.__dict__[_UNDER_WAY] = self.outer
            if self.outer is None:
                del self.connection.__dict__[_UNDER_WAY]


def before_cursor_execute(
    connection: Connection,
    _: object,
    statement: str,
    parameters: Any,
    context: Any,
    executemany: bool,
) -> None:
    ledger = None
    try:
        ledger = connection.__dict__.get(SLOT)
        outer = connection.__dict__.get(_UNDER_WAY)
        if ledger is None or context is None or (outer and outer.context is context):
            return  # the last is heard of from an engine and from its parent
        size = 1
        if executemany and context.execute_style is not ExecuteStyle.INSERTMANYVALUES:
            size, parameters = len(parameters), ()
        site, shape, works = _begin(ledger, context, statement, size)
        attached = ledger.attach()
        listened_to: Any = connection.dispatch
        if len(listened_to.before_cursor_execute) > 1:
            attached = None  # others may set a context of theirs until after ours is set back
        under_way = _UnderWay(
            connection,
            ledger,
            context,
            statement,
            parameters,
            size,
            site,
            shape,
            works is not None,
            attached,
            ledger.clock(),
            outer,
        )
        connection.__dict__[_UNDER_WAY] = under_way
        if works is not None:
            ledger.at_work = works
            ledger.at_work_site = site
        if attached is not None:
            attached.attach()
    except Exception as error:
        if ledger is not None:
            ledger.failed("statements", error)


def after_cursor_execute(connection: Connection, *told: Any) -> None:
    under_way = None
    is_due = False
    with suppress(Exception):
        under_way = _under_way(connection, told[3])
        is_due = under_way is not None and under_way.end(None)
    if under_way is not None and is_due and _may_raise(under_way.ledger, under_way.shape):
        raise_due(under_way.ledger.reports)


def handle_error(failure: ExceptionContext) -> None:
    with suppress(Exception):
        under_way = _under_way(failure.connection, failure.execution_context)
        if under_way is not None:
            under_way.end(failure.original_exception)


def _under_way(connection: Connection | None, context: Any) -> _UnderWay | None:
    if connection is None:
        return None
    under_way: _UnderWay | None = connection.__dict__.get(_UNDER_WAY)
    return None if under_way is None or under_way.context is not context else under_way


def _give_up(connection: Any, outer: _UnderWay | None) -> None:
    """End what nobody has told the end of: another listener's error hides an error from ours."""
    while True:
        under_way: _UnderWay | None = connection.__dict__.get(_UNDER_WAY)
        if under_way is None or under_way is outer:
            return
        error = sys.exc_info()[1]
        under_way.end(getattr(error, "orig", None) or error)


# A statement on its way.


def _begin(
    ledger: Ledger, context: Any, statement: str, size: int
) -> tuple[CallSite | None, Shape, Owner | None]:
    """Its line and its shape, and whose work it is where nothing else is at work."""
    flush = ledger.flush
    site = ledger.site() if flush is None else flush.site
    shape = _known_shape(statement) or sql.shape(statement)
    if ledger.counter.counts:
        ledger.settle(ledger.clock())
    works = None
    if ledger.at_work is None:
        works = ledger.enter(site)
    else:
        ledger.check_use(site)
    options = context.execution_options
    if "yield_per" in options or "stream_results" in options:
        at_once = options.get("yield_per", 0) or 0
        streaming = ledger.is_streaming = bool(at_once or options.get("stream_results"))
        ledger.loading(site, at_once, in_portions=streaming and not at_once)
    else:
        ledger.is_streaming = False
        ledger.loading(site)
    if ledger.announces_statements:
        _announce(ledger, context, statement, shape, size)
    return site, shape, works


_known_shape: Final = sql.SHAPES.get


def _announce(ledger: Ledger, context: Any, statement: str, shape: Shape, size: int) -> None:
    database = _DATABASES.get(context.dialect) or facts.Database()
    text = sql.without_values(statement, database.system)
    ledger.statement_started(
        facts.StatementStarted(
            ledger.clock(), text, shape.summary, shape.operation, shape.collection, size, database
        )
    )


def _end(
    ledger: Ledger,
    context: Any,
    statement: str,
    parameters: Any,
    size: int,
    site: CallSite | None,
    shape: Shape,
    started: int,
    ended: int,
    error: BaseException | None,
) -> bool:
    """Take a statement into account; whether a finding may be due to be raised."""
    if error is not None:
        ledger.is_cancellation(error)
    duration = ended - started
    if len(ledger.connections) == 1:
        ledger.connections[0].busy += duration
    else:
        _hold_longer(ledger, context, duration)
    flush = ledger.flush
    if shape.operation == "SELECT":
        _selected(ledger, context, statement, parameters, size, site, shape, duration, ended, error)
    elif flush is not None and error is None and ledger.is_quiet:
        _written_by_flush(ledger, flush, context, statement, size, shape, duration, ended)
    else:
        _executed(ledger, context, statement, size, site, shape, duration, ended, error)
    return any(report.misuses for report in ledger.reports)


def _selected(
    ledger: Ledger,
    context: Any,
    statement: str,
    parameters: Any,
    size: int,
    site: CallSite | None,
    shape: Shape,
    duration: int,
    ended: int,
    error: BaseException | None,
) -> None:
    """A SELECT ran: for itself, for an attribute of one object, or with another SELECT."""
    why = load_reason.reason(context, ledger)
    load = why.load if error is None else None
    entity, eager = why.entity, why.eager
    if load is not None:
        load_reason.report_load(ledger, load, why, ended, site)
    if why.route is not None or not eager:
        ledger.come_by(why.route)
    in_flush = ledger.flush is not None
    ledger.executed(
        ended, site, duration, "SELECT", entity=entity, eager=eager, in_flush=in_flush, load=load
    )
    if load is not None and not (ledger.publishers or ledger.announces_statements):
        return  # what loads an attribute is judged as such
    by_key = why.load is None and not eager and load_reason.is_by_key(context)
    fact = StatementExecuted(
        ended,
        site,
        "SELECT",
        shape.collection,
        entity,
        duration,
        eager,
        size,
        in_flush,
        "" if error is None else type_name(error),
        "" if error is None else sql.status_code(error),
        -1,
        by_key,
        load_reason.key_of(context) if by_key else "",
        fingerprint_of(statement, parameters),
        ledger.is_streaming,
        hash(statement),
    )
    ledger.statement_executed(fact)
    ledger.selected(fact)


def _written_by_flush(
    ledger: Ledger,
    flush: Flush,
    context: Any,
    statement: str,
    size: int,
    shape: Shape,
    duration: int,
    ended: int,
) -> None:
    """A statement of the unit of work ran, of which no more is reported than that.

    It is counted in a few additions: many rows may be written by a statement each.
    """
    ledger.executed_by_flush(ended, flush.site, duration, shape.operation)
    if size > 1 or shape.operation not in _ONE_ROW:
        return
    if ledger.wrote_same_row(statement):
        if not ledger.has_crossed_single_rows():
            return
    elif _rows(context, shape.operation, size) != 1 or not ledger.wrote_row(
        flush.site, shape.operation, shape.collection, statement, flush
    ):
        return
    ledger.judge(
        StatementExecuted(
            at=ended,
            site=flush.site,
            operation=shape.operation,
            collection=shape.collection,
            entity=_entity_of(context, flush),
            duration=duration,
            in_flush=True,
            rows=1,
            text=hash(statement),
        )
    )


def _entity_of(context: Any, flush: Flush | None) -> str:
    entity = load_reason.entity(context)
    if flush is not None and not entity:  # the unit of work writes to tables
        entity = flush.entity_of(getattr(context.invoked_statement, "table", None))
    return entity


def _executed(
    ledger: Ledger,
    context: Any,
    statement: str,
    size: int,
    site: CallSite | None,
    shape: Shape,
    duration: int,
    ended: int,
    error: BaseException | None,
) -> None:
    """A statement ran that is no SELECT."""
    flush, operation = ledger.flush, shape.operation
    load = None
    eager = ""
    rows = -1
    if load_reason.LOADS in context.execution_options:
        why = load_reason.reason(context, ledger)
        entity, eager = why.entity, why.eager
        load = why.load if error is None else None
        if load is not None:
            load_reason.report_load(ledger, load, why, ended, site)
    else:
        entity = load_reason.entity(context)
    if operation in _WRITES:
        if flush is not None and not entity:
            entity = _entity_of(context, flush)
        if error is None:
            rows = _rows(context, operation, size)
    ledger.executed(
        ended,
        site,
        duration,
        operation,
        entity=entity,
        eager=eager,
        in_flush=flush is not None,
        load=load,
    )
    if flush is None and rows and operation in _WRITES and error is None:
        ledger.wrote_rows(entity, shape.collection, rows)
    has_crossed = (
        rows == 1
        and operation in _ONE_ROW
        and ledger.wrote_row(site, operation, shape.collection, statement, flush)
    )
    if not (has_crossed or ledger.publishers or ledger.announces_statements):
        return
    fact = StatementExecuted(
        ended,
        site,
        operation,
        shape.collection,
        entity,
        duration,
        eager,
        size,
        flush is not None,
        "" if error is None else type_name(error),
        "" if error is None else sql.status_code(error),
        rows,
        False,
        "",
        0,
        ledger.is_streaming,
        hash(statement),
    )
    ledger.statement_executed(fact)
    if has_crossed:
        ledger.judge(fact)


def _hold_longer(ledger: Ledger, context: Any, duration: int) -> None:
    for holding in ledger.connections:
        if holding.holds(context.root_connection):
            holding.busy += duration


def _may_raise(ledger: Ledger, shape: Shape) -> bool:
    """Whether an exception now would only leave rows unread."""
    writing = ledger.flush is not None and ledger.flush.began
    committing = bool(ledger.transactions_open and ledger.transactions_open[-1].committing_at)
    return shape.operation == "SELECT" and not writing and not committing


_ONE_ROW: Final = frozenset({"INSERT", "UPDATE", "DELETE"})
_WRITES: Final = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"})


def _rows(context: Any, operation: str, size: int) -> int:
    """How many rows were written, as far as it is known without asking; -1 where it is not."""
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


_Listeners: TypeAlias = "tuple[tuple[str, Callable[..., Any]], ...]"
_DIALECT_LISTENERS: Final[_Listeners] = tuple(
    (name, _executing(name)) for name in ("do_execute", "do_executemany", "do_execute_no_params")
)
_ERROR_LISTENERS: Final[_Listeners] = (("handle_error", handle_error),)
_CURSOR_LISTENERS: Final[_Listeners] = (
    ("before_cursor_execute", before_cursor_execute),
    ("after_cursor_execute", after_cursor_execute),
)
_LISTENERS: Final[_Listeners] = (*_DIALECT_LISTENERS, *_ERROR_LISTENERS, *_CURSOR_LISTENERS)

"""What each statement cost, why it ran, and on whose connection.

A listener on an engine's cursor events makes every connection take SQLAlchemy's slower path. The
dialect's `do_execute` costs a tenth of that, and its listener sees before, after and the error in
one place: so statements are timed there, and each listener executes the statement itself.
"""

from __future__ import annotations

import operator
import weakref
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.engine.events import DialectEvents
from sqlalchemy.exc import InvalidRequestError

from session_tracer import facts
from session_tracer.facts import StatementExecuted
from session_tracer.hooks import load_reason, locks, loops, parts, sql, streams
from session_tracer.hooks.comments import commenting
from session_tracer.hooks.failed_statements import statement_failed
from session_tracer.hooks.loader_options import key_and_tree
from session_tracer.hooks.patching import as_sqlalchemys
from session_tracer.hooks.sql import fingerprint as fingerprint_of
from session_tracer.ledger import pools
from session_tracer.ledger.guard import reporting
from session_tracer.ledger.in_progress import SLOT, SURROUNDED, Holding
from session_tracer.ledger.ledger import Ledger, type_name
from session_tracer.runtime import process, threads
from session_tracer.runtime.degraded import without
from session_tracer.verdicts.misuse import raise_due

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.engine import Dialect

    from session_tracer.facts import Database
    from session_tracer.hooks.sql import Shape
    from session_tracer.ledger.in_progress import Flush
    from session_tracer.ledger.report import Attached
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

__all__ = ["LOST", "begin", "hold", "is_timed", "remove"]

# What is not reported if the dialect's events are missing.
LOST: Final = "statements are neither counted nor timed, and lazy loads are not reported"

# The databases of the dialects that are listened to.
_DATABASES: Final[weakref.WeakKeyDictionary[Dialect, Database]] = weakref.WeakKeyDictionary()
# Whether the dialect had `_has_events` of its own before it was listened to.
_HAD_EVENTS: Final[weakref.WeakKeyDictionary[Any, bool]] = weakref.WeakKeyDictionary()
# Held while it changes which dialects are listened to.
_CHANGING: Final = process.PerProcess(threads.RLock)


class _Listening:
    """Whether dialects are listened to."""

    is_on = False


def is_timed(connection: object) -> bool:
    """Whether this is a connection, and not what a test has put in its place."""
    return issubclass(type(connection), Connection)


def hold(connection: Connection, since: int, owner: Owner, site: CallSite | None) -> Holding:
    """Time what is executed on a connection that the session has begun on."""
    dialect = connection.dialect
    database = _DATABASES.get(dialect)
    if database is None:
        database = _listen_to(dialect, connection)
    ledger = getattr(connection, SLOT)
    if ledger.attaching is not None and not ledger.attaches and _has_onlookers(connection):
        ledger.attaches = True
    holding = Holding(connection, database, since, owner, site)
    if dialect.driver == "mysqldb":
        holding.note_process_id()
    try:
        # SQLAlchemy calls no listener of a cursor's events without one of these flags.
        has_events = connection._has_events or connection.engine._has_events
    except AttributeError:
        has_events = True
    if has_events or dialect.is_async:
        holding.is_surrounded = _surround(connection)
    return holding


def begin() -> None:
    """Listen to the dialects of the connections that sessions take from now on."""
    _Listening.is_on = True
    # Each is asked for again, for the tracers that there are now.
    _DATABASES.clear()


def _listen_to(dialect: Dialect, connection: Connection) -> Database:
    """Listen to a dialect that is not listened to, and return what its database is."""
    is_mariadb = bool(getattr(dialect, "is_mariadb", False))
    database = sql.database(connection.engine.url, is_mariadb=is_mariadb)
    pools.use(connection, database, getattr(connection, SLOT).tracers)
    with _CHANGING.value:
        # Another thread may have been first, or may have uninstrumented meanwhile.
        if not _Listening.is_on:
            return database
        _DATABASES[dialect] = database
        if dialect in _HAD_EVENTS:
            return database
        _HAD_EVENTS[dialect] = "_has_events" in dialect.__dict__
        try:
            for name, listener in _LISTENERS:
                event.listen(dialect, name, listener)
        except InvalidRequestError:
            without("DialectEvents.do_execute", LOST)
    return database


def remove() -> None:
    """Leave every dialect as it was found."""
    with _CHANGING.value:
        _Listening.is_on = False
        for dialect, had_events in list(_HAD_EVENTS.items()):
            if not had_events and not _has_other_listeners(dialect):
                # While it has none, SQLAlchemy asks no listeners, and other threads are not
                # disturbed.
                dialect.__dict__.pop("_has_events", None)
            _unlisten(dialect)
        _HAD_EVENTS.clear()
        _DATABASES.clear()


def _unlisten(dialect: Dialect) -> None:
    for name, listener in _LISTENERS:
        with suppress(InvalidRequestError):
            if event.contains(dialect, name, listener):
                known: Any = getattr(dialect.dispatch, name)
                if isinstance(getattr(known, "listeners", None), deque):
                    # Another thread may be in the middle of an iteration over the listeners.
                    known.listeners = deque(known.listeners)
                event.remove(dialect, name, listener)


def _has_other_listeners(dialect: Any) -> bool:
    """Whether other code listens to this very dialect."""
    own = [listener for _, listener in _LISTENERS]
    listened_to = [getattr(dialect.dispatch, name, None) for name in _EVENTS]
    return any(one not in own for known in listened_to for one in getattr(known, "listeners", ()))


_EVENTS: Final = [
    name for name in vars(DialectEvents) if not name.startswith("_") and name != "dispatch"
]


# The context around statements.


def _has_onlookers(connection: Connection) -> bool:
    """Whether code that runs during a statement could see which context is in force.

    The driver in C that comes with Python runs no Python code, and an instrumentation of it puts an
    object of another type in the place of its connection. An SQL function or a trace callback that
    is written in Python sees the caller's context.
    """
    try:
        # The public property would open a new one if it was invalidated.
        proxied: Any = connection._dbapi_connection
        driver = type(proxied.dbapi_connection)
    except AttributeError:  # it is closed, or has another shape
        return True
    is_plain = (driver.__module__, driver.__qualname__) == ("sqlite3", "Connection")
    return not is_plain or type(connection.dialect).do_execute is not DefaultDialect.do_execute


def _surround(connection: Connection) -> bool:
    """Set the context around the connection's whole execution, where others listen to its cursor.

    They start their spans before `do_execute`, and some set a context of their own until after it:
    session_tracer's has to be the outer one. Where no one listens, no context is set: what starts
    inside the driver finds the one that `do_execute` sets. Under asyncio a second task may have to
    wait for a cursor until the first is done, so that it would be seen too late to have met it.
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
    for name in SURROUNDED:
        method = getattr(type(connection), name)
        connection.__dict__[name] = partial(_surrounded, enter, method, reference)
    return True


def _executing_surrounded(
    enter: Any, method: Any, reference: Any, /, *args: Any, **kwargs: Any
) -> Any:
    connection = reference()
    attached = None
    try:
        with suppress(Exception):  # there may be no memory to call it
            attached = enter(connection)
            if attached is not None:
                attached.attach()
        return method(connection, *args, **kwargs)
    finally:
        try:
            if attached is not None:
                attached.detach()
        except BaseException as error:
            # Not left to an interrupt either.
            if attached is not None:
                attached.detach()
            if not isinstance(error, Exception):
                raise


def _check(connection: Connection | None) -> None:
    ledger = getattr(connection, SLOT, None)
    if ledger is None or ledger.at_work is None:
        return
    try:
        ledger.check_use(ledger.site())
    except Exception as error:
        ledger.failed("statements", error)


def _attached(connection: Connection | None) -> Attached | None:
    ledger = getattr(connection, SLOT, None)
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


# The statement itself.

_EXECUTES: Final = ("do_execute", "do_executemany", "do_execute_no_params")


def _executing(name: str) -> Callable[..., bool | None]:
    """The listener that executes as SQLAlchemy would have, and times it; it never raises itself.

    Python handles an interrupt when a function begins or returns. While the context is set, this
    happens only in a `try`, and what an interrupt has left undone is done in its `finally`.
    """
    is_one, is_batch, is_bare = (name == one for one in _EXECUTES)

    def listener(cursor: Any, statement: str, parameters: Any, context: Any = None) -> bool | None:
        ledger: Any = None
        try:
            if is_bare:
                parameters, context = (), parameters
            ledger = getattr(context.root_connection, SLOT, None)
            if ledger.__class__ is not Ledger:
                return None
            flush: Any = ledger.flush
            is_repeated = (
                flush is not None
                and statement is flush.repeated
                and is_one
                and (flush.repeats_rows or len(context.compiled_parameters) > 1)
            )
            if not is_repeated:
                dialect = context.dialect
                execute = getattr(dialect, name)
                listeners = getattr(dialect.dispatch, name)
                is_shared = len(listeners) > 1
                if is_shared:
                    execute = partial(_ask, _after(listener, listeners), execute)
                if is_bare:
                    execute = partial(_execute_bare, execute)
                # An INSERT of many rows is one operation: only executemany() is a batch to the
                # conventions.
                size = len(parameters) if is_batch else 1
                if flush is None:
                    site = ledger.site()
                    worker = ledger.executing(site, brings=True)
                else:
                    site = flush.site
                    if flush.repeated is not None:
                        ledger.end_repeats()
                    changes = context.isupdate or context.isdelete
                    worker = ledger.executing(site, brings=not changes)
                options = context.execution_options
                if "yield_per" in options or "stream_results" in options:
                    _stream(ledger, options, context, site)
                if ledger.announces_statements:
                    _announce(ledger, context, statement, size)
                if ledger.comments is not None:
                    execute = commenting(ledger, execute, statement, dialect, is_batch=is_batch)
                attached = ledger.attach() if ledger.attaches or is_shared else None
            started = ledger.clock()
        except Exception as error:
            if ledger is not None:  # else a dialect's own, or what a test has put in its place
                ledger.failed("statements", error)
            return None
        if is_repeated:
            return _again(ledger, flush, context, started, cursor, statement, parameters)
        failed = None
        try:
            if attached is not None:
                _attach(ledger, attached)
            if worker is not None:
                ledger.at_work = worker
            execute(cursor, statement, parameters, context)
        except BaseException as error:
            failed = error
            raise
        finally:
            try:
                if worker is not None:
                    ledger.at_work = None
                ended = ledger.clock()
                if attached is not None:
                    attached.detach()
                duration = ended - started
                if len(ledger.connections) > 1:
                    _note_elsewhere(ledger.connections, context, duration)
                if failed is not None:
                    _failed(ledger, context, statement, site, duration, failed)
                shape = _known_shape(statement) or sql.shape(statement)
                if shape.operation == "SELECT":
                    _selected(
                        ledger,
                        context,
                        statement,
                        parameters,
                        size,
                        site,
                        ended,
                        duration,
                        failed,
                    )
                else:
                    _written(ledger, context, statement, shape, size, site, ended, duration, failed)
                    if flush is not None:
                        flush.execute = execute
                        if is_shared or worker is None:
                            flush.repeated = None
            except BaseException as error:
                if attached is not None:
                    attached.detach()
                if not isinstance(error, Exception):
                    raise
                ledger.failed("statements", error)
            failed = None  # the error's traceback holds this frame
        if ledger.has_misuses and _may_raise(ledger, statement):
            raise_due(ledger.reports)
        return True

    # What it looks for among the listeners is itself as it is registered.
    listener = as_sqlalchemys(listener)
    return listener


_known_shape: Final = sql.SHAPES.get


def _executing_again(
    ledger: Ledger,
    flush: Flush,
    context: Any,
    started: int,
    cursor: Any,
    statement: str,
    parameters: Any,
) -> bool:
    """A flush repeats its last statement for other rows: to time and count it is enough.

    Any other statement would have ended the repeats, and so would a second connection.
    """
    failed = None
    try:
        ledger.at_work = flush.owner
        flush.execute(cursor, statement, parameters, context)
    except BaseException as error:
        failed = error
        raise
    finally:
        ledger.at_work = None
        try:
            ended = ledger.clock()
            duration = ended - started
            if failed is None:
                ledger.sql += duration
                number = ledger.statements = ledger.statements + 1
                ledger.last_statement_at = ledger.last_activity_at = ended
                if number == flush.counts_at and ledger.count_repeats(flush):
                    ledger.judge(_row(ledger, context, statement, ended, duration))
            else:
                ledger.end_repeats()
                site, shape = flush.site, sql.shape(statement)
                _failed(ledger, context, statement, site, duration, failed)
                _written(ledger, context, statement, shape, 1, site, ended, duration, failed)
        except Exception as error:
            ledger.failed("statements", error)
        failed = None  # the error's traceback holds this frame
    return True


def _failed(
    ledger: Ledger,
    context: Any,
    statement: str,
    site: CallSite | None,
    duration: int,
    error: BaseException,
) -> None:
    if not ledger.is_cancellation(error):
        loops.refused(ledger, context.root_connection, error)
    in_flush = ledger.flush is not None and ledger.flush.began
    statement_failed(ledger, error, site, statement=statement, duration=duration, in_flush=in_flush)


def _after(own: Callable[..., bool | None], listeners: Any) -> list[Any]:
    """The dialect listeners after this one, which SQLAlchemy would ask until one handles it."""
    known = list(listeners)
    return known[known.index(own) + 1 :]


@as_sqlalchemys
def _ask(others: list[Any], execute: Any, *arguments: Any) -> None:
    for other in others:
        if other(*arguments):
            return
    execute(*arguments)


@as_sqlalchemys
def _execute_bare(execute: Any, cursor: Any, statement: str, parameters: Any, context: Any) -> None:
    del parameters
    execute(cursor, statement, context)


def _note_elsewhere(holdings: Iterable[Holding], context: Any, duration: int) -> None:
    for holding in holdings:
        if not holding.holds(context.root_connection):
            holding.elsewhere += duration


def _attach(ledger: Ledger, attached: Attached) -> None:
    try:
        attached.attach()
    except Exception as error:
        ledger.failed("statements", error)


def _stream(ledger: Ledger, options: Any, context: Any, site: CallSite | None) -> None:
    """A statement is about to run whose rows may be fetched in portions."""
    at_once = options.get("yield_per", 0) or 0
    if at_once or options.get("stream_results"):
        ledger.streaming(at_once)
        streams.follow(ledger, context, site)


def _announce(ledger: Ledger, context: Any, statement: str, size: int) -> None:
    database = _DATABASES.get(context.dialect) or facts.Database()
    shape = sql.shape(statement)
    ledger.statement_started(
        facts.StatementStarted(
            at=ledger.clock(),
            text=sql.without_values(statement, database.system),
            summary=shape.summary,
            operation=shape.operation,
            collection=shape.collection,
            batch_size=size,
            database=database,
        )
    )


def _may_raise(ledger: Ledger, statement: str) -> bool:
    """Whether an exception now would only leave the rows of a SELECT unread."""
    if sql.shape(statement).operation != "SELECT":
        return False
    writing = ledger.flush is not None and ledger.flush.began
    committing = bool(ledger.transactions_open and ledger.transactions_open[-1].committing_at)
    return not writing and not committing


# What has been executed.


def _selected(
    ledger: Ledger,
    context: Any,
    statement: str,
    parameters: Any,
    size: int,
    site: CallSite | None,
    at: int,
    duration: int,
    error: BaseException | None,
) -> None:
    """A SELECT ran: for itself, for an attribute of one object, or with another SELECT."""
    why = load_reason.reason(context, ledger)
    is_quiet = error is None and not (ledger.publishers or ledger.announces_statements)
    if why is None and is_quiet:
        if ledger.route is not None:
            ledger.come_by(None)
        subject = load_reason.subject(context)
        if subject is not None and load_reason.is_locking(context):
            locks.follow(ledger, context, site)
        entity = "" if subject is None else subject.class_.__name__
        in_flush = ledger.flush is not None
        ledger.executed(at, site, duration, "SELECT", entity, "", in_flush, None)
        key = fingerprint_of(statement, parameters)
        if key:
            by_key, streamed = load_reason.is_by_key(context), ledger.is_streaming
            ledger.selected(
                (
                    at,
                    site,
                    statement,
                    subject,
                    duration,
                    by_key,
                    key,
                    streamed,
                    in_flush,
                    size,
                    ledger.statements,
                ),
                _select,
                parameters,
            )
        return
    load = route = None
    eager = ""
    if why is not None:
        load, eager, route = why[:3]
        if error is not None:
            load = None
        elif load is not None:
            load_reason.report_load(ledger, load, why, at, site, duration, statement)
    if route is not ledger.route and (route is not None or not eager):
        ledger.come_by(route)
    in_flush = ledger.flush is not None
    if load is not None and is_quiet:
        # What loads an attribute is reported and judged as such.
        ledger.executed(at, site, duration, "SELECT", "", eager, in_flush, load)
        return
    subject = load_reason.subject(context)
    if why is None and error is None and subject is not None and load_reason.is_locking(context):
        locks.follow(ledger, context, site)
    entity = "" if subject is None else subject.class_.__name__
    ledger.executed(at, site, duration, "SELECT", entity, eager, in_flush, load)
    if is_quiet:
        return
    by_key, streamed = why is None and load_reason.is_by_key(context), ledger.is_streaming
    key = fingerprint_of(statement, parameters)
    number = ledger.statements
    select = (at, site, statement, subject, duration, by_key, key, streamed, in_flush, size, number)
    ledger.statement_executed(_select(select, ledger, parameters, eager, error))
    if why is None and error is None and key:
        ledger.selected(select, _select, parameters)


def _select(
    select: Any,
    ledger: Ledger,
    parameters: Any = None,
    eager: str = "",
    error: BaseException | None = None,
) -> StatementExecuted:
    """The fact of a SELECT, made of what is kept of it, and of its parameters if they are there."""
    (
        at,
        site,
        statement,
        subject,
        duration,
        by_key,
        fingerprint,
        streamed,
        in_flush,
        size,
        number,
    ) = select
    query = parts.query(statement)
    part_of, part = fingerprint, query.simple_part
    if fingerprint and query.has_parts:
        part_of, part = query.part(parameters)
    key, is_tree = ("", False) if subject is None else key_and_tree(subject.mapper)
    return StatementExecuted(
        at=at,
        site=site,
        operation="SELECT",
        collection=sql.shape(statement).collection,
        entity="" if subject is None else subject.class_.__name__,
        duration=duration,
        eager=eager,
        batch_size=size,
        in_flush=in_flush,
        error="" if error is None else type_name(error),
        status="" if error is None else sql.status_code(error),
        by_key=by_key,
        key=key if by_key else "",
        fingerprint=fingerprint,
        streamed=streamed,
        text=hash(statement),
        number=number,
        reads=sql.reads(statement),
        query=query.id,
        part=part,
        part_of=part_of,
        group=query.group(parameters) if query.fixed else 0,
        ignored=query.same_ignored(parameters) if query.ignored else 0,
        of_key=query.of_key(parameters) if query.limit or query.is_aggregate else "rows",
        is_tree=is_tree,
        sql=sql.shown(statement, ledger.system),
    )


def _row(ledger: Ledger, context: Any, statement: str, at: int, duration: int) -> StatementExecuted:
    """The fact of a statement by which a flush has written one row."""
    shape, flush = sql.shape(statement), ledger.flush
    return StatementExecuted(
        at=at,
        site=None if flush is None else flush.site,
        operation=shape.operation,
        collection=shape.collection,
        entity=_entity(context, flush),
        duration=duration,
        in_flush=True,
        rows=1,
        text=hash(statement),
    )


def _entity(context: Any, flush: Flush | None) -> str:
    """The mapped class that is written; the unit of work itself writes to tables."""
    subject = load_reason.subject(context)
    if subject is not None:
        return str(subject.class_.__name__)
    if flush is None:
        return ""
    return flush.entity_of(getattr(context.invoked_statement, "table", None))


def _written(
    ledger: Ledger,
    context: Any,
    statement: str,
    shape: Shape,
    size: int,
    site: CallSite | None,
    at: int,
    duration: int,
    error: BaseException | None,
) -> None:
    """A statement ran that is no SELECT. No finding is raised, which could leave it half done."""
    flush, operation = ledger.flush, shape.operation
    if flush is None or error is not None or ledger.publishers or ledger.announces_statements:
        _executed(ledger, context, statement, shape, size, site, at, duration, error)
        return
    if reporting.now:
        return
    ledger.executed_by_flush(at, site, duration, operation, shape.collection)
    if size == 1 and operation in _ONE_ROW:
        is_row = _rows(context, operation, 1) == 1
        run = (site, operation, shape.collection, statement, flush, duration)
        if is_row and ledger.wrote_row(*run):
            ledger.judge(_row(ledger, context, statement, at, duration))
        if (is_row or operation == "INSERT") and flush.only is None:
            # Others of this text, for other rows, need no more than be counted.
            ledger.may_repeat(flush, statement, rows=is_row)


def _executed(
    ledger: Ledger,
    context: Any,
    statement: str,
    shape: Shape,
    size: int,
    site: CallSite | None,
    at: int,
    duration: int,
    error: BaseException | None,
) -> None:
    """A statement ran that is no SELECT, and more than its duration is to be known."""
    flush, operation = ledger.flush, shape.operation
    load, eager, rows = None, "", -1
    why = load_reason.reason(context, ledger)
    if why is not None:
        eager = why.eager
        if error is None and why.load is not None:
            load = why.load
            load_reason.report_load(ledger, load, why, at, site, duration, statement)
    is_write = operation in _WRITES
    entity = _entity(context, flush if is_write else None)
    in_flush = flush is not None
    ledger.executed(at, site, duration, operation, entity, eager, in_flush, load)
    has_crossed = False
    if operation not in _HARMLESS:
        ledger.wrote_to(shape.collection)
    if is_write and error is None:
        rows = _rows(context, operation, size)
        if rows and flush is None:
            ledger.wrote_rows(entity, shape.collection, rows)
        if rows == 1 and operation in _ONE_ROW and not reporting.now:
            run = (site, operation, shape.collection, statement, flush, duration)
            has_crossed = ledger.wrote_row(*run)
    if not (has_crossed or ledger.publishers or ledger.announces_statements):
        return
    fact = StatementExecuted(
        at=at,
        site=site,
        operation=operation,
        collection=shape.collection,
        entity=entity,
        duration=duration,
        eager=eager,
        batch_size=size,
        in_flush=in_flush,
        error="" if error is None else type_name(error),
        status="" if error is None else sql.status_code(error),
        rows=rows,
        streamed=ledger.is_streaming,
        text=hash(statement),
        clauses=_clauses(context.invoked_statement) if has_crossed and flush is None else (),
    )
    ledger.statement_executed(fact)
    if has_crossed:
        ledger.judge(fact)


def _clauses(statement: Any) -> tuple[str, ...]:
    """The methods that gave it more than its values, in the order of its SQL.

    Of an UPDATE, it is what a list of rows with their keys could not have.
    """
    if getattr(statement, "is_update", False):
        returning = bool(getattr(statement, "_returning", ()))
        if _is_of_key(statement) and not returning:
            return ()
        return ("where", "values", "returning") if returning else ("where", "values")
    if not getattr(statement, "is_insert", False):
        return ()
    insert = statement
    conflict = getattr(insert, "_post_values_clause", None)
    is_there = {
        "prefix_with": bool(getattr(insert, "_prefixes", ())),
        "from_select": insert.select is not None,
        getattr(conflict, "__visit_name__", ""): conflict is not None,
        "returning": bool(getattr(insert, "_returning", ())),
    }
    return tuple([name for name, is_so in is_there.items() if is_so])


def _is_of_key(update: Any) -> bool:
    """Whether an UPDATE sets plain values, of the row with one primary key and no other condition.

    What cannot be looked at is taken for more than that.
    """
    try:
        keys = {column.name for column in update.table.primary_key}
        asked = list(update._where_criteria)
        if len(asked) == 1:
            asked = list(getattr(asked[0], "clauses", asked))  # of an and_()
        of_columns = [one.left.name for one in asked if one.operator is operator.eq]
        values = (update._values or {}).values()
        is_plain = all(one.__visit_name__ == "bindparam" for one in values)
        return is_plain and len(asked) == len(keys) and set(of_columns) == keys
    except AttributeError:
        return False


_ONE_ROW: Final = frozenset({"INSERT", "UPDATE", "DELETE"})
# What changes no rows, by its verb. What a procedure does is not known.
_HARMLESS: Final = frozenset(
    {"SAVEPOINT", "RELEASE", "SET", "SHOW", "EXPLAIN", "PRAGMA", "DECLARE", "FETCH", "CLOSE"}
)
_WRITES: Final = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"})


def _rows(context: Any, operation: str, size: int) -> int:
    """How many rows were written, as far as it is known without asking; -1 where it is not."""
    if size > 1:
        return size
    if operation == "INSERT":
        compiled = getattr(context, "compiled", None)
        if getattr(compiled, "_insertmanyvalues", None) is not None:
            # Split in batches, each of which runs by itself: only its SQL shows how many rows.
            return 1 if len(context.compiled_parameters) == 1 else -1
        if getattr(getattr(compiled, "statement", None), "_multi_values", None):
            return -1
    try:
        rows = context.cursor.rowcount
        # With RETURNING, SQLite does not know before the rows are fetched.
        if isinstance(rows, int) and (rows > 0 or (rows == 0 and not context.cursor.description)):
            return rows
    except AttributeError:  # not every driver has it
        pass
    return 1 if operation == "INSERT" else -1


# These have the module's names as they are here: what is below, they would not find.
_again: Final = as_sqlalchemys(_executing_again)
_surrounded: Final = as_sqlalchemys(_executing_surrounded)
_LISTENERS: Final[tuple[tuple[str, Callable[..., Any]], ...]] = tuple(
    (name, _executing(name)) for name in _EXECUTES
)

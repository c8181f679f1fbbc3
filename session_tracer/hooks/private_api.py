"""The private interfaces of SQLAlchemy and Python, and what is not reported without each."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from session_tracer.hooks import flush_contents, locks, session_events, statements, targets
from session_tracer.ledger import object_counter
from session_tracer.runtime.degraded import without
from session_tracer.where import running

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RELIANCES", "Reliance", "check", "missing"]

_ABSENT: Final = object()
_CONNECT: Final = "sqlalchemy.pool.base:_ConnectionRecord._ConnectionRecord__connect"


class Reliance(NamedTuple):
    """A private interface, how to check for it, and what is lost without it, as a clause."""

    what: str
    is_there: Callable[[], bool]
    loses: str


def check() -> None:
    """Warn about each that is missing. Where that is only seen in use, it is checked there."""
    for reliance in missing():
        without(reliance.what, reliance.loses)


def missing() -> list[Reliance]:
    """Return the interfaces that are missing or have changed."""
    return [reliance for reliance in RELIANCES if not _is_there(reliance)]


def _is_there(reliance: Reliance) -> bool:
    try:
        return reliance.is_there()
    except Exception:  # it has another shape
        return False


def _found(path: str) -> Any:
    """What a path such as `sqlalchemy.orm.session:Session.flush` leads to.

    In SQLAlchemy 2.1 the names of classes that are not public begin with an underscore.
    """
    module, _, names = path.partition(":")
    found: Any = sys.modules.get(module, _ABSENT)
    for name in names.split("."):
        found = getattr(found, name, getattr(found, f"_{name}", _ABSENT))
    return found


def _function(path: str, *variables: str) -> Callable[[], bool]:
    """Whether it is a Python function whose frames have these local variables."""

    def is_there() -> bool:
        code = inspect.unwrap(_found(path)).__code__
        return code.co_name == path.rpartition(".")[2] and {*variables} <= {*code.co_varnames}

    return is_there


def _attribute(path: str) -> Callable[[], bool]:
    return lambda: _found(path) is not _ABSENT


def _sets(path: str, name: str) -> Callable[[], bool]:
    """Whether such a constructor sets an attribute of that name."""
    return lambda: name in inspect.unwrap(_found(path)).__code__.co_names


def _load_options() -> bool:
    """Whether a loader's options have the attributes that describe what it loads."""

    class _Executed:
        is_select = True
        execution_options: Final = {"_sa_orm_load_options": _ABSENT}

    options: Any = _found("sqlalchemy.orm.context:QueryContext.default_load_options")
    compiled: Any = _found("sqlalchemy.orm.context:ORMCompileState.default_compile_options")
    read = _found("sqlalchemy.orm.session:ORMExecuteState.load_options").fget
    return (
        read(_Executed()) is _ABSENT
        and all(hasattr(options, name) for name in ("_lazy_loaded_from", "_refresh_state"))
        and all(
            hasattr(compiled, name)
            for name in ("_current_path", "_for_refresh_state", "_only_load_props")
        )
    )


def _makes_objects() -> bool:
    """Whether the function that makes an object of a row has the variables that are read there."""
    made_in = _found("sqlalchemy.orm.loading:_instance_processor").__code__
    read = {"context", "mapper", "populate_existing", "version_check"}
    return callable(_found("sqlalchemy.orm.identity:WeakInstanceDict.get")) and read <= {
        *made_in.co_cellvars
    }


RELIANCES: Final = (
    Reliance(
        "sys._getframe",
        lambda: running.IS_TOLD,
        "no line of the application is reported, every flush is reported as explicit, operations "
        "that SQLAlchemy refuses are not reported, nor sessions of an async_sessionmaker",
    ),
    Reliance(
        "sys._current_frames",
        _attribute("sys:_current_frames"),
        "the current line of another thread is not reported",
    ),
    Reliance(
        "IdentityMap._add_unpresent",
        lambda: object_counter.IS_KNOWN,
        "loaded objects are not counted, and no load of a detached object is reported",
    ),
    Reliance(
        "sqlalchemy.orm.session._sessions",
        lambda: targets.KNOWS_SESSIONS,
        "sessions that exist before instrument() are not traced, and sessions that exist at "
        "uninstrument() are traced until they are closed",
    ),
    Reliance(
        "Session._deleted",
        lambda: "_deleted" in _found("sqlalchemy.orm:Session.deleted").fget.__code__.co_names,
        "the number of deleted objects of an open session is not reported",
    ),
    Reliance(
        "SessionTransaction._connections",
        _sets("sqlalchemy.orm.session:SessionTransaction.__init__", "_connections"),
        "changes that are discarded, or committed by two sessions, are not reported, nor are the "
        "statements of a transaction that is open at instrument()",
    ),
    Reliance(
        "Pool._dialect",
        _sets("sqlalchemy.pool:Pool.__init__", "_dialect"),
        "how long the checkouts of connections take is not reported",
    ),
    Reliance(
        "_ConnectionRecord.__connect",
        lambda: _found(_CONNECT).__code__.co_name == "__connect",
        "a session for which a pool opens a connection is reported as waiting for one",
    ),
    Reliance(
        "QueuePool._max_overflow",
        _sets("sqlalchemy.pool:QueuePool.__init__", "_max_overflow"),
        "the most connections that a pool may have are not reported",
    ),
    Reliance(
        "Queue.not_empty",
        lambda: (
            _sets("sqlalchemy.pool:QueuePool.__init__", "_pool")()
            and _sets("sqlalchemy.util.queue:Queue.__init__", "not_empty")()
            and _sets("threading:Condition.__init__", "_waiters")()
        ),
        "threads that wait for a connection are not counted",
    ),
    Reliance(
        "asyncio.Queue._getters",
        lambda: (
            _attribute("sqlalchemy.util.queue:AsyncAdaptedQueue._queue")()
            and _sets("asyncio:Queue.__init__", "_getters")()
        ),
        "tasks that wait for a connection are not counted",
    ),
    Reliance(
        "UOWTransaction.states",
        _sets("sqlalchemy.orm.unitofwork:UOWTransaction.__init__", "states"),
        "the objects that a flush writes are not counted",
    ),
    Reliance(
        "_ClsLevelDispatch._clslevel",
        lambda: session_events.KNOWS_COLLECTIONS,
        "instrument() and uninstrument() may disturb other threads' sessions while these are used",
    ),
    Reliance(
        "DialectEvents.do_execute",
        _attribute("sqlalchemy.engine.events:DialectEvents.do_execute"),
        statements.LOST,
    ),
    Reliance(
        "Select._propagate_attrs",
        _attribute("sqlalchemy.sql.selectable:Select._propagate_attrs"),
        "statements are reported without their mapped class",
    ),
    Reliance(
        "_sa_orm_load_options",
        _load_options,
        "lazy loads, deferred columns and reloads are reported as ordinary statements",
    ),
    Reliance(
        "Session._before_attach",
        _function("sqlalchemy.orm.session:Session._before_attach", "self", "state"),
        "an object that is added to a second session is not reported",
    ),
    Reliance(
        "LazyLoader._invoke_raise_load",
        _function("sqlalchemy.orm.strategies:LazyLoader._invoke_raise_load", "self", "state"),
        "a load that raiseload() refuses is not reported",
    ),
    Reliance(
        "SessionTransaction._raise_for_prerequisite_state",
        _function("sqlalchemy.orm.session:SessionTransaction._raise_for_prerequisite_state"),
        "concurrent use of a session is not always reported",
    ),
    Reliance(
        "TransactionalContext._trans_ctx_check",
        _function("sqlalchemy.engine.util:TransactionalContext._trans_ctx_check", "trans_context"),
        "the use of a session in the block of a transaction that has failed or ended is not "
        "reported",
    ),
    Reliance(
        "DefaultExecutionContext._setup_result_proxy",
        _function("sqlalchemy.engine.default:DefaultExecutionContext._setup_result_proxy", "self"),
        "a streamed result that is read after its transaction has ended is not reported",
    ),
    Reliance(
        "IdentityMap.get",
        _makes_objects,
        locks.LOST,
    ),
    Reliance(
        "SessionTransaction._new",
        lambda: (
            {"_new", "_dirty"}
            <= {
                *_found(
                    "sqlalchemy.orm.session:SessionTransaction._take_snapshot"
                ).__code__.co_names
            }
        ),
        flush_contents.LOST,
    ),
    Reliance(
        "UOWTransaction.register_object",
        _function(
            "sqlalchemy.orm.unitofwork:UOWTransaction.register_object",
            *("self", "state", "operation", "prop"),
        ),
        "a link to an object that is not in the session is not reported",
    ),
    Reliance(
        "Session._validate_persistent",
        _function("sqlalchemy.orm.session:Session._validate_persistent", "self", "state"),
        "the refresh() of an object that is not persistent is not reported",
    ),
    Reliance(
        "asyncio.Future._callbacks",
        _attribute("asyncio:Future._callbacks"),
        "what happens in a separate task is reported without the line that awaits it",
    ),
    Reliance(
        "asyncio.TaskGroup._parent_task",
        lambda: "_parent_task" in _found("asyncio:TaskGroup.__init__").__code__.co_names,
        "what happens in a task of a group is reported without the line that awaits it",
    ),
    Reliance(
        "AsyncSession.__init__",
        lambda: targets.KNOWS_ASYNC or not targets.ASYNC,
        "async sessions are reported as ordinary ones, and not if an async_sessionmaker or a class "
        "of AsyncSession is instrumented",
    ),
)

"""The connection pools that traced sessions use, and how many connections each has."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from session_tracer.ledger import registry
from session_tracer.ledger.in_progress import SLOT
from session_tracer.ledger.waits import NAMES
from session_tracer.runtime.degraded import warn_once, without

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.facts import Database
    from session_tracer.ledger.report import Tracer

_K = TypeVar("_K")

__all__ = [
    "PoolNow",
    "every_pool",
    "not_counted",
    "pools_of",
    "renew",
    "timed_out",
    "use",
    "waiting",
]


class PoolNow(NamedTuple):
    """A pool at one moment.

    `idle`, `most` and `waiting` are None if the pool does not know them, or has no limit.
    """

    name: str
    used: int
    idle: int | None
    most: int | None
    waiting: int | None
    timeouts: int


class _Known:
    """An engine's pool: its name, and the tracers whose sessions use it."""

    def __init__(self, engine: Any, name: str) -> None:
        # Not the pool: `dispose()` puts a new one in its place. An engine with execution options
        # is often made for one piece of work, and has the pool of the engine that it was made of.
        self.engine = weakref.ref(getattr(engine, "_proxied", engine))
        self.name = name
        self.tracers: weakref.WeakKeyDictionary[Tracer, None] = weakref.WeakKeyDictionary()
        self.timeouts = 0

    def report_waits(self, dialect: Any) -> None:
        """Have each checkout's duration added to the metrics that there are now.

        Sessions of several names may use the pool: those with the same metrics count it once,
        under the first name.
        """
        tracers = [tracer for tracer in _alive(self.tracers) if not tracer.closed]
        tracers.sort(key=lambda one: one.name, reverse=True)
        metrics = {key: sink for one in tracers for key, sink in one.pool_waits(self.name)}
        if tracers:
            dialect.__dict__[SLOT] = tuple(metrics.values())
        else:
            dialect.__dict__.pop(SLOT, None)

    @property
    def is_used(self) -> bool:
        """Whether the engine exists, and a tracer reports sessions that use it."""
        return self.engine() is not None and any(not by.closed for by in _alive(self.tracers))


# By the engine's dialect, which engines with execution options share.
_KNOWN: Final[weakref.WeakKeyDictionary[Any, _Known]] = weakref.WeakKeyDictionary()
_MOST_POOLS: Final = 100
# The last checkout from a pool that is not known yet, by its dialect. Another dialect may get the
# address of one that is gone, and must not get its checkout.
_FIRST: Final[weakref.WeakKeyDictionary[Any, int]] = weakref.WeakKeyDictionary()
# They have one connection, in all or for each thread, and nothing has to wait for it.
_OF_ONE: Final = frozenset({"StaticPool", "SingletonThreadPool", "AssertionPool"})


def _alive(weak: weakref.WeakKeyDictionary[_K, Any]) -> list[_K]:
    """Return the keys that are alive, in one step: other threads add and remove some meanwhile."""
    return [key for reference in weak.keyrefs() if (key := reference()) is not None]


def _every() -> list[tuple[Any, _Known]]:
    return [(key, known) for key in _alive(_KNOWN) if (known := _KNOWN.get(key)) is not None]


def use(connection: Any, database: Database, tracers: Iterable[Tracer]) -> None:
    """Sessions of these tracers use the connection's pool from now on."""
    dialect = connection.dialect
    known = _KNOWN.get(dialect)
    is_new = known is None
    if known is None:
        for other, one in _every():
            if not one.is_used:
                _KNOWN.pop(other, None)
        if len(_KNOWN) >= _MOST_POOLS:
            return
        known = _Known(connection.engine, _name(connection.engine.pool, database))
        _KNOWN[dialect] = known
        NAMES[dialect] = known.name
    known.tracers.update(dict.fromkeys(tracers))
    known.report_waits(dialect)
    # Its first checkout was over before it was known whose it is.
    if is_new and (duration := _FIRST.pop(dialect, None)) is not None:
        for waiting, taker in dialect.__dict__.get(SLOT, ()):
            waiting.append((taker, None, 0, duration))


def renew(tracer: Tracer) -> None:
    """The tracer has other metrics, or has none any more."""
    for dialect, known in _every():
        if tracer in known.tracers:
            known.report_waits(dialect)


def not_counted(pool: Any, duration: int, error: Exception) -> None:
    """A checkout was not counted: no traced session is known to use the pool, or it failed."""
    dialect = getattr(pool, "_dialect", None)
    if SLOT not in getattr(dialect, "__dict__", ()):
        _FIRST.clear()
        if dialect is not None:
            _FIRST[dialect] = duration
        return
    known = _KNOWN.get(dialect)
    for tracer in () if known is None else _alive(known.tracers):
        tracer.failed("checkouts", error)


def timed_out(pool: Any) -> None:
    """The pool had no connection in time, for a session or for other code."""
    for _, known in _every():
        engine = known.engine()
        if engine is not None and engine.pool is pool:
            known.timeouts += 1


def every_pool() -> list[PoolNow]:
    """The pools of all tracers that are in use."""
    every = [(known, known.engine()) for _, known in _every() if known.is_used]
    return [_look(known, engine.pool) for known, engine in every if engine is not None]


def pools_of(tracer: Tracer) -> list[tuple[int, PoolNow]]:
    """The pools that the tracer's sessions use, each with a key of its own."""
    found = []
    for _, known in _every():
        engine = known.engine()
        if engine is not None and tracer in known.tracers:
            found.append((id(known), _look(known, engine.pool)))
    return found


def _name(pool: Any, database: Database) -> str:
    """The name that the application gave the pool, or the database's, unique in the process."""
    name = getattr(pool, "logging_name", None) or _name_of(database)
    taken = {known.name for _, known in _every()}
    return next(
        one
        for number in range(1, _MOST_POOLS + 2)
        if (one := name if number == 1 else f"{name} ({number})") not in taken
    )


def _name_of(database: Database) -> str:
    # As OpenTelemetry's conventions have it: server.address:server.port/db.namespace.
    address = f"{database.address}:{database.port}" if database.port else database.address
    return "/".join(part for part in (address, database.namespace) if part) or database.system


def _look(known: _Known, pool: Any) -> PoolNow:
    if not (callable(getattr(pool, "checkedout", None)) and callable(getattr(pool, "size", None))):
        if type(pool).__name__ not in _OF_ONE:
            warn_once(
                f"session_tracer: a {type(pool).__name__} does not count its connections. For "
                f"{known.name}, db.client.connection.count is the number that traced sessions hold."
            )
        held = registry.connections_held(pool)
        return PoolNow(known.name, held, None, None, None, known.timeouts)
    queue = getattr(pool, "_pool", None)
    # An asynchronous pool makes its queue as it is first used, and must not be asked before that:
    # two threads could make one each.
    is_new = getattr(pool, "_is_asyncio", False) and "_queue" not in getattr(queue, "__dict__", ())
    overflow = getattr(pool, "_max_overflow", -1)
    number = 0 if is_new else _waiting(queue)
    if number is None:
        without("Queue.not_empty", "threads and tasks that wait for a connection are not counted")
    return PoolNow(
        name=known.name,
        used=0 if is_new else max(pool.checkedout(), 0),
        idle=0 if is_new else pool.checkedin(),
        most=pool.size() + overflow if overflow >= 0 else None,
        waiting=number,
        timeouts=known.timeouts,
    )


def waiting(pool: Any) -> int:
    """How many threads or tasks wait for a connection of the pool, as far as that is known."""
    return _waiting(getattr(pool, "_pool", None)) or 0


def _waiting(queue: Any) -> int | None:
    """How many threads or tasks wait for a connection, or None if that is not known.

    No public interface has it. Both collections are read by their length only, which is safe
    while others change them.
    """
    asynchronous = getattr(queue, "__dict__", {}).get("_queue")
    waiting = (
        getattr(getattr(queue, "not_empty", None), "_waiters", None)
        if asynchronous is None
        else getattr(asynchronous, "_getters", None)
    )
    return None if waiting is None else len(waiting)

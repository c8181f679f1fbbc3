"""Times how long code waits for a connection of a pool."""

from __future__ import annotations

import functools
from time import perf_counter_ns
from typing import Any, Final

from sqlalchemy.pool import Pool, SingletonThreadPool

from session_tracer.hooks.patching import as_sqlalchemys
from session_tracer.ledger import pools
from session_tracer.ledger.waits import CHECKOUTS

__all__ = ["begin", "remove"]

# The classes that have the method; other pools inherit it, or call it.
_POOLS: Final[tuple[type[Pool], ...]] = (Pool, SingletonThreadPool)
# By class, its own method and the one in its place.
_TIMED: Final[dict[type[Pool], tuple[Any, Any]]] = {}


def begin() -> None:
    """Time the checkouts of every pool that a traced session uses."""
    for pool in _POOLS:
        found = pool.__dict__.get("connect")
        if pool not in _TIMED and found is not None:
            timed = _timed(found)
            pool.connect = timed  # type: ignore[method-assign] # under its own signature
            _TIMED[pool] = (found, timed)


def remove() -> None:
    """Leave every pool as it was found, unless another library has wrapped the method since."""
    for pool, (found, timed) in list(_TIMED.items()):
        del _TIMED[pool]
        if pool.__dict__.get("connect") is timed:
            pool.connect = found  # type: ignore[method-assign] # as it was


def _timed(found: Any) -> Any:
    """The method, timed. What it does is counted in the instructions of every unit of work."""
    clock = perf_counter_ns

    def connect(self: Any) -> Any:
        began = clock()
        try:
            return found(self)
        finally:
            try:
                for waiting, taker in self._dialect._session_tracer:  # its SLOT
                    waiting.append((taker, None, 0, clock() - began))
                    if len(waiting) >= waiting.limit:
                        waiting.relieve()
            except Exception as error:
                pools.not_counted(self, clock() - began, error)

    timed: Any = functools.update_wrapper(as_sqlalchemys(connect), found)
    del timed.__wrapped__
    CHECKOUTS.add(timed.__code__)
    return timed

"""Pools that had no connection for a session in time, and the sessions that hold theirs."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from session_tracer import facts
from session_tracer.ledger import pools, registry

if TYPE_CHECKING:
    from session_tracer.ledger.ledger import Ledger

__all__ = ["timed_out"]

# Tracers, held weakly: another tracer may get the id of one that is gone.
_Tracers: TypeAlias = "tuple[weakref.ref[Any], ...]"

# When a pool was last reported as exhausted, by the tracers that reported it.
_REPORTED: Final[weakref.WeakKeyDictionary[Any, dict[_Tracers, int]]] = weakref.WeakKeyDictionary()
_ONE_MINUTE: Final = 60_000_000_000


def timed_out(pool: Any, ledger: Ledger) -> facts.CheckoutTimedOut | None:
    """Return who holds the pool's connections; None if that was reported a moment ago.

    All sessions that wait for a pool suffer from one mistake, and time out together.
    """
    now = ledger.clock()
    if not _is_due(pool, tuple(map(weakref.ref, ledger.tracers)), now):
        return None
    checked_out = int(_asked(pool, "checkedout"))
    every = registry.waiters_of(pool)
    waiters = tuple(live for live in every if not live.is_connecting and live.id != ledger.id)
    connecting = sum(live.is_connecting for live in every)
    return facts.CheckoutTimedOut(
        at=now,
        site=ledger.site(),
        holders=registry.holders_of(pool),
        timeout=int(max(_asked(pool, "timeout"), 0) * 1e9),
        size=int(_asked(pool, "size")),
        # A pool lets a session wait only when it has all the connections that it may have.
        overflow=int(_asked(pool, "overflow")),
        checked_out=checked_out,
        untraced=max(checked_out - registry.connections_held(pool) - connecting, 0),
        connecting=connecting,
        waiting=max(pools.waiting(pool), len(waiters)),
        waiters=waiters,
    )


def _is_due(pool: Any, tracers: _Tracers, now: int) -> bool:
    """Whether these tracers have not reported the pool in the last minute; then they do now."""
    lately = {by: at for by, at in _REPORTED.get(pool, {}).items() if now - at < _ONE_MINUTE}
    if tracers in lately:
        return False
    _REPORTED[pool] = {**lately, tracers: now}
    return True


def _asked(pool: Any, name: str) -> float:
    """Return what a pool's method returns, or -1 if this kind of pool does not have it."""
    method = getattr(pool, name, None)
    return float(method()) if callable(method) else -1

"""The open sessions, and the thread that hears when one is lost."""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from session_tracer.probe import Probe, ProbeRef
    from session_tracer.signals.metrics import Ages
    from session_tracer.tracer import Tracer

__all__ = ["LIVE", "ages", "collected", "start", "stop"]

# Every open scope. The sessions are held weakly; a scope leaves as it ends.
LIVE: Final[dict[Probe, ProbeRef]] = {}

# Filled from garbage collection, which may strike while any lock is held: put() takes none.
_LOST: SimpleQueue[Probe | threading.Event | None] = SimpleQueue()
_THREAD: list[threading.Thread] = []


def collected(ref: Any) -> None:
    """The garbage collector took a session: leave the rest to the thread."""
    probe: Probe = ref.probe
    if LIVE.pop(probe, None) is not None:
        try:
            probe.origin.left("collected", probe.now(), probe.last_site)
        except Exception as error:
            probe.failed("live", error)
        _LOST.put(probe)


def start() -> None:
    """Have the thread run."""
    global _LOST
    if not _THREAD or not _THREAD[0].is_alive():
        # A thread that is slow to end must not hear what the next one is told.
        _LOST = SimpleQueue()
        thread = threading.Thread(target=_listen, args=(_LOST,), name="session_tracer", daemon=True)
        _THREAD[:] = [thread]
        thread.start()


def stop() -> None:
    """Tell of what was lost so far, and end the thread."""
    if _THREAD:
        thread = _THREAD.pop()
        _LOST.put(None)
        if thread is not threading.current_thread():
            thread.join(timeout=2.0)


def settle(timeout: float = 2.0) -> None:
    """Wait until every session lost so far has been told of."""
    if _THREAD and _THREAD[0].is_alive() and _THREAD[0] is not threading.current_thread():
        told = threading.Event()
        _LOST.put(told)
        told.wait(timeout)


def ages(tracer: Tracer) -> Ages:
    """How old, in seconds, the tracer's open sessions and open transactions are."""
    sessions: list[float] = []
    transactions: list[float] = []
    for probe in list(LIVE):
        for story in probe.stories:
            if story.tracer is tracer:
                record = story.record
                now = probe.now()
                sessions.append((now - record.opened_at) / 1e9)
                if record.transaction_began_at:
                    transactions.append((now - record.transaction_began_at) / 1e9)
    return tracer.name, sessions, transactions


def _listen(queue: SimpleQueue[Probe | threading.Event | None]) -> None:
    while True:
        lost = queue.get()
        if lost is None:
            return
        if isinstance(lost, threading.Event):
            lost.set()
            continue
        try:
            lost.end_scope("collected", site=lost.last_site)
        except Exception as error:
            lost.failed("live", error)


def _after_fork() -> None:
    """A child watches its own sessions only, from the first one it is told of."""
    LIVE.clear()
    if _THREAD:
        _THREAD.clear()
        start()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)

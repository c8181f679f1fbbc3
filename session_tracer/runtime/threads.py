"""The system's own threads, locks and queues, whatever gevent or eventlet has put in their place.

session_tracer's threads work beside the application: they never yield to an event loop, and a
greenlet of the application must never wait for one. A green lock or queue in one of them, or a
"thread" that is a greenlet, stops the whole process, so every thread, lock and queue comes from
here.
"""

from __future__ import annotations

import importlib
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

__all__ = ["Lock", "Queue", "RLock", "current_ident", "is_patched", "start"]


def _original(module: str, name: str) -> Any:
    """`module.name` as it was before monkey patching; today's where nothing is patched."""
    if gevent := _gevent():
        return gevent.get_original(module, name)
    if eventlet := _eventlet():
        return getattr(eventlet.original(module), name)
    return getattr(importlib.import_module(module), name)


def _gevent() -> Any:
    """gevent's module of patches, if it has patched threads."""
    gevent = sys.modules.get("gevent.monkey")
    return gevent if gevent is not None and gevent.is_module_patched("threading") else None


def _eventlet() -> Any:
    """eventlet's module of patches, if it has patched threads."""
    eventlet = sys.modules.get("eventlet.patcher")
    return eventlet if eventlet is not None and eventlet.is_monkey_patched("thread") else None


# Taken at import: a library may patch them later.
_start_native: Final[Callable[..., int]] = _original("_thread", "start_new_thread")
current_ident: Final[Callable[[], int]] = _original("_thread", "get_ident")
Lock: Final[Callable[[], threading.Lock]] = _original("_thread", "allocate_lock")
RLock: Final[Callable[[], threading.RLock]] = _original("_thread", "RLock")
if TYPE_CHECKING:
    Queue = SimpleQueue
else:
    Queue = _original("queue", "SimpleQueue")


def start(work: Callable[[], object], name: str) -> Callable[[float], None]:
    """Run `work` on a daemon thread of the operating system.

    Returns what waits until that thread is gone, at most a number of seconds. Raises `RuntimeError`
    where the system starts no thread, as at the end of the process.
    """
    if is_patched():
        _start_native(work, ())
        return _join_nothing
    thread = threading.Thread(target=_run, args=(work,), name=name, daemon=True)
    thread.start()

    def join(timeout: float) -> None:
        if not is_patched():
            thread.join(timeout)

    return join


def _join_nothing(_timeout: float) -> None:
    """A native thread has nothing that could be joined."""


def _run(work: Callable[[], object]) -> None:
    work()
    if is_patched():
        # threading would look for this thread by the number of a greenlet, and complain.
        Queue[None]().get()


def is_patched() -> bool:
    """Whether gevent or eventlet has put greenlets in the place of threads by now."""
    return bool(_gevent() or _eventlet())

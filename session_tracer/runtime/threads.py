"""The operating system's threads, locks and queues, even if gevent or eventlet has replaced them.

session_tracer's threads never yield to an event loop, and a greenlet of the application must never
wait for one of them. A patched lock or queue in such a thread, or a "thread" that is a greenlet,
would block the whole process. Every thread, lock and queue of session_tracer is therefore created
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
    """Return `module.name` as it was before it was patched."""
    if gevent := _gevent():
        return gevent.get_original(module, name)
    if eventlet := _eventlet():
        return getattr(eventlet.original(module), name)
    return getattr(importlib.import_module(module), name)


def _gevent() -> Any:
    """Return gevent's module of patches, or None if it has not patched threads."""
    gevent = sys.modules.get("gevent.monkey")
    return gevent if gevent is not None and gevent.is_module_patched("threading") else None


def _eventlet() -> Any:
    """Return eventlet's module of patches, or None if it has not patched threads."""
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

    Args:
        work: The function to run.
        name: The name of the thread.

    Returns:
        A function that waits until the thread has ended, or for a number of seconds.

    Raises:
        RuntimeError: the system starts no thread, for example at the end of the process.
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
    """Do nothing: a native thread cannot be joined."""


def _run(work: Callable[[], object]) -> None:
    work()
    if is_patched():
        # threading would look for this thread by the number of a greenlet, and complain.
        Queue[None]().get()


def is_patched() -> bool:
    """Return whether gevent or eventlet has replaced threads by greenlets."""
    return bool(_gevent() or _eventlet())

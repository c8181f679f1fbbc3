"""The life of the process: what has to happen in a forked child, and before the process ends."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "EXPORTERS",
    "SESSIONS",
    "PerProcess",
    "at_end",
    "at_first_session",
    "began_work",
    "end_first",
    "host",
    "in_child",
    "not_at_end",
    "not_at_first_session",
    "pid",
]

T = TypeVar("T")

# The stages of the end: open sessions are reported first, and what carries reports away is flushed
# after that.
SESSIONS: Final = 0
EXPORTERS: Final = 1

# multiprocessing runs the finalizers of a higher priority first, and those of the application have
# none or a positive one.
_AFTER_ALL_OTHERS: Final = -100

_IN_CHILD: Final[list[Callable[[], None]]] = []
_AT_FIRST_SESSION: Final[list[Callable[[], None]]] = []
_AT_END: Final[dict[Callable[[], None], int]] = {}


class _Process:
    """What is known of this process."""

    pid = os.getpid()
    is_forked = False
    # Whether it has ended as far as session_tracer is concerned.
    has_ended = False


def pid() -> int:
    """The number of this process, as the operating system knows it."""
    return _Process.pid


def host() -> str:
    """The name of the machine or container."""
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


class PerProcess(Generic[T]):
    """A value that each forked child makes for itself, such as a lock.

    A thread of the parent that holds the lock as the child is forked does not live there, and would
    never release it.
    """

    __slots__ = ("__weakref__", "_make", "value")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self.renew()
        _PER_PROCESS.add(self)

    def renew(self) -> None:
        """Make it again: this is a forked child."""
        self.value: T = self._make()


_PER_PROCESS: Final[WeakSet[PerProcess[Any]]] = WeakSet()


def in_child(callback: Callable[[], None]) -> None:
    """Call it in each forked child, before the child does anything else.

    Only the thread that forked exists there, and a callback starts no other one.
    """
    _IN_CHILD.append(callback)


def at_first_session(callback: Callable[[], None]) -> None:
    """Call it when the first session of this process, or of a forked child, is opened.

    It may be called more than once.
    """
    _AT_FIRST_SESSION.append(callback)


def not_at_first_session(callback: Callable[[], None]) -> None:
    """Call it no longer."""
    if callback in _AT_FIRST_SESSION:
        _AT_FIRST_SESSION.remove(callback)


def at_end(callback: Callable[[], None], stage: int) -> None:
    """Call it before the process ends: `SESSIONS`, then `EXPORTERS`, the last added first."""
    _AT_END[callback] = stage
    end_first()


def end_first() -> None:
    """Have session_tracer's end come before that of the libraries in use so far.

    Their exit handlers close what is reported to, such as OpenTelemetry's providers, and atexit
    runs first what was registered last.
    """
    if _AT_END:
        atexit.unregister(_end)
        atexit.register(_end)


def not_at_end(callback: Callable[[], None]) -> None:
    """Call it no longer."""
    _AT_END.pop(callback, None)
    if not _AT_END:
        atexit.unregister(_end)


def began_work() -> None:
    """The first session of this process is opened.

    A child of multiprocessing or billiard ends without running atexit's callbacks, but runs its own
    library's finalizers. Celery's prefork workers run neither, but send a signal.
    """
    end_first()
    for callback in _AT_FIRST_SESSION:
        with suppress(Exception):
            callback()
    for library in ("multiprocessing", "billiard"):
        util = sys.modules.get(f"{library}.util")
        with suppress(Exception):  # another module of that name
            if util is not None and (_Process.is_forked or _is_child_of(library)):
                util.Finalize(None, _end, exitpriority=_AFTER_ALL_OTHERS)
    celery = sys.modules.get("celery.signals")
    if celery is not None and _Process.is_forked:
        with suppress(Exception):
            celery.worker_process_shutdown.connect(_worker_ends, weak=False)


def _is_child_of(library: str) -> bool:
    """Whether the library has started this process without forking it from one that had us."""
    process = sys.modules.get(f"{library}.process")
    parent = getattr(process, "parent_process", None)  # billiard has none
    return parent is not None and parent() is not None


def _worker_ends(**_: object) -> None:
    _end()


def _end() -> None:
    if _Process.has_ended:
        return
    _Process.has_ended = True
    last_first = list(_AT_END)[::-1]
    for callback in sorted(last_first, key=_AT_END.__getitem__):
        with suppress(Exception):
            callback()


def _forked() -> None:
    _Process.pid = os.getpid()
    _Process.is_forked = True
    _Process.has_ended = False
    for value in list(_PER_PROCESS):
        value.renew()
    for callback in _IN_CHILD:
        with suppress(Exception):
            callback()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forked)

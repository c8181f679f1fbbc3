"""What happens in a forked child, at the first session, and at the end of the process."""

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
    "HELD_BACK",
    "SESSIONS",
    "PerProcess",
    "at_end",
    "at_first_session",
    "began_work",
    "end_first",
    "has_begun",
    "host",
    "in_child",
    "not_at_end",
    "not_at_first_session",
    "pid",
]

T = TypeVar("T")

# The stages of the end: open sessions are reported first, then the log events that were held back,
# and what carries reports away is flushed after that.
SESSIONS: Final = 0
HELD_BACK: Final = 1
EXPORTERS: Final = 2

# multiprocessing runs the finalizers of a higher priority first, and those of the application have
# none or a positive one.
_AFTER_ALL_OTHERS: Final = -100

_IN_CHILD: Final[list[Callable[[], None]]] = []
_AT_FIRST_SESSION: Final[list[Callable[[], None]]] = []
_AT_END: Final[dict[Callable[[], None], int]] = {}


class _Process:
    """What is known about this process."""

    pid = os.getpid()
    is_forked = False
    # Whether it has opened a session.
    has_begun = False
    # Whether it has ended as far as session_tracer is concerned.
    has_ended = False


def pid() -> int:
    """Return the process id."""
    return _Process.pid


def host() -> str:
    """Return the name of the machine or container."""
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


class PerProcess(Generic[T]):
    """A value that each forked child creates again, such as a lock.

    A thread of the parent that holds the lock during the fork does not exist in the child, and
    would never release it.
    """

    __slots__ = ("__weakref__", "_make", "value")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self.renew()
        _PER_PROCESS.add(self)

    def renew(self) -> None:
        """Create the value again in a forked child."""
        self.value: T = self._make()


_PER_PROCESS: Final[WeakSet[PerProcess[Any]]] = WeakSet()


def in_child(callback: Callable[[], None]) -> None:
    """Call `callback` in each forked child, before the child does anything else.

    Only the thread that forked exists at that moment, and a callback must not start another one.
    """
    _IN_CHILD.append(callback)


def at_first_session(callback: Callable[[], None]) -> None:
    """Call `callback` when this process, or a forked child, opens its first session.

    It may be called more than once.
    """
    _AT_FIRST_SESSION.append(callback)


def not_at_first_session(callback: Callable[[], None]) -> None:
    """Remove the callback."""
    if callback in _AT_FIRST_SESSION:
        _AT_FIRST_SESSION.remove(callback)


def at_end(callback: Callable[[], None], stage: int) -> None:
    """Call `callback` before the process ends.

    Args:
        callback: A function without arguments. Its exceptions are ignored.
        stage: `SESSIONS`, then `HELD_BACK`, then `EXPORTERS`. The callbacks of one stage are
            called in the reverse of the order in which they were added.
    """
    _AT_END[callback] = stage
    end_first()


def end_first() -> None:
    """Move session_tracer's exit handler before those of the libraries that are loaded so far.

    Their exit handlers close the destinations of reports, such as OpenTelemetry's providers.
    atexit runs the handler first that was registered last.
    """
    if _AT_END:
        atexit.unregister(_end)
        atexit.register(_end)


def not_at_end(callback: Callable[[], None]) -> None:
    """Remove the callback."""
    _AT_END.pop(callback, None)
    if not _AT_END:
        atexit.unregister(_end)


def has_begun() -> bool:
    """Return whether this process has opened a session that is traced."""
    return _Process.has_begun


def began_work() -> None:
    """Record that the first session of this process was opened.

    A child of multiprocessing or billiard ends without atexit's callbacks, but runs the finalizers
    of its library. Celery's prefork workers run neither, but send a signal.
    """
    _Process.has_begun = True
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
    """Return whether the library started this process without a fork of the parent."""
    process = sys.modules.get(f"{library}.process")
    parent = getattr(process, "parent_process", None)  # billiard has none
    return parent is not None and parent() is not None


def _worker_ends(**_: object) -> None:
    _end()


def _end() -> None:
    if _Process.has_ended:
        return
    _Process.has_ended = True
    for stage in (SESSIONS, HELD_BACK, EXPORTERS):
        # One stage may add to the next: the first repeat of all may be held back now.
        for callback in [one for one, its in reversed(_AT_END.items()) if its == stage]:
            with suppress(Exception):
                callback()


def _forked() -> None:
    _Process.pid = os.getpid()
    _Process.is_forked = True
    _Process.has_begun = _Process.has_ended = False
    for value in list(_PER_PROCESS):
        value.renew()
    for callback in _IN_CHILD:
        with suppress(Exception):
            callback()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forked)

"""Writes `dump()` when the process receives a signal, also while its main thread hangs.

A signal handler in Python runs when the main thread executes Python code again: never, if that
hangs in a driver. faulthandler's handler is written in C and runs at once. It writes its traceback
into a pipe, and a thread at the other end writes the dump. The wake-up descriptor is left to
asyncio, Trio and servers: a process has only one.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from session_tracer.ledger.dumping import dump
from session_tracer.runtime import process, threads
from session_tracer.runtime.degraded import warn_once
from session_tracer.where.callsite import is_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["use"]

# By a module that is loaded where a server runs: the server, and the signals that it handles. It
# may set its handlers after `instrument()`, and its other processes handle them, too.
_SERVERS: Final = {
    "gunicorn.arbiter": (
        "gunicorn",
        ("SIGHUP", "SIGQUIT", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2", "SIGWINCH"),
    ),
    "celery.bin.worker": ("Celery", ("SIGHUP", "SIGQUIT", "SIGTTIN", "SIGTTOU", "SIGUSR1")),
    "uvicorn.supervisors": ("uvicorn", ("SIGHUP", "SIGTTIN", "SIGTTOU")),
    "uwsgi": (
        "uWSGI",
        ("SIGHUP", "SIGQUIT", "SIGTSTP", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGWINCH"),
    ),
}
# Suggested where a signal cannot be taken.
_CANDIDATES: Final = ("SIGUSR1", "SIGUSR2", "SIGINFO", "SIGPWR", "SIGRTMIN")
_HARMLESS: Final = " The application is not affected."
# The handler writes its text in parts. Signals in the same tenth of a second are answered once.
_ONE_SIGNAL: Final = 0.1
_MOST_BYTES: Final = 65_536
_read: Final = os.read  # a library may patch it later


def use(wanted: Mapping[str | int, Callable[[str], bool]]) -> None:
    """Write the dump at these signals and at no others; never raise.

    Args:
        wanted: The signals by name or number, each with a function that returns whether an
            installed package is the application's own.
    """
    numbers = {}
    for named in wanted:
        with _refusing(named):
            numbers[_number(named)] = named
    for number in set(_TAKEN) - set(numbers):
        _TAKEN.pop(number).release()
    for number in set(numbers) - set(_TAKEN):
        with _refusing(numbers[number]):
            chain = _is_to_chain(number, wanted[numbers[number]])
            _TAKEN[number] = _Taken(number, chain=chain)


class _Refused(Exception):
    """Why a signal cannot be taken here, as sentences."""


@contextmanager
def _refusing(named: str | int) -> Iterator[None]:
    """Log once why no dump is written at the signal."""
    try:
        yield
    except Exception as error:
        why = str(error) if isinstance(error, _Refused) else f"{type(error).__qualname__}."
        warn_once(f"session_tracer: no dump is written at {named}: {why}{_HARMLESS}")


class _Pipe:
    """A pipe. The application may close every descriptor, and use their numbers for its own."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        # A handler must not wait for a pipe that no thread reads yet.
        os.set_blocking(self.write_end, False)
        self._identity = _identity(self.write_end)  # that of the other end as well

    @property
    def is_open(self) -> bool:
        return _identity(self.write_end) == self._identity

    def close(self, *ends: int) -> None:
        for end in ends:
            if _identity(end) == self._identity:
                os.close(end)


def _identity(descriptor: int) -> object:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class _Taken:
    """A signal at which the dump is written. Its handler is in place until `release()`."""

    def __init__(self, number: int, *, chain: bool) -> None:
        self.number = number
        self._chain = chain
        before = _handler(number)
        self._begin()
        self._ours = _handler(number)
        if self._ours == before:  # another handler has replaced this one in an earlier use
            self._close()
            raise _Refused(f"another handler of it cannot be kept.{_free()}")
        if process.has_begun():
            self._start()
        process.at_first_session(self._start)

    def release(self) -> None:
        """Restore the handler from before, unless another one has been set since."""
        process.not_at_first_session(self._start)
        if _handler(self.number) == self._ours:
            faulthandler.unregister(self.number)
        self._close()

    def begin_in_child(self) -> None:
        """Write no longer into the pipe that the parent reads."""
        inherited = self._pipe
        self._begin()
        inherited.close(inherited.read_end, inherited.write_end)

    def _begin(self) -> None:
        self._pipe = _Pipe()
        self._join: Callable[[float], None] | None = None
        # The second time, in a child, this changes nothing but the pipe.
        faulthandler.register(
            self.number, file=self._pipe.write_end, all_threads=False, chain=self._chain
        )

    def _start(self) -> None:
        """Start the thread, as the process opens its first session."""
        if self._join is not None:
            return
        if _handler(self.number) != self._ours:
            warn_once(
                f"session_tracer: no dump is written at {_text(self.number)}, because another "
                f"handler of it was set after instrument().{_free()}{_HARMLESS}"
            )
            return
        if not self._pipe.is_open:
            self._begin()
        self._join = threads.start(partial(_answer, self._pipe), "session_tracer-dump")

    def _close(self) -> None:
        pipe, join = self._pipe, self._join
        pipe.close(pipe.write_end, *(() if join else (pipe.read_end,)))
        if join is not None:
            join(1.0)  # the thread reads to the end of the pipe, and closes it


def _answer(pipe: _Pipe) -> None:
    """Write a dump for each signal until the pipe is closed."""
    answered = 0.0
    with suppress(OSError):
        while _read(pipe.read_end, _MOST_BYTES):
            if time.monotonic() - answered > _ONE_SIGNAL:
                with suppress(Exception):  # standard error may be closed
                    dump()
            answered = time.monotonic()
    pipe.close(pipe.read_end)


def _is_to_chain(number: int, is_own: Callable[[str], bool]) -> bool:
    """Return whether the handler from before is the application's, and has to be called too.

    Raises:
        _Refused: it is not the application's.
    """
    name = _text(number)
    for server in _servers(name):
        raise _Refused(f"{server} handles {name}.{_free()}")
    handler = signal.getsignal(number)
    if handler in (signal.SIG_DFL, signal.SIG_IGN):
        # Python knows nothing of handlers that are written in C, such as faulthandler's.
        if _handler(number) != int(handler):
            raise _Refused(f"a C extension handles {name}, perhaps faulthandler.{_free()}")
        return False
    if handler is None or _handler(number) not in _of_python(number):
        raise _Refused(f"a C extension handles {name}, perhaps faulthandler.{_free()}")
    if owner := _library_of(handler, is_own):
        raise _Refused(f"{owner} handles {name}.{_free()}")
    return True


def _servers(name: str) -> list[str]:
    """Return the servers that handle the signal."""
    running = [server for module, server in _SERVERS.items() if module in sys.modules]
    return [server for server, names in running if name in names]


def _library_of(handler: Any, is_own: Callable[[str], bool]) -> str:
    """Return the installed package whose handler it is, or an empty text if it is of none."""
    while isinstance(handler, partial | MethodType):
        handler = handler.func if isinstance(handler, partial) else handler.__func__
    home = handler if type(handler) is FunctionType else type(handler)
    module = sys.modules.get(str(home.__module__))
    package = str(home.__module__).partition(".")[0]
    file = getattr(module, "__file__", None) if type(module) is ModuleType else None
    is_installed_file = isinstance(file, str) and is_installed(file)
    return package if is_installed_file and not is_own(package) else ""


def _free() -> str:
    """Return a sentence with the signals that no code handles."""
    free = [name for name in _CANDIDATES if hasattr(signal, name) and not _servers(name)]
    numbers = {name: int(getattr(signal, name)) for name in free}
    named = [
        f"{name} ({number})" if name == "SIGRTMIN" else name
        for name, number in numbers.items()
        if signal.getsignal(number) == signal.SIG_DFL and not _handler(number)
    ]
    return f" Free: {', '.join(named)}." if named else ""


def _number(named: str | int) -> int:
    if not hasattr(faulthandler, "register"):
        raise _Refused("this system has no such signals.")
    number = getattr(signal, named, None) if isinstance(named, str) else named
    if number is None:
        raise _Refused(f"this system has no such signal.{_free()}")
    return int(number)


def _text(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _handler(number: int) -> int:
    """Return the address of the handler that the system calls, 0 for the default action."""
    try:
        ctypes: Any = import_module("ctypes")
        asked = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int)(("PyOS_getsig", ctypes.pythonapi))
    except (ImportError, AttributeError):
        raise _Refused("the module ctypes, which finds the handler in place, is missing.") from None
    return asked(number) or 0


def _of_python(number: int) -> set[int]:
    """Return the address of the handler that calls handlers in Python, as other signals have it."""
    others = [
        _handler(other)
        for other in signal.valid_signals()
        if other != number and callable(signal.getsignal(other)) and other not in _TAKEN
    ]
    return set(others) or {_handler(number)}


_TAKEN: Final[dict[int, _Taken]] = {}


def _begin_in_child() -> None:
    for taken in _TAKEN.values():
        taken.begin_in_child()


process.in_child(_begin_in_child)

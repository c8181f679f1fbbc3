"""Writes `dump()` when the process receives a signal, also while its main thread hangs.

A signal handler in Python runs when the main thread executes Python code again: never, if that
hangs in a driver. Python's own handler, which is written in C, runs at once. It writes the signal's
number to the wake-up descriptor, here that of a pipe, and a thread at the other end writes the
dump. A process has one such descriptor: where asyncio or another library has it, the handler in
Python writes into the pipe.

faulthandler would need neither, but it reads the frames of the thread that it interrupts while
these change: one of some thousand signals to a busy thread crashes the interpreter.
"""

from __future__ import annotations

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
    from collections.abc import Callable, Collection, Iterator, Mapping
    from types import FrameType

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
# Signals in the same tenth of a second are answered once.
_ONE_SIGNAL: Final = 0.1
# What the handler in Python adds to the signal's number. No number is as large.
_HANDLED: Final = 128
# Ends the thread where its pipe stays open.
_END: Final = 255
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
    taken = _LISTENER.handlers
    for number in set(taken) - set(numbers):
        _LISTENER.release(number)
    for number in set(numbers) - set(taken):
        with _refusing(numbers[number]):
            _LISTENER.take(number, _handler_before(number, wanted[numbers[number]]))


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

    def write(self, number: int) -> None:
        with suppress(OSError):  # it is full
            if self.is_open:
                os.write(self.write_end, bytes([number]))

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


class _Handler:
    """The handler of one signal, in Python. It calls the application's handler, too.

    Args:
        before: The handler from before, or what else was in place.
        write: Is called with the signal's number.
    """

    def __init__(self, before: Any, write: Callable[[int], None]) -> None:
        self.before = before
        self._write = write

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._write(number)
        if callable(self.before):
            self.before(number, frame)


class _Listener:
    """The pipe into which signals are written, and the thread that answers them."""

    def __init__(self) -> None:
        # By the number of the signal.
        self.handlers: dict[int, _Handler] = {}
        self._pipe: _Pipe | None = None
        self._join: Callable[[float], None] | None = None
        # Whether Python writes each signal's number into the pipe.
        self._is_woken = False

    def take(self, number: int, before: Any) -> None:
        """Handle the signal."""
        handler = _Handler(before, self._handled)
        _set(number, handler)
        # What the application waits for is not interrupted.
        signal.siginterrupt(number, False)
        self.handlers[number] = handler
        if self._pipe is None:
            self._pipe = _Pipe()
            process.at_first_session(self._start)
        if process.has_begun():
            self._start()

    def release(self, number: int) -> None:
        """Restore the handler from before, unless another one has been set since."""
        handler = self.handlers.pop(number)
        if not self.handlers:
            self._close()
        if _is_in_place(number, handler):
            try:
                _set(number, handler.before)
            except _Refused as error:
                warn_once(
                    f"session_tracer: its handler of {_text(number)} stays, and does nothing: "
                    f"{error}"
                )

    def begin_in_child(self) -> None:
        """Write no longer into the pipe that the parent reads."""
        inherited, self._join = self._pipe, None
        if inherited is not None:
            self._sleep(inherited)
            self._pipe = _Pipe()
            inherited.close(inherited.read_end, inherited.write_end)

    def _handled(self, number: int) -> None:
        if self._pipe is not None:
            self._pipe.write(_HANDLED + number)

    def _start(self) -> None:
        """Start the thread, as the process opens its first session."""
        if self._join is not None or self._pipe is None:
            return
        handlers = self.handlers.items()
        replaced = [number for number, one in handlers if not _is_in_place(number, one)]
        for number in replaced:
            warn_once(
                f"session_tracer: no dump is written at {_text(number)}, because another "
                f"handler of it was set after instrument().{_free()}{_HARMLESS}"
            )
        if len(replaced) == len(handlers):
            return
        if not self._pipe.is_open:
            self._pipe = _Pipe()
        # Not before: a process that becomes a daemon closes descriptors and uses their numbers.
        with suppress(ValueError):  # in another thread
            self._is_woken = _wake_up(self._pipe.write_end, -1)
        answer = partial(_answer, self._pipe, self.handlers)
        self._join = threads.start(answer, "session_tracer-dump")

    def _close(self) -> None:
        process.not_at_first_session(self._start)
        pipe, join = self._pipe, self._join
        self._pipe = self._join = None
        if pipe is None:
            return
        if self._sleep(pipe):
            pipe.close(pipe.write_end, *(() if join else (pipe.read_end,)))
        else:
            pipe.write(_END)
        if join is not None:
            join(1.0)  # the thread reads to the end of the pipe, and closes it

    def _sleep(self, pipe: _Pipe) -> bool:
        """Have Python write no more into the pipe; return whether the pipe may be closed.

        In another thread than the main one this is not possible. The pipe's descriptors must not
        be given to a file of the application's then.
        """
        if self._is_woken:
            try:
                _wake_up(-1, pipe.write_end)
            except ValueError:
                return False
            self._is_woken = False
        return True


def _is_in_place(number: int, handler: _Handler) -> bool:
    known: object = signal.getsignal(number)
    return known is handler


def _set(number: int, handler: Any) -> None:
    try:
        signal.signal(number, handler)
    except ValueError:
        raise _Refused("Python allows only the main thread to change its handler.") from None


def _wake_up(descriptor: int, known: int) -> bool:
    """Have Python write each signal's number to the descriptor, if it writes to `known` now.

    Return whether it did. Another library's descriptor stays; Trio would warn of one of another.

    Raises:
        ValueError: this is not the main thread.
    """
    if known < 0 and "trio" in sys.modules:
        return False
    found = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    if found != known:
        with suppress(OSError):  # it is closed
            signal.set_wakeup_fd(found, warn_on_full_buffer=False)
    return found == known


def _answer(pipe: _Pipe, numbers: Collection[int]) -> None:
    """Write a dump for each of these signals until the pipe is closed."""
    answered = 0.0
    woken: set[int] = set()
    with suppress(OSError):
        while (came := set(_read(pipe.read_end, _MOST_BYTES))) and _END not in came:
            # The handler runs later, perhaps much later, for what Python's own has written.
            handled = {one - _HANDLED for one in came}
            new = (came | (handled - woken)) & set(numbers)
            woken = (woken | new) - handled
            if not new:
                continue
            if time.monotonic() - answered > _ONE_SIGNAL:
                with suppress(Exception):  # standard error may be closed
                    dump()
                answered = time.monotonic()
    if not pipe.is_open:
        pipe.close(pipe.read_end)


def _handler_before(number: int, is_own: Callable[[str], bool]) -> Any:
    """Return what handles the signal: the application's handler, the default action, or none.

    Raises:
        _Refused: another library handles it.
    """
    name = _text(number)
    for server in _servers(name):
        raise _Refused(f"{server} handles {name}.{_free()}")
    handler = signal.getsignal(number)
    if handler in (signal.SIG_DFL, signal.SIG_IGN):
        # Python knows nothing of handlers that are written in C, such as faulthandler's.
        if _handler(number) != int(handler):
            raise _Refused(f"a C extension handles {name}, perhaps faulthandler.{_free()}")
    elif handler is None or _handler(number) not in _of_python(number):
        raise _Refused(f"a C extension handles {name}, perhaps faulthandler.{_free()}")
    elif owner := _library_of(handler, is_own):
        raise _Refused(f"{owner} handles {name}.{_free()}")
    return handler


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
    if not hasattr(signal, "siginterrupt"):
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
        if other != number and callable(signal.getsignal(other))
    ]
    return set(others) or {_handler(number)}


_LISTENER: Final = _Listener()
process.in_child(_LISTENER.begin_in_child)

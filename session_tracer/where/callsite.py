"""Finds the application's line that called or awaited SQLAlchemy."""

from __future__ import annotations

import functools
import linecache
import os
import sys
import sysconfig
import weakref
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from session_tracer.where.blocks import block_of, blocks_of, head_of, managers_of
from session_tracer.where.iteration import is_around_block, is_over_items
from session_tracer.where.loops import can_follow, is_in_loop, is_one_loop
from session_tracer.where.polls import is_poll, is_retry
from session_tracer.where.running import locals_elsewhere, running_frame
from session_tracer.where.source import removed_at
from session_tracer.where.tasks import awaiting_tasks, current_task, suspended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import CodeType, FrameType

__all__ = [
    "MACHINERY_PACKAGES",
    "WAITING",
    "CallSite",
    "Callers",
    "Locator",
    "called_before",
    "is_asgi",
    "is_in",
    "is_installed",
    "registry_at_work",
    "show_paths_from",
    "task_stack",
    "whole_stack",
    "wsgi_application",
]

# Functions that called one another, the innermost first, each with its instruction (`f_lasti`).
Callers: TypeAlias = "tuple[tuple[CodeType, int], ...]"

# What returns the frames of the thread that waits for what this one does. The pytest plugin adds a
# function, because a test's client runs the application in another thread.
WAITING: Final[list[Callable[[], Iterable[FrameType]]]] = []

# An application that makes code as it runs must not fill the memory with its sites.
_MOST_SITES: Final = 10_000


@dataclass(frozen=True, slots=True)
class CallSite:
    """A line of the application. Two sites are equal if their lines are; `callers` do not matter.

    Attributes:
        file: The path from which the code was compiled.
        line: The line number, from 1.
        function: The qualified name without `<locals>` and comprehensions.
        callers: The calling application frames, the innermost first. Empty unless
            `Settings.site_frames` is greater than 1.
        distance: 0 if the line called SQLAlchemy, 1 if it called a library that did so, 2 if that
            library calls the application's functions, and did this after one had returned: the
            line is a middleware's or a test's, and has not asked for what happened.
    """

    file: str
    line: int
    function: str
    callers: tuple[CallSite, ...] = field(default=(), compare=False)
    distance: int = field(default=0, compare=False, repr=False)

    @property
    def path(self) -> str:
        """The file, relative to the working directory if it is below it (see `show_paths_from`)."""
        return _relative(self.file, _SHOWN_FROM[-1])

    def __str__(self) -> str:
        call = self.function if self.function.startswith("<") else f"{self.function}()"
        return f"{self.path}:{self.line} in {call}"


# The folders from which files are shown, of which the last one is in force.
_SHOWN_FROM: Final = [os.curdir]


def show_paths_from(folder: str) -> Callable[[], None]:
    """Show files from this folder on, and not from the working directory.

    Tests may change that, and one file is to have one path in all of a run.

    Returns:
        A function that ends it.
    """
    _SHOWN_FROM.append(folder)
    return functools.partial(_SHOWN_FROM.remove, folder)


@functools.lru_cache(maxsize=_MOST_SITES)
def _relative(file: str, folder: str) -> str:
    try:
        relative = os.path.relpath(file, folder)
    except (ValueError, OSError):  # another drive on Windows, or a folder that is gone
        return file
    return file if relative.startswith("..") else relative


# The kinds of frames, from the most useful line to open to the least.
_APPLICATION: Final = 0
_TEMPLATE: Final = 1  # a Jinja template, whose compiled line is not its written one
_LIBRARY: Final = 2  # another package: never a site
_MACHINERY: Final = 3  # what is between a statement and its caller

MACHINERY_PACKAGES: Final = frozenset(
    {
        "anyio",
        "asyncio",
        "asyncpg",
        "aiosqlite",
        "contextlib",
        "flask_sqlalchemy",
        "greenlet",
        "importlib",
        "opentelemetry",
        "psycopg",
        "session_tracer",
        "sqlalchemy",
        "sqlmodel",
        "structlog",
        "uvloop",
    }
)

# Not called where the interpreter lacks `sys._getframe`: see `locate`.
_frame: Final[Any] = running_frame
_HERE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_CO_COROUTINE: Final = 0x80
_CO_AWAITED: Final = 0x80 | 0x20 | 0x100 | 0x200  # coroutine, generator, or either's async kin
# Their sessions outlive the function that has used one first.
_REGISTRIES: Final = frozenset({"sqlalchemy.orm.scoping", "sqlalchemy.ext.asyncio.scoping"})
# A test's client calls the application; its framework goes on when the application has answered.
_CLIENTS: Final = frozenset({"flask.testing", "httpx", "starlette.testclient", "werkzeug.test"})
# The parameters of an ASGI application, and what a WSGI application, or what calls one, has.
_ASGI: Final = frozenset({"scope", "receive", "send"})
_WSGI: Final = "start_response"
_CO_GENERATOR: Final = 0x20 | 0x200
# The names that parameters for sessions have most often; others end with `_session`.
_SESSIONS: Final = frozenset({"db", "session"})
_COMPREHENSIONS: Final = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})
_MOST_JUMPS: Final = 8
_MOST_CALLERS: Final = 4


def _folders() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the folders of the standard library, and those of installed packages and scripts."""
    paths = sysconfig.get_paths()
    standard = {paths["stdlib"], paths["platstdlib"]}
    installed = {paths["purelib"], paths["platlib"], paths["scripts"]}
    # In a virtual environment the interpreter's own scripts lie elsewhere.
    installed.add(os.path.dirname(os.path.realpath(sys.executable)))

    def normal(folders: set[str]) -> tuple[str, ...]:
        both = {os.path.abspath(f) for f in folders} | {os.path.realpath(f) for f in folders}
        return tuple(sorted(f + os.sep for f in both))

    return normal(standard), normal(installed)


_STANDARD, _INSTALLED = _folders()
# A user's own and a distribution's packages lie elsewhere, in folders of these names.
_PACKAGED: Final = frozenset({"site-packages", "dist-packages"})


def is_installed(file: str) -> bool:
    """Return whether the file is one of an installed package, or an installed script."""
    path = os.path.abspath(file)
    return path.startswith(_INSTALLED) or not _PACKAGED.isdisjoint(path.split(os.sep))


class AtWork(dict[tuple[int, int], int]):
    """The instructions of the frames that are at work, by the ids of each and of its code.

    Attributes:
        request: What the WSGI request that is running has alone; None if there is none, or it has
            nothing that can be held weakly.
    """

    request: weakref.ref[Any] | None = None


class Locator:
    """Finds the application's line, from the running frame outwards.

    Everything below `site-packages` is a library unless it is an application package. A module that
    sets `__session_tracer_hide__ = True` is skipped, so that a site is not the application's own
    wrapper of sessions. Each code object is classified once.

    Args:
        application_packages: Installed packages that belong to the application.
        frames: Number of application frames in a site, including its own.
    """

    __slots__ = (
        "_adopts",
        "_application",
        "_at_work",
        "_callers",
        "_crossings",
        "_drivers",
        "_frames",
        "_kept",
        "_kinds",
        "_registered",
        "_sites",
        "generators",
        "jumps",
        "known",
    )

    def __init__(self, application_packages: tuple[str, ...] = (), frames: int = 1) -> None:
        self._application = frozenset(application_packages)
        self._adopts: Callable[[str], bool] = lambda _: False
        self._frames = frames
        # All by id(code): hashing a code object reads its names and constants each time. The
        # code objects are kept, so that no other one can have their id.
        self._kinds: dict[int, int] = {}
        self._sites: dict[tuple[int, int, int], CallSite] = {}
        # The instructions that call a library that calls the application's functions.
        self._drivers: set[tuple[int, int]] = set()
        # The lines at which a registry was called, such as one that opened a session.
        self._registered: set[CallSite | None] = set()
        # By the instruction: working out a frame's line costs more than all the rest.
        self.known: dict[tuple[int, int], CallSite] = {}
        # From the code that asks: how far away the application's frames have been, and the function
        # that each of them had called.
        self.jumps: dict[int, tuple[tuple[int, CodeType], ...]] = {}
        self._callers: dict[
            tuple[int, frozenset[str]], tuple[tuple[int, CodeType, CodeType, bool], ...]
        ] = {}
        self._crossings: dict[int, tuple[tuple[int, int, CodeType], ...]] = {}
        # The functions, by file and name, that have a line that was located and are generators.
        self.generators: set[tuple[str, str]] = set()
        # By a line that opened a session and one that used it.
        self._at_work: dict[tuple[CallSite, CallSite], bool] = {}
        self._kept: list[CodeType] = []

    def adopt(self, is_own: Callable[[str], bool]) -> None:
        """Treat the installed packages that this names as the application's, too."""
        self._adopts = is_own

    def is_own(self, package: str) -> bool:
        """Return whether the package is the application's, although it is installed."""
        return package in self._application or self._adopts(package)

    def locate(self, depth: int = 1) -> CallSite | None:
        """Return the innermost application line among the caller's frames and those outwards.

        Args:
            depth: Number of frames between this function and the first one to look at.

        Returns:
            The line, or None if only frames of libraries are found: a framework reads an object
            after the application's function has returned it, for example, or a task runs whose
            awaiting coroutine is unknown.
        """
        # Jumping over frames is a tenth of the cost of walking them: each one that is looked at has
        # to be made into an object first. From a hook, one of SQLAlchemy's methods is always as far
        # away, unless the application's code runs in between.
        try:
            for distance, entry in self.jumps.get(id(_frame(depth).f_code), ()):
                inner = _frame(depth + distance - 1)
                if inner.f_code is entry:
                    frame = inner.f_back
                    site = self.known.get((id(frame.f_code), frame.f_lasti))
                    if site is not None:
                        return site
        except (AttributeError, ValueError):  # no frames, or not as many
            pass
        return self.search(depth + 1)

    def search(self, depth: int) -> CallSite | None:
        """Return what `locate` returns, where no jump leads to it."""
        start = _frame(depth)
        if start is None:
            return None
        awaiting = self.across(depth + 1)
        if awaiting is not None:
            return awaiting[1]
        return self._walk(start) or self._search_outwards(start)

    def across(self, depth: int) -> tuple[FrameType, CallSite] | None:
        """Return the application's frame that awaits the greenlet, and its line.

        Only the distances at which it was found before are tried.
        """
        start = _frame(depth)
        for distance, hops, entry in self._crossings.get(id(start and start.f_code), ()):
            try:
                bottom = _frame(depth + distance)
                # SQLAlchemy's greenlet runs one of its own methods: an application's would come
                # first.
                if bottom.f_code is entry and bottom.f_back is None:
                    frame = sys.modules["greenlet"].getcurrent().parent.gr_frame
                    for _ in range(hops):
                        frame = frame.f_back
                    site = self.known.get((id(frame.f_code), frame.f_lasti))
                    if site is not None:
                        return frame, site
            except (AttributeError, LookupError, ValueError):  # the stack is not as deep
                pass
        return None

    def _walk(self, start: FrameType) -> CallSite | None:
        """Return the application's line if it is on this stack, which is the common case."""
        frame: FrameType | None = start
        inner = start
        distance = 0
        while frame is not None:
            kind = self._kind(frame)
            if kind <= _TEMPLATE:
                if frame is not start:
                    self._remember_jump(start.f_code, distance, inner.f_code)
                self._learn_drivers(start, frame)
                return self._found(frame, kind)
            if kind == _LIBRARY or frame.f_code.co_flags & _CO_COROUTINE:
                return None
            inner = frame
            frame = frame.f_back
            distance += 1
        return None

    def _remember_jump(self, start: CodeType, distance: int, entry: CodeType) -> None:
        jumps = self.jumps.get(id(start), ())
        if len(jumps) < _MOST_JUMPS:
            # The nearest first: what lies further in is nearer to what happened.
            self.jumps[id(start)] = tuple(
                sorted((*jumps, (distance, entry)), key=lambda jump: jump[0])
            )

    def _learn_drivers(self, start: FrameType, found: FrameType) -> None:
        """Note what calls a library that has called the application's function back.

        Once for each instruction of that function's: walking the whole stack takes long. A registry
        that the function has called is noted, too: `registry.query` opens a session, and what runs
        it later does not call the registry.
        """
        if (id(found.f_code), found.f_lasti) in self.known:
            return
        is_outside = is_called = False
        for frame in _outwards(start):
            if frame is found:
                is_outside = True
            elif not is_outside:
                if _is_registrys(frame):
                    self._registered.add(self._site(found, self._kind(found)))
            else:
                kind = self._kind(frame)
                if kind == _LIBRARY:
                    is_called = True
                elif kind == _APPLICATION and is_called:
                    self._drivers.add((id(frame.f_code), frame.f_lasti))

    def _found(self, frame: FrameType, kind: int) -> CallSite:
        if self._frames > 1:
            return self._chain(frame)
        site = self._site(frame, kind)
        if len(self.known) >= _MOST_SITES:
            self.known.clear()
        self.known[id(frame.f_code), frame.f_lasti] = site
        return site

    def callers(self, start: FrameType | None) -> Callers:
        """Return the functions and instructions that are at work, from the application's line on.

        There are at most four: that of the line, and its callers.
        """
        found: list[tuple[CodeType, int]] = []
        for frame in _stack(start):
            if found or self._kind(frame) <= _TEMPLATE:
                found.append((frame.f_code, frame.f_lasti))
            if len(found) == _MOST_CALLERS:
                break
        return tuple(found)

    def called_by(self, names: frozenset[str], depth: int = 1) -> bool:
        """Return whether such a function is between the caller and the application's line."""
        start = _frame(depth)
        if start is None:
            return False
        key = (id(start.f_code), names)
        known = self._callers.get(key, ())
        try:
            for distance, entry, middle, answer in known:
                inner = _frame(depth + distance - 1)
                if inner.f_code is entry and _frame(depth + distance // 2).f_code is middle:
                    frame = inner.f_back
                    if (id(frame.f_code), frame.f_lasti) in self.known:
                        return answer
        except (AttributeError, ValueError):  # the stack is not as deep
            pass
        # The functions that are asked about run in the greenlet, not outside of it.
        answer, distance, inner, frame = False, 0, start, start
        while frame is not None:
            if frame.f_code.co_name in names:
                answer = True
            if self._kind(frame) <= _TEMPLATE:
                break
            inner, frame, distance = frame, frame.f_back, distance + 1
        if frame is not None and len(known) < _MOST_JUMPS:
            middle = _frame(depth + distance // 2).f_code
            self._callers[key] = (*known, (distance, inner.f_code, middle, answer))
        return answer

    def passed(self) -> AtWork:
        """Return the instructions of the frames that are at work now, by their ids.

        To find out which are still at work when the same happens again. They are not kept alive.
        """
        frames = [*_callers(_frame(1))]
        passed = AtWork({(id(one), id(one.f_code)): one.f_lasti for one in frames})
        passed.request = _request(frames)
        return passed

    def is_another_request(self, before: Mapping[tuple[int, int], int]) -> bool:
        """Return whether the WSGI request that ran when something happened before runs no more.

        A server runs one after the other in a thread, with the same functions at work.
        """
        request = before.request if isinstance(before, AtWork) else None
        if request is None:
            return False
        begun = request()
        now = None if begun is None else _request(_callers(_frame(1)))
        return begun is None or (now is not None and now() is not begun)

    def loop(
        self, before: Mapping[tuple[int, int], int], opened: CallSite | None = None
    ) -> CallSite | None:
        """Return the innermost application line that loops, and None where a library does.

        The id of a frame that is gone is given to the next one, mostly of the same function. That
        the frame's instruction lies in a loop excludes helper functions without loops. Where a
        function has gone on to its next line, what it calls has been called again: a loop there
        may have had a single turn. A helper that itself has a loop, and is called again while that
        is at its first item, looks the same.

        Args:
            before: What `passed()` returned when the same happened before.
            opened: Where the session was opened. What called that function again opened another
                session, and so does a loop around the line.
        """
        frame = self._looping(before, opened, _frame(1))
        if frame is None or (kind := self._kind(frame)) == _LIBRARY:
            return None
        return self._site(frame, kind)

    def is_repeated(
        self, before: Mapping[tuple[int, int], int], opened: CallSite | None = None
    ) -> bool | None:
        """Return whether a loop, of the application or a library, makes the same happen again.

        It is False if a function makes one call after the other, and None if neither is seen: the
        calls may be in tasks of their own, or made by a function that is not written in Python. A
        server and pytest have loops too, in which a function makes calls.

        Args:
            before: As for `loop()`.
            opened: As for `loop()`.
        """
        start = _frame(1)
        loop = self._looping(before, opened, start)
        if loop is not None and self._kind(loop) != _LIBRARY:
            return True
        for frame in _stack(start):
            was_at = before.get((id(frame), id(frame.f_code)), frame.f_lasti)
            if was_at != frame.f_lasti and self._kind(frame) != _MACHINERY:
                return False
        return None if loop is None else True

    def is_polling(
        self, before: Mapping[tuple[int, int], int], opened: CallSite | None = None
    ) -> bool:
        """Return whether the same happens again because a loop waits for its answer.

        The loop is left depending on the answer, or the body of the loop is left unless the answer
        raises an exception. Its frames and those of the functions it calls are the application's.

        Args:
            before: As for `loop()`.
            opened: As for `loop()`.
        """
        start = _frame(1)
        loop = self._looping(before, opened, start)
        least = self._called_again(before, start)
        inside: list[FrameType] = []
        for number, frame, line, _ in self._since_opening(opened, start):
            if self._kind(frame) <= _TEMPLATE:
                inside.append(frame)
                if frame is loop:
                    return is_poll(self.sites(inside))
                is_same = before.get((id(frame), id(frame.f_code))) == frame.f_lasti
                may_retry = loop is None and number >= least and is_same
                if may_retry and is_retry(self._site(frame, 0), line):
                    return True
        return False

    def is_of_library(
        self, before: Mapping[tuple[int, int], int], opened: CallSite | None = None
    ) -> bool:
        """Return whether a library loops which a line of the application has called.

        The line is in no loop, or its call has opened the session: each turn has one of its own.

        Args:
            before: As for `loop()`.
            opened: As for `loop()`.
        """
        start = _frame(1)
        loop = self._looping(before, opened, start)
        if loop is None or self.is_application(loop):
            return False
        frames = _outwards(start)
        # A library may also loop around the application's function.
        if next(one for one in frames if one is loop or self.is_application(one)) is not loop:
            return False
        caller = next(filter(self.is_application, frames), None)
        has_opened = caller is not None and self._site(caller, 0) == opened
        return has_opened or not self.is_in_loop()

    def is_recursive(self, loop: CallSite) -> bool:
        """Return whether the line, which loops, has called the function that it is a line of."""
        frames = [
            frame
            for frame in _outwards(_frame(1))
            if is_in(loop, frame.f_code) and frame.f_code.co_name not in _COMPREHENSIONS
        ]
        return len(frames) > 1 and self._site(frames[0], _APPLICATION) != loop

    def _looping(
        self,
        before: Mapping[tuple[int, int], int],
        opened: CallSite | None,
        start: FrameType | None,
    ) -> FrameType | None:
        called_again = self._called_again(before, start)
        for number, frame, line, is_advancing in self._since_opening(opened, start):
            code = frame.f_code
            was_at = before.get((id(frame), id(code)))
            if (
                was_at is not None
                and (number >= called_again or code.co_flags & _CO_GENERATOR)
                and is_in_loop(code, frame.f_lasti, line, in_generator=is_advancing)
                and is_one_loop(code, was_at, frame.f_lasti)
            ):
                return frame
        return None

    def _since_opening(
        self, opened: CallSite | None, start: FrameType | None
    ) -> Iterator[tuple[int, FrameType, int, bool]]:
        """Yield the frames that may loop while a session is open, with their numbers from inside.

        The last one is that of the function which opened it, or whose `with` block a generator
        opened it for, with a line that a loop in which it stays open does not pass. A loop around
        that opens another session in each turn. The line of the others is 0. And whether each
        advances a generator, which runs inside of it.
        """
        frames = [*_outwards(start)]
        last, line = self._opening(opened, frames)
        is_generators = False
        for number, frame in enumerate(frames):
            if self._kind(frame) != _MACHINERY:
                yield number, frame, line if frame is last else 0, is_generators
                if frame is last:
                    return
            is_generators = bool(frame.f_code.co_flags & _CO_GENERATOR)

    def _opening(
        self, opened: CallSite | None, frames: list[FrameType]
    ) -> tuple[FrameType | None, int]:
        if opened is None:
            return None, 0
        line = opened.line
        own = next((one for one in frames if _has_opened(one, opened)), None)
        inside = frames if own is None else frames[: frames.index(own)]
        if self.is_registered(opened) or any(map(_is_registrys, inside)):
            # The session is the thread's or task's, whatever function used it first, unless that
            # function removes it again.
            line = removed_at(opened)
            if not line:
                return None, 0
        if own is None and self.is_in_generator(opened):
            # The blocks inside of the outermost one may be of the session that is open.
            for frame in reversed(frames):
                head = head_of(self._site(frame, 0), opened) if self.is_application(frame) else 0
                if head:
                    return frame, head
        return own, line

    def is_in_loop(self) -> bool:
        """Return whether a function of the application that is at work now is in a loop."""
        return any(
            self._kind(frame) <= _TEMPLATE and is_in_loop(frame.f_code, frame.f_lasti)
            for frame in _stack(_frame(1))
        )

    def opening_loop(
        self, before: Mapping[tuple[int, int], int], opened: CallSite
    ) -> tuple[CallSite, tuple[int, int]] | None:
        """Return the application's line that loops around a line which opens sessions.

        Where a context manager of the application opens them, the loop is around the `with` that
        calls it. A loop inside of that uses one session. A worker that takes its next job is no
        such loop, nor is one around a request that a client runs in this process, nor one whose
        turn opens them by calls at several lines.

        Args:
            before: What `passed()` returned at an earlier session.
            opened: The line that opens the sessions.

        Returns:
            The line, and the ids of its frame and code.
        """
        frames = [one for one in _stack(_frame(1)) if self._kind(one) != _MACHINERY]
        own = next((n for n, one in enumerate(frames) if is_in(opened, one.f_code)), None)
        calls = {(code, at) for (_, code), at in before.items()}
        for number, frame in enumerate(frames[own or 0 :]):
            code, at = frame.f_code, frame.f_lasti
            is_around = is_in_loop(code, at)
            if number == 0 and own is None:
                is_around = is_around and is_around_block(self._site(frame, 0), managers_of(opened))
            elif number == 0:
                is_around = is_around and not is_in_loop(code, at, opened.line)
            key = (id(frame), id(code))
            # At another instruction, or called by another one, it may be in another loop.
            if is_around and all(
                before.get((id(one), id(one.f_code))) == one.f_lasti
                for one in frames[(own or 0) + number :]
            ):
                return self._loop_over_items(frame, key)
            is_other_call = number > 0 and (id(code), at) not in calls
            if is_other_call or is_asgi(code) or _WSGI in code.co_varnames:
                return None
        return None

    def _loop_over_items(
        self, frame: FrameType, key: tuple[int, int]
    ) -> tuple[CallSite, tuple[int, int]] | None:
        kind = self._kind(frame)
        site = None if kind == _LIBRARY else self._site(frame, kind)
        return None if site is None or not is_over_items(site) else (site, key)

    def _called_again(self, before: Mapping[tuple[int, int], int], start: FrameType | None) -> int:
        """Return how many frames lie inside of the outermost one that has gone on."""
        called_again = 0
        for number, frame in enumerate(_stack(start)):
            if before.get((id(frame), id(frame.f_code))) != frame.f_lasti:
                called_again = number
        return called_again

    def repeated_in(
        self, before: Mapping[tuple[int, int], int], is_first: Callable[[FrameType], bool | None]
    ) -> str:
        """Return the file of the function because of which the same happens again, or "".

        Looking from outside in, it is the first one that is at another instruction than before: it
        makes calls in a row. If there is none, it is the innermost one that loops. A library that
        calls a function like the outermost one again, such as for each example of a test, repeats
        on its behalf.

        Args:
            before: What `passed()` returned when the same happened before.
            is_first: Whether a frame may be the outermost one to look at. None ends the search.
        """
        inside: list[FrameType] = []
        own: list[int] = []
        for frame in _callers(_frame(1)):
            first = is_first(frame)
            if first is None:
                break
            if self._kind(frame) != _MACHINERY:
                own += [len(inside)] if first else []
                inside.append(frame)
        number = self._repeating(before, inside[: own[-1] + 1]) if own else -1
        if number < 0:
            return ""
        called = [inner for inner in own if inner < number]
        if called and self._kind(inside[number]) == _LIBRARY:
            number = called[-1]
        return inside[number].f_code.co_filename

    def _repeating(self, before: Mapping[tuple[int, int], int], inside: list[FrameType]) -> int:
        """Return the number of the frame that repeats, of these from inside out, or -1."""
        caller = looping = -1
        for number, frame in reversed(list(enumerate(inside))):
            code, at = frame.f_code, frame.f_lasti
            was_at = before.get((id(frame), id(code)))
            loops = is_in_loop(code, at)
            # An instruction that was passed is not reached again: it is another call's frame.
            if was_at is None or (at < was_at and not loops):
                return next((one for one in (looping, caller) if one >= 0), number)
            if at != was_at:
                return number
            caller = number
            looping = number if loops else looping
        return looping

    def called_by_first(
        self, is_first: Callable[[FrameType], bool | None]
    ) -> tuple[tuple[int, int], ...]:
        """Return the instructions of the functions that were called first, of those asked about.

        Args:
            is_first: Whether a frame is of these. None ends the search outwards.
        """
        frames: list[tuple[FrameType, bool]] = []
        for frame in _callers(_frame(1)):
            first = is_first(frame)
            if first is None:
                break
            frames.append((frame, first))
        calls = []
        for frame, first in reversed(frames):
            if first:
                calls.append((id(frame), frame.f_lasti))
            elif self._kind(frame) <= _TEMPLATE:
                break
        return tuple(calls)

    def innermost(self, is_wanted: Callable[[FrameType], bool | None]) -> CallSite | None:
        """Return the innermost line of the functions that are asked about.

        Args:
            is_wanted: Whether a frame is one of these. None ends the search outwards.
        """
        for frame in _callers(_frame(1)):
            wanted = is_wanted(frame)
            if wanted is not False:
                return self._site(frame, _APPLICATION) if wanted else None
        return None

    def is_at_work(self, opened: CallSite, used: CallSite) -> bool:
        """Return whether the function of `opened` is on the stack from the line `used` outwards.

        A generator that has yielded is not, nor is what a library's code lies in between with: a
        middleware has handed the session on. It is the same each time for two lines.
        """
        known = self._at_work.get((opened, used))
        if known is None:
            if len(self._at_work) >= _MOST_SITES:
                self._at_work.clear()
            known = self._at_work[opened, used] = self._look_for(opened, _frame(1))
        return known

    def _look_for(self, opened: CallSite, start: FrameType | None) -> bool:
        is_application = False
        for frame in _outwards(start):
            kind = self._kind(frame)
            if kind <= _TEMPLATE:
                is_application = True
                code = frame.f_code
                if code.co_filename == opened.file and _written_name(code) == opened.function:
                    return True
            elif kind == _LIBRARY and is_application:
                return False
        return False

    def called_at(self, opened: CallSite, holds: CallSite | None) -> CallSite | None:
        """Return the application's line that had a session opened although it has another one.

        That is the call which led to the function that opens it, in a function that was given a
        session or opened the other one; if none is seen, what called the function that opens it. A
        decorator's function that opens it, or has it opened, is called where the decorated one is.
        A context manager is called at the `with` around the line that is at work.

        Args:
            opened: The line that opened the session.
            holds: The line that opened the other session. If it is one of the function that opened
                this one, no call did.
        """
        frames, names = self._functions(_frame(1)), managers_of(opened)
        for number, frame in enumerate(frames):
            site = self._site(frame, self._kind(frame))
            is_opener = is_in(opened, frame.f_code)
            block = None if is_opener else block_of(site, opened)
            if block is None and not is_opener:
                continue
            outer = number + is_opener
            while outer < len(frames) and _calls_decorated(
                frames[outer].f_code, frames[outer].f_lasti
            ):
                outer += 1
            is_block = block is not None and outer == number
            if is_block:
                own = int(holds is not None and not managers_of(holds).isdisjoint(names))
                if _is_given_session(frame) or self._keeps(frame, holds, others=own):
                    return block
                outer += 1
            calls = frames[outer:]
            is_holders = is_opener and is_in(holds, frame.f_code)
            if is_holders and not any(is_in(holds, one.f_code) for one in calls):
                return None
            for caller in calls:
                if _is_given_session(caller) or self._keeps(caller, holds):
                    return self._site(caller, self._kind(caller))
            if is_block or not calls:
                return block if is_block else None
            return self._site(calls[0], self._kind(calls[0]))
        return None

    def held_at(self, opened: CallSite) -> CallSite | None:
        """Return the line at work in the function that has a session, which it opened.

        Or in one that has it in a `with` block of a context manager, which opened it. A decorator's
        function has it for the decorated one.

        Args:
            opened: The line that opened the session.
        """
        frames = self._functions(_frame(1))
        for number, frame in enumerate(frames):
            is_manager = is_in(opened, frame.f_code) and frame.f_code.co_flags & _CO_GENERATOR
            if not is_manager and self._keeps(frame, opened):
                is_decorators = number and _calls_decorated(frame.f_code, frame.f_lasti)
                has_it = frames[number - 1] if is_decorators else frame
                return self._site(has_it, self._kind(has_it))
        return None

    def _functions(self, start: FrameType | None) -> list[FrameType]:
        """Return the application's functions that are at work, up to what a server calls."""
        frames = []
        for frame in _outwards(start):
            if is_asgi(frame.f_code) or _WSGI in frame.f_code.co_varnames:
                break
            if self._kind(frame) <= _TEMPLATE and frame.f_code.co_name not in _COMPREHENSIONS:
                frames.append(frame)
        return frames

    def _keeps(self, frame: FrameType, opened: CallSite | None, *, others: int = 0) -> bool:
        """Return whether the call has opened a session, or has it in a `with` block it is in.

        Args:
            frame: The call.
            opened: The line that opened the session.
            others: Number of blocks of the same context manager that have another session.
        """
        if opened is None or is_in(opened, frame.f_code):
            return opened is not None
        return blocks_of(self._site(frame, self._kind(frame)), opened) > others

    def frames(self, frame: FrameType | None) -> list[CallSite]:
        """Return every application line from `frame` outwards, the innermost first."""
        return self.sites(_outwards(frame))

    def called_from(self, site: CallSite, loop: CallSite) -> list[CallSite]:
        """Return the application's lines from `site` to `loop`, which called its function.

        It is empty if one of these is not at work now.
        """
        sites = self.frames(_frame(1))
        places = [(one.file, one.line) for one in sites]
        try:
            first = places.index((site.file, site.line))
            return sites[first : places.index((loop.file, loop.line), first) + 1]
        except ValueError:
            return []

    def in_a_row(self, before: Mapping[tuple[int, int], int]) -> CallSite | None:
        """Return the application's line that has made one call after the other, in no loop.

        Its function has not been called again, or was at a later instruction in the call before.

        Args:
            before: As for `loop()`.
        """
        start = _frame(1)
        frame = next(islice(_stack(start), self._called_again(before, start), None))
        was_at = before.get((id(frame), id(frame.f_code)), frame.f_lasti)
        if was_at >= frame.f_lasti or is_in_loop(frame.f_code, frame.f_lasti):
            return None
        kind = self._kind(frame)
        return self._site(frame, kind) if kind <= _TEMPLATE else None

    def lines(self) -> list[CallSite]:
        """Return every application line, and the library's lines inside of the innermost one."""
        lines: list[CallSite] = []
        is_application = False
        for frame in _outwards(_frame(1)):
            kind = self._kind(frame)
            is_application = is_application or kind == _APPLICATION
            if kind == _APPLICATION or (kind == _LIBRARY and not is_application):
                lines.append(self._site(frame, kind))
        return lines

    def sites(self, frames: Iterable[FrameType]) -> list[CallSite]:
        """Return the application's lines among these frames, the innermost first.

        Each has the distance 0 or 1.
        """
        sites: list[CallSite] = []
        written_in, distance = "", 0
        for outer in frames:
            kind = self._kind(outer)
            if kind == _LIBRARY:
                distance = 1
            elif kind <= _TEMPLATE:
                site = self._at(outer, outer.f_lineno, kind, distance)
                # A comprehension and the function it is written in are one.
                if site.function != written_in:
                    sites.append(site)
                distance = 0
                in_comprehension = outer.f_code.co_name in _COMPREHENSIONS
                written_in = site.function if in_comprehension else ""
        return sites

    def is_application(self, frame: FrameType) -> bool:
        """Return whether the frame is the application's."""
        return self._kind(frame) <= _TEMPLATE

    def is_registered(self, site: CallSite | None) -> bool:
        """Return whether a `scoped_session` was called at the line, which this locator found."""
        return site in self._registered

    def is_in_generator(self, site: CallSite | None) -> bool:
        """Return whether the line, which this locator found, is one of a generator function."""
        return site is not None and (site.file, site.function) in self.generators

    def raised_at(self, error: BaseException) -> CallSite | None:
        """Return the innermost application line in an exception's traceback."""
        return next(reversed(self.raised_through(error)), None)

    def raised_through(self, error: BaseException) -> list[CallSite]:
        """Return every application line in an exception's traceback, the outermost first."""
        sites = []
        passed = error.__traceback__
        while passed is not None:
            kind = self._kind(passed.tb_frame)
            if kind <= _TEMPLATE:
                sites.append(self._at(passed.tb_frame, passed.tb_lineno, kind))
            passed = passed.tb_next
        return sites

    def _search_outwards(self, start: FrameType) -> CallSite | None:
        """Return the application's line across greenlets, coroutines, tasks and packages."""
        library: FrameType | None = None
        for frame in _outwards(start):
            kind = self._kind(frame)
            if kind <= _TEMPLATE:
                self._learn_drivers(start, frame)
                distance = 0 if library is None else self._distance(frame, library)
                # From a waiting task's frame f_back would lead to the running task.
                if self._frames > 1:
                    return self._chain(start, distance)
                if distance:
                    return self._at(frame, frame.f_lineno, kind, distance)
                self._remember_crossing(start, frame)
                return self._found(frame, kind)
            if kind == _LIBRARY:
                library = frame
        return None

    def _distance(self, frame: FrameType, library: FrameType) -> int:
        """Return how far the application's frame is from what happened; it called the library."""
        is_client = library.f_globals.get("__name__", "").partition("._")[0] in _CLIENTS
        return 2 if is_client or (id(frame.f_code), frame.f_lasti) in self._drivers else 1

    def _remember_crossing(self, start: FrameType, found: FrameType) -> None:
        """Record the distances to the greenlet's end, and from its parent to what awaits it."""
        distance, inner, bottom = 0, start, start
        while bottom.f_back is not None and bottom is not found:
            inner, bottom, distance = bottom, bottom.f_back, distance + 1
        if bottom is found:  # a coroutine, which awaits one of SQLAlchemy's
            self._remember_jump(start.f_code, distance, inner.f_code)
            return
        frame = _outer_greenlet(None)[1]
        hops = 0
        while frame is not None and frame is not found:
            frame, hops = frame.f_back, hops + 1
        crossings = self._crossings.get(id(start.f_code), ())
        if frame is not None and len(crossings) < _MOST_JUMPS:
            self._crossings[id(start.f_code)] = (*crossings, (distance, hops, bottom.f_code))

    def _chain(self, frame: FrameType, distance: int = 0) -> CallSite:
        inner, *outer = self.frames(frame)[: self._frames]
        return CallSite(inner.file, inner.line, inner.function, tuple(outer), distance)

    def _site(self, frame: FrameType, kind: int) -> CallSite:
        return self._at(frame, frame.f_lineno, kind)

    def _at(self, frame: FrameType, line: int, kind: int, distance: int = 0) -> CallSite:
        code = frame.f_code
        key = (id(code), line, distance)
        site = self._sites.get(key)
        if site is None:
            if kind == _TEMPLATE:
                line = frame.f_globals["__jinja_template__"].get_corresponding_lineno(line)
            if len(self._sites) >= _MOST_SITES:
                self._sites.clear()
                self.generators.clear()
            name = _written_name(code)
            site = self._sites[key] = CallSite(code.co_filename, line, name, distance=distance)
            if code.co_flags & _CO_GENERATOR and code.co_name not in _COMPREHENSIONS:
                self.generators.add((site.file, site.function))
        return site

    def _kind(self, frame: FrameType) -> int:
        kind = self._kinds.get(id(frame.f_code))
        return self._classify(frame) if kind is None else kind

    def _classify(self, frame: FrameType) -> int:
        if len(self._kept) >= _MOST_SITES:
            self._forget()
        self._kept.append(frame.f_code)
        kind = self._kinds[id(frame.f_code)] = self._kind_of(frame)
        return kind

    def _forget(self) -> None:
        for known in (
            self._kinds,
            self._sites,
            self.known,
            self.jumps,
            self._callers,
            self._crossings,
            self._drivers,
            self._registered,
            self.generators,
            self._at_work,
            self._kept,
        ):
            known.clear()

    def _kind_of(self, frame: FrameType) -> int:
        if frame.f_globals.get("__session_tracer_hide__"):
            return _MACHINERY
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if self.is_own(package):
            return _APPLICATION
        if package in MACHINERY_PACKAGES:
            return _MACHINERY
        file = frame.f_code.co_filename
        if file.startswith(("<frozen", _HERE)):
            return _MACHINERY
        if "__jinja_template__" in frame.f_globals:
            return _TEMPLATE
        if file.startswith("<") and package != "__main__":
            return _LIBRARY  # generated, such as a dataclass's __init__: there is no file
        if is_installed(file):
            return _LIBRARY
        if os.path.abspath(file).startswith(
            _STANDARD
        ):  # after packages: site-packages lies below the library
            return _MACHINERY
        return _APPLICATION


def is_in(site: CallSite | None, code: CodeType) -> bool:
    """Return whether the line is one of this function."""
    return (
        site is not None and site.file == code.co_filename and site.function == _written_name(code)
    )


def _has_opened(frame: FrameType, opened: CallSite) -> bool:
    """Return whether a call of the function may have run the line before.

    It may also pass a session on that it was given, in another branch.
    """
    code = frame.f_code
    return (
        is_in(opened, code)
        and code.co_name not in _COMPREHENSIONS
        and can_follow(code, frame.f_lasti, opened.line)
    )


def _is_registrys(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") in _REGISTRIES


def _is_given_session(frame: FrameType) -> bool:
    """Return whether a function has a parameter that is named like a session."""
    code = frame.f_code
    parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return any(name in _SESSIONS or name.endswith("_session") for name in parameters)


def _calls_decorated(code: CodeType, at: int) -> bool:
    """Return whether the function calls a variable of the one around it, as a decorator's does.

    It is read in the source: a look at the frame's variables would keep their objects alive.
    """
    names = code.co_freevars
    if not names:
        return False
    line, column = _position(code, at)
    if line is None or column is None:
        return False
    call = linecache.getline(code.co_filename, line)[column:]
    return call.removeprefix("await ").partition("(")[0] in names


def _position(code: CodeType, at: int) -> tuple[int | None, int | None]:
    """Return the line and the column of an instruction, where they are known."""
    positions = islice(code.co_positions(), at // 2, None)
    line, _, column, _ = next(positions, (None, None, None, None))
    return line, column


def called_before(
    called: CallSite | None, site: CallSite | None, callers: Callers
) -> CallSite | None:
    """Return the line by which the function of `called` got to another line before.

    Args:
        called: A line of the function, which is at work now.
        site: The line that it got to.
        callers: What was at work then, or a little before in the same function. It is not known by
            which call the function got to the line if this does not have the line's function, nor a
            block of it.
    """
    if called is None or site is None:
        return None
    passed: list[CallSite] = []
    for code, at in callers:
        line = CallSite(code.co_filename, _position(code, at)[0] or 0, _written_name(code))
        if is_in(called, code):
            if _calls_decorated(code, at) and passed:
                line = passed.pop()
            is_on_the_way = any(is_in(site, code) for code, _ in callers[: len(passed)]) or any(
                blocks_of(one, site) for one in passed
            )
            return line if is_on_the_way and line.line else None
        passed.append(line)
    return None


def is_asgi(code: CodeType) -> bool:
    """Return whether the function is an ASGI application."""
    return _ASGI.issubset(code.co_varnames[: code.co_argcount])


def wsgi_application(frames: Iterable[FrameType]) -> FrameType | None:
    """Return the frame of the outermost WSGI application among these, from the inside out."""
    outermost = None
    for frame in frames:
        code = frame.f_code
        if _WSGI in code.co_varnames and _WSGI in code.co_varnames[: code.co_argcount]:
            outermost = frame
    return outermost


def _request(frames: Iterable[FrameType]) -> weakref.ref[Any] | None:
    """Return what the outermost WSGI application at work was given to begin its response."""
    application = wsgi_application(frames)
    begin = None if application is None else locals_elsewhere(application).get(_WSGI)
    try:
        return None if begin is None else weakref.ref(begin)
    except TypeError:
        return None


def registry_at_work() -> Any:
    """Return the `scoped_session` that makes a session now, or passes a call on to its session."""
    for frame in whole_stack():
        if _is_registrys(frame):
            return frame.f_locals.get("self")
    return None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield `frame`, its callers, and the frames that await the greenlet or task."""
    return chain(_stack(frame), _awaiting())


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield what `_outwards` does, and then the frames of the thread that waits for this one."""
    return chain(_stack(frame), _awaiting(), _waiting())


def _awaiting() -> Iterator[FrameType]:
    for task in awaiting_tasks(current_task()):
        yield from suspended(task)


def _waiting() -> Iterator[FrameType]:
    for waiting in WAITING:
        yield from waiting()


def whole_stack() -> Iterator[FrameType]:
    """Yield the caller, its callers, and those of the greenlets that wait, event loops included."""
    greenlet, frame = None, _frame(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
        if frame is None:
            greenlet, frame = _outer_greenlet(greenlet)


def task_stack() -> Iterator[FrameType]:
    """Yield the caller and its callers, up to the event loop if there is one."""
    return _stack(_frame(1))


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield `frame` and its callers, through SQLAlchemy's greenlet, up to the event loop."""
    greenlet = None
    awaited = False
    while frame is not None:
        flags = frame.f_code.co_flags
        if awaited and not flags & _CO_AWAITED:
            # What drives a task, an event loop and the line that started it, asked for nothing:
            # the coroutine that awaits the task did.
            return
        awaited = awaited or bool(flags & _CO_COROUTINE)
        yield frame
        frame = frame.f_back
        if frame is None and not awaited:
            greenlet, frame = _outer_greenlet(greenlet)


def _outer_greenlet(inner: Any) -> tuple[Any, FrameType | None]:
    """Return the parent of the greenlet `inner` (or of the running one), and its frame."""
    module = sys.modules.get("greenlet")
    if module is None:
        return None, None
    outer = (module.getcurrent() if inner is None else inner).parent
    return outer, None if outer is None else outer.gr_frame


def _written_name(code: CodeType) -> str:
    """Return the function's name as in the source: `totals`, not `totals.<locals>.<listcomp>`."""
    parts = [part for part in code.co_qualname.split(".") if part not in _COMPREHENSIONS]
    written = ".".join(parts).removesuffix(".<locals>").rpartition(".<locals>.")[2]
    return written or "<module>"

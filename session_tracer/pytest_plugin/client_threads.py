"""Finds the test that waits for another thread, in which its client runs the application."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Final

from session_tracer.where.callsite import WAITING, is_installed, whole_stack
from session_tracer.where.running import frames_of_thread, locals_elsewhere
from session_tracer.where.tasks import suspended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from session_tracer.pytest_plugin.own_files import OwnFiles

__all__ = ["ClientThreads"]

# The function that runs an event loop.
_RUNNING: Final = ("asyncio.base_events", "run_forever")
_STANDARD: Final = frozenset(sys.stdlib_module_names)


class ClientThreads:
    """Adds the running test's frames to those of a thread that a library has started.

    Starlette's client runs the application in a thread of anyio's, and a server that a fixture has
    started runs it in its own. What the test repeats is repeated there, also if the test is a
    coroutine that waits. A thread that the application has started repeats by itself.
    """

    def __init__(self) -> None:
        self._thread = 0
        self._own_files: OwnFiles | None = None

    def begin(self, own_files: OwnFiles) -> None:
        """Begin a test, which runs in this thread and is written in one of these files."""
        self._thread = threading.get_ident()
        self._own_files = own_files

    def start(self) -> None:
        """Add the frames from now on."""
        WAITING.append(self._waiting)

    def stop(self) -> None:
        """Add no frames any longer."""
        WAITING.remove(self._waiting)

    def _waiting(self) -> Iterator[FrameType]:
        if self._thread in (0, threading.get_ident()) or not _is_of_a_library():
            return
        frames = list(frames_of_thread(self._thread))
        # A coroutine's frames are inside of the ones of the loop that runs it.
        yield from self._waiting_coroutine(frames)
        yield from frames

    def _waiting_coroutine(self, running: list[FrameType]) -> list[FrameType]:
        """Return the frames of the test's task. If several tasks could be it, there are none."""
        loop = next(filter(None, map(_loop_of, running)), None)
        own = self._own_files
        if loop is None or own is None:
            return []
        waiting = [suspended(task) for task in asyncio.all_tasks(loop)]
        tests = [
            frames for frames in waiting if any(own.has(one.f_code.co_filename) for one in frames)
        ]
        return tests[0] if len(tests) == 1 else []


def _loop_of(frame: FrameType) -> asyncio.AbstractEventLoop | None:
    """Return the event loop that a frame of asyncio runs."""
    if (frame.f_globals.get("__name__"), frame.f_code.co_name) != _RUNNING:
        return None
    # What this returns is kept for as long as the frame lives: the loop, and nothing of the test's.
    loop = locals_elsewhere(frame).get("self")
    return loop if isinstance(loop, asyncio.AbstractEventLoop) else None


def _is_of_a_library() -> bool:
    """Return whether a library began what this thread does."""
    begun = None
    for frame in whole_stack():
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _STANDARD:
            begun = frame
    return begun is not None and is_installed(begun.f_code.co_filename)

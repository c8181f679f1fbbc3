"""Finds the test that waits for another thread, in which its client runs the application."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final

from session_tracer.where.callsite import WAITING, is_installed, whole_stack
from session_tracer.where.owner import standing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["ClientThreads"]

_STANDARD: Final = frozenset(sys.stdlib_module_names)


class ClientThreads:
    """Adds the running test's frames to those of a thread that a library has started.

    Starlette's client runs the application in a thread of anyio's, and a server that a fixture has
    started runs it in its own. What the test repeats is repeated there. A thread that the
    application has started repeats by itself.
    """

    def __init__(self) -> None:
        self._thread = 0

    def begin(self) -> None:
        """Begin a test, which runs in this thread."""
        self._thread = threading.get_ident()

    def start(self) -> None:
        """Add the frames from now on."""
        WAITING.append(self._waiting)

    def stop(self) -> None:
        """Add no frames any longer."""
        WAITING.remove(self._waiting)

    def _waiting(self) -> Iterator[FrameType]:
        if self._thread in (0, threading.get_ident()) or not _is_of_a_library():
            return
        frame = standing(self._thread)
        while frame is not None:
            yield frame
            frame = frame.f_back


def _is_of_a_library() -> bool:
    """Return whether a library began what this thread does."""
    begun = None
    for frame in whole_stack():
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _STANDARD:
            begun = frame
    return begun is not None and is_installed(begun.f_code.co_filename)

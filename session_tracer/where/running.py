"""The frame that runs in this thread, and those of others, if this Python provides them."""

from __future__ import annotations

import gc
import operator
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = [
    "IS_TOLD",
    "frames_of_thread",
    "is_sqlalchemys",
    "locals_elsewhere",
    "outwards_elsewhere",
    "running_frame",
    "undisturbed",
]

T = TypeVar("T")


def _untold(depth: int = 0, /) -> FrameType | None:
    """Return None: this Python has no `sys._getframe`."""
    del depth
    return None


IS_TOLD: Final = hasattr(sys, "_getframe")
# The frame at a depth: 0 is the caller's. Raises ValueError if the stack is not as deep.
running_frame: Final[Callable[[int], FrameType | None]] = getattr(sys, "_getframe", _untold)
_call: Final[Callable[..., Any]] = operator.call
_caller: Final[Callable[[FrameType], FrameType | None]] = operator.attrgetter("f_back")
_values: Final[Callable[[FrameType], Any]] = operator.attrgetter("f_locals")
# Until Python 3.12 an allocation may begin a garbage collection, and what that ends may let other
# threads run. A frame object is allocated when it is first asked for: the function may have
# returned by then, and Python reads what another one has put in its place on the stack, or waits
# for ever where the collection needs what `sys._current_frames` holds.
_COLLECTS: Final = sys.version_info < (3, 12)


def is_sqlalchemys(frame: FrameType) -> bool:
    """Return whether SQLAlchemy's own code runs in the frame."""
    return str(frame.f_globals.get("__name__")).startswith("sqlalchemy.")


def undisturbed(ask: Callable[[], T]) -> T:
    """Return what a function in C returns, which no garbage collection interrupts."""
    if not _COLLECTS:
        return ask()
    found: list[Any] = []
    # One call into C: between its steps no other thread runs, which could see it switched off.
    alone = partial(found.extend, map(_call, (gc.disable, ask, gc.enable)))
    try:
        all(map(_call, (gc.isenabled, alone)))
    except BaseException:
        if found:
            gc.enable()
        raise
    # Nothing, where the application has switched it off. What is returned may hold this frame,
    # which must not hold it as well: only the garbage collector would end the two, and all that the
    # frames of other threads have, in whichever thread it happens to run.
    return found.pop(1) if found else ask()


def outwards_elsewhere(frame: FrameType | None, most: int = sys.maxsize) -> Iterator[FrameType]:
    """Yield a frame that may run in another thread and its callers, at most this many."""
    for _ in range(most):
        if frame is None:
            return
        yield frame
        frame = undisturbed(partial(_caller, frame))


def locals_elsewhere(frame: FrameType) -> Any:
    """Return the variables of a frame that may run in another thread."""
    return undisturbed(partial(_values, frame))


def frames_of_thread(ident: int, most: int = sys.maxsize) -> Iterator[FrameType]:
    """Yield the frames of another thread, the innermost first, at most this many."""
    every: Callable[[], dict[int, FrameType]] = getattr(sys, "_current_frames", dict)
    return outwards_elsewhere(undisturbed(every).get(ident), most)

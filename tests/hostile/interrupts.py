"""Raises an error in the tracer's own code, where an interrupt or a lack of memory could strike."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from opentelemetry import context as context_api

import session_tracer
from session_tracer import testing

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from opentelemetry.context import Context

__all__ = ["Moment", "Strike"]

_OURS = str(Path(session_tracer.__file__).parent)
_WRAPPERS = "<session_tracer>"

# The interpreter delivers a signal as a function begins and as a built-in one returns; memory is
# asked for as either is called.
_MOMENTS: dict[type[BaseException], frozenset[str]] = {
    KeyboardInterrupt: frozenset({"call", "c_return"}),
    MemoryError: frozenset({"call", "c_call"}),
}


@dataclass(frozen=True)
class Moment:
    """Where an error could strike: how many of our functions have been called, in which context."""

    where: str
    depth: int
    context: Context


class Strike:
    """Within its block, the error is raised at the n-th moment of this thread; once.

    With n = 0 it is never raised, and `moments` has them all; else the one that it struck.
    """

    def __init__(self, error: type[BaseException], at: int = 0) -> None:
        self._error = error
        self._at = at
        self._events = _MOMENTS[error]
        self._passed = 0
        self.moments: list[Moment] = []

    def __enter__(self) -> Self:
        sys.setprofile(self._seen)
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.setprofile(None)

    def _seen(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in self._events or not _is_ours(frame):
            return
        # A generator that is thrown away is entered once more, where nothing can be raised.
        if event == "call" and frame.f_code.co_flags & inspect.CO_GENERATOR:
            return
        self._passed += 1
        if self._at in (0, self._passed):
            code = frame.f_code
            where = f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}()"
            context = context_api.get_current()
            self.moments.append(Moment(f"{where} at a {event}", _depth(frame), context))
        if self._at == self._passed:
            raise self._error


def _is_ours(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return (file.startswith(_OURS) or file == _WRAPPERS) and file != testing.__file__


def _depth(frame: FrameType) -> int:
    depth = 0
    outer: FrameType | None = frame
    while outer is not None and _is_ours(outer):
        depth += 1
        outer = outer.f_back
    return depth

"""Whether a loop that waits has gone on since it was last looked at."""

from __future__ import annotations

import asyncio
import gc
import weakref
from inspect import CO_ASYNC_GENERATOR
from typing import TYPE_CHECKING, Any

from session_tracer.where.callsite import is_in
from session_tracer.where.iteration import is_over_items
from session_tracer.where.loops import is_in_loop

if TYPE_CHECKING:
    from types import FrameType

    from session_tracer.where.callsite import CallSite, Locator
    from session_tracer.where.owner import Owner

__all__ = ["Progress"]


class Progress:
    """What a task awaits in one of its functions, to see whether it awaits something else later.

    Code that runs in other tasks, each of which a loop waits for, is a part of that loop. Nothing
    is kept alive.

    Args:
        owner: The task.
        begun: A line of the function.
    """

    __slots__ = ("_awaited", "_begun", "_owner")

    def __init__(self, owner: Owner, begun: CallSite) -> None:
        self._owner = owner
        self._begun = begun
        # What each coroutine awaits, from the function's own inwards.
        self._awaited: list[weakref.ref[Any]] = []

    def loop(self, locator: Locator) -> CallSite | None:
        """Return the line of the loop over items that has gone on, or None if none has.

        A worker, or a server, that takes the next job or connection has none.
        """
        before, waiting = self._awaited, self._waiting()
        self._awaited = [weakref.ref(awaited) for awaited, _ in waiting]
        for (awaited, frame), known in zip(waiting, before, strict=False):
            if known() is not awaited:
                code = frame.f_code
                # The loop of a generator brings the items, such as messages, of another one.
                if code.co_flags & CO_ASYNC_GENERATOR or not is_in_loop(code, frame.f_lasti):
                    return None
                (site,) = locator.sites([frame]) or (None,)
                return site if site is not None and is_over_items(site) else None
        return None

    def _waiting(self) -> list[tuple[Any, FrameType]]:
        """What the function awaits and so on, each with the frame of the coroutine that awaits."""
        coroutines = self._owner.coroutines()
        first = next(
            (n for n, (_, frame) in enumerate(coroutines) if is_in(self._begun, frame.f_code)), None
        )
        if first is None:
            return []
        inside = coroutines[first:]
        awaited = [one for one, _ in inside[1:]]
        return [
            (one, frame)
            for one, (_, frame) in zip([*awaited, _future(inside[-1][0])], inside, strict=True)
            if one is not None
        ]


def _future(coroutine: Any) -> asyncio.Future[Any] | None:
    """The future for which the innermost coroutine waits."""
    awaited = getattr(coroutine, "cr_await", None)
    held = (awaited, *gc.get_referents(awaited))
    return next((one for one in held if isinstance(one, asyncio.Future)), None)

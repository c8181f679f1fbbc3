"""Which task awaits which, and the frames of a waiting task."""

from __future__ import annotations

import asyncio
import gc
import sys
from functools import partial
from inspect import isasyncgen
from types import CellType
from typing import TYPE_CHECKING, Any, Final

from session_tracer.where.running import locals_elsewhere, outwards_elsewhere, undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = [
    "awaiting_a_thread",
    "awaiting_tasks",
    "coroutines",
    "current_task",
    "in_greenlet",
    "in_groups",
    "is_ready",
    "running_loop",
    "suspended",
    "waiting_for",
]

# How many tasks outwards are looked at: two that wait for each other must not hang us.
_MOST_HOPS: Final = 32
# What a task group waits for at the end of its block, asyncio's and anyio's.
_COMPLETED: Final = "_on_completed_fut"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


# The public function raises where no loop runs, which costs five times as much as this one.
running_loop: Final[Callable[[], asyncio.AbstractEventLoop | None]] = getattr(
    asyncio, "_get_running_loop", _running_loop
)


def current_task() -> asyncio.Task[Any] | None:
    """Return the task that runs in this thread, or None."""
    loop = running_loop()
    return None if loop is None else asyncio.current_task(loop)


def suspended(task: asyncio.Task[Any]) -> list[FrameType]:
    """Return the frames of a waiting task, the innermost first."""
    frames = [frame for _, frame in coroutines(task) if frame is not None]
    frames.reverse()
    return frames


# What an `async for` awaits, and of each kind of coroutine its frame and what it awaits.
_STEPS: Final = frozenset({"async_generator_asend", "async_generator_athrow"})
_NOWHERE: Final = object()
_KINDS: Final = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


def coroutines(task: asyncio.Task[Any]) -> Iterator[tuple[Any, FrameType | None]]:
    """Yield the task's coroutine, what that awaits and so on, each with its frame."""
    awaited: Any = task.get_coro()
    while awaited is not None:
        if type(awaited).__name__ in _STEPS:  # it has the generator, and no attribute for it
            awaited = next(filter(isasyncgen, gc.get_referents(awaited)), None)
        for frame, inner in _KINDS:
            # The task may be another thread's.
            found = undisturbed(partial(getattr, awaited, frame, _NOWHERE))
            if found is not _NOWHERE:
                yield awaited, found
                awaited = getattr(awaited, inner, None)
                break
        else:
            return


def in_greenlet(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """Yield the frames of the greenlet of SQLAlchemy's for which the task waits, if it does."""
    kind: Any = getattr(sys.modules.get("greenlet"), "greenlet", None)
    for awaited, spawning in coroutines(task) if kind is not None else ():
        if spawning is None or spawning.f_code.co_name != "greenlet_spawn":
            continue
        # By its type: the others are the application's, and may not be asked for anything.
        for held in gc.get_referents(awaited):
            if issubclass(type(held), kind):
                yield from outwards_elsewhere(held.gr_frame)


def in_groups(
    task: asyncio.Task[Any], is_application: Callable[[FrameType], bool]
) -> Iterator[asyncio.Task[Any]]:
    """Yield the tasks that a library runs for the task, in task groups (asyncio's or anyio's).

    A group that the application itself has made is not the library's.
    """
    groups: dict[int, Any] = {}
    for awaited, frame in reversed(list(coroutines(task))):
        if frame is None or frame.f_code.co_qualname.startswith("TaskGroup."):
            continue
        if is_application(frame):
            break
        # By referents: `f_locals` would keep what it returns for as long as the frame lives.
        held = gc.get_referents(awaited)
        # What an inner function uses as well is in a cell.
        held += gc.get_referents(*(one for one in held if isinstance(one, CellType)))
        groups |= {id(one): one for one in held if type(one).__name__ == "TaskGroup"}
    for group in groups.values():
        yield from (one for one in tuple(group._tasks) if isinstance(one, asyncio.Task))


def _awaiting_task(future: asyncio.Future[Any], depth: int = 0) -> asyncio.Task[Any] | None:
    """Return the task that will wake when `future` is done, or None if it is not known.

    It is read from asyncio's callbacks, which name the task for a plain await, `shield`, `gather`,
    `wait`, `wait_for` and `TaskGroup`. No task awaits one that was created and not awaited.
    """
    for callback, *_ in getattr(future, "_callbacks", None) or ():
        try:
            task = _awaiting(callback, future, depth)
        except Exception:  # it is the application's, and refuses to be asked
            continue
        if task is not None:
            return task
    return None


def _awaiting(callback: Any, future: asyncio.Future[Any], depth: int) -> asyncio.Task[Any] | None:
    owner = getattr(callback, "__self__", None)
    owner = getattr(owner, "_parent_task", owner)  # a TaskGroup
    if isinstance(owner, asyncio.Task):
        return owner
    if depth > 4:
        return None
    held = [cell.cell_contents for cell in getattr(callback, "__closure__", None) or ()]
    held.extend(getattr(callback, "args", ()))
    # A task group of anyio's whose block has ended, and the queue of `as_completed()`.
    held.extend([getattr(one, _COMPLETED, None) for one in held])
    queues = [one for one in (*held, getattr(owner, "_done", None)) if type(one) is asyncio.Queue]
    held.extend([getter for queue in queues for getter in getattr(queue, "_getters", ())])
    for candidate in held:
        if isinstance(candidate, asyncio.Future) and candidate is not future:
            task = _awaiting_task(candidate, depth + 1)
            if task is not None:
                return task
    return None


def awaiting_tasks(task: asyncio.Task[Any] | None) -> Iterator[asyncio.Task[Any]]:
    """Yield the tasks that await the task, from the innermost to the outermost."""
    for _ in range(_MOST_HOPS):
        task = None if task is None else _awaiting_task(task)
        if task is None:
            return
        yield task


def is_ready(task: asyncio.Task[Any]) -> bool:
    """Return whether its event loop would run the task now: it waits for nothing, or no longer."""
    awaited = getattr(task, "_fut_waiter", None)
    if not isinstance(awaited, asyncio.Future):
        return awaited is None
    return awaited.done() or _is_due(awaited, task.get_loop())


def _is_due(awaited: asyncio.Future[Any], loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether a timer that has run out ends the waiting, as soon as the loop looks at it."""
    timers: list[asyncio.TimerHandle] = getattr(loop, "_scheduled", [])
    return any(
        timer.when() <= loop.time() and any(one is awaited for one in timer._args or ())
        for timer in timers
    )


def waiting_for(
    task: asyncio.Task[Any] | None,
) -> tuple[asyncio.Task[Any], asyncio.Future[Any]] | None:
    """Return the task that waits until this one is done, and the future that it waits for.

    In the block of a TaskGroup it does not: it starts more tasks, or waits for other things.
    """
    waiting = None if task is None else _awaiting_task(task)
    future = getattr(waiting, "_fut_waiter", None)
    if waiting is None or future is None:
        return None
    for callback, *_ in getattr(task, "_callbacks", None) or ():
        group: Any = getattr(callback, "__self__", None)
        if type(group) is asyncio.TaskGroup and getattr(group, _COMPLETED, None) is not future:
            return None
    return waiting, future


def awaiting_a_thread(frame: FrameType) -> list[FrameType]:
    """Return the frames of the task that awaits what a thread of anyio's runs, by that thread.

    They are none if the frame is not the one in which such a thread runs what it is given.
    """
    if frame.f_code.co_qualname != "WorkerThread.run" or "anyio" not in frame.f_code.co_filename:
        return []
    values = locals_elsewhere(frame)
    future = values.get("future")
    if type(values) is dict:
        # Before Python 3.13 the frame would keep them, and it lives as long as the thread.
        values.clear()
    task = _awaiting_task(future) if isinstance(future, asyncio.Future) else None
    return [] if task is None else suspended(task)

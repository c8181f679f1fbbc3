"""Who uses a session: a thread, or a task of an event loop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import weakref
from contextvars import ContextVar
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, Final

from session_tracer.runtime import process
from session_tracer.where.callsite import whole_stack
from session_tracer.where.running import frames_of_thread, is_sqlalchemys
from session_tracer.where.tasks import (
    awaiting_tasks,
    coroutines,
    in_greenlet,
    in_groups,
    running_loop,
    suspended,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from types import FrameType

__all__ = ["Owner", "current", "leaver_for", "others", "root_of"]

# A thread of a pool does one piece of work after another, and those of several requests in turn.
# Each piece that runs in a context of its own, as anyio's and `asyncio.to_thread()`'s do, is an
# owner of its own: FastAPI opens a session in one and uses it in another. Never set in the main
# thread or in a task, whose context is the application's.
_PIECE: Final[ContextVar[_Piece | None]] = ContextVar("session_tracer_piece_of_work", default=None)
# The main thread, by its ident.
_MAIN: Final[dict[int, Owner]] = {}
# The child's main thread is whichever forked, and others may get the old one's ident.
process.in_child(_MAIN.clear)
_OUR_FOLDER: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")


class _Piece:
    """A piece of a thread's work, with the lifetime of its context."""

    __slots__ = ("__weakref__", "owner")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner


class Owner:
    """A thread, or the task that it runs. It holds both weakly.

    Two owners are equal if they are the same thread, task or piece of a thread's work.

    Attributes:
        name: The name as text: `thread "export-3"`, `task "Task-7"`.
        ident: The thread's identifier.
    """

    __slots__ = ("_task", "_thread", "_which", "ident", "is_plain", "key", "loop", "name", "piece")

    def __init__(
        self, thread: threading.Thread, task: asyncio.Task[Any] | None, loop: Any, which: object
    ) -> None:
        self._thread = weakref.ref(thread)
        self._task = None if task is None else weakref.ref(task)
        self._which = which
        # The piece of work, where it is one, held weakly: it is gone when the work has ended.
        self.piece: weakref.ref[_Piece] | None = None
        self.loop: Callable[[], Any] = _nowhere if loop is None else weakref.ref(loop)
        self.ident = thread.ident
        # A whole thread: it is current wherever no event loop runs in it.
        self.is_plain = task is None and which is None
        # Two references to one thing are equal while it lives, and the same one after.
        self.key: Hashable = (self._thread, self._task, which)
        # A reference keeps its hash, which cannot be computed once the thread or task is gone.
        hash(self.key)
        self.name = f'thread "{thread.name}"' if task is None else f'task "{task.get_name()}"'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Owner) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Owner({self.name})"

    @property
    def thread_name(self) -> str:
        """The name of the thread, or an empty string if it has ended."""
        thread = self._thread()
        return "" if thread is None else thread.name

    def is_current(self) -> bool:
        """Return whether this thread or task is running now, on the calling thread."""
        loop = running_loop()
        if self._task is not None:  # no other thread runs its loop
            task = None if loop is None else asyncio.current_task(loop)
            return task is not None and self._task() is task
        if threading.get_ident() != self.ident:
            return False
        if loop is not None:
            return asyncio.current_task(loop) is None
        if self.is_plain:
            return True
        piece = _PIECE.get()
        return piece is not None and piece.owner is self

    @property
    def given_name(self) -> str:
        """The name of the thread or task itself."""
        return self.name[len(self.kind) + 2 : -1]

    @property
    def kind(self) -> str:
        """The word for what it is: `thread` or `task`."""
        return "thread" if self._task is None else "task"

    @property
    def is_task(self) -> bool:
        """Whether this is a task of an event loop."""
        return self._task is not None

    @property
    def is_one_piece(self) -> bool:
        """Whether it is one piece of a thread's work: anyio runs each in a context of its own."""
        thread = self._thread()
        return thread is not None and type(thread).__module__.startswith("anyio.")

    def tasks_beside(self) -> list[asyncio.Task[Any]]:
        """Return the tasks of its event loop that do not wait for this one."""
        task, loop = None if self._task is None else self._task(), self.loop()
        if task is None or loop is None:
            return []
        waiting = {id(one) for one in (task, *awaiting_tasks(task))}
        return [one for one in asyncio.all_tasks(loop) if id(one) not in waiting]

    def is_at_work(self) -> bool:
        """Return whether it runs now; a task may wait."""
        task = None if self._task is None else self._task()
        return self._task is None or (task is not None and _runs(task))

    def ending(self) -> str:
        """Return how it ended: `ended`, `cancelled`, `failed`, or `returned` for a piece of work.

        The text is empty if it has not ended.
        """
        if self._task is not None:
            task = self._task()
            if task is None or (task.done() and not task.cancelled()):
                # `exception()` would mark the exception as retrieved.
                return "ended" if getattr(task, "_exception", None) is None else "failed"
            return "cancelled" if task.done() else ""
        thread = self._thread()
        if thread is None or self.ident is None or not thread.is_alive():
            return "ended"
        return "returned" if self.piece is not None and self.piece() is None else ""

    def frames_of_groups(self, is_application: Callable[[FrameType], bool]) -> list[FrameType]:
        """Return the stacks of the tasks that a library runs for this task, as it waits."""
        task = None if self._task is None else self._task()
        if task is None or _runs(task):
            return []
        children = [one for one in in_groups(task, is_application) if not _runs(one)]
        return [frame for child in children for frame in suspended(child)]

    @property
    def has_ended(self) -> bool:
        """Whether it is no task that goes on."""
        task = None if self._task is None else self._task()
        return task is None or task.done()

    def coroutines(self) -> list[tuple[Any, FrameType]]:
        """Return the coroutines of a task, the outermost first, each with its frame."""
        task = None if self._task is None else self._task()
        every = () if task is None else coroutines(task)
        return [(one, frame) for one, frame in every if frame is not None]

    def frames(self) -> list[FrameType]:
        """Return its current stack, the innermost frame first.

        For a waiting task, the frames are those of its coroutines, then those of the tasks that
        await it. The list is empty if the thread or task has ended.
        """
        if self._task is not None:
            task = self._task()
            if task is None or task.done():
                return []
            # One that runs at this moment stands on its thread's stack.
            if not _runs(task):
                # And then those who wait for it.
                return [frame for one in (task, *awaiting_tasks(task)) for frame in suspended(one)]
        thread = self._thread()
        if thread is None or self.ident is None or not thread.is_alive():
            return []
        if self.piece is not None and self.piece() is None:
            return []  # the thread does other work now
        if self.ident == threading.get_ident():
            # One of session_tracer's own frames would be kept alive. Not by the module: some of
            # them stand in for SQLAlchemy's. A task of asyncio's waits for a greenlet.
            return list(dropwhile(_is_ours, whole_stack()))
        return list(self.frames_of_thread())

    def frames_of_thread(self, most: int = sys.maxsize) -> Iterator[FrameType]:
        """Yield the innermost frames of another thread, whatever it does now."""
        if self.ident is None or self.ident == threading.get_ident():
            return iter(())
        return frames_of_thread(self.ident, most)

    def frames_of_greenlet(self) -> Iterator[FrameType]:
        """Yield the frames of SQLAlchemy's greenlet in which a task waits, the innermost first."""
        task = None if self._task is None else self._task()
        return iter(()) if task is None else in_greenlet(task)


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OUR_FOLDER)


def current() -> Owner:
    """Return the thread or task that is running now."""
    # Not bound at import: gevent may replace it later.
    known = _MAIN.get(threading.get_ident())
    if known is not None and running_loop() is None and known._thread() is not None:
        return known
    return _current()


def _current() -> Owner:
    """Return what `current` returns, where it is not the main thread that is known already."""
    loop = running_loop()
    if loop is not None:
        return Owner(threading.current_thread(), asyncio.current_task(loop), loop, None)
    ident = threading.get_ident()
    piece = _PIECE.get()
    known = None if piece is None else piece.owner
    if known is not None and known.ident == ident and known._thread() is not None:
        return known
    thread = threading.current_thread()
    if thread is threading.main_thread() and thread.ident == ident:
        owner = _MAIN[ident] = Owner(thread, None, None, None)
    else:
        owner = Owner(thread, None, None, object())
        # A greenlet of eventlet's may take itself for the thread that it runs in.
        owner.ident = ident
        piece = _Piece(owner)
        owner.piece = weakref.ref(piece)
        _PIECE.set(piece)
    return owner


def others() -> Iterator[Owner]:
    """Yield every other task of the running event loop, then every other thread.

    Tasks that await the running one are left out: they are inside of what it does.
    """
    here, loop = threading.current_thread(), running_loop()
    if loop is not None:
        running = asyncio.current_task(loop)
        known = {running, *awaiting_tasks(running)}
        for task in asyncio.all_tasks(loop):
            if task not in known:
                yield Owner(here, task, loop, None)
    for thread in threading.enumerate():
        if thread is not here:
            yield Owner(thread, None, None, None)


def root_of(owner: Owner) -> Owner:
    """Return the outermost task that awaits the running task, or the owner if no task does."""
    running = None if owner._task is None else owner._task()
    outermost = running
    for task in awaiting_tasks(running):
        outermost = task
    if outermost is None or outermost is running:
        return owner
    return Owner(threading.current_thread(), outermost, owner.loop(), None)


def leaver_for(owner: Owner) -> Owner | None:
    """Return the task that leaves the block of a session, if SQLAlchemy started this one for that.

    SQLAlchemy ends and closes a session in a task of its own, so that a cancellation does not
    interrupt it, and the task that leaves the block waits inside of SQLAlchemy's code.
    """
    task = None if owner._task is None else owner._task()
    waiting = next(awaiting_tasks(task), None)
    frames = [] if waiting is None else suspended(waiting)
    if not frames or not is_sqlalchemys(frames[0]):
        return None
    return Owner(owner._thread() or threading.current_thread(), waiting, owner.loop(), None)


def _nowhere() -> None:
    """Return None, in place of a reference to an event loop."""


def _runs(task: asyncio.Task[Any]) -> bool:
    try:
        return asyncio.current_task(task.get_loop()) is task
    except RuntimeError:  # its loop is gone
        return False

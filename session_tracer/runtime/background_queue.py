"""A queue whose consumer runs on its own thread, so that adding a value never waits."""

from __future__ import annotations

from collections import deque
from queue import Empty
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from weakref import WeakSet

from session_tracer.runtime import process, threads

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BackgroundQueue"]

T = TypeVar("T")
V = TypeVar("V")
R = TypeVar("R")

_EXIT_SECONDS: Final = 1.0


class _Mark:
    """A mark in the queue where a flush began; the last one ends the thread."""

    def __init__(self, *, last: bool = False) -> None:
        self.last = last
        self._reached: threads.Queue[None] = threads.Queue()

    def reach(self) -> None:
        self._reached.put(None)

    def wait(self, timeout: float) -> bool:
        """Return whether the mark is reached before `timeout` seconds have passed."""
        try:
            self._reached.get(timeout=timeout)
        except Empty:
            return False
        self._reached.put(None)  # for the next one that waits
        return True


def _ignore(_number: float) -> None:
    """Do nothing with a number."""


def _settled(_everything: bool) -> float | None:
    """Nothing is held back."""
    return None


class BackgroundQueue(Generic[T]):
    """A bounded queue and the daemon thread that passes its values to `consume`.

    The thread starts with the first value, or with `start()`. A process that only forks therefore
    has no thread. After a fork the child begins with an empty queue, and starts its own thread with
    its first value.

    Attributes:
        dropped: Number of values that were dropped because the queue was full.
        failed: Number of exceptions that `consume`, `lost` and `settle` raised. They are caught.

    Args:
        consume: Called with each value on the queue's thread.
        name: The name of the thread.
        most: Number of waiting values from which a new one is dropped.
        lost: Called with the number of dropped values when the queue is empty again.
        settle: Called when no value waits. A consumer that buffers values returns the seconds after
            which it is to be called again, or None. `settle(True)` means: emit all of them now.
        stage: The stage of the process's end at which the queue is flushed; None for never.
    """

    def __init__(
        self,
        consume: Callable[[T], None],
        *,
        name: str,
        most: int = 1000,
        lost: Callable[[int], None] = _ignore,
        settle: Callable[[bool], float | None] = _settled,
        stage: int | None = process.EXPORTERS,
    ) -> None:
        self.dropped = 0
        self.failed = 0
        self._consume = consume
        self._name = name
        self._most = most
        self._lost = lost
        self._settle = settle
        self._closed = False
        self._join: Callable[[float], None] = _ignore
        self._begin()
        _LIVING.add(self)
        if stage is not None:
            process.at_end(self._at_end, stage)

    def put(self, value: T) -> None:
        """Add a value, or drop it if the queue is full.

        It neither blocks nor raises, and may be called in a garbage collector's callback.
        """
        # SimpleQueue alone is reentrant: the collector may run inside any other queue's lock.
        if self._closed or self._queue.qsize() >= self._most:
            self.dropped += 1
        else:
            self._queue.put(value)
            if self._unstarted:
                self.start()

    def start(self) -> None:
        """Start the thread unless it is running; never raise."""
        try:
            # To pop is atomic: of several threads that start it, one does.
            self._unstarted.pop()
        except IndexError:
            return
        queue = self._queue
        try:
            self._join = threads.start(lambda: self._work(queue), self._name)
        except RuntimeError:  # the process is ending: flush() does what is left
            self.failed += 1
            self._unstarted.append(None)
        if self._closed:  # by another thread meanwhile, which found nothing to end
            queue.put(self._ended)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all values have been consumed.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            False if this took longer.
        """
        if self._is_own_thread():
            return False
        if self._unstarted:
            self._work_off(self._queue)
            return True
        mark = _Mark()
        self._queue.put(mark)
        return mark.wait(timeout)

    def close(self, timeout: float = 5.0) -> bool:
        """Accept no more values, consume the waiting ones, and end the thread.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            False if this took longer. The thread then ends when it has consumed the rest.
        """
        if not self._closed:
            self._closed = True
            process.not_at_end(self._at_end)
            _LIVING.discard(self)
            if self._unstarted:
                self._work_off(self._queue)
                self._ended.reach()
            else:
                self._queue.put(self._ended)
        if self._is_own_thread() or not self._ended.wait(timeout):
            return False
        self._join(timeout)
        return True

    def _begin(self) -> None:
        self._queue: threads.Queue[T | _Mark] = threads.Queue()
        self._unstarted = deque([None])
        self._thread_ident = 0
        self._join = _ignore
        self._ended = _Mark(last=True)

    def _is_own_thread(self) -> bool:
        return self._thread_ident == threads.current_ident()

    def _at_end(self) -> None:
        self.flush(_EXIT_SECONDS)

    def _work(self, queue: threads.Queue[T | _Mark]) -> None:
        self._thread_ident = threads.current_ident()
        reported = 0
        wait: float | None = None
        while True:
            try:
                value = queue.get(timeout=wait)
            except Empty:
                wait = self._try(self._settle, False)
                continue
            if isinstance(value, _Mark):
                self._try(self._settle, True)
            else:
                self._try(self._consume, value)
            if self.dropped > reported and queue.empty():
                reported, lost = self.dropped, self.dropped - reported
                self._try(self._lost, lost)
            if isinstance(value, _Mark):
                if value.last:
                    self._thread_ident = 0  # the system may give it to another thread
                value.reach()
                if value.last:
                    return
            wait = self._try(self._settle, False)

    def _work_off(self, queue: threads.Queue[T | _Mark]) -> None:
        """Consume the waiting values on the calling thread, because no other thread runs."""
        while not queue.empty():
            value = queue.get()
            if not isinstance(value, _Mark):
                self._try(self._consume, value)
        self._try(self._settle, True)

    def _try(self, call: Callable[[V], R], value: V) -> R | None:
        try:
            return call(value)
        except BaseException:
            self.failed += 1
            return None


_LIVING: Final[WeakSet[BackgroundQueue[Any]]] = WeakSet()


def _start_all() -> None:
    for queue in list(_LIVING):
        queue.start()


def _begin_in_child() -> None:
    for queue in list(_LIVING):
        queue.dropped = queue.failed = 0
        queue._begin()


process.in_child(_begin_in_child)
# Not by a value that the garbage collector puts, where to start a thread might wait for a lock.
process.at_first_session(_start_all)

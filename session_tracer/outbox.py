"""Hands values to a consumer on a thread of its own, so that whoever puts them never waits."""

from __future__ import annotations

import atexit
import os
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Outbox"]

T = TypeVar("T")
V = TypeVar("V")
R = TypeVar("R")

_EXIT_SECONDS: Final = 1.0


class _Mark(threading.Event):
    """Stands in the queue where a flush began; the last one ends the thread."""

    def __init__(self, *, last: bool = False) -> None:
        super().__init__()
        self.last = last


def _ignore(_lost: int) -> None:
    """Nobody wants to know."""


def _settled(_everything: bool) -> float | None:
    """Nothing is held back."""
    return None


class Outbox(Generic[T]):
    """A bounded queue and the daemon thread that empties it into `consume`.

    `put` may be called from anywhere, a garbage collector's callback included: it neither blocks
    nor raises, and beyond `most` waiting values it drops the new one. `lost` is then told how many
    were dropped, once the queue has been worked off. A consumer that holds values back says in
    `settle` after how many seconds it wants to be asked again; `settle(True)` means that all has
    to go out now. Whatever these raise is swallowed; `failed` counts it, `dropped` what was lost.
    After a fork the child begins with an empty queue and a thread of its own.
    """

    def __init__(
        self,
        consume: Callable[[T], None],
        *,
        name: str,
        most: int = 1000,
        lost: Callable[[int], None] = _ignore,
        settle: Callable[[bool], float | None] = _settled,
    ) -> None:
        self.dropped = 0
        self.failed = 0
        self._consume = consume
        self._name = name
        self._most = most
        self._lost = lost
        self._settle = settle
        self._closed = False
        self._start()
        _LIVING.add(self)
        atexit.register(self._at_exit)

    def put(self, value: T) -> None:
        """Hand `value` over, or drop it where too many wait."""
        # SimpleQueue alone is reentrant: the collector may run inside any other queue's lock.
        if self._closed or self._queue.qsize() >= self._most:
            self.dropped += 1
        else:
            self._queue.put(value)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all that was put is consumed; False where that took over `timeout` seconds."""
        if self._thread is threading.current_thread() or not self._thread.is_alive():
            return False
        mark = _Mark()
        self._queue.put(mark)
        return mark.wait(timeout)

    def close(self, timeout: float = 5.0) -> bool:
        """Take nothing more, consume what waits, and end the thread.

        False where `timeout` seconds did not suffice: the thread ends when it has done the rest.
        """
        if not self._closed:
            self._closed = True
            atexit.unregister(self._at_exit)
            _LIVING.discard(self)
            self._queue.put(_Mark(last=True))
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _start(self) -> None:
        self._queue: SimpleQueue[T | _Mark] = SimpleQueue()
        self._thread = threading.Thread(
            target=self._work, args=(self._queue,), name=self._name, daemon=True
        )
        self._thread.start()

    def _at_exit(self) -> None:
        self.flush(_EXIT_SECONDS)

    def _work(self, queue: SimpleQueue[T | _Mark]) -> None:
        said = 0
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
            if self.dropped > said and queue.empty():
                said, lost = self.dropped, self.dropped - said
                self._try(self._lost, lost)
            if isinstance(value, _Mark):
                value.set()
                if value.last:
                    return
            wait = self._try(self._settle, False)

    def _try(self, call: Callable[[V], R], value: V) -> R | None:
        try:
            return call(value)
        except BaseException:
            self.failed += 1
            return None


_LIVING: Final[WeakSet[Outbox[Any]]] = WeakSet()


def _begin_anew() -> None:
    for outbox in list(_LIVING):
        outbox.dropped = outbox.failed = 0
        outbox._start()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_begin_anew)

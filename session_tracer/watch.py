"""The process's one thread: it lets time pass for open sessions, and hears when one is lost."""

from __future__ import annotations

import os
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from session_tracer import facts, live
from session_tracer.live import LIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from session_tracer.probe import Probe
    from session_tracer.record import SessionRecord
    from session_tracer.tracer import Story

__all__ = ["Watch", "collected", "nudge", "settle", "start", "stop"]

# The least between two looks, in nanoseconds, and as a multiple of what the last one took: with ten
# thousand sessions open, a look takes milliseconds, and the watch may have a hundredth of a core.
_LEAST_GAP: Final = 50_000_000
_GAP_PER_LOOK: Final = 100


class Watch:
    """Tells `TimePassed` to the scopes for which it is time."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._last = 0

    def look(self) -> float | None:
        """Tell whoever has waited long enough; the seconds until the next look, None for ever.

        A scope is told as each of its time thresholds passes (leak, long transaction, idle
        connection), and again every `leak_after_seconds` from then on.
        """
        now, last = self._clock(), self._last
        soonest: int | None = None
        for probe in list(LIVE):
            for story in probe.stories:
                if facts.TimePassed not in story.tracer.listening:
                    continue
                patience = story.tracer.patience
                # A transaction that begins right now is the next to run out of time.
                due = now + min(patience)
                if probe.used:
                    passed = False
                    for moment in _moments(story.record, patience, now):
                        if moment > now:
                            due = min(due, moment)
                        elif moment > last:
                            passed = True
                    if passed:
                        _tell(probe, story, now)
                soonest = due if soonest is None else min(soonest, due)
        self._last = now
        if soonest is None:
            return None
        gap = max(_LEAST_GAP, _GAP_PER_LOOK * (self._clock() - now))
        return max(soonest - now, gap) / 1e9


def _moments(record: SessionRecord, patience: tuple[int, int, int], now: int) -> Iterator[int]:
    """When each threshold passes, or passed: for the leak, the last time before and the next."""
    leak, long, idle = patience
    age = now - record.opened_at
    times = max(1, age // leak)
    yield record.opened_at + times * leak
    yield record.opened_at + (times + 1) * leak
    if record.transaction_began_at:
        yield record.transaction_began_at + long
    if record.held_since:
        yield max(record.held_since, record.last_statement_at) + idle


def _tell(probe: Probe, story: Story, now: int) -> None:
    if probe in LIVE:  # it may have ended since the look began
        running = probe.at_work is not None or probe.is_streaming
        story.tell(facts.TimePassed(now, running, lambda: live.look(probe, story)))


_FOR_EVER: Final = float("inf")

# Filled from garbage collection, which may strike while any lock is held: put() takes none.
_LOST: SimpleQueue[Probe | threading.Event | bool] = SimpleQueue()
_THREAD: list[threading.Thread] = []
# Whether the thread sleeps until it is told something, because no session is open.
_ASLEEP: Final = threading.Event()


def collected(ref: Any) -> None:
    """The garbage collector took a session: leave the rest to the thread."""
    probe: Probe = ref.probe
    if LIVE.pop(probe, None) is not None:
        try:
            probe.origin.left("collected", probe.now(), probe.last_site)
        except Exception as error:
            probe.failed("live", error)
        _LOST.put(probe)


def nudge() -> None:
    """A session was opened: there is something to watch again."""
    if _ASLEEP.is_set():
        _ASLEEP.clear()
        _LOST.put(True)


def start() -> None:
    """Have the thread run."""
    global _LOST
    if not _THREAD or not _THREAD[0].is_alive():
        # A thread that is slow to end must not hear what the next one is told.
        _LOST = SimpleQueue()
        _ASLEEP.clear()
        thread = threading.Thread(target=_listen, args=(_LOST,), name="session_tracer", daemon=True)
        _THREAD[:] = [thread]
        thread.start()


def stop() -> None:
    """Tell of what was lost so far, and end the thread."""
    if _THREAD:
        thread = _THREAD.pop()
        _LOST.put(False)
        if thread is not threading.current_thread():
            thread.join(timeout=2.0)


def settle(timeout: float = 2.0) -> None:
    """Wait until every session lost so far has been told of."""
    if _THREAD and _THREAD[0].is_alive() and _THREAD[0] is not threading.current_thread():
        told = threading.Event()
        _LOST.put(told)
        told.wait(timeout)


def _listen(queue: SimpleQueue[Probe | threading.Event | bool]) -> None:
    watch = Watch()
    next_look = 0.0
    while True:
        if time.monotonic() >= next_look:
            seconds = watch.look()
            next_look = _FOR_EVER if seconds is None else time.monotonic() + seconds
        if next_look == _FOR_EVER:
            _ASLEEP.set()
            if LIVE:  # opened while it fell asleep
                nudge()
        said = _next(queue, next_look)
        if said is False:
            return
        if said is True:
            next_look = 0.0
        elif isinstance(said, threading.Event):
            said.set()
        elif said is not None:
            _end(said)


def _next(queue: SimpleQueue[Any], until: float) -> Any:
    """What the thread is told next; None if nothing is until it is time to look again."""
    try:
        return queue.get(timeout=None if until == _FOR_EVER else max(0, until - time.monotonic()))
    except Empty:
        return None


def _end(lost: Probe) -> None:
    try:
        lost.end_scope("collected", site=lost.last_site)
    except Exception as error:
        lost.failed("live", error)


def _after_fork() -> None:
    """A child watches its own sessions only, from the first one it is told of."""
    live.forget()
    if _THREAD:
        _THREAD.clear()
        start()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)

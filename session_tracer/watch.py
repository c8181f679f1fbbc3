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

__all__ = ["Watch", "at_exit", "collected", "nudge", "settle", "start", "stop"]

# The least between two looks, in nanoseconds, and as a multiple of what the last one took: with ten
# thousand sessions open, a look takes milliseconds, and the watch may have a hundredth of a core.
_LEAST_GAP: Final = 50_000_000
_GAP_PER_LOOK: Final = 100


class Watch:
    """Tells `TimePassed` to the scopes for which it is time.

    `gap` is the least time, in seconds, between the last look and the next.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._last = 0
        self.gap = _LEAST_GAP / 1e9

    def look(self) -> float | None:
        """Tell whoever has waited long enough; the seconds until the next look, None for ever.

        A scope is told as each of its time thresholds passes (leak, long transaction, idle
        connection), and again every `leak_after_seconds` from then on.
        """
        now, last = self._clock(), self._last
        soonest: int | None = None
        for probe in list(LIVE):
            try:
                for story in probe.stories:
                    if story.tracer.dispatch.hears(facts.TimePassed):
                        due = _due(probe, story, last, now)
                        soonest = due if soonest is None else min(soonest, due)
            except Exception as error:
                probe.failed("watch", error)
        self._last = now
        gap = max(_LEAST_GAP, _GAP_PER_LOOK * (self._clock() - now))
        self.gap = gap / 1e9
        return None if soonest is None else max(soonest - now, gap) / 1e9


def _due(probe: Probe, story: Story, last: int, now: int) -> int:
    """When the story is to be looked at next; what has passed since the last look is told."""
    patience = story.tracer.patience
    # A transaction that begins right now is the next to run out of time.
    due = now + min(patience)
    if probe.used:
        passed = False
        for moment in _moments(story.record, patience, now):
            if moment >= now:
                due = min(due, moment)
            elif moment >= last:
                passed = True
        if passed and probe in LIVE:  # it may have ended since the look began
            running = probe.at_work is not None or probe.is_streaming
            story.tell(facts.TimePassed(now, running, lambda: live.look(probe, story)))
    return due


def _moments(record: SessionRecord, patience: tuple[int, int, int], now: int) -> Iterator[int]:
    """When each threshold passes, or passed: for the leak, the last time before and the next."""
    leak, long, idle = patience
    times = max(1, (now - record.opened_at - 1) // leak)
    yield record.opened_at + times * leak
    yield record.opened_at + (times + 1) * leak
    if record.transaction_began_at:
        yield record.transaction_began_at + long
    if record.held_since:
        yield max(record.held_since, record.last_statement_at) + idle


_FOR_EVER: Final = float("inf")
# How long the end of the process waits for what was lost before to be told of.
_EXIT_SECONDS: Final = 1.0


class _Thread(threading.Thread):
    """Has the sessions watched, and tells of those that are lost."""

    def __init__(self) -> None:
        super().__init__(name="session_tracer", daemon=True)
        # Filled from garbage collection, which may strike while any lock is held: put() takes none.
        self.told: SimpleQueue[Probe | threading.Event | bool] = SimpleQueue()
        # Whether nothing but what it is told wakes it, because no session is open.
        self.is_asleep = True

    def run(self) -> None:
        """Look whenever it is time, until it is told that it is over."""
        watch = Watch()
        next_look = _FOR_EVER
        while True:
            said = self._hear(next_look)
            if said is False:
                return
            if said is True:
                # Nothing is due as soon as a session is opened, and many may be.
                if next_look == _FOR_EVER:
                    next_look = time.monotonic() + watch.gap
            elif isinstance(said, threading.Event):
                said.set()
            elif said is not None:
                _end(said)
            if time.monotonic() >= next_look:
                next_look = self._look(watch)

    def _hear(self, until: float) -> Probe | threading.Event | bool | None:
        """What it is told next; None if nothing is until it is time to look again."""
        timeout = None if until == _FOR_EVER else max(0, until - time.monotonic())
        try:
            return self.told.get(timeout=timeout)
        except Empty:
            return None

    def _look(self, watch: Watch) -> float:
        # Before the look: a session that is opened meanwhile is to wake it again.
        self.is_asleep = True
        seconds = watch.look()
        if seconds is None:
            return _FOR_EVER
        self.is_asleep = False
        return time.monotonic() + seconds


_RUNNING: Final[list[_Thread]] = []


def collected(ref: Any) -> None:
    """The garbage collector took a session: leave the rest to the thread."""
    probe: Probe = ref.probe
    if LIVE.pop(probe, None) is not None:
        try:
            probe.origin.left("collected", probe.clock(), probe.last_site)
        except Exception as error:
            probe.failed("live", error)
        for thread in _RUNNING:
            thread.told.put(probe)


def nudge() -> None:
    """A session was opened: there is something to watch again."""
    for thread in _RUNNING:
        if thread.is_asleep:
            thread.is_asleep = False
            thread.told.put(True)


def start() -> None:
    """Have the thread run."""
    if not _RUNNING or not _RUNNING[0].is_alive():
        _RUNNING[:] = [_Thread()]
        _RUNNING[0].start()
        if LIVE:
            nudge()


def stop(timeout: float = 2.0) -> None:
    """Tell of what was lost so far, and end the thread."""
    if _RUNNING:
        thread = _RUNNING.pop()
        thread.told.put(False)
        if thread is not threading.current_thread():
            thread.join(timeout)


def settle(timeout: float = 2.0) -> None:
    """Wait until every session lost so far has been told of."""
    for thread in _RUNNING:
        if thread.is_alive() and thread is not threading.current_thread():
            told = threading.Event()
            thread.told.put(told)
            told.wait(timeout)


def at_exit() -> None:
    """Tell of what was lost, and of what is still open as the process ends."""
    stop(_EXIT_SECONDS)
    live.end_all()


def _end(lost: Probe) -> None:
    try:
        lost.end_scope("collected", site=lost.last_site)
    except Exception as error:
        lost.failed("live", error)


def _after_fork() -> None:
    """A child watches its own sessions only, with a thread of its own."""
    live.forget()
    if _RUNNING:
        _RUNNING.clear()
        start()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)

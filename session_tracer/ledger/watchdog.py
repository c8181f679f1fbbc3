"""The process's one thread, which reports the passing of time and lost sessions."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from session_tracer import facts
from session_tracer.ledger import registry, same_owner
from session_tracer.ledger.ledger import ASLEEP, on_lost
from session_tracer.ledger.owner_state import is_ending
from session_tracer.ledger.registry import LIVE
from session_tracer.runtime import process
from session_tracer.runtime.background_queue import BackgroundQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from session_tracer.ledger.ledger import Ledger
    from session_tracer.ledger.report import Report

__all__ = ["Watch", "at_end", "collected", "settle", "start", "stop"]

# The least between two looks, in nanoseconds, and as a multiple of what the last one took: with ten
# thousand sessions open, a look takes milliseconds, and the watch may have a hundredth of a core.
_LEAST_GAP: Final = 50_000_000
_GAP_PER_LOOK: Final = 100


class Watch:
    """Publishes `TimePassed` for the scopes for which it is time.

    `gap` is the least time, in seconds, between the last look and the next.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._last = 0
        self.gap = _LEAST_GAP / 1e9

    def look(self) -> float | None:
        """Return the seconds until the next look, or None if no session has to be looked at.

        A scope gets the fact as each of its time thresholds passes (leak, inactivity, long
        transaction, idle connection), and again every `leak_after_seconds` from then on.
        """
        now, last = self._clock(), self._last
        soonest: int | None = None
        for ledger in list(LIVE):
            try:
                for report in ledger.reports:
                    if report.tracer.watches:
                        due = _due(report, last, now)
                        soonest = due if soonest is None else min(soonest, due)
            except Exception as error:
                ledger.failed("watch", error)
        self._last = now
        gap = max(_LEAST_GAP, _GAP_PER_LOOK * (self._clock() - now))
        self.gap = gap / 1e9
        return None if soonest is None else max(soonest - now, gap) / 1e9


def _due(report: Report, last: int, now: int) -> int:
    """When the report is to be looked at next; what has passed since the last look is judged."""
    ledger, patience = report.ledger, report.tracer.patience
    # A transaction that begins right now is the next to run out of time.
    due = now + min(patience)
    if ledger.is_used:
        passed = False
        for moment in _moments(report, patience, now):
            if moment >= now:
                due = min(due, moment)
            elif moment >= last:
                passed = True
        if passed and ledger in LIVE:  # it may have ended since the look began
            running = ledger.at_work is not None or ledger.is_streaming or is_ending(ledger)
            fact = facts.TimePassed(now, running, lambda: registry.look(report))
            if report.publisher is not None:
                report.publisher.publish(fact)
            report.judge(fact)
            for suspicion in report.suspicions:
                suspicion.advance(now)
    return due


def _moments(report: Report, patience: tuple[int, int, int], now: int) -> Iterator[int]:
    """When each threshold passes, or passed: for the leak, the last time before and the next."""
    ledger, (leak, long, idle) = report.ledger, patience
    times = max(1, (now - ledger.opened_at - 1) // leak)
    yield ledger.opened_at + times * leak
    yield ledger.opened_at + (times + 1) * leak
    yield ledger.last_activity_at + leak
    if ledger.transaction_began_at:
        yield ledger.transaction_began_at + long
    for suspicion in report.suspicions:
        yield suspicion.due_at
    if ledger.held_since:
        yield max(ledger.held_since, ledger.last_statement_at) + idle


_FOR_EVER: Final = float("inf")
# How long the end of the process waits until the sessions lost before are reported.
_EXIT_SECONDS: Final = 1.0


class _Thread:
    """The thread of this process: it looks when it is time, and reports sessions that are lost."""

    def __init__(self) -> None:
        self._watch = Watch()
        self._next_look = _FOR_EVER
        self._is_in_use = False
        # Filled from garbage collection, which may strike while any lock is held: put() takes none.
        self.queue: BackgroundQueue[Ledger | None] = BackgroundQueue(
            self._consume,
            name="session_tracer",
            most=sys.maxsize,
            settle=self._look_if_due,
            stage=None,
        )

    def wake(self) -> None:
        """A session was opened: there is something to watch again."""
        ASLEEP.clear()
        if not self._is_in_use:
            self._is_in_use = True
            process.began_work()
        self.queue.put(None)

    def begin_in_child(self) -> None:
        """A child watches its own sessions only, from its first one on."""
        self._next_look = _FOR_EVER
        self._is_in_use = False
        ASLEEP[:] = [self.wake]

    def _consume(self, lost: Ledger | None) -> None:
        if lost is not None:
            _end(lost)
        elif self._next_look == _FOR_EVER:
            # Nothing is due as soon as a session is opened, and many may be.
            self._next_look = time.monotonic() + self._watch.gap

    def _look_if_due(self, _everything: bool) -> float | None:
        if time.monotonic() >= self._next_look:
            # Before the look: a session that is opened meanwhile has to wake it again.
            ASLEEP[:] = [self.wake]
            seconds = self._watch.look()
            self._next_look = _FOR_EVER
            if seconds is not None:
                ASLEEP.clear()
                self._next_look = time.monotonic() + seconds
        if self._next_look == _FOR_EVER:
            return None
        return max(0.0, self._next_look - time.monotonic())


_RUNNING: Final[list[_Thread]] = []


def collected(ledger: Ledger) -> None:
    """The garbage collector took a session: leave the rest to the thread."""
    for thread in _RUNNING:
        thread.queue.put(ledger)


def start() -> None:
    """Watch from the next session on, or at once if one is open."""
    if not _RUNNING:
        thread = _Thread()
        _RUNNING[:] = [thread]
        ASLEEP[:] = [thread.wake]
        if LIVE:
            thread.wake()


def stop(timeout: float = 2.0) -> None:
    """Report what was lost so far, and end the thread."""
    if _RUNNING:
        ASLEEP.clear()
        _RUNNING.pop().queue.close(timeout)


def settle(timeout: float = 2.0) -> None:
    """Wait until every session lost so far has been reported."""
    for thread in _RUNNING:
        thread.queue.flush(timeout)


def at_end() -> None:
    """Report what was lost, and what is still open as the process ends."""
    stop(_EXIT_SECONDS)
    registry.end_all()


def _end(lost: Ledger) -> None:
    try:
        lost.end("collected", (lost.last_site, "", False))
    except Exception as error:
        lost.failed("live", error)


def _begin_in_child() -> None:
    # What the parent has open is not the child's own.
    LIVE.clear()
    same_owner.forget()
    for thread in _RUNNING:
        thread.begin_in_child()


process.in_child(_begin_in_child)
on_lost(collected)

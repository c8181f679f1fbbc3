"""The threads that report the passing of time and lost sessions."""

from __future__ import annotations

import sys
import time
import weakref
from collections import defaultdict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from session_tracer import facts
from session_tracer.ledger import registry, same_owner
from session_tracer.ledger.guard import reporting
from session_tracer.ledger.ledger import ASLEEP, on_lost
from session_tracer.ledger.owner_state import is_ending
from session_tracer.ledger.registry import LIVE
from session_tracer.runtime import process
from session_tracer.runtime.background_queue import BackgroundQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.ledger.ledger import Ledger
    from session_tracer.ledger.report import Report
    from session_tracer.where.owner import Owner

__all__ = ["Watch", "at_end", "collected", "settle", "start", "stop"]

# The least between two looks, in nanoseconds.
_LEAST_GAP: Final = 50_000_000
# And the most: what is found later than this after its threshold is late.
_MOST_GAP: Final = 500_000_000
# Looks may use a hundredth of a core, and what they have not used of five seconds at once.
_SHARE: Final = 100
_MOST_SAVED: Final = 50_000_000
_NEVER: Final = sys.maxsize


class _Watched:
    """A scope, which must not be kept alive, and when to look at it, in nanoseconds."""

    __slots__ = ("due", "id", "ledger")

    def __init__(self, ledger: Ledger) -> None:
        self.due = 0
        self.id = ledger.id
        self.ledger = weakref.ref(ledger)


class _Slots:
    """What is watched, by slots of the time when to look at it."""

    def __init__(self) -> None:
        self.slots: defaultdict[int, list[_Watched]] = defaultdict(list)
        # The ids of these scopes.
        self._known: set[str] = set()

    def put(self, one: _Watched) -> None:
        """Keep it until it is due, or forget it if it never is."""
        if one.due == _NEVER:
            self._known.discard(one.id)
        else:
            self.slots[one.due // _LEAST_GAP].append(one)

    def came(self) -> list[_Watched]:
        """The scopes that were opened since the last look: they are the last of all."""
        came: list[_Watched] = []
        with suppress(RuntimeError):  # one is opened or ends now: the next look has the others
            for ledger in reversed(LIVE):
                if ledger.id in self._known:
                    break
                came.append(_Watched(ledger))
        self._known.update(one.id for one in came)
        return came[::-1]

    def ready(self, now: int) -> list[_Watched]:
        """The scopes whose slots have come, taken; the time of some may come a little later."""
        slots = [slot for slot in self.slots if slot * _LEAST_GAP <= now]
        return [one for slot in slots for one in self.slots.pop(slot)]

    def soonest(self) -> int:
        """When the first of them is due."""
        return min(one.due for one in self.slots[min(self.slots)])


class Watch:
    """Publishes `TimePassed` for the scopes for which it is time.

    A scope is looked at only if one of its thresholds may have passed: ten thousand open sessions
    cost no more than the looks at each of them once in the shortest threshold.

    `gap` is the least time, in seconds, between the last look and the next.

    Args:
        clock: The time in nanoseconds, as the tracers have it.
        cpu: The CPU time of this thread in nanoseconds. Where other threads are busy, a look
            takes long and costs no more.
    """

    def __init__(
        self,
        clock: Callable[[], int] = time.perf_counter_ns,
        cpu: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self._clock = clock
        self._cpu = cpu
        self._last = 0
        self._saved = _MOST_SAVED
        self._shortest = _NEVER
        self._watched = _Slots()
        self.gap = _LEAST_GAP / 1e9

    def begin_anew(self, shortest: int = _NEVER) -> None:
        """Look at every scope, and then at least as often as the shortest threshold passes."""
        self._shortest = shortest
        self._watched = _Slots()  # a look that is going on has the old ones

    def look(self) -> float | None:
        """Return the seconds until the next look, or None if no session has to be looked at.

        A scope gets the fact as each of its time thresholds passes (leak, inactivity, long
        transaction, idle connection), again every `leak_after_seconds` from then on, and as it is
        time to report that a finding still holds.
        """
        now, used = self._clock(), self._cpu()
        passed: list[Report] = []
        # Not before all are taken: the next time of one may be this very moment.
        watched = self._watched
        for one in [*watched.came(), *watched.ready(now)]:
            if one.due <= now:
                one.due = self._next(one, now, passed)
            watched.put(one)
        self._last, last = now, self._last
        self._saved = min(self._saved + (now - last) // _SHARE, _MOST_SAVED)
        self._saved -= self._cpu() - used
        # What is to be reported is not counted: it is most when it is needed most.
        at_end: dict[tuple[Owner, int], bool] = {}
        for report in passed:
            _judge(report, now, at_end)
        gap = min(max(_LEAST_GAP, -self._saved * _SHARE), _MOST_GAP)
        self.gap = gap / 1e9
        if not (watched.slots and LIVE):
            return None
        return max(min(watched.soonest() - now, self._shortest), gap) / 1e9

    def _next(self, one: _Watched, now: int, passed: list[Report]) -> int:
        """When to look at the scope next; its reports of which a threshold has passed are added."""
        ledger, soonest = one.ledger(), _NEVER
        if ledger is None or ledger not in LIVE:
            return soonest
        try:
            for report in ledger.reports:
                if report.tracer.watches:
                    due = _due(report, self._last, now, passed)
                    if due < soonest:
                        soonest = due
        except Exception as error:
            ledger.failed("watch", error)
        return soonest


def _due(report: Report, last: int, now: int, passed: list[Report]) -> int:
    """When to look at the report next; it is added if a threshold has passed since `last`."""
    ledger, (leak, long, idle) = report.ledger, report.tracer.patience
    # A transaction that begins right now is the next to run out of time.
    due = now + (idle if idle < long else long)
    if leak < due - now:
        due = now + leak
    if not ledger.is_used:
        return due
    opened_at = ledger.opened_at
    if now - opened_at < leak and not report.suspicions:
        # Nothing can have leaked. Most of ten thousand open sessions end here.
        if opened_at + leak < due:
            due = opened_at + leak
        if not ledger.transactions_open:
            return due
        moments = []
    else:
        # Of the leak, the last time before and the next.
        leaked = opened_at + max(1, (now - opened_at - 1) // leak) * leak
        moments = [leaked, leaked + leak, ledger.last_activity_at + leak]
        moments += [suspicion.due_at for suspicion in report.suspicions]
    if ledger.transactions_open and (began_at := ledger.transaction_began_at):
        moments.append(began_at + long)
    if ledger.connections and (held_since := ledger.held_since):
        moments.append(max(held_since, ledger.last_statement_at) + idle)
    has_passed = False
    for moment in moments:
        if moment >= now:
            if moment < due:
                due = moment
        elif moment >= last:
            has_passed = True
    if has_passed:
        passed.append(report)
    return due


def _judge(report: Report, now: int, at_end: dict[tuple[Owner, int], bool]) -> None:
    """Report that time has passed; which owners end a transaction is found once for each look."""
    ledger = report.ledger
    if ledger not in LIVE:
        return  # it has ended since the look began
    try:
        running = ledger.at_work is not None or ledger.is_streaming
        if not running:
            key = ledger.owner, id(ledger.locator)
            if key not in at_end:
                at_end[key] = is_ending(ledger)
            running = at_end[key]
        fact = facts.TimePassed(now, running, lambda: registry.look(report))
        report.publish(fact)
        report.judge(fact)
        for suspicion in report.suspicions:
            suspicion.advance(now)
    except Exception as error:
        ledger.failed("watch", error)


_FOR_EVER: Final = float("inf")
# How long the end of the process waits until the sessions lost before are reported.
_EXIT_SECONDS: Final = 1.0


class _Threads:
    """The two threads of this process: one looks when it is time, the other one reports.

    A log may take its time, and an exporter of the application's may wait for something: the watch
    must not. What it concludes is handed to the other thread, which reports lost sessions as well.
    """

    def __init__(self) -> None:
        self._watch = Watch()
        self._next_look = _FOR_EVER
        self._is_in_use = False
        self.looks: BackgroundQueue[None] = BackgroundQueue(
            self._woken, name="session_tracer", settle=self._look_if_due, stage=None
        )
        # Filled from garbage collection, which may strike while any lock is held: put() takes none.
        self.reports: BackgroundQueue[Callable[[], None]] = BackgroundQueue(
            _call, name="session_tracer-reports", most=sys.maxsize, stage=None
        )

    def wake(self) -> None:
        """A session was opened: there is something to watch again."""
        ASLEEP.clear()
        if not self._is_in_use:
            self._is_in_use = True
            process.began_work()
        self.looks.put(None)

    def look_anew(self, shortest: int) -> None:
        """What is watched, or for how long, has changed."""
        self._watch.begin_anew(shortest)
        if self._is_in_use:
            self.looks.put(None)

    def begin_in_child(self) -> None:
        """A child watches its own sessions only, from its first one on."""
        self._next_look = _FOR_EVER
        self._is_in_use = False
        ASLEEP[:] = [self.wake]

    def flush(self, timeout: float) -> None:
        """Wait until what is due by now is reported."""
        self.looks.flush(timeout)
        self.reports.flush(timeout)

    def close(self, timeout: float) -> None:
        """End both threads, the one that reports last."""
        self.looks.close(timeout)
        self.reports.close(timeout)

    def _woken(self, _: None) -> None:
        # Nothing is due as soon as a session is opened, and many may be.
        self._next_look = min(self._next_look, time.monotonic() + self._watch.gap)

    def _look_if_due(self, _everything: bool) -> float | None:
        if time.monotonic() >= self._next_look:
            # Before the look: a session that is opened meanwhile has to wake it again.
            ASLEEP[:] = [self.wake]
            reporting.later = self.reports.put
            try:
                seconds = self._watch.look()
            finally:
                reporting.later = None
            self._next_look = _FOR_EVER
            if seconds is not None:
                ASLEEP.clear()
                self._next_look = time.monotonic() + seconds
        if self._next_look == _FOR_EVER:
            return None
        return max(0.0, self._next_look - time.monotonic())


def _call(report: Callable[[], None]) -> None:
    report()


_RUNNING: Final[list[_Threads]] = []


def collected(ledger: Ledger) -> None:
    """The garbage collector took a session: leave the rest to the thread."""
    for threads in _RUNNING:
        threads.reports.put(partial(_end, ledger))


def start(shortest: int = _NEVER) -> None:
    """Watch from the next session on, or at once if one is open.

    Args:
        shortest: The shortest threshold of all tracers, in nanoseconds.
    """
    if not _RUNNING:
        _RUNNING[:] = [_Threads()]
        ASLEEP[:] = [_RUNNING[0].wake]
        if LIVE:
            _RUNNING[0].wake()
    _RUNNING[0].look_anew(shortest)


def stop(timeout: float = 2.0) -> None:
    """Report what was lost so far, and end the threads."""
    if _RUNNING:
        ASLEEP.clear()
        _RUNNING.pop().close(timeout)


def settle(timeout: float = 2.0) -> None:
    """Wait until every session lost so far has been reported, and what the watch has found."""
    for threads in _RUNNING:
        threads.flush(timeout)


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
    for threads in _RUNNING:
        threads.begin_in_child()


process.in_child(_begin_in_child)
on_lost(collected)

"""Holds repeated log events back, and logs what was held back when its period ends."""

from __future__ import annotations

import time
from collections import OrderedDict
from itertools import compress
from typing import TYPE_CHECKING, Any, Final

from session_tracer.ledger.guard import aside
from session_tracer.runtime import process, threads
from session_tracer.runtime.background_queue import BackgroundQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

__all__ = ["Held", "Limiter"]

_MOST_KEYS: Final = 1_000
# Of one key, before they are added up.
_MOST_ROWS: Final = 16


class Held:
    """The events of one key that were held back in one period.

    Attributes:
        count: Number of events.
        latest: What the latest event was about, as the code that logs it knows it.
    """

    __slots__ = ("_keys", "_rows", "count", "latest")

    def __init__(self) -> None:
        self.count = 0
        self.latest: Any = None
        self._keys: Sequence[str] = ()
        # The latest events' numbers: many are added up together in a fraction of the time.
        self._rows: list[tuple[float, ...]] = []

    def add(self, latest: Any, keys: Sequence[str], numbers: tuple[float, ...]) -> None:
        """Add one event and its numbers, of which each has a log key."""
        self.count += 1
        self.latest = latest
        self._keys = keys
        self._rows.append(numbers)
        if len(self._rows) > _MOST_ROWS:
            self._rows = [self._added_up()]

    @property
    def sums(self) -> dict[str, float]:
        """The sums of the events' numbers that are not zero, by log key."""
        sums = self._added_up()
        return dict(compress(zip(self._keys, sums, strict=True), sums))

    def _added_up(self) -> tuple[float, ...]:
        return tuple(map(sum, zip(*self._rows, strict=True)))


class _Period:
    """How long a key's events are held back, and what was held back so far."""

    __slots__ = ("held", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.held = Held()


class Limiter:
    """Lets one event of a key through in each period, and holds the others back.

    Whatever is held back is logged when the period ends, at `flush()`, and at the end of the
    process, even if no other event of the key follows. A forked child begins with nothing held
    back: what the parent holds back, the parent logs.

    Args:
        seconds: The length of a period.
        log: Called with what was held back, in any thread. It must not raise.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        seconds: float,
        log: Callable[[Held], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._log = log
        self._clock = clock
        self._closed = False
        self._periods: process.PerProcess[OrderedDict[Hashable, _Period]]
        self._periods = process.PerProcess(OrderedDict)

    def hold(
        self,
        key: Hashable,
        latest: Any,
        keys: Sequence[str] = (),
        numbers: tuple[float, ...] = (),
    ) -> bool:
        """Hold an event back if one of its key was logged in this period.

        Args:
            key: What makes events repeats of each other.
            latest: What is kept of the event until the next one.
            keys: The log keys of the numbers, which are the same for each event of the key.
            numbers: The event's numbers, which are summed up.

        Returns:
            False if the event has to be logged now.
        """
        if self._closed:
            return False
        now = self._clock()
        ended: list[Held] = []
        held = None
        with _LOCK.value:  # a thread may take over between reading and writing
            periods = self._periods.value
            period = periods.get(key)
            if period is not None and now >= period.until:
                period = self._next(key, period, now, ended)
            if period is None:
                periods[key] = _Period(now + self._seconds)
                if len(periods) > _MOST_KEYS:
                    _, oldest = periods.popitem(last=False)
                    ended.append(oldest.held)
            else:
                held = period.held
                held.add(latest, keys, numbers)
        if held is not None and held.count == 1:
            _TIMER.watch(self)
        self._log_all(ended)
        return held is not None

    def flush(self) -> None:
        """Log everything that is held back now."""
        ended = []
        with _LOCK.value:
            for period in self._periods.value.values():
                ended.append(period.held)
                period.held = Held()
        self._log_all(ended)

    def close(self) -> None:
        """Log everything that is held back, and hold nothing back any more."""
        self._closed = True
        self.flush()
        _TIMER.leave(self)

    def settle(self) -> float | None:
        """Log what was held back in periods that have ended.

        Returns:
            The seconds until the next period ends, or None if nothing is held back.
        """
        now = self._clock()
        ended: list[Held] = []
        with _LOCK.value:
            periods = self._periods.value
            for key, period in list(periods.items()):
                if now >= period.until:
                    self._next(key, period, now, ended)
            waiting = [one.until for one in periods.values() if one.held.count]
        self._log_all(ended)
        return max(0.0, min(waiting) - self._clock()) if waiting else None

    def _next(
        self, key: Hashable, period: _Period, now: float, ended: list[Held]
    ) -> _Period | None:
        """End a period; another one begins only if something was held back, and so logged."""
        periods = self._periods.value
        del periods[key]
        if not period.held.count:
            return None
        ended.append(period.held)
        following = periods[key] = _Period(now + self._seconds)
        return following

    def _log_all(self, ended: Iterable[Held]) -> None:
        for held in ended:
            if held.count:
                with aside():
                    self._log(held)


class _Timer:
    """The thread that logs what was held back as its period ends; it exists while one runs."""

    def __init__(self) -> None:
        self._limiters: list[Limiter] = []
        self._queue: BackgroundQueue[Limiter] | None = None

    def watch(self, limiter: Limiter) -> None:
        """The limiter began to hold something back."""
        with _LOCK.value:
            if limiter not in self._limiters:
                self._limiters.append(limiter)
            if self._queue is None:
                self._queue = BackgroundQueue(
                    _ignore,
                    name="session_tracer-repeats",
                    settle=self._settle,
                    stage=process.HELD_BACK,
                )
            queue = self._queue
        queue.put(limiter)

    def leave(self, limiter: Limiter) -> None:
        """The limiter is used no more. The thread ends with the last one."""
        with _LOCK.value:
            if limiter in self._limiters:
                self._limiters.remove(limiter)
            if self._limiters or self._queue is None:
                return
            queue, self._queue = self._queue, None
        queue.close()

    def _settle(self, everything: bool) -> float | None:
        soonest: float | None = None
        for limiter in tuple(self._limiters):
            if everything:
                limiter.flush()
            seconds = limiter.settle()
            if seconds is not None:
                soonest = seconds if soonest is None else min(soonest, seconds)
        return soonest


def _ignore(_limiter: Limiter) -> None:
    """Nothing has to be done with it: that something is held back woke the thread."""


# Reentrant: the garbage collector may close a session anywhere.
_LOCK: Final = process.PerProcess(threads.RLock)
_TIMER: Final = _Timer()

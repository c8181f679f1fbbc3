"""How long the works of the application take, by the state of the collector."""

from __future__ import annotations

import threading
import time
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Window:
    """The works that began and ended while the collector was in one state."""

    state: str
    count: int
    p50: float
    p99: float


class Latency:
    """The durations of each window, as a few figures, so that memory does not grow."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self._state = ""
        self._taken = array("d")
        self._lock = threading.Lock()

    @contextmanager
    def measured(self, steady: bool) -> Iterator[None]:
        """Time the block, if the work is a steady one."""
        taken, since = self._taken, time.perf_counter()
        yield
        if steady:
            seconds = time.perf_counter() - since
            with self._lock:
                if taken is self._taken:
                    taken.append(seconds)

    def begin(self, state: str) -> None:
        """Begin a window, and store the figures of the last one."""
        with self._lock:
            state, self._state = self._state, state
            taken, self._taken = sorted(self._taken), array("d")
        if state and taken:
            self.windows.append(
                Window(state, len(taken), quantile(taken, 0.5), quantile(taken, 0.99))
            )

    def last(self, state: str) -> Window | None:
        return next((one for one in reversed(self.windows) if one.state == state), None)

    def ratios(self, state: str, figure: str, against: str = "well") -> list[float]:
        """The ratio of each window of the state to the mean of the windows before and after it."""
        found = []
        for index, window in enumerate(self.windows):
            if window.state == state:
                before = [one for one in self.windows[:index] if one.state == against][-1:]
                after = [one for one in self.windows[index:] if one.state == against][:1]
                beside = [getattr(one, figure) for one in before + after]
                if beside:
                    found.append(getattr(window, figure) * len(beside) / sum(beside))
        return found


def surely_above(ratios: list[float]) -> float:
    """The lower limit of their median with 95 % confidence (sign test); 0 if there are too few.

    On a machine with other work each window has its own luck; what is really slower is slower in
    nearly all of them.
    """
    outside, index = 0, -1
    while outside + comb(len(ratios), index + 1) <= 2 ** len(ratios) * 0.05:
        index += 1
        outside += comb(len(ratios), index)
    return sorted(ratios)[index] if index >= 0 else 0.0


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

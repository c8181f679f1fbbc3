"""What the process uses at one moment: memory, threads, and objects of session_tracer."""

from __future__ import annotations

import gc
import itertools
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from session_tracer import live_sessions

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Pulse:
    """`minutes` since the beginning; `native` are all threads of the operating system."""

    minutes: float
    works: int
    rss_mib: float
    threads: int
    native: int
    objects: int
    live: int


def feel(minutes: float, works: int) -> Pulse:
    gc.collect()
    return Pulse(
        minutes=minutes,
        works=works,
        rss_mib=_rss_mib(),
        threads=threading.active_count(),
        native=len(os.listdir("/proc/self/task")),
        objects=sum(1 for one in gc.get_objects() if _is_own(type(one))),
        live=len(live_sessions()),
    )


def _is_own(kind: type) -> bool:
    return str(kind.__dict__.get("__module__", "")).startswith("session_tracer")


def _rss_mib() -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def growth(pulses: Sequence[Pulse], figure: str) -> float:
    """The growth of a figure per minute: the median slope between any two (Theil-Sen)."""
    slopes = [
        (getattr(later, figure) - getattr(earlier, figure)) / (later.minutes - earlier.minutes)
        for earlier, later in itertools.combinations(pulses, 2)
    ]
    return median(slopes) if slopes else 0.0

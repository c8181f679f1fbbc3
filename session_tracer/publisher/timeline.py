"""The steps of a session in the order they happened, folded and bounded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.facts import Counts
    from session_tracer.where.callsite import CallSite

__all__ = ["NOTHING", "NO_TIMELINE", "Step", "Timeline", "add_counts", "with_counts"]

# A loop's body often takes turns (a lazy load, then a select): how far back a repeat is looked for.
_FOLD_ACROSS: Final = 4


@dataclass(slots=True)
class Step:
    """One line of a timeline: what was done `count` times in a row from one site.

    `at` is nanoseconds since the session opened, `duration` nanoseconds over all its repeats. The
    counts by entity say what was loaded and what was written.
    """

    at: int
    verb: str
    subject: str
    site: CallSite | None
    count: int = 1
    duration: int = 0
    error: str = ""
    loaded: Counts = field(default_factory=dict)
    new: Counts = field(default_factory=dict)
    dirty: Counts = field(default_factory=dict)
    unchanged: Counts = field(default_factory=dict)
    deleted: Counts = field(default_factory=dict)


class Timeline:
    """The first and the last steps of a session; `left_out` counts those between."""

    __slots__ = ("_first", "_last", "_most_first", "left_out")

    def __init__(self, most: int) -> None:
        self._most_first = most - most // 2
        self._first: list[Step] = []
        self._last: deque[Step] = deque(maxlen=most // 2)
        self.left_out = 0

    def __iter__(self) -> Iterator[Step]:
        yield from self._first
        yield from self._last

    def __len__(self) -> int:
        return len(self._first) + len(self._last)

    def _backwards(self) -> Iterator[Step]:
        yield from reversed(self._last)
        if not self.left_out:
            yield from reversed(self._first)

    def add(
        self, at: int, verb: str, subject: str, site: CallSite | None, *, fold: bool = True
    ) -> Step:
        """A new step, or the recent one that this repeats."""
        if fold:
            for step in islice(self._backwards(), _FOLD_ACROSS):
                if step.verb == verb and step.subject == subject and step.site == site:
                    step.count += 1
                    return step
                if step.verb in _BOUNDARIES:
                    break
        step = Step(at, verb, subject, site)
        if len(self._first) < self._most_first:
            self._first.append(step)
            return step
        if len(self._last) == self._last.maxlen:
            self.left_out += 1
        self._last.append(step)
        return step


# Keeps no steps, where nobody reads them.
NO_TIMELINE: Final = Timeline(0)

# What a repeat is never looked for across: two loops of two transactions are two stories.
_BOUNDARIES: Final = frozenset({"begin", "commit", "rollback"})


# Where nothing was counted yet: most of a session's counts are never needed. Never added to.
NOTHING: Final[Counts] = {}


def with_counts(total: Counts, more: Counts) -> Counts:
    """`total` with `more` added to it, entity by entity; `NOTHING` is not changed but replaced."""
    if not more:
        return total
    if not total:
        return dict(more)
    add_counts(total, more)
    return total


def add_counts(total: Counts, more: Counts) -> None:
    """Add `more` to `total`, entity by entity."""
    for entity, count in more.items():
        total[entity] = total.get(entity, 0) + count

"""The steps of a session in order, with repeats folded and a bounded length."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.facts import Counts
    from session_tracer.where.callsite import CallSite

__all__ = ["NO_TIMELINE", "Step", "Timeline"]

# A loop's body often takes turns (a lazy load, then a select): how far back a repeat is looked for.
_FOLD_ACROSS: Final = 4


@dataclass(slots=True)
class Step:
    """One line of a timeline: an operation that was done `count` times from one site.

    Attributes:
        at: Nanoseconds since the session opened.
        verb: The operation, such as `select` or `flush`.
        subject: What it was done to, such as `Author.books`.
        site: The application's line.
        count: Number of times.
        duration: Nanoseconds of all repeats.
        error: The class of the error, or an empty string.
        loaded: Number of loaded objects by mapped class. `new`, `dirty`, `unchanged` and `deleted`
            count the objects of flushes in the same way.
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
    """The first and the last steps of a session.

    Attributes:
        left_out: Number of steps between them, which are omitted.

    Args:
        most: Number of steps to keep.
    """

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
        """Add a step, or count it as a repeat of a recent one.

        Args:
            at: Nanoseconds since the session opened.
            verb: The operation.
            subject: What it is done to.
            site: The application's line.
            fold: Whether it may be a repeat.

        Returns:
            The new step, or the one that it repeats.
        """
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


# Keeps no steps: no code reads them.
NO_TIMELINE: Final = Timeline(0)

# Repeats are not folded across these: loops of two transactions stay apart.
_BOUNDARIES: Final = frozenset({"begin", "commit", "rollback"})

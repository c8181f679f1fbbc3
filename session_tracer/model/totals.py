"""How often something has happened in all, and the time that it took."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Tally", "Total"]


class Tally:
    """How often something has happened at one line, and for how many nanoseconds.

    It counts from the first time on, so that a finding's total has what was before the threshold.
    """

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, ns: int) -> None:
        """Count one more."""
        self.count += 1
        self.ns += ns


class Total:
    """How often what a finding is about has happened, and the time that it took.

    It grows after the finding was reported. It is complete when the session has ended or, in the
    pytest plugin, the test.

    Attributes:
        noun: What is counted, in the singular: `SELECT`, `commit`.
    """

    __slots__ = ("_before_count", "_before_ns", "_tallies", "noun")

    def __init__(self, noun: str, *tallies: Tally) -> None:
        self.noun = noun
        self._tallies = tallies
        self._before_count = self._before_ns = 0

    def plus(self, others: Iterable[Total]) -> Total:
        """Return the sum of this one and others of the same noun, as they are now."""
        made = Total(self.noun)
        totals = (self, *others)
        made._before_count = sum(one.count for one in totals)
        made._before_ns = sum(one._ns for one in totals)
        return made

    def follow(self, tally: Tally) -> None:
        """Count on with another tally; what was counted so far stays."""
        if tally in self._tallies:
            return
        self._before_count, self._before_ns = self.count, self._ns
        self._tallies = (tally,)

    @property
    def count(self) -> int:
        """Number of times."""
        return self._before_count + sum(tally.count for tally in self._tallies)

    @property
    def ms(self) -> float:
        """Milliseconds that they took, rounded to 0.001."""
        return round(self._ns / 1e6, 3)

    @property
    def _ns(self) -> int:
        return self._before_ns + sum(tally.ns for tally in self._tallies)

    def __repr__(self) -> str:
        return f"Total({self.count} {self.noun}, {self.ms} ms)"

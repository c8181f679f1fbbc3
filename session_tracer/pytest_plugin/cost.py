"""What a finding cost in one test: how often it happened, and how long that took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from session_tracer.exporters.wording import total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_tracer.model.findings import Finding

__all__ = ["NOTHING", "Cost"]


class Cost(NamedTuple):
    """How often something happened in a test, how long that took, and how long the test took.

    The greater of two is the one that took longer. `noun` is what is counted; it is empty for what
    does not repeat, and then there are no times.
    """

    ms: float = 0.0
    number: int = 0
    of_ms: float = 0.0
    noun: str = ""

    @classmethod
    def of(cls, findings: Sequence[Finding], of_ms: float = 0.0) -> Cost:
        """Return what equal findings, of several sessions of a test, cost together."""
        totals = [one.total for one in findings if one.total is not None]
        if not totals:
            return cls(number=max(one.count for one in findings))
        ms, number = sum(one.ms for one in totals), sum(one.count for one in totals)
        return cls(round(ms, 3), number, round(of_ms, 3), totals[0].noun)

    def __str__(self) -> str:
        """Return `500 SELECTs, 812 ms of 1.10 s`."""
        return total(self.number, self.noun, self.ms, self.of_ms)


NOTHING: Final = Cost()

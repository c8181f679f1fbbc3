"""Whether a loop runs SELECTs that one SELECT before it can replace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.wording import elsewhere
from session_tracer.where.iteration import goes_over_chunks, goes_turn_by_turn

if TYPE_CHECKING:
    from session_tracer.ledger.loads import Passed
    from session_tracer.ledger.report import Report
    from session_tracer.where.callsite import CallSite

__all__ = ["Due", "goes_in_chunks", "tree", "walks"]

# If no loop is seen, the number has to be at least this one.
_ENOUGH_WITHOUT_LOOP: Final = 10
# The frames at work are noted one SELECT before the next judgement, and not in the one before.
_LEAST_STEP: Final = 2


class Due:
    """At which number of different SELECTs a line is judged, and what was at work one before."""

    __slots__ = ("_number", "passed")

    def __init__(self) -> None:
        self._number = 0
        self.passed: Passed = {}

    def is_reached(
        self, number: int, enough: int, report: Report, *, is_behind: bool = False
    ) -> bool:
        """Return whether that number has been reached, in a loop of the application's.

        If it `is_behind`, the number after 1 may be any.

        Calls that follow one another are no loop, and what one call of a library does in a loop the
        application cannot change. There may be a loop later.
        """
        due = self._number = max(self._number, enough)
        locator, opened = report.ledger.locator, report.ledger.opened_site
        if number == due - 1 or (is_behind and number == 1):
            self.passed = locator.passed()
        if number < due:
            return False
        # What ran before the loop does not count for it.
        self._number = number + max(enough - 1, _LEAST_STEP)
        if self._number >= _ENOUGH_WITHOUT_LOOP - 1:
            self._number = _ENOUGH_WITHOUT_LOOP if number < _ENOUGH_WITHOUT_LOOP else 2 * number
        is_loop = locator.is_repeated(self.passed, opened)
        if is_loop is None:
            return number >= _ENOUGH_WITHOUT_LOOP or report.ledger.waiting_loop is not None
        return is_loop and not locator.is_of_library(self.passed, opened)


def goes_in_chunks(passed: Passed, report: Report) -> bool:
    """Return whether a list of one is a chunk of a longer one, or was read by the turn before."""
    loop = report.ledger.locator.loop(passed, report.ledger.opened_site)
    return loop is not None and (goes_over_chunks(loop) or goes_turn_by_turn(loop))


def tree(entity: str, loop: CallSite | None, site: CallSite | None) -> str:
    """Return how a whole tree is read at once."""
    one = f"select({entity}).where(...).cte(recursive=True)"
    instead = elsewhere(loop, site, " # in place of the loop at")
    return f"read the whole tree with one recursive CTE: {one}{instead}"


def walks(passed: Passed, report: Report) -> bool:
    """Return whether the keys of the next turn are known only then, such as in a walk of a tree."""
    locator = report.ledger.locator
    loop: CallSite | None = locator.loop(passed, report.ledger.opened_site)
    return loop is not None and (goes_turn_by_turn(loop) or locator.is_recursive(loop))

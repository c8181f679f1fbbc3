"""Counts the sessions that one line opens one after the other, to find the loop that opens them.

Process-wide: what counts is how many sessions there are, and each has a ledger of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from session_tracer.ledger.use import NO_OWNER

if TYPE_CHECKING:
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.ledger.loads import Passed
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

__all__ = ["RUNS", "OpenedInLoop", "Run", "begin", "forget", "reached", "run_of"]

_MOST_LINES: Final = 1_000
# A web server's sessions are opened by no loop: it is looked for more and more rarely.
_MOST_WINDOWS: Final = 16
# Sessions that are further apart on the average wait for something: work, or the next poll.
_MOST_APART: Final = 1_000_000_000


class OpenedInLoop(NamedTuple):
    """A loop has opened at least this number of sessions. `passed` was at work at the first."""

    sessions: int
    loop: CallSite
    passed: Passed


class Run:
    """The sessions of one line since the loop was looked for. Of each, only its number is kept."""

    __slots__ = ("began_at", "due", "found", "left", "owner", "passed", "site")

    def __init__(self, site: CallSite) -> None:
        self.site = site
        # The loop that was found last, by the ids of its frame and of its code.
        self.found = (0, 0)
        # The loop is looked for after this number of sessions, of which some are left.
        self.due = self.left = 0
        self.began_at = 0
        self.owner: Owner = NO_OWNER
        self.passed: Passed = {}

    def restart(self, ledger: Ledger, due: int) -> None:
        """Count from this session on."""
        self.due, self.left = due, due - 1
        self.began_at = ledger.opened_at
        self.owner = ledger.opened_by
        self.passed = ledger.locator.passed()


# By the id of the line, which is faster than the line, and the thread.
RUNS: Final[dict[tuple[int, int | None], Run]] = {}
run_of: Final = RUNS.get


def forget() -> None:
    """Begin to count anew: a test, or a new tracer, has nothing to do with what was before."""
    RUNS.clear()


def begin(ledger: Ledger, opened: CallSite | None) -> None:
    """The first session of a line is used; nothing is counted for those of no line."""
    if opened is None:
        return
    if len(RUNS) >= _MOST_LINES:
        RUNS.clear()
    run = RUNS[id(opened), ledger.opened_by.ident] = Run(opened)
    run.restart(ledger, ledger.gates.sessions)


def reached(ledger: Ledger, run: Run) -> None:
    """Enough sessions of a line were used: look for the loop that opened them."""
    least, count = ledger.gates.sessions, run.due
    opened, due = run.site, min(2 * run.due, _MOST_WINDOWS * least)
    is_one = run.owner == ledger.opened_by and opened is ledger.opened_site
    is_quick = ledger.opened_at - run.began_at < count * _MOST_APART
    found = ledger.locator.opening_loop(run.passed, opened) if is_one and is_quick else None
    if found is not None:
        loop, key = found
        due = least
        if key != run.found:
            run.found = key
            ledger.opened_in_loop = OpenedInLoop(count, loop, run.passed)
    run.restart(ledger, due)

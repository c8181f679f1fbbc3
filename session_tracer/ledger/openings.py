"""Counts the sessions that one line opens, to find the loop, or the tasks, that open them.

Process-wide: what counts is how many sessions there are, and each has a ledger of its own.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from session_tracer.facts import StatementExecuted
from session_tracer.ledger.gates import with_first_select
from session_tracer.ledger.use import NO_OWNER
from session_tracer.where.iteration import is_over_items
from session_tracer.where.requests import running_request
from session_tracer.where.tasks import current_task, suspended, waiting_for

if TYPE_CHECKING:
    import asyncio

    from sqlalchemy.orm import Session

    from session_tracer.facts import Outcome
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.ledger.loads import Passed
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

__all__ = ["RUNS", "OpenedInLoop", "Run", "begin", "forget", "reached", "run_of"]

_MOST_LINES: Final = 1_000
# A web server's sessions are opened by no loop: it is looked for more and more rarely.
_MOST_WINDOWS: Final = 16
# Those of a turn are opened by different calls. Many of them are many pieces of work.
_MOST_IN_A_TURN: Final = 3
# Sessions that are further apart on the average wait for something: work, or the next poll.
_MOST_APART: Final = 1_000_000_000


class OpenedInLoop(NamedTuple):
    """A loop has opened at least this number of sessions. `passed` was at work at the first.

    Those of `is_at_once` are opened by tasks that one line awaits, each for one SELECT.
    """

    sessions: int
    loop: CallSite
    passed: Passed
    is_at_once: bool = False


class Tasks:
    """The tasks of which each opens a session at one line, while another task waits for them.

    It holds none of them. If it waits for all at once, each has to run one SELECT for a row of its
    own: parts of a list, and different queries, may well run at the same time.
    """

    def __init__(self, run: Run, waiting: asyncio.Task[Any], future: asyncio.Future[Any]) -> None:
        self._run = run
        self._waiting = weakref.ref(waiting)
        # It awaits one task after the other, or it waits for one future until all are done.
        self._in_turn = future is current_task()
        self._future = weakref.ref(future)
        self._began_at = 0
        self._passed: Passed = {}
        # No session of a worker's: that task opens another one.
        self._owners: set[Owner] = set()
        self._selects: set[int] = set()
        self._text = 0
        self._is_over = False

    def join(self, ledger: Ledger) -> bool:
        """Take in a session that is used for the first time; return whether it is one of these."""
        task, least = current_task(), ledger.gates.sessions
        future = task if self._in_turn else self._future()
        if (
            self._is_over
            or ledger.opened_by in self._owners
            or len(self._owners) > 2 * least
            or waiting_for(task) != (self._waiting(), future)
            or running_request()  # which a client in this process waits for
        ):
            return False
        if not self._owners:
            self._began_at, self._passed = ledger.opened_at, ledger.locator.passed()
        self._owners.add(ledger.opened_by)
        if not self._in_turn:
            ledger.gates = with_first_select(ledger.gates)
            ledger.when_ended += (self.ended,)
        elif len(self._owners) == least:
            line = self._line(ledger)
            if line is not None and is_over_items(line):
                self._found(ledger, line)
        return True

    def ended(
        self, ledger: Ledger, session: Session, outcome: Outcome, site: CallSite | None
    ) -> None:
        """The transaction of one of the sessions has ended."""
        del session, outcome, site
        select = _only_select(ledger)
        if select is None or (self._text and select.text != self._text):
            self._is_over = True
        if select is None or self._is_over:
            return
        self._text = select.text
        before = len(self._selects)
        self._selects.add(select.fingerprint)
        number = len(self._selects)
        line = self._line(ledger) if before < number == ledger.gates.sessions else None
        if line is not None:
            ledger.is_suspect = True
            self._found(ledger, line)

    def _found(self, ledger: Ledger, line: CallSite) -> None:
        number, known = ledger.gates.sessions, self._run.found_tasks
        is_known = known is not None and (known[0](), known[1]) == (self._waiting(), line)
        if not is_known and ledger.opened_at - self._began_at < number * _MOST_APART:
            self._run.found_tasks = self._waiting, line
            ledger.opened_in_loop = OpenedInLoop(number, line, self._passed, not self._in_turn)

    def _line(self, ledger: Ledger) -> CallSite | None:
        """The line of the application that waits for the tasks."""
        waiting = self._waiting()
        frames = [] if waiting is None else suspended(waiting)
        return next(iter(ledger.locator.sites(frames)), None)


def _only_select(ledger: Ledger) -> StatementExecuted | None:
    """The SELECT for one row that a session has run, if it has run nothing else."""
    first = ledger.first_selects
    if ledger.statements != 1 or len(first) != 1 or sum(ledger.loaded.values()) > 1:
        return None
    select = first[0]
    is_lookup = isinstance(select, StatementExecuted) and select.fingerprint and not select.part
    return select if is_lookup and select.collection else None


class Run:
    """The sessions of one line since the loop was looked for. Of each, only its number is kept."""

    __slots__ = (
        "again",
        "began_at",
        "due",
        "found",
        "found_tasks",
        "left",
        "owner",
        "passed",
        "site",
        "tasks",
    )

    def __init__(self, site: CallSite) -> None:
        self.site = site
        # The loop that was found last, by the ids of its frame and of its code.
        self.found = (0, 0)
        # The loop is looked for after this number of sessions, of which some are left; and again a
        # few times, because a turn may open some.
        self.due = self.left = self.again = 0
        self.began_at = 0
        self.owner: Owner = NO_OWNER
        self.passed: Passed = {}
        self.tasks: Tasks | None = None
        # What waited for the tasks that were found last, and the line.
        self.found_tasks: tuple[weakref.ref[asyncio.Task[Any]], CallSite] | None = None

    def restart(self, ledger: Ledger, due: int) -> None:
        """Count from this session on."""
        self.due, self.left, self.again = due, due - 1, _MOST_IN_A_TURN - 1
        self.began_at = ledger.opened_at
        self.owner = ledger.opened_by
        self.passed = ledger.locator.passed()

    def begin_tasks(self, ledger: Ledger) -> None:
        """Look at each session from now on, if a task waits for the one that opens this one."""
        awaited = waiting_for(current_task()) if ledger.opened_by.is_task else None
        self.tasks = None if awaited is None else Tasks(self, *awaited)
        if self.tasks is not None and self.tasks.join(ledger):
            self.left = 1


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
    run.begin_tasks(ledger)


def reached(ledger: Ledger, run: Run) -> None:
    """Enough sessions of a line were used: look for the loop that opened them."""
    if run.tasks is not None:
        if run.tasks.join(ledger):
            run.left = 1
            return
        run.tasks = None
        run.restart(ledger, run.due)
        return
    least, count = ledger.gates.sessions, run.due
    opened, due = run.site, min(2 * run.due, _MOST_WINDOWS * least)
    is_one = run.owner == ledger.opened_by and opened is ledger.opened_site
    is_quick = ledger.opened_at - run.began_at < count * _MOST_APART
    found = ledger.locator.opening_loop(run.passed, opened) if is_one and is_quick else None
    if found is None and is_one and is_quick and run.again:
        run.again -= 1
        run.left = 1
        return
    if found is not None:
        loop, key = found
        due = least
        if key != run.found:
            run.found = key
            ledger.opened_in_loop = OpenedInLoop(count, loop, run.passed)
    run.restart(ledger, due)
    run.begin_tasks(ledger)

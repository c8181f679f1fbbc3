"""Finds transactions that are cancelled, or split into too many."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import known, looping, ms, work_site
from session_tracer.detectors.memory import Once, Recent
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import (
    ENDED,
    NEVER_CLOSED,
    awaited,
    closing,
    counted,
    duration,
    elsewhere,
    opening,
    removal,
    with_block,
)
from session_tracer.facts import (
    SessionClosed,
    TransactionBegan,
    TransactionCancelled,
    TransactionEnded,
    WritesSplit,
)
from session_tracer.model.counts import add_counts
from session_tracer.model.totals import Tally, Total
from session_tracer.where.except_finder import Failure, handler_of
from session_tracer.where.frameworks import is_shutdown
from session_tracer.where.iteration import goes_on_at, takes_messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.facts import Counts, Outcome
    from session_tracer.ledger.loads import Passed
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Severity
    from session_tracer.where.callsite import CallSite


class _Commits:
    """Commits from one line, each soon after another. `rows` has those without a class, too."""

    def __init__(self) -> None:
        self.is_reported = False
        self.passed: Passed = {}
        self.tally = Tally()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.number = self.rows = self._at = 0
        self.written: Counts = {}
        if not self.is_reported:
            self.tally = Tally()

    def add(
        self, rows: int, entities: Counts, began_at: int, at: int, gap: float, took: int
    ) -> None:
        if began_at - self._at > gap:
            self._begin_anew()
        if self.number or not self.is_reported:  # the first after a pause is in no loop
            self.tally.add(took)
        self._at = at
        self.number += 1
        self.rows += rows
        add_counts(self.written, entities)


class CommitInLoop(BuiltIn):
    """`commit-in-loop`: one line commits a few objects at a time, again and again."""

    candidates = (TransactionEnded,)
    counts_repeats = True

    def memory(self) -> Recent[CallSite, _Commits]:
        """Return the commits of each line."""
        return Recent(_Commits)

    def judge(
        self, fact: TransactionEnded, report: Report, memory: Recent[CallSite, _Commits]
    ) -> Iterator[Finding]:
        """Report a line once.

        Commits of batches and commits without writes do not count, nor what comes after a pause: a
        worker commits job by job, also where the next message of its queue is there already. A
        session that a test joins to an outer transaction is used by many requests: its commits
        count where a loop of the application is known to be around them, and not one of the test.
        """
        ledger = report.ledger
        if fact.nested or fact.outcome != "committed" or ledger.first_commit is None:
            return
        batch, commits = report.settings.batch_commit_objects, None
        gap = report.settings.commit_loop_gap_seconds * 1e9
        # The ledger keeps the first commit, which is judged with the second.
        first = (ledger.first_commit,) if memory.begin() else ()
        this = (fact.site, ledger.committing_rows, ledger.committing, fact.at, fact.took)
        for site, rows, entities, at, took in (*first, this):
            commits = memory.of(site) if site and 0 < rows < batch else None
            if commits is not None:
                commits.add(rows, entities, at - took, at, gap, took)
        enough = report.settings.commits_from_one_site
        if commits and commits.number == enough - 1:
            commits.passed = ledger.locator.passed()
        if commits and commits.number == enough and not commits.is_reported:
            commits.is_reported = True
            loop = ledger.locator.loop(commits.passed, ledger.opened_site)
            may_be_tests = loop is None or not report.tells_tests_apart
            takes_jobs = loop is not None and takes_messages(loop)
            if not (takes_jobs or (ledger.is_joined and may_be_tests)):
                yield _commits(fact.site, commits, report)


def _commits(site: CallSite | None, commits: _Commits, report: Report) -> Finding:
    rows = commits.rows / commits.number
    each = "1 row" if rows == 1 else f"{rows:.3g} rows"
    written = f" ({counted(commits.written)})" if commits.written else ""
    loop = looping(commits.passed, report)
    caller = None if site is None or loop else report.ledger.locator.in_a_row(commits.passed)
    after = f"once after the loop{elsewhere(loop, site)}, or once for each batch"
    if caller is not None:
        after = f"once, after the last of the calls at {caller}, and not at {site}"
    remedy = f"{awaited(report)}session.commit()  # {after}"
    if loop is not None and _goes_on(loop, report):
        # One commit for all would lose the items before one that fails.
        within = "async with" if report.ledger.is_async else "with"
        around = "around each item, in place of its commit and any rollback"
        remedy = f"{within} session.begin_nested():  # {around}; session.commit() {after}"
    return report.finding(
        "commit-in-loop",
        "warning",
        f"one line committed at least {commits.number} times, {each} each{written}",
        remedy,
        site,
        entity=next(iter(commits.written)) if len(commits.written) == 1 else None,
        count=commits.number,
        total=Total("commit", commits.tally),
        evidence=known(
            loop=loop,
            called_at=caller,
            rows_per_commit=round(rows, 2),
            written=dict(commits.written),
        ),
    )


# What a commit may raise, by the names with which an `except` catches it.
_COMMIT_ERRORS: Final = frozenset(
    {"IntegrityError", "OperationalError", "DataError", "ProgrammingError", "InternalError"}
    | {"InterfaceError", "DatabaseError", "DBAPIError", "StatementError", "SQLAlchemyError"}
    | {"StaleDataError", "FlushError", "Exception", "BaseException"}
)


def _goes_on(loop: CallSite, report: Report) -> bool:
    """Whether the loop goes on with the next item if a commit fails, or if it rolls one back."""
    goes_on = goes_on_at(loop)
    if not goes_on or any(goes_on.values()):
        return bool(goes_on)
    lines = report.ledger.locator.lines()
    if loop not in lines:
        return False
    passed = lines[: lines.index(loop) + 1]
    caught = handler_of(Failure(passed, _COMMIT_ERRORS), ())
    if caught is None:
        return False
    is_in_loop = (caught.file, caught.function) == (loop.file, loop.function)
    return not is_in_loop or caught.line in goes_on


class _Savepoints:
    """The savepoints of the open transaction by line, up to the threshold."""

    def __init__(self) -> None:
        self.transaction = 0
        self.number = 0
        self.by_site: Counter[CallSite | None] = Counter()


class SavepointChurn(BuiltIn):
    """`savepoint-churn`: one transaction has very many savepoints."""

    candidates = (TransactionBegan,)
    memory = _Savepoints

    def judge(
        self, fact: TransactionBegan, report: Report, memory: _Savepoints
    ) -> Iterator[Finding]:
        """Report a transaction once, at the line with the most savepoints.

        A test's fixture may have to begin a new savepoint after each one that is released.
        """
        most, ledger = report.settings.savepoints_per_transaction, report.ledger
        if memory.transaction != ledger.transactions:
            memory.transaction = ledger.transactions
            memory.number = 0
            memory.by_site.clear()
        if not fact.nested or ledger.is_joined or memory.number >= most:
            return
        memory.number += 1
        memory.by_site[fact.site] += 1
        if memory.number == most:
            [(site, count)] = memory.by_site.most_common(1)
            memory.by_site.clear()
            yield report.finding(
                "savepoint-churn",
                "info",
                f"one transaction began at least {most} savepoints, "
                f"at least {count} of them at one line",
                f"{opening(report)} session.begin_nested():"
                "  # around the loop, or around each batch of it",
                site,
                count=most,
                evidence=known(from_one_site=count, began_at=ledger.transaction_began_site),
            )


class _Cancelled:
    """The first cancellation, and the outcome of the transaction that was open."""

    fact: TransactionCancelled | None = None
    age = 0
    outcome: Outcome | None = None


class CancelledTransaction(BuiltIn):
    """`cancelled-transaction`: a task is cancelled during a transaction."""

    candidates = (TransactionCancelled, TransactionEnded, SessionClosed)
    memory = _Cancelled

    def judge(
        self,
        fact: TransactionCancelled | TransactionEnded | SessionClosed,
        report: Report,
        memory: _Cancelled,
    ) -> Iterator[Finding]:
        """Report a scope at its end, when the transaction's outcome is known."""
        if isinstance(fact, TransactionCancelled):
            if memory.fact is None:
                memory.fact = fact
                memory.age = fact.at - (report.ledger.transaction_began_at or fact.at)
        elif isinstance(fact, SessionClosed):
            if memory.fact is not None:
                yield _cancelled(memory.fact, fact, report, memory)
                memory.fact = None
        elif memory.fact is not None and memory.outcome is None and not fact.nested:
            memory.outcome = fact.outcome


def _cancelled(
    cancelled: TransactionCancelled, closed: SessionClosed, report: Report, memory: _Cancelled
) -> Finding:
    is_closed = closed.ending not in NEVER_CLOSED
    later = f"{duration(closed.at - cancelled.at)} later"
    if not is_closed:
        end = "; the session was never closed"
    elif memory.outcome in ("committed", "rolled_back"):
        end = f", which was {ENDED[memory.outcome]}; the session was closed {later}"
    else:
        end = f", which ended when the session was closed {later}"
    severity: Severity = "warning"
    when = ""
    remedy = "run the work again, or use asyncio.shield() for code that must not be interrupted"
    if not is_closed:
        remedy = closing(report)
    elif is_shutdown():
        severity, when = "info", ", as its event loop ended,"
        remedy = "await the task before the event loop ends, unless the work is done again later"
    return report.finding(
        "cancelled-transaction",
        severity,
        f"{cancelled.owner.name} was cancelled{when} during a transaction{end}",
        remedy,
        cancelled.site,
        evidence=known(
            owner=cancelled.owner.name,
            transaction_ms=ms(memory.age),
            outcome=memory.outcome or closed.outcome,
            ending=closed.ending,
            closed_at=closed.site if is_closed else None,
        ),
    )


class SplitWrites(BuiltIn):
    """`split-writes`: one thread or task commits its writes in two sessions."""

    candidates = (WritesSplit,)
    memory = Once

    def judge(self, fact: WritesSplit, report: Report, memory: Once) -> Iterator[Finding]:
        """Report each pair of lines that commit once, and of shared ones each pair of calls."""
        site, wrapper = work_site(fact.site, report)
        called = _call(fact.called_site, site)
        other_called = _call(fact.other_called_site, fact.other_site)
        lines = (site, fact.site, fact.other_opened_site, fact.other_site, called, other_called)
        if not memory.first(lines):
            return
        inner = called if fact.is_inner else other_called
        also = "" if inner is None else f", also for the call at {inner}"
        yield report.finding(
            "split-writes",
            "warning",
            f"this session committed {counted(fact.written)}, and session {fact.other[:6]}, open "
            f"at the same time, {counted(fact.other_written)}: one of the commits can fail alone",
            f"{opening(report)} SessionLocal.begin() as session:  "
            f"# one session for all of it{also}",
            site,
            evidence=known(
                called_at=called,
                committed_at=wrapper,
                written=dict(fact.written),
                other_session_id=fact.other,
                other_written=dict(fact.other_written),
                other_opened_at=fact.other_opened_site,
                other_committed_at=fact.other_site,
                other_called_at=other_called,
                alternatives=[_APART],
            ),
        )


def _call(called: CallSite | None, site: CallSite | None) -> CallSite | None:
    """Return the line that called the function of a line, if it is another function's."""
    if called is None or site is None:
        return called
    return None if (called.file, called.function) == (site.file, site.function) else called


# Such as the status of a job, which is seen while that goes on, and has to survive its rollback.
_APART: Final = (
    'session_tracer.silence("split-writes", reason="...")  # if each may be committed alone'
)


class SessionPerItem(BuiltIn):
    """`session-per-item`: a loop opens a session for each of its items, or a task for each does."""

    candidates = (TransactionBegan, TransactionEnded)

    def judge(
        self, fact: TransactionBegan | TransactionEnded, report: Report, memory: None
    ) -> Iterator[Finding]:
        """Report each loop once, when it has opened enough sessions."""
        del memory
        ledger, opened = report.ledger, report.ledger.opened_in_loop
        if opened is None or fact.nested or ledger.transactions > 1:
            return
        # What tasks do at the same time is known when they have done it.
        if opened.is_at_once != isinstance(fact, TransactionEnded):
            return
        report.passed, report.loop = opened.passed, opened.loop
        message = (
            f"a loop opened at least {opened.sessions} sessions one after the other, at one line"
        )
        where = f"once, around the loop at {opened.loop}"
        if opened.is_at_once:
            message = (
                f"at least {opened.sessions} tasks each opened a session at one line, for the same "
                "SELECT with other parameters"
            )
            where = f"once, and one SELECT with .in_(...), in place of the tasks at {opened.loop}"
        remove = "" if opened.is_at_once else removal(report)
        yield report.finding(
            "session-per-item",
            "info",
            message,
            f"{remove}  # once, after the loop at {opened.loop}"
            if remove
            else with_block(report, where),
            ledger.opened_site,
            count=opened.sessions,
            evidence=known(loop=opened.loop, used_at=ledger.first_used_site),
        )

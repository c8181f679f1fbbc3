"""Finds transactions that are cut off, or cut into too many pieces."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import places
from session_tracer.detectors.recent import Recent
from session_tracer.detectors.said import Said
from session_tracer.detectors.watched import ENDED, TAKEN, block, ms
from session_tracer.detectors.wording import counted, lasted
from session_tracer.facts import (
    SessionClosed,
    TransactionBegan,
    TransactionCancelled,
    TransactionEnded,
    WritesSplit,
)
from session_tracer.model.counts import add_counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer.facts import Counts, Outcome
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = ["CancelledTransaction", "CommitInLoop", "SavepointChurn", "SplitWrites"]


class _Commits:
    """The commits from one line, but for those of a batch."""

    __slots__ = ("number", "rows", "written")

    def __init__(self) -> None:
        self.number = 0
        # Those of mapped classes, and others.
        self.rows = 0
        self.written: Counts = {}

    def add(self, rows: int, entities: Counts) -> None:
        """Take one more commit into account."""
        self.number += 1
        self.rows += rows
        add_counts(self.written, entities)


class _ByLine:
    """The commits of a few rows, by their line; the first one is in the ledger."""

    __slots__ = ("_by_site", "is_begun")

    def __init__(self) -> None:
        self.is_begun = False
        self._by_site: Recent[CallSite, _Commits] = Recent(_Commits)

    def add(
        self, site: CallSite | None, rows: int, entities: Counts, batch: int
    ) -> _Commits | None:
        """The commits of the line, where this is one more of a few rows."""
        if site is None or not 0 < rows < batch:
            return None
        commits = self._by_site.of(site)
        commits.add(rows, entities)
        return commits


class CommitInLoop:
    """`commit-in-loop`: one line commits a few objects at a time, again and again."""

    facts: Final = ()
    candidates = (TransactionEnded,)

    def memory(self) -> _ByLine:
        """The commits by line."""
        return _ByLine()

    def judge(self, fact: TransactionEnded, report: Report, memory: _ByLine) -> Iterable[Finding]:
        """One finding for a line. A commit of a batch is none of a loop's, nor is one of reads.

        A session that a test joins to a transaction stands for those of many requests, and its
        commits commit nothing.
        """
        ledger, batch = report.ledger, report.settings.batch_commit_objects
        if fact.nested or fact.outcome != "committed" or ledger.first_commit is None:
            return ()
        if not memory.is_begun:
            memory.is_begun = True
            memory.add(*ledger.first_commit, batch)
        commits = memory.add(fact.site, ledger.committing_rows, ledger.committing, batch)
        enough = report.settings.commits_from_one_site
        if commits and commits.number == enough and fact.site and not ledger.is_joined:
            return (_commits(fact.site, commits, report),)
        return ()


def _commits(site: CallSite, commits: _Commits, report: Report) -> Finding:
    rows = commits.rows / commits.number
    each = "1 row" if rows == 1 else f"{rows:.3g} rows"
    written = f": {counted(commits.written)} in all" if commits.written else ""
    awaited = "await " if report.ledger.is_async else ""
    return report.finding(
        "commit-in-loop",
        "warning",
        f"one line has committed {commits.number} times so far, {each} each{written}",
        f"{awaited}session.commit()  # once after the loop, or once for each batch",
        site,
        entity=next(iter(commits.written)) if len(commits.written) == 1 else None,
        count=commits.number,
        evidence={"rows_per_commit": round(rows, 2), "written": dict(commits.written)},
    )


class _Savepoints:
    """The savepoints of the open transaction by line, up to the threshold."""

    __slots__ = ("by_site", "number", "transaction")

    def __init__(self) -> None:
        self.transaction = 0
        self.number = 0
        self.by_site: Counter[CallSite | None] = Counter()


class SavepointChurn:
    """`savepoint-churn`: one transaction has very many savepoints."""

    facts: Final = ()
    candidates = (TransactionBegan,)

    def memory(self) -> _Savepoints:
        """The savepoints of the open transaction."""
        return _Savepoints()

    def judge(
        self, fact: TransactionBegan, report: Report, memory: _Savepoints
    ) -> Iterator[Finding]:
        """One finding for a transaction, at the line that made the most of them.

        A test's fixture may have to begin a savepoint anew after each that is released.
        """
        most = report.settings.savepoints_per_transaction
        if memory.transaction != report.ledger.transactions:
            memory.transaction = report.ledger.transactions
            memory.number = 0
            memory.by_site.clear()
        if not fact.nested or report.ledger.is_joined or memory.number >= most:
            return
        memory.number += 1
        memory.by_site[fact.site] += 1
        if memory.number == most:
            [(site, count)] = memory.by_site.most_common(1)
            memory.by_site.clear()
            opening = "async with" if report.ledger.is_async else "with"
            yield report.finding(
                "savepoint-churn",
                "info",
                f"one transaction has made {most} savepoints so far, {count} of them at one line",
                f"{opening} session.begin_nested():  # around the loop, or around each batch of it",
                site,
                count=most,
                evidence={
                    "from_one_site": count,
                    **places(began_at=report.ledger.transaction_began_site),
                },
            )


class _Cancelled:
    """The first cancellation, and what became of the transaction that it left open."""

    __slots__ = ("age", "fact", "outcome")

    def __init__(self) -> None:
        self.fact: TransactionCancelled | None = None
        self.age = 0
        self.outcome: Outcome | None = None


class CancelledTransaction:
    """`cancelled-transaction`: a task is cancelled amid a transaction."""

    facts: Final = ()
    candidates = (TransactionCancelled, TransactionEnded, SessionClosed)

    def memory(self) -> _Cancelled:
        """The cancellation, until the scope ends."""
        return _Cancelled()

    def judge(
        self,
        fact: TransactionCancelled | TransactionEnded | SessionClosed,
        report: Report,
        memory: _Cancelled,
    ) -> Iterator[Finding]:
        """One finding for a scope, as it ends: only then is it known how."""
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
    cancelled: TransactionCancelled,
    closed: SessionClosed,
    report: Report,
    memory: _Cancelled,
) -> Finding:
    is_closed = closed.ending not in TAKEN
    later = f"{lasted(closed.at - cancelled.at)} later"
    if not is_closed:
        end = "; the session was never closed"
    elif memory.outcome in ("committed", "rolled_back"):
        end = f", which was {ENDED[memory.outcome]}; the session was closed {later}"
    else:
        end = f", which ended as the session was closed {later}"
    return report.finding(
        "cancelled-transaction",
        "warning",
        f"{cancelled.owner.name} was cancelled amid a transaction{end}",
        "repeat the work, or put asyncio.shield() around what must not be cut off halfway"
        if is_closed
        else block(report),
        cancelled.site,
        evidence={
            "owner": cancelled.owner.name,
            "transaction_ms": ms(memory.age),
            "outcome": memory.outcome or closed.outcome,
            "ending": closed.ending,
            **(places(closed_at=closed.site) if is_closed else {}),
        },
    )


class SplitWrites:
    """`split-writes`: one thread or task commits what it writes through two sessions."""

    facts: Final = ()
    candidates = (WritesSplit,)

    def memory(self) -> Said:
        """Which pairs of lines have committed."""
        return Said()

    def judge(self, fact: WritesSplit, report: Report, memory: Said) -> Iterator[Finding]:
        """One finding for each pair of lines that commit."""
        if not memory.first((fact.site, fact.other_site)):
            return
        opening = "async with" if report.ledger.is_async else "with"
        yield report.finding(
            "split-writes",
            "warning",
            f"{counted(fact.written)} committed here and {counted(fact.other_written)} by session "
            f"{fact.other[:6]} beside it: one may fail without the other",
            f"{opening} SessionLocal.begin() as session:  # one session for all of it",
            fact.site,
            evidence={
                "written": dict(fact.written),
                "other_session": fact.other,
                "other_written": dict(fact.other_written),
                **places(
                    other_opened_at=fact.other_opened_site, other_committed_at=fact.other_site
                ),
            },
        )

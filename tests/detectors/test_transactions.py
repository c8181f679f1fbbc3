"""Transactions that are cancelled, or split into too many."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import Finding
from session_tracer.detectors.transactions import (
    CancelledTransaction,
    CommitInLoop,
    SavepointChurn,
    SplitWrites,
)
from session_tracer.facts import (
    FlushCompleted,
    SessionClosed,
    SessionOpened,
    StatementExecuted,
    TransactionBegan,
    TransactionCancelled,
    TransactionEnded,
    WritesSplit,
)
from session_tracer.where.owner import Owner
from tests.detectors.feeding import MS, SECOND, PlayedScope, at, reported

if TYPE_CHECKING:
    from session_tracer import CallSite
    from session_tracer.facts import Ending, Fact, Outcome

OPENED, BEGAN, COMMITTED = at(12, "get_db", "/srv/shop/db.py"), at(20), at(31, "save")
ELSEWHERE, CLOSED = at(32, "save"), at(50, "close")
OF_SESSION: dict[str, Any] = {
    "session_id": "9b21e0456789abcd",
    "session_name": "orders-db",
    "session_site": OPENED,
}
OPENING = SessionOpened(SECOND, OPENED)
BEGUN = TransactionBegan(2 * SECOND, BEGAN)


# Commits in a loop.


def flushed(**counts: Any) -> FlushCompleted:
    return FlushCompleted(3, COMMITTED, "commit", MS, **counts)


def executed(operation: str, rows: int, entity: str = "", **more: Any) -> StatementExecuted:
    return StatementExecuted(3, COMMITTED, operation, "orders", entity, MS, rows=rows, **more)


def commits(
    times: int,
    *writes: Fact,
    site: CallSite | None = COMMITTED,
    outcome: Outcome = "committed",
    nested: bool = False,
) -> list[Fact]:
    """A number of transactions that write this."""
    end = TransactionEnded(4, site, outcome, 2, nested=nested)
    return [TransactionBegan(2, BEGAN, nested=nested), *writes, end] * times


ONE_ORDER = flushed(new={"Order": 1})


def test_a_line_that_commits_again_and_again_is_a_loop() -> None:
    assert reported(CommitInLoop(), OPENING, *commits(30, ONE_ORDER)) == [
        Finding(
            id="commit-in-loop",
            severity="warning",
            message="one line committed at least 10 times, 1 row each (10 Order)",
            remedy="session.commit()  # once after the loop, or once for each batch",
            site=COMMITTED,
            **OF_SESSION,
            entity="Order",
            count=10,
            evidence={"rows_per_commit": 1.0, "written": {"Order": 10}},
        )
    ]


def loops(*facts: Fact, **settings: Any) -> list[Any]:
    return reported(CommitInLoop(), OPENING, *facts, **settings)


def test_fewer_commits_are_no_loop() -> None:
    assert loops(*commits(9, ONE_ORDER)) == []
    assert loops(*commits(2, ONE_ORDER), commits_from_one_site=3) == []
    assert len(loops(*commits(3, ONE_ORDER), commits_from_one_site=3)) == 1


def test_two_lines_that_each_commit_less_often_are_no_loop() -> None:
    assert loops(*commits(9, ONE_ORDER), *commits(9, ONE_ORDER, site=ELSEWHERE)) == []


def test_two_lines_are_two_loops() -> None:
    found = loops(*commits(12, ONE_ORDER), *commits(12, ONE_ORDER, site=ELSEWHERE))
    assert [finding.site for finding in found] == [COMMITTED, ELSEWHERE]


def test_a_commit_of_many_objects_is_a_batch() -> None:
    assert loops(*commits(30, flushed(new={"Order": 10}))) == []
    assert loops(*commits(30, flushed(new={"Order": 6}, dirty={"Stock": 4}))) == []
    assert loops(*commits(30, flushed(new={"Order": 5}), flushed(deleted={"Order": 5}))) == []
    assert len(loops(*commits(30, flushed(new={"Order": 9})))) == 1
    assert loops(*commits(30, ONE_ORDER, ONE_ORDER), batch_commit_objects=2) == []


def test_batches_and_small_commits_of_one_line_are_counted_separately() -> None:
    batch = commits(1, flushed(new={"Order": 500}))
    [finding] = loops(*(batch + commits(1, ONE_ORDER)) * 10)
    assert finding.evidence == {"rows_per_commit": 1.0, "written": {"Order": 10}}


def committed_at(*moments: float) -> list[Fact]:
    return [
        fact
        for moment in moments
        for fact in (
            ONE_ORDER,
            TransactionEnded(int(moment * SECOND), COMMITTED, "committed", MS, took=MS),
        )
    ]


def test_a_worker_that_waits_between_its_jobs_is_no_loop() -> None:
    assert loops(*committed_at(*[1.01 * number for number in range(30)])) == []
    assert len(loops(*committed_at(*[0.99 * number for number in range(30)]))) == 1
    assert len(loops(*committed_at(*range(0, 60, 2)), commit_loop_gap_seconds=3)) == 1


def test_jobs_that_come_in_a_burst_are_counted_from_the_pause_on() -> None:
    waits = [5.0 * number for number in range(9)]
    burst = [100 + number / 100 for number in range(9)]
    assert loops(*committed_at(*waits, *burst)) == []
    assert len(loops(*committed_at(*waits, *burst, 100.1))) == 1
    # The line is reported once.
    later = [200 + number / 100 for number in range(20)]
    assert len(loops(*committed_at(*waits, *burst, 100.1, *later))) == 1


def test_rows_that_were_written_without_a_flush_count() -> None:
    assert len(loops(*commits(10, executed("UPDATE", 1)))) == 1
    assert loops(*commits(10, executed("INSERT", 10))) == []
    assert loops(*commits(10, ONE_ORDER, executed("DELETE", 9))) == []
    # A flush's own statements are counted by its objects.
    [finding] = loops(*commits(10, executed("INSERT", 40, "Order", in_flush=True), ONE_ORDER))
    assert finding.evidence["written"] == {"Order": 10}


def test_several_entities_are_counted_and_none_is_named() -> None:
    [finding] = loops(*commits(10, flushed(new={"Order": 1}, dirty={"Stock": 2})))
    assert finding.message == (
        "one line committed at least 10 times, 3 rows each (20 Stock, 10 Order)"
    )
    assert finding.entity is None


def test_rows_of_no_mapped_class_are_counted_alone() -> None:
    [finding] = loops(*commits(9, executed("UPDATE", 1)), *commits(1, executed("UPDATE", 3)))
    assert finding.message == "one line committed at least 10 times, 1.2 rows each"
    assert (finding.entity, finding.evidence["written"]) == (None, {})


@pytest.mark.parametrize(
    "facts",
    [
        commits(30),
        commits(30, flushed()),
        commits(30, executed("SELECT", -1)),
        commits(30, executed("UPDATE", -1)),
        commits(30, ONE_ORDER, outcome="rolled_back"),
        commits(30, ONE_ORDER, outcome="closed"),
        commits(30, ONE_ORDER, nested=True),
        commits(30, ONE_ORDER, site=None),
    ],
    ids=[
        "nothing", "empty flushes", "reads", "no rows", "rolled back", "closed", "savepoints",
        "no line",
    ],
)  # fmt: skip
def test_what_is_no_commit_of_a_few_rows_is_no_loop(facts: list[Fact]) -> None:
    assert loops(*facts) == []


def test_what_a_rollback_undid_is_not_the_next_commits() -> None:
    undone = commits(1, flushed(new={"Order": 500}), outcome="rolled_back")
    assert len(loops(*(undone + commits(1, ONE_ORDER)) * 10)) == 1


def test_a_commits_remedy_is_awaited_under_asyncio() -> None:
    [finding] = reported(CommitInLoop(), *commits(10, ONE_ORDER), is_async=True)
    assert isinstance(finding, Finding)
    assert finding.remedy.startswith("await session.commit()")


def test_commits_are_remembered_of_the_last_thousand_lines() -> None:
    def with_others_between(lines: int) -> list[Any]:
        others = [fact for line in range(lines) for fact in commits(1, ONE_ORDER, site=at(line))]
        return loops(*commits(9, ONE_ORDER), *others, *commits(1, ONE_ORDER))

    assert len(with_others_between(900)) == 1
    assert with_others_between(1_100) == []


# Savepoints.


def savepoints(times: int, site: CallSite | None = COMMITTED) -> list[Fact]:
    return [TransactionBegan(3 * SECOND, site, nested=True)] * times


def test_a_transaction_has_very_many_savepoints() -> None:
    made = [*savepoints(20, ELSEWHERE), *savepoints(60)]
    assert reported(SavepointChurn(), OPENING, BEGUN, *made) == [
        Finding(
            id="savepoint-churn",
            severity="info",
            message="one transaction began at least 50 savepoints, at least 30 of them at one line",
            remedy="with session.begin_nested():  # around the loop, or around each batch of it",
            site=COMMITTED,
            **OF_SESSION,
            count=50,
            evidence={"from_one_site": 30, "began_at": str(BEGAN)},
        )
    ]


def test_fewer_savepoints_are_no_churn() -> None:
    assert reported(SavepointChurn(), OPENING, BEGUN, *savepoints(49)) == []
    assert reported(SavepointChurn(), BEGUN, *savepoints(1), savepoints_per_transaction=2) == []
    assert len(reported(SavepointChurn(), BEGUN, *savepoints(2), savepoints_per_transaction=2)) == 1


def test_savepoints_are_counted_for_each_transaction() -> None:
    assert reported(SavepointChurn(), OPENING, *[BEGUN, *savepoints(49)] * 3) == []
    assert len(reported(SavepointChurn(), OPENING, *[BEGUN, *savepoints(70)] * 3)) == 3


def test_savepoints_of_no_known_line_are_counted_too() -> None:
    [finding] = reported(SavepointChurn(), OPENING, BEGUN, *savepoints(50, None))
    assert isinstance(finding, Finding)
    assert finding.site is None


def test_nothing_is_remembered_of_savepoints_beyond_the_threshold() -> None:
    scope = PlayedScope([SavepointChurn()])
    for line in range(300):
        scope.play(*savepoints(1, at(line)))
    [memory] = scope.memories
    assert len(memory.by_site) == 0


# Split writes.

SPLIT = WritesSplit(
    9 * SECOND,
    COMMITTED,
    {"OrderLine": 3, "Order": 1},
    "4f1c9a0000000000",
    BEGAN,
    ELSEWHERE,
    {"Stock": 3},
)


APART = 'session_tracer.silence("split-writes", reason="...")  # if each may be committed alone'


OF_CALL = "# one session for all of it, also for the call at {}"


def test_writes_are_committed_by_two_sessions() -> None:
    assert reported(SplitWrites(), OPENING, SPLIT) == [
        Finding(
            id="split-writes",
            severity="warning",
            message="this session committed 3 OrderLine, 1 Order, and session 4f1c9a, open at the "
            "same time, 3 Stock: one of the commits can fail alone",
            remedy="with SessionLocal.begin() as session:  # one session for all of it",
            site=COMMITTED,
            **OF_SESSION,
            evidence={
                "written": {"OrderLine": 3, "Order": 1},
                "other_session_id": "4f1c9a0000000000",
                "other_written": {"Stock": 3},
                "other_opened_at": str(BEGAN),
                "other_committed_at": str(ELSEWHERE),
                "alternatives": [APART],
            },
        )
    ]


def test_the_calls_of_commits_are_named_where_these_are_other_functions() -> None:
    calls: Any = {"called_site": BEGAN, "other_called_site": CLOSED}
    (split,) = reported(SplitWrites(), OPENING, replace(SPLIT, **calls))
    assert isinstance(split, Finding)
    assert split.remedy.endswith(OF_CALL.format(CLOSED))
    assert (split.evidence["called_at"], split.evidence["other_called_at"]) == (
        str(BEGAN),
        str(CLOSED),
    )
    (split,) = reported(SplitWrites(), OPENING, replace(SPLIT, **calls, is_inner=True))
    assert isinstance(split, Finding)
    assert split.remedy.endswith(OF_CALL.format(BEGAN))
    own: Any = {"called_site": COMMITTED, "other_called_site": ELSEWHERE}
    assert reported(SplitWrites(), OPENING, replace(SPLIT, **own)) == reported(
        SplitWrites(), OPENING, SPLIT
    )


def test_two_lines_that_split_writes_are_named_once() -> None:
    other = WritesSplit(
        10, COMMITTED, {"Order": 1}, "0a1b2c0000000000", BEGAN, CLOSED, {"Stock": 1}
    )
    assert len(reported(SplitWrites(), OPENING, SPLIT, SPLIT)) == 1
    assert len(reported(SplitWrites(), OPENING, SPLIT, other, SPLIT)) == 2


# Cancelled transactions.


@pytest.fixture
def owner() -> Owner:
    made = Owner(threading.main_thread(), None, None, None)
    made.name = 'task "Task-7"'
    return made


def cancelled(
    owner: Owner, *facts: Fact, ending: Ending = "close", begun: tuple[Fact, ...] = (BEGUN,)
) -> list[Any]:
    """A task that is cancelled three seconds after its transaction began, and closes 4 ms later."""
    return reported(
        CancelledTransaction(),
        OPENING,
        *begun,
        TransactionCancelled(5 * SECOND, ELSEWHERE, owner),
        *facts,
        SessionClosed(5 * SECOND + 4 * MS, CLOSED, ending, "closed"),
    )


def ended(outcome: Outcome, *, nested: bool = False) -> TransactionEnded:
    return TransactionEnded(5 * SECOND + MS, CLOSED, outcome, 3 * SECOND, nested=nested)


def test_a_task_is_cancelled_during_a_transaction(owner: Owner) -> None:
    assert cancelled(owner, ended("closed")) == [
        Finding(
            id="cancelled-transaction",
            severity="warning",
            message='task "Task-7" was cancelled during a transaction, '
            "which ended when the session was closed 4 ms later",
            remedy="run the work again, or use asyncio.shield() for code that must not be "
            "interrupted",
            site=ELSEWHERE,
            **OF_SESSION,
            evidence={
                "owner": 'task "Task-7"',
                "transaction_ms": 3_000.0,
                "outcome": "closed",
                "ending": "close",
                "closed_at": str(CLOSED),
            },
        )
    ]


@pytest.mark.parametrize(
    ("outcome", "how"), [("committed", "committed"), ("rolled_back", "rolled back")]
)
def test_a_transaction_may_be_ended_all_the_same(owner: Owner, outcome: Outcome, how: str) -> None:
    # What came after it is another transaction's.
    [finding] = cancelled(owner, ended(outcome), BEGUN, ended("closed"))
    assert finding.message == (
        f'task "Task-7" was cancelled during a transaction, which was {how}; '
        "the session was closed 4 ms later"
    )


def test_a_savepoints_end_is_not_the_transactions(owner: Owner) -> None:
    [finding] = cancelled(owner, ended("rolled_back", nested=True), ended("committed"))
    assert finding.evidence["outcome"] == "committed"


@pytest.mark.parametrize("ending", ["collected", "exit"])
def test_a_close_that_did_not_complete_is_reported(owner: Owner, ending: Ending) -> None:
    [finding] = cancelled(owner, ended("abandoned"), ending=ending)
    assert finding.message == (
        'task "Task-7" was cancelled during a transaction; the session was never closed'
    )
    assert finding.remedy == "with SessionLocal() as session:\n    ..."
    assert finding.evidence == {
        "owner": 'task "Task-7"',
        "transaction_ms": 3_000.0,
        "outcome": "abandoned",
        "ending": ending,
    }


def test_the_first_cancellation_is_reported(owner: Owner) -> None:
    again = TransactionCancelled(6 * SECOND, CLOSED, owner)
    [finding] = cancelled(owner, again, ended("closed"))
    assert finding.site == ELSEWHERE


def test_a_cancellation_is_reported_when_the_scope_ends(owner: Owner) -> None:
    cancellation = TransactionCancelled(5, ELSEWHERE, owner)
    found = reported(CancelledTransaction(), OPENING, BEGUN, cancellation, ended("committed"))
    assert found == []


def test_a_transaction_that_was_not_cancelled_is_silent() -> None:
    end = SessionClosed(9, CLOSED, "close", "failed", error="ValueError", leaving=True)
    assert reported(CancelledTransaction(), OPENING, BEGUN, ended("closed"), end) == []

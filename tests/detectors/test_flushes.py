"""Flushes that fail, are too large or run too often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import Finding
from session_tracer.detectors.flushes import (
    AutoflushStorm,
    FailedFlush,
    LargeFlush,
    PendingRollback,
    UnchangedDirty,
)
from session_tracer.facts import (
    FlushCompleted,
    FlushFailed,
    FlushFailureDecided,
    RollbackPending,
    SessionOpened,
    TransactionBegan,
    TransactionEnded,
)
from tests.detectors.feeding import MS, at, reported

if TYPE_CHECKING:
    from session_tracer.facts import Fact, FlushProblem, Trigger
    from session_tracer.model.findings import Retraction
    from session_tracer.where.callsite import CallSite

OPENED = at(12, "get_db", "/srv/shop/db.py")
OPENING = SessionOpened(1, OPENED)
OF_SESSION: dict[str, Any] = {
    "session_id": "9b21e0456789abcd",
    "session_name": "orders-db",
    "session_site": OPENED,
}
COMMIT, USE, EXCEPT, LOOP = at(92, "place_order"), at(97), at(95), at(77, "reserve")
INTEGRITY = "sqlalchemy.exc.IntegrityError"


def messages(found: list[Finding | Retraction]) -> list[str]:
    return [one.message for one in found]


def remedies(found: list[Finding | Retraction]) -> list[str]:
    return [one.remedy for one in found if isinstance(one, Finding)]


def evidence(found: list[Finding | Retraction], key: str) -> list[Any]:
    return [one.evidence.get(key) for one in found]


# failed-flush


def failed(
    site: CallSite | None = COMMIT, trigger: Trigger = "commit", when: int = 0, **more: Any
) -> FlushFailed:
    return FlushFailed(
        when,
        site,
        trigger,
        4 * MS,
        INTEGRITY,
        {"Author": 2},
        {"Book": 1},
        constraint="authors_name_key",
        **more,
    )


def left(flush: FlushFailed, repeats: int = 1) -> Fact:
    """The flush's error has left the scope."""
    return FlushFailureDecided(flush.at, flush.site, flush, "left", repeats)


def used_on(flush: FlushFailed) -> Fact:
    """The error was caught, and the session is used on without a rollback."""
    return FlushFailureDecided(flush.at, flush.site, flush, "used_again", 1)


def handled(flush: FlushFailed, repeats: int = 1) -> Fact:
    return FlushFailureDecided(flush.at, flush.site, flush, "", repeats)


def test_a_failed_flush_is_reported_with_its_contents() -> None:
    assert reported(FailedFlush(), OPENING, left(failed())) == [
        Finding(
            id="failed-flush",
            severity="warning",
            message="a commit's flush of 2 Author, 1 Book failed with IntegrityError",
            remedy="catch IntegrityError outside of the session's block, which rolls back",
            site=COMMIT,
            entity="Author",
            evidence={
                "error_type": INTEGRITY,
                "constraint": "authors_name_key",
                "trigger": "commit",
                "new": {"Author": 2},
                "dirty": {"Book": 1},
                "duration_ms": 4.0,
                "alternatives": ["with session.begin_nested(): around the code that may fail"],
            },
            **OF_SESSION,
        )
    ]


def test_the_remedy_of_a_failed_flush_awaits_under_asyncio() -> None:
    found = reported(FailedFlush(), used_on(failed()), is_async=True)
    assert remedies(found) == ["await session.rollback() where IntegrityError is caught"]
    assert evidence(found, "alternatives") == [
        ["async with session.begin_nested(): around the code that may fail"]
    ]


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        ("explicit", "a flush of 2 Author, 1 Book failed with IntegrityError"),
        ("autoflush", "an autoflush of 2 Author, 1 Book failed with IntegrityError"),
        ("savepoint", "a savepoint's flush of 2 Author, 1 Book failed with IntegrityError"),
    ],
)
def test_the_trigger_of_the_flush_is_reported(trigger: Trigger, message: str) -> None:
    assert messages(reported(FailedFlush(), left(failed(trigger=trigger)))) == [message]


def test_the_remedy_in_a_savepoint_does_not_propose_one() -> None:
    found = reported(FailedFlush(), left(failed(in_savepoint=True)), used_on(failed()))
    assert remedies(found) == [
        "catch IntegrityError outside of the savepoint's block: only the savepoint is rolled back",
        "call session.rollback() where IntegrityError is caught",
    ]
    assert evidence(found, "alternatives")[0] is None


def test_each_flush_that_fails_is_reported() -> None:
    assert len(reported(FailedFlush(), left(failed()), left(failed()))) == 2


def test_a_flush_that_fails_with_nothing_known_of_it() -> None:
    found = reported(FailedFlush(), left(FlushFailed(1, None, "explicit", 0, "")))
    assert messages(found) == ["a flush of no objects failed with an error"]
    assert evidence(found, "constraint") == [None]


def test_a_failed_flush_that_is_handled_is_not_reported() -> None:
    assert reported(FailedFlush(), failed(), handled(failed())) == []


def test_a_failed_flush_that_is_handled_is_reported_where_it_repeats() -> None:
    flushes = [handled(failed(), repeats) for repeats in range(1, 25)]
    assert len(reported(FailedFlush(), *flushes)) == 1
    assert len(reported(FailedFlush(), *flushes, failed_flushes_from_one_site=2)) == 1
    assert reported(FailedFlush(), *flushes[:9]) == []


@pytest.mark.parametrize(
    ("problem", "more", "remedy"),
    [
        ("constraint", {}, "check the values before the flush, which authors_name_key refuses"),
        ("duplicate", {}, "insert(...).on_conflict_do_nothing(), if the row may exist"),
        ("null", {"column": "Author.name"}, "set Author.name before the flush"),
        ("null", {}, "check the values before the flush, which authors_name_key refuses"),
        (
            "stale",
            {},
            "load it with with_for_update=True, so that no other transaction can change the row",
        ),
        ("locked", {}, "keep transactions short: commit before waiting, and write at their end"),
        (
            "lost",
            {},
            "create_engine(..., pool_pre_ping=True), if the connection was lost in the pool",
        ),
        ("same_key", {}, "session.merge(author) in place of session.add(author)"),
    ],
)
def test_what_prevents_an_error_that_is_rolled_back_each_time(
    problem: FlushProblem, more: dict[str, Any], remedy: str
) -> None:
    found = reported(FailedFlush(), handled(failed(problem=problem, **more), 10))
    assert remedies(found) == [remedy]
    assert not any("rollback" in str(one) or "roll back" in str(one) for one in found)


def test_a_session_that_is_used_on_has_not_handled_its_failed_flush() -> None:
    found = reported(FailedFlush(), failed(), RollbackPending(2 * MS, USE))
    assert [one.site for one in found if isinstance(one, Finding)] == [COMMIT]


def test_a_session_that_is_used_after_its_rollback_has_handled_its_failed_flush() -> None:
    rollback = TransactionEnded(2, USE, "rolled_back", 1)
    again = TransactionBegan(3, COMMIT)
    ended = TransactionEnded(4, COMMIT, "committed", 1)
    first = TransactionBegan(0, COMMIT)
    assert reported(FailedFlush(), OPENING, first, failed(), rollback, again, ended) == []


# pending-rollback


def test_a_session_used_after_a_failed_flush_names_both_lines() -> None:
    pending = RollbackPending(35 * MS, USE, swallowed=EXCEPT)
    assert reported(PendingRollback(), OPENING, failed(), pending) == [
        Finding(
            id="pending-rollback",
            severity="error",
            message="the session was used again 35 ms after a flush failed with IntegrityError, "
            "without a rollback()",
            remedy=f"session.rollback() at {EXCEPT}",
            site=USE,
            evidence={
                "error_type": INTEGRITY,
                "failed_ago_ms": 35.0,
                "failed_at": str(COMMIT),
                "constraint": "authors_name_key",
                "swallowed_at": str(EXCEPT),
            },
            **OF_SESSION,
        )
    ]


def test_the_rollback_is_awaited_under_asyncio() -> None:
    found = reported(PendingRollback(), failed(), RollbackPending(1, USE), is_async=True)
    assert remedies(found) == [
        "await session.rollback() in the except block that caught the failure"
    ]


def test_a_block_is_what_to_leave() -> None:
    began, used = TransactionBegan(1, COMMIT), RollbackPending(2, USE, LOOP, in_block=True)
    found = reported(PendingRollback(), began, failed(), used)
    assert remedies(found) == [
        "catch IntegrityError outside of the transaction's block, not inside it"
    ]
    assert evidence(found, "swallowed_at") == [str(LOOP)]
    savepoint = TransactionBegan(1, COMMIT, nested=True)
    found = reported(PendingRollback(), began, savepoint, failed(), used)
    assert remedies(found) == [
        "catch IntegrityError outside of the savepoint's block, not inside it"
    ]


def test_a_savepoint_without_a_block_is_what_to_roll_back() -> None:
    savepoint = TransactionBegan(1, COMMIT, nested=True)
    found = reported(PendingRollback(), savepoint, failed(), RollbackPending(2, USE, LOOP))
    assert remedies(found) == [f"savepoint.rollback() at {LOOP}"]


def test_the_first_failure_is_reported() -> None:
    first, second = failed(LOOP), failed(COMMIT, when=MS)
    found = reported(PendingRollback(), first, second, RollbackPending(2 * MS, USE))
    assert evidence(found, "failed_at") == [str(LOOP)]


def test_an_unknown_failure_is_reported_without_its_error() -> None:
    found = reported(PendingRollback(), RollbackPending(1, USE))
    assert messages(found) == [
        "the session was used again after its transaction had failed, without a rollback()"
    ]
    assert [one.evidence for one in found] == [{}]


def test_a_failure_is_reported_once_however_often_the_session_is_used_after_it() -> None:
    uses = [RollbackPending(number, at(number)) for number in range(1, 11)]
    (found,) = reported(PendingRollback(), failed(), *uses)
    assert isinstance(found, Finding)
    assert found.site == at(1)


def test_the_next_failure_is_reported_again() -> None:
    use, rollback = RollbackPending(1, USE), TransactionEnded(2, USE, "rolled_back", 1)
    assert len(reported(PendingRollback(), failed(), use, rollback, failed(), use)) == 2


def test_a_failure_that_was_rolled_back_is_not_the_one_of_the_next() -> None:
    rollback = TransactionEnded(2, USE, "rolled_back", 1, nested=True)
    found = reported(PendingRollback(), failed(), rollback, RollbackPending(3, USE))
    assert evidence(found, "failed_at") == [None]


def test_a_failed_flush_that_is_rolled_back_is_no_pending_rollback() -> None:
    rollback = TransactionEnded(2, USE, "rolled_back", 1)
    again = FlushCompleted(3, COMMIT, "commit", 1, {"Author": 1})
    assert reported(PendingRollback(), failed(), rollback, again) == []


# autoflush-storm


def autoflush(site: CallSite | None = LOOP, **contents: Any) -> Fact:
    return FlushCompleted(1, site, "autoflush", MS, **(contents or {"new": {"Order": 1}}))


def test_a_loop_that_reads_and_changes_in_turns_flushes_each_time() -> None:
    flushes = [autoflush(new={"Order": 1}, dirty={"Stock": 2}) for _ in range(12)]
    assert reported(AutoflushStorm(), OPENING, TransactionBegan(1, COMMIT), *flushes) == [
        Finding(
            id="autoflush-storm",
            severity="warning",
            message="reads at one line caused at least 10 autoflushes in one transaction "
            "(20 Stock, 10 Order)",
            remedy="load what the loop needs before the loop",
            site=LOOP,
            entity="Stock",
            count=10,
            evidence={
                "new": {"Order": 10},
                "dirty": {"Stock": 20},
                "began_at": str(COMMIT),
            },
            **OF_SESSION,
        )
    ]


def test_nine_autoflushes_are_no_storm() -> None:
    assert reported(AutoflushStorm(), *[autoflush() for _ in range(9)]) == []


def test_two_lines_that_stay_below_are_no_storm() -> None:
    both = [autoflush(site) for site in (LOOP, USE) for _ in range(9)]
    assert reported(AutoflushStorm(), *both) == []


def test_a_loop_that_commits_in_between_is_no_storm() -> None:
    began, ended = TransactionBegan(1, LOOP), TransactionEnded(2, COMMIT, "committed", 1)
    loop = [fact for _ in range(20) for fact in (began, *[autoflush()] * 9, ended)]
    assert reported(AutoflushStorm(), *loop) == []


def test_a_savepoint_in_between_does_not_end_the_transaction() -> None:
    released = TransactionEnded(2, COMMIT, "committed", 1, nested=True)
    loop = [fact for _ in range(10) for fact in (autoflush(), released)]
    assert len(reported(AutoflushStorm(), *loop)) == 1


def test_a_storm_is_not_reported_for_each_transaction() -> None:
    began, ended = TransactionBegan(1, LOOP), TransactionEnded(2, COMMIT, "committed", 1)
    loop = [fact for _ in range(3) for fact in (began, *[autoflush()] * 12, ended)]
    assert len(reported(AutoflushStorm(), *loop)) == 1


def test_an_autoflush_with_nothing_to_flush_does_not_count() -> None:
    assert reported(AutoflushStorm(), *[autoflush(unchanged={"Order": 1})] * 20) == []


def test_a_flush_that_was_asked_for_is_no_autoflush() -> None:
    flush = FlushCompleted(1, LOOP, "explicit", MS, {"Order": 1})
    assert reported(AutoflushStorm(), *[flush] * 20) == []


def test_how_many_autoflushes_are_a_storm_can_be_chosen() -> None:
    assert (
        len(reported(AutoflushStorm(), autoflush(), autoflush(), autoflushes_from_one_site=2)) == 1
    )


# large-flush


def test_a_flush_of_more_than_a_thousand_objects_is_large() -> None:
    flush = FlushCompleted(1, COMMIT, "commit", 812 * MS, {"Line": 1000}, {"Order": 1})
    assert reported(LargeFlush(), OPENING, flush) == [
        Finding(
            id="large-flush",
            severity="warning",
            message="one flush contained 1000 Line, 1 Order",
            remedy="session.execute(insert(Line), [{...}, {...}, ...])",
            site=COMMIT,
            entity="Line",
            count=1001,
            evidence={
                "trigger": "commit",
                "new": {"Line": 1000},
                "dirty": {"Order": 1},
                "duration_ms": 812.0,
                "alternatives": ["flush after each batch of objects"],
            },
            **OF_SESSION,
        )
    ]


def test_a_flush_of_a_thousand_objects_is_not_large() -> None:
    flush = FlushCompleted(1, COMMIT, "commit", MS, {"Line": 900}, {"Line": 50}, {"Line": 50})
    assert reported(LargeFlush(), flush) == []


def test_objects_without_a_net_change_do_not_make_a_flush_large() -> None:
    assert (
        reported(LargeFlush(), FlushCompleted(1, COMMIT, "commit", MS, unchanged={"A": 2000})) == []
    )


def test_flushes_are_not_added_up() -> None:
    flush = FlushCompleted(1, COMMIT, "commit", MS, {"Line": 600})
    assert reported(LargeFlush(), flush, flush) == []


@pytest.mark.parametrize(
    ("contents", "remedy"),
    [
        ({"new": {"Line": 2}}, "session.execute(insert(Line), [{...}, {...}, ...])"),
        ({"dirty": {"Line": 2}}, "session.execute(update(Line), [{...}, {...}, ...])"),
        ({"deleted": {"Line": 2}}, "session.execute(delete(Line).where(...))"),
    ],
)
def test_the_remedy_of_a_large_flush_is_for_most_of_it(contents: Any, remedy: str) -> None:
    flush = FlushCompleted(1, COMMIT, "commit", MS, **contents)
    assert remedies(reported(LargeFlush(), flush, large_flush_objects=1)) == [remedy]
    assert remedies(reported(LargeFlush(), flush, large_flush_objects=1, is_async=True)) == [
        f"await {remedy}"
    ]


# unchanged-dirty


def unchanged(**objects: int) -> Fact:
    return FlushCompleted(
        1,
        COMMIT,
        "commit",
        MS,
        dirty={"Author": 3},
        unchanged=objects,
        unchanged_attributes=("Author.name",),
    )


def test_ten_objects_without_a_net_change() -> None:
    assert reported(UnchangedDirty(), OPENING, unchanged(Author=10)) == [
        Finding(
            id="unchanged-dirty",
            severity="info",
            message="10 Author objects in session.dirty had no net change: "
            "Author.name set to the same value",
            remedy="assign only values that differ: the flush compares each of these objects "
            "and writes nothing",
            site=COMMIT,
            entity="Author",
            attribute="name",
            count=10,
            evidence={
                "unchanged": {"Author": 10},
                "unchanged_attributes": ["Author.name"],
                "trigger": "commit",
            },
            **OF_SESSION,
        )
    ]


def test_nine_objects_without_a_net_change_are_few() -> None:
    assert reported(UnchangedDirty(), unchanged(Author=5, Book=4)) == []


def test_objects_of_several_classes_are_counted_together() -> None:
    flush = FlushCompleted(1, COMMIT, "commit", MS, unchanged={"Author": 4, "Book": 6})
    (found,) = reported(UnchangedDirty(), flush)
    assert isinstance(found, Finding)
    assert (found.message, found.entity, found.attribute) == (
        "6 Book, 4 Author in session.dirty had no net change",
        "Book",
        None,
    )

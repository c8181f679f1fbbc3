"""How a session ends: collected, closed with work unsaved, used again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import Finding
from session_tracer.detectors.endings import AbandonedSession, DiscardedChanges, ReusedAfterClose
from session_tracer.facts import (
    ConnectionAcquired,
    ConnectionReleased,
    Database,
    FlushCompleted,
    FlushFailed,
    SessionClosed,
    SessionOpened,
    TransactionBegan,
    TransactionEnded,
)
from tests.detectors.feeding import MS, SECOND, at, reported

if TYPE_CHECKING:
    from session_tracer.facts import Ending, Fact, Outcome

OPENED, USED = at(12, "get_db", "/srv/shop/db.py"), at(20)
ADDED, FLUSHED, CLOSED = at(31, "add"), at(41, "save"), at(50, "close")
POSTGRESQL = Database("postgresql", "orders")
OF_SESSION: dict[str, Any] = {
    "session_id": "9b21e0456789abcd",
    "session_name": "orders-db",
    "session_site": OPENED,
}
BLOCK = "with SessionLocal() as session:\n    ..."
OPENING = SessionOpened(1 * SECOND, OPENED)
BEGUN = TransactionBegan(2 * SECOND, USED)
SAVEPOINT = TransactionBegan(3 * SECOND, USED, nested=True)


def ended(outcome: Outcome, **more: Any) -> TransactionEnded:
    return TransactionEnded(60 * SECOND, CLOSED, outcome, 58 * SECOND, **more)


def closed(ending: Ending = "close", **more: Any) -> SessionClosed:
    return SessionClosed(61 * SECOND, CLOSED, ending, "closed", **more)


def flushed(**counts: Any) -> FlushCompleted:
    return FlushCompleted(5 * SECOND, FLUSHED, "explicit", MS, **counts)


# Abandoned sessions.


def abandoned(*facts: Fact, ending: Ending = "collected", **left: Any) -> list[Any]:
    """A scope that is taken while its transaction is open and holds a connection."""
    return reported(
        AbandonedSession(),
        OPENING,
        BEGUN,
        ConnectionAcquired(3 * SECOND, POSTGRESQL, USED),
        *facts,
        ConnectionReleased(60 * SECOND, 57 * SECOND, 1, POSTGRESQL),
        ended("abandoned"),
        closed(ending, **left),
    )


def test_a_session_is_collected_with_what_it_had_not_saved() -> None:
    found = abandoned(
        flushed(new={"Order": 3}), added={"Invoice": 412}, modified={"Stock": 1}, added_site=ADDED
    )
    assert found == [
        Finding(
            id="abandoned-session",
            severity="error",
            message="session 9b21e0 (orders-db) was garbage collected without being closed, "
            "and lost 412 Invoice added, 1 Stock modified (never flushed) "
            "and 3 Order added (flushed, never committed)",
            remedy=BLOCK,
            site=OPENED,
            **OF_SESSION,
            count=416,
            evidence={
                "ending": "collected",
                "age_ms": 60_000.0,
                "held_ms": 57_000.0,
                "added": {"Invoice": 412},
                "modified": {"Stock": 1},
                "flushed_new": {"Order": 3},
                "added_at": str(ADDED),
                "flushed_at": str(FLUSHED),
                "last_activity_at": str(FLUSHED),
                "last_activity_ago_ms": 56_001.0,
            },
        )
    ]


def test_a_session_that_the_end_of_the_process_takes_held_its_connection() -> None:
    [finding] = abandoned(ending="exit")
    assert finding.message == (
        "session 9b21e0 (orders-db) was still open when the process ended, "
        "and held a connection for 57.0 s"
    )
    assert finding.evidence == {
        "ending": "exit",
        "age_ms": 60_000.0,
        "held_ms": 57_000.0,
        "last_activity_at": str(USED),
        "last_activity_ago_ms": 59_000.0,
    }


def test_a_collected_session_had_a_transaction_open_at_least() -> None:
    [finding] = reported(
        AbandonedSession(), OPENING, BEGUN, ended("abandoned"), closed("collected")
    )
    assert isinstance(finding, Finding)
    assert finding.message == (
        "session 9b21e0 (orders-db) was garbage collected without being closed, "
        "with an open transaction"
    )
    assert "held_ms" not in finding.evidence


def test_the_connection_of_an_earlier_transaction_is_not_held_by_the_last() -> None:
    [finding] = reported(
        AbandonedSession(),
        OPENING,
        BEGUN,
        ConnectionReleased(4 * SECOND, SECOND, 1, POSTGRESQL),
        ended("committed"),
        BEGUN,
        ended("abandoned"),
        closed("collected"),
    )
    assert isinstance(finding, Finding)
    assert "held_ms" not in finding.evidence


def test_one_entity_that_is_lost_is_named() -> None:
    [finding] = abandoned(flushed(dirty={"Order": 1}), added={"Order": 2})
    assert (finding.entity, finding.count) == ("Order", 3)


def test_a_savepoint_that_is_abandoned_first_is_lost_with_its_transaction() -> None:
    [finding] = abandoned(SAVEPOINT, flushed(new={"Order": 3}), ended("abandoned", nested=True))
    assert finding.evidence["flushed_new"] == {"Order": 3}


@pytest.mark.parametrize(
    "facts",
    [
        [OPENING, closed("collected")],
        [OPENING, BEGUN, ended("committed"), closed("collected")],
        [OPENING, BEGUN, ended("rolled_back"), closed("exit")],
        [OPENING, BEGUN, ended("abandoned"), closed("close", added={"Order": 1})],
        [
            OPENING,
            BEGUN,
            SAVEPOINT,
            ended("abandoned", nested=True),
            ended("closed"),
            closed("collected"),
        ],
    ],
    ids=["unused", "committed", "rolled back", "closed", "a savepoint alone"],
)
def test_a_session_without_an_open_transaction_may_be_collected(facts: list[Fact]) -> None:
    assert reported(AbandonedSession(), *facts) == []


# Discarded changes.

ON_CLOSE = ended("closed")


def discarded(*facts: Fact) -> list[Any]:
    return reported(DiscardedChanges(), OPENING, BEGUN, *facts)


def test_changes_that_were_never_flushed_are_discarded() -> None:
    end = closed(
        added={"OrderLine": 4, "Order": 1}, modified={"Stock": 2}, removed={"Cart": 1},
        added_site=ADDED,
    )  # fmt: skip
    assert discarded(ON_CLOSE, end) == [
        Finding(
            id="discarded-changes",
            severity="warning",
            message="close() discarded 4 OrderLine and 1 Order added, 2 Stock modified, "
            "1 Cart deleted (never flushed)",
            remedy="session.commit()  # before the session is closed",
            site=CLOSED,
            **OF_SESSION,
            count=8,
            evidence={
                "added": {"OrderLine": 4, "Order": 1},
                "modified": {"Stock": 2},
                "removed": {"Cart": 1},
                "added_at": str(ADDED),
                "last_activity_at": str(USED),  # a dependency closes for every view
            },
        )
    ]


def test_changes_that_were_flushed_and_not_committed_are_discarded() -> None:
    flush = flushed(new={"Order": 2}, dirty={"Order": 1}, deleted={"Order": 1})
    [finding] = discarded(flush, ON_CLOSE, closed())
    assert finding.message == (
        "close() discarded 2 Order added, 1 Order modified, 1 Order deleted "
        "(flushed, never committed)"
    )
    assert (finding.entity, finding.count) == ("Order", 4)
    assert finding.evidence == {
        "flushed_new": {"Order": 2},
        "flushed_dirty": {"Order": 1},
        "flushed_deleted": {"Order": 1},
        "flushed_at": str(FLUSHED),
    }


def test_the_least_frequent_entities_of_many_are_summed_up() -> None:
    counts = {"A": 1, "B": 5, "C": 4, "D": 3, "E": 2}
    [finding] = discarded(ON_CLOSE, closed("reset", added=counts))
    assert finding.message == ("reset() discarded 5 B, 4 C, 3 D and 3 others added (never flushed)")
    assert finding.evidence["added"] == counts


def test_what_a_released_savepoint_flushed_is_discarded_with_its_transaction() -> None:
    [finding] = discarded(
        flushed(new={"Order": 1}),
        SAVEPOINT,
        flushed(new={"OrderLine": 2}),
        SAVEPOINT,
        flushed(dirty={"Stock": 3}),
        ended("committed", nested=True),
        ended("committed", nested=True),
        ON_CLOSE,
        closed(),
    )
    assert finding.evidence["flushed_new"] == {"Order": 1, "OrderLine": 2}
    assert finding.evidence["flushed_dirty"] == {"Stock": 3}


def test_a_savepoint_that_is_open_as_the_session_closes_is_discarded() -> None:
    in_savepoint = flushed(new={"Order": 2})
    [finding] = discarded(SAVEPOINT, in_savepoint, ended("closed", nested=True), ON_CLOSE, closed())
    assert finding.count == 2


def test_what_a_savepoint_rolled_back_is_gone_with_it_and_the_rest_is_not() -> None:
    [finding] = discarded(
        flushed(new={"Order": 1}),
        SAVEPOINT,
        flushed(new={"OrderLine": 2}),
        ended("rolled_back", nested=True),
        ON_CLOSE,
        closed(),
    )
    assert finding.evidence["flushed_new"] == {"Order": 1}


def test_a_commit_covers_what_came_before_it_alone() -> None:
    [finding] = discarded(
        flushed(new={"Order": 5}),
        ended("committed"),
        BEGUN,
        flushed(new={"Order": 1}),
        ON_CLOSE,
        closed(),
    )
    assert finding.count == 1


@pytest.mark.parametrize(
    "facts",
    [
        [ON_CLOSE, closed()],
        [flushed(), ON_CLOSE, closed()],
        [flushed(new={"Order": 1}), ended("committed"), closed()],
        [flushed(new={"Order": 1}), ended("rolled_back"), closed()],
        [flushed(new={"Order": 1}), ended("closed", error="IntegrityError"), closed()],
        [
            flushed(new={"Order": 1}),
            FlushFailed(6, FLUSHED, "explicit", 1, "IntegrityError"),
            ended("rolled_back"),
            closed(),
        ],
        [SAVEPOINT, flushed(new={"Order": 1}), ended("rolled_back", nested=True), closed()],
        [flushed(new={"Order": 1}), SAVEPOINT, ended("committed", nested=True)],
    ],
    ids=[
        "read", "empty flush", "committed", "rolled back", "COMMIT failed", "flush failed",
        "savepoint rolled back", "still open",
    ],
)  # fmt: skip
def test_what_was_decided_is_not_discarded(facts: list[Fact]) -> None:
    assert discarded(*facts) == []


@pytest.mark.parametrize(
    "end",
    [
        closed(leaving=True, added={"Order": 1}),
        closed(error="ValueError", added={"Order": 1}),
        closed(joined=True, added={"Order": 1}),
        closed("invalidate", added={"Order": 1}),
        closed("collected", added={"Order": 1}),
        closed("exit", added={"Order": 1}),
    ],
    ids=["early end", "error", "joined", "invalidated", "collected", "exit"],
)
def test_there_are_reasons_to_discard(end: SessionClosed) -> None:
    assert discarded(flushed(new={"Order": 1}), ON_CLOSE, end) == []


# Reuse after close: whether it was in a block or generator, the sources say, in
# tests/stories/findings/test_reused_sessions.py.


@pytest.mark.parametrize(
    "opening",
    [
        SessionOpened(9, USED),
        SessionOpened(9, USED, True, "close", CLOSED, True),
        SessionOpened(9, USED, True, "reset", CLOSED, True),
        SessionOpened(9, USED, True, "invalidate", CLOSED, True),
        SessionOpened(9, USED, True, "close", CLOSED, False),
    ],
    ids=["new", "closed explicitly", "reset", "invalidated", "handed on"],
)
def test_a_session_that_no_block_has_closed_is_not_reused(opening: SessionOpened) -> None:
    assert reported(ReusedAfterClose(), opening, BEGUN) == []

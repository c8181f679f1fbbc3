"""What has been open for too long, and still is; the clock is in the facts."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import Finding
from session_tracer.detectors.lasting import IdleOrLongTransaction, LeakedSession
from session_tracer.facts import (
    ConnectionAcquired,
    ConnectionReleased,
    Database,
    FlushCompleted,
    SessionClosed,
    SessionOpened,
    StatementExecuted,
    TimePassed,
    TransactionBegan,
    TransactionEnded,
)
from session_tracer.model.findings import Retraction
from session_tracer.model.live_session import LiveSession
from tests.detectors.feeding import MS, SECOND, PlayedScope, at, reported, reported_by

if TYPE_CHECKING:
    from session_tracer.facts import Ending, Fact

# A process's clock does not begin at 0.
START = 1_000 * SECOND
OPENED, BEGAN = at(12, "get_db", "/srv/shop/db.py"), at(20)
SELECTED, WAITING, CLOSED = at(31, "export"), at(120, "upload"), at(50, "close")
POSTGRESQL = Database("postgresql", "orders")
OF_SESSION: dict[str, Any] = {
    "session_id": "9b21e0456789abcd",
    "session_name": "orders-db",
    "session_site": OPENED,
}
BLOCK = "with SessionLocal() as session:\n    ..."
LIVE = LiveSession(
    id="9b21e0456789abcd",
    name="orders-db",
    age_seconds=252.0,
    opened_site=OPENED,
    owner='thread "export-3"',
    owner_state="running",
    owner_stack=(WAITING, SELECTED),
    transaction="open",
    transaction_seconds=251.5,
    holds_connection=True,
    held_seconds=251.0,
    process_id=31877,
    statements=4,
    sql_seconds=0.8,
    objects={"persistent": 3, "pending": 412, "modified": 2, "deleted": 1},
    pending_entities={"Invoice": 412},
    last_activity_seconds=249.0,
    last_activity_site=BEGAN,
    last_statement_seconds=250.0,
    last_statement_site=SELECTED,
)
SEEN: dict[str, Any] = {
    "owner": 'thread "export-3"',
    "owner_state": "running",
    "doing": [str(WAITING), str(SELECTED)],
    "transaction": "open",
    "transaction_ms": 251_500.0,
    "held_ms": 251_000.0,
    "process_id": 31877,
    "pending": {"Invoice": 412},
    "modified_objects": 2,
    "deleted_objects": 1,
    "last_statement_at": str(SELECTED),
    "last_statement_ago_ms": 250_000.0,
    "last_activity_at": str(BEGAN),
    "last_activity_ago_ms": 249_000.0,
}
ALONE = LiveSession(
    id=LIVE.id,
    name=LIVE.name,
    age_seconds=61.0,
    opened_site=OPENED,
    owner='task "Task-7"',
    transaction="open",
)


def passed(seconds: float, live: LiveSession = LIVE, *, running: bool = False) -> TimePassed:
    """So long after the session was opened, which looks like this now."""
    return TimePassed(START + int(seconds * SECOND), running, lambda: live)


def executed(seconds: float, took: int = 800 * MS) -> StatementExecuted:
    """A statement that ended so long after the session was opened."""
    at_ = START + int(seconds * SECOND)
    return StatementExecuted(at_, SELECTED, "SELECT", "invoice", "Invoice", took)


def closed(seconds: float, ending: Ending = "close") -> SessionClosed:
    return SessionClosed(START + int(seconds * SECOND), CLOSED, ending, "closed")


OPENING = SessionOpened(START, OPENED)
BEGUN = TransactionBegan(START, BEGAN)
HELD = ConnectionAcquired(START, POSTGRESQL, BEGAN)
RELEASED = ConnectionReleased(START + 2 * SECOND, SECOND, 1, POSTGRESQL)
COMMITTED = TransactionEnded(START + 45 * SECOND, CLOSED, "committed", 45 * SECOND)
OPEN = (OPENING, BEGUN, HELD)


# Leaked sessions.


def test_a_session_that_is_not_closed_leaks() -> None:
    assert reported(LeakedSession(), *OPEN, passed(252)) == [
        Finding(
            id="leaked-session",
            severity="error",
            message="session 9b21e0 (orders-db) has done nothing for 4 min 12 s "
            "and holds a connection (PostgreSQL process 31877)",
            remedy=f"commit before the wait at {WAITING}, or open the session after it",
            site=OPENED,
            **OF_SESSION,
            evidence={"age_ms": 252_000.0, **SEEN, "statements": 4, "sql_ms": 800.0},
        )
    ]


def test_a_leak_is_reported_once() -> None:
    found = reported(LeakedSession(), *OPEN, passed(60.001), passed(61), passed(300))
    assert len(found) == 1


def test_a_session_is_no_leak_until_the_time_is_over() -> None:
    assert reported(LeakedSession(), *OPEN, passed(60)) == []
    assert len(reported(LeakedSession(), *OPEN, passed(60), passed(60.001))) == 1
    assert reported(LeakedSession(), *OPEN, passed(2), leak_after_seconds=2) == []
    assert len(reported(LeakedSession(), *OPEN, passed(2.1), leak_after_seconds=2)) == 1


def test_a_session_that_has_begun_no_transaction_is_no_leak() -> None:
    assert reported(LeakedSession(), OPENING, passed(300)) == []


def leak(live: LiveSession, *facts: Fact, running: bool = False) -> Finding:
    [finding] = reported(LeakedSession(), *OPEN, *facts, passed(61, live, running=running))
    assert isinstance(finding, Finding)
    return finding


def test_a_leak_may_hold_no_connection() -> None:
    finding = leak(ALONE)
    assert finding.message == (
        "session 9b21e0 (orders-db) has done nothing for 1 min 1 s and has an open transaction"
    )
    assert finding.severity == "warning"
    assert finding.remedy == BLOCK
    assert finding.evidence == {
        "age_ms": 61_000.0,
        "owner": 'task "Task-7"',
        "doing": [],
        "transaction": "open",
        "transaction_ms": 0.0,
        "statements": 0,
        "sql_ms": 0.0,
    }


def but(live: LiveSession, **changes: Any) -> LiveSession:
    return LiveSession(**{name: getattr(live, name) for name in live.__slots__} | changes)


def test_a_leak_may_have_no_transaction_open_any_more() -> None:
    story = (*OPEN, RELEASED, COMMITTED, passed(106, but(ALONE, transaction="none")))
    [finding] = reported(LeakedSession(), *story)
    assert isinstance(finding, Finding)
    assert finding.message == (
        "session 9b21e0 (orders-db) has done nothing for 1 min 1 s and has no open transaction"
    )
    assert "transaction_ms" not in finding.evidence


@pytest.mark.parametrize(
    ("system", "called"),
    [("mysql", "MySQL"), ("mariadb", "MariaDB"), ("oracle.db", "server"), ("", "server")],
)
def test_a_connection_is_called_as_its_server_calls_it(system: str, called: str) -> None:
    held = ConnectionAcquired(START, Database(system))
    [finding] = reported(LeakedSession(), OPENING, BEGUN, held, passed(61))
    assert isinstance(finding, Finding)
    assert finding.message.endswith(f"holds a connection ({called} process 31877)")


def test_a_connection_whose_process_is_unknown_is_held_all_the_same() -> None:
    assert leak(but(LIVE, process_id=None)).message.endswith("and holds a connection")


SAVE = (
    "commit or roll back, then close the session; "
    "`with SessionLocal() as session:` always closes it"
)


def test_what_to_do_about_a_leak_depends_on_what_it_holds() -> None:
    flush = FlushCompleted(START + 1, SELECTED, "explicit", 1, new={"Order": 1})
    idle_stack = but(LIVE, owner_stack=())
    assert leak(idle_stack).remedy == SAVE
    assert leak(but(idle_stack, objects={})).remedy == BLOCK
    assert leak(but(idle_stack, objects={"persistent": 4})).remedy == BLOCK
    assert leak(but(idle_stack, objects={}), flush).remedy == SAVE
    assert leak(but(idle_stack, objects={}, transaction="none"), flush).remedy == BLOCK


def left(state: str, **changes: Any) -> Finding:
    """The finding about a session whose owner is in this state, 2 s after its last statement."""
    live = but(LIVE, owner_state=state, owner_stack=(), **changes)
    [finding] = reported(LeakedSession(), *OPEN, executed(59), passed(61, live))
    assert isinstance(finding, Finding)
    return finding


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("returned", "get_db() has returned"),
        ("suspended", "get_db() is a generator that is not resumed"),
        ("ended", 'thread "export-3" has ended'),
        ("cancelled", 'thread "export-3" was cancelled'),
        ("failed", 'thread "export-3" has failed'),
    ],
)
def test_a_session_that_no_code_is_left_to_close_leaks(state: str, why: str) -> None:
    finding = left(state)
    assert finding.message == (
        "session 9b21e0 (orders-db) has been open for 1 min 1 s "
        f"and holds a connection (PostgreSQL process 31877); no code is left to close it: {why}"
    )
    assert finding.severity == "error"
    assert (finding.evidence["owner_state"], finding.evidence["doing"]) == (state, [])


def test_a_session_that_no_code_is_left_to_close_is_closed_by_a_block() -> None:
    assert left("returned", objects={}).remedy == BLOCK
    assert left("returned").remedy == SAVE
    assert left("suspended").remedy == (
        "yield inside `with SessionLocal() as session:`, "
        "and close the generator when its caller is done"
    )


@pytest.mark.parametrize("state", ["running", "waiting", ""])
def test_a_session_that_works_all_the_time_is_no_leak(state: str) -> None:
    live = but(LIVE, owner_state=state)
    work = [one for when in range(50, 600, 50) for one in (executed(when), passed(when + 9, live))]
    assert reported(LeakedSession(), *OPEN, *work) == []
    assert len(reported(LeakedSession(), *OPEN, *work, passed(611, live))) == 1


def test_a_statement_that_runs_is_activity() -> None:
    assert reported(LeakedSession(), *OPEN, passed(252, running=True)) == []


def test_objects_that_are_added_are_activity() -> None:
    scope = PlayedScope([LeakedSession()])
    scope.play(*OPEN, passed(30))
    for when in (61, 121, 181):
        scope.ledger.pending_by_class[LiveSession] += 1
        scope.play(passed(when))
    assert scope.reported == []
    scope.play(passed(241))
    assert len(scope.reported) == 1


def test_five_lines_of_the_owners_stack_are_enough() -> None:
    stack = tuple(at(line) for line in range(9))
    assert leak(but(LIVE, owner_stack=stack)).evidence["doing"] == [str(at(n)) for n in range(5)]


@pytest.mark.parametrize("ending", ["close", "reset", "invalidate"])
def test_a_leak_that_is_closed_is_taken_back(ending: Ending) -> None:
    finding, retraction = reported(LeakedSession(), *OPEN, passed(252), closed(371, ending))
    assert retraction == Retraction(
        finding=finding,  # type: ignore[arg-type] # it is one
        message="session 9b21e0 (orders-db) was closed after 6 min 11 s",
        evidence={"age_ms": 371_000.0, "closed_at": str(CLOSED)},
    )


@pytest.mark.parametrize(
    ("ending", "how"),
    [
        ("collected", "was garbage collected without being closed"),
        ("exit", "was still open when the process ended"),
        ("shutdown", "was still open when its application shut down"),
    ],
)
def test_a_leak_that_is_never_closed_is_over_too(ending: Ending, how: str) -> None:
    _, retraction = reported(LeakedSession(), *OPEN, passed(252), closed(371, ending))
    assert isinstance(retraction, Retraction)
    assert retraction.message == f"session 9b21e0 (orders-db) {how}, after 6 min 11 s"


def test_a_finding_that_was_not_reported_is_not_retracted() -> None:
    assert reported(LeakedSession(), *OPEN, passed(59), closed(371)) == []


def elsewhere(scope: PlayedScope, fact: Fact) -> None:
    """Have it happen in the session's own thread, while the watchdog's asks the detector."""
    thread = threading.Thread(target=scope.play, args=(fact,))
    thread.start()
    thread.join()


def test_a_session_that_is_closed_while_it_is_looked_at_is_no_leak() -> None:
    scope = PlayedScope([LeakedSession()])
    scope.play(*OPEN)

    def look() -> LiveSession:
        elsewhere(scope, closed(61))
        return LIVE

    scope.play(TimePassed(START + 61 * SECOND, False, look))
    assert scope.reported == []


# Idle in transaction.

BUSY = (*OPEN, executed(2))


def test_a_connection_waits_for_its_session() -> None:
    assert reported(IdleOrLongTransaction(), *BUSY, passed(9)) == [
        Finding(
            id="idle-in-transaction",
            severity="warning",
            message="session 9b21e0 (orders-db) holds a connection (PostgreSQL process 31877) "
            "and has run no statement for 7.0 s",
            remedy=f"commit or close before the wait at {WAITING}, or wait outside the transaction",
            site=WAITING,
            **OF_SESSION,
            evidence={"idle_ms": 7_000.0, **SEEN, "statements": 1, "sql_ms": 800.0},
        )
    ]


def idle(*facts: Fact, **settings: Any) -> int:
    """The number of transactions that are reported as idle."""
    found = reported(IdleOrLongTransaction(), *facts, **settings)
    return sum(isinstance(one, Finding) and one.id == "idle-in-transaction" for one in found)


def test_a_connection_is_idle_when_the_time_since_its_last_statement_is_over() -> None:
    assert idle(*BUSY, passed(7)) == 0
    assert idle(*BUSY, passed(7.001)) == 1
    assert idle(*BUSY, passed(2.1), idle_in_transaction_seconds=0.1) == 0
    assert idle(*BUSY, passed(2.2), idle_in_transaction_seconds=0.1) == 1


def test_a_connection_on_which_nothing_was_run_is_idle_since_it_was_taken() -> None:
    late = ConnectionAcquired(START + 3 * SECOND, POSTGRESQL)
    assert idle(OPENING, BEGUN, late, passed(8)) == 0
    assert idle(OPENING, BEGUN, late, passed(8.001)) == 1


def test_a_statement_of_an_earlier_transaction_does_not_count() -> None:
    again = TransactionBegan(START + 50 * SECOND, BEGAN)
    held = ConnectionAcquired(START + 50 * SECOND, POSTGRESQL)
    facts: list[Fact] = [*BUSY, RELEASED, COMMITTED, again, held]
    assert idle(*facts, passed(55)) == 0
    assert idle(*facts, passed(55.001)) == 1


def test_a_statement_that_runs_is_not_idle() -> None:
    assert idle(*BUSY, passed(20, running=True)) == 0


def test_a_transaction_without_a_connection_is_not_idle() -> None:
    assert idle(OPENING, BEGUN, passed(20)) == 0
    assert idle(*BUSY, RELEASED, passed(20)) == 0


def test_an_idle_transaction_is_reported_once() -> None:
    assert idle(*BUSY, passed(9), passed(10), executed(11), passed(29)) == 1


def test_an_idle_transaction_is_taken_back_when_it_ends() -> None:
    finding, retraction = reported(IdleOrLongTransaction(), *BUSY, passed(9), RELEASED, COMMITTED)
    assert retraction == Retraction(
        finding=finding,  # type: ignore[arg-type] # it is one
        message="the transaction of session 9b21e0 (orders-db) was committed after 45.0 s",
        evidence={"transaction_ms": 45_000.0, "outcome": "committed", "ended_at": str(CLOSED)},
    )


def test_an_idle_transaction_of_a_session_that_was_left_open() -> None:
    live = but(LIVE, owner_state="returned", owner_stack=())
    [finding] = reported(IdleOrLongTransaction(), *BUSY, passed(9, live))
    assert isinstance(finding, Finding)
    assert finding.site == SELECTED
    assert finding.remedy == (
        "close the session: get_db() has returned; `with SessionLocal() as session:` closes it"
    )


def test_each_transaction_may_be_idle() -> None:
    again = TransactionBegan(START + 50 * SECOND, BEGAN)
    held = ConnectionAcquired(START + 50 * SECOND, POSTGRESQL)
    assert idle(*BUSY, passed(9), RELEASED, COMMITTED, again, held, passed(58)) == 2


def test_a_wait_that_cannot_be_seen_is_named_by_its_last_statement() -> None:
    [finding] = reported(IdleOrLongTransaction(), *BUSY, passed(9, but(LIVE, owner_stack=())))
    assert isinstance(finding, Finding)
    assert finding.site == SELECTED
    assert finding.remedy == "commit or close as soon as the last statement's result is read"
    [finding] = reported(IdleOrLongTransaction(), *OPEN, passed(9, but(LIVE, owner_stack=())))
    assert isinstance(finding, Finding)
    assert finding.site == BEGAN


# Long transactions.

LONG = but(LIVE, owner_stack=())


def test_a_transaction_that_does_not_end_is_long() -> None:
    finding, retraction = reported(
        IdleOrLongTransaction(), *OPEN, executed(29), passed(31, LONG), RELEASED, COMMITTED
    )
    assert finding == Finding(
        id="long-transaction",
        severity="warning",
        message="session 9b21e0 (orders-db) has had a transaction open for 31.0 s, "
        "800 ms of it in SQL",
        remedy="commit as soon as the last statement is done",
        site=BEGAN,
        **OF_SESSION,
        evidence={**SEEN, "doing": [], "statements": 1, "sql_ms": 800.0},
    )
    assert retraction == Retraction(
        finding=finding,
        message="the transaction of session 9b21e0 (orders-db) was committed after 45.0 s",
        evidence={
            "transaction_ms": 45_000.0,
            "outcome": "committed",
            "ended_at": str(CLOSED),
        },
    )


def long(*facts: Fact, **settings: Any) -> list[Any]:
    """The findings about long transactions, without their retractions."""
    found = reported(IdleOrLongTransaction(), *facts, **settings)
    return [one for one in found if isinstance(one, Finding) and one.id == "long-transaction"]


def test_a_transaction_is_not_long_until_the_time_is_over() -> None:
    assert long(*OPEN, executed(29), passed(30)) == []
    assert len(long(*OPEN, executed(29), passed(30.001))) == 1
    assert long(*OPEN, passed(1), long_transaction_seconds=1) == []
    assert len(long(*OPEN, passed(1.1), long_transaction_seconds=1)) == 1


def test_a_long_transaction_is_reported_once() -> None:
    assert len(long(*OPEN, executed(29), passed(31), passed(32), passed(33, running=True))) == 1


def test_a_transaction_without_a_connection_may_be_long() -> None:
    assert len(long(OPENING, BEGUN, passed(31, ALONE))) == 1


def test_what_to_do_about_a_long_transaction_depends_on_what_it_does() -> None:
    [finding] = long(*OPEN, executed(29), passed(31, LIVE))
    assert finding.remedy == f"commit before the work at {WAITING}, or begin after it"
    [finding] = long(*OPEN, executed(30, 20 * SECOND), passed(31, LIVE))
    assert finding.remedy == "commit in batches, so that locks are held for a short time"


def test_what_an_earlier_transaction_did_is_not_this_ones() -> None:
    again = TransactionBegan(START + 50 * SECOND, BEGAN)
    [finding] = long(*BUSY, RELEASED, COMMITTED, again, executed(79, SECOND), passed(81))
    assert finding.message.endswith("for 31.0 s, 1.0 s of it in SQL")
    assert (finding.evidence["statements"], finding.evidence["sql_ms"]) == (1, 1_000.0)


def test_a_savepoint_ends_no_transaction_and_begins_none() -> None:
    savepoint = TransactionBegan(START + 20 * SECOND, BEGAN, nested=True)
    released = TransactionEnded(START + 32 * SECOND, BEGAN, "committed", SECOND, nested=True)
    found = reported(
        IdleOrLongTransaction(), *OPEN, savepoint, executed(29), passed(31), released, passed(33)
    )
    assert len(found) == 1


def test_a_transaction_that_ends_while_it_is_looked_at_is_neither() -> None:
    scope = PlayedScope([IdleOrLongTransaction()])
    scope.play(*BUSY)

    def look() -> LiveSession:
        elsewhere(scope, COMMITTED)
        return LIVE

    scope.play(TimePassed(START + 31 * SECOND, False, look))
    assert scope.reported == []


# Which finding is reported.


def ids(*facts: Fact, **settings: Any) -> list[str]:
    found = reported_by([LeakedSession(), IdleOrLongTransaction()], *facts, **settings)
    return [one.id if isinstance(one, Finding) else f"no {one.finding.id}" for one in found]


def test_an_idle_transaction_is_not_long_as_well() -> None:
    assert ids(*BUSY, passed(9), passed(31), passed(59)) == ["idle-in-transaction"]
    assert ids(*BUSY, passed(31), passed(32)) == ["idle-in-transaction"]


def test_a_long_transaction_is_not_idle_as_well() -> None:
    assert ids(*OPEN, executed(29), passed(31), passed(59)) == ["long-transaction"]


def test_a_suspicion_escalates_and_names_the_earlier_one() -> None:
    facts: list[Fact] = [*BUSY, passed(9), passed(31), passed(61), passed(99)]
    assert ids(*facts) == ["idle-in-transaction", "leaked-session"]
    *_, finding = reported_by([LeakedSession(), IdleOrLongTransaction()], *facts)
    assert isinstance(finding, Finding)
    assert finding.evidence["earlier"] == ["idle-in-transaction"]


def test_a_long_transaction_that_leaks_is_still_taken_back_at_its_end() -> None:
    assert ids(*OPEN, executed(29), passed(31), passed(90), RELEASED, COMMITTED, closed(95)) == [
        "long-transaction",
        "leaked-session",
        "no long-transaction",
        "no leaked-session",
    ]


def test_a_leaked_session_is_neither_idle_nor_long() -> None:
    assert ids(*BUSY, passed(62), passed(63)) == ["leaked-session"]
    again = TransactionBegan(START + 70 * SECOND, BEGAN)
    held = ConnectionAcquired(START + 70 * SECOND, POSTGRESQL)
    assert ids(*BUSY, passed(62), RELEASED, COMMITTED, again, held, passed(120)) == [
        "leaked-session"
    ]


def test_an_ignored_finding_does_not_prevent_another() -> None:
    story = (*BUSY, passed(9), passed(31), passed(32))
    (found,) = reported(IdleOrLongTransaction(), *story, ignore={"idle-in-transaction"})
    assert isinstance(found, Finding)
    assert found.id == "long-transaction"

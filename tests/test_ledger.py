"""Tests that what happens in a session adds up in its ledger, its timeline and its summary."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import CallSite, Finding, SessionSummary, facts
from session_tracer.model.timeline import Step
from tests.detectors.feeding import PlayedScope

if TYPE_CHECKING:
    from session_tracer.facts import Fact, LoadKind, Outcome, Trigger

SHOP = facts.Database("postgresql", "shop", "db.example", 5432)
HERE = CallSite("shop.py", 1, "sell")
THERE = CallSite("shop.py", 2, "sell")
LOOP = CallSite("shop.py", 3, "sell")
OPENED = facts.SessionOpened(1_000, HERE)


def scope_of(*happened: Fact, **settings: Any) -> PlayedScope:
    """A scope in which this happened, with an exporter that asks for everything."""
    scope = PlayedScope([], listens=True, **settings)
    scope.play(*happened)
    return scope


def steps(*happened: Fact) -> list[Step]:
    """The timeline after these facts, in a session that opened at 1,000 ns."""
    return list(scope_of(OPENED, *happened).timeline)


def statement(
    at: int,
    *,
    operation: str = "SELECT",
    entity: str = "Book",
    site: CallSite = HERE,
    eager: str = "",
    error: str = "",
    in_flush: bool = False,
) -> facts.StatementExecuted:
    """A statement on the table of books that took 10 ns."""
    return facts.StatementExecuted(
        at, site, operation, "books", entity, 10, eager, 1, in_flush, error
    )


def test_a_sessions_facts_add_up_to_its_summary() -> None:
    scope = PlayedScope([], listens=True, is_async=True)
    scope.ledger.epoch = 5_000_000_000
    story: list[Fact] = [
        facts.SessionOpened(1_000_000, HERE),
        facts.TransactionBegan(2_000_000, HERE),
        facts.ConnectionAcquired(2_000_000, SHOP),
        facts.StatementExecuted(4_000_000, HERE, "SELECT", "authors", "Author", 1_000_000),
        facts.ObjectsLoaded(4_500_000, HERE, {"Author": 2}),
        facts.AttributeLoaded(6_000_000, LOOP, "relationship", "Author", "books"),
        facts.StatementExecuted(6_000_000, LOOP, "SELECT", "books", "Book", 1_000_000),
        facts.ObjectsLoaded(6_500_000, LOOP, {"Book": 3}),
        facts.AttributeLoaded(8_000_000, LOOP, "relationship", "Author", "books"),
        facts.StatementExecuted(8_000_000, LOOP, "SELECT", "books", "Book", 1_000_000),
        facts.ObjectsLoaded(8_500_000, LOOP, {"Book": 4}),
        facts.TransactionBegan(9_000_000, THERE, nested=True),
        facts.ObjectMerged(9_500_000, THERE, "Book"),
        facts.FlushBegan(10_000_000, THERE, "savepoint"),
        facts.StatementExecuted(
            11_000_000, THERE, "INSERT", "books", "Book", 500_000, in_flush=True
        ),
        facts.FlushCompleted(
            12_000_000,
            THERE,
            "savepoint",
            2_000_000,
            {"Book": 1},
            {"Author": 1},
            {"Book": 2},
            {"Author": 1},
        ),
        facts.TransactionEnded(13_000_000, THERE, "committed", 4_000_000, nested=True),
        facts.ObjectsExpired(14_000_000, THERE, 6),
        facts.ObjectsExpunged(15_000_000, THERE, 2),
        facts.ConnectionReleased(20_000_000, 18_000_000, 3_500_000, SHOP),
        facts.TransactionEnded(20_000_000, THERE, "committed", 18_000_000, 3_000_000),
        facts.SessionClosed(
            21_000_000, THERE, "close", "committed", 7, 1, detached={"Author": 2, "Book": 5}
        ),
    ]
    # What the hooks measure where it happens.
    scope.ledger.identity_map_peak = 9
    finding = Finding(
        id="n-plus-one",
        severity="warning",
        message="Author.books was loaded twice",
        remedy="selectinload(Author.books)",
        site=LOOP,
        session_id=scope.ledger.id,
        session_name="orders-db",
        session_site=HERE,
    )
    scope.play(story[0])
    scope.report.findings = (finding,)
    scope.play(*story[1:])
    assert scope.report.summary() == SessionSummary(
        id="9b21e0456789abcd",
        name="orders-db",
        is_async=True,
        outcome="committed",
        opened_unix_ns=5_001_000_000,
        opened_site=HERE,
        closed_site=THERE,
        ending="close",
        error="",
        database=SHOP,
        duration_ms=20.0,
        held_ms=18.0,
        sql_ms=3.5,
        statements=4,
        transactions=1,
        savepoints=1,
        commits=1,
        rollbacks=0,
        flushes=1,
        failed_flushes=0,
        loaded={"Author": 2, "Book": 7},
        new={"Book": 1},
        dirty={"Author": 1},
        unchanged={"Author": 1},
        deleted={"Book": 2},
        lazy_loads={"relationship": 2},
        expired=6,
        expunged=2,
        merged=1,
        pending=1,
        transitions={
            "pending_to_persistent": 1,
            "persistent_to_deleted": 2,
            "loaded_as_persistent": 9,
            "persistent_to_detached": 7,
        },
        identity_map_size=7,
        identity_map_peak=9,
        timeline=(
            Step(1_000_000, "begin", "", HERE),
            Step(2_000_000, "select", "Author", HERE, 1, 1_000_000, loaded={"Author": 2}),
            Step(4_000_000, "lazy", "Author.books", LOOP, 2, 2_000_000, loaded={"Book": 7}),
            Step(8_000_000, "savepoint", "", THERE),
            Step(8_500_000, "merge", "Book", THERE),
            Step(
                9_000_000,
                "flush",
                "savepoint",
                THERE,
                1,
                2_000_000,
                new={"Book": 1},
                dirty={"Author": 1},
                unchanged={"Author": 1},
                deleted={"Book": 2},
            ),
            Step(12_000_000, "release", "", THERE),
            Step(13_000_000, "expire", "", THERE),
            Step(14_000_000, "expunge", "", THERE),
            Step(16_000_000, "commit", "", THERE, 1, 3_000_000),
            Step(20_000_000, "close", "", THERE),
        ),
        timeline_left_out=0,
        findings=(finding,),
    )


def test_an_unused_session_has_nothing_to_tell() -> None:
    scope = scope_of(OPENED, facts.SessionClosed(2_001_000, THERE, "close", "unused"))
    assert scope.report.summary() == SessionSummary(
        id="9b21e0456789abcd",
        name="orders-db",
        is_async=False,
        outcome="unused",
        opened_unix_ns=1_000,
        opened_site=HERE,
        closed_site=THERE,
        ending="close",
        error="",
        database=None,
        duration_ms=2.0,
        held_ms=0.0,
        sql_ms=0.0,
        statements=0,
        transactions=0,
        savepoints=0,
        commits=0,
        rollbacks=0,
        flushes=0,
        failed_flushes=0,
        timeline=(Step(2_000_000, "close", "", THERE),),
    )


def test_a_summary_does_not_change_with_the_ledger() -> None:
    scope = scope_of(OPENED, statement(1_010), facts.ObjectsLoaded(1_020, HERE, {"Book": 1}))
    summary = scope.report.summary()
    before = copy.deepcopy(summary)
    scope.play(
        facts.ObjectsLoaded(1_030, HERE, {"Book": 1}),
        facts.AttributeLoaded(1_040, HERE, "deferred", "Book", "title"),
        facts.FlushCompleted(1_050, HERE, "explicit", 5, {"Book": 1}, {"Book": 1}),
    )
    assert (summary.loaded, summary.new, summary.dirty, summary.lazy_loads) == (
        before.loaded,
        before.new,
        before.dirty,
        before.lazy_loads,
    )
    assert len(summary.timeline) == len(before.timeline)


@pytest.mark.parametrize(
    ("outcome", "error", "verb", "commits", "rollbacks"),
    [
        ("committed", "", "commit", 1, 0),
        ("rolled_back", "", "rollback", 0, 1),
        ("rolled_back", "sqlite3.OperationalError", "rollback", 0, 1),
        ("closed", "", None, 0, 0),
        ("abandoned", "", None, 0, 0),
        ("closed", "_OTHER", "end", 0, 0),
    ],
)
def test_how_a_transaction_ended(
    outcome: Outcome, error: str, verb: str | None, commits: int, rollbacks: int
) -> None:
    scope = scope_of(
        OPENED,
        facts.TransactionBegan(1_100, HERE, two_phase=True),
        facts.TransactionEnded(1_200, THERE, outcome, 100, 20, error=error),
    )
    ended = [Step(180, verb, "", THERE, 1, 20, error)] if verb else []
    assert list(scope.timeline) == [Step(100, "begin", "two-phase", HERE), *ended]
    assert (scope.ledger.commits, scope.ledger.rollbacks) == (commits, rollbacks)


@pytest.mark.parametrize(
    ("outcome", "verb"),
    [("committed", "release"), ("rolled_back", "rollback to savepoint")],
)
def test_a_savepoints_end_is_neither_commit_nor_rollback(outcome: Outcome, verb: str) -> None:
    scope = scope_of(
        OPENED,
        facts.TransactionBegan(1_100, HERE),
        facts.TransactionBegan(1_200, HERE, nested=True),
        facts.TransactionEnded(1_300, THERE, outcome, 100, nested=True),
    )
    assert list(scope.timeline)[1:] == [
        Step(200, "savepoint", "", HERE),
        Step(300, verb, "", THERE),
    ]
    assert (scope.ledger.commits, scope.ledger.rollbacks) == (0, 0)
    assert (scope.ledger.transactions, scope.ledger.savepoints) == (1, 1)
    assert scope.ledger.transaction_began_at == 1_100


def test_what_an_inner_savepoint_rolled_back_is_not_lost_again_with_the_outer_one() -> None:
    scope = scope_of(
        OPENED,
        facts.TransactionBegan(1_100, HERE),
        facts.FlushCompleted(1_110, HERE, "explicit", 10, new={"Book": 1}),
        facts.TransactionBegan(1_200, HERE, nested=True),
        facts.FlushCompleted(1_210, HERE, "explicit", 10, new={"Book": 2}, dirty={"Author": 1}),
        facts.TransactionBegan(1_300, HERE, nested=True),
        facts.FlushCompleted(1_310, THERE, "explicit", 10, new={"Book": 4}),
        facts.TransactionEnded(1_400, HERE, "rolled_back", 100, nested=True),
    )
    assert scope.ledger.uncommitted() == {
        "flushed_new": {"Book": 3},
        "flushed_dirty": {"Author": 1},
    }
    scope.play(facts.TransactionEnded(1_500, HERE, "rolled_back", 300, nested=True))
    assert scope.ledger.uncommitted() == {"flushed_new": {"Book": 1}}
    assert scope.ledger.new == {"Book": 7}
    scope.play(facts.TransactionEnded(1_600, HERE, "committed", 500))
    assert not scope.ledger.has_uncommitted
    assert scope.ledger.uncommitted() == {}


def test_an_open_transaction_is_known_by_its_beginning() -> None:
    scope = scope_of(OPENED, facts.TransactionBegan(1_100, HERE))
    assert scope.ledger.transaction_began_at == 1_100
    scope.play(facts.TransactionEnded(1_200, HERE, "closed", 100))
    assert scope.ledger.transaction_began_at == 0


@pytest.mark.parametrize(
    ("executed", "verb", "subject"),
    [
        (statement(1_110), "select", "Book"),
        (statement(1_110, operation="UPDATE", entity=""), "update", "books"),
        (statement(1_110, operation="", entity=""), "execute", "books"),
        (statement(1_110, eager="Author.books"), "eager", "Author.books"),
    ],
)
def test_a_statement_is_told_by_what_it_is_for(
    executed: facts.StatementExecuted, verb: str, subject: str
) -> None:
    assert steps(executed) == [Step(100, verb, subject, HERE, 1, 10)]


def test_what_a_flush_executes_is_the_flushs() -> None:
    scope = scope_of(
        OPENED,
        statement(1_110, operation="INSERT", in_flush=True),
        statement(1_130, operation="SAVEPOINT", entity=""),
        statement(1_150, operation="RELEASE", entity=""),
        statement(1_170, operation="ROLLBACK", entity=""),
    )
    assert list(scope.timeline) == []
    assert (scope.ledger.statements, scope.ledger.sql) == (4, 40)


@pytest.mark.parametrize(
    ("kind", "attribute", "verb", "subject"),
    [
        ("relationship", "books", "lazy", "Author.books"),
        ("deferred", "biography", "deferred", "Author.biography"),
        ("expired", "", "expired", "Author"),
        ("refresh", "", "refresh", "Author"),
    ],
)
def test_a_load_is_the_statement_that_follows_it(
    kind: LoadKind, attribute: str, verb: str, subject: str
) -> None:
    assert steps(
        facts.AttributeLoaded(1_110, HERE, kind, "Author", attribute),
        statement(1_110),
        statement(1_210),
    ) == [
        Step(100, verb, subject, HERE, 1, 10),
        Step(200, "select", "Book", HERE, 1, 10),
    ]


def test_what_was_loaded_belongs_to_the_step_before() -> None:
    assert steps(
        statement(1_110),
        facts.ObjectsLoaded(1_120, HERE, {"Book": 2}),
        statement(1_130, site=THERE),
        facts.ObjectsLoaded(1_140, THERE, {"Book": 3}),
    ) == [
        Step(100, "select", "Book", HERE, 1, 10, loaded={"Book": 2}),
        Step(120, "select", "Book", THERE, 1, 10, loaded={"Book": 3}),
    ]


def test_what_was_loaded_before_any_step_is_counted_all_the_same() -> None:
    scope = scope_of(OPENED, facts.ObjectsLoaded(1_120, HERE, {"Book": 2}))
    assert (scope.ledger.loaded, list(scope.timeline)) == ({"Book": 2}, [])


def test_a_repeated_step_remembers_that_one_of_them_failed() -> None:
    assert steps(statement(1_110), statement(1_130, error="KeyError"), statement(1_150)) == [
        Step(100, "select", "Book", HERE, 3, 30, "KeyError")
    ]


@pytest.mark.parametrize("trigger", ["explicit", "autoflush", "commit", "savepoint"])
def test_a_flush_that_failed_wrote_nothing(trigger: Trigger) -> None:
    scope = scope_of(
        OPENED,
        facts.FlushFailed(1_200, HERE, trigger, 100, "sqlite3.IntegrityError", {"Book": 2}),
    )
    assert list(scope.timeline) == [
        Step(100, "flush", trigger, HERE, 1, 100, "sqlite3.IntegrityError", new={"Book": 2})
    ]
    assert (scope.ledger.flushes, scope.ledger.failed_flushes, scope.ledger.new) == (0, 1, {})
    assert not scope.ledger.wrote


@pytest.mark.parametrize(
    ("written", "wrote"),
    [
        (facts.FlushCompleted(1_200, HERE, "commit", 100, new={"Book": 1}), True),
        (facts.FlushCompleted(1_200, HERE, "commit", 100, dirty={"Book": 1}), True),
        (facts.FlushCompleted(1_200, HERE, "commit", 100, deleted={"Book": 1}), True),
        (facts.FlushCompleted(1_200, HERE, "commit", 100, unchanged={"Book": 1}), False),
    ],
)
def test_a_session_wrote_if_a_flush_did(written: facts.FlushCompleted, wrote: bool) -> None:
    assert scope_of(OPENED, written).ledger.wrote is wrote


def test_a_session_that_failed_says_with_what() -> None:
    scope = scope_of(
        OPENED,
        facts.TransactionBegan(1_100, HERE),
        facts.TransactionEnded(1_900, THERE, "closed", 800),
        facts.SessionClosed(2_000, THERE, "close", "failed", error="ValueError"),
    )
    assert list(scope.timeline) == [
        Step(100, "begin", "", HERE),
        Step(1_000, "close", "", THERE, error="ValueError"),
    ]
    assert (scope.ledger.outcome, scope.ledger.error) == ("failed", "ValueError")


def test_two_connections_are_held_both() -> None:
    scope = scope_of(
        OPENED,
        facts.ConnectionReleased(1_100, 70, 5, SHOP),
        facts.ConnectionReleased(1_100, 30, 5, SHOP),
    )
    assert scope.ledger.held == 100


def test_a_long_session_keeps_its_first_and_last_steps() -> None:
    scope = scope_of(OPENED, timeline_steps=4)
    for number in range(10):
        scope.play(statement(1_010 + 10 * number, entity=f"Entity{number}"))
    summary = scope.report.summary()
    assert [step.subject for step in summary.timeline] == [
        "Entity0",
        "Entity1",
        "Entity8",
        "Entity9",
    ]
    assert (summary.timeline_left_out, summary.statements) == (6, 10)


def test_every_fact_is_one_of_those_the_union_names() -> None:
    dated = {
        value
        for value in vars(facts).values()
        if inspect.isclass(value) and "at" in getattr(value, "__slots__", ())
    }
    assert dated == set(facts.Fact.__args__)


def test_facts_that_count_nothing_leave_the_summary_as_it_was() -> None:
    scope = scope_of(OPENED)
    before = scope.report.summary()
    scope.play(
        facts.FlushBegan(1_100, HERE, "explicit"),
        facts.StatementStarted(1_100, "SELECT 1", "SELECT", "SELECT", "", 1, SHOP),
        facts.DetachedLoadFailed(1_100, HERE, "Author", "books", "relationship"),
    )
    assert scope.report.summary() == before

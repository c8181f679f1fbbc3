"""What is seen of the open sessions from outside, at any moment and from any thread."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session, sessionmaker

from session_tracer import Exporter, LiveSession, instrument, live_sessions
from session_tracer.ledger import registry
from session_tracer.testing import capture
from tests.library import Author, Base, Essay, authors, keep
from tests.stories.findings.due import look_ahead
from tests.stories.lines import marked
from tests.twins import Twin, on_each_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Factory = sessionmaker[Session]
ONE = text("SELECT 1")


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[Factory]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


def steady(live: LiveSession) -> LiveSession:
    """The session without what differs from run to run: all but one are times."""
    differs: dict[str, Any] = {
        field.name: 1.0 if getattr(live, field.name) else 0.0
        for field in fields(LiveSession)
        if field.name.endswith("_seconds")
    }
    return replace(live, id="", process_id=None, **differs)


# Every field.


async def be_seen(twin: Twin) -> dict[str, LiveSession]:
    """What is seen of one session at each step of its life."""
    seen: dict[str, LiveSession] = {}

    def see(step: str) -> None:
        (seen[step],) = live_sessions()

    async with twin.session() as session:  # <- opened
        see("opened")
        essay, other = (await session.scalars(select(Essay).order_by(Essay.id))).all()  # <- selects
        see("read")
        essay.title = "on staying"
        await session.delete(other)
        added = authors(2)
        session.add_all(added)
        see("changed")
        await session.flush()  # <- flushes
        see("flushed")
        async with session.begin_nested():  # <- nests
            see("in a savepoint")
        await session.commit()  # <- commits
        see("committed")
    assert len(added) == 2  # an identity map holds what somebody else holds
    return seen


@on_each_database
def test_every_field_of_an_open_session(twin: Twin) -> None:
    opened = marked(be_seen, "<- opened")
    selects = marked(be_seen, "<- selects")
    flushes = marked(be_seen, "<- flushes")

    async def story() -> None:
        await keep(twin, Essay(title="on arriving"), Essay(title="on leaving"))
        with capture(twin.factory, name="shop-db"):
            seen = await be_seen(twin)
            assert live_sessions() == []
        task = asyncio.current_task() if twin.is_async else None
        at_first = LiveSession(
            id="",
            name="shop-db",
            age_seconds=1.0,
            opened_site=opened,
            owner='thread "MainThread"' if task is None else f'task "{task.get_name()}"',
            owner_state="running",
            last_activity_seconds=1.0,
            last_activity_site=opened,
        )
        read = replace(
            at_first,
            first_used_site=selects,
            transaction="open",
            transaction_seconds=1.0,
            holds_connection=True,
            held_seconds=1.0,
            statements=1,
            sql_seconds=1.0,
            objects={"persistent": 2},
            last_activity_site=selects,
            last_statement_seconds=1.0,
            last_statement_site=selects,
        )
        changed = replace(
            read,
            objects={"persistent": 2, "pending": 2, "modified": 1, "deleted": 1},
            pending_entities={"Author": 2},
        )
        assert steady(seen["opened"]) == at_first
        assert steady(seen["read"]) == read
        assert steady(seen["changed"]) == changed
        flushed = steady(seen["flushed"])
        assert flushed == replace(
            read,
            statements=flushed.statements,
            objects={"persistent": 3},
            last_activity_site=flushes,
            last_statement_site=flushes,
        )
        nested = steady(seen["in a savepoint"])
        assert (nested.transaction, nested.holds_connection) == ("savepoint", True)
        assert nested.last_activity_site == marked(be_seen, "<- nests")
        committed = steady(seen["committed"])
        assert committed == replace(
            at_first,
            first_used_site=selects,
            statements=committed.statements,
            sql_seconds=1.0,
            objects={"persistent": 3},
            last_activity_site=marked(be_seen, "<- commits"),
            last_statement_seconds=1.0,
            last_statement_site=committed.last_statement_site,
        )

    twin.run(story)


def test_times_are_seconds_since(factory: Factory) -> None:
    with capture(factory), factory() as session:
        session.execute(ONE)
        before = time.perf_counter()
        (first,) = live_sessions()
        time.sleep(0.05)
        (then,) = live_sessions()
        passed = time.perf_counter() - before
    for name in (
        "age_seconds",
        "transaction_seconds",
        "held_seconds",
        "last_activity_seconds",
        "last_statement_seconds",
    ):
        later = getattr(then, name) - getattr(first, name)
        assert 0.05 <= later <= passed, name
        assert 0 < getattr(first, name) < 20, name


def test_its_findings_so_far(factory: Factory) -> None:
    with capture(factory) as captured, factory() as session:
        session.execute(ONE)
        assert live_sessions()[0].findings == ()
        look_ahead(6)
        look_ahead(61)
        assert live_sessions()[0].findings == tuple(captured.findings)
        assert len(captured.findings) == 2


def test_its_owner_is_who_used_it_last(factory: Factory) -> None:
    with capture(factory):
        session = factory()
        assert live_sessions()[0].owner == 'thread "MainThread"'
        other = threading.Thread(target=session.execute, args=(ONE,), name="export-3")
        other.start()
        other.join()
        assert live_sessions()[0].owner == 'thread "export-3"'
        session.close()


# Which ones.


def test_the_oldest_comes_first(factory: Factory) -> None:
    with capture(factory):
        sessions = [factory() for _ in range(3)]
        sessions[0].close()
        sessions[0].execute(ONE)  # and is the youngest now
        ages = [live.age_seconds for live in live_sessions()]
        assert ages == sorted(ages, reverse=True)
        assert [live.statements for live in live_sessions()] == [0, 0, 1]
        for session in sessions:
            session.close()


def test_only_open_sessions_that_are_traced(factory: Factory) -> None:
    assert live_sessions() == []
    untraced = factory()
    with capture(factory):
        with factory(), factory():
            assert len(live_sessions()) == 2
        assert live_sessions() == []
        kept = factory()
        assert len(live_sessions()) == 1
    assert live_sessions() == []
    kept.close()
    untraced.close()


def test_a_session_that_is_traced_twice_is_one(factory: Factory) -> None:
    orders = instrument(factory, name="orders-db", exporter=Exporter())
    with orders, capture(name="the test's"):
        # What other tests have left for the garbage collector.
        before = {live.id for live in live_sessions()}
        with factory():
            now = [live for live in live_sessions() if live.id not in before]
            assert [live.name for live in now] == ["orders-db"]


# At no cost to anybody.


def test_it_keeps_no_session_alive(factory: Factory) -> None:
    with capture(factory) as captured:
        session = factory()
        session.execute(ONE)
        gone = weakref.ref(session)
        seen = live_sessions()
        del session
        gc.collect()
        assert gone() is None
        assert live_sessions() == []
        assert [summary.outcome for summary in captured.sessions] == ["abandoned"]
    assert [live.statements for live in seen] == [1]


def test_it_loads_nothing_and_asks_nothing(factory: Factory) -> None:
    with factory.begin() as session:
        session.add_all(authors(2))
    with capture(factory) as captured, factory() as session:
        (author, _) = session.scalars(select(Author))
        session.expire_all()
        author.name = "Ada"
        before = len(captured.facts)
        (live,) = live_sessions()
        assert live.objects == {"persistent": 2, "modified": 1}
        assert len(captured.facts) == before
        session.rollback()


def test_it_is_safe_while_sessions_come_and_go(factory: Factory) -> None:
    done = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not done.is_set():
                # Nothing is written: SQLite lets one thread write at a time.
                with factory() as session:
                    session.scalars(select(Author)).all()
                    session.add_all(authors(3))
                    session.rollback()
        except BaseException as error:
            failures.append(error)

    with capture(factory) as captured:
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        most = 0
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            seen = live_sessions()
            most = max(most, len(seen))
            assert all(live.age_seconds >= 0 and live.statements <= 4 for live in seen)
        done.set()
        for worker in workers:
            worker.join()
        assert live_sessions() == []
    assert failures == []
    assert 1 <= most <= 4
    assert captured.metrics.get("session_tracer.errors", []) == []


def test_ten_thousand_open_sessions_are_seen_at_once(factory: Factory) -> None:
    """It takes some 50 ms of this thread; what fails here takes much longer, on any machine."""
    with instrument(factory, exporter=Exporter()):
        sessions = [factory() for _ in range(10_000)]
        for session in sessions:
            session.begin()  # one that was never used is not listed
        took = []
        for _ in range(3):
            began = time.thread_time()
            seen = live_sessions()
            took.append(time.thread_time() - began)
        assert len(seen) == 10_000
        assert min(took) < 0.5
        for session in sessions:
            session.close()


def test_who_holds_a_connection_for_longest_does_not_depend_on_how_long_a_look_takes(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = registry.look

    def slow_look(*arguments: Any, **options: Any) -> LiveSession:
        time.sleep(0.05)
        return look(*arguments, **options)

    monkeypatch.setattr(registry, "look", slow_look)
    with capture(factory), factory() as first, factory() as second:
        for session in (first, second):
            session.connection()
        held = [one.held_seconds for one in registry.holders_of(factory.kw["bind"].pool)]
    assert held == sorted(held, reverse=True)
    assert len(held) == 2

"""Tests which sessions are open together, and that none stays registered."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session, sessionmaker

from session_tracer import Exporter, instrument
from session_tracer.ledger import same_owner
from session_tracer.ledger.registry import LIVE
from session_tracer.testing import capture
from tests.library import Author, Base

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from session_tracer.ledger.ledger import Ledger

Factory = sessionmaker[Session]
ONE = text("SELECT 1")


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[Factory]:
    same_owner.forget()  # what tests that interrupt the tracer have left
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


def together() -> list[int]:
    """How many sessions are open together, for each thread or task that has any."""
    return sorted(len(ledgers) for ledgers in same_owner._TOGETHER.values())


def ledger_of(session: Session) -> Ledger:
    """The ledger of a traced session."""
    (ledger,) = (one for one, ref in LIVE.items() if ref() is session)
    return ledger


def test_a_session_is_there_while_it_is_open_and_was_used(factory: Factory) -> None:
    with capture(factory):
        session = factory()
        assert together() == []
        session.execute(ONE)
        assert together() == [1]
        with factory() as another:
            another.execute(ONE)
            assert together() == [2]
        assert together() == [1]
        session.close()
        assert together() == []
        session.execute(ONE)
        assert together() == [1]
        session.close()
    assert together() == []


def test_a_session_that_is_collected_leaves(factory: Factory) -> None:
    with capture(factory) as captured:
        factory().execute(ONE)
        gc.collect()
        assert len(captured.sessions) == 1
        assert together() == []


def test_a_session_that_is_traced_no_longer_leaves(factory: Factory) -> None:
    with capture(factory):
        session = factory()
        session.execute(ONE)
        assert together() == [1]
    assert together() == []
    session.close()


def test_each_thread_has_sessions_of_its_own(factory: Factory) -> None:
    opened = threading.Barrier(3)

    def work() -> None:
        with factory() as session:
            session.execute(ONE)
            opened.wait(20)
            opened.wait(20)

    with capture(factory):
        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        opened.wait(20)
        assert together() == [1, 1]
        opened.wait(20)
        for worker in workers:
            worker.join()
        assert together() == []


def test_a_session_is_with_who_opened_it_and_who_uses_it(factory: Factory) -> None:
    async def serve() -> None:
        session = await asyncio.to_thread(factory)
        for _ in range(5):
            await asyncio.to_thread(session.execute, ONE)
            assert together() == [1, 1]
        await asyncio.to_thread(session.close)
        assert together() == []

    with capture(factory):
        asyncio.run(serve())


def test_a_session_that_comes_back_to_who_opened_it_is_there_once(factory: Factory) -> None:
    with capture(factory):
        session = factory()
        session.execute(ONE)
        other = threading.Thread(target=session.execute, args=(ONE,))
        other.start()
        other.join()
        assert together() == [1, 1]
        session.execute(ONE)
        assert together() == [1]
        session.close()
        assert together() == []


def test_a_session_that_lives_on_remembers_few_of_the_others_commits(factory: Factory) -> None:
    with capture(factory):
        lasting = factory()
        lasting.execute(ONE)
        for number in range(40):
            with factory.begin() as session:
                session.add(Author(name=f"author {number}"))
        assert len(ledger_of(lasting).beside) == 16
        lasting.close()


def test_each_session_that_splits_the_writes_is_reported_once(factory: Factory) -> None:
    with capture(factory) as captured:
        sessions = [factory() for _ in range(3)]
        for number, session in enumerate(sessions):
            session.add(Author(name=f"author {number}"))
            session.commit()
        for number, session in enumerate(sessions):
            session.add(Author(name=f"another author {number}"))
            session.commit()
        for session in sessions:
            session.close()
    _, second, third = (summary.id for summary in captured.sessions)
    assert [finding.session_id for finding in captured.findings] == [second, third]


def test_a_child_process_forgets_its_parents_sessions(factory: Factory) -> None:
    with capture(factory):
        session = factory()
        session.execute(ONE)
        known = dict(same_owner._TOGETHER)
        same_owner.forget()
        assert together() == []
        session.execute(ONE)
        session.close()  # it leaves where it never was
        assert known
    assert together() == []


def test_sessions_that_come_and_go_in_many_threads_leave_none(factory: Factory) -> None:
    def work() -> None:
        for _ in range(50):
            with factory() as session, factory():
                session.execute(select(1))

    with instrument(factory, exporter=Exporter(), detectors=[]):
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert together() == []


async def used_by_many_tasks(session: Any) -> None:
    for _ in range(5):
        await asyncio.create_task(asyncio.to_thread(session.execute, ONE))


def test_the_previous_user_of_a_session_is_forgotten(factory: Factory) -> None:
    with capture(factory):
        session = factory()
        asyncio.run(used_by_many_tasks(session))
        assert together() == [1, 1]
        session.close()
    assert together() == []

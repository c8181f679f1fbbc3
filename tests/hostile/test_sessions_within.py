"""That an application may keep what it is told in the very database whose sessions are traced."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from session_tracer import Exporter, instrument, live_sessions
from session_tracer.testing import capture
from tests.hostile.worlds import errors, library
from tests.library import Author
from tests.outline import outline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from session_tracer import Finding
    from session_tracer.facts import Fact


class LogBase(DeclarativeBase):
    """What the log is mapped with."""


class Said(LogBase):
    """A finding that the application keeps."""

    __tablename__ = "said"

    id: Mapped[int] = mapped_column(primary_key=True)
    finding: Mapped[str]
    line: Mapped[int]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = library(tmp_path / "library.db")
    LogBase.metadata.create_all(engine)
    with engine.connect() as connection:
        # One may write while another one reads.
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    yield engine
    engine.dispose()


def kept(engine: Engine) -> list[str]:
    """What the application has kept."""
    with engine.connect() as connection:
        return list(connection.scalars(select(Said.finding).order_by(Said.id)))


def test_findings_are_kept_by_a_session_of_the_same_factory(engine: Engine) -> None:
    maker = sessionmaker(engine)

    def keep(finding: Finding) -> None:
        with maker.begin() as session:
            session.add(Said(finding=finding.id, line=finding.site.line if finding.site else 0))

    with capture(maker) as told, instrument(maker, exporter=Exporter(on_finding=keep)):
        with maker() as session:
            authors = session.scalars(select(Author)).all()
            for _ in range(2):
                session.rollback()
                assert [len(author.books) for author in authors] == [2, 2, 2]
        with maker() as session:
            session.scalars(select(Author)).all()
            session.commit()
            for _ in range(5):
                session.scalar(select(Author.name))
    assert kept(engine) == [finding.id for finding in told.findings]
    assert len(kept(engine)) > 0
    assert len(told.sessions) == 2
    assert live_sessions() == []


async def test_findings_are_kept_by_a_task_of_the_same_async_factory(engine: Engine) -> None:
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
    maker = async_sessionmaker(async_engine)
    keeping: list[asyncio.Task[None]] = []

    async def write(finding: Finding) -> None:
        async with maker.begin() as session:
            session.add(Said(finding=finding.id, line=finding.count))

    def keep(finding: Finding) -> None:
        keeping.append(asyncio.get_running_loop().create_task(write(finding)))

    with capture(maker) as told, instrument(maker, exporter=Exporter(on_finding=keep)):
        async with maker() as session:
            for _ in range(6):
                await session.scalar(select(Author.name).order_by(Author.id))
            await session.rollback()
        await asyncio.gather(*keeping)
    await async_engine.dispose()
    assert kept(engine) == ["repeated-select"]
    # The task's session is a session like any other, and is told of; it has nothing to be said.
    assert [summary.outcome for summary in told.sessions] == ["rolled_back", "committed"]
    assert [finding.id for finding in told.findings] == ["repeated-select"]
    assert errors(told) == {}


def test_facts_are_answered_with_the_session_that_is_judged_and_with_others(
    engine: Engine,
) -> None:
    maker = sessionmaker(engine)
    sessions: list[Session] = []
    got: list[Any] = []

    def answer(fact: Fact) -> None:
        with maker() as other:
            got.append(len(other.scalars(select(Author)).all()))
        got.extend(session.in_transaction() for session in sessions)

    with instrument(maker, exporter=Exporter(on_fact=answer)), maker() as session:
        sessions.append(session)
        session.scalars(select(Author)).all()
        session.commit()
    assert set(got) == {3, True, False}
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # a QueuePool


def test_an_applications_listeners_use_sessions_amid_its_sessions_events(engine: Engine) -> None:
    maker = sessionmaker(engine)
    seen: list[int] = []

    def amid(*_: Any) -> None:
        with maker() as other:
            seen.append(len(other.scalars(select(Author.id)).all()))

    depth = 0

    def nested(session: Session, transaction: Any) -> None:
        nonlocal depth
        if depth == 0:
            depth += 1
            amid()
            depth -= 1

    event.listen(maker, "after_transaction_create", nested)
    event.listen(maker, "after_transaction_end", nested)
    with capture(maker) as told, maker() as session:
        session.scalars(select(Author)).all()
        session.commit()
    assert seen != []
    assert errors(told) == {}
    opened = [line for line in outline(told.facts) if line == "session opened"]
    closed = [line for line in outline(told.facts) if line.startswith("session close")]
    assert len(opened) == len(closed) == len(seen) + 1


async def test_an_async_session_amid_anothers_run_sync(engine: Engine) -> None:
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")

    def amid(session: Session) -> int:
        with Session(session.bind) as other:
            return len(other.scalars(select(Author)).all())

    with capture() as told:
        async with AsyncSession(async_engine) as session:
            await session.scalars(select(Author))
            assert await session.run_sync(amid) == 3
    await async_engine.dispose()
    assert [summary.statements for summary in told.sessions] == [1, 1]
    assert errors(told) == {}

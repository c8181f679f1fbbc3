"""Stories of sessions on a Connection of somebody else's, and of sessions with two databases."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session, sessionmaker

from session_tracer import Exporter, facts, instrument
from session_tracer.testing import capture
from tests.library import Author, Base, Map, authors
from tests.outline import outline
from tests.signals.telling import Measurements
from tests.twins import Block, Twin


def connected(twin: Twin) -> Any:
    """A connection in an asynchronous block."""
    if isinstance(twin.engine, AsyncEngine):
        return twin.engine.connect()
    return Block(twin.engine.connect())


async def begin_outer(connection: Any) -> Any:
    """The outer transaction of a test's fixture."""
    begun = connection.begin()
    return Block(begun) if isinstance(connection, Connection) else await begun


# Such a session's own SAVEPOINT is no part of its story: SQLAlchemy emits it, as it does BEGIN,
# before it says that the session has the connection.


def test_a_session_joined_to_a_connections_transaction(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with connected(twin) as connection:
                outer = await begin_outer(connection)
                async with twin.session(
                    bind=connection, join_transaction_mode="create_savepoint"
                ) as session:
                    session.add_all(authors(1))
                    await session.commit()
                    (await session.scalars(select(Author))).all()
                    await session.rollback()
                await outer.rollback()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "commit flush began",
            "connection acquired",
            "INSERT authors",
            "flushed +1 Author",
            "RELEASE",
            "connection released",
            "transaction committed",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 1 Author",
            "ROLLBACK",
            "connection released",
            "transaction rolled_back",
            "session close: rolled_back",
        ]

    twin.run(story)


def test_a_joined_session_closed_with_an_open_transaction(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with connected(twin) as connection:
                outer = await begin_outer(connection)
                async with twin.session(
                    bind=connection, join_transaction_mode="create_savepoint"
                ) as session:
                    session.add_all(authors(1))
                    await session.flush()
                await outer.rollback()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "explicit flush began",
            "connection acquired",
            "INSERT authors",
            "flushed +1 Author",
            "ROLLBACK",
            "connection released",
            "transaction closed",
            "session close: closed",
        ]

    twin.run(story)


def test_the_connections_own_statements_are_not_the_sessions(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with connected(twin) as connection:
                outer = await begin_outer(connection)
                async with twin.session(bind=connection) as session:
                    (await session.scalars(select(Author))).all()
                executed = connection.execute(text("SELECT 1"))
                if twin.is_async:
                    await executed
                await outer.rollback()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "connection released",
            "transaction closed",
            "session close: closed",
        ]

    twin.run(story)


@pytest.fixture
def two_databases(tmp_path: Path) -> Any:
    """A sessionmaker for authors in one SQLite file and maps in another."""
    first = create_engine(f"sqlite:///{tmp_path}/authors.db")
    second = create_engine(f"sqlite:///{tmp_path}/maps.db")
    for engine in (first, second):
        Base.metadata.create_all(engine)
    yield sessionmaker(binds={Author: first, Map: second, Map.__mro__[1]: second})
    first.dispose()
    second.dispose()


def test_a_session_with_two_databases_holds_two_connections(
    two_databases: sessionmaker[Session],
) -> None:
    with capture(two_databases) as captured, two_databases() as session:
        session.add_all([*authors(1), Map(scale=25_000)])
        session.commit()
        session.scalars(select(Author)).all()
        session.scalars(select(Map)).all()
    assert outline(captured.facts) == [
        "session opened",
        "transaction began",
        "commit flush began",
        "connection acquired",
        "INSERT authors",
        "connection acquired",
        "INSERT items",
        "INSERT maps",
        "flushed +1 Author, 1 Map",
        "connection released",
        "connection released",
        "transaction committed",
        "transaction began",
        "connection acquired",
        "SELECT Author",
        "loaded 1 Author",
        "connection acquired",
        "SELECT Map",
        "loaded 1 Map",
        "connection released",
        "connection released",
        "transaction closed",
        "session close: committed",
    ]
    (summary,) = captured.sessions
    assert summary.sql_ms < summary.held_ms


def test_each_of_two_connections_is_busy_for_its_own_statements(
    two_databases: sessionmaker[Session],
) -> None:
    with capture(two_databases) as captured, two_databases() as session:
        session.scalars(select(Author)).all()
        for scale in (10_000, 25_000, 50_000):
            session.add(Map(scale=scale))
            session.flush()
        session.scalars(select(Author.name)).all()
        session.rollback()
    spent = {"authors": 0, "maps": 0}
    for fact in captured.facts:
        if isinstance(fact, facts.StatementExecuted):
            spent["authors" if fact.entity == "Author" else "maps"] += fact.duration
    released = [fact for fact in captured.facts if isinstance(fact, facts.ConnectionReleased)]
    assert {Path(one.database.namespace).stem: one.busy for one in released} == spent


def test_two_connections_are_busy_for_what_a_flush_repeats_on_each(
    two_databases: sessionmaker[Session],
) -> None:
    measured, logged = Measurements(), list[Any]()
    exporter = Exporter(meter_provider=measured.provider, on_log=logged.append)
    with instrument(two_databases, exporter=exporter), two_databases() as session:
        session.add_all([*authors(20), *[Map(scale=number) for number in range(20)]])
        session.commit()
    (busy,) = measured.points("sqlalchemy.connection.busy.duration").values()
    (closed,) = [event for event in logged if event["event"] == "session.closed"]
    assert closed["statements"] > 20
    assert busy.count == 2
    assert busy.min > 0
    assert busy.sum * 1_000 == pytest.approx(closed["sql_ms"], abs=0.002)

"""Savepoints within a transaction, and sessions within a transaction of their connection."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.good_code.silence import beginning, silent
from tests.library import Author, Book, authors, keep
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.orm import Session, SessionTransaction

    from tests.twins import Twin


class OutOfStockError(Exception):
    """What the rules of the business raise."""


# Savepoints.


@on_each_database
def test_a_savepoint_for_each_item(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=40):
            async with beginning(twin) as session:
                for author in authors(20):
                    async with session.begin_nested():
                        session.add(author)

    twin.run(story)


def test_a_savepoint_for_each_item_of_which_some_are_refused(twin: Twin) -> None:
    async def take(session: Any, author: Author) -> None:
        async with session.begin_nested():
            session.add(author)
            await session.flush()
            if author.name.endswith("3"):
                raise OutOfStockError

    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=20):
            async with twin.session() as session:
                refused = 0
                for author in authors(9):
                    try:
                        await take(session, author)
                    except OutOfStockError:
                        refused += 1
                await session.commit()
                assert refused == 1
                assert await session.scalar(select(func.count(Author.id))) == 8

    twin.run(story)


def test_a_savepoint_that_is_rolled_back_by_hand(twin: Twin) -> None:
    def try_it(session: Session) -> None:
        session.add(Author(name="Ada"))
        savepoint = session.begin_nested()
        session.add(Author(name="Grace"))
        session.flush()
        savepoint.rollback()

    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=4):
            async with beginning(twin) as session:
                await session.run_sync(try_it)

    twin.run(story)


def test_savepoints_in_savepoints(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=6):
            async with beginning(twin) as session, session.begin_nested():
                session.add(Author(name="Ada"))
                async with session.begin_nested():
                    session.add(Author(name="Grace"))
                session.add(Author(name="Mary"))

    twin.run(story)


# The test fixture: sessions joined to a transaction that is rolled back after each test.


def _real_savepoints(twin: Twin) -> None:
    """Have SQLite's driver leave BEGIN to SQLAlchemy, as SQLAlchemy's documentation shows."""
    engine: Any = twin.engine.sync_engine if isinstance(twin.engine, AsyncEngine) else twin.engine
    if twin.database != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


@asynccontextmanager
async def rolled_back(twin: Twin) -> AsyncIterator[Any]:
    """A connection whose transaction is rolled back at the end of the test."""
    _real_savepoints(twin)
    if isinstance(twin.engine, AsyncEngine):
        async with twin.engine.connect() as connection:
            transaction = await connection.begin()
            yield connection
            await transaction.rollback()
    else:
        with twin.engine.connect() as connection:
            outer = connection.begin()
            yield connection
            outer.rollback()


async def place_order(session: Any, name: str) -> Author:
    """Code of the application, which commits."""
    author = Author(name=name)
    session.add(author)
    await session.commit()
    await session.refresh(author)
    return author


async def names(twin: Twin) -> list[str]:
    """What is in the database for everybody else."""
    async with twin.session() as session:
        return list(await session.scalars(select(Author.name)))


MODES = pytest.mark.parametrize(
    "mode", [{}, {"join_transaction_mode": "create_savepoint"}], ids=["default", "savepoint"]
)


@MODES
def test_a_fixture_around_code_that_commits(twin: Twin, mode: dict[str, Any]) -> None:
    async def story() -> None:
        async with rolled_back(twin) as connection:
            with silent(twin.factory, sessions=1, statements=5):
                async with twin.session(bind=connection, **mode) as session:
                    await place_order(session, "Ada")
                    await place_order(session, "Grace")
                    found = await session.scalars(select(Author.name).order_by(Author.name))
                    assert found.all() == ["Ada", "Grace"]
        assert await names(twin) == []

    twin.run(story)


@MODES
def test_a_fixture_whose_session_is_closed_uncommitted(twin: Twin, mode: dict[str, Any]) -> None:
    async def story() -> None:
        async with rolled_back(twin) as connection:
            with silent(twin.factory, sessions=1, statements=2):
                session = twin.session(bind=connection, **mode)
                session.add(Author(name="Ada"))
                await session.flush()
                (author,) = await session.scalars(select(Author))
                author.name = "Grace"
                session.add(Author(name="Mary"))
                await session.close()
        assert await names(twin) == []

    twin.run(story)


@on_each_database
def test_a_fixture_around_code_that_rolls_back(twin: Twin) -> None:
    async def story() -> None:
        async with rolled_back(twin) as connection:
            with silent(twin.factory, sessions=1, statements=3):
                async with twin.session(
                    bind=connection, join_transaction_mode="create_savepoint"
                ) as session:
                    await place_order(session, "Ada")
                    session.add(Author(name="Grace"))
                    await session.flush()
                    await session.rollback()
                    assert (await session.scalars(select(Author.name))).all() == ["Ada"]
        assert await names(twin) == []

    twin.run(story)


@MODES
def test_a_fixture_around_many_requests(twin: Twin, mode: dict[str, Any]) -> None:
    """The one session stands for that of each request, so one line commits again and again."""

    async def story() -> None:
        async with rolled_back(twin) as connection:
            with silent(twin.factory, sessions=1, statements=60):
                async with twin.session(bind=connection, expire_on_commit=False, **mode) as session:
                    for number in range(60):
                        session.add(Author(name=f"author {number}"))
                        await session.commit()
        assert await names(twin) == []

    twin.run(story)


@MODES
def test_a_fixture_with_two_sessions_of_one_connection(twin: Twin, mode: dict[str, Any]) -> None:
    """One is the test's own, the other the application's."""

    async def story() -> None:
        async with rolled_back(twin) as connection:
            with silent(twin.factory, sessions=2, statements=5):
                async with twin.session(bind=connection, **mode) as ours:
                    ours.add(Author(name="Ada"))
                    await ours.commit()
                    async with twin.session(bind=connection, **mode) as theirs:
                        await place_order(theirs, "Grace")
                    found = await ours.scalars(select(Author.name).order_by(Author.name))
                    assert found.all() == ["Ada", "Grace"]
                    ours.add(Book(title="Notes", author_id=1))
                    await ours.commit()
        assert await names(twin) == []

    twin.run(story)


@MODES
def test_a_fixture_whose_every_request_has_a_session(twin: Twin, mode: dict[str, Any]) -> None:
    async def story() -> None:
        async with rolled_back(twin) as connection:
            with silent(twin.factory, sessions=12, statements=24):
                for number in range(12):
                    async with twin.session(bind=connection, **mode) as session:
                        await place_order(session, f"author {number}")
        assert await names(twin) == []

    twin.run(story)


@on_each_database
def test_a_fixture_whose_connection_restarts_its_savepoint(twin: Twin) -> None:
    """The recipe of SQLAlchemy 1.4: the session's COMMIT ends a savepoint, and another begins."""

    async def story() -> None:
        async with rolled_back(twin) as connection:
            core = getattr(connection, "sync_connection", connection)
            if twin.is_async:
                await connection.begin_nested()
            else:
                connection.begin_nested()
            with silent(twin.factory, sessions=1, statements=60):
                async with twin.session(bind=connection, expire_on_commit=False) as session:

                    @event.listens_for(session.sync_session, "after_transaction_end")
                    def restart(session: Session, ended: SessionTransaction) -> None:
                        if not core.in_nested_transaction():
                            core.begin_nested()

                    for number in range(60):
                        session.add(Author(name=f"author {number}"))
                        await session.commit()
        assert await names(twin) == []

    twin.run(story)


def test_data_that_a_test_keeps_before_it_begins(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        async with rolled_back(twin) as connection:
            with silent(twin.factory, sessions=1):
                async with twin.session(bind=connection) as session:
                    author = await session.get_one(Author, 1)
                    author.name = "Ada"
                    await session.flush()
        assert await names(twin) == ["author 0", "author 1", "author 2"]

    twin.run(story)

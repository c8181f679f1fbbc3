"""Stories of sessions joined to a connection's transaction, or handed from one user to another."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from session_tracer.testing import capture
from tests.good_code.silence import only_async, only_sync
from tests.library import Author, Book, authors
from tests.stories.findings.due import Above, Due, assert_found, look_ahead
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.orm import Session

    from tests.twins import Twin


@asynccontextmanager
async def rolled_back(twin: Twin) -> AsyncIterator[Any]:
    """A connection whose transaction is rolled back in the end, as the fixtures of tests do."""
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


# Joined to a transaction of somebody else's.


async def close_uncommitted(twin: Twin, **options: Any) -> None:
    async with twin.session(**options) as session:
        session.add(Author(name="Ada"))
        await session.flush()
        session.add(Author(name="Grace"))


async def forget_uncommitted(twin: Twin, **options: Any) -> None:
    session = twin.session(**options)
    session.add(Author(name="Ada"))
    await session.flush()


async def commit_each(twin: Twin, **options: Any) -> None:
    async with twin.session(**options) as session:
        for author in authors(4):
            session.add(author)
            await session.commit()


async def begin_nested_for_each(twin: Twin, **options: Any) -> None:
    async with twin.session(**options) as session:
        for author in authors(4):
            async with session.begin_nested():
                session.add(author)
        await session.commit()


async def write_in_two_sessions(twin: Twin, **options: Any) -> None:
    async with twin.session(**options) as session, twin.session(**options) as another:
        session.add(Author(name="Ada"))
        await session.commit()
        another.add(Author(name="Grace"))
        await another.commit()


@pytest.mark.parametrize(
    "work",
    [
        close_uncommitted,
        forget_uncommitted,
        commit_each,
        begin_nested_for_each,
        write_in_two_sessions,
    ],
    ids=lambda story: story.__name__,
)
@pytest.mark.parametrize("mode", ["conditional_savepoint", "create_savepoint"])
def test_what_a_fixture_rolls_back_is_nobodys_mistake(
    twin: Twin, work: Callable[..., Any], mode: str
) -> None:
    async def story() -> None:
        async with rolled_back(twin) as connection:
            with capture(
                twin.factory, commits_from_one_site=3, savepoints_per_transaction=3
            ) as captured:
                await work(twin, bind=connection, join_transaction_mode=mode)
                gc.collect()
                assert len(captured.sessions) == (2 if work is write_in_two_sessions else 1)
        assert_found(captured)

    twin.run(story)


async def wait_joined(twin: Twin, connection: Any) -> None:
    async with twin.session(bind=connection) as session:  # <- opened
        (await session.scalars(select(Author))).all()
        look_ahead(6)  # <- waits
        look_ahead(61)


def test_a_session_that_is_bound_to_a_connection_holds_none_while_it_waits(twin: Twin) -> None:
    async def story() -> None:
        async with rolled_back(twin) as connection:
            with capture(twin.factory) as captured:
                await wait_joined(twin, connection)
        [finding] = captured.findings
        assert finding.id == "leaked-session"
        assert "holds a connection" not in finding.message
        assert "sqlalchemy.connection.held.duration" not in captured.metrics
        assert captured.sessions[0].held_ms == 0

    twin.run(story)


# Handed from one to another.


def open_and_read(twin: Twin) -> Session:
    session: Session = twin.factory()  # <- opened
    session.scalars(select(Author)).all()  # <- first
    return session


def read_again(session: Session) -> None:
    session.scalars(select(Book)).all()


def look_up(twin: Twin) -> None:
    with twin.factory() as session:  # <- inner
        session.scalars(select(Book)).all()  # <- second


def read_and_look_up(session: Session, twin: Twin) -> None:
    session.scalars(select(Author)).all()  # <- acquires
    look_up(twin)


@only_sync
def test_sessions_that_take_turns_on_the_only_thread_of_a_pool(twin: Twin) -> None:
    """Each piece of work is of another request, and so is its connection."""

    async def serve() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        session = await asyncio.to_thread(open_and_read, twin)
        await asyncio.to_thread(look_up, twin)
        await asyncio.to_thread(read_again, session)
        await asyncio.to_thread(session.close)

    async def story() -> None:
        with capture(twin.factory) as captured:
            asyncio.run(serve())
        assert_found(captured)

    twin.run(story)


@only_sync
def test_two_connections_in_one_piece_of_work(twin: Twin) -> None:
    """The session comes from another thread, but what takes the second connection has used it."""

    async def serve() -> None:
        session = await asyncio.to_thread(twin.factory)
        await asyncio.to_thread(read_and_look_up, session, twin)
        await asyncio.to_thread(session.close)

    async def story() -> None:
        with capture(twin.factory) as captured:
            asyncio.run(serve())
        assert_found(
            captured,
            Due(
                id="nested-sessions",
                site=marked(look_up, "<- second"),
                opened=marked(look_up, "<- inner"),
                remedy=captured.findings[0].remedy,
                evidence={
                    "other_acquired_at": str(marked(read_and_look_up, "<- acquires")),
                    "other_held_ms": Above(0),
                },
            ),
        )

    twin.run(story)


async def look_up_in_this_task(twin: Twin) -> None:
    async with twin.session() as session:  # <- inner
        (await session.scalars(select(Book))).all()  # <- second


async def read_and_look_up_in_this_task(session: Any, twin: Twin) -> None:
    (await session.scalars(select(Author))).all()  # <- acquires
    await look_up_in_this_task(twin)


async def read_here_and_look_up_in_a_task(twin: Twin) -> None:
    async with twin.session() as session:
        (await session.scalars(select(Author))).all()
        await asyncio.create_task(look_up_in_this_task(twin))


async def read_and_look_up_in_a_task(twin: Twin) -> None:
    async with twin.session() as session:
        await asyncio.create_task(read_and_look_up_in_this_task(session, twin))


@only_async
def test_two_connections_in_one_task(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await read_here_and_look_up_in_a_task(twin)
            assert_found(captured)
            await read_and_look_up_in_a_task(twin)
        assert_found(
            captured,
            Due(
                id="nested-sessions",
                site=marked(look_up_in_this_task, "<- second"),
                opened=marked(look_up_in_this_task, "<- inner"),
                remedy=captured.findings[0].remedy,
                evidence={
                    "other_acquired_at": str(marked(read_and_look_up_in_this_task, "<- acquires"))
                },
            ),
        )

    twin.run(story)

"""Stories of AsyncSessions that are used on several event loops, and of those that may be."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from session_tracer.testing import capture
from tests.good_code.silence import assert_silent, only_async, only_sync
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from session_tracer.testing import Captured
    from tests.twins import Twin

ALONE = "this session was used on an event loop other than the one it began on"


@pytest.fixture
def maker(twin: Twin) -> async_sessionmaker[AsyncSession]:
    """Each session has a connection of its own, which does not outlive its loop."""
    return async_sessionmaker(create_async_engine(twin.url, poolclass=NullPool))


def run(work: Coroutine[Any, Any, Any], thread: str = "") -> None:
    """Run it on a loop of its own, in a thread of its own if that has a name."""
    if not thread:
        asyncio.run(work)
        return
    runner = threading.Thread(target=asyncio.run, args=(work,), name=thread)
    runner.start()
    runner.join()


async def use_first(session: AsyncSession) -> None:
    await session.execute(text("SELECT 1"))  # <- first
    await session.commit()


async def use_again(session: AsyncSession) -> None:
    await session.execute(text("SELECT 2"))  # <- again
    await session.commit()
    await session.execute(text("SELECT 3"))
    await session.commit()


async def close(session: AsyncSession) -> None:
    await session.close()  # <- closes


def on_two_loops(maker: Any, second: str, again: Callable[[Any], Any]) -> Captured:
    with capture(maker) as captured:
        session = maker()  # <- opened
        run(use_first(session))
        run(again(session), second)
        run(close(session), second)
    return captured


def due(site: Any, loop: str) -> Due:
    return Due(
        id="foreign-loop",
        site=site,
        opened=marked(on_two_loops, "<- opened"),
        remedy="async with SessionLocal() as session:  # one for each event loop",
        evidence={
            "loop_thread": loop,
            "first_loop_thread": "MainThread",
            "first_used_at": str(marked(use_first, "<- first")),
            "alternatives": [
                "create_async_engine(url, poolclass=NullPool), if several loops use the engine"
            ],
        },
    )


@on_each_database
@only_async
def test_a_second_run_of_the_same_thread(twin: Twin, maker: Any) -> None:
    captured = on_two_loops(maker, "", use_again)
    assert_found(captured, due(marked(use_again, "<- again"), "MainThread"))
    assert (captured.findings[0].message, captured.findings[0].severity) == (ALONE, "error")


@on_each_database
@only_async
def test_a_loop_of_another_thread(twin: Twin, maker: Any) -> None:
    captured = on_two_loops(maker, "other loop", use_again)
    assert_found(captured, due(marked(use_again, "<- again"), "other loop"))
    assert captured.findings[0].message == (
        'this session was used on the event loop of thread "other loop", '
        'but it began on that of thread "MainThread"'
    )


@on_each_database
@only_async
def test_a_session_that_is_closed_on_another_loop(twin: Twin, maker: Any) -> None:
    captured = on_two_loops(maker, "", close)
    assert_found(captured, due(marked(close, "<- closes"), "MainThread"))


@on_each_database
@only_async
def test_a_connection_of_another_loop_is_refused_by_the_driver(twin: Twin) -> None:
    if twin.database == "sqlite":
        pytest.skip("aiosqlite has a thread for each connection, whatever loop asks for it")

    async def begin(session: AsyncSession) -> None:
        await session.execute(text("SELECT 1"))

    async def use_too_late(session: AsyncSession) -> None:
        with pytest.raises(Exception, match="loop"):
            await session.execute(text("SELECT 2"))

    with capture(twin.factory) as captured:
        session = twin.factory()
        with asyncio.Runner() as first, asyncio.Runner() as second:
            first.run(begin(session))
            second.run(use_too_late(session))
            first.run(session.invalidate())
        assert [one.id for one in captured.findings] == ["foreign-loop"]


# Beside it.


@only_async
def test_a_session_that_is_made_before_any_loop_runs(twin: Twin, maker: Any) -> None:
    with capture(maker) as captured:
        session = maker()

        async def work() -> None:
            await use_first(session)
            await use_again(session)
            await close(session)

        run(work())
    assert_silent(captured, sessions=1)


@only_async
def test_a_session_that_was_closed_and_begins_anew_on_another_loop(twin: Twin, maker: Any) -> None:
    async def unit(session: AsyncSession) -> None:
        async with session:
            await use_first(session)

    with capture(maker, ignore={"reused-after-close"}) as captured:
        session = maker()
        for _ in range(3):
            run(unit(session))
    assert_silent(captured, sessions=3)


@only_async
def test_a_session_for_each_loop(twin: Twin, maker: Any) -> None:
    async def unit() -> None:
        async with maker() as session:
            await use_first(session)

    with capture(maker) as captured:
        for thread in ("", "one loop", "another loop"):
            run(unit(), thread)
    assert_silent(captured, sessions=3)


@only_async
def test_tasks_and_threads_of_one_loop(twin: Twin, maker: Any) -> None:
    async def unit() -> None:
        async with maker() as session:
            await asyncio.create_task(use_first(session))
            await asyncio.to_thread(session.add_all, [])
            await asyncio.create_task(use_again(session))

    with capture(maker) as captured:
        run(unit())
    assert_silent(captured, sessions=1)


@only_sync
def test_a_session_without_asyncio_knows_no_loop(twin: Twin) -> None:
    async def unit(session: Session) -> None:
        session.execute(text("SELECT 1"))
        session.commit()

    with capture(twin.factory) as captured, twin.factory() as session:
        for _ in range(2):
            run(unit(session))
    assert_silent(captured, sessions=1)
    run(twin.dispose())

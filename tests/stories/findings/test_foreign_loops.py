"""Stories of AsyncSessions that are used on several event loops, and of those that may be."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.exc import InterfaceError, SQLAlchemyError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from session_tracer.testing import capture
from tests.good_code.silence import assert_silent, only_async, only_sync
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked
from tests.twins import on_each_database, on_postgresql

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

    from session_tracer.testing import Captured
    from tests.twins import Twin


# A connection whose loop is gone cannot be closed, only collected.
def leaves_connections(test: Any) -> Any:
    """Mark a test that leaves connections of a loop that is gone, and collects them itself."""
    for message in (
        "ignore:The garbage collector is trying to clean up",
        "ignore::ResourceWarning",
    ):
        test = pytest.mark.filterwarnings(message)(test)
    return test


def collect(engine: AsyncEngine) -> None:
    """Collect the pool's connections: nothing can close one whose loop is gone."""
    asyncio.run(engine.dispose(close=False))
    gc.collect()


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


async def begin(session: AsyncSession) -> None:
    await session.execute(text("SELECT 1"))  # <- begun


async def execute_too_late(session: AsyncSession) -> None:
    with pytest.raises(Exception, match="loop"):
        await session.execute(text("SELECT 2"))  # <- too late


async def commit_too_late(session: AsyncSession) -> None:
    with pytest.raises(Exception, match="loop"):
        await session.commit()  # <- too late


async def leave_too_late(session: AsyncSession) -> None:
    with pytest.raises(Exception, match="loop"):
        async with session:
            await session.commit()  # <- too late


def begin_on_one_and_go_on_on_another(maker: Any, again: Any, thread: str = "") -> Captured:
    """The connection is given back on its own loop, which goes on running."""
    with capture(maker) as captured:
        session = maker()  # <- opened
        with asyncio.Runner() as first:
            first.run(begin(session))
            run(again(session), thread)
            first.run(session.invalidate())
    return captured


@on_postgresql
@only_async
@leaves_connections
@pytest.mark.parametrize("again", [execute_too_late, commit_too_late, leave_too_late])
@pytest.mark.parametrize("thread", ["", "other loop"])
def test_a_session_whose_driver_refuses_another_loop(
    twin: Twin, maker: Any, again: Any, thread: str
) -> None:
    captured = begin_on_one_and_go_on_on_another(maker, again, thread)
    due = Due(
        id="foreign-loop",
        site=marked(again, "<- too late"),
        opened=marked(begin_on_one_and_go_on_on_another, "<- opened"),
        remedy="async with SessionLocal() as session:  # one for each event loop",
        evidence={
            "loop_thread": thread or "MainThread",
            "first_loop_thread": "MainThread",
            "first_used_at": str(marked(begin, "<- begun")),
            "alternatives": [
                "create_async_engine(url, poolclass=NullPool), if several loops use the engine"
            ],
        },
    )
    assert_found(captured, due)
    (finding,) = captured.findings
    refused = f"and the driver refused it ({finding.evidence['error_type']})"
    moved = (
        'this session was used on the event loop of thread "other loop", '
        'but it began on that of thread "MainThread"'
    )
    assert finding.message == f"{moved if thread else ALONE}, {refused}"
    assert finding.severity == "error"


# Beside it.


@on_each_database
@only_async
@pytest.mark.parametrize("thread", ["", "other loop"])
@pytest.mark.parametrize("again", [use_again, close])
def test_a_session_whose_connections_were_given_back(
    twin: Twin, maker: Any, again: Any, thread: str
) -> None:
    assert_silent(on_two_loops(maker, thread, again), sessions=1)


async def execute(session: AsyncSession) -> None:
    await session.execute(text("SELECT 2"))


async def commit(session: AsyncSession) -> None:
    await session.commit()


async def fail(session: AsyncSession) -> None:
    with pytest.raises(SQLAlchemyError):
        await session.execute(text("SELECT no_such_column"))


@only_async
@pytest.mark.parametrize("again", [execute, commit, close, fail])
@pytest.mark.parametrize("thread", ["", "other loop"])
def test_a_driver_that_allows_another_loop(twin: Twin, maker: Any, again: Any, thread: str) -> None:
    with capture(maker) as captured:
        session = maker()
        run(begin(session))
        run(again(session), thread)
        run(close(session))
    assert captured.findings == []


@only_async
def test_one_session_for_tests_that_have_a_loop_each(twin: Twin, maker: Any) -> None:
    """What a fixture of a class does whose session is shared by the tests of the class."""
    with capture(maker) as captured:
        session = maker()
        for work in (begin, execute, commit, use_again, begin, fail, close):
            run(work(session))
    assert captured.findings == []


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


# A connection of the pool that belongs to another loop.


async def use_pooled(factory: Any) -> None:
    async with factory() as session:
        await session.execute(text("SELECT 1"))  # <- pooled


async def wait_for_each_other(factory: Any) -> list[BaseException | None]:
    both = use_pooled(factory), use_pooled(factory)
    return list(await asyncio.gather(*both, return_exceptions=True))


@only_async
def test_a_pool_whose_waiters_are_on_another_loop(twin: Twin) -> None:
    factory = pooled(twin, pool_size=1, max_overflow=0)
    with capture(factory) as captured:
        assert asyncio.run(wait_for_each_other(factory)) == [None, None]
        assert captured.findings == []
        assert [type(one) for one in asyncio.run(wait_for_each_other(factory)) if one] == [
            RuntimeError
        ]
    asyncio.run(factory.kw["bind"].dispose())
    (finding,) = captured.findings
    assert (finding.id, finding.site) == ("foreign-loop", marked(use_pooled, "<- pooled"))
    assert finding.message == (
        "the engine's pool was first used on another event loop, and failed on this one "
        "(RuntimeError)"
    )
    assert finding.remedy.startswith("create_async_engine(url, poolclass=NullPool)")
    without_pool = pooled(twin, poolclass=NullPool)
    with capture(without_pool) as captured:
        for _ in range(2):
            assert asyncio.run(wait_for_each_other(without_pool)) == [None, None]
    assert_silent(captured, sessions=4)


def pooled(twin: Twin, **options: Any) -> Any:
    return async_sessionmaker(create_async_engine(twin.url, **options))


def use_on_two_loops(factory: Any, thread: str = "") -> None:
    run(use_pooled(factory))

    async def refused() -> None:
        with suppress(RuntimeError, SQLAlchemyError):
            await use_pooled(factory)

    run(refused(), thread)


@only_async
@on_postgresql
@leaves_connections
@pytest.mark.parametrize("options", [{}, {"pool_pre_ping": True}], ids=["plain", "with a ping"])
@pytest.mark.parametrize("thread", ["", "another"])
def test_a_pooled_connection_of_another_loop(twin: Twin, options: Any, thread: str) -> None:
    factory = pooled(twin, **options)
    with capture(factory) as captured:
        use_on_two_loops(factory, thread)
    (finding,) = captured.findings
    assert (finding.id, finding.severity) == ("foreign-loop", "error")
    assert finding.site == marked(use_pooled, "<- pooled")
    assert finding.remedy.startswith("create_async_engine(url, poolclass=NullPool)")
    assert "await engine.dispose() before the event loop ends" in finding.evidence["alternatives"]
    assert finding.evidence["loop_thread"] == (thread or "MainThread")
    assert captured.metrics.get("session_tracer.errors", []) == []
    collect(factory.kw["bind"])


@only_async
@on_postgresql
@leaves_connections
def test_the_thread_whose_loop_opened_the_connection_is_named(twin: Twin) -> None:
    factory = pooled(twin)
    loop = asyncio.new_event_loop()
    first = threading.Thread(target=loop.run_forever, name="first")
    first.start()
    over = threading.Event()
    with capture(factory) as captured:
        asyncio.run_coroutine_threadsafe(use_pooled(factory), loop).result(20)
        # The loop runs and does nothing: two threads must not use asyncpg's connection at once.
        loop.call_soon_threadsafe(over.wait, 20)
        with pytest.raises((RuntimeError, InterfaceError)):
            asyncio.run(use_pooled(factory))
        over.set()
    asyncio.run_coroutine_threadsafe(factory.kw["bind"].dispose(), loop).result(20)
    collect(factory.kw["bind"])
    loop.call_soon_threadsafe(loop.stop)
    first.join()
    loop.close()
    (finding,) = captured.findings
    assert finding.evidence["first_loop_thread"] == "first"
    assert 'loop, that of thread "first", and the driver refused it' in finding.message


@only_async
@on_postgresql
def test_the_remedies_for_a_pool_on_two_loops(twin: Twin) -> None:
    without_pool = pooled(twin, poolclass=NullPool)
    with capture(without_pool) as captured:
        use_on_two_loops(without_pool)
        use_on_two_loops(without_pool, "another")
    assert_silent(captured, sessions=4, statements=4)

    async def use_and_dispose() -> None:
        await use_pooled(disposed)
        await disposed.kw["bind"].dispose()

    disposed = pooled(twin)
    with capture(disposed) as captured:
        run(use_and_dispose())
        run(use_and_dispose(), "another")
    assert_silent(captured, sessions=2, statements=2)


@only_async
@on_postgresql
def test_a_driver_whose_connections_work_on_any_loop(twin: Twin) -> None:
    engine = create_async_engine(twin.url.set(drivername="postgresql+psycopg"))
    factory = async_sessionmaker(engine)

    async def fail() -> None:
        async with factory() as session:
            with pytest.raises(SQLAlchemyError):
                await session.execute(text("SELECT no_such_column"))

    with capture(factory) as captured:
        use_on_two_loops(factory)
        run(fail())
    assert captured.findings == []
    asyncio.run(engine.dispose())


@only_async
@on_each_database
def test_statements_that_fail_on_their_own_loop(twin: Twin) -> None:
    async def story() -> None:
        async with twin.session() as session:
            with pytest.raises(SQLAlchemyError):
                await session.execute(text("SELECT no_such_column"))

    with capture(twin.factory) as captured:
        twin.run(story)
    assert captured.findings == []


@only_async
def test_an_error_about_loops_that_is_none_of_the_engines(twin: Twin) -> None:
    lock = asyncio.Lock()

    async def hold_it() -> None:
        async with lock:
            waiting = asyncio.create_task(lock.acquire())
            await asyncio.sleep(0)
            waiting.cancel()

    async def story() -> None:
        async with twin.session() as session:
            await session.execute(text("SELECT 1"))
            async with lock:
                await asyncio.create_task(asyncio.wait_for(lock.acquire(), 1))

    asyncio.run(hold_it())
    with (
        capture(twin.factory) as captured,
        pytest.raises(RuntimeError, match="different event loop"),
    ):
        twin.run(story)
    assert captured.findings == []

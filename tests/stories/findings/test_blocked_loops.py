"""Stories of sessions whose statements keep an event loop waiting, and of those that do not."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from session_tracer.testing import capture
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from session_tracer import Finding
    from session_tracer.testing import Captured

BLOCKING: dict[str, Any] = {"blocked_loop_seconds": 0.05}
SLOW = text("SELECT slow(0.06)")


def slow(seconds: float) -> int:
    time.sleep(seconds)
    return 1


def add_slow(connection: Any, _record: object) -> None:
    connection.create_function("slow", 1, slow)


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    event.listen(engine, "connect", add_slow)
    yield sessionmaker(engine)
    engine.dispose()


async def beside(work: Coroutine[Any, Any, object]) -> None:
    """Run it as one of two tasks."""
    await asyncio.gather(work, asyncio.sleep(0.01))


def blocked(captured: Captured) -> list[Finding]:
    return [one for one in captured.findings if one.id == "blocked-event-loop"]


def test_a_statement_of_a_coroutine_is_reported(factory: sessionmaker[Session]) -> None:
    async def report() -> None:
        with factory() as session:
            session.execute(SLOW)  # <- runs

    with capture(factory, **BLOCKING) as captured:
        asyncio.run(beside(report()))
    (finding,) = captured.findings
    assert finding.id == "blocked-event-loop"
    assert finding.severity == "warning"
    assert finding.site is not None
    assert finding.site.function.endswith("report")
    assert finding.message.startswith(
        "1 statement of this session, which a coroutine ran, kept another task of its event loop "
        "waiting for "
    )
    assert finding.evidence["statements"] == 1
    assert finding.evidence["sql_ms"] >= 60


def test_statements_of_a_function_that_a_coroutine_calls_are_added_up(
    factory: sessionmaker[Session],
) -> None:
    def ask(session: Session) -> None:
        session.execute(text("SELECT slow(0.03)"))  # <- asks

    async def report() -> None:
        with factory() as session:
            for _ in range(6):
                ask(session)

    with capture(factory, **BLOCKING) as captured:
        asyncio.run(beside(report()))
    (finding,) = blocked(captured)
    assert finding.site is not None
    assert finding.site.function.endswith("report")
    assert finding.evidence["used_at"] == str(marked(ask, "<- asks"))
    assert 0 < finding.evidence["statements"] < 6  # while the coroutine runs on


def test_each_task_that_uses_a_session_is_counted_by_itself(
    factory: sessionmaker[Session],
) -> None:
    session = factory()

    async def start() -> None:
        session.execute(SLOW)  # while nothing else is on the loop

    async def handle() -> None:
        session.execute(SLOW)
        session.rollback()

    async def main() -> None:
        await asyncio.create_task(start())
        await beside(handle())
        session.close()

    with capture(factory, **BLOCKING) as captured:
        asyncio.run(main())
    (finding,) = blocked(captured)
    assert finding.site is not None
    assert finding.site.function.endswith("handle")
    assert finding.evidence["statements"] == 1


def test_a_statement_of_the_driver_blocks_as_well(factory: sessionmaker[Session]) -> None:
    async def report() -> None:
        with factory() as session:
            session.connection().exec_driver_sql("SELECT slow(0.06)")

    with capture(factory, **BLOCKING) as captured:
        asyncio.run(beside(report()))
    assert len(blocked(captured)) == 1


def test_less_than_the_threshold_is_not_reported(factory: sessionmaker[Session]) -> None:
    async def report() -> None:
        with factory() as session:
            session.execute(SLOW)

    with capture(factory, blocked_loop_seconds=20.0) as captured:
        asyncio.run(beside(report()))
    assert captured.findings == []


def test_a_scope_is_reported_once(factory: sessionmaker[Session]) -> None:
    async def report() -> None:
        with factory() as session:
            for _ in range(3):
                session.execute(SLOW)

    with capture(factory, **BLOCKING) as captured:
        asyncio.run(beside(report()))
    assert len(blocked(captured)) == 1


async def in_a_thread(factory: sessionmaker[Session]) -> None:
    def work() -> None:
        with factory() as session:
            session.execute(SLOW)

    await asyncio.to_thread(work)


async def by_anyio(factory: sessionmaker[Session]) -> None:
    def work() -> None:
        with factory() as session:
            session.execute(SLOW)

    await anyio.to_thread.run_sync(work)


@pytest.mark.parametrize("work", [in_a_thread, by_anyio])
def test_what_keeps_no_loop_is_not_reported(
    factory: sessionmaker[Session], work: Callable[[Any], Coroutine[Any, Any, None]]
) -> None:
    with capture(factory, **BLOCKING) as captured:
        asyncio.run(beside(work(factory)))
    assert captured.findings == []


def test_a_script_with_one_task_is_not_reported(factory: sessionmaker[Session]) -> None:
    async def main() -> None:
        with factory() as session:
            session.execute(SLOW)
            await asyncio.sleep(0)
            session.execute(SLOW)

    async def waits() -> None:
        await asyncio.create_task(main())

    with capture(factory, **BLOCKING) as captured:
        asyncio.run(main())
        asyncio.run(waits())
    assert captured.findings == []


def test_a_callback_and_a_function_without_a_loop_are_not_reported(
    factory: sessionmaker[Session],
) -> None:
    def work() -> None:
        with factory() as session:
            session.execute(SLOW)

    async def wait() -> None:
        asyncio.get_running_loop().call_soon(work)
        await asyncio.gather(asyncio.sleep(0.1), asyncio.sleep(0.1))

    with capture(factory, **BLOCKING) as captured:
        asyncio.run(wait())
        work()
    assert captured.findings == []


@pytest.fixture
def async_factory(tmp_path: Path) -> async_sessionmaker[AsyncSession]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")

    @event.listens_for(engine.sync_engine, "connect")
    def listen(connection: Any, _record: object) -> None:
        connection.create_function("slow", 1, slow)

    return async_sessionmaker(engine)


def test_an_async_session_blocks_nothing_in_run_sync_either(
    async_factory: async_sessionmaker[AsyncSession],
) -> None:
    async def report() -> None:
        async with async_factory() as session:
            await session.execute(SLOW)
            await session.run_sync(lambda plain: plain.execute(SLOW))
        async with async_factory.kw["bind"].connect() as connection:
            await connection.run_sync(on_a_connection)

    def on_a_connection(connection: Any) -> None:
        with Session(connection) as session:
            session.execute(SLOW)

    async def main() -> None:
        await beside(report())
        await async_factory.kw["bind"].dispose()

    with capture(**BLOCKING) as captured:
        asyncio.run(main())
    assert blocked(captured) == []


@contextmanager
def served(app: FastAPI) -> Iterator[httpx.Client]:
    """A client of a uvicorn that serves the application."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def application(
    factory: sessionmaker[Session], async_factory: async_sessionmaker[AsyncSession]
) -> FastAPI:
    app = FastAPI()

    def get_session() -> Iterator[Session]:
        with factory() as session:
            yield session

    opened: Any = Depends(get_session)

    @app.get("/blocked")
    async def blocks(session: Session = opened) -> int:
        return int(session.scalars(SLOW).one())

    @app.get("/def")
    def in_thread(session: Session = opened) -> int:
        return int(session.scalars(SLOW).one())

    @app.get("/async")
    async def awaits() -> int:
        async with async_factory() as session:
            return int((await session.scalars(SLOW)).one())

    @app.get("/to_thread")
    async def to_thread() -> int:
        def work() -> int:
            with factory() as session:
                return int(session.scalars(SLOW).one())

        return await asyncio.to_thread(work)

    return app


def test_an_async_endpoint_with_a_plain_session_is_reported_and_its_remedies_are_not(
    factory: sessionmaker[Session], async_factory: async_sessionmaker[AsyncSession]
) -> None:
    with (
        capture(**BLOCKING) as captured,
        served(application(factory, async_factory)) as client,
    ):
        for path in ("/def", "/async", "/to_thread"):
            assert client.get(path).json() == 1
        assert captured.findings == []
        assert client.get("/blocked").json() == 1
        # A dependency is left after its response is sent.
        until = time.monotonic() + 5
        while not captured.findings and time.monotonic() < until:
            time.sleep(0.01)
    (finding,) = captured.findings
    assert finding.id == "blocked-event-loop"
    assert finding.site is not None
    assert finding.site.function.endswith("blocks")
    asyncio.run(async_factory.kw["bind"].dispose())

"""Tests that a session which waits for a connection of a pool is seen to wait."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from session_tracer import Exporter, LiveSession, dump, instrument, live_sessions, work
from session_tracer.testing import capture
from tests.library import Author, Base, Book
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from session_tracer import Finding

ONE = text("SELECT 1")
NARROW: dict[str, Any] = {"pool_size": 1, "max_overflow": 0}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def made(name: str = "shop", **options: Any) -> Engine:
        given = {"poolclass": QueuePool, "pool_logging_name": name, **NARROW, **options}
        engine = create_engine(f"sqlite:///{tmp_path / name}.db", **given)
        Base.metadata.create_all(engine)
        engines.append(engine)
        return engine

    yield made
    for engine in engines:
        engine.dispose()


def comes(happened: Callable[[], object]) -> bool:
    until = time.monotonic() + 20
    while not happened() and time.monotonic() < until:
        time.sleep(0.01)
    return bool(happened())


def waiting() -> list[LiveSession]:
    return [live for live in live_sessions() if live.waits_for_pool]


@contextmanager
def threads(*targets: Callable[[], object]) -> Iterator[None]:
    """Run them in threads, which have ended after the block."""
    running = [threading.Thread(target=target) for target in targets]
    for thread in running:
        thread.start()
    yield
    for thread in running:
        thread.join()


def order(factory: Callable[[], Session]) -> None:
    with factory() as session, suppress(PoolTimeoutError):
        session.execute(ONE)  # <- orders


def test_a_session_that_waits_in_a_thread_is_seen_to_wait(make: Callable[..., Engine]) -> None:
    factory = sessionmaker(make())
    with instrument(factory, exporter=Exporter()):
        with factory() as holder:
            holder.execute(ONE)
            with threads(lambda: order(factory)):
                assert comes(lambda: [one for one in waiting() if one.waiting_seconds > 0.2])
                (live,) = waiting()
                assert (live.waits_for_pool, live.is_connecting) == ("shop", False)
                assert live.waiting_seconds <= live.age_seconds
                assert not live.holds_connection
                text_ = io.StringIO()
                dump(text_)
                assert "connection      waited for since 0." in text_.getvalue()
                assert ", pool shop" in text_.getvalue()
                holder.commit()
        assert live_sessions() == []


def test_a_task_that_waits_is_seen_to_wait(tmp_path: Path) -> None:
    async def main() -> None:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}",
            poolclass=AsyncAdaptedQueuePool, pool_logging_name="shop", **NARROW,
        )  # fmt: skip
        factory = async_sessionmaker(engine)

        async def use() -> None:
            async with factory() as session:
                await session.execute(ONE)

        with instrument(factory, exporter=Exporter()):
            async with factory() as holder, asyncio.TaskGroup() as tasks:
                await holder.execute(ONE)
                tasks.create_task(use(), name="GET /slow")
                await asyncio.sleep(0.2)
                (live,) = waiting()
                assert (live.waits_for_pool, live.is_connecting) == ("shop", False)
                assert (live.owner, live.waiting_seconds >= 0.1) == ('task "GET /slow"', True)
                # Seen from another thread, too.
                (seen,) = await asyncio.to_thread(waiting)
                assert seen.id == live.id
                await holder.commit()
            assert waiting() == []
        await engine.dispose()

    asyncio.run(main())


def test_another_session_of_the_thread_does_not_wait(make: Callable[..., Engine]) -> None:
    factory = sessionmaker(make())

    def use() -> None:
        with factory() as first, factory() as second, suppress(PoolTimeoutError):
            first.begin()
            second.execute(ONE)

    with instrument(factory, exporter=Exporter()), factory() as holder:
        holder.execute(ONE)
        with threads(use):
            assert comes(waiting)
            assert len(waiting()) == 1
            assert [one.transaction for one in live_sessions()] == ["open"] * 3
            holder.commit()


def test_a_session_does_not_wait_where_its_thread_waits_for_a_connection_of_its_own(
    make: Callable[..., Engine],
) -> None:
    engine = make()
    factory = sessionmaker(engine)
    began = threading.Event()

    def use() -> None:
        with factory() as session:
            session.begin()
            began.set()
            with engine.connect() as connection:
                connection.execute(ONE)

    with instrument(factory, exporter=Exporter()), factory() as holder:
        holder.execute(ONE)
        with threads(use):
            assert began.wait(10)
            time.sleep(0.2)
            assert waiting() == []
            holder.commit()


def test_a_session_that_runs_a_statement_does_not_wait(make: Callable[..., Engine]) -> None:
    engine = make()
    factory = sessionmaker(engine)
    seen: list[LiveSession] = []
    event.listen(engine, "before_cursor_execute", lambda *_: seen.extend(waiting()))
    with instrument(factory, exporter=Exporter()), factory() as session:
        session.execute(ONE)
    assert seen == []


def test_a_session_that_holds_one_connection_may_wait_for_another(
    make: Callable[..., Engine],
) -> None:
    orders, stock = make("orders"), make("stock")
    factory = sessionmaker(binds={Author: orders, Book: stock})

    def use() -> None:
        with factory() as session:
            session.scalars(select(Author)).all()
            session.scalars(select(Book)).all()

    with instrument(factory, exporter=Exporter()), factory() as holder:
        holder.scalars(select(Book)).all()
        with threads(use):
            assert comes(waiting)
            (live,) = waiting()
            assert (live.waits_for_pool, live.holds_connection) == ("stock", True)
            holder.commit()


def test_a_connection_that_is_being_opened_is_waited_for_as_well(
    make: Callable[..., Engine],
) -> None:
    engine = make(pool_size=2)
    factory = sessionmaker(engine)
    slow, goes_on = threading.Event(), threading.Event()
    with instrument(factory, exporter=Exporter()):
        order(factory)
        engine.dispose()

        def connect_slowly(*_: object) -> None:
            slow.set()
            goes_on.wait(10)

        event.listen(engine, "do_connect", connect_slowly)
        with threads(lambda: order(factory)):
            assert slow.wait(10)
            (live,) = waiting()
            assert (live.waits_for_pool, live.is_connecting) == ("shop", True)
            goes_on.set()


def test_what_is_read_of_a_stack_keeps_nothing_alive(make: Callable[..., Engine]) -> None:
    factory = sessionmaker(make())
    waited: list[weakref.ref[Session]] = []

    def use() -> None:
        session = factory()
        waited.append(weakref.ref(session))
        with suppress(PoolTimeoutError):
            session.execute(ONE)
        session.close()

    with instrument(factory, exporter=Exporter()), factory() as holder:
        holder.execute(ONE)
        with threads(use):
            assert comes(waiting)
            holder.commit()
        gc.collect()
        assert [one() for one in waited] == [None]


# The finding.


def exhausted(findings: list[Finding]) -> Finding:
    (found,) = [one for one in findings if one.id == "pool-exhausted"]
    return found


def test_an_exhausted_pool_lists_the_others_that_wait(make: Callable[..., Engine]) -> None:
    engine = make(pool_timeout=0.5)
    factory = sessionmaker(engine)

    def request(name: str) -> None:
        with work(name):
            order(factory)

    def core() -> None:
        with suppress(PoolTimeoutError), engine.connect() as connection:
            connection.execute(ONE)

    with capture(factory) as captured, factory() as holder:
        holder.execute(ONE)
        every = [lambda: request("GET /a"), *[lambda: request("GET /b")] * 2, core]
        with threads(lambda: request("GET /a")):
            time.sleep(0.25)
            # The first one times out while these wait.
            with threads(*every):
                pass
    found = exhausted(captured.findings)
    assert found.evidence["waiting"] == 4
    waiters = found.evidence["waiters"]
    assert {(one["waits_at"], one["work"], one["sessions"]) for one in waiters} == {
        (str(marked(order, "<- orders")), "GET /a", 1),
        (str(marked(order, "<- orders")), "GET /b", 2),
    }
    assert waiters[0]["work"] == "GET /b"  # where most wait
    assert all(100 < one["waiting_ms"] < 500 for one in waiters)
    assert found.message.endswith(": 1 traced session holds one, 4 more wait for one")


def test_connections_that_are_being_opened_are_held_by_no_other_code(
    make: Callable[..., Engine],
) -> None:
    engine = make(pool_timeout=0.2)
    factory = sessionmaker(engine)
    slow, goes_on = threading.Event(), threading.Event()

    def connect_slowly(*_: object) -> None:
        slow.set()
        goes_on.wait(10)

    with capture(factory) as captured:
        order(factory)
        engine.dispose()
        event.listen(engine, "do_connect", connect_slowly)
        with threads(lambda: order(factory)):
            assert slow.wait(10)
            order(factory)
            goes_on.set()
    found = exhausted(captured.findings)
    assert found.message.endswith(": no traced session holds one, 1 is being opened")
    assert (found.evidence["connecting"], "untraced" in found.evidence) == (1, False)
    assert found.remedy == (
        "check why the database is slow to accept connections: the pool waits for it"
    )

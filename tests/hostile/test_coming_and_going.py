"""That instrumenting and uninstrumenting amid the work of several threads disturbs none of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as context_api
from sqlalchemy import Engine, event, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.orm.events import SessionEvents
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import Exporter, instrument, live_sessions, uninstrument
from tests.hostile.worlds import library
from tests.library import Author

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from session_tracer import SessionSummary

_SECONDS = 1.5


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = library(tmp_path / "library.db")
    read(sessionmaker(engine))  # the dialect learns something from its first statement
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def read(make: Callable[[], Any]) -> list[Any]:
    """A unit of work that takes no lock of the database; what it got."""
    got: list[Any] = []
    with make() as session:
        found = session.scalars(select(Author).order_by(Author.id)).all()
        got += [author.name for author in found]
        got.append(len(found[0].books))
        session.add(Author(name="never kept"))
        session.expunge_all()
        session.add_all(found)
        session.rollback()
        got.append(found[1].name)
    try:
        _ = found[2].books
    except DetachedInstanceError:
        got.append("detached")
    return got


READ = ["author 0", "author 1", "author 2", 2, "author 1", "detached"]


async def read_async(make: Callable[[], Any]) -> list[Any]:
    """The same, awaited."""
    async with make() as session:
        found = (await session.scalars(select(Author).order_by(Author.id))).all()
        names = [author.name for author in found]
        await session.rollback()
        await session.refresh(found[1])
        names.append(found[1].name)
    return names


READ_ASYNC = ["author 0", "author 1", "author 2", "author 1"]


def parts(engine: Engine) -> dict[str, object]:
    """What of SQLAlchemy we touch, to be compared before and after."""
    methods = {
        f"{owner.__name__}.{name}": value
        for owner in (Session, AsyncSession, DetachedInstanceError)
        for name, value in vars(owner).items()
    }
    dispatch = sessionmaker(engine)().dispatch
    listeners = {
        f"listeners of {name}": len(getattr(dispatch, name))
        for name in dir(SessionEvents)
        if not name.startswith("_") and hasattr(dispatch, name)
    }
    # Whoever asks a dialect for its `dispatch` makes it; an empty one has nothing to say.
    dialect = {f"dialect's {name}": True for name in vars(engine.dialect) if name != "dispatch"}
    return {**methods, **listeners, **dialect}


def changes(before: dict[str, object], engine: Engine) -> set[str]:
    """What is no longer as it was."""
    return {name for name, _ in before.items() ^ parts(engine).items()}


def test_threads_that_work_get_what_they_would_while_others_come_and_go(engine: Engine) -> None:
    before = parts(engine)
    maker, other = sessionmaker(engine), sessionmaker(engine)
    scoped = scoped_session(maker)
    targets: list[Any] = [None, maker, other, scoped, Session, maker, None]
    told: list[SessionSummary] = []
    until = time.monotonic() + _SECONDS

    def work(make: Callable[[], Any]) -> list[Any]:
        wrong = []
        context = context_api.get_current()
        while time.monotonic() < until:
            got = read(make)
            if got != READ or context_api.get_current() is not context:
                wrong.append(got)
        return wrong

    def come_and_go(seed: int) -> int:
        chance = random.Random(seed)
        rounds = 0
        while time.monotonic() < until:
            target = chance.choice(targets)
            exporter = Exporter(on_session=told.append)
            with contextlib.suppress(UserWarning):  # that it is instrumented with other options
                instrumentation = instrument(target, exporter=exporter, name=str(seed))
                time.sleep(chance.random() * 0.01)
                instrumentation.uninstrument()
            rounds += 1
        return rounds

    with ThreadPoolExecutor(6) as pool:
        makes = (maker, other, functools.partial(Session, engine), maker)
        workers = [pool.submit(work, make) for make in makes]
        comers = [pool.submit(come_and_go, seed) for seed in (1, 2)]
        assert [worker.result() for worker in workers] == [[]] * 4
        assert min(comer.result() for comer in comers) > 3
    uninstrument()
    gc.collect()
    # Two threads of one process never told a scope twice.
    assert len({summary.id for summary in told}) == len(told) > 10
    assert live_sessions() == []
    # One that a session has started as the last tracer went ends by itself.
    end = time.monotonic() + 10
    while any(one.name.startswith("session_tracer") for one in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert changes(before, engine) == set()
    assert read(maker) == READ
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # a QueuePool


async def test_tasks_that_work_get_what_they_would_while_a_thread_comes_and_goes(
    engine: Engine,
) -> None:
    before = parts(engine)
    async_engine: AsyncEngine = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
    maker = async_sessionmaker(async_engine)
    over = threading.Event()
    rounds = 0

    def come_and_go() -> None:
        nonlocal rounds
        while not over.is_set():
            with instrument([None, maker, AsyncSession][rounds % 3], exporter=Exporter()):
                time.sleep(0.002)
            rounds += 1

    async def work() -> list[Any]:
        until = time.monotonic() + _SECONDS / 2
        wrong = []
        while time.monotonic() < until:
            got = await read_async(maker)
            if got != READ_ASYNC:
                wrong.append(got)
        return wrong

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        got = await asyncio.gather(*(work() for _ in range(5)))
    finally:
        over.set()
        await asyncio.to_thread(thread.join)
    await async_engine.dispose()
    uninstrument()
    assert got == [[]] * 5
    assert rounds > 3
    assert live_sessions() == []
    assert changes(before, engine) == set()


def test_factories_that_are_made_and_forgotten_as_others_are_instrumented(engine: Engine) -> None:
    before = parts(engine)
    until = time.monotonic() + _SECONDS / 2

    def make_and_forget() -> list[Any]:
        wrong = []
        while time.monotonic() < until:
            maker: Any = sessionmaker(engine, class_=type("Own", (Session,), {}))
            seen: list[int] = []
            event.listen(maker, "after_begin", lambda *_, seen=seen: seen.append(1))
            with instrument(maker, exporter=Exporter()):
                got = read(maker)
            if got != READ or len(seen) != 2:
                wrong.append((got, seen))
            del maker
        return wrong

    with ThreadPoolExecutor(3) as pool:
        assert [one.result() for one in [pool.submit(make_and_forget) for _ in range(3)]] == [
            []
        ] * 3
    assert changes(before, engine) == set()

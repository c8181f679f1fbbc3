"""Stories of sessions that serve several requests, and of those that serve one."""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from session_tracer.testing import capture
from tests.good_code.silence import assert_silent, only_async, only_sync
from tests.library import Author
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.trace import Tracer

    from tests.twins import Twin


@pytest.fixture
def tracer() -> Iterator[Tracer]:
    """The application's own, of which nobody hears."""
    provider = TracerProvider(shutdown_on_exit=False)
    yield provider.get_tracer("shop")
    provider.shutdown()


# Nobody selects the same twice.
KEYS = itertools.count(1)


async def unit(session: Any) -> None:
    await session.get(Author, next(KEYS))  # <- begins
    await session.commit()


def due(opened: Any, each: str, count: int, twin: Twin, owners: list[str]) -> Due:
    block = f"{'async with' if twin.is_async else 'with'} SessionLocal() as session:"
    return Due(
        id="shared-session",
        site=marked(opened, "<- opened"),
        opened=marked(opened, "<- opened"),
        remedy=f"{block}  # one for each {each}",
        count=count,
        evidence={"owners": owners, "began_at": str(marked(unit, "<- begins"))},
    )


# Traces.


async def serve(twin: Twin, tracer: Tracer, requests: int) -> None:
    async with twin.session() as session:  # <- opened
        for _ in range(requests):
            with tracer.start_as_current_span("request"):
                await unit(session)


@pytest.mark.parametrize("limit", [3, 2, 5])
def test_a_session_of_several_requests(twin: Twin, tracer: Tracer, limit: int) -> None:
    async def story() -> None:
        if twin.is_async:
            asyncio.current_task().set_name("server")  # type: ignore[union-attr] # there is one
        settings: dict[str, Any] = {} if limit == 3 else {"traces_per_session": limit}
        with capture(twin.factory, **settings) as captured:
            await serve(twin, tracer, requests=limit + 3)
        owner = 'task "server"' if twin.is_async else 'thread "MainThread"'
        assert_found(captured, due(serve, "request", limit, twin, [owner]))
        assert captured.findings[0].message == (
            f"this session began transactions in {limit} different traces"
        )
        with capture(twin.factory, **settings) as captured:
            await serve(twin, tracer, requests=limit - 1)
        assert_silent(captured, sessions=1)

    twin.run(story)


def test_a_session_for_each_request(twin: Twin, tracer: Tracer) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            for _ in range(5):
                with tracer.start_as_current_span("request"):
                    async with twin.session() as session:
                        await unit(session)
        assert_silent(captured, sessions=5)

    twin.run(story)


def test_many_spans_of_one_request(twin: Twin, tracer: Tracer) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured, tracer.start_as_current_span("request"):
            async with twin.session() as session:
                for _ in range(5):
                    with tracer.start_as_current_span("step"):
                        await unit(session)
        assert_silent(captured, sessions=1)

    twin.run(story)


def test_a_session_that_is_closed_between_requests(twin: Twin, tracer: Tracer) -> None:
    async def story() -> None:
        with capture(twin.factory, ignore={"reused-after-close"}) as captured:
            session = twin.session()
            for _ in range(5):
                with tracer.start_as_current_span("request"):
                    await unit(session)
                    await session.close()
        assert_silent(captured, sessions=5)

    twin.run(story)


def test_where_nobody_makes_spans_there_is_one_trace(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                for _ in range(5):
                    await unit(session)
        assert_silent(captured, sessions=1)

    twin.run(story)


# Tasks.


async def serve_alone(session: Any, is_done: asyncio.Event) -> None:
    """A request that the server has begun and does not wait for."""
    await unit(session)
    is_done.set()


async def serve_tasks(twin: Twin, requests: int) -> None:
    async with twin.session() as session:  # <- opened
        running = set()
        for number in range(requests):
            is_done = asyncio.Event()
            task = asyncio.create_task(serve_alone(session, is_done), name=f"request {number}")
            running.add(task)
            await is_done.wait()
        assert len(running) == requests


@only_async
def test_a_session_of_unrelated_tasks(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await serve_tasks(twin, requests=7)
        owners = ['task "request 0"', 'task "request 1"', 'task "request 2"']
        assert_found(captured, due(serve_tasks, "task", 3, twin, owners))
        assert (
            captured.findings[0].message == "this session began transactions in 3 unrelated tasks"
        )
        with capture(twin.factory) as captured:
            await serve_tasks(twin, requests=2)
        assert_silent(captured, sessions=1)

    twin.run(story)


async def by_plain_awaits(session: Any) -> None:
    for _ in range(5):
        await asyncio.create_task(unit(session))


async def by_gather(session: Any) -> None:
    lock = asyncio.Lock()

    async def work() -> None:
        async with lock:
            await unit(session)

    await asyncio.gather(*(work() for _ in range(5)))


async def by_task_group(session: Any) -> None:
    lock = asyncio.Lock()

    async def work() -> None:
        async with lock:
            await unit(session)

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(work())


async def by_timeouts(session: Any) -> None:
    for _ in range(5):
        await asyncio.wait_for(unit(session), 20)


async def by_tasks_of_tasks(session: Any) -> None:
    async def outer() -> None:
        await asyncio.create_task(unit(session))

    for _ in range(5):
        await asyncio.create_task(outer())


@only_async
@pytest.mark.parametrize(
    "work", [by_plain_awaits, by_gather, by_task_group, by_timeouts, by_tasks_of_tasks]
)
def test_tasks_that_one_task_awaits(twin: Twin, work: Any) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await work(session)
        assert_silent(captured, sessions=1, statements=5)

    twin.run(story)


@only_async
def test_a_session_that_one_task_opens_and_its_children_use(twin: Twin) -> None:
    async def story() -> None:
        async def request() -> None:
            async with twin.session() as session:
                await unit(session)
                await by_plain_awaits(session)

        with capture(twin.factory) as captured:
            await asyncio.gather(request(), request())
        assert_silent(captured, sessions=2)

    twin.run(story)


# Threads.


@only_sync
def test_threads_that_hand_a_session_on(twin: Twin) -> None:
    def work(session: Any) -> None:
        session.get(Author, next(KEYS))
        session.commit()

    async def story() -> None:
        with capture(twin.factory) as captured, twin.factory() as session:
            for _ in range(5):
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(work, session).result()
        assert_silent(captured, sessions=1)

    twin.run(story)

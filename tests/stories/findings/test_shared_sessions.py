"""Stories of sessions that serve several requests, and of those that serve one."""

from __future__ import annotations

import asyncio
import itertools
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import text
from sqlalchemy.orm import scoped_session

from session_tracer.testing import capture
from tests.good_code.silence import assert_silent, only_async, only_sync
from tests.library import Author, Base
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

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


def run(twin: Twin, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a story under asyncio that may use a plain Session, as scoped_session may."""
    twin.drive(twin.execute(Base.metadata.create_all))
    asyncio.run(_dispose_after(twin, story))


async def _dispose_after(twin: Twin, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await story()
    await twin.dispose()


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


# Requests, by use: none of them commits.


async def serve_request(
    scope: dict[str, Any],
    receive: Any,
    send: Any,
    *,
    session: Any,
    is_done: asyncio.Event | None = None,
) -> None:
    """An ASGI application."""
    assert (scope["type"], receive, send) == ("http", None, None)
    await session.get(Author, next(KEYS))  # <- uses
    if is_done is not None:
        is_done.set()


async def answer(session: Any, requests: int) -> None:
    """Answer requests one after the other, each in a task that the caller awaits."""
    for _ in range(requests):
        serving = serve_request({"type": "http"}, None, None, session=session)
        await asyncio.create_task(serving, name="a request's")


async def middleware(scope: dict[str, Any], receive: Any, send: Any, *, twin: Twin) -> None:
    """It runs the rest of the request in tasks of their own, which it does not await."""
    async with twin.session() as session:
        await session.get(Author, next(KEYS))
        for _ in range(6):
            is_done = asyncio.Event()
            serving = serve_request(scope, receive, send, session=session, is_done=is_done)
            task = asyncio.create_task(serving)
            await is_done.wait()
            await session.get(Author, next(KEYS))
        await task


async def answer_with_one_session(twin: Twin, requests: int) -> None:
    async with twin.session() as session:  # <- opened
        await answer(session, requests)


def test_a_session_of_several_asgi_requests(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await answer_with_one_session(twin, 6)
        (finding,) = captured.findings
        assert (finding.id, finding.count) == ("shared-session", 3)
        assert finding.message == "this session was used by 3 different requests"
        assert finding.site == marked(answer_with_one_session, "<- opened")
        assert finding.evidence == {
            "owners": ['task "a request\'s"'],
            "used_at": str(marked(serve_request, "<- uses")),
        }
        with capture(twin.factory) as captured:
            await answer_with_one_session(twin, 2)
        assert captured.findings == []

    run(twin, story)


def test_each_request_has_a_session_of_its_own(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            for _ in range(6):
                async with twin.session() as session:
                    await answer(session, 1)
        assert captured.findings == []

    run(twin, story)


def test_many_tasks_of_one_request(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await middleware({"type": "http"}, None, None, twin=twin)
        assert captured.findings == []

    run(twin, story)


# Tasks that interleave in one transaction, as with a scoped_session of the event loop's thread.


async def order(session: Any, paid: asyncio.Event, flushed: asyncio.Event | None = None) -> None:
    session.add(Author(name=f"order {next(KEYS)}"))
    await session.flush()
    if flushed is not None:
        flushed.set()
    await paid.wait()
    await session.flush()  # <- again
    await session.execute(text("SELECT 1"))  # <- returns


async def take_turns(twin: Twin) -> None:
    session = twin.session()  # <- opened
    paid = asyncio.Event()
    first = asyncio.create_task(order(session, paid), name="first")
    await asyncio.sleep(0)
    second = asyncio.create_task(order(session, paid), name="second")
    await asyncio.sleep(0)
    paid.set()
    await asyncio.sleep(0)
    await asyncio.gather(first, second)
    await session.commit()
    await session.close()


async def pass_it_on(twin: Twin) -> None:
    """Each of three tasks does its part of the work, and hands the session on."""
    first: asyncio.Queue[Any] = asyncio.Queue()
    second: asyncio.Queue[Any] = asyncio.Queue()
    done = asyncio.Event()

    async def read() -> None:
        session = twin.session()
        await session.get(Author, next(KEYS))
        await first.put(session)
        await done.wait()

    async def change() -> None:
        session = await first.get()
        session.add(Author(name="new"))
        await session.flush()
        await second.put(session)
        await done.wait()

    async def write() -> None:
        session = await second.get()
        await session.commit()
        await session.close()
        done.set()

    tasks = [asyncio.create_task(one()) for one in (read, change, write)]
    await done.wait()
    await asyncio.gather(*tasks)


@only_sync
def test_tasks_that_take_turns_in_one_transaction(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await take_turns(twin)
        (finding,) = captured.findings
        assert finding.id == "shared-session"
        assert finding.message == (
            "this session was used by 2 unrelated tasks in turns, in one transaction"
        )
        assert finding.site == marked(take_turns, "<- opened")
        assert finding.remedy == (
            "scoped_session(SessionLocal, scopefunc=asyncio.current_task)  # one for each task"
        )

    run(twin, story)


def test_a_session_that_is_handed_from_task_to_task(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await pass_it_on(twin)
        assert captured.findings == []

    run(twin, story)


@only_sync
def test_the_remedy_for_tasks_that_share_a_thread(twin: Twin) -> None:
    async def work(session: Any) -> None:
        session.add(Author(name=f"order {next(KEYS)}"))
        session.flush()
        await asyncio.sleep(0)
        session.execute(text("SELECT 1"))
        session.commit()
        session.remove()

    async def story() -> None:
        session = scoped_session(twin.factory, scopefunc=asyncio.current_task)
        with capture(twin.factory) as captured:
            for _ in range(2):
                await asyncio.create_task(work(session))
        assert captured.findings == []

    run(twin, story)


# What one request has changed is lost because another one closes the session.


async def lose_another_ones(twin: Twin) -> None:
    session = twin.session()
    paid = asyncio.Event()
    flushed = asyncio.Event()
    task = asyncio.create_task(order(session, paid, flushed))
    await flushed.wait()

    async def look() -> None:
        await session.execute(text("SELECT 1"))
        await session.close()

    await asyncio.gather(asyncio.create_task(look()))
    task.cancel()


def test_a_commit_is_no_remedy_for_what_another_task_has_changed(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await lose_another_ones(twin)
        (finding,) = captured.findings
        assert finding.id == "discarded-changes"
        assert "commit" not in finding.remedy
        assert "one for each task" in finding.remedy

    run(twin, story)


# Tests and their fixtures.


@only_async
def test_a_fixtures_session_that_a_test_uses(twin: Twin) -> None:
    class OfUnittest(unittest.IsolatedAsyncioTestCase):
        """Each of its methods is run in a task of its own."""

        async def asyncSetUp(self) -> None:
            self.session = twin.session()
            await unit(self.session)

        async def test(self) -> None:
            await unit(self.session)

        async def asyncTearDown(self) -> None:
            await unit(self.session)
            await self.session.close()

    run(twin, _nothing)
    with capture(twin.factory) as captured:
        result = unittest.TestResult()
        OfUnittest("test").run(result)
        asyncio.run(twin.dispose())
    assert (result.errors, result.failures) == ([], [])
    assert captured.findings == []


async def _nothing() -> None:
    """There is a database with empty tables after this."""


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


# Requests of a WSGI server, each in a thread of its own.


def add_author(session: Any) -> None:
    session.get(Author, 1)  # <- used
    session.add(Author(name=f"a {next(KEYS)}"))
    session.commit()


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@only_sync
def test_a_session_of_several_wsgi_requests(twin: Twin) -> None:
    """What one request does each time is not laid to a loop of the server's."""

    def application(environ: dict[str, Any], start_response: Any) -> None:
        del environ, start_response
        add_author(module["session"])

    # What a module opens, it opens for everyone.
    module: dict[str, Any] = {"sessions": twin.factory}

    async def story() -> None:
        with capture(twin.factory) as captured:
            exec(compile("session = sessions()", __file__, "exec"), module)
            for _ in range(20):
                in_a_thread(lambda: application({}, None))
            module["session"].close()
        (finding,) = captured.findings
        assert finding.id == "shared-session"
        assert finding.message == "this session was used by 3 different requests"
        assert finding.evidence["used_at"] == str(marked(add_author, "<- used"))

    twin.run(story)


@only_sync
def test_threads_of_one_wsgi_request(twin: Twin) -> None:
    """What it repeats in threads is counted, whichever of them used the session before."""

    def application(environ: dict[str, Any], start_response: Any) -> None:
        del environ, start_response
        with twin.factory() as session:
            for _ in range(12):
                session.get(Author, 1)
                in_a_thread(lambda: add_author(session))

    async def story() -> None:
        with capture(twin.factory) as captured:
            in_a_thread(lambda: application({}, None))
        assert "shared-session" not in [one.id for one in captured.findings]
        assert "commit-in-loop" in [one.id for one in captured.findings]

    twin.run(story)


def serve_wsgi(application: Callable[[dict[str, Any], Any], None], **environ: Any) -> None:
    """What a WSGI server does for a request, of which each has its own `start_response`."""

    def start_response(status: str) -> None:
        del status

    application(environ, start_response)


@only_sync
def test_requests_that_a_server_runs_one_after_the_other(twin: Twin) -> None:
    """What each of them does once is not laid to the server's loop."""

    def application(environ: dict[str, Any], start_response: Any) -> None:
        for _ in range(environ["times"]):
            add_author(session)
        start_response("200 OK")

    session: Any = None

    async def story() -> None:
        nonlocal session
        for requests, times, found in ((30, 1, set()), (1, 12, {"commit-in-loop"})):
            with capture(twin.factory) as captured, twin.factory() as session:
                for _ in range(requests):
                    serve_wsgi(application, times=times)
            assert {one.id for one in captured.findings} == found

    twin.run(story)


@only_sync
def test_what_a_request_found_before_does_not_hide_what_another_one_does(twin: Twin) -> None:
    """A finding that the settings leave out was about the requests, and this one is about one."""

    def application(environ: dict[str, Any], start_response: Any) -> None:
        for _ in range(environ["times"]):
            add_author(session)
        if environ["unsaved"]:
            session.add(Author(name="unsaved"))
            session.close()
        start_response("200 OK")

    session: Any = None

    async def story() -> None:
        nonlocal session
        with capture(twin.factory, ignore={"commit-in-loop"}) as captured:
            session = twin.factory()
            serve_wsgi(application, times=12, unsaved=False)
            serve_wsgi(application, times=0, unsaved=True)
        assert [one.id for one in captured.findings] == ["discarded-changes"]

    twin.run(story)

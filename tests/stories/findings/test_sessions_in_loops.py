"""Stories of loops that open a session for each item, and of sessions that follow one another."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import flask
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import scoped_session
from werkzeug.test import EnvironBuilder

from session_tracer.ledger import openings
from session_tracer.testing import Captured, capture
from tests.good_code.silence import beginning, only_async, only_sync
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.twins import Twin

TO_WRITE = {False: "with SessionLocal() as session:", True: "async with SessionLocal() as session:"}


async def in_the_loop(twin: Twin, times: int) -> None:
    for number in range(times):
        async with twin.session() as session:  # <- opened
            await session.get(Author, number)  # <- used # <- loops


async def name_of(twin: Twin, number: int) -> str | None:
    async with twin.session() as session:  # <- opened
        author = await session.get(Author, number)  # <- used
        return None if author is None else author.name


async def in_a_helper(twin: Twin, times: int) -> None:
    for number in range(times):
        await name_of(twin, number)  # <- loops


async def two_in_a_helper(twin: Twin, times: int) -> None:
    for number in range(times):
        await name_of(twin, number)  # <- loops
        async with twin.session() as session:
            await session.get(Author, number)


async def commit_in_a_helper(twin: Twin, number: int) -> None:
    async with twin.session() as session:  # <- opened
        session.add(Book(title=f"new {number}", author_id=1))  # <- used
        await session.commit()


async def written_in_a_helper(twin: Twin, times: int) -> None:
    for number in range(times):
        await commit_in_a_helper(twin, number)  # <- loops


async def close_by_hand(twin: Twin, times: int) -> None:
    for number in range(times):
        session = twin.session()  # <- opened
        try:
            await session.get(Author, number)  # <- used # <- loops
        finally:
            await session.close()


async def several_items(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened
        for number in range(3):
            await session.get(Author, number)  # <- used


async def with_a_loop_inside(twin: Twin, times: int) -> None:
    for _ in range(times):
        await several_items(twin)  # <- loops


async def in_a_comprehension(twin: Twin, times: int) -> None:
    names = [await name_of(twin, number) for number in range(times)]  # <- loops
    assert len(names) == times


LOOPS: dict[str, tuple[Callable[[Twin, int], Awaitable[None]], Callable[..., Any]]] = {
    "the loop itself": (in_the_loop, in_the_loop),
    "a helper": (in_a_helper, name_of),
    "a helper, and another line": (two_in_a_helper, name_of),
    "a helper that writes": (written_in_a_helper, commit_in_a_helper),
    "a session that is closed by hand": (close_by_hand, close_by_hand),
    "a comprehension": (in_a_comprehension, name_of),
    "a helper that loops itself": (with_a_loop_inside, several_items),
}


async def run(twin: Twin, how: Callable[[Twin, int], Awaitable[None]], times: int) -> Captured:
    with capture(twin.factory, sessions_from_one_site=5) as captured:
        await how(twin, times)
    return captured


def per_item(twin: Twin, loop: Any, opens: Any) -> Due:
    at = marked(loop, "<- loops")
    return Due(
        id="session-per-item",
        site=marked(opens, "<- opened"),
        opened=marked(opens, "<- opened"),
        remedy=f"{TO_WRITE[twin.is_async]}  # once, around the loop at {at}",
        count=5,
        evidence={"loop": str(at), "used_at": str(marked(opens, "<- used"))},
    )


async def count_authors(twin: Twin) -> None:
    async with twin.session() as session:
        await session.scalar(select(func.count(Author.id)))


async def validate(twin: Twin) -> None:
    await count_authors(twin)


async def run_a_pipeline(twin: Twin) -> None:
    await validate(twin)
    await count_authors(twin)
    await count_authors(twin)
    await validate(twin)


def test_a_loop_whose_turn_opens_sessions_by_several_calls(twin: Twin) -> None:
    """No session around the loop would replace them: they belong to many pieces of work."""

    async def story() -> None:
        with capture(twin.factory, sessions_from_one_site=6) as captured:
            for _ in range(3):
                await run_a_pipeline(twin)
        assert_found(captured)

    twin.run(story)


@only_sync
def test_a_registry_whose_session_is_removed_after_each_item(twin: Twin) -> None:
    sessions = scoped_session(twin.factory)

    def work(times: int, *, each: bool) -> None:
        for number in range(times):
            sessions.get(Author, number)  # <- loops
            if each:
                sessions.remove()
        sessions.remove()

    async def story() -> None:
        for each in (True, False):
            with capture(twin.factory, sessions_from_one_site=5, gets_from_one_site=99) as captured:
                work(6, each=each)
            found = [(one.id, one.remedy) for one in captured.findings]
            loop = marked(work, "<- loops")
            remedy = f"Session.remove()  # once, after the loop at {loop}"
            assert found == ([("session-per-item", remedy)] if each else [])

    twin.run(story)


@pytest.mark.parametrize("what", LOOPS)
def test_a_session_for_each_item(twin: Twin, what: str) -> None:
    loop, opens = LOOPS[what]

    async def story() -> None:
        await keep(twin, *authors(2))
        assert_found(await run(twin, loop, 4))
        captured = await run(twin, loop, 23)
        due = [per_item(twin, loop, opens)]
        if what == "a helper, and another line":
            assert [one.id for one in captured.findings] == ["session-per-item"] * 2
            del captured.findings[1:]
        if what == "a session that is closed by hand":
            (finding,) = captured.findings
            assert finding.site == marked(opens, "<- opened")
            return
        assert_found(captured, *due)

    twin.run(story)


@asynccontextmanager
async def scope(twin: Twin) -> AsyncIterator[Any]:
    session = twin.session()  # <- opened
    try:
        yield session
        await session.commit()
    finally:
        await session.close()


async def with_a_context_manager(twin: Twin, times: int) -> None:
    for number in range(times):
        async with scope(twin) as session:
            await session.get(Author, number)  # <- loops


async def one_for_all(twin: Twin) -> None:
    async with scope(twin) as session:
        for number in range(3):
            await session.get(Author, number)


async def a_row_with_a_context_manager(twin: Twin, _: int) -> None:
    await one_for_all(twin)
    await one_for_all(twin)
    await one_for_all(twin)
    await one_for_all(twin)
    await one_for_all(twin)
    await one_for_all(twin)


def test_a_context_manager_of_the_application(twin: Twin) -> None:
    async def story() -> None:
        (finding,) = (await run(twin, with_a_context_manager, 5)).findings
        assert finding.id == "session-per-item"
        assert finding.site == marked(scope.__wrapped__, "<- opened")  # type: ignore[attr-defined]
        assert finding.evidence["loop"] == str(marked(with_a_context_manager, "<- loops"))

    twin.run(story)


def test_its_remedy(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(30))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                for number in range(30):
                    session.add(Author(name=f"new {number}"))
                await session.commit()
        assert_found(captured)

    twin.run(story)


# Near-misses: each opens five sessions or more at one line.


async def one_after_the_other(twin: Twin, _: int) -> None:
    await several_items(twin)
    await several_items(twin)
    await several_items(twin)
    await several_items(twin)
    await several_items(twin)
    await several_items(twin)


async def unused(twin: Twin, times: int) -> None:
    for _ in range(times):
        async with twin.session():
            pass


async def take_jobs(twin: Twin, times: int) -> None:
    jobs = list(range(times))
    while jobs:
        await name_of(twin, jobs.pop())


async def take_batches(twin: Twin, times: int) -> None:
    batches = [range(times)] * 3
    while batches:
        for number in batches.pop():
            await name_of(twin, number)


async def take_from_queue(twin: Twin, times: int) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    for number in range(times):
        queue.put_nowait(number)
    for number in iter(queue.get_nowait, times - 1):
        await name_of(twin, number)


async def messages(times: int) -> AsyncIterator[int]:
    for number in range(times):
        yield number


async def take_messages(twin: Twin, times: int) -> None:
    async for number in messages(times):
        await name_of(twin, number)


WORKERS = [take_jobs, take_batches, take_from_queue, take_messages]


@pytest.mark.parametrize(
    "how", [one_after_the_other, a_row_with_a_context_manager, unused, *WORKERS]
)
def test_what_is_no_session_for_each_item(twin: Twin, how: Any) -> None:
    async def story() -> None:
        assert_found(await run(twin, how, 12))

    twin.run(story)


def test_a_worker_that_waits_for_each_job(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "_MOST_APART", 1_000)

    async def story() -> None:
        assert_found(await run(twin, in_a_helper, 12))

    twin.run(story)


# Tasks of which each opens a session, and what waits for them.


async def gathered(twin: Twin, times: int) -> None:
    await asyncio.gather(*(name_of(twin, number) for number in range(times)))  # <- waits


async def gathered_in_time(twin: Twin, times: int) -> None:
    every = asyncio.gather(*(name_of(twin, number) for number in range(times)))
    await asyncio.wait_for(every, 20)  # <- waits


async def gathered_a_few_at_a_time(twin: Twin, times: int) -> None:
    few = asyncio.Semaphore(3)

    async def limited(number: int) -> None:
        async with few:
            await name_of(twin, number)

    await asyncio.gather(*map(limited, range(times)))  # <- waits


async def in_a_group(twin: Twin, times: int) -> None:
    async with asyncio.TaskGroup() as group:  # <- waits
        for number in range(times):
            group.create_task(name_of(twin, number))


async def in_a_group_of_anyio(twin: Twin, times: int) -> None:
    async with anyio.create_task_group() as group:  # <- waits
        for number in range(times):
            group.start_soon(name_of, twin, number)


async def waited_for(twin: Twin, times: int) -> None:
    tasks = [asyncio.create_task(name_of(twin, number)) for number in range(times)]
    await asyncio.wait(tasks)  # <- waits


async def as_they_are_completed(twin: Twin, times: int) -> None:
    tasks = [asyncio.create_task(name_of(twin, number)) for number in range(times)]
    for completed in asyncio.as_completed(tasks):
        await completed  # <- waits


AT_ONCE = [
    gathered,
    gathered_in_time,
    gathered_a_few_at_a_time,
    in_a_group,
    in_a_group_of_anyio,
    waited_for,
    as_they_are_completed,
]


@only_async
@pytest.mark.parametrize("how", AT_ONCE)
def test_a_task_for_each_item(twin: Twin, how: Any) -> None:
    at = marked(how, "<- waits")

    async def story() -> None:
        await keep(twin, *authors(2))
        assert_found(await run(twin, how, 4))
        captured = await run(twin, how, 23)
        assert_found(
            captured,
            Due(
                id="session-per-item",
                site=marked(name_of, "<- opened"),
                opened=marked(name_of, "<- opened"),
                remedy=f"{TO_WRITE[True]}  # once, and one SELECT with .in_(...), in place of the "
                f"tasks at {at}",
                count=5,
                evidence={"loop": str(at), "used_at": str(marked(name_of, "<- used"))},
            ),
        )
        (found,) = captured.findings
        assert found.message == (
            "at least 5 tasks each opened a session at one line, for the same SELECT with other "
            "parameters"
        )

    twin.run(story)


async def one_task_after_the_other(twin: Twin, times: int) -> None:
    for number in range(times):
        await asyncio.create_task(name_of(twin, number))  # <- loops


@only_async
def test_a_task_for_each_item_in_turn(twin: Twin) -> None:
    async def story() -> None:
        assert_found(await run(twin, one_task_after_the_other, 4))
        captured = await run(twin, one_task_after_the_other, 23)
        assert_found(captured, per_item(twin, one_task_after_the_other, name_of))

    twin.run(story)


@only_async
def test_the_remedy_of_tasks(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(30))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                names = select(Author.name).where(Author.id.in_(range(1, 31)))
                assert len((await session.scalars(names)).all()) == 30
        assert_found(captured)

    twin.run(story)


# Near-misses: tasks that open five sessions or more at one line.


async def ask(twin: Twin, query: Any) -> None:
    async with twin.session() as session:
        await session.scalars(query)


async def different_queries(twin: Twin, times: int) -> None:
    columns = [Author.id, Author.name, Author.biography, Book.id, Book.title, Book.author_id]
    await asyncio.gather(*(ask(twin, select(column)) for column in columns[:times]))


async def the_same_query(twin: Twin, times: int) -> None:
    await asyncio.gather(*(ask(twin, select(Author.id)) for _ in range(times)))


async def chunks(twin: Twin, times: int) -> None:
    parts = [[number, number + 1] for number in range(times)]
    await asyncio.gather(*(ask(twin, select(Author.id).where(Author.id.in_(p))) for p in parts))


async def ranges(twin: Twin, times: int) -> None:
    where = [Author.id.between(number, number + 1) for number in range(times)]
    await asyncio.gather(*(ask(twin, select(Author.id).where(one)) for one in where))


async def work_at(twin: Twin, number: int) -> None:
    async with twin.session() as session:
        await session.get(Author, number)
        await session.scalars(select(Book).where(Book.author_id == number))


async def much_for_each(twin: Twin, times: int) -> None:
    await asyncio.gather(*(work_at(twin, number) for number in range(times)))


async def workers(twin: Twin, times: int) -> None:
    jobs = list(range(times))

    async def worker() -> None:
        while jobs:
            await name_of(twin, jobs.pop())

    await asyncio.gather(*(worker() for _ in range(3)))


async def a_server(twin: Twin, times: int) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(times):
            await asyncio.sleep(0.001)  # until the next request
            group.create_task(name_of(twin, number))
        await asyncio.sleep(0.1)


async def one_request_after_the_other(twin: Twin, times: int) -> None:
    jobs = list(range(times))
    while jobs:
        await asyncio.create_task(name_of(twin, jobs.pop()))


async def requests(twin: Twin, times: int) -> None:
    async def request(number: int) -> None:
        await asyncio.gather(name_of(twin, number), name_of(twin, number + 1))

    for number in range(times):
        await asyncio.create_task(request(number))


async def requests_of_a_client(twin: Twin, times: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        del receive, send
        await name_of(twin, scope["number"])

    scopes = [{"type": "http", "number": number} for number in range(times)]
    await asyncio.gather(*(app(scope, None, None) for scope in scopes))


TASKS = [
    different_queries,
    the_same_query,
    chunks,
    ranges,
    much_for_each,
    workers,
    a_server,
    one_request_after_the_other,
    requests,
    requests_of_a_client,
]


@only_async
@pytest.mark.parametrize("how", TASKS)
def test_tasks_that_are_not_one_for_each_item(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        assert_found(await run(twin, how, 6))

    twin.run(story)


@only_sync
def test_threads_that_serve_one_after_the_other(twin: Twin) -> None:
    def serve() -> None:
        with twin.factory() as session:
            session.scalars(select(Author)).all()

    def work() -> None:
        for _ in range(12):
            thread = threading.Thread(target=serve)
            thread.start()
            thread.join()

    async def story() -> None:
        with capture(twin.factory, sessions_from_one_site=5) as captured:
            work()
        assert_found(captured)

    twin.run(story)


async def asgi_requests(twin: Twin, times: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        del receive, send
        await name_of(twin, scope["number"])

    for number in range(times):
        await app({"type": "http", "number": number}, None, None)


async def one_asgi_request(twin: Twin, times: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        del receive, send
        for number in range(scope["times"]):
            await name_of(twin, number)  # <- loops

    await app({"type": "http", "times": times}, None, None)


async def one_asgi_request_with_a_view(twin: Twin, times: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        del receive, send
        await in_a_helper(twin, scope["times"])

    for _ in range(2):
        await app({"type": "http", "times": times}, None, None)


def wsgi(twin: Twin, *, is_streamed: bool = False) -> Any:
    """An application of Flask's: its view opens a session, or one for each item."""
    app = flask.Flask(__name__)

    def name(number: int) -> str:
        with twin.factory() as session:
            found = session.get(Author, number)
            return found.name if found else "none"

    @app.get("/<int:number>")
    def view(number: int) -> Any:
        return (name(one) for one in [number]) if is_streamed else name(number)

    @app.get("/all/<int:times>")
    def view_all(times: int) -> str:
        return "".join([name(number) for number in range(times)])  # <- loops

    return app


async def wsgi_requests(twin: Twin, times: int) -> None:
    client = wsgi(twin).test_client()
    for number in range(times):
        client.get(f"/{number}")


async def wsgi_requests_that_stream(twin: Twin, times: int) -> None:
    client = wsgi(twin, is_streamed=True).test_client()
    for number in range(times):
        client.get(f"/{number}")


async def wsgi_requests_without_a_framework(twin: Twin, times: int) -> None:
    app = wsgi(twin).wsgi_app
    for number in range(times):
        environ = EnvironBuilder(path=f"/{number}").get_environ()
        b"".join(app(environ, lambda status, headers: None))


async def one_wsgi_request(twin: Twin, times: int) -> None:
    client = wsgi(twin).test_client()
    for _ in range(2):
        client.get(f"/all/{times}")


async def a_loop_that_has_a_client(twin: Twin, times: int) -> None:
    client = wsgi(twin).test_client()
    for number in range(times):
        await name_of(twin, number)  # <- loops
        client.get("/nothing/here")


async def loops_of(twin: Twin, how: Any) -> set[str]:
    """The lines that loop, of what is found."""
    await keep(twin, *authors(2))
    found = (await run(twin, how, 23)).findings
    return {str(one.evidence["loop"]).partition(" in ")[0] for one in found}


def looping(function: Any) -> set[str]:
    return {str(marked(function, "<- loops")).partition(" in ")[0]}


def test_requests_that_a_client_runs_in_this_task(twin: Twin) -> None:
    async def story() -> None:
        assert await loops_of(twin, asgi_requests) == set()

    twin.run(story)


@only_sync
@pytest.mark.parametrize(
    "how", [wsgi_requests, wsgi_requests_that_stream, wsgi_requests_without_a_framework]
)
def test_requests_that_a_client_runs_in_this_thread(twin: Twin, how: Any) -> None:
    async def story() -> None:
        assert await loops_of(twin, how) == set()

    twin.run(story)


@pytest.mark.parametrize(
    ("how", "loop"),
    [
        (one_asgi_request, one_asgi_request),
        (one_asgi_request_with_a_view, in_a_helper),
        (a_loop_that_has_a_client, a_loop_that_has_a_client),
    ],
)
def test_a_loop_inside_of_a_request_or_next_to_it(twin: Twin, how: Any, loop: Any) -> None:
    async def story() -> None:
        assert await loops_of(twin, how) == looping(loop)

    twin.run(story)


@only_sync
def test_a_loop_inside_of_a_wsgi_request(twin: Twin) -> None:
    async def story() -> None:
        assert await loops_of(twin, one_wsgi_request) == looping(wsgi)

    twin.run(story)


def test_the_transaction_of_a_factory(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, sessions_from_one_site=5) as captured:
            for number in range(5):
                async with beginning(twin) as session:
                    await session.get(Author, number)
        (finding,) = captured.findings
        assert finding.id == "session-per-item"

    twin.run(story)

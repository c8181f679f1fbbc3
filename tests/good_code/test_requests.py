"""A session for each request, given to the endpoint by a generator."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from sqlalchemy import select

from tests.good_code.silence import beginning, only_async, silent
from tests.library import Author, Book, authors, keep

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from tests.twins import Twin

    Dependency: TypeAlias = Callable[[Twin], AsyncIterator[Any]]
    Endpoint: TypeAlias = Callable[[Any], Awaitable[Any]]


class NotFoundError(Exception):
    """What a framework makes a response of."""


# Dependencies.


async def in_a_block(twin: Twin) -> AsyncIterator[Any]:
    async with twin.session(expire_on_commit=False) as session:
        yield session


async def closed_in_the_end(twin: Twin) -> AsyncIterator[Any]:
    session = twin.session(expire_on_commit=False)
    try:
        yield session
    finally:
        await session.close()


async def rolled_back_on_an_error(twin: Twin) -> AsyncIterator[Any]:
    session = twin.session(expire_on_commit=False)
    try:
        yield session
    except Exception:
        await session.rollback()
        raise
    finally:
        await session.close()


async def committing_on_success(twin: Twin) -> AsyncIterator[Any]:
    session = twin.session(expire_on_commit=False)
    try:
        yield session
        await session.commit()
    except Exception:
        await session.rollback()
        raise
    finally:
        await session.close()


async def committing_in_a_block(twin: Twin) -> AsyncIterator[Any]:
    async with twin.session(expire_on_commit=False) as session:
        try:
            yield session
        except Exception:
            await session.rollback()
            raise
        else:
            await session.commit()


async def beginning_in_a_block(twin: Twin) -> AsyncIterator[Any]:
    async with beginning(twin) as session:
        yield session


async def beginning_within_the_session(twin: Twin) -> AsyncIterator[Any]:
    async with twin.session() as session, session.begin():
        yield session


# The endpoint commits, or the dependency does.
LEAVING_IT_TO_THE_ENDPOINT = [in_a_block, closed_in_the_end, rolled_back_on_an_error]
COMMITTING = [
    committing_on_success,
    committing_in_a_block,
    beginning_in_a_block,
    beginning_within_the_session,
]


async def serve(dependency: Dependency, twin: Twin, endpoint: Endpoint) -> Any:
    """Do with a dependency what FastAPI does: the endpoint's error is thrown into it."""
    async with asynccontextmanager(dependency)(twin) as session:
        return await endpoint(session)


# Endpoints.


async def list_authors(session: Any) -> list[str]:
    return [author.name for author in await session.scalars(select(Author))]


async def add_author(session: Any) -> Author:
    author = Author(name="Ada")
    session.add(author)
    await session.flush()
    return author


async def create_author(session: Any) -> Author:
    author = Author(name="Ada")
    session.add(author)
    await session.commit()
    await session.refresh(author)
    return author


async def rename_author(session: Any) -> str:
    author = await session.get(Author, 1)
    author.name = "Grace"
    await session.commit()
    return str(author.name)


async def find_nobody(session: Any) -> None:
    if await session.get(Author, 99) is None:
        raise NotFoundError


async def fail_after_adding(session: Any) -> None:
    session.add(Author(name="Ada"))
    raise NotFoundError


async def fail_after_flushing(session: Any) -> None:
    session.add(Author(name="Ada"))
    await session.flush()
    raise NotFoundError


@pytest.mark.parametrize("dependency", [*LEAVING_IT_TO_THE_ENDPOINT, *COMMITTING])
def test_a_session_per_request_that_only_reads(twin: Twin, dependency: Dependency) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with silent(twin.factory, sessions=3):
            for _ in range(3):
                names = await serve(dependency, twin, list_authors)
                assert names == ["author 0", "author 1"]

    twin.run(story)


@pytest.mark.parametrize("dependency", COMMITTING)
def test_a_session_per_request_that_commits_on_success(twin: Twin, dependency: Dependency) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=2) as captured:
            await serve(dependency, twin, add_author)
            assert await serve(dependency, twin, list_authors) == ["Ada"]
        assert [summary.outcome for summary in captured.sessions] == ["committed", "committed"]

    twin.run(story)


@pytest.mark.parametrize("dependency", LEAVING_IT_TO_THE_ENDPOINT)
def test_a_session_per_request_in_which_the_endpoint_commits(
    twin: Twin, dependency: Dependency
) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=3):
            created = await serve(dependency, twin, create_author)
            assert (created.id, created.name) == (1, "Ada")
            assert await serve(dependency, twin, rename_author) == "Grace"
            assert await serve(dependency, twin, list_authors) == ["Grace"]

    twin.run(story)


@pytest.mark.parametrize("dependency", [*LEAVING_IT_TO_THE_ENDPOINT, *COMMITTING])
def test_a_session_per_request_whose_endpoint_fails(twin: Twin, dependency: Dependency) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=4):
            for endpoint in (find_nobody, fail_after_adding, fail_after_flushing):
                with pytest.raises(NotFoundError):
                    await serve(dependency, twin, endpoint)
            assert await serve(dependency, twin, list_authors) == []

    twin.run(story)


def test_several_dependencies_of_one_request_share_its_session(twin: Twin) -> None:
    async def current_author(session: Any) -> Author:
        author: Author = await session.get_one(Author, 1)
        return author

    async def endpoint(session: Any) -> str:
        author = await current_author(session)
        session.add(Book(title="Notes", author_id=author.id))
        await session.commit()
        again = await current_author(session)
        assert again is author
        return str(again.name)

    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=4):
            for _ in range(4):
                assert await serve(in_a_block, twin, endpoint) == "author 0"

    twin.run(story)


CURRENT: ContextVar[Any] = ContextVar("session of the request")


def test_a_middleware_that_keeps_the_session_in_a_context_variable(twin: Twin) -> None:
    async def middleware(handler: Callable[[], Awaitable[Any]]) -> Any:
        async with twin.session() as session:
            token = CURRENT.set(session)
            try:
                answer = await handler()
                await session.commit()
                return answer
            finally:
                CURRENT.reset(token)

    async def story() -> None:
        with silent(twin.factory, sessions=3):
            await middleware(lambda: add_author(CURRENT.get()))
            assert await middleware(lambda: list_authors(CURRENT.get())) == ["Ada"]
            with pytest.raises(NotFoundError):
                await middleware(lambda: find_nobody(CURRENT.get()))

    twin.run(story)


def test_a_task_in_the_background_with_a_session_of_its_own(twin: Twin) -> None:
    async def endpoint(session: Any) -> int:
        return int((await create_author(session)).id)

    async def afterwards(id_: int) -> None:
        async with beginning(twin) as session:
            author = await session.get_one(Author, id_)
            author.name = "Grace"

    async def story() -> None:
        with silent(twin.factory, sessions=3):
            id_ = await serve(closed_in_the_end, twin, endpoint)
            await afterwards(id_)
            assert await serve(in_a_block, twin, list_authors) == ["Grace"]

    twin.run(story)


def test_a_response_that_is_streamed_and_ended_early(twin: Twin) -> None:
    async def names() -> AsyncGenerator[str]:
        async with twin.session() as session:
            for author in await session.scalars(select(Author)):
                yield author.name

    async def story() -> None:
        await keep(twin, *authors(5))
        with silent(twin.factory, sessions=1):
            streamed = names()
            assert await anext(streamed) == "author 0"
            await streamed.aclose()

    twin.run(story)


@only_async
def test_many_requests_at_the_same_time_in_tasks_of_their_own(twin: Twin) -> None:
    async def endpoint(session: Any) -> str:
        (author,) = await session.scalars(select(Author).where(Author.id == 1))
        await asyncio.sleep(0.001)
        session.add(Book(title="Notes", author_id=author.id))
        await session.commit()
        return str(author.name)

    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=12):
            requests = (serve(closed_in_the_end, twin, endpoint) for _ in range(12))
            assert await asyncio.gather(*requests) == ["author 0"] * 12

    twin.run(story)


@only_async
def test_two_queries_of_one_request_each_with_its_own_session(twin: Twin) -> None:
    async def names() -> list[str]:
        async with twin.session() as session:
            return await list_authors(session)

    async def story() -> None:
        await keep(twin, *authors(2))
        with silent(twin.factory, sessions=2):
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(names()) for _ in range(2)]
            assert [task.result() for task in asked] == [["author 0", "author 1"]] * 2

    twin.run(story)

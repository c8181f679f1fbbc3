"""Requests whose steps run in the threads of a pool, each step in whichever thread is free."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import pytest
from sqlalchemy import select

from tests.good_code.silence import only_sync, silent
from tests.library import Author, Book, authors, keep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sqlalchemy.orm import Session

    from tests.twins import Twin

    # Runs a function in some thread: `asyncio.to_thread`, `anyio.to_thread.run_sync`.
    Run: TypeAlias = "Callable[..., Awaitable[Any]]"

pytestmark = only_sync


class NotFoundError(Exception):
    """What a framework makes a response of."""


class InTurn(ExitStack):
    """Threads that take one piece of work each in turn, in a context of its own as anyio's do."""

    def __enter__(self) -> Self:
        pools = [self.enter_context(ThreadPoolExecutor(1, f"worker-{n}")) for n in range(3)]
        self._next = cycle(pools)
        return self

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        in_context = partial(contextvars.copy_context().run, work, *arguments)
        return await asyncio.get_running_loop().run_in_executor(next(self._next), in_context)


async def serve(
    run: Run, dependency: Callable[[], Iterator[Session]], *steps: Callable[[Session], Any]
) -> list[Any]:
    """Do with a dependency what FastAPI does where nothing is asynchronous."""
    block = contextmanager(dependency)()
    session = await run(block.__enter__)
    try:
        answers = [await run(step, session) for step in steps]
    except Exception as error:
        await run(block.__exit__, type(error), error, error.__traceback__)
        raise
    await run(block.__exit__, None, None, None)
    return answers


def in_a_block(twin: Twin) -> Iterator[Session]:
    with twin.factory() as session:
        yield session


def closed_in_the_end(twin: Twin) -> Iterator[Session]:
    session = twin.factory()
    try:
        yield session
    finally:
        session.close()


def committing_on_success(twin: Twin) -> Iterator[Session]:
    session = twin.factory()
    try:
        yield session
        session.commit()
    except Exception:
        session.rollback()
        raise
    finally:
        session.close()


DEPENDENCIES = pytest.mark.parametrize(
    "dependency", [in_a_block, closed_in_the_end, committing_on_success]
)


def read(session: Session) -> list[str]:
    return [author.name for author in session.scalars(select(Author))]


def write(session: Session) -> str:
    author = session.get_one(Author, 1)
    session.add(Book(title="Notes", author_id=author.id))
    session.commit()
    return author.name


def fail(session: Session) -> None:
    session.add(Author(name="Ada"))
    session.flush()
    raise NotFoundError


@DEPENDENCIES
def test_one_thread_opens_another_uses_and_a_third_closes(
    twin: Twin, dependency: Callable[[Twin], Iterator[Session]]
) -> None:
    threads = []

    def note_thread(session: Session) -> None:
        threads.append(threading.current_thread().name)
        read(session)

    async def requests() -> None:
        with InTurn() as workers:
            for _ in range(4):
                await serve(workers.run, partial(dependency, twin), note_thread, note_thread, write)
            with pytest.raises(NotFoundError):
                await serve(workers.run, partial(dependency, twin), fail)

    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=5):
            asyncio.run(requests())
        assert set(threads) == {"worker-0_0", "worker-1_0", "worker-2_0"}

    twin.run(story)


@DEPENDENCIES
def test_requests_that_interleave_on_the_same_threads(
    twin: Twin, dependency: Callable[[Twin], Iterator[Session]]
) -> None:
    async def requests() -> None:
        with InTurn() as workers:
            serving = (
                serve(workers.run, partial(dependency, twin), read, read, read) for _ in range(4)
            )
            for answers in await asyncio.gather(*serving):
                assert answers == [["author 0"]] * 3

    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=4):
            asyncio.run(requests())

    twin.run(story)


def test_requests_that_write_and_interleave_on_one_thread(twin: Twin) -> None:
    """Both have their session open, and both commit, in the pool's only thread."""

    async def requests() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        serving = (
            serve(asyncio.to_thread, partial(committing_on_success, twin), write, write)
            for _ in range(3)
        )
        await asyncio.gather(*serving)

    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=3):
            asyncio.run(requests())

    twin.run(story)


@pytest.mark.parametrize("threads", ["asyncio", "anyio"])
def test_many_requests_on_the_threads_of_a_pool(twin: Twin, threads: str) -> None:
    run: Run = asyncio.to_thread
    if threads == "anyio":
        pytest.importorskip("anyio")
        run = pytest.importorskip("anyio.to_thread").run_sync

    async def requests() -> None:
        await asyncio.gather(
            *(serve(run, partial(closed_in_the_end, twin), read, read) for _ in range(20))
        )

    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=20):
            asyncio.run(requests())

    twin.run(story)


def test_a_session_that_is_opened_on_the_event_loop_and_used_in_a_thread(twin: Twin) -> None:
    async def request() -> None:
        with twin.factory() as session:
            assert await asyncio.to_thread(read, session) == ["author 0"]
            assert await asyncio.to_thread(write, session) == "author 0"

    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=1):
            asyncio.run(request())

    twin.run(story)


def test_a_pool_whose_every_job_has_a_session_of_its_own(twin: Twin) -> None:
    def job(number: int) -> None:
        with twin.factory.begin() as session:
            session.add(Author(name=f"author {number}"))

    async def story() -> None:
        # Writers wait for one another on SQLite; two of them do not wait long.
        with silent(twin.factory, sessions=20), ThreadPoolExecutor(2) as pool:
            list(pool.map(job, range(20)))

    twin.run(story)

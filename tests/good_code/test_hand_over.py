"""Sessions that go from hand to hand, and several of them side by side."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from tests.good_code.silence import beginning, only_async, only_sync, silent
from tests.library import Author, Book, authors, keep
from tests.twins import Twin

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session


def in_thread(work: Callable[..., Any], *arguments: Any) -> None:
    """Do it in a thread of its own, to the end."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work, *arguments).result()


def add_author(session: Session, name: str) -> None:
    session.add(Author(name=name))
    session.commit()


async def names(session: Any) -> list[str]:
    return list(await session.scalars(select(Author.name)))


# One after another.


@only_sync
def test_a_session_that_is_handed_from_thread_to_thread(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=5):
            session = twin.factory()
            for number in range(5):
                in_thread(add_author, session, f"author {number}")
            in_thread(session.close)

    twin.run(story)


@only_sync
def test_one_transaction_that_several_threads_work_on_in_turn(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=6):
            session = twin.factory()
            for number in range(5):
                session.add(Author(name=f"author {number}"))
                in_thread(session.flush)
            in_thread(session.commit)
            in_thread(session.scalars, select(Author))
            in_thread(session.close)

    twin.run(story)


@only_sync
def test_a_session_that_waits_in_a_queue_for_the_next_thread(twin: Twin) -> None:
    async def story() -> None:
        waiting: queue.Queue[Any] = queue.Queue()
        finished: queue.Queue[Any] = queue.Queue()

        def first() -> None:
            for number in range(5):
                session = twin.factory()
                session.add(Author(name=f"author {number}"))
                session.flush()
                waiting.put(session)
                assert finished.get(timeout=10) is session

        def second() -> None:
            for _ in range(5):
                session = waiting.get(timeout=10)
                session.commit()
                session.close()
                finished.put(session)

        with silent(twin.factory, sessions=5, statements=5), ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(first), pool.submit(second)]:
                done.result()

    twin.run(story)


@only_async
def test_a_session_that_tasks_use_one_after_another_as_they_are_awaited(twin: Twin) -> None:
    async def story() -> None:
        async with asyncio.timeout(10):
            with silent(twin.factory, sessions=1, statements=6):
                async with twin.session() as session:

                    async def add(name: str) -> None:
                        session.add(Author(name=name))
                        await session.commit()

                    await asyncio.create_task(add("plain"))
                    await asyncio.wait_for(add("with a timeout"), 5)
                    await asyncio.shield(add("shielded"))
                    await asyncio.gather(add("gathered"))
                    async with asyncio.TaskGroup() as group:
                        group.create_task(add("grouped"))
                    await asyncio.wait([asyncio.ensure_future(add("waited for"))])

    twin.run(story)


@only_async
def test_one_transaction_that_tasks_hand_on(twin: Twin) -> None:
    async def story() -> None:
        waiting: asyncio.Queue[Any] = asyncio.Queue()

        async def step(name: str) -> None:
            session = await waiting.get()
            session.add(Author(name=name))
            await session.flush()
            await waiting.put(session)

        with silent(twin.factory, sessions=1, statements=5):
            session = twin.session()
            steps = [asyncio.ensure_future(step(f"author {number}")) for number in range(5)]
            await waiting.put(session)
            for done in steps:
                await done
            await session.commit()
            await session.close()

    twin.run(story)


@only_async
def test_a_session_that_a_timeout_lets_finish(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=2):
            async with asyncio.timeout(10), beginning(twin) as session:
                session.add(Author(name="Ada"))
                await session.flush()
                assert await names(session) == ["Ada"]

    twin.run(story)


# Side by side.


def test_two_sessions_one_after_the_other(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=4, statements=4):
            for number in range(2):
                async with beginning(twin) as session:
                    session.add(Author(name=f"author {number}"))
                async with beginning(twin) as session:
                    assert len(await names(session)) == number + 1

    twin.run(story)


def test_a_second_session_that_waits_for_the_first_to_be_done(twin: Twin) -> None:
    """Both are open, but only one at a time holds a connection, and only one writes."""

    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=3):
            async with twin.session() as reading, twin.session() as writing:
                assert await names(reading) == []
                await reading.commit()
                writing.add(Author(name="Ada"))
                await writing.commit()
                assert await names(reading) == ["Ada"]

    twin.run(story)


@only_sync
def test_two_sessions_at_once_in_two_threads(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        both = threading.Barrier(2, timeout=10)

        def work() -> None:
            with twin.factory() as session:
                session.scalars(select(Author)).all()
                both.wait()
                session.scalars(select(Book)).all()
                session.rollback()
                both.wait()

        with silent(twin.factory, sessions=2, statements=4), ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(work), pool.submit(work)]:
                done.result()

    twin.run(story)


@only_async
def test_two_sessions_at_once_in_two_tasks(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        both = asyncio.Barrier(2)

        async def work() -> None:
            async with twin.session() as session:
                await names(session)
                await both.wait()
                await names(session)

        with silent(twin.factory, sessions=2, statements=4):
            await asyncio.gather(work(), work())

    twin.run(story)


def test_sessions_of_two_engines_at_once(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        replica = Twin(twin.url, twin.is_async)
        try:
            with (
                silent(twin.factory, sessions=1),
                silent(replica.factory, sessions=1),
            ):
                async with twin.session() as session, replica.session() as other:
                    assert await names(session) == await names(other)
        finally:
            await replica.dispose()

    twin.run(story)


@only_sync
def test_a_session_that_reads_from_a_replica_and_writes_to_the_primary(twin: Twin) -> None:
    """One session with two engines, by the mapped class."""

    async def story() -> None:
        await keep(twin, *authors(2))
        replica = Twin(twin.url, is_async=False)
        try:
            with silent(twin.factory, sessions=1, statements=2):
                binds = {Author: twin.engine, Book: replica.engine}
                with twin.factory(binds=binds) as session:
                    assert len(session.scalars(select(Author)).all()) == 2
                    assert session.scalars(select(Book)).all() == []
        finally:
            await replica.dispose()

    twin.run(story)


# Workers.


def test_a_worker_that_lives_long_with_a_session_for_each_job(twin: Twin) -> None:
    async def take(session: Any) -> bool:
        waiting = select(Author).where(Author.name.like("waiting%")).order_by(Author.id).limit(1)
        job = await session.scalar(waiting.with_for_update(skip_locked=True))
        if job is None:
            return False
        job.name = f"done {job.id}"
        return True

    async def story() -> None:
        await keep(twin, *(Author(name=f"waiting {number}") for number in range(15)))
        with silent(twin.factory, sessions=16, statements=31):
            worked = True
            while worked:
                async with beginning(twin) as session:
                    worked = await take(session)

    twin.run(story)


@only_async
def test_workers_that_take_from_a_queue(twin: Twin) -> None:
    async def story() -> None:
        jobs: asyncio.Queue[str] = asyncio.Queue()

        async def worker() -> None:
            while True:
                name = await jobs.get()
                async with beginning(twin) as session:
                    session.add(Author(name=name))
                jobs.task_done()

        with silent(twin.factory, sessions=20, statements=20):
            workers = [asyncio.ensure_future(worker()) for _ in range(2)]
            for number in range(20):
                jobs.put_nowait(f"author {number}")
            await jobs.join()
            for one in workers:
                one.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    twin.run(story)


def test_a_worker_whose_queue_is_full(twin: Twin) -> None:
    """It never waits, and takes many more jobs than a loop over items may have."""

    async def story() -> None:
        jobs: queue.Queue[str] = queue.Queue()
        for number in range(60):
            jobs.put_nowait(f"author {number}")

        async def worker() -> None:
            while True:
                name = jobs.get()
                async with beginning(twin) as session:
                    session.add(Author(name=name))
                if jobs.empty():
                    break

        with silent(twin.factory, sessions=60, statements=60):
            await worker()

    twin.run(story)


@only_sync
def test_jobs_that_each_run_an_event_loop(twin: Twin) -> None:
    """As in a task queue whose workers know nothing of asyncio: connections stay in their loop."""

    async def story() -> None:
        url = twin.url.set(drivername="sqlite+aiosqlite")
        maker = async_sessionmaker(create_async_engine(url, poolclass=NullPool))

        async def job(name: str) -> None:
            async with maker.begin() as session:
                session.add(Author(name=name))

        with silent(maker, sessions=4, statements=4):
            for number in range(4):
                asyncio.run(job(f"author {number}"))

    twin.run(story)


@only_async
def test_work_in_a_thread_with_a_synchronous_session(twin: Twin) -> None:
    """What an asynchronous application leaves to a thread has a session of its own there."""

    async def story() -> None:
        plain = Twin(twin.url.set(drivername="sqlite"), is_async=False)

        def report() -> int:
            with plain.factory() as session:
                return len(session.scalars(select(Author)).all())

        await keep(twin, *authors(3))
        with silent(plain.factory, sessions=2), silent(twin.factory, sessions=1):
            async with twin.session() as session:
                assert len(await names(session)) == 3
                reports = (asyncio.to_thread(report) for _ in range(2))
                assert await asyncio.gather(*reports) == [3, 3]
        await plain.dispose()

    twin.run(story)

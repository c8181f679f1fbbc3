"""The threads and tasks that run the works."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from random import Random
from typing import TYPE_CHECKING

from sqlalchemy import QueuePool, create_engine, make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from benchmarks.soak.account import Account, SoakSession, counted
from benchmarks.soak.works import IN_TASK, IN_THREAD, SHARED, Work, Worker, load

if TYPE_CHECKING:
    from sqlalchemy import Pool
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from benchmarks.soak.latency import Latency
    from benchmarks.soak.works import InTask, InThread

THREADS = 16
TASKS = 200
# On average, between two works: together they use a part of one processor.
THREAD_PAUSE_SECONDS = 0.6
TASK_PAUSE_SECONDS = 10.0
# On a machine that is busy with other things, the tasks wait for each other's connections.
POOL_TIMEOUT_SECONDS = 600

_SHARED_WEIGHTS = [work.weight for work in SHARED]
_THREAD_WORKS: list[Work | InThread] = [*SHARED, *(do for do, _ in IN_THREAD)]
_THREAD_WEIGHTS = [*_SHARED_WEIGHTS, *(weight for _, weight in IN_THREAD)]
_TASK_WORKS: list[Work | InTask] = [*SHARED, *(do for do, _ in IN_TASK)]
_TASK_WEIGHTS = [*_SHARED_WEIGHTS, *(weight for _, weight in IN_TASK)]


class Crew:
    """Threads with psycopg and tasks with asyncpg, at work from `start` to `stop`."""

    def __init__(self, url: str, account: Account, latency: Latency, idle_seconds: float) -> None:
        self.account = account
        self._latency = latency
        self._idle_seconds = idle_seconds
        self._stopping = threading.Event()
        self._kept_out = 0
        psycopg = make_url(url).set(drivername="postgresql+psycopg")
        self.engine = create_engine(
            psycopg, pool_size=16, max_overflow=8, pool_timeout=POOL_TIMEOUT_SECONDS
        )
        asyncpg = make_url(url).set(drivername="postgresql+asyncpg")
        self.async_engine = create_async_engine(
            asyncpg, pool_size=30, max_overflow=20, pool_timeout=POOL_TIMEOUT_SECONDS
        )
        self.factory: sessionmaker[Session] = sessionmaker(self.engine, class_=SoakSession)
        self.async_factory: async_sessionmaker[AsyncSession] = async_sessionmaker(
            self.async_engine, sync_session_class=SoakSession
        )
        self._threads = [
            threading.Thread(target=self._work, args=[self._worker(number)], name=f"soak-{number}")
            for number in range(THREADS)
        ]
        self._threads.append(threading.Thread(target=self._run_tasks, name="soak-asyncio"))

    def start(self) -> None:
        self._connect()
        self._counting = counted(self.account, self.engine, self.async_engine.sync_engine)
        self._counting.__enter__()
        for thread in self._threads:
            thread.start()

    def _connect(self) -> None:
        """Let each dialect run its initial statements, which belong to no session."""
        with self.engine.connect():
            pass

        async def connect() -> None:
            async with self.async_engine.connect():
                pass
            await self.async_engine.dispose()

        asyncio.run(connect())

    def stop(self) -> None:
        """Wait until each has finished its work."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        gc.collect()  # what was lost at last, and its connections

    def open_session(self) -> Session:
        """Open another session, in a transaction."""
        session = self.factory()
        load(session, self._worker(0))
        return session

    def close(self) -> int:
        """Close the connections; return the number that were not returned to their pool."""
        self._kept_out += checked_out(self.engine.pool)
        self.engine.dispose()
        self._counting.__exit__(None, None, None)
        return self._kept_out

    def _worker(self, number: int) -> Worker:
        return Worker(number, Random(number), self.account, self._idle_seconds)

    def _work(self, worker: Worker) -> None:
        dice = worker.random
        while not self._stopping.wait(dice.expovariate(1 / THREAD_PAUSE_SECONDS)):
            (work,) = dice.choices(_THREAD_WORKS, _THREAD_WEIGHTS)
            try:
                if isinstance(work, Work):
                    self._do(work, worker)
                else:
                    work(self.factory, worker)
            except Exception as error:
                self.account.surprise(error, str(getattr(work, "do", work)))

    def _do(self, work: Work, worker: Worker) -> None:
        expected = work.error or ()
        with self._latency.measured(work.steady):
            try:
                with self.factory() as session:
                    work.do(session, worker)
            except expected:
                pass
        self.account.add("sessions", work.outcome)

    def _run_tasks(self) -> None:
        try:
            asyncio.run(self._tasks())
        except BaseException as error:
            self.account.surprise(error, "the event loop")
            raise

    async def _tasks(self) -> None:
        workers = [self._worker(THREADS + number) for number in range(TASKS)]
        await asyncio.gather(*map(self._work_awaiting, workers))
        # SQLAlchemy's tasks close the connections of cancelled tasks.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
        self._kept_out += checked_out(self.async_engine.pool)
        await self.async_engine.dispose()

    async def _work_awaiting(self, worker: Worker) -> None:
        dice = worker.random
        while await self._pause(dice.expovariate(1 / TASK_PAUSE_SECONDS)):
            (work,) = dice.choices(_TASK_WORKS, _TASK_WEIGHTS)
            try:
                if isinstance(work, Work):
                    await self._do_awaiting(work, worker)
                else:
                    await work(self.async_factory, worker)
            except Exception as error:
                self.account.surprise(error, str(getattr(work, "do", work)))

    async def _pause(self, seconds: float) -> bool:
        """Whether there is still work to do; waits this number of seconds."""
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 1.0))
        return not self._stopping.is_set()

    async def _do_awaiting(self, work: Work, worker: Worker) -> None:
        expected = work.error or ()
        with self._latency.measured(work.steady):
            try:
                async with self.async_factory() as session:
                    await session.run_sync(work.do, worker)
            except expected:
                pass
        self.account.add("sessions", work.outcome)


def checked_out(pool: Pool) -> int:
    assert isinstance(pool, QueuePool)
    return pool.checkedout()

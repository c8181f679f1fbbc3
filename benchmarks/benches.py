"""Runs a work on its database with its factory, and times it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, Self

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.variants import BenchmarkSession, Factory
from benchmarks.works import (
    AUTHORS,
    AsyncWork,
    SyncWork,
    TasksWork,
    ThreadsWork,
    Work,
    change_one,
    change_one_async,
    tidy,
)

if TYPE_CHECKING:
    from benchmarks.databases import Database


class Bench(Protocol):
    @property
    def factory(self) -> Factory: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def change_one(self) -> None:
        """Runs W1, whatever the work is: W1 makes every signal."""

    def block(self, units: int) -> float:
        """Runs this number of units of the work and returns the seconds that they took."""


def prepare(database: Database, work: Work) -> Bench:
    match work:
        case SyncWork():
            return SyncBench(database, work)
        case AsyncWork():
            return AsyncBench(database, work)
        case ThreadsWork():
            return ThreadsBench(database, work)
        case TasksWork():
            return TasksBench(database, work)


class OnSyncEngine:
    """Has an engine and a factory of sessions."""

    def __init__(self, database: Database) -> None:
        self._engine = database.engine()
        self.factory: sessionmaker[Session] = sessionmaker(self._engine, class_=BenchmarkSession)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._engine.dispose()

    def change_one(self) -> None:
        change_one(self.factory)


class SyncBench(OnSyncEngine):
    def __init__(self, database: Database, work: SyncWork) -> None:
        super().__init__(database)
        self._run = work.run

    def block(self, units: int) -> float:
        run, factory = self._run, self.factory
        began = perf_counter()
        for _ in range(units):
            run(factory)
        seconds = perf_counter() - began
        with self._engine.begin() as connection:
            tidy(connection)
        return seconds


class ThreadsBench(OnSyncEngine):
    """Threads, each of which changes its own author."""

    def __init__(self, database: Database, work: ThreadsWork) -> None:
        super().__init__(database)
        self._count = work.threads
        self._threads = ThreadPoolExecutor(work.threads)

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown()
        super().__exit__(*exception)

    def block(self, units: int) -> float:
        workers, each = share(units, self._count)
        began = perf_counter()
        for _ in self._threads.map(lambda n: self._change(n, each), range(workers)):
            pass
        return (perf_counter() - began) * units / (each * workers)

    def _change(self, author: int, times: int) -> None:
        for _ in range(times):
            change_one(self.factory, 1 + author % AUTHORS)


class OnAsyncEngine:
    """Has an async engine and a factory of async sessions."""

    def __init__(self, database: Database) -> None:
        self._loop = asyncio.Runner()
        self._engine = self._loop.run(database.async_engine())
        self.factory: async_sessionmaker[AsyncSession] = async_sessionmaker(
            self._engine, sync_session_class=BenchmarkSession
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._loop.run(self._engine.dispose())
        self._loop.close()

    def change_one(self) -> None:
        self._loop.run(change_one_async(self.factory), context=copy_context())

    def block(self, units: int) -> float:
        # The loop has its own context, without the spans around the block.
        return self._loop.run(self._block(units), context=copy_context())

    async def _block(self, units: int) -> float:
        raise NotImplementedError


class AsyncBench(OnAsyncEngine):
    def __init__(self, database: Database, work: AsyncWork) -> None:
        super().__init__(database)
        self._run = work.run

    async def _block(self, units: int) -> float:
        run, factory = self._run, self.factory
        began = perf_counter()
        for _ in range(units):
            await run(factory)
        return perf_counter() - began


class TasksBench(OnAsyncEngine):
    """Concurrent tasks, as many as there are connections for."""

    def __init__(self, database: Database, work: TasksWork) -> None:
        super().__init__(database)
        self._count = work.tasks

    async def _block(self, units: int) -> float:
        workers, each = share(units, self._count)
        began = perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for n in range(workers):
                tasks.create_task(self._change(n, each))
        return (perf_counter() - began) * units / (each * workers)

    async def _change(self, author: int, times: int) -> None:
        for _ in range(times):
            await change_one_async(self.factory, 1 + author % AUTHORS)


def share(units: int, workers: int) -> tuple[int, int]:
    """The number of workers that have work, and the units of each, equal for all."""
    return min(units, workers), max(1, units // workers)

"""Times the works under the variants, in pairs.

How the traps are avoided:

- Every variant has a process of its own. In a shared one, a variant leaves its traces in the next:
  SQLAlchemy keeps emptied listener collections, a patched attribute throws away what the
  interpreter had specialised, and bare is no longer bare.
- These processes are forked from one that has imported everything and done nothing yet. So the
  addresses, the hash seed and the heap of one launch are the same for all of them; between
  processes started one by one they alone can make several per cent.
- A launch is a fresh interpreter with fresh addresses and a fresh hash seed; there are several.
- A round lets each variant run one block of a few milliseconds, one after the other in an order
  drawn anew. A ratio is taken within its round: what slows the machine for longer than a round
  slows both sides, what is shorter falls into few rounds, and the median does not see it. Many
  rounds of short blocks were two to three times steadier than a few rounds of long ones.
- All processes of a launch share one core, where the system can be told so; only one of them works
  at a time. Moving between cores doubled the noise. A PostgreSQL server stays where it is.
- Each process has an idle thread, bare too: with a second thread the allocator and the locks take
  their slower roads, and a tracer that brings a thread would be charged for it.
- The heap is frozen after the warm-up and the garbage collected before each block: collections
  within a block are then caused by the block, and look through what the block made.
- A second bare variant, the control, takes part like every other. It shows the noise.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, Self

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.variants import BARE, BenchmarkSession, Factory, Variant
from benchmarks.works import AsyncWork, SyncWork, Work, change_one, change_one_async, tidy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from benchmarks.databases import Database


@dataclass(frozen=True, slots=True)
class Plan:
    launches: int
    # Of all rounds of one work in one launch.
    work_seconds: float
    # Of one variant, before its first block.
    warm_seconds: float


QUICK = Plan(launches=3, work_seconds=1.2, warm_seconds=0.08)
FULL = Plan(launches=10, work_seconds=5, warm_seconds=0.3)

BLOCK_SECONDS = 0.004
ROUNDS_AT_LEAST = 12

# Seconds of one unit of work by the variant's name.
Round = dict[str, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """All rounds of one work on one database, launch by launch."""

    work: Work
    launches: tuple[tuple[Round, ...], ...]

    def rounds(self) -> int:
        return sum(map(len, self.launches))

    def bare_seconds(self) -> float:
        return median(timed[BARE.name] for rounds in self.launches for timed in rounds)

    def ratios(self, variant: Variant) -> list[float]:
        """One for each launch: the median of its rounds' ratios."""
        return [
            median(timed[variant.name] / timed[BARE.name] for timed in rounds)
            for rounds in self.launches
        ]


def measure(
    database: Database, works: Sequence[Work], variants: Sequence[Variant], plan: Plan
) -> list[Measured]:
    """Runs all launches; `variants` has BARE among them."""
    launches = [launched(database, works, variants, plan) for _ in range(plan.launches)]
    return [Measured(work, tuple(of_work)) for work, *of_work in zip(works, *launches, strict=True)]


def launched(
    database: Database, works: Sequence[Work], variants: Sequence[Variant], plan: Plan
) -> list[tuple[Round, ...]]:
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as interpreter:
        return interpreter.submit(launch, database, works, variants, plan).result()


def launch(
    database: Database, works: Sequence[Work], variants: Sequence[Variant], plan: Plan
) -> list[tuple[Round, ...]]:
    share_one_core()
    gc.collect()
    gc.freeze()
    with database.prepared():
        return [rounds_of(database, work, variants, plan) for work in works]


def share_one_core() -> None:
    if sys.platform == "linux":
        # The last: interrupts and other people's programs prefer the first.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def rounds_of(
    database: Database, work: Work, variants: Sequence[Variant], plan: Plan
) -> tuple[Round, ...]:
    with ExitStack() as stack:
        # Whoever is forked first may find another memory than the last.
        processes = [
            stack.enter_context(VariantProcess(database, work, variant, plan))
            for variant in random.sample(variants, len(variants))
        ]
        bare = next(process for process in processes if process.name == BARE.name)
        units = max(1, round(BLOCK_SECONDS / bare.warm_seconds))
        rounds: list[Round] = []
        until = perf_counter() + plan.work_seconds
        while len(rounds) < ROUNDS_AT_LEAST or perf_counter() < until:
            rounds.append(one_round(processes, units))
        return tuple(rounds)


def one_round(processes: Sequence[VariantProcess], units: int) -> Round:
    return {
        process.name: process.block(units) / units
        for process in random.sample(processes, len(processes))
    }


class VariantProcess:
    """One variant's process, as seen from the one that it was forked from."""

    def __init__(self, database: Database, work: Work, variant: Variant, plan: Plan) -> None:
        self.name = variant.name
        fork = multiprocessing.get_context("fork")
        self._connection, theirs = fork.Pipe()

        def forked() -> None:
            # Each side keeps its own end only, or would never see the other side's end close.
            self._connection.close()
            serve(theirs, database, work, variant, plan)

        self._process = fork.Process(target=forked)
        self._process.start()
        theirs.close()
        # Waited for, so that no two processes warm up at the same time.
        self.warm_seconds = self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close()
        self._process.join()

    def block(self, units: int) -> float:
        self._connection.send(units)
        return self.answer()

    def answer(self) -> float:
        try:
            seconds = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"variant {self.name} failed; its error is above") from None
        assert isinstance(seconds, float)
        return seconds


def serve(
    connection: Connection, database: Database, work: Work, variant: Variant, plan: Plan
) -> None:
    """The life of a forked process: warm up, then one timed block for each number received."""
    threading.Thread(target=threading.Event().wait, name="idle", daemon=True).start()
    with prepare(database, work) as bench, variant.applied(bench.factory) as prove:
        bench.change_one()
        prove()
        connection.send(warmed(bench, plan.warm_seconds))
        gc.collect()
        gc.freeze()
        while True:
            try:
                units = connection.recv()
            except EOFError:
                return
            gc.collect()
            # The other variants have had the processor's caches in the meantime.
            bench.block(min(units - 1, 1 + units // 10))
            connection.send(bench.block(units))


def warmed(bench: Bench, seconds: float) -> float:
    """Seconds of one unit at the end of so many seconds of work."""
    until = perf_counter() + seconds
    timed = [bench.block(1)]
    while perf_counter() < until or len(timed) < 4:
        timed.append(bench.block(1))
    return median(timed[-len(timed) // 2 :])


class Bench(Protocol):
    """A work with its database and its factory, ready to run."""

    @property
    def factory(self) -> Factory: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def change_one(self) -> None:
        """Runs W1, whatever the work is: every signal has something to say about it."""

    def block(self, units: int) -> float:
        """Runs the work so many times, and returns the seconds it took."""


def prepare(database: Database, work: Work) -> Bench:
    match work:
        case SyncWork():
            return SyncBench(database, work)
        case AsyncWork():
            return AsyncBench(database, work)


class SyncBench:
    def __init__(self, database: Database, work: SyncWork) -> None:
        self._run = work.run
        self._engine = database.engine()
        self.factory: sessionmaker[Session] = sessionmaker(self._engine, class_=BenchmarkSession)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._engine.dispose()

    def change_one(self) -> None:
        change_one(self.factory)

    def block(self, units: int) -> float:
        run, factory = self._run, self.factory
        began = perf_counter()
        for _ in range(units):
            run(factory)
        seconds = perf_counter() - began
        with self._engine.begin() as connection:
            tidy(connection)
        return seconds


class AsyncBench:
    def __init__(self, database: Database, work: AsyncWork) -> None:
        self._run = work.run
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
        self._loop.run(change_one_async(self.factory))

    def block(self, units: int) -> float:
        return self._loop.run(self._block(units))

    async def _block(self, units: int) -> float:
        run, factory = self._run, self.factory
        began = perf_counter()
        for _ in range(units):
            await run(factory)
        return perf_counter() - began

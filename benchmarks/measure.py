"""Times the works with each variant, in pairs.

How errors of measurement are avoided:

- Every variant has its own process. In a shared process a variant changes the next one: SQLAlchemy
  keeps emptied listener collections, and patching an attribute makes the interpreter drop what it
  had specialised.
- These processes are forked from one that has imported everything and run nothing. All of them
  therefore have the addresses, the hash seed and the heap of their launch. Between processes that
  are started separately, these alone can cause a difference of several per cent.
- A launch is a new interpreter with new addresses and a new hash seed. There are several launches.
- In a round each variant runs one block of a few milliseconds, in random order. A ratio is of two
  blocks of one round: a disturbance longer than a round slows both, and a shorter one affects few
  rounds, which the median ignores. Many rounds of short blocks were two to three times steadier
  than a few rounds of long ones.
- All processes of a launch share one core, if the system allows it; only one of them runs at a
  time. Moving between cores doubled the noise. A PostgreSQL server is not moved.
- Each process has an idle thread, the untraced one too: with a second thread, allocator and locks
  are slower, and a tracer that starts a thread would be charged for it.
- The heap is frozen after the warm-up, and garbage is collected before each block. A collection
  during a block is then caused by the block, and inspects only the objects that the block made.
- The control is a second untraced variant. It shows the noise.
"""

from __future__ import annotations

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
from typing import TYPE_CHECKING, Self

from benchmarks.benches import Bench, prepare
from benchmarks.count import imported
from benchmarks.databases import Database, SQLite
from benchmarks.results import Row
from benchmarks.variants import BARE, Variant

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from benchmarks.works import Work


@dataclass(frozen=True, slots=True)
class Plan:
    launches: int
    # Of all rounds of one work in one launch.
    work_seconds: float
    # Of one variant, before its first block.
    warm_seconds: float
    block_seconds: float = 0.004
    rounds_at_least: int = 12
    one_core: bool = True


QUICK = Plan(launches=3, work_seconds=1.2, warm_seconds=0.08)
# Both SQLAlchemy lines, with all else that is measured by default, take less than 20 minutes.
FULL = Plan(launches=3, work_seconds=1.6, warm_seconds=0.1)
# Threads must run at the same time, and on several cores.
SCALING_QUICK = Plan(1, 1, 0.1, block_seconds=0.05, rounds_at_least=5, one_core=False)
SCALING_FULL = Plan(3, 10, 1, block_seconds=0.2, rounds_at_least=15, one_core=False)

# Seconds of one unit of work by the variant's name.
Round = dict[str, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """All rounds of one work on one database, by launch."""

    work: Work
    launches: tuple[tuple[Round, ...], ...]

    def row(self) -> Row:
        names = self.launches[0][0].keys() - {BARE.name}
        return Row(
            self.work.key,
            self.work.title,
            median(timed[BARE.name] for rounds in self.launches for timed in rounds),
            sum(map(len, self.launches)),
            {name: self.ratios(name) for name in names},
        )

    def ratios(self, name: str) -> list[float]:
        """One for each launch: the median of its rounds' ratios."""
        return [
            median(timed[name] / timed[BARE.name] for timed in rounds) for rounds in self.launches
        ]


def measure(
    database: Database, works: Sequence[Work], variants: Sequence[Variant], plan: Plan
) -> list[Row]:
    """Runs all launches; `variants` includes BARE."""
    launches = [launched(database, works, variants, plan) for _ in range(plan.launches)]
    return [
        Measured(work, tuple(of_work)).row()
        for work, *of_work in zip(works, *launches, strict=True)
    ]


def why_not(variant: Variant, works: Sequence[Work]) -> str | None:
    """Why the variant cannot be timed on these works; None if it proves that it is active."""
    for work in works:
        with ProcessPoolExecutor(1, mp_context=imported()) as process:
            try:
                process.submit(show, variant, work).result()
            except Exception as error:
                return f"{type(error).__name__}: {error}".strip(" :")
    return None


def show(variant: Variant, work: Work) -> None:
    with prepare(SQLite(), work) as bench, variant.applied(bench.factory) as in_force:
        with variant.around():
            bench.change_one()
        in_force.prove()


def launched(
    database: Database, works: Sequence[Work], variants: Sequence[Variant], plan: Plan
) -> list[tuple[Round, ...]]:
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as interpreter:
        return interpreter.submit(launch, database, works, variants, plan).result()


def launch(
    database: Database, works: Sequence[Work], variants: Sequence[Variant], plan: Plan
) -> list[tuple[Round, ...]]:
    if plan.one_core:
        share_one_core()
    gc.collect()
    gc.freeze()
    with database.prepared():
        return [rounds_of(database, work, variants, plan) for work in works]


def share_one_core() -> None:
    if sys.platform == "linux":
        # The last core: interrupts and other programs prefer the first.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def rounds_of(
    database: Database, work: Work, variants: Sequence[Variant], plan: Plan
) -> tuple[Round, ...]:
    with ExitStack() as stack:
        # In random order: the first that is forked may have another memory layout than the last.
        processes = [
            stack.enter_context(VariantProcess(database, work, variant, plan))
            for variant in random.sample(variants, len(variants))
        ]
        bare = next(process for process in processes if process.name == BARE.name)
        units = max(work.units_at_least, round(plan.block_seconds / bare.warm_seconds))
        rounds: list[Round] = []
        until = perf_counter() + plan.work_seconds
        while len(rounds) < plan.rounds_at_least or perf_counter() < until:
            rounds.append(one_round(processes, units))
        return tuple(rounds)


def one_round(processes: Sequence[VariantProcess], units: int) -> Round:
    return {
        process.name: process.block(units) / units
        for process in random.sample(processes, len(processes))
    }


class VariantProcess:
    """One variant's process, as its parent uses it."""

    def __init__(self, database: Database, work: Work, variant: Variant, plan: Plan) -> None:
        self.name = variant.name
        fork = multiprocessing.get_context("fork")
        self._connection, theirs = fork.Pipe()

        def forked() -> None:
            # Each side closes the other's end, or it would never see that end close.
            self._connection.close()
            serve(theirs, database, work, variant, plan)

        self._process = fork.Process(target=forked)
        self._process.start()
        theirs.close()
        # Waits, so that no two processes warm up at the same time.
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
    """Runs in a forked process: warms up, then runs a timed block for each number received."""
    threading.Thread(target=threading.Event().wait, name="idle", daemon=True).start()
    with prepare(database, work) as bench, variant.applied(bench.factory) as in_force:
        with variant.around():
            bench.change_one()
        in_force.prove()
        connection.send(warmed(bench, variant, plan.warm_seconds))
        gc.collect()
        gc.freeze()
        while True:
            try:
                units = connection.recv()
            except EOFError:
                return
            gc.collect()
            # The other variants have used the processor's caches in the meantime.
            with variant.around():
                bench.block(min(units - 1, 1 + units // 10))
                in_force.settle()
                seconds = bench.block(units)
                settling = perf_counter()
                in_force.settle()
                seconds += perf_counter() - settling
            connection.send(seconds)


def warmed(bench: Bench, variant: Variant, seconds: float) -> float:
    """Seconds of one unit after the given number of seconds."""
    until = perf_counter() + seconds
    timed: list[float] = []
    while perf_counter() < until or len(timed) < 5:
        with variant.around():
            timed.append(bench.block(1))
    return median(timed[-len(timed) // 2 :])

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
FULL = Plan(launches=10, work_seconds=5, warm_seconds=0.3)
# Threads have to meet, and on more cores than one.
SCALING_QUICK = Plan(1, 1, 0.1, block_seconds=0.05, rounds_at_least=5, one_core=False)
SCALING_FULL = Plan(3, 10, 1, block_seconds=0.2, rounds_at_least=15, one_core=False)

# Seconds of one unit of work by the variant's name.
Round = dict[str, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """All rounds of one work on one database, launch by launch."""

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
    """Runs all launches; `variants` has BARE among them."""
    launches = [launched(database, works, variants, plan) for _ in range(plan.launches)]
    return [
        Measured(work, tuple(of_work)).row()
        for work, *of_work in zip(works, *launches, strict=True)
    ]


def why_not(variant: Variant, works: Sequence[Work]) -> str | None:
    """Why the variant cannot be timed on these works; None if it is shown to be in force."""
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
            # The other variants have had the processor's caches in the meantime.
            with variant.around():
                bench.block(min(units - 1, 1 + units // 10))
                in_force.settle()
                seconds = bench.block(units)
                settling = perf_counter()
                in_force.settle()
                seconds += perf_counter() - settling
            connection.send(seconds)


def warmed(bench: Bench, variant: Variant, seconds: float) -> float:
    """Seconds of one unit at the end of so many seconds of work."""
    until = perf_counter() + seconds
    timed: list[float] = []
    while perf_counter() < until or len(timed) < 5:
        with variant.around():
            timed.append(bench.block(1))
    return median(timed[-len(timed) // 2 :])

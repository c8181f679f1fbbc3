"""Counts the instructions and calls that tracing adds: `python -m benchmarks.count`.

A count is the same on every run and every machine with the same Python and libraries. It shows what
a change of the code saves or costs, also where the machine is too busy to measure time.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from benchmarks.benches import prepare
from benchmarks.databases import SQLite
from benchmarks.results import Count
from benchmarks.variants import BARE, LEVELS, Variant
from benchmarks.works import WORKS, AsyncWork, SyncWork, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from multiprocessing.context import BaseContext
    from types import CodeType, FrameType
    from typing import Any

    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, sessionmaker

PACKAGE = "session_tracer"
# Units of work before the first that is counted: caches are full and rare branches taken by then.
WARM_UNITS = 8
# The smallest is used: another thread can only add to a count.
COUNTED_UNITS = 4
SHOWN = 40


class Function(NamedTuple):
    module: str
    name: str

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Counts:
    """The instructions and calls of a function, without the functions that it calls."""

    instructions: int = 0
    # How often it was entered, or resumed as a generator.
    calls: int = 0
    c_calls: int = 0
    # The calls it made to Python functions of another package.
    calls_out: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.instructions + other.instructions,
            self.calls + other.calls,
            self.c_calls + other.c_calls,
            self.calls_out + other.calls_out,
        )

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            self.instructions - other.instructions,
            self.calls - other.calls,
            self.c_calls - other.c_calls,
            self.calls_out - other.calls_out,
        )


NONE = Counts()
# The counts of one unit of work by function.
Profile: TypeAlias = dict[Function, Counts]
Tally: TypeAlias = "Counter[CodeType]"


@dataclass(slots=True)
class Tallies:
    """The counts of one run, by code."""

    instructions: Tally = field(default_factory=Counter)
    calls: Tally = field(default_factory=Counter)
    c_calls: Tally = field(default_factory=Counter)
    calls_out: Tally = field(default_factory=Counter)

    def total(self) -> int:
        return self.instructions.total() + self.calls.total() + self.c_calls.total()


class Meter:
    """Wraps a work's function, so that only its runs are counted."""

    def __init__(self, counted_package: Callable[[str], bool]) -> None:
        # Only the instructions of these packages are counted, to save time.
        self._counted_package = counted_package
        self._functions: dict[CodeType, Function] = {}
        self._counting: Callable[[], AbstractContextManager[object]] = nullcontext

    def on(self, work: Work) -> Work:
        match work:
            case SyncWork(run=run):

                def counted(sessions: sessionmaker[Session]) -> None:
                    with self._counting():
                        run(sessions)

                return replace(work, run=counted)
            case AsyncWork(run=run_async):

                async def counted_async(sessions: async_sessionmaker[AsyncSession]) -> None:
                    with self._counting():
                        await run_async(sessions)

                return replace(work, run=counted_async)
            case _:
                raise TypeError(
                    f"{work.title}: works with several threads or tasks are not counted"
                )

    def profile(self, unit: Callable[[], object]) -> Profile:
        """The counts of one call of `unit`, by function."""
        gc.disable()
        executed = self._smallest(self._instructions, unit)
        called = self._smallest(self._calls, unit)
        gc.enable()
        profile: Profile = {}
        for code, function in self._functions.items():
            counts = Counts(
                executed.instructions[code],
                called.calls[code],
                called.c_calls[code],
                called.calls_out[code],
            )
            profile[function] = profile.get(function, NONE) + counts
        return profile

    def _smallest(
        self,
        counting: Callable[[Tallies], AbstractContextManager[object]],
        unit: Callable[[], object],
    ) -> Tallies:
        counted = [Tallies() for _ in range(COUNTED_UNITS)]
        for tallies in counted:
            self._counting = partial(counting, tallies)
            unit()
        self._counting = nullcontext
        return min(counted, key=Tallies.total)

    @contextmanager
    def _instructions(self, tallies: Tallies) -> Iterator[None]:
        instructions = tallies.instructions

        def executed(frame: FrameType, event: str, _argument: object) -> Any:
            if event == "opcode":
                instructions[frame.f_code] += 1
            return executed

        def entered(frame: FrameType, _event: str, _argument: object) -> Any:
            if not self._counted_package(self._function(frame).package):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            return executed

        sys.settrace(entered)
        try:
            yield
        finally:
            sys.settrace(None)

    @contextmanager
    def _calls(self, tallies: Tallies) -> Iterator[None]:
        def happened(frame: FrameType, event: str, _argument: object) -> None:
            if event == "call":
                tallies.calls[frame.f_code] += 1
                package, caller = self._function(frame).package, frame.f_back
                if caller and self._function(caller).package != package:
                    tallies.calls_out[caller.f_code] += 1
            elif event == "c_call":
                self._function(frame)
                tallies.c_calls[frame.f_code] += 1

        sys.setprofile(happened)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _function(self, frame: FrameType) -> Function:
        code = frame.f_code
        function = self._functions.get(code)
        if function is None:
            # By the module's name: functions that are made from text have no file.
            function = Function(str(frame.f_globals.get("__name__")), code.co_qualname)
            self._functions[code] = function
        return function


def any_package(_package: str) -> bool:
    return True


def counted(
    work: Work, variant: Variant, counted_package: Callable[[str], bool] = any_package
) -> Profile:
    """One unit of the work under the variant, in its own process, which the variant changes."""
    with ProcessPoolExecutor(1, mp_context=imported()) as process:
        return process.submit(count, work, variant, counted_package).result()


def imported() -> BaseContext:
    """Forks processes from one that has imported all of this, and has no second thread."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    return server


def count(work: Work, variant: Variant, counted_package: Callable[[str], bool]) -> Profile:
    meter = Meter(counted_package)
    with prepare(SQLite(), meter.on(work)) as bench, variant.applied(bench.factory) as in_force:
        bench.change_one()
        in_force.prove()
        bench.block(WARM_UNITS)
        return meter.profile(lambda: bench.block(1))


def added(traced: Profile, bare: Profile) -> Profile:
    """What is more than in the bare profile, function by function; less is negative."""
    difference = {
        function: traced.get(function, NONE) - bare.get(function, NONE)
        for function in traced.keys() | bare.keys()
    }
    return {function: counts for function, counts in difference.items() if counts != NONE}


def by_package(works: Sequence[Work], variants: Sequence[Variant]) -> list[Count]:
    """The instructions that each variant adds to each work, counted on all cores."""
    with ThreadPoolExecutor() as threads:
        profiles = {
            (work.title, variant.name): threads.submit(counted, work, variant)
            for work in works
            for variant in (BARE, *variants)
        }
    counts: list[Count] = []
    for work in works:
        bare = profiles[work.title, BARE.name].result()
        for variant in variants:
            traced = added(profiles[work.title, variant.name].result(), bare)
            packages = by(traced, lambda function: function.package)
            instructions = {name: counts.instructions for name, counts in packages.items()}
            counts.append(Count(work.key, work.title, variant.name, instructions))
    return counts


def by(
    profile: Profile, key: Callable[[Function], str], of: Iterable[Function] | None = None
) -> dict[str, Counts]:
    grouped: dict[str, Counts] = {}
    for function in profile if of is None else of:
        name = key(function)
        grouped[name] = grouped.get(name, NONE) + profile[function]
    return grouped


def report(work: Work, variant: Variant, profile: Profile) -> str:
    own = [function for function in profile if function.package == PACKAGE]
    return "\n".join(
        (
            f"== {work.key} {work.title}, {variant.name}: beyond bare, for one unit of work",
            *lines({"everything": sum(profile.values(), NONE)}),
            *lines(by(profile, lambda function: function.package)),
            "-- modules of session_tracer",
            *lines(by(profile, lambda function: function.module, own)),
            f"-- the {SHOWN} functions with the most instructions of their own",
            *lines(by(profile, lambda function: f"{function.module}:{function.name}"), SHOWN),
        )
    )


def lines(grouped: dict[str, Counts], most: int | None = None) -> list[str]:
    ordered = sorted(grouped.items(), key=lambda item: (-item[1].instructions, item[0]))
    return [
        f"{counts.instructions:>9,} instructions {counts.calls:>7,} calls {counts.c_calls:>7,} C"
        f" calls  {name}"
        for name, counts in ordered[:most]
    ]


def main() -> None:
    options = parser().parse_args()
    for work in WORKS:
        if work.key in options.works:
            bare = counted(work, BARE)
            for name in options.levels:
                variant = LEVELS[name]
                print(report(work, variant, added(counted(work, variant), bare)), end="\n\n")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.count", description=__doc__)
    parser.add_argument("works", nargs="?", type=names, default=["W1"], metavar="W1,W2")
    parser.add_argument("levels", nargs="?", type=names, default=list(LEVELS), metavar="A,B")
    return parser


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    main()

"""Random programs of session operations, run in an untraced world and then in a traced one.

A program is a value: it is run to its end where nothing at all is instrumented, and then again
where something is, so that not even what is patched for all sessions is shared.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hypothesis import strategies as st

from session_tracer.testing import capture
from tests.differential.awaited import AWAITED
from tests.differential.listeners import GROUPS
from tests.differential.observing import ANY_LINE
from tests.differential.operations import OPERATIONS
from tests.differential.world import FACTORIES, Observation, Setup, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    # What happens to a world besides the program.
    Circumstance = Callable[[World], AbstractContextManager[object]]

__all__ = ["Program", "Step", "difference", "programs", "run", "traced", "untraced"]


class Step(NamedTuple):
    """One operation with its choices; elsewhere is in a thread, or a task, of its own."""

    operation: str
    a: int = 0
    b: int = 0
    c: int = 0
    elsewhere: bool = False

    @property
    def choices(self) -> tuple[int, int, int]:
        """What the operation chooses by."""
        return self.a, self.b, self.c


class Program(NamedTuple):
    """A world and what is done in it; its repr() makes it again."""

    setup: Setup
    steps: tuple[Step, ...]


# No program is without these, or little would ever be written or read.
_ALWAYS: Final = (
    *("add", "get", "select_entities", "select_entities", "change", "change", "read"),
    *("flush", "commit", "commit", "rollback", "rollback", "close", "begin"),
)


_ALWAYS_AWAITED: Final = (
    *("a_add", "a_get", "a_select", "a_select", "change", "a_read", "a_await_read", "read"),
    *("a_flush", "a_commit", "a_commit", "a_rollback", "a_rollback", "a_close", "begin"),
)
# Whatever a program did: close what is open, let go of everything, collect the garbage.
_END: Final = (
    *(Step("close", slot) for slot in range(3)),
    Step("let_go"),
    Step("collect"),
)


@st.composite
def programs(draw: st.DrawFn, *, is_async: bool) -> Program:
    """Programs of a few kinds of operation each, so that those few meet in many ways."""
    several = st.lists(st.sampled_from(GROUPS), unique=True, max_size=3).map(tuple)
    setup = Setup(
        factory=draw(st.sampled_from((*("plain",) * 6, *FACTORIES))),
        target=draw(st.sampled_from(("factory", "factory", "everything", "class", "session"))),
        before=draw(several),
        after=draw(several),
        traced_from=draw(st.sampled_from((0, 0, 0, 0, 5))),
        traced_until=draw(st.sampled_from((1_000, 1_000, 1_000, 25))),
        is_async=is_async,
    )
    operations = AWAITED if is_async else OPERATIONS
    always = _ALWAYS_AWAITED if is_async else _ALWAYS
    few = draw(st.lists(st.sampled_from(sorted(operations)), min_size=4, max_size=20, unique=True))
    step = st.builds(
        Step,
        st.sampled_from((*always, *few)),
        st.sampled_from((0, 0, 0, 1, 2)),
        st.integers(0, 9),
        st.integers(0, 9),
        st.sampled_from((False,) * 11 + (True,)),
    )
    length = draw(st.integers(1, 60))
    return Program(setup, tuple(draw(st.lists(step, min_size=length, max_size=length))))


def run(program: Program, circumstance: Circumstance) -> list[Observation]:
    """What can be observed of each step of the program, and of its end.

    Garbage is collected only where the program says so: what dies before that dies at once.
    """
    gc.collect()
    gc.disable()
    try:
        if program.setup.is_async:
            return asyncio.run(_run_awaited(program, circumstance))
        return _run(program, circumstance)
    finally:
        gc.enable()


def _run(program: Program, circumstance: Circumstance) -> list[Observation]:
    world = World(program.setup)
    world.begin()
    observations = []
    try:
        for step in _steps(program, world, circumstance):
            work = partial(OPERATIONS[step.operation], world, *step.choices)
            observations.append(world.perform(work, in_thread=step.elsewhere))
            del work
        return observations
    finally:
        world.close()


async def _run_awaited(program: Program, circumstance: Circumstance) -> list[Observation]:
    world = World(program.setup)
    await world.begin_awaited()
    observations = []
    try:
        for step in _steps(program, world, circumstance):
            work = partial(AWAITED[step.operation], world, *step.choices)
            observations.append(await world.perform_awaited(work, in_task=step.elsewhere))
        return observations
    finally:
        await world.close_awaited()


def _steps(program: Program, world: World, circumstance: Circumstance) -> Iterator[Step]:
    """The program's steps and those of its end, amid which the circumstance begins and ends."""
    setup = program.setup
    world.listen(setup.before)
    with ExitStack() as stack:
        for number, step in enumerate((*program.steps, *_END)):
            if number == setup.traced_from:
                stack.enter_context(circumstance(world))
                world.listen(setup.after)
            if number == setup.traced_until:
                stack.close()
            yield step


@contextmanager
def traced(world: World) -> Iterator[None]:
    """Trace the world with everything on; no fault of ours is put up with."""
    records: list[logging.LogRecord] = []
    handler = _Keeping(records)
    logger = logging.getLogger("session_tracer")
    logger.addHandler(handler)
    try:
        with capture(world.target, statement_spans=True, log_level="debug") as told:
            yield
    finally:
        logger.removeHandler(handler)
    faults = [record.getMessage() for record in records]
    assert not faults, "\n".join(faults)
    assert "session_tracer.errors" not in told.metrics


class _Keeping(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


def untraced(world: World) -> AbstractContextManager[object]:
    """Trace nothing."""
    world.target  # noqa: B018 - a session that would be instrumented is opened for it
    return nullcontext()


def difference(program: Program, bare: list[Observation], other: list[Observation]) -> str:
    """The first step at which the two worlds are not the same, and how; empty if there is none."""
    steps = (*program.steps, *_END)
    for number, (step, before, after) in enumerate(zip(steps, bare, other, strict=True)):
        found = list(_differences(before, after, ""))
        if found:
            shorter = program._replace(steps=program.steps[: number + 1])
            where = f"step {number}, {step.operation}, differs:"
            return "\n".join([where, *found[:_MOST_DIFFERENCES], repr(shorter)])
    return ""


_MOST_DIFFERENCES: Final = 8


def _differences(bare: Any, other: Any, where: str) -> Iterator[str]:
    if isinstance(bare, dict) and isinstance(other, dict):
        for key in {**bare, **other}:
            yield from _differences(bare.get(key), other.get(key), f"{where}/{key}")
    elif isinstance(bare, list) and isinstance(other, list) and len(bare) == len(other):
        for number, pair in enumerate(zip(bare, other, strict=True)):
            yield from _differences(*pair, f"{where}/{number}")
    elif bare != other and not _same_frame(bare, other):
        yield f"  {where}\n    untraced: {bare!r}\n    traced:   {other!r}"


def _same_frame(bare: Any, other: Any) -> bool:
    """Whether they are a frame's file, function and line, of which the line may be any."""
    match bare, other:
        case (str(), str(), int()), (str(), str(), line):
            return bool(line == ANY_LINE and bare[:2] == other[:2])
    return False

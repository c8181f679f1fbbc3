"""That a traced application is the same as an untraced one, whatever it does."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from tests.differential.programs import Program, Step, difference, programs, run, traced, untraced
from tests.differential.tally import TALLY
from tests.differential.world import Setup

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

SEED: Final = int(os.environ.get("SESSION_TRACER_TEST_PROGRAMS_SEED") or secrets.randbits(32))
PROGRAMS: Final = int(os.environ.get("SESSION_TRACER_TEST_PROGRAMS") or 12)

TALLY.seed = SEED
pytestmark = [
    pytest.mark.timeout(300 + 5 * PROGRAMS),
    # A lazy load that asyncio refuses leaves the driver's coroutine behind, traced or not.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    # And SQLAlchemy warns if the garbage collector takes an asynchronous session that it lost.
    pytest.mark.filterwarnings("ignore:The garbage collector is trying:sqlalchemy.exc.SAWarning"),
]


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_traced_program_is_the_same_as_an_untraced_one(is_async: bool) -> None:
    check(programs(is_async=is_async))


# Programs that once differed.
LEARNED: Final = {
    # SQLAlchemy warned at a line of ours.
    "a warning": Program(
        Setup(factory="joins by control_fully"),
        (Step("get", 0), Step("get", 1), Step("rollback", 1), Step("rollback", 0)),
    ),
    # A captured session outlived its last reference.
    "a session": Program(Setup(target="session"), (Step("get"), Step("let_go"))),
    # SQLAlchemy itself holds None in session.new, and the observer failed.
    "a collected object": Program(
        Setup(is_async=True),
        (
            *(Step("a_add"), Step("a_add"), Step("a_add", 0, 4), Step("a_rollback")),
            *(Step("copied"), Step("copied", 0, 8)),
            *(Step("a_select", 0, 9), Step("a_select"), Step("a_select", 0, 5)),
            Step("add_held", 0, 8),
        ),
    ),
}


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("learned", LEARNED)
def test_what_once_differed_is_the_same(learned: str) -> None:
    assert _difference(LEARNED[learned]) == ""


def check(strategy: SearchStrategy[Program]) -> None:
    @seed(SEED)
    @settings(
        max_examples=PROGRAMS,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.normal,
    )
    @given(program=strategy)
    def is_the_same(program: Program) -> None:
        TALLY.count(program)
        found = _difference(program)
        assert not found, f"SESSION_TRACER_TEST_PROGRAMS_SEED={SEED} {found}"

    is_the_same()


def _difference(program: Program) -> str:
    # What aiosqlite's threads still hold of a statement, and for how long, is a matter of luck; and
    # once in a thousand programs an untraced one leaves an object behind that it does not again.
    for _ in range(3):
        found = difference(program, run(program, untraced), run(program, traced))
        if not found:
            break
    return found

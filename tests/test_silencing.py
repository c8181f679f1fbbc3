"""Tests where a silenced finding is silent, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import silence
from session_tracer.model.findings import FINDING_IDS
from session_tracer.verdicts.silencing import silenced_now

if TYPE_CHECKING:
    from collections.abc import Generator

WHY = "it is a report that runs once a year"


def test_a_finding_is_silenced_in_the_block_and_no_longer() -> None:
    assert silenced_now() == frozenset()
    with silence("n-plus-one", "get-in-loop", reason=WHY):
        assert silenced_now() == {"n-plus-one", "get-in-loop"}
    assert silenced_now() == frozenset()


def test_blocks_add_up() -> None:
    with silence("n-plus-one", reason=WHY):
        with silence("large-flush", "n-plus-one", reason=WHY):
            assert silenced_now() == {"n-plus-one", "large-flush"}
        assert silenced_now() == {"n-plus-one"}


def test_an_exception_ends_the_block_and_passes() -> None:
    error = KeyError("somebody's")
    with pytest.raises(KeyError) as raised, silence("n-plus-one", reason=WHY):
        raise error
    assert raised.value is error
    assert silenced_now() == frozenset()


def test_one_object_can_be_used_again_and_nested() -> None:
    quiet = silence("n-plus-one", reason=WHY)
    with quiet, quiet:
        with quiet:
            pass
        assert silenced_now() == {"n-plus-one"}
    assert silenced_now() == frozenset()


def test_tasks_inherit_it_and_do_not_disturb_each_other() -> None:
    quiet = silence("n-plus-one", reason=WHY)
    seen: dict[str, frozenset[str]] = {}

    async def inherited() -> None:
        await asyncio.sleep(0)
        seen["inherited"] = silenced_now()
        with silence("large-flush", reason=WHY):
            await asyncio.sleep(0)

    async def beside() -> None:
        seen["beside"] = silenced_now()
        with quiet:
            await asyncio.sleep(0)

    async def story() -> None:
        other = asyncio.create_task(beside())
        with quiet:
            task = asyncio.create_task(inherited())
            await other
            seen["own"] = silenced_now()
        await task
        seen["after"] = silenced_now()

    asyncio.run(story())
    assert seen == {
        "beside": frozenset(),
        "own": {"n-plus-one"},
        "inherited": {"n-plus-one"},
        "after": frozenset(),
    }


def test_a_thread_has_it_where_its_context_is_copied() -> None:
    seen: list[frozenset[str]] = []
    look = lambda: seen.append(silenced_now())  # noqa: E731 - it is shorter than its use
    with silence("n-plus-one", reason=WHY):
        threads = [
            threading.Thread(target=look),
            threading.Thread(target=contextvars.copy_context().run, args=(look,)),
        ]
        for thread in threads:
            thread.start()
            thread.join()
    assert seen == [frozenset(), {"n-plus-one"}]


def dependency(*ids: str) -> Generator[frozenset[str], None, None]:
    with silence(*ids, reason=WHY):
        yield silenced_now()


def test_generators_that_end_out_of_turn_leave_nothing() -> None:
    first, second = dependency("n-plus-one"), dependency("large-flush")
    assert next(first) == {"n-plus-one"}
    assert next(second) == {"n-plus-one", "large-flush"}
    first.close()
    assert silenced_now() == {"large-flush"}
    second.close()
    assert silenced_now() == frozenset()


def test_a_generator_may_end_in_another_context_than_it_began_in() -> None:
    # As a synchronous dependency of FastAPI does: each step runs in a copy of the request's.
    generator = dependency("n-plus-one")
    began = contextvars.copy_context()
    assert began.run(next, generator) == {"n-plus-one"}
    assert silenced_now() == frozenset()
    contextvars.copy_context().run(generator.close)
    assert silenced_now() == frozenset()


@pytest.mark.parametrize("id_", [*FINDING_IDS, "too-many-statements", "x", "a-2-b"])
def test_any_id_of_ours_or_of_an_applications_own_is_possible(id_: str) -> None:
    with silence(id_, reason=WHY):
        assert silenced_now() == {id_}


@pytest.mark.parametrize(
    ("ids", "reason", "message"),
    [
        (
            (),
            WHY,
            "Invalid silence(): expected the id of at least one finding, such as 'n-plus-one'.",
        ),
        (
            ("N+1",),
            WHY,
            "Invalid silence('N+1'): expected the id of a finding, such as 'n-plus-one'.",
        ),
        (
            ("*",),
            WHY,
            "Invalid silence('*'): expected the id of a finding, such as 'n-plus-one'.",
        ),
        (
            ("large-flush", ""),
            WHY,
            "Invalid silence(''): expected the id of a finding, such as 'n-plus-one'.",
        ),
        (
            (7,),
            WHY,
            "Invalid silence(7): expected the id of a finding, such as 'n-plus-one'.",
        ),
        (
            ("nplus-one",),
            WHY,
            "Invalid silence('nplus-one'): unknown finding. Did you mean 'n-plus-one'?",
        ),
        (
            ("n-plus-one",),
            "",
            "Invalid reason='': expected a non-empty string.",
        ),
        (
            ("n-plus-one",),
            "  ",
            "Invalid reason='  ': expected a non-empty string.",
        ),
        (
            ("n-plus-one",),
            None,
            "Invalid reason=None: expected a non-empty string.",
        ),
    ],
)
def test_what_cannot_be_silenced_is_refused_by_name(
    ids: tuple[Any, ...], reason: Any, message: str
) -> None:
    with pytest.raises(ValueError, match="Invalid") as refused:
        silence(*ids, reason=reason)
    assert str(refused.value) == message


def test_a_reason_has_to_be_given() -> None:
    with pytest.raises(TypeError, match="reason"):
        silence("n-plus-one")  # type: ignore[call-arg] # what the test is about


def test_it_is_no_decorator() -> None:
    # It would end before a coroutine begins, and silence nothing without a word.
    with pytest.raises(TypeError, match="not callable"):

        @silence("n-plus-one", reason=WHY)  # type: ignore[operator] # what the test is about
        async def report() -> None: ...

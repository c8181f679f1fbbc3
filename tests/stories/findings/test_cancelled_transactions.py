"""Stories of tasks that are cancelled while their session has a transaction open."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import select

from session_tracer.testing import capture
from tests.good_code.silence import only_async
from tests.library import Author, authors, keep
from tests.stories.findings.due import Above, Due, assert_found, stay
from tests.stories.findings.gates import expire, gate
from tests.stories.lines import marked
from tests.twins import Twin, on_each_database, on_postgresql

pytestmark = [
    only_async,
    pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up"),
]
Story = Callable[[Twin, asyncio.Event], Coroutine[Any, Any, None]]
REPEAT = "run the work again, or use asyncio.shield() for code that must not be interrupted"


async def write(session: Any) -> None:
    session.add(Author(name="Ada"))
    await session.flush()


# What is cut off where it says so.


async def sleep_in_the_block(twin: Twin, here: asyncio.Event) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        await write(session)
        await stay(here)  # <- cut


async def sleep_in_a_begin_block(twin: Twin, here: asyncio.Event) -> None:
    async with twin.session() as session, session.begin():  # <- opened # <- closed
        await write(session)
        await stay(here)  # <- cut


async def sleep_in_the_factorys_block(twin: Twin, here: asyncio.Event) -> None:
    async with twin.factory.begin() as session:  # <- opened # <- closed
        await write(session)
        await stay(here)  # <- cut


async def sleep_before_a_finally(twin: Twin, here: asyncio.Event) -> None:
    session = twin.session()  # <- opened
    try:
        await write(session)
        await stay(here)  # <- cut
    finally:
        await session.close()  # <- closed


async def sleep_in_a_savepoint(twin: Twin, here: asyncio.Event) -> None:
    async with twin.session() as session, session.begin_nested():  # <- opened # <- closed
        await write(session)
        await stay(here)  # <- cut


async def wait_for_other_tasks(twin: Twin, here: asyncio.Event) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        await write(session)
        await asyncio.gather(stay(here), stay(here))  # <- cut


async def take_rows_slowly(twin: Twin, here: asyncio.Event) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        rows = await session.stream_scalars(select(Author))
        async for _ in rows:
            await stay(here)  # <- cut


# How it is cut off.


async def cancel(work: Callable[..., Any], twin: Twin) -> None:
    here = asyncio.Event()
    task = asyncio.create_task(work(twin, here), name="the one")
    await here.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def due(story: Callable[..., Any], **evidence: Any) -> Due:
    return Due(
        id="cancelled-transaction",
        site=marked(story, "<- cut"),
        opened=marked(story, "<- opened"),
        remedy=REPEAT,
        evidence={
            "ending": "close",
            "transaction_ms": Above(0),
            "closed_at": str(marked(story, "<- closed")),
            **evidence,
        },
    )


OUTCOMES: dict[Story, str] = {
    sleep_in_the_block: "closed",
    sleep_in_a_begin_block: "rolled_back",
    sleep_in_the_factorys_block: "rolled_back",
    sleep_before_a_finally: "closed",
    sleep_in_a_savepoint: "closed",
    wait_for_other_tasks: "closed",
    take_rows_slowly: "closed",
}


@on_each_database
@pytest.mark.parametrize("work", OUTCOMES, ids=lambda story: story.__name__)
def test_a_task_that_is_cancelled_where_it_waits(twin: Twin, work: Story) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            await cancel(work, twin)
        assert_found(captured, due(work, owner='task "the one"', outcome=OUTCOMES[work]))

    twin.run(story)


async def be_timed_out(work: Story, twin: Twin) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as timeout:
            here = asyncio.Event()
            asyncio.get_running_loop().create_task(expire(timeout, here.wait))
            await work(twin, here)


async def be_waited_for_in_vain(work: Story, twin: Twin) -> None:
    here, loop = asyncio.Event(), asyncio.get_running_loop()

    async def have_time_pass() -> None:
        await here.wait()
        later = loop.time() + 20
        loop.time = lambda: later  # type: ignore[method-assign] # the loop ends with the story

    passing = loop.create_task(have_time_pass())
    with suppress(TimeoutError):
        await asyncio.wait_for(work(twin, here), 20)
    await passing


async def have_a_sibling_that_fails(work: Story, twin: Twin) -> None:
    async def fail(here: asyncio.Event) -> None:
        await here.wait()
        raise LookupError

    here = asyncio.Event()
    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(work(twin, here))
            group.create_task(fail(here))


@pytest.mark.parametrize(
    "end",
    [be_timed_out, be_waited_for_in_vain, have_a_sibling_that_fails],
    ids=lambda story: story.__name__,
)
def test_each_way_a_task_is_cut_off(twin: Twin, end: Callable[..., Any]) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await end(sleep_in_the_block, twin)
        assert_found(captured, due(sleep_in_the_block, outcome="closed"))

    twin.run(story)


# Amid a statement.


async def run_a_long_statement(twin: Twin, waits: Any) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        await write(session)
        await session.execute(waits.statement)  # <- cut


async def run_a_long_statement_without_a_block(twin: Twin, waits: Any) -> None:
    session = twin.session()  # <- opened
    await write(session)
    await session.execute(waits.statement)  # <- cut


async def give_up_on_a_long_statement(twin: Twin, waits: Any) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        await write(session)
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as timeout:
                asyncio.get_running_loop().create_task(expire(timeout, waits.reached))
                await session.execute(waits.statement)  # <- cut
        await session.rollback()


async def cut_off(work: Callable[[Twin, Any], Any], twin: Twin) -> None:
    async with gate(twin) as waits:
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as timeout:
                asyncio.get_running_loop().create_task(expire(timeout, waits.reached))
                await work(twin, waits)


@on_postgresql
def test_a_statement_that_is_cut_off(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await cut_off(run_a_long_statement, twin)
        assert_found(captured, due(run_a_long_statement))

    twin.run(story)


@on_postgresql
def test_a_statement_that_is_cut_off_where_no_block_closes_its_session(
    twin: Twin,
) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await cut_off(run_a_long_statement_without_a_block, twin)
            gc.collect()
            assert len(captured.sessions) == 1
        opened = marked(run_a_long_statement_without_a_block, "<- opened")
        assert_found(
            captured,
            Due(
                id="cancelled-transaction",
                site=marked(run_a_long_statement_without_a_block, "<- cut"),
                opened=opened,
                remedy="async with SessionLocal() as session:\n    ...",
                evidence={"ending": "collected", "closed_at": None},
            ),
        )

    twin.run(story)


@on_postgresql
def test_a_statement_that_is_given_up_in_good_order(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with gate(twin) as waits:
                await give_up_on_a_long_statement(twin, waits)
        assert_found(captured, due(give_up_on_a_long_statement, outcome="rolled_back"))

    twin.run(story)


# Where nobody closes the session.


async def sleep_without_a_block(twin: Twin, here: asyncio.Event) -> None:
    session = twin.session()  # <- opened
    await write(session)
    await stay(here)


@on_each_database
def test_a_session_that_nobody_closes_is_abandoned(twin: Twin) -> None:
    """No block is left, and no statement cut off: nobody but the task knows why it is lost."""

    async def story() -> None:
        with capture(twin.factory) as captured:
            await cancel(sleep_without_a_block, twin)
            await asyncio.sleep(0)  # the event loop lets go of the error
            gc.collect()
            assert len(captured.sessions) == 1
        opened = marked(sleep_without_a_block, "<- opened")
        assert_found(
            captured,
            Due(
                id="abandoned-session",
                site=opened,
                opened=opened,
                remedy="async with SessionLocal() as session:\n    ...",
                entity="Author",
            ),
        )

    twin.run(story)


# What is cut off amid nothing.


async def sleep_after_commit(twin: Twin, here: asyncio.Event) -> None:
    async with twin.session() as session:
        await write(session)
        await session.commit()
        await stay(here)


async def sleep_after_a_begin_block(twin: Twin, here: asyncio.Event) -> None:
    async with twin.session() as session:
        async with session.begin():
            await write(session)
        await stay(here)


async def sleep_before_anything(twin: Twin, here: asyncio.Event) -> None:
    async with twin.session():
        await stay(here)


async def sleep_after_close(twin: Twin, here: asyncio.Event) -> None:
    async with twin.session() as session:
        await write(session)
        await session.rollback()
    await stay(here)


async def leave_the_writing_to_a_shielded_task(twin: Twin, here: asyncio.Event) -> None:
    async def save() -> None:
        async with twin.session() as session:
            await write(session)
            here.set()
            await asyncio.sleep(0.05)
            await session.commit()

    saving = asyncio.create_task(save())
    try:
        await asyncio.shield(saving)
    finally:
        await saving


async def give_up_a_wait_within_the_block(twin: Twin, here: asyncio.Event) -> None:
    async with twin.session() as session:
        await write(session)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        await session.commit()
        await stay(here)


@pytest.mark.parametrize(
    "work",
    [
        sleep_after_commit,
        sleep_after_a_begin_block,
        sleep_before_anything,
        sleep_after_close,
        leave_the_writing_to_a_shielded_task,
        give_up_a_wait_within_the_block,
    ],
    ids=lambda story: story.__name__,
)
def test_a_task_that_is_cancelled_during_no_transaction(twin: Twin, work: Story) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await cancel(work, twin)
            assert len(captured.sessions) == 1
        assert_found(captured)

    twin.run(story)

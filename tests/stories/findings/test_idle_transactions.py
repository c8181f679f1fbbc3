"""Stories of transactions that wait, and of where the code is meanwhile."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select

from session_tracer.testing import capture
from tests.good_code.silence import only_async, only_sync
from tests.library import Author, authors, keep
from tests.stories.findings.due import Above, Due, assert_found, look_ahead, until
from tests.stories.findings.gates import commits_slowly, gate
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer import CallSite
    from session_tracer.testing import Captured
    from tests.twins import Twin


def outside(story: Any) -> str:
    wait = marked(story, "<- waits")
    return f"commit or close before the wait at {wait}, or wait outside the transaction"


async def read_and_wait(twin: Twin, *seconds: float) -> None:
    async with twin.session() as session:  # <- opened, begins
        (await session.scalars(select(Author))).all()  # <- reads
        for later in seconds:
            look_ahead(later)  # <- waits
        await session.commit()  # <- ends


async def write_and_wait(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened
        session.add(Author(name="Ada"))
        await session.flush()  # <- writes
        look_ahead(6)  # <- waits
        await session.commit()


def test_a_transaction_that_waits_after_reading(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await read_and_wait(twin, 6, 7, 29)
        assert_found(
            captured,
            Due(
                id="idle-in-transaction",
                site=marked(read_and_wait, "<- waits"),
                opened=marked(read_and_wait, "<- opened"),
                remedy=outside(read_and_wait),
                evidence={
                    "idle_ms": Above(6_000),
                    "held_ms": Above(0),
                    "statements": 1,
                    "sql_ms": Above(0),
                    "last_statement_at": str(marked(read_and_wait, "<- reads")),
                },
            ),
            retracted=("idle-in-transaction",),
        )

    twin.run(story)


def test_a_transaction_that_waits_after_writing(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await write_and_wait(twin)
        assert_found(
            captured,
            Due(
                id="idle-in-transaction",
                site=marked(write_and_wait, "<- waits"),
                opened=marked(write_and_wait, "<- opened"),
                remedy=outside(write_and_wait),
                evidence={"last_statement_at": str(marked(write_and_wait, "<- writes"))},
            ),
            retracted=("idle-in-transaction",),
        )

    twin.run(story)


def test_a_transaction_is_not_idle_until_the_time_is_over(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await read_and_wait(twin, 1, 3, 4)
        assert_found(captured)

    twin.run(story)


async def wait_after_commit(twin: Twin) -> None:
    async with twin.session() as session:
        (await session.scalars(select(Author))).all()
        await session.commit()
        look_ahead(50)


async def wait_after_rollback(twin: Twin) -> None:
    async with twin.session() as session:
        (await session.scalars(select(Author))).all()
        await session.rollback()
        look_ahead(50)


async def wait_after_close(twin: Twin) -> None:
    session = twin.session()
    (await session.scalars(select(Author))).all()
    await session.close()
    look_ahead(50)


async def wait_without_a_connection(twin: Twin) -> None:
    async with twin.session() as session:
        session.add(Author(name="Ada"))
        look_ahead(29)
        await session.commit()


async def wait_amid_the_rows_of_a_statement(twin: Twin) -> None:
    def read(session: Any) -> None:
        for _ in session.scalars(select(Author).execution_options(yield_per=1)):
            look_ahead(29)

    async with twin.session() as session:
        await session.run_sync(read)


@pytest.mark.parametrize(
    "wait",
    [
        wait_after_commit,
        wait_after_rollback,
        wait_after_close,
        wait_without_a_connection,
        wait_amid_the_rows_of_a_statement,
    ],
)
def test_a_wait_that_holds_up_no_connection(twin: Twin, wait: Callable[[Twin], Any]) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        with capture(twin.factory) as captured:
            await wait(twin)
        assert_found(captured)

    twin.run(story)


def test_a_statement_that_takes_long_is_no_wait(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with gate(twin) as waits, twin.session() as session:
                executes = session.execute(waits.statement)
                if twin.is_async:
                    task = asyncio.create_task(executes)
                else:
                    thread = threading.Thread(target=twin.drive, args=(executes,))
                    thread.start()
                await waits.reached()
                look_ahead(29)
                await waits.open()
                if twin.is_async:
                    await task
                else:
                    thread.join()
        assert_found(captured)

    twin.run(story)


def test_a_commit_that_takes_the_database_long_is_no_wait(twin: Twin) -> None:
    async def story() -> None:
        engine: Any = getattr(twin.engine, "sync_engine", twin.engine)
        with capture(twin.factory) as captured, commits_slowly(engine):
            async with twin.session() as session:
                (await session.scalars(select(Author))).all()
                await session.commit()
        assert_found(captured)

    twin.run(story)


def test_a_listener_that_waits_before_the_commit_is_a_wait(twin: Twin) -> None:
    def waits(session: object) -> None:
        look_ahead(6)  # <- waits

    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                event.listen(getattr(session, "sync_session", session), "before_commit", waits)
                (await session.scalars(select(Author))).all()
                await session.commit()
        assert [one.id for one in captured.findings] == ["idle-in-transaction"]
        assert captured.findings[0].site == marked(waits, "<- waits")

    twin.run(story)


# Where the code waits.

# By then it does, on a busy machine too.
SOON = 0.3


async def read_and(twin: Twin, wait: Callable[[], Any]) -> None:
    async with twin.session() as session:  # <- opened
        (await session.scalars(select(Author))).all()  # <- reads
        waited = wait()
        if twin.is_async:
            await waited


def assert_waits_at(
    captured: Captured, wait: Callable[..., Any], opened: CallSite | None = None
) -> None:
    """The one finding names the line that is marked in that function."""
    assert_found(
        captured,
        Due(
            id="idle-in-transaction",
            site=marked(wait, "<- waits"),
            opened=opened or marked(read_and, "<- opened"),
            remedy=outside(wait),
        ),
        retracted=("idle-in-transaction",),
    )
    assert captured.findings[0].evidence["doing"][0] == str(marked(wait, "<- waits"))


def sleep_until(captured: Captured) -> None:
    while not captured.findings:
        time.sleep(0.05)  # <- waits


def take(jobs: queue.Queue[str]) -> None:
    jobs.get(timeout=20)  # <- waits


async def upload(captured: Captured) -> None:
    while not captured.findings:
        await asyncio.sleep(0.05)  # <- waits


async def upload_with_a_timeout(captured: Captured) -> None:
    async with asyncio.timeout(20):
        await upload(captured)


async def wait_for_tasks(captured: Captured) -> None:
    await asyncio.gather(upload(captured), upload(captured))  # <- waits


async def wait_for_a_group(captured: Captured) -> None:
    async with asyncio.TaskGroup() as group:  # <- waits
        group.create_task(upload(captured))
        group.create_task(upload(captured))


async def wait_for_a_thread(captured: Captured) -> None:
    await asyncio.to_thread(sleep_until, captured)  # <- waits


@only_sync
def test_a_thread_that_sleeps_in_a_function(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, idle_in_transaction_seconds=SOON) as captured:
            await read_and(twin, lambda: sleep_until(captured))
        assert_waits_at(captured, sleep_until)
        assert captured.findings[0].evidence["owner"] == 'thread "MainThread"'

    twin.run(story)


def read_and_take(twin: Twin, jobs: queue.Queue[str]) -> None:
    with twin.factory() as session:  # <- opened
        session.scalars(select(Author)).all()
        take(jobs)


@only_sync
def test_a_thread_that_waits_for_a_queue(twin: Twin) -> None:
    async def story() -> None:
        jobs: queue.Queue[str] = queue.Queue()
        with capture(twin.factory, idle_in_transaction_seconds=SOON) as captured:
            worker = threading.Thread(target=read_and_take, args=(twin, jobs), name="export-3")
            worker.start()
            await until(lambda: captured.findings, is_async=False)
            jobs.put("one")
            worker.join()
        assert_waits_at(captured, take, opened=marked(read_and_take, "<- opened"))
        assert captured.findings[0].evidence["owner"] == 'thread "export-3"'

    twin.run(story)


@only_async
@pytest.mark.parametrize(
    ("wait", "named"),
    [
        (upload, upload),
        (upload_with_a_timeout, upload),
        (wait_for_tasks, wait_for_tasks),
        (wait_for_a_group, wait_for_a_group),
        (wait_for_a_thread, wait_for_a_thread),
    ],
    ids=lambda function: function.__name__,
)
def test_a_task_that_waits(twin: Twin, wait: Callable[..., Any], named: Callable[..., Any]) -> None:
    async def story() -> None:
        with capture(twin.factory, idle_in_transaction_seconds=SOON) as captured:
            await asyncio.create_task(
                read_and(twin, lambda: wait(captured)), name="the exporting one"
            )
        assert_waits_at(captured, named)
        assert captured.findings[0].evidence["owner"] == 'task "the exporting one"'

    twin.run(story)


async def read(session: Any) -> None:
    (await session.scalars(select(Author))).all()


async def read_in_a_task_and(twin: Twin, captured: Captured) -> None:
    async with twin.session() as session:  # <- opened
        await asyncio.create_task(read(session))
        await upload(captured)


@only_async
def test_a_task_that_waits_after_another_one_has_used_its_session(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, idle_in_transaction_seconds=SOON) as captured:
            await read_in_a_task_and(twin, captured)
        assert_found(
            captured,
            Due(
                id="idle-in-transaction",
                site=marked(upload, "<- waits"),
                opened=marked(read_in_a_task_and, "<- opened"),
                remedy=outside(upload),
            ),
            retracted=("idle-in-transaction",),
        )

    twin.run(story)


def read_in_a_thread(session: Any) -> None:
    session.scalars(select(Author)).all()  # <- reads


async def read_in_threads_and(twin: Twin, captured: Captured) -> None:
    """As FastAPI does with a synchronous dependency: each step in a thread of the pool."""
    session = await asyncio.to_thread(twin.factory)
    await asyncio.to_thread(read_in_a_thread, session)
    # The same threads do other work by now.
    await asyncio.gather(*(asyncio.to_thread(sleep_until, captured) for _ in range(4)))
    await asyncio.to_thread(session.close)


@only_sync
def test_what_the_threads_of_a_pool_do_next_is_not_the_sessions(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, idle_in_transaction_seconds=SOON) as captured:
            asyncio.run(read_in_threads_and(twin, captured))
        (found,) = captured.findings
        assert found.id == "idle-in-transaction"
        assert found.site == marked(read_in_a_thread, "<- reads")
        assert found.evidence["doing"] == []

    twin.run(story)

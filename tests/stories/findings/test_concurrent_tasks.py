"""Stories of two tasks in one AsyncSession, and of tasks that take turns."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import IllegalStateChangeError, InvalidRequestError, SQLAlchemyError

from session_tracer.testing import Captured, capture
from tests.good_code.silence import assert_silent, only_async
from tests.library import Author, authors, keep
from tests.stories.findings.due import Due, assert_found, until
from tests.stories.findings.gates import gate
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.twins import Twin

# A close() amid a statement of asyncpg's leaves the connection to the garbage collector.
LEFT = "ignore:The garbage collector is trying to clean up"
pytestmark = [only_async, pytest.mark.filterwarnings(LEFT)]


async def wait_inside(session: AsyncSession, statement: Any) -> None:
    with suppress(SQLAlchemyError):
        await session.execute(statement)  # <- first


async def execute(session: AsyncSession) -> None:
    await session.execute(text("SELECT 2"))  # <- second


async def stream(session: AsyncSession) -> None:
    async for _ in await session.stream(select(Author)):  # <- second
        pass


async def flush(session: AsyncSession) -> None:
    session.add(Author(name="of another task"))
    await session.flush()  # <- second


async def commit(session: AsyncSession) -> None:
    await session.commit()  # <- second


async def roll_back(session: AsyncSession) -> None:
    await session.rollback()  # <- second


async def close(session: AsyncSession) -> None:
    await session.close()  # <- second


async def refresh(session: AsyncSession) -> None:
    await session.refresh(await session.get_one(Author, 1))  # <- second


def due(opened: Any, first: Any, second: Any, *names: str) -> Due:
    used_by, in_use_by = names or ("second", "first")
    return Due(
        id="concurrent-use",
        site=marked(second, "<- second"),
        opened=marked(opened, "<- opened"),
        remedy="async with SessionLocal() as session:  # one for each task",
        evidence={
            "used_by": f'task "{used_by}"',
            "in_use_by": f'task "{in_use_by}"',
            "in_use_at": str(marked(first, "<- first")),
        },
    )


# Inside a statement, where SQLAlchemy says nothing.


async def meet(twin: Twin, use: Callable[[AsyncSession], Awaitable[None]]) -> Captured:
    async def use_it() -> None:
        with suppress(SQLAlchemyError):
            await use(session)

    with capture(twin.factory) as captured:
        async with gate(twin) as waits:
            session = twin.factory()  # <- opened
            await session.connection()
            first = asyncio.create_task(wait_inside(session, waits.statement), name="first")
            await waits.reached()
            second = asyncio.create_task(use_it(), name="second")
            try:
                await until(lambda: captured.findings, is_async=True)
            finally:
                await waits.open()
                await asyncio.gather(first, second)
            with suppress(SQLAlchemyError):
                await session.rollback()
            await session.close()
    # A COMMIT amid a statement leaves asyncpg's connection unfit for others.
    await twin.dispose()
    return captured


@on_each_database
@pytest.mark.parametrize("use", [execute, stream, flush, commit, roll_back, close, refresh])
def test_a_task_that_comes_while_another_is_inside_a_statement(twin: Twin, use: Any) -> None:
    async def story() -> None:
        captured = await meet(twin, use)
        gc.collect()
        assert_found(captured, due(meet, wait_inside, use))

    twin.run(story)


# Where SQLAlchemy refuses what it notices itself.


async def use_first(session: AsyncSession) -> None:
    await session.execute(text("SELECT 1"))  # <- first


async def flush_first(session: AsyncSession) -> None:
    await session.flush()  # <- first


async def flush_too(session: AsyncSession) -> None:
    await session.flush()  # <- second


async def commit_first(session: AsyncSession) -> None:
    await session.commit()  # <- first


async def together(twin: Twin, session: AsyncSession, first: Any, second: Any) -> list[str]:
    """How both end, the first one's way first."""
    tasks = [
        asyncio.create_task(first(session), name="first"),
        asyncio.create_task(second(session), name="second"),
    ]
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    return [type(end).__name__ for end in ends]


async def begin_at_once(twin: Twin) -> list[str]:
    await twin.dispose()  # so that a connection has to be waited for
    async with twin.session() as session:  # <- opened
        return await together(twin, session, use_first, execute)


async def begin_before(twin: Twin) -> list[str]:
    await twin.dispose()
    async with twin.session() as session, session.begin():  # <- opened
        return await together(twin, session, use_first, execute)


async def flush_at_once(twin: Twin) -> list[str]:
    async with twin.session() as session:  # <- opened
        await session.connection()
        session.add(Author(name="of both"))
        ends = await together(twin, session, flush_first, flush_too)
        await session.rollback()
        return ends


async def commit_at_once(twin: Twin) -> list[str]:
    async with twin.session() as session:  # <- opened
        session.add(Author(name="of both"))
        await session.flush()
        return await together(twin, session, commit_first, commit)


async def use_while_committing(twin: Twin) -> list[str]:
    async with twin.session() as session:  # <- opened
        session.add(Author(name="of both"))
        await session.flush()
        return await together(twin, session, commit_first, execute)


async def close_at_once(twin: Twin) -> list[str]:
    await twin.dispose()
    async with twin.session() as session:  # <- opened
        return await together(twin, session, use_first, close)


AT_ONCE = {
    "a connection": (begin_at_once, use_first, execute, InvalidRequestError),
    "a connection of a block": (begin_before, use_first, execute, InvalidRequestError),
    "a flush": (flush_at_once, flush_first, flush_too, InvalidRequestError),
    "a commit": (commit_at_once, commit_first, commit, IllegalStateChangeError),
    "a statement": (use_while_committing, commit_first, execute, InvalidRequestError),
    "a close": (close_at_once, use_first, close, IllegalStateChangeError),
}


@pytest.mark.parametrize("what", AT_ONCE)
def test_a_task_that_is_refused(twin: Twin, what: str) -> None:
    story_of, first, second, refused = AT_ONCE[what]

    async def story() -> None:
        with capture(twin.factory) as captured:
            assert await story_of(twin) == ["NoneType", refused.__name__]
        assert_found(captured, due(story_of, first, second))
        assert len(captured.sessions) == 1

    twin.run(story)


def test_a_session_that_is_not_closed_after_all_goes_on(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            await twin.dispose()
            session = twin.factory()
            assert await together(twin, session, use_first, close) == [
                "NoneType",
                "IllegalStateChangeError",
            ]
            author = (await session.scalars(select(Author))).one()
            author.name = "written after it was not closed"
            await session.commit()
            await session.close()
        assert [one.id for one in captured.findings] == ["concurrent-use"]
        (summary,) = captured.sessions
        assert (summary.outcome, summary.loaded) == ("committed", {"Author": 1})
        assert (summary.statements, summary.dirty) == (3, {"Author": 1})

    twin.run(story)


async def come_second_itself(twin: Twin) -> str:
    await twin.dispose()
    async with twin.session() as session:  # <- opened
        await session.begin()
        first = asyncio.create_task(use_first(session), name="first")
        await asyncio.sleep(0)
        try:
            await execute(session)
        except InvalidRequestError as error:
            return str(error)
        finally:
            await first
    return ""


def test_the_task_that_began_comes_second(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            refused = await asyncio.create_task(come_second_itself(twin), name="itself")
        assert "provisioning a new connection" in refused
        assert_found(captured, due(come_second_itself, use_first, execute, "itself", "first"))

    twin.run(story)


async def gather_statements(session: AsyncSession) -> None:
    await asyncio.gather(  # <- gathers
        session.execute(text("SELECT 1")), session.execute(text("SELECT 2"))
    )


def test_coroutines_of_the_sessions_own_that_are_gathered(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.connection()
                await gather_statements(session)
        (finding,) = captured.findings
        assert finding.id == "concurrent-use"
        assert finding.site == marked(gather_statements, "<- gathers")
        assert finding.evidence["in_use_at"] == str(finding.site)

    twin.run(story)


# A task that goes on when the block of its session ends.


async def idle() -> None:
    await asyncio.sleep(20)


async def outlive(twin: Twin) -> None:
    await twin.dispose()  # so that a connection has to be waited for
    async with twin.session() as session:  # <- left
        task = asyncio.create_task(use_first(session), name="goes on")
        await asyncio.sleep(0)
    await task


async def outlive_a_transaction(twin: Twin) -> None:
    await twin.dispose()
    async with twin.factory.begin() as session:  # <- left
        task = asyncio.create_task(use_first(session), name="goes on")
        await asyncio.sleep(0)
    await task


async def outlive_a_statement(twin: Twin) -> None:
    async with gate(twin) as waits:
        async with twin.session() as session:  # <- left
            await session.connection()
            task = asyncio.create_task(wait_inside(session, waits.statement), name="goes on")
            await waits.reached()
            asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(waits.open()))
        await task


@pytest.mark.parametrize("order", [1, -1], ids=["by name", "the other way round"])
@pytest.mark.parametrize("others", [0, 30])
@pytest.mark.parametrize(
    "story_of", [outlive, outlive_a_transaction, outlive_a_statement], ids=lambda one: one.__name__
)
def test_a_task_that_outlives_the_block_is_named_among_all_tasks(
    twin: Twin, story_of: Any, others: int, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_tasks = asyncio.all_tasks

    def in_order(loop: Any = None) -> list[asyncio.Task[Any]]:
        return sorted(all_tasks(loop), key=lambda task: task.get_name())[::order]

    async def story() -> None:
        monkeypatch.setattr(asyncio, "all_tasks", in_order)
        idling = [asyncio.create_task(idle()) for _ in range(others)]
        with capture(twin.factory) as captured, suppress(SQLAlchemyError):
            await asyncio.create_task(story_of(twin), name="leaves")
        monkeypatch.undo()
        for task in idling:
            task.cancel()
        first = wait_inside if story_of is outlive_a_statement else use_first
        found = [one for one in captured.findings if one.id == "concurrent-use"]
        assert [(one.site, dict(one.evidence)) for one in found] == [
            (
                marked(first, "<- first"),
                {
                    "used_by": 'task "goes on"',
                    "closed_by": 'task "leaves"',
                    "closed_at": str(marked(story_of, "<- left")),
                },
            )
        ]
        assert found[0].remedy == (
            "async with SessionLocal() as session:  "
            "# in the task, or await the task before the block ends"
        )
        gc.collect()

    twin.run(story)
    gc.collect()


async def await_it_before_the_end(twin: Twin) -> None:
    await twin.dispose()
    async with twin.session() as session:
        await asyncio.create_task(use_first(session))


async def give_it_a_session(twin: Twin) -> None:
    async def use() -> None:
        async with twin.session() as session:
            await use_first(session)

    async with twin.session() as session:
        await use_first(session)
        task = asyncio.create_task(use())
        await asyncio.sleep(0)
    await task


@pytest.mark.parametrize(
    "remedy", [await_it_before_the_end, give_it_a_session], ids=lambda one: one.__name__
)
def test_the_remedies_for_a_task_that_outlives_the_block(twin: Twin, remedy: Any) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await asyncio.gather(*[remedy(twin) for _ in range(5)])
        assert captured.findings == []

    twin.run(story)


# Beside it.


def test_gathered_tasks_with_a_session_each(twin: Twin) -> None:
    async def story() -> None:
        async def work() -> None:
            async with twin.session() as session:
                await execute(session)
                await stream(session)

        with capture(twin.factory) as captured:
            await asyncio.gather(work(), work(), work())
        assert_silent(captured, sessions=3, statements=6)

    twin.run(story)


def test_tasks_that_take_turns(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            session = twin.factory()
            for use in (use_first, execute, stream, refresh, flush, commit, close):
                await asyncio.create_task(use(session))
        assert_silent(captured, sessions=1)

    twin.run(story)


def test_tasks_that_wait_for_each_other(twin: Twin) -> None:
    async def story() -> None:
        lock = asyncio.Lock()

        async def work() -> None:
            for _ in range(5):
                async with lock:
                    await session.scalars(select(Author))

        with capture(twin.factory, repeats_of_one_select=999) as captured:
            async with twin.session() as session:
                await asyncio.gather(work(), work(), work())
        assert_silent(captured, sessions=1, statements=15)

    twin.run(story)


def test_a_stream_between_whose_rows_the_same_task_asks_for_more(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                async for author in await session.stream_scalars(select(Author)):
                    await session.get(Author, author.id + 100)
        assert_silent(captured, sessions=1, statements=4)

    twin.run(story)


def test_a_listener_that_uses_the_session_again(twin: Twin) -> None:
    async def story() -> None:
        def look(session: Any, *_: Any) -> None:
            session.execute(text("SELECT 3"))

        def look_too_late(session: Any, *_: Any) -> None:
            with pytest.raises(InvalidRequestError, match="state"):
                session.execute(text("SELECT 4"))

        with capture(twin.factory) as captured:
            session = twin.factory()
            event.listen(session.sync_session, "before_flush", look)
            event.listen(session.sync_session, "before_commit", look)
            event.listen(session.sync_session, "after_commit", look_too_late)
            await asyncio.create_task(flush(session))
            await asyncio.create_task(commit(session))
            await session.close()
        assert captured.findings == []
        assert captured.metrics.get("session_tracer.errors", []) == []

    twin.run(story)


def test_work_that_a_timeout_ends_leaves_the_session_to_its_task(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                for _ in range(3):
                    await asyncio.wait_for(execute(session), 20)
        assert_silent(captured, sessions=1)

    twin.run(story)

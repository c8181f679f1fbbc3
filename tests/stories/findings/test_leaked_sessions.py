"""Stories of sessions that stay open for too long, and of what is said of them meanwhile."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from session_tracer.testing import capture
from tests.library import Author, authors, keep
from tests.stories.findings.due import Above, Due, assert_found, look_ahead, until
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from session_tracer.testing import Captured
    from tests.twins import Twin

NEITHER_IDLE_NOR_LONG: dict[str, Any] = {
    "idle_in_transaction_seconds": 9999,
    "long_transaction_seconds": 9999,
}


def block(twin: Twin) -> str:
    """The code that closes a session whatever happens."""
    return f"{'async with' if twin.is_async else 'with'} SessionLocal() as session:"


def user(twin: Twin) -> str:
    """Who runs this story."""
    task = asyncio.current_task() if twin.is_async else None
    return 'thread "MainThread"' if task is None else f'task "{task.get_name()}"'


async def process_of(session: Any, twin: Twin) -> Any:
    """The database server's process for the session's connection."""
    if twin.database == "sqlite":
        return None
    return await session.scalar(text("SELECT pg_backend_pid()"))


async def read_and_wait(twin: Twin, *seconds: float) -> None:
    async with twin.session() as session:  # <- opened
        (await session.scalars(select(Author))).all()  # <- reads
        for later in seconds:
            look_ahead(later)  # <- waits


def test_a_session_that_stays_open_with_a_connection(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await read_and_wait(twin, 61)
        assert_found(
            captured,
            Due(
                id="leaked-session",
                site=marked(read_and_wait, "<- opened"),
                opened=marked(read_and_wait, "<- opened"),
                remedy=f"commit before the wait at {marked(read_and_wait, '<- waits')}, "
                "or open the session after it",
                evidence={
                    "age_ms": Above(61_000),
                    "transaction": "open",
                    "transaction_ms": Above(0),
                    "held_ms": Above(0),
                    "statements": 1,
                    "sql_ms": Above(0),
                    "last_statement_at": str(marked(read_and_wait, "<- reads")),
                    "last_statement_ago_ms": Above(0),
                    "pending": None,
                    "earlier": None,
                },
            ),
            retracted=("leaked-session",),
        )
        (retraction,) = captured.retractions
        assert retraction.message.startswith(
            f"session {captured.sessions[0].id[:6]} (default) was c"
        )
        assert retraction.evidence["closed_at"] == str(marked(read_and_wait, "<- opened"))

    twin.run(story)


def test_a_session_is_no_leak_until_the_time_is_over(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, **NEITHER_IDLE_NOR_LONG) as captured:
            await read_and_wait(twin, 1, 30, 59)
        assert_found(captured)

    twin.run(story)


def test_a_leak_is_reported_once(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, **NEITHER_IDLE_NOR_LONG) as captured:
            await read_and_wait(twin, 59, 61, 62, 121, 10_000)
        assert [finding.id for finding in captured.findings] == ["leaked-session"]

    twin.run(story)


async def prepare_and_wait(twin: Twin) -> Any:
    async with twin.session() as session:  # <- opened
        kept, doomed = await session.scalars(select(Author).order_by(Author.id))
        process = await process_of(session, twin)
        await session.delete(doomed)
        kept.name = "Mary"
        session.add_all([Author(name="Ada"), Author(name="Grace")])
        look_ahead(61)
        await session.rollback()
    return process


@on_each_database
def test_what_a_leaked_session_holds_is_reported(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with capture(twin.factory) as captured:
            process = await prepare_and_wait(twin)
        opened = marked(prepare_and_wait, "<- opened")
        (found,) = captured.findings
        assert_found(
            captured,
            Due(
                id="leaked-session",
                site=opened,
                opened=opened,
                remedy=found.remedy,
                evidence={
                    "owner": user(twin),
                    "process_id": process,
                    "pending": {"Author": 2},
                    "modified_objects": 1,
                    "deleted_objects": 1,
                },
            ),
            retracted=("leaked-session",),
        )
        assert ("(PostgreSQL process" in found.message) is (twin.database == "postgresql")

    twin.run(story)


async def commit_and_wait(twin: Twin) -> None:
    session = twin.session()  # <- opened
    session.add(Author(name="Ada"))
    await session.commit()
    look_ahead(61)
    await session.close()


def test_a_session_that_stays_open_after_its_commit(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await commit_and_wait(twin)
        opened = marked(commit_and_wait, "<- opened")
        assert_found(
            captured,
            Due(
                id="leaked-session",
                site=opened,
                opened=opened,
                remedy=f"{block(twin)}\n    ...",
                evidence={"transaction": "none", "held_ms": None},
            ),
            retracted=("leaked-session",),
        )

    twin.run(story)


def test_a_session_that_was_never_used_is_no_leak(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session():
                look_ahead(3_600)
        assert_found(captured)

    twin.run(story)


def test_sessions_one_after_another_leak_nothing(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            for _ in range(3):
                await read_and_wait(twin)
                look_ahead(61)
        assert_found(captured)

    twin.run(story)


# Which one speaks.


@pytest.mark.parametrize("suspicion", ["idle-in-transaction", "long-transaction"])
def test_a_suspicion_becomes_a_leak_that_names_it(twin: Twin, suspicion: str) -> None:
    never = "long_transaction" if suspicion.startswith("idle") else "idle_in_transaction"
    settings: dict[str, Any] = {f"{never}_seconds": 9999}

    async def story() -> None:
        with capture(twin.factory, **settings) as captured:
            await read_and_wait(twin, 31, 59, 61, 3_600)
        assert [finding.id for finding in captured.findings] == [suspicion, "leaked-session"]
        assert captured.findings[1].evidence["earlier"] == [suspicion]
        taken_back = [retraction.finding.id for retraction in captured.retractions]
        assert taken_back == [suspicion, "leaked-session"]

    twin.run(story)


async def never_end(twin: Twin) -> None:
    session = twin.session()  # <- opened
    (await session.scalars(select(Author))).all()
    look_ahead(61)  # <- waits


@pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")
def test_a_leak_that_is_collected_is_over_too(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await never_end(twin)
            gc.collect()
            assert len(captured.sessions) == 1
        opened = marked(never_end, "<- opened")
        wait = marked(never_end, "<- waits")
        assert_found(
            captured,
            Due(
                id="leaked-session",
                site=opened,
                opened=opened,
                remedy=f"commit before the wait at {wait}, or open the session after it",
            ),
            Due(
                id="abandoned-session",
                site=opened,
                opened=opened,
                remedy=f"{block(twin)}\n    ...",
                evidence={"ending": "collected"},
            ),
            retracted=("leaked-session",),
        )

    twin.run(story)


# The thread itself.


async def read_and_wait_until(twin: Twin, captured: Captured) -> None:
    async with twin.session() as session:  # <- opened
        (await session.scalars(select(Author))).all()
        await until(lambda: captured.findings, is_async=twin.is_async)  # <- waits


def test_a_leak_is_reported_while_it_lasts(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, leak_after_seconds=0.05) as captured:
            await read_and_wait_until(twin, captured)
        opened = marked(read_and_wait_until, "<- opened")
        wait = marked(read_and_wait_until, "<- waits")
        assert_found(
            captured,
            Due(
                id="leaked-session",
                site=opened,
                opened=opened,
                remedy=f"commit before the wait at {wait}, or open the session after it",
                evidence={"age_ms": Above(50), "owner": user(twin)},
            ),
            retracted=("leaked-session",),
        )

    twin.run(story)

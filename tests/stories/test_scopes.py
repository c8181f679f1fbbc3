"""Stories of how a session scope begins and ends, and begins again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import async_scoped_session
from sqlalchemy.orm import scoped_session

from session_tracer.testing import capture
from tests.library import Author, authors, keep
from tests.outline import outline
from tests.stories.lines import line
from tests.twins import Block, SyncSession, Twin

READ = [
    "transaction began",
    "connection acquired",
    "SELECT Author",
    "connection released",
    "transaction closed",
]


@pytest.mark.parametrize("ending", ["close", "reset", "invalidate"])
def test_each_way_to_end_a_scope_is_reported_by_its_name(twin: Twin, ending: str) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            session = twin.session()
            (await session.scalars(select(Author))).all()
            await getattr(session, ending)()
        assert outline(captured.facts) == ["session opened", *READ, f"session {ending}: closed"]
        (summary,) = captured.sessions
        assert (summary.ending, summary.outcome) == (ending, "closed")
        assert line(summary.opened_site) == "session = twin.session()"
        assert line(summary.closed_site) == "await getattr(session, ending)()"

    twin.run(story)


def test_the_end_of_a_with_block_closes(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                (await session.scalars(select(Author))).all()
        assert outline(captured.facts) == ["session opened", *READ, "session close: closed"]
        (summary,) = captured.sessions
        assert line(summary.opened_site) == "async with twin.session() as session:"
        assert line(summary.closed_site) == "async with twin.session() as session:"

    twin.run(story)


def test_a_sessionmakers_own_block_commits_and_closes(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            block = twin.factory.begin()
            async with block if twin.is_async else Block(block) as session:
                session.add_all(authors(1))
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "commit flush began",
            "connection acquired",
            "INSERT authors",
            "flushed +1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_a_dependency_that_yields_a_session_is_one_scope(twin: Twin) -> None:
    async def get_session() -> AsyncIterator[Any]:
        session = twin.session()
        try:
            yield session
        finally:
            await session.close()

    async def story() -> None:
        with capture(twin.factory) as captured:
            async with asynccontextmanager(get_session)() as session:
                (await session.scalars(select(Author))).all()
        assert outline(captured.facts) == ["session opened", *READ, "session close: closed"]
        (summary,) = captured.sessions
        assert line(summary.opened_site) == "session = twin.session()"
        assert line(summary.closed_site) == "await session.close()"

    twin.run(story)


def scoped(twin: Twin) -> Any:
    """A registry of sessions, one for each thread or task."""
    if twin.is_async:
        return async_scoped_session(twin.factory, scopefunc=asyncio.current_task)
    return SyncSession(scoped_session(twin.factory))  # type: ignore[arg-type] # it speaks alike


def test_each_remove_of_a_registry_ends_one_scope(twin: Twin) -> None:
    async def story() -> None:
        registry = scoped(twin)
        with capture(twin.factory) as captured:
            for _ in range(2):
                (await registry.scalars(select(Author))).all()
                await registry.remove()
        one = ["session opened", *READ, "session close: closed"]
        assert outline(captured.facts) == one + one
        first, second = captured.sessions
        assert first.id != second.id
        assert line(first.opened_site) == "(await registry.scalars(select(Author))).all()"
        assert line(first.closed_site) == "await registry.remove()"

    twin.run(story)


def test_a_second_close_reports_nothing(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            session = twin.session()
            (await session.scalars(select(Author))).all()
            await session.close()
            await session.close()
            await session.reset()
        assert outline(captured.facts) == ["session opened", *READ, "session close: closed"]

    twin.run(story)


def test_a_session_that_may_be_closed_once_only(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session(close_resets_only=False) as session:
                (await session.scalars(select(Author))).all()
                await session.reset()
                (await session.scalars(select(Author))).all()
            with pytest.raises(InvalidRequestError, match="permanently closed"):
                await session.scalars(select(Author))
        assert outline(captured.facts) == [
            "session opened",
            *READ,
            "session reset: closed",
            "session reopened",
            *READ,
            "session close: closed",
        ]

    twin.run(story)


def test_use_after_close_is_another_scope_of_the_same_session(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            session = twin.session()
            (await session.scalars(select(Author))).all()
            await session.close()
            session.add_all(authors(1))
            await session.commit()
            await session.close()
        assert outline(captured.facts) == [
            "session opened",
            *READ,
            "session close: closed",
            "session reopened",
            "transaction began",
            "commit flush began",
            "connection acquired",
            "INSERT authors",
            "flushed +1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]
        first, second = captured.sessions
        assert first.id != second.id
        assert line(second.opened_site) == "session.add_all(authors(1))"
        assert (first.new, second.new) == ({}, {"Author": 1})

    twin.run(story)


def test_a_session_opened_again_and_again_for_one_block_each(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with capture(twin.factory) as captured:
            session = twin.session()
            for _ in range(3):
                async with session:
                    (await session.scalars(select(Author))).all()
        assert [summary.loaded for summary in captured.sessions] == [{"Author": 2}] * 3
        assert [line for line in outline(captured.facts) if line.startswith("session")] == [
            "session opened",
            "session close: closed",
            "session reopened",
            "session close: closed",
            "session reopened",
            "session close: closed",
        ]

    twin.run(story)


def test_a_session_nobody_used(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session():
                pass
        assert outline(captured.facts) == ["session opened", "session close: unused"]

    twin.run(story)


def test_a_session_that_begins_only_when_reported_to(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session(autobegin=False) as session:
                with pytest.raises(InvalidRequestError, match="Autobegin is disabled"):
                    await session.scalars(select(Author))
                async with session.begin():
                    (await session.scalars(select(Author))).all()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)

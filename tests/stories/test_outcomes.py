"""Stories of how scopes end: what went wrong, and what only looked as if it had."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import select

from session_tracer.testing import capture
from tests.library import Author, authors, keep
from tests.outline import outline
from tests.stories.lines import line
from tests.twins import Twin, on_each_database

READ = [
    "transaction began",
    "connection acquired",
    "SELECT Author",
    "connection released",
    "transaction closed",
]


class OutOfStockError(Exception):
    """Something that goes wrong in an application."""


def test_an_exception_that_leaves_the_block(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured, suppress(OutOfStockError):
            async with twin.session() as session:
                (await session.scalars(select(Author))).all()
                raise OutOfStockError
        assert outline(captured.facts) == [
            "session opened",
            *READ,
            "session close: failed with OutOfStockError",
        ]
        (summary,) = captured.sessions
        assert line(summary.closed_site) == "async with twin.session() as session:"

    twin.run(story)


def test_an_exception_that_passes_a_finally(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            session = twin.session()
            with suppress(OutOfStockError):
                try:
                    (await session.scalars(select(Author))).all()
                    raise OutOfStockError
                finally:
                    await session.close()
        assert outline(captured.facts) == [
            "session opened",
            *READ,
            "session close: failed with OutOfStockError",
        ]
        (summary,) = captured.sessions
        assert line(summary.closed_site) == "await session.close()"

    twin.run(story)


def test_an_exception_that_leaves_a_sessionmakers_begin_rolls_back(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured, suppress(OutOfStockError):
            async with twin.session() as session, session.begin():
                session.add_all(authors(1))
                await session.flush()
                raise OutOfStockError
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "explicit flush began",
            "connection acquired",
            "INSERT authors",
            "flushed +1 Author",
            "connection released",
            "transaction rolled_back",
            "session close: failed with OutOfStockError",
        ]

    twin.run(story)


def test_a_dependency_whose_user_fails(twin: Twin) -> None:
    async def get_session() -> AsyncIterator[Any]:
        async with twin.session() as session:
            yield session

    async def story() -> None:
        with capture(twin.factory) as captured, suppress(OutOfStockError):
            async with asynccontextmanager(get_session)() as session:
                (await session.scalars(select(Author))).all()
                raise OutOfStockError
        assert outline(captured.facts) == [
            "session opened",
            *READ,
            "session close: failed with OutOfStockError",
        ]

    twin.run(story)


def test_a_generator_that_is_left_early_has_not_failed(twin: Twin) -> None:
    async def names() -> AsyncIterator[str]:
        async with twin.session() as session:
            for author in (await session.scalars(select(Author))).all():
                yield author.name

    async def names_with_finally() -> AsyncIterator[str]:
        session = twin.session()
        try:
            for author in (await session.scalars(select(Author))).all():
                yield author.name
        finally:
            await session.close()

    async def story() -> None:
        await keep(twin, *authors(3))
        for generator in (names, names_with_finally):
            with capture(twin.factory) as captured:
                async with aclosing(generator()) as found:  # type: ignore[type-var] # it is one
                    async for _ in found:
                        break
            assert outline(captured.facts) == [
                "session opened",
                "transaction began",
                "connection acquired",
                "SELECT Author",
                "loaded 3 Author",
                "connection released",
                "transaction closed",
                "session close: closed",
            ]

    twin.run(story)


def test_a_session_used_while_an_exception_is_handled_has_not_failed(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            try:
                raise OutOfStockError
            except OutOfStockError:
                async with twin.session() as session:
                    (await session.scalars(select(Author))).all()
                session = twin.session()
                (await session.scalars(select(Author))).all()
                await session.close()
        assert outline(captured.facts) == ["session opened", *READ, "session close: closed"] * 2

    twin.run(story)


def test_another_exception_later_leaves_a_session_opened_while_one_was_handled(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            try:
                raise OutOfStockError
            except OutOfStockError:
                session = twin.session()
                (await session.scalars(select(Author))).all()
            # It may lie in the very memory that the first one has left.
            with suppress(OutOfStockError):
                try:
                    raise OutOfStockError
                finally:
                    await session.close()
        assert outline(captured.facts) == [
            "session opened",
            *READ,
            "session close: failed with OutOfStockError",
        ]

    twin.run(story)


def test_an_exception_dealt_with_inside_the_block_has_not_left_it(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                (await session.scalars(select(Author))).all()
                with suppress(OutOfStockError):
                    raise OutOfStockError
        assert outline(captured.facts) == ["session opened", *READ, "session close: closed"]

    twin.run(story)


def test_an_exception_that_leaves_an_unused_session(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured, suppress(OutOfStockError):
            async with twin.session():
                raise OutOfStockError
        assert outline(captured.facts) == [
            "session opened",
            "session close: unused with OutOfStockError",
        ]

    twin.run(story)


def test_a_rollback_is_the_outcome_of_its_scope(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                (await session.scalars(select(Author))).all()
                await session.rollback()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "connection released",
            "transaction rolled_back",
            "session close: rolled_back",
        ]

    twin.run(story)


def test_a_read_after_the_commit_leaves_the_scope_committed(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()
                (await session.scalars(select(Author))).all()
        assert outline(captured.facts)[-4:] == [
            "loaded 1 Author",
            "connection released",
            "transaction closed",
            "session close: committed",
        ]

    twin.run(story)


@on_each_database
@pytest.mark.parametrize("is_async", [True], ids=["async"])
@pytest.mark.parametrize("in_finally", [False, True])
def test_a_cancelled_task_fails_its_session(twin: Twin, in_finally: bool) -> None:
    async def block(started: asyncio.Event) -> None:
        async with twin.session() as session:
            (await session.scalars(select(Author))).all()
            started.set()
            await asyncio.sleep(60)

    async def with_finally(started: asyncio.Event) -> None:
        session = twin.session()
        try:
            (await session.scalars(select(Author))).all()
            started.set()
            await asyncio.sleep(60)
        finally:
            await session.close()

    async def story() -> None:
        with capture(twin.factory) as captured:
            started = asyncio.Event()
            work = with_finally if in_finally else block
            task = asyncio.create_task(work(started))
            await started.wait()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert outline(captured.facts) == [
            "session opened",
            *READ,
            "session close: failed with CancelledError",
        ]

    twin.run(story)

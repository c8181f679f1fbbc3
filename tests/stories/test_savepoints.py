"""Stories of savepoints: released, rolled back, within one another, and left to the commit."""

from contextlib import suppress

from sqlalchemy import select

from session_tracer.testing import capture
from tests.library import Author, authors, keep
from tests.outline import outline
from tests.twins import Twin, on_each_database


def test_a_released_savepoint_is_not_a_commit(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session, session.begin_nested():
                session.add_all(authors(1))
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "savepoint began",
            "savepoint flush began",
            "connection acquired",
            "SAVEPOINT",
            "INSERT authors",
            "flushed +1 Author",
            "RELEASE",
            "savepoint committed",
            "connection released",
            "transaction closed",
            "session close: closed",
        ]
        (summary,) = captured.sessions
        assert (summary.savepoints, summary.commits, summary.outcome) == (1, 0, "closed")

    twin.run(story)


def test_what_was_added_before_a_savepoint_is_flushed_before_it(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all(authors(1))
                async with session.begin_nested():
                    session.add(Author(name="a second one"))
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "savepoint flush began",
            "connection acquired",
            "INSERT authors",
            "flushed +1 Author",
            "savepoint began",
            "savepoint flush began",
            "SAVEPOINT",
            "INSERT authors",
            "flushed +1 Author",
            "RELEASE",
            "savepoint committed",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


@on_each_database
def test_a_savepoint_rolled_back_leaves_the_transaction_to_commit(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all(authors(1))
                with suppress(LookupError):
                    async with session.begin_nested():
                        session.add(Author(name="a second one"))
                        await session.flush()
                        raise LookupError
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "savepoint flush began",
            "connection acquired",
            "INSERT authors",
            "flushed +1 Author",
            "savepoint began",
            "explicit flush began",
            "SAVEPOINT",
            "INSERT authors",
            "flushed +1 Author",
            "ROLLBACK",
            "savepoint rolled_back",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]
        (summary,) = captured.sessions
        assert (summary.commits, summary.rollbacks, summary.outcome) == (1, 0, "committed")

    twin.run(story)


def test_a_savepoint_inside_a_savepoint(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session, session.begin(), session.begin_nested():
                session.add_all(authors(1))
                with suppress(LookupError):
                    async with session.begin_nested():
                        session.add(Author(name="a second one"))
                        raise LookupError
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "savepoint began",
            "savepoint flush began",
            "connection acquired",
            "SAVEPOINT",
            "INSERT authors",
            "flushed +1 Author",
            "savepoint began",
            "savepoint rolled_back",
            "RELEASE",
            "savepoint committed",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_a_commit_releases_the_savepoints_that_are_open(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.run_sync(lambda plain: plain.begin_nested())
                session.add_all(authors(1))
                await session.run_sync(lambda plain: plain.begin_nested())
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "savepoint began",
            "savepoint flush began",
            "connection acquired",
            "SAVEPOINT",
            "INSERT authors",
            "flushed +1 Author",
            "savepoint began",
            "savepoint committed",
            "RELEASE",
            "savepoint committed",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_a_rollback_ends_the_savepoints_that_are_open(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.run_sync(lambda plain: plain.begin_nested())
                session.add_all(authors(1))
                await session.flush()
                await session.rollback()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "savepoint began",
            "explicit flush began",
            "connection acquired",
            "SAVEPOINT",
            "INSERT authors",
            "flushed +1 Author",
            "ROLLBACK",
            "savepoint rolled_back",
            "connection released",
            "transaction rolled_back",
            "session close: rolled_back",
        ]

    twin.run(story)


def test_a_close_ends_the_savepoints_that_are_open(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.run_sync(lambda plain: plain.begin_nested())
                (await session.scalars(select(Author))).all()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "savepoint began",
            "connection acquired",
            "SAVEPOINT",
            "SELECT Author",
            "ROLLBACK",
            "savepoint closed",
            "connection released",
            "transaction closed",
            "session close: closed",
        ]

    twin.run(story)


def test_a_savepoint_that_only_reads(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with capture(twin.factory) as captured:
            async with twin.session() as session, session.begin_nested():
                (await session.scalars(select(Author))).all()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "savepoint began",
            "connection acquired",
            "SAVEPOINT",
            "SELECT Author",
            "loaded 2 Author",
            "RELEASE",
            "savepoint committed",
            "connection released",
            "transaction closed",
            "session close: closed",
        ]

    twin.run(story)

"""Stories of flushes that fail, and of what the session does afterwards."""

from contextlib import suppress

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, PendingRollbackError

from session_tracer.facts import FlushFailed
from session_tracer.testing import Captured, capture
from tests.library import Author, Book, Letter, authors, keep
from tests.outline import outline
from tests.stories.excerpts import USED_AGAIN
from tests.stories.lines import line
from tests.twins import Twin, on_each_database


def story_of(captured: Captured) -> list[str]:
    """The outline; what a statement fails with is each driver's own."""
    return [
        "INSERT authors fails" if text.startswith("INSERT authors with") else text
        for text in outline(captured.facts)
    ]


@on_each_database
def test_a_constraint_refuses_the_flush(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all([Author(name=None), Letter(author_id=1), Letter(author_id=2)])
                with pytest.raises(IntegrityError):
                    await session.flush()
                await session.rollback()
                session.add(Author(name="same"))
                await session.commit()
        assert story_of(captured) == [
            "session opened",
            "transaction began",
            "explicit flush began",
            "connection acquired",
            "INSERT authors fails",
            "flush failed +1 Author, 2 Letter with IntegrityError",
            "connection released",
            "transaction rolled_back",
            *USED_AGAIN,
        ]
        (failed,) = [fact for fact in captured.facts if isinstance(fact, FlushFailed)]
        assert failed.error == "sqlalchemy.exc.IntegrityError"
        assert line(failed.site) == "await session.flush()"
        (summary,) = captured.sessions
        assert (summary.flushes, summary.failed_flushes, summary.new) == (1, 1, {"Author": 1})
        assert summary.transitions == {
            "transient_to_pending": 4,
            "pending_to_transient": 3,
            "pending_to_persistent": 1,
        }

    twin.run(story)


@on_each_database
def test_the_constraint_is_named_where_the_driver_reports_it(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, Author(name="same"))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add(Author(name="same"))
                with pytest.raises(IntegrityError):
                    await session.flush()
        (failed,) = [fact for fact in captured.facts if isinstance(fact, FlushFailed)]
        assert failed.constraint == ("authors_name_key" if twin.database == "postgresql" else "")

    twin.run(story)


@on_each_database
def test_changes_and_deletions_are_in_the_account_of_a_flush_that_fails(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                found = (await session.scalars(select(Author).order_by(Author.id))).all()
                found[0].name = found[1].name
                found[1].name = str(found[1].name)
                with session.sync_session.no_autoflush:
                    await session.delete(found[2])
                with pytest.raises(IntegrityError):
                    await session.commit()
        (failed,) = [fact for fact in captured.facts if isinstance(fact, FlushFailed)]
        assert (failed.trigger, failed.new, failed.dirty, failed.deleted) == (
            "commit",
            {},
            {"Author": 1},
            {"Author": 1},
        )

    twin.run(story)


@on_each_database
def test_a_commit_whose_flush_fails_and_nobody_rolls_back(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured, suppress(IntegrityError):
            async with twin.session() as session:
                session.add(Author(name=None))
                await session.commit()
        assert story_of(captured) == [
            "session opened",
            "transaction began",
            "commit flush began",
            "connection acquired",
            "INSERT authors fails",
            "flush failed +1 Author with IntegrityError",
            "connection released",
            "transaction rolled_back with IntegrityError",
            "session close: failed with IntegrityError",
        ]

    twin.run(story)


@on_each_database
def test_an_autoflush_that_fails_fails_the_query(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add(Author(name=None))
                with pytest.raises(IntegrityError, match="raised as a result of Query-invoked"):
                    await session.scalars(select(Book))
        assert story_of(captured) == [
            "session opened",
            "transaction began",
            "autoflush flush began",
            "connection acquired",
            "INSERT authors fails",
            "flush failed +1 Author with IntegrityError",
            "connection released",
            "transaction rolled_back",
            "session close: rolled_back",
        ]

    twin.run(story)


@on_each_database
def test_a_flush_that_fails_inside_a_savepoint(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add(Author(name="kept"))
                with suppress(IntegrityError):
                    async with session.begin_nested():
                        session.add(Author(name=None))
                        await session.flush()
                session.add(Author(name="another"))
                await session.commit()
        assert story_of(captured) == [
            "session opened",
            "transaction began",
            "savepoint flush began",
            "connection acquired",
            "INSERT authors",
            "flushed +1 Author",
            "savepoint began",
            "explicit flush began",
            "SAVEPOINT",
            "INSERT authors fails",
            "ROLLBACK",
            "flush failed +1 Author with IntegrityError",
            "savepoint rolled_back",
            "commit flush began",
            "INSERT authors",
            "flushed +1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


@on_each_database
def test_a_savepoint_whose_release_fails(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                with suppress(IntegrityError):
                    async with session.begin_nested():
                        session.add(Author(name=None))
                await session.commit()
        assert story_of(captured) == [
            "session opened",
            "transaction began",
            "savepoint began",
            "savepoint flush began",
            "connection acquired",
            "SAVEPOINT",
            "INSERT authors fails",
            "ROLLBACK",
            "flush failed +1 Author with IntegrityError",
            "savepoint rolled_back with IntegrityError",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


@on_each_database
def test_the_session_is_used_before_it_is_rolled_back(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add(Author(name=None))
                with pytest.raises(IntegrityError):
                    await session.flush()
                with pytest.raises(PendingRollbackError):
                    await session.scalars(select(Author))
                await session.rollback()
                session.add(Author(name="somebody"))
                await session.commit()
        assert story_of(captured) == [
            "session opened",
            "transaction began",
            "explicit flush began",
            "connection acquired",
            "INSERT authors fails",
            "flush failed +1 Author with IntegrityError",
            "connection released",
            "transaction rolled_back",
            *USED_AGAIN,
        ]

    twin.run(story)

"""Stories of transactions: begun, committed, rolled back, prepared, and refused at the COMMIT."""

from contextlib import suppress

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from session_tracer.testing import capture
from tests.library import Author, Loan, authors
from tests.outline import outline
from tests.twins import Twin, on_postgresql

WRITTEN = [
    "connection acquired",
    "INSERT authors",
    "flushed +1 Author",
]


def test_a_begin_block_commits(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session, session.begin():
                session.add_all(authors(1))
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "commit flush began",
            *WRITTEN,
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_two_begin_blocks_are_two_transactions_of_one_scope(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                async with session.begin():
                    session.add_all(authors(1))
                async with session.begin():
                    (await session.scalars(select(Author))).all()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "commit flush began",
            *WRITTEN,
            "connection released",
            "transaction committed",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]
        (summary,) = captured.sessions
        assert (summary.transactions, summary.commits) == (2, 2)

    twin.run(story)


def test_a_commit_with_nothing_to_commit_takes_no_connection(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_a_rollback_after_a_flush(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                written = authors(1)
                session.add_all(written)
                await session.flush()
                await session.rollback()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "explicit flush began",
            *WRITTEN,
            "connection released",
            "transaction rolled_back",
            "session close: rolled_back",
        ]
        (summary,) = captured.sessions
        assert summary.transitions == {
            "transient_to_pending": 1,
            "pending_to_persistent": 1,
            "persistent_to_transient": 1,
        }

    twin.run(story)


def test_a_close_with_an_open_transaction_neither_commits_nor_rolls_back(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.flush()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "explicit flush began",
            *WRITTEN,
            "connection released",
            "transaction closed",
            "session close: closed",
        ]

    twin.run(story)


@on_postgresql
def test_a_commit_that_the_database_refuses(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add(Loan(book_id=404))
                with pytest.raises(IntegrityError):
                    await session.commit()
                await session.rollback()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "commit flush began",
            "connection acquired",
            "INSERT loans",
            "flushed +1 Loan",
            "connection released",
            "transaction rolled_back with IntegrityError",
            "session close: rolled_back",
        ]
        (summary,) = captured.sessions
        assert (summary.commits, summary.rollbacks, summary.failed_flushes) == (0, 1, 0)

    twin.run(story)


@on_postgresql
def test_a_commit_that_the_database_refuses_and_nobody_rolls_back(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured, suppress(IntegrityError):
            async with twin.session() as session:
                session.add(Loan(book_id=404))
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "commit flush began",
            "connection acquired",
            "INSERT loans",
            "flushed +1 Loan",
            "connection released",
            "transaction closed with IntegrityError",
            "session close: failed with IntegrityError",
        ]

    twin.run(story)


@on_postgresql
def test_a_begin_block_whose_commit_the_database_refuses(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured, suppress(IntegrityError):
            async with twin.session() as session, session.begin():
                session.add(Loan(book_id=404))
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "commit flush began",
            "connection acquired",
            "INSERT loans",
            "flushed +1 Loan",
            "connection released",
            "transaction rolled_back with IntegrityError",
            "session close: failed with IntegrityError",
        ]

    twin.run(story)


def without_prepare(captured: list[str]) -> list[str]:
    """SQLAlchemy 2.0.37 runs PREPARE TRANSACTION on a cursor; newer releases use DBAPI's method."""
    return [one for one in captured if one != "PREPARE"]


@on_postgresql
@pytest.mark.parametrize("is_async", [False], ids=["sync"])
def test_two_phases(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session(twophase=True) as session:
                session.add_all(authors(1))
                await session.flush()
                await session.prepare()
                await session.commit()
        assert without_prepare(outline(captured.facts)) == [
            "session opened",
            "two-phase transaction began",
            "explicit flush began",
            *WRITTEN,
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


@on_postgresql
@pytest.mark.parametrize("is_async", [False], ids=["sync"])
def test_two_phases_at_one_commit_and_one_rollback(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session(twophase=True) as session:
                session.add_all(authors(1))
                await session.commit()
                session.add(Author(name="another"))
                await session.flush()
                await session.rollback()
        assert without_prepare(outline(captured.facts)) == [
            "session opened",
            "two-phase transaction began",
            "commit flush began",
            *WRITTEN,
            "connection released",
            "transaction committed",
            "two-phase transaction began",
            "explicit flush began",
            *WRITTEN,
            "connection released",
            "transaction rolled_back",
            "session close: rolled_back",
        ]

    twin.run(story)

"""Stories of sessions that nobody closes: the garbage collector takes them."""

import gc

import pytest
from sqlalchemy import select

from session_tracer.testing import capture
from tests.library import Author, authors
from tests.outline import outline
from tests.stories.lines import line
from tests.twins import Twin, on_each_database

# An asynchronous driver's connection cannot be given back from within the garbage collector:
# SQLAlchemy terminates it and warns.
pytestmark = pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")


async def forget_after_reading(twin: Twin) -> None:
    session = twin.session()
    (await session.scalars(select(Author))).all()


async def forget_after_writing(twin: Twin) -> None:
    session = twin.session()
    session.add_all(authors(2))
    await session.flush()


async def forget_in_a_savepoint(twin: Twin) -> None:
    session = twin.session()
    session.add_all(authors(2))
    await session.run_sync(lambda plain: plain.begin_nested())
    session.add(Author(name="a third one"))
    await session.flush()


async def forget_after_committing(twin: Twin) -> None:
    session = twin.session()
    session.add_all(authors(2))
    await session.commit()


async def forget_unused(twin: Twin) -> None:
    twin.session()


async def forget_after_closing(twin: Twin) -> None:
    session = twin.session()
    session.add_all(authors(2))
    await session.commit()
    await session.close()


async def forget_after_use_after_closing(twin: Twin) -> None:
    session = twin.session()
    await session.close()
    (await session.scalars(select(Author))).all()


def test_a_session_lost_while_it_reads(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await forget_after_reading(twin)
            gc.collect()
            (summary,) = captured.sessions
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "connection released",
            "transaction abandoned",
            "session collected: abandoned",
        ]
        assert (summary.ending, summary.outcome) == ("collected", "abandoned")
        assert line(summary.opened_site) == "session = twin.session()"
        assert line(summary.closed_site) == "(await session.scalars(select(Author))).all()"

    twin.run(story)


@on_each_database
def test_a_session_lost_with_what_it_wrote(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await forget_after_writing(twin)
            gc.collect()
            (summary,) = captured.sessions
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "explicit flush began",
            "connection acquired",
            "INSERT authors",
            "flushed +2 Author",
            "connection released",
            "transaction abandoned",
            "session collected: abandoned",
        ]
        assert line(summary.closed_site) == "await session.flush()"

    twin.run(story)


def test_a_session_lost_inside_a_savepoint(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await forget_in_a_savepoint(twin)
            gc.collect()
            assert len(captured.sessions) == 1
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "savepoint flush began",
            "connection acquired",
            "INSERT authors",
            "flushed +2 Author",
            "savepoint began",
            "explicit flush began",
            "SAVEPOINT",
            "INSERT authors",
            "flushed +1 Author",
            "savepoint abandoned",
            "connection released",
            "transaction abandoned",
            "session collected: abandoned",
        ]

    twin.run(story)


def test_a_session_lost_after_its_commit(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await forget_after_committing(twin)
            gc.collect()
            (summary,) = captured.sessions
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "commit flush began",
            "connection acquired",
            "INSERT authors",
            "flushed +2 Author",
            "connection released",
            "transaction committed",
            "session collected: abandoned",
        ]
        assert (summary.commits, summary.outcome) == (1, "abandoned")

    twin.run(story)


def test_a_session_lost_unused(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await forget_unused(twin)
            gc.collect()
            assert len(captured.sessions) == 1
        assert outline(captured.facts) == ["session opened", "session collected: unused"]

    twin.run(story)


def test_a_session_lost_after_its_close_is_reported_once(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await forget_after_closing(twin)
            gc.collect()
            assert len(captured.sessions) == 1
        assert outline(captured.facts)[-3:] == [
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_a_session_lost_in_its_second_scope(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await forget_after_use_after_closing(twin)
            gc.collect()
            first, second = captured.sessions
        assert outline(captured.facts) == [
            "session opened",
            "session close: unused",
            "session reopened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "connection released",
            "transaction abandoned",
            "session collected: abandoned",
        ]
        assert (first.outcome, second.outcome) == ("unused", "abandoned")

    twin.run(story)

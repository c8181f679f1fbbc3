"""Stories of why a flush runs."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select

from session_tracer.facts import FlushCompleted
from session_tracer.testing import capture
from tests.library import Author, Book, authors, keep
from tests.outline import outline
from tests.stories.lines import line
from tests.twins import Twin

FLUSHED = ["INSERT books", "flushed +1 Book"]


def flushes(captured: Any) -> list[str]:
    """What is told from the first flush on, until the transaction ends."""
    lines = outline(captured.facts)
    first = next(n for n, text in enumerate(lines) if text.endswith("flush began"))
    return lines[first : lines.index("connection released")]


async def query(session: Any, author: Author) -> None:
    (await session.scalars(select(Book))).all()


async def dynamic(session: Any, author: Author) -> None:
    await session.run_sync(lambda _: author.letters.all())


async def lazy_load(session: Any, author: Author) -> None:
    await session.run_sync(lambda _: author.books)


async def get(session: Any, author: Author) -> None:
    await session.get(Book, 404)


async def merge(session: Any, author: Author) -> None:
    await session.merge(Author(id=author.id, name="merged"))


async def refresh(session: Any, author: Author) -> None:
    await session.refresh(author)


async def deferred_column(session: Any, author: Author) -> None:
    await session.run_sync(lambda _: author.biography)


async def explicit(session: Any, author: Author) -> None:
    await session.flush()


async def commit(session: Any, author: Author) -> None:
    await session.commit()


async def savepoint(session: Any, author: Author) -> None:
    async with session.begin_nested():
        pass


FLUSHING: dict[str, tuple[Callable[[Any, Author], Awaitable[None]], list[str]]] = {
    "query": (query, ["autoflush flush began", *FLUSHED, "SELECT Book"]),
    "dynamic": (dynamic, ["autoflush flush began", *FLUSHED, "SELECT Letter"]),
    "lazy load": (
        lazy_load,
        ["autoflush flush began", *FLUSHED, "load of relationship Author.books", "SELECT Book"],
    ),
    "get": (get, ["autoflush flush began", *FLUSHED, "SELECT Book"]),
    "merge": (merge, ["autoflush flush began", *FLUSHED]),
    "refresh": (
        refresh,
        ["autoflush flush began", *FLUSHED, "load of refresh Author", "SELECT Author"],
    ),
    "deferred column": (
        deferred_column,
        [
            "autoflush flush began",
            *FLUSHED,
            "load of deferred Author.biography",
            "SELECT Author",
        ],
    ),
    "flush": (explicit, ["explicit flush began", *FLUSHED]),
    "commit": (commit, ["commit flush began", *FLUSHED]),
    "savepoint": (
        savepoint,
        ["savepoint flush began", *FLUSHED, "savepoint began", "savepoint committed"],
    ),
}


@pytest.mark.parametrize("what", FLUSHING)
def test_what_makes_a_session_flush(twin: Twin, what: str) -> None:
    flushing, expected = FLUSHING[what]

    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                book = Book(title="a new one", author_id=author.id)
                session.add(book)
                await flushing(session, author)
        assert flushes(captured) == expected

    twin.run(story)


def test_a_savepoint_flushes_when_it_begins_and_when_it_is_released(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add(Author(name="before"))
                async with session.begin_nested():
                    session.add(Author(name="within"))
                session.add(Author(name="after"))
                await session.commit()
        assert [text for text in outline(captured.facts) if "flush" in text] == [
            "savepoint flush began",
            "flushed +1 Author",
            "savepoint flush began",
            "flushed +1 Author",
            "commit flush began",
            "flushed +1 Author",
        ]

    twin.run(story)


def test_nothing_to_flush_reports_nothing(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                (await session.scalars(select(Author))).all()
                await session.flush()
                (await session.scalars(select(Author))).all()
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 1 Author",
            "SELECT Author",
            "loaded 1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_a_query_inside_no_autoflush(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all(authors(1))
                with session.sync_session.no_autoflush:
                    (await session.scalars(select(Author))).all()
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "commit flush began",
            "INSERT authors",
            "flushed +1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_a_session_that_never_flushes_by_itself(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session(autoflush=False) as session:
                session.add_all(authors(1))
                (await session.scalars(select(Author))).all()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "connection released",
            "transaction closed",
            "session close: closed",
        ]
        (summary,) = captured.sessions
        assert (summary.pending, summary.flushes) == (1, 0)

    twin.run(story)


def test_a_flush_names_the_line_that_made_it_run(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all(authors(1))
                (await session.scalars(select(Author))).all()
                session.add(Author(name="another"))
                await session.commit()
        sites = [line(fact.site) for fact in captured.facts if isinstance(fact, FlushCompleted)]
        assert sites == [
            "(await session.scalars(select(Author))).all()",
            "await session.commit()",
        ]

    twin.run(story)

"""Stories of everyday work: write, read, change, delete, commit."""

from sqlalchemy import select

from session_tracer.testing import capture
from tests.library import Author, Book, authors
from tests.outline import outline
from tests.twins import Twin, on_each_database


@on_each_database
def test_a_session_that_writes_and_commits(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all(authors(2, books_each=2))
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "commit flush began",
            "connection acquired",
            "INSERT authors",
            "INSERT books",
            "flushed +2 Author, 4 Book",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_a_session_that_reads_a_relationship_of_each(twin: Twin) -> None:
    async def story() -> None:
        async with twin.session() as session:
            session.add_all(authors(3, books_each=2))
            await session.commit()
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                found = (await session.scalars(select(Author))).all()
                await session.run_sync(lambda _: [author.books for author in found])
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 3 Author",
            "load of relationship Author.books",
            "SELECT Book",
            "loaded 2 Book",
            "load of relationship Author.books",
            "SELECT Book",
            "loaded 2 Book",
            "load of relationship Author.books",
            "SELECT Book",
            "loaded 2 Book",
            "connection released",
            "transaction closed",
            "session close: closed",
        ]
        (summary,) = captured.sessions
        assert summary.loaded == {"Author": 3, "Book": 6}
        assert summary.identity_map_peak == 9
        assert summary.lazy_loads == {"relationship": 3}

    twin.run(story)


def test_what_is_changed_deleted_and_left_as_it_was(twin: Twin) -> None:
    async def story() -> None:
        async with twin.session() as session:
            session.add_all(authors(3, books_each=1))
            await session.commit()
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                books = (await session.scalars(select(Book).order_by(Book.id))).all()
                books[0].title = "another"
                books[1].title = str(books[1].title)
                await session.delete(books[2])
                await session.flush()
                await session.commit()
        (flushed,) = [line for line in outline(captured.facts) if line.startswith("flushed")]
        assert flushed == "flushed ~1 Book =1 Book -1 Book"

    twin.run(story)

"""Stories of what is loaded again: expired by a commit or by hand, refreshed, got and merged."""

from typing import Any

from sqlalchemy import select

from session_tracer.testing import capture
from tests.library import Author, authors, keep
from tests.outline import outline
from tests.stories.excerpts import since
from tests.twins import Twin


async def one_author(session: Any) -> Author:
    author: Author = (await session.scalars(select(Author))).one()
    return author


def test_what_a_commit_expired_is_loaded_again(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                found = (await session.scalars(select(Author))).all()
                await session.commit()
                await session.run_sync(lambda _: [author.name for author in found])
        assert since(captured, "transaction committed") == [
            "transaction began",
            "connection acquired",
            "load of expired Author",
            "SELECT Author",
            "load of expired Author",
            "SELECT Author",
        ]
        (summary,) = captured.sessions
        assert (summary.lazy_loads, summary.loaded) == ({"expired": 2}, {"Author": 2})

    twin.run(story)


def test_nothing_expires_where_a_commit_is_reported_not_to(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session(expire_on_commit=False) as session:
                author = await one_author(session)
                await session.commit()
                assert author.name == "author 0"
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_an_expired_relationship_takes_its_object_with_it(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = await one_author(session)
                await session.commit()
                await session.run_sync(lambda _: author.books)
        assert since(captured, "transaction committed") == [
            "transaction began",
            "connection acquired",
            "load of expired Author",
            "SELECT Author",
            "load of relationship Author.books",
            "SELECT Book",
            "loaded 2 Book",
        ]

    twin.run(story)


def test_an_object_expired_by_hand(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = await one_author(session)
                session.expire(author)
                await session.run_sync(lambda _: author.name)
        assert since(captured, "loaded 1 Author") == [
            "expired 1",
            "load of expired Author",
            "SELECT Author",
        ]
        (summary,) = captured.sessions
        assert summary.expired == 1

    twin.run(story)


def test_some_attributes_expired_by_hand(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = await one_author(session)
                await session.run_sync(lambda _: author.books)
                session.expire(author, ["books", "name"])
                await session.run_sync(lambda _: (author.id, author.books, author.name))
        assert since(captured, "expired 1") == [
            "load of relationship Author.books",
            "SELECT Book",
            "loaded 1 Book",
            "load of expired Author",
            "SELECT Author",
        ]

    twin.run(story)


def test_everything_expired_by_hand(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                found = (await session.scalars(select(Author))).all()
                session.expire_all()
                (await session.scalars(select(Author))).all()
                assert [author.name for author in found] == ["author 0", "author 1", "author 2"]
        assert since(captured, "loaded 3 Author") == ["expired 3", "SELECT Author"]

    twin.run(story)


def test_refreshing_an_object(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = await one_author(session)
                await session.refresh(author)
                await session.refresh(author, ["name"])
        assert since(captured, "loaded 1 Author") == [
            "load of refresh Author",
            "SELECT Author",
            "load of refresh Author",
            "SELECT Author",
        ]
        (summary,) = captured.sessions
        assert summary.lazy_loads == {"refresh": 2}

    twin.run(story)


def test_refreshing_a_relationship(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = await one_author(session)
                await session.refresh(author, ["books"])
                assert len(author.books) == 2
        assert "load of refresh Author.books" in since(captured, "loaded 1 Author")
        (summary,) = captured.sessions
        assert "relationship" not in summary.lazy_loads

    twin.run(story)

"""Stories of objects got, merged and streamed, and of how full the identity map was."""

import pytest
from sqlalchemy import select

from session_tracer.testing import capture
from tests.library import Author, Book, authors, keep
from tests.outline import outline
from tests.stories.excerpts import since
from tests.twins import Twin, on_each_database


@pytest.mark.parametrize("awaited", ["get", "get_one"])
def test_getting_from_the_database_and_from_the_identity_map(twin: Twin, awaited: str) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                first = await getattr(session, awaited)(Author, 1)
                second = await getattr(session, awaited)(Author, 1)
                assert first is second
        assert since(captured, "connection acquired") == ["SELECT Author", "loaded 1 Author"]

    twin.run(story)


def test_getting_what_is_not_there(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                assert await session.get(Author, 404) is None
        assert since(captured, "connection acquired") == ["SELECT Author"]

    twin.run(story)


def test_getting_an_expired_object_refreshes_it(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = await session.get(Author, 1)
                session.expire(author)
                assert await session.get(Author, 1) is author
        assert since(captured, "expired 1") == ["load of expired Author", "SELECT Author"]

    twin.run(story)


def test_merging_an_object_of_another_session(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
            async with twin.session() as session:
                author.name = "changed elsewhere"
                merged = await session.merge(author)
                await session.commit()
                del merged
        assert outline(captured.facts)[8:] == [
            "session opened",
            "merged Author",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 1 Author",
            "commit flush began",
            "UPDATE authors",
            "flushed ~1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]
        assert [summary.merged for summary in captured.sessions] == [0, 1]

    twin.run(story)


def test_merging_a_new_object(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.merge(Author(name="new", books=[Book(title="also new")]))
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "merged Author",
            "transaction began",
            "commit flush began",
            "connection acquired",
            "INSERT authors",
            "INSERT books",
            "flushed +1 Author, 1 Book",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


@on_each_database
def test_rows_streamed_in_portions(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(5))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                query = select(Author).execution_options(yield_per=2)
                if twin.is_async:
                    streamed = await session.stream_scalars(query)
                    names = [author.name async for author in streamed]
                else:
                    names = [author.name for author in await session.scalars(query)]
                assert len(names) == 5
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 5 Author",
            "connection released",
            "transaction closed",
            "session close: closed",
        ]
        (summary,) = captured.sessions
        assert summary.loaded == {"Author": 5}
        assert summary.identity_map_peak < 5

    twin.run(story)


def test_the_peak_and_the_size_of_the_identity_map(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(4))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                everybody = (await session.scalars(select(Author))).all()
                await session.commit()
                kept = everybody[:1]
                del everybody
                (await session.scalars(select(Book))).all()
                del kept
        (summary,) = captured.sessions
        assert (summary.identity_map_peak, summary.identity_map_size) == (4, 0)

    twin.run(story)

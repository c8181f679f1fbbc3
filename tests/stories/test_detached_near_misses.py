"""Reads of objects outside of their session that are no mistake, or not ours to tell."""

import pytest
from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import raiseload, selectinload
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer.testing import capture
from tests.library import Author, authors, keep
from tests.stories import detached
from tests.twins import SyncSession, Twin


def test_a_detached_object_read_where_it_is_loaded(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                query = select(Author).options(selectinload(Author.books))
                author = (await session.scalars(query)).one()
            assert (author.name, len(author.books)) == ("author 0", 2)
        assert captured.findings == []
        assert captured.metrics.keys().isdisjoint({"sqlalchemy.lazy_loads", "sqlalchemy.findings"})

    twin.run(story)


def test_a_detached_object_merged_back_and_read(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            author = await detached.closed(twin, select(Author))
            async with twin.session() as session:
                merged = await session.merge(author)
                assert len(await session.run_sync(lambda _: merged.books)) == 2
        assert captured.findings == []

    twin.run(story)


def test_a_detached_object_added_back_and_read(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            author = await detached.expunged(twin, select(Author))
            async with twin.session() as session:  # opened
                session.add(author)
                assert len(await session.run_sync(lambda _: author.books)) == 2
            with pytest.raises(DetachedInstanceError):
                detached.read_biography(author)
        (finding,) = captured.findings
        first, second = captured.sessions
        assert (finding.session_id, finding.evidence["departure"]) == (second.id, "close")
        assert first.id != second.id

    twin.run(story)


def test_an_object_that_never_was_in_a_session(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            author = Author(name="transient")
            assert f"{author.books}, {author.biography}" == "[], None"
            async with twin.session() as session:
                session.add(author)
                session.expunge(author)
            assert author.letters.all() == []
        assert captured.findings == []

    twin.run(story)


def test_a_load_that_somebody_forbade(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                query = select(Author).options(raiseload(Author.books))
                author = (await session.scalars(query)).one()
                with pytest.raises(InvalidRequestError):
                    detached.read_books(author)
        assert captured.findings == []

    twin.run(story)


def test_an_object_of_a_session_that_nobody_traces(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        untraced = type(twin.factory)(twin.engine)
        with capture(twin.factory) as captured:
            session = untraced() if twin.is_async else SyncSession(untraced())
            async with session:
                author = (await session.scalars(select(Author))).one()
            with pytest.raises(DetachedInstanceError):
                detached.read_books(author)
        assert (captured.findings, captured.facts, captured.logs) == ([], [], [])

    twin.run(story)

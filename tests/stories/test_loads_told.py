"""Stories of what is loaded: by a query, eagerly with it, and lazily when it is read."""

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    defer,
    immediateload,
    joinedload,
    raiseload,
    selectinload,
    subqueryload,
    undefer,
    undefer_group,
)
from sqlalchemy.sql.base import ExecutableOption

from session_tracer.facts import AttributeLoaded
from session_tracer.testing import Captured, capture
from tests.library import Author, Book, Essay, Item, Letter, Map, authors, keep
from tests.outline import outline
from tests.stories.lines import line
from tests.twins import Twin


def loads(captured: Captured) -> list[str]:
    """The outline between the first use of the connection and its return."""
    lines = outline(captured.facts)
    return lines[lines.index("connection acquired") + 1 : lines.index("connection released")]


EAGER = {
    "selectin": (
        selectinload(Author.books),
        ["SELECT Author", "loaded 2 Author", "eager SELECT Author.books", "loaded 4 Book"],
    ),
    "joined": (joinedload(Author.books), ["SELECT Author", "loaded 2 Author, 4 Book"]),
    "subquery": (
        subqueryload(Author.books),
        # Its query runs as soon as the first row of the other is read.
        [
            "SELECT Author",
            "loaded 1 Author",
            "eager SELECT Author.books",
            "loaded 1 Author, 4 Book",
        ],
    ),
    "immediate": (
        immediateload(Author.books),
        [
            "SELECT Author",
            "loaded 2 Author",
            "eager SELECT Author.books",
            "loaded 2 Book",
            "eager SELECT Author.books",
            "loaded 2 Book",
        ],
    ),
}


@pytest.mark.parametrize("how", EAGER)
def test_what_is_loaded_eagerly_is_not_lazily_loaded(twin: Twin, how: str) -> None:
    option, expected = EAGER[how]

    async def story() -> None:
        await keep(twin, *authors(2, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                found = await session.scalars(select(Author).options(option))
                assert [len(author.books) for author in found.unique()] == [2, 2]
        assert loads(captured) == expected
        (summary,) = captured.sessions
        assert (summary.lazy_loads, summary.loaded) == ({}, {"Author": 2, "Book": 4})

    twin.run(story)


def test_a_collection_is_loaded_when_it_is_first_read(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                await session.run_sync(lambda _: author.books)
                assert len(author.books) == 2
        assert loads(captured) == [
            "SELECT Author",
            "loaded 1 Author",
            "load of relationship Author.books",
            "SELECT Book",
            "loaded 2 Book",
        ]
        (loaded,) = [fact for fact in captured.facts if isinstance(fact, AttributeLoaded)]
        assert line(loaded.site) == "await session.run_sync(lambda _: author.books)"

    twin.run(story)


def test_a_many_to_one_that_is_in_the_identity_map_is_nothing(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                books = (await session.scalars(select(Book))).all()
                assert [book.author for book in books] == [author, author]
        assert loads(captured) == [
            "SELECT Author",
            "loaded 1 Author",
            "SELECT Book",
            "loaded 2 Book",
        ]

    twin.run(story)


def test_a_many_to_one_that_must_be_asked_for(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                books = (await session.scalars(select(Book))).all()
                await session.run_sync(lambda _: [book.author.name for book in books])
        assert loads(captured) == [
            "SELECT Book",
            "loaded 2 Book",
            "load of relationship Book.author",
            "SELECT Author",
            "loaded 1 Author",
        ]

    twin.run(story)


def test_a_dynamic_relationship_runs_a_query(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1), Letter(author_id=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                await session.run_sync(lambda _: author.letters.all())
        assert loads(captured) == [
            "SELECT Author",
            "loaded 1 Author",
            "SELECT Letter",
            "loaded 1 Letter",
        ]

    twin.run(story)


def test_a_deferred_column_is_loaded_when_it_is_read(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                await session.run_sync(lambda _: author.biography)
        assert loads(captured) == [
            "SELECT Author",
            "loaded 1 Author",
            "load of deferred Author.biography",
            "SELECT Author",
        ]
        (summary,) = captured.sessions
        assert summary.lazy_loads == {"deferred": 1}

    twin.run(story)


def test_the_columns_of_a_deferred_group_are_loaded_together(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, Essay(title="on loading"))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                essay = (await session.scalars(select(Essay))).one()
                await session.run_sync(lambda _: essay.text + essay.notes)
        assert loads(captured) == [
            "SELECT Essay",
            "loaded 1 Essay",
            "load of deferred Essay.notes, text",
            "SELECT Essay",
        ]

    twin.run(story)


@pytest.mark.parametrize("option", [undefer(Author.biography), undefer("*")])
def test_an_undeferred_column_is_not_lazily_loaded(twin: Twin, option: ExecutableOption) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author).options(option))).one()
                assert author.biography == ""
        assert loads(captured) == ["SELECT Author", "loaded 1 Author"]

    twin.run(story)


def test_an_undeferred_group_is_not_lazily_loaded(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, Essay(title="on loading"))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                essays = select(Essay).options(undefer_group("body"))
                essay = (await session.scalars(essays)).one()
                assert essay.text + essay.notes == ""
        assert loads(captured) == ["SELECT Essay", "loaded 1 Essay"]

    twin.run(story)


def test_a_column_deferred_by_the_query(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                found = await session.scalars(select(Author).options(defer(Author.name)))
                author = found.one()
                await session.run_sync(lambda _: author.name)
        assert loads(captured) == [
            "SELECT Author",
            "loaded 1 Author",
            "load of deferred Author.name",
            "SELECT Author",
        ]

    twin.run(story)


def test_a_load_that_raiseload_forbids_is_none(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                found = await session.scalars(select(Author).options(raiseload(Author.books)))
                author = found.one()
                with pytest.raises(InvalidRequestError, match="lazy='raise'"):
                    await session.run_sync(lambda _: author.books)
        assert loads(captured) == ["SELECT Author", "loaded 1 Author"]
        assert captured.findings == []

    twin.run(story)


def test_a_query_for_a_base_class_loads_each_under_its_own_name(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, Map(scale=1), Map(scale=2), Item(kind="item"))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                (await session.scalars(select(Item))).all()
        assert loads(captured) == ["SELECT Item", "loaded 1 Item, 2 Map"]

    twin.run(story)


def test_what_is_loaded_already_is_not_loaded_again(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                first = (await session.scalars(select(Author).where(Author.id == 1))).one()
                both = (await session.scalars(select(Author))).all()
                assert first in both
        assert loads(captured) == ["SELECT Author", "loaded 1 Author"] * 2
        (summary,) = captured.sessions
        assert (summary.loaded, summary.identity_map_peak) == ({"Author": 2}, 2)

    twin.run(story)


def test_columns_and_aggregates_load_no_object(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                (await session.execute(select(Author.id, Author.name))).all()
                await session.scalar(select(func.count()).select_from(Author))
                (await session.execute(select(Author.__table__))).all()
                (await session.execute(text("SELECT name FROM authors"))).all()
                connection = await session.connection()
                ran = connection.execute(text("SELECT title FROM books"))
                if twin.is_async:
                    await ran
        assert loads(captured) == [
            "SELECT Author",
            "SELECT Author",
            "SELECT authors",
            "SELECT authors",
            "SELECT books",
        ]
        (summary,) = captured.sessions
        assert (summary.loaded, summary.identity_map_peak, summary.statements) == ({}, 0, 5)

    twin.run(story)

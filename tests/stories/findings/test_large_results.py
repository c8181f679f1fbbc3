"""Stories of statements that load many objects at once, and of those that stream them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import joinedload, selectinload

from session_tracer.testing import capture
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.mappings import Employee, Engineer, Manager, tables
from tests.stories.findings.reading import tell
from tests.stories.findings.remedies import pasted, to_write
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from tests.twins import Twin

# What the application keeps of what it loads; each story empties it.
kept: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_stays() -> Any:
    yield
    kept.clear()


def read(session: Session, query: Select[Any]) -> None:
    kept.extend(session.scalars(query))  # <- read


def read_and_forget(session: Session, query: Select[Any]) -> None:
    for one in session.scalars(query):  # <- read
        assert one.id


def large_result(site: Any, remedy: str, entity: str, count: int, **more: Any) -> Due:
    return Due(
        id="large-result",
        site=site,
        opened=marked(tell, "<- opened"),
        remedy=remedy,
        entity=entity,
        count=count,
        **more,
    )


STREAM = "select(Author).execution_options(yield_per=1000)"


def in_small(code: str) -> Any:
    """The SELECT to write, for a test that has no thousand rows."""
    return pasted(code.replace("1000", "2"))


# large-result


@pytest.mark.parametrize("how", [read, read_and_forget])
def test_one_select_of_many_objects(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        one = {"large_result_objects": 3}
        assert_found(await tell(twin, lambda session: how(session, select(Author)), **one))
        await keep(twin, Author(name="one more"))
        captured = await tell(twin, lambda session: how(session, select(Author)), **one)
        assert_found(captured, large_result(marked(how, "<- read"), STREAM, "Author", 4))
        (finding,) = captured.findings
        assert finding.message == "one SELECT loaded 4 Author objects"
        streamed = in_small(to_write(finding))
        assert_found(await tell(twin, lambda session: how(session, streamed), **one))

    twin.run(story)


def read_joined(session: Session) -> None:
    query = select(Author).options(joinedload(Author.books))
    kept.extend(session.scalars(query).unique())  # <- read


def read_two_classes(session: Session) -> None:
    kept.extend(session.execute(select(Author, Book).join(Author.books)))  # <- read


def read_eagerly(session: Session) -> None:
    query = select(Author).options(selectinload(Author.books))
    kept.extend(session.scalars(query))  # <- read


def read_lazily(session: Session) -> None:
    author = session.get_one(Author, 1)
    kept.append(author.books)  # <- read


def insert_and_return(session: Session) -> None:
    rows = [{"name": f"new {number}"} for number in range(4)]
    kept.extend(session.scalars(insert(Author).returning(Author), rows))  # <- read
    session.commit()


def update_and_return(session: Session) -> None:
    changed = update(Book).values(copies=2).returning(Book)
    kept.extend(session.scalars(changed))  # <- read
    session.commit()


NOT_JOINED = "use selectinload() instead of joinedload(): yield_per refuses joined collections"

ONE_STATEMENT: dict[str, tuple[Callable[[Session], None], str, dict[str, Any]]] = {
    "with what is joined to them": (
        read_joined,
        STREAM,
        {
            "entity": "Book",
            "count": 5,
            "evidence": {
                "loaded": {"Author": 1, "Book": 4},
                "alternatives": ["select(Author).limit(...)", NOT_JOINED],
            },
        },
    ),
    "of two classes": (read_two_classes, STREAM, {"entity": "Book", "count": 5}),
    "for an eager loader": (
        read_eagerly,
        "select only the Book objects that are needed",
        {"entity": "Book", "attribute": "books", "count": 4},
    ),
    "for a lazy load": (
        read_lazily,
        "select only the Book objects that are needed",
        {"entity": "Book", "attribute": "books", "count": 4},
    ),
    "that an INSERT returns": (
        insert_and_return,
        "return columns instead of objects: insert(Author).returning(...)",
        {"entity": "Author", "count": 4},
    ),
    "that an UPDATE returns": (
        update_and_return,
        "return columns instead of objects: update(Book).returning(...)",
        {"entity": "Book", "count": 4},
    ),
}


@pytest.mark.parametrize("what", ONE_STATEMENT)
def test_many_objects(twin: Twin, what: str) -> None:
    how, remedy, more = ONE_STATEMENT[what]

    async def story() -> None:
        await keep(twin, *authors(1, books_each=4))
        captured = await tell(twin, how, large_result_objects=3)
        assert_found(captured, large_result(marked(how, "<- read"), remedy, **more))

    twin.run(story)


def employees() -> list[Any]:
    return [Manager(), Manager(), Manager(), Engineer()]


def test_many_objects_of_subclasses(twin: Twin) -> None:
    async def story() -> None:
        async with tables(twin):
            await keep(twin, *employees())
            captured = await tell(
                twin,
                lambda session: read(session, select(Employee)),
                large_result_objects=3,
            )
            remedy = "select(Employee).execution_options(yield_per=1000)"
            due = large_result(marked(read, "<- read"), remedy, "Manager", 4)
            assert_found(captured, due)

    twin.run(story)


def read_in_portions(session: Session) -> None:
    kept.extend(session.scalars(select(Author).execution_options(yield_per=1)))


def read_pages(session: Session) -> None:
    for page in range(2):
        kept.extend(session.scalars(select(Author).order_by(Author.id).offset(2 * page).limit(2)))


def read_columns(session: Session) -> None:
    kept.extend(session.execute(select(Author.id, Author.name)))
    kept.append(session.scalar(select(func.count(Author.id))))


def read_what_is_there(session: Session) -> None:
    for limit in (2, 4):
        kept.extend(session.scalars(select(Author).limit(limit)))


def insert_in_bulk(session: Session) -> None:
    rows = [{"name": f"new {number}"} for number in range(4)]
    session.execute(insert(Author), rows)
    session.commit()


def insert_and_return_columns(session: Session) -> None:
    rows = [{"name": f"new {number}"} for number in range(4)]
    kept.extend(session.scalars(insert(Author).returning(Author.id), rows))
    session.commit()


NOT_AT_ONCE = [
    read_in_portions,
    read_pages,
    read_columns,
    read_what_is_there,
    insert_in_bulk,
    insert_and_return_columns,
]


@pytest.mark.parametrize("how", NOT_AT_ONCE)
def test_many_rows_that_are_not_many_objects_at_once(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(4))
        assert_found(await tell(twin, how, large_result_objects=2))

    twin.run(story)


# Streams


async def stream(twin: Twin, session: Any, query: Select[Any], *, in_portions: bool) -> int:
    """Read what is streamed, row by row or in portions of two, and keep none of it."""
    if twin.is_async:
        streamed = await session.stream_scalars(query)  # <- awaited
        if in_portions:
            return sum([len(portion) async for portion in streamed.partitions(2)])
        return len([one.id async for one in streamed])
    query = query.execution_options(stream_results=True)
    streamed = await session.scalars(query)  # <- read
    if in_portions:
        return sum(len(portion) for portion in streamed.partitions(2))
    return len([one.id for one in streamed])


async def told_of_stream(twin: Twin, *, in_portions: bool, **options: Any) -> Any:
    limits: dict[str, Any] = {"large_result_objects": 4, "large_identity_map_objects": 4}
    query = select(Author).execution_options(**options)
    with capture(twin.factory, **limits) as captured:
        async with twin.session() as session:
            assert await stream(twin, session, query, in_portions=in_portions) == 6
    return captured


@on_each_database
def test_a_stream_in_portions(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(6))
        captured = await told_of_stream(twin, in_portions=True)
        # SQLite's driver has no server-side cursor to stream from.
        is_streamed = twin.is_async or twin.database == "postgresql"
        found = [] if is_streamed else ["large-identity-map", "large-result"]
        assert [finding.id for finding in captured.findings] == found
        captured = await told_of_stream(twin, in_portions=False, yield_per=2)
        assert_found(captured)
        assert [summary.identity_map_peak for summary in captured.sessions] == [2]

    twin.run(story)


@on_each_database
def test_a_stream_that_nobody_has_portioned(twin: Twin) -> None:
    """Its objects are made of all rows at once."""

    async def story() -> None:
        await keep(twin, *authors(6))
        captured = await told_of_stream(twin, in_portions=False)
        mark = "<- awaited" if twin.is_async else "<- read"
        assert [(finding.id, finding.site, finding.count) for finding in captured.findings] == [
            ("large-identity-map", marked(stream, mark), 6),
            ("large-result", marked(stream, mark), 6),
        ]
        assert_found(await told_of_stream(twin, in_portions=True, yield_per=2))

    twin.run(story)

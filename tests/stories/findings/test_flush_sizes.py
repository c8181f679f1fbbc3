"""Stories of flushes that hold very much, or objects that were never really changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from tests.library import Author, Book, Essay, authors, keep
from tests.stories.findings.due import Above, Due, assert_found
from tests.stories.findings.reading import tell
from tests.stories.findings.remedies import pasted
from tests.stories.lines import marked

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from tests.twins import Twin

# large-flush


def add_all(session: Session) -> None:
    session.add_all(authors(4))
    session.commit()  # <- flushed


def change_all(session: Session) -> None:
    for author in session.scalars(select(Author)):
        author.name = f"Dr. {author.name}"
    session.flush()  # <- flushed
    session.commit()


def delete_all(session: Session) -> None:
    for author in session.scalars(select(Author).options(selectinload(Author.books))):
        session.delete(author)
    session.scalar(select(Book))  # <- flushed
    session.commit()


def do_everything(session: Session) -> None:
    first, second, *_ = session.scalars(select(Author).options(selectinload(Author.books)))
    first.name = "Dr."
    session.delete(second)
    session.add_all([Author(name="new", books=[Book(title="first")]), Essay(title="")])
    with session.begin_nested():  # <- flushed
        pass
    session.commit()


LARGE: dict[str, tuple[Any, str, str, str, dict[str, Any]]] = {
    "INSERT": (add_all, "insert(Author), rows", "Author", "commit", {"new": {"Author": 4}}),
    "UPDATE": (
        change_all,
        "update(Author), rows",
        "Author",
        "explicit",
        {"dirty": {"Author": 4}},
    ),
    "DELETE": (
        delete_all,
        "delete(Author).where(...)",
        "Author",
        "autoflush",
        {"deleted": {"Author": 4}},
    ),
    "all of it": (
        do_everything,
        "insert(Author), rows",
        "Author",
        "savepoint",
        {
            "new": {"Author": 1, "Book": 1, "Essay": 1},
            "dirty": {"Author": 1},
            "deleted": {"Author": 1},
        },
    ),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_flush_of_very_many_objects(twin: Twin, kind: str) -> None:
    how, code, entity, trigger, held = LARGE[kind]
    count = 5 if kind == "all of it" else 4

    async def story() -> None:
        await keep(twin, *authors(0 if kind == "INSERT" else 4))
        told = await tell(twin, how, large_flush_objects=count - 1)
        awaited = "await " if twin.is_async else ""
        rows = code.replace("rows", "[{...}, {...}, ...]")
        due = Due(
            id="large-flush",
            site=marked(how, "<- flushed"),
            opened=marked(tell, "<- opened"),
            remedy=f"{awaited}session.execute({rows})",
            entity=entity,
            count=count,
            evidence={"trigger": trigger, **held, "duration_ms": Above(0)},
        )
        assert_found(told, due)

    twin.run(story)


@pytest.mark.parametrize("kind", LARGE)
def test_a_flush_of_one_fewer(twin: Twin, kind: str) -> None:
    how = LARGE[kind][0]

    async def story() -> None:
        await keep(twin, *authors(0 if kind == "INSERT" else 4))
        limit = 5 if kind == "all of it" else 4
        assert_found(await tell(twin, how, large_flush_objects=limit))

    twin.run(story)


ROWS = [{"id": number, "name": f"Dr. {number}"} for number in (1, 2, 3, 4)]
BULK = {
    "INSERT": "session.execute(insert(Author), rows)",
    "UPDATE": "session.execute(update(Author), rows)",
    "DELETE": "session.execute(delete(Author).where(Author.id.in_([1, 2, 3, 4])))",
}


@pytest.mark.parametrize("kind", BULK)
def test_what_to_write_in_place_of_a_large_flush(twin: Twin, kind: str) -> None:
    def work(session: Session) -> None:
        pasted(BULK[kind], session=session, rows=ROWS)
        session.commit()

    async def story() -> None:
        await keep(twin, *authors(0 if kind == "INSERT" else 4))
        assert_found(await tell(twin, work, large_flush_objects=1))

    twin.run(story)


def flush_each(session: Session) -> None:
    for number in range(4):
        session.add(Author(name=f"new {number}"))
        session.flush()
    session.commit()


def change_nothing(session: Session) -> None:
    for author in session.scalars(select(Author)):
        author.name = str(author.name)
    session.commit()


@pytest.mark.parametrize("how", [flush_each, change_nothing])
def test_flushes_that_are_not_large(twin: Twin, how: Any) -> None:
    async def story() -> None:
        if how is change_nothing:
            await keep(twin, *authors(4))
        assert_found(await tell(twin, how, large_flush_objects=1))

    twin.run(story)


# unchanged-dirty


def assign_the_same(session: Session) -> None:
    for author in session.scalars(select(Author)):
        author.name = "".join(author.name)
    session.commit()  # <- flushed


def assign_there_and_back(session: Session) -> None:
    for author in session.scalars(select(Author)):
        name = author.name
        author.name = "another"
        author.name = name
    session.commit()  # <- flushed


def assign_several(session: Session) -> None:
    for book in session.scalars(select(Book)):
        book.title = "".join(book.title)
        book.copies = int(book.copies)
    session.scalar(select(Author).where(Author.id == 1))  # <- flushed


def assign_the_same_list(session: Session) -> None:
    for author in session.scalars(select(Author).options(selectinload(Author.books))):
        author.books = list(author.books)
    session.commit()  # <- flushed


UNCHANGED: dict[str, tuple[Any, str, str | None, dict[str, Any]]] = {
    "the same value": (
        assign_the_same,
        "Author",
        "name",
        {"unchanged_attributes": ["Author.name"], "trigger": "commit"},
    ),
    "another value and the one before": (
        assign_there_and_back,
        "Author",
        "name",
        {"unchanged_attributes": ["Author.name"], "trigger": "commit"},
    ),
    "the same values of two columns": (
        assign_several,
        "Book",
        None,
        {"unchanged_attributes": ["Book.copies", "Book.title"], "trigger": "autoflush"},
    ),
    "a list of the same objects": (
        assign_the_same_list,
        "Author",
        "books",
        {"unchanged_attributes": ["Author.books"], "trigger": "commit"},
    ),
}


@pytest.mark.parametrize("what", UNCHANGED)
def test_objects_that_are_assigned(twin: Twin, what: str) -> None:
    how, entity, attribute, evidence = UNCHANGED[what]

    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        due = Due(
            id="unchanged-dirty",
            site=marked(how, "<- flushed"),
            opened=marked(tell, "<- opened"),
            remedy="assign only values that differ: the flush compares each of these objects and "
            "writes nothing",
            entity=entity,
            attribute=attribute,
            count=3,
            evidence={"unchanged": {entity: 3}, **evidence},
        )
        assert_found(await tell(twin, how, unchanged_dirty_objects=3), due)
        assert_found(await tell(twin, how, unchanged_dirty_objects=4))

    twin.run(story)


def flush_at_two_lines(session: Session) -> None:
    for book in session.scalars(select(Book)):
        book.title = "".join(book.title)
    session.scalar(select(Author).where(Author.id == 1))  # <- flushed
    for book in session.scalars(select(Book)):
        book.title = "".join(book.title)
    session.commit()


def assign_another_attribute_later(session: Session) -> None:
    for book in session.scalars(select(Book)):
        book.title = "".join(book.title)
    session.scalar(select(Author).where(Author.id == 1))  # <- flushed
    for book in session.scalars(select(Book)):
        book.title = "".join(book.title)
        book.copies = int(book.copies)
    session.commit()  # <- another


def test_an_attribute_that_is_set_again_is_reported_once(twin: Twin) -> None:
    """The lines are those that flush: the one that sets it may be the same."""

    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        captured = await tell(twin, flush_at_two_lines, unchanged_dirty_objects=3)
        (session,) = captured.sessions
        assert session.unchanged == {"Book": 6}
        assert [(one.id, one.site) for one in captured.findings] == [
            ("unchanged-dirty", marked(flush_at_two_lines, "<- flushed"))
        ]
        captured = await tell(twin, assign_another_attribute_later, unchanged_dirty_objects=3)
        assert [(one.site, one.evidence["unchanged_attributes"]) for one in captured.findings] == [
            (marked(assign_another_attribute_later, "<- flushed"), ["Book.title"]),
            (
                marked(assign_another_attribute_later, "<- another"),
                ["Book.copies", "Book.title"],
            ),
        ]

    twin.run(story)


def assign_only_what_differs(session: Session) -> None:
    names = {1: "author 0", 2: "author 1", 3: "another"}
    for author in session.scalars(select(Author)):
        if author.name != names[author.id]:
            author.name = names[author.id]
    session.commit()


def change_each(session: Session) -> None:
    for author in session.scalars(select(Author)):
        author.name = f"Dr. {author.name}"
    session.commit()


def change_lists(session: Session) -> None:
    for author in session.scalars(select(Author).options(selectinload(Author.books))):
        author.books = [Book(title="the only one")]
    session.commit()


def change_what_was_not_loaded(session: Session) -> None:
    for author in session.scalars(select(Author)):
        author.biography = ""
    session.commit()


def assign_and_roll_back(session: Session) -> None:
    for author in session.scalars(select(Author)):
        author.name = "".join(author.name)
    session.rollback()


def assign_in_several_flushes(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        author.name = "".join(author.name)
        session.flush()
    session.commit()


@pytest.mark.parametrize(
    "how",
    [
        assign_only_what_differs,
        change_each,
        change_lists,
        change_what_was_not_loaded,
        assign_and_roll_back,
        assign_in_several_flushes,
    ],
)
def test_objects_that_are_not_unchanged(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        assert_found(await tell(twin, how, unchanged_dirty_objects=2))

    twin.run(story)

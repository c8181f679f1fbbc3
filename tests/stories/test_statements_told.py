"""Stories of what each statement tells of itself: its rows, key, fingerprint, and its stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, func, insert, literal, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import aliased, selectinload

from session_tracer.facts import StatementExecuted
from session_tracer.testing import capture
from tests.library import Author, Book, Essay, authors, keep
from tests.stories.findings.mappings import (
    Course,
    Employee,
    Exam,
    Manager,
    Student,
    tables,
)
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.twins import Twin


async def executed(
    twin: Twin, *works: Callable[[Any], Awaitable[object]]
) -> list[StatementExecuted]:
    """The statements of a session that does all of this, one after the other."""
    with capture(twin.factory) as captured:
        async with twin.session() as session:
            for work in works:
                await work(session)
            await session.rollback()
    return [fact for fact in captured.facts if isinstance(fact, StatementExecuted)]


# How many rows were written


async def flush_one(session: Any) -> None:
    session.add(Author(name="new"))
    await session.flush()


async def flush_change(session: Any) -> None:
    (await session.get(Book, 1)).copies = 7
    await session.flush()


async def flush_changes(session: Any) -> None:
    for book in await session.scalars(select(Book)):
        book.copies = 7
    await session.flush()


async def flush_deletion(session: Any) -> None:
    await session.delete(await session.get(Book, 1))
    await session.flush()


NEW = [{"name": "one"}, {"name": "two"}]
COPIES = [{"id": 1, "copies": 2}, {"id": 2, "copies": 3}]
STATEMENTS: dict[str, tuple[Any, list[tuple[str, str, int]]]] = {
    "an INSERT": (insert(Author).values(name="new"), [("INSERT", "Author", 1)]),
    "an INSERT of many values": (insert(Author).values(NEW), [("INSERT", "Author", -1)]),
    "an INSERT that returns a key": (
        insert(Author).values(name="new").returning(Author.id),
        [("INSERT", "Author", 1)],
    ),
    "an INSERT of what is selected": (
        insert(Essay).from_select(
            ["title", "text", "notes"], select(Author.name, literal(""), literal(""))
        ),
        [("INSERT", "Essay", 3)],
    ),
    "an UPDATE of all": (update(Book).values(copies=2), [("UPDATE", "Book", 3)]),
    "an UPDATE of one": (
        update(Book).where(Book.id == 1).values(copies=2),
        [("UPDATE", "Book", 1)],
    ),
    "an UPDATE of none": (
        update(Book).where(Book.id == 404).values(copies=2),
        [("UPDATE", "Book", 0)],
    ),
    "a DELETE": (delete(Book).where(Book.id < 3), [("DELETE", "Book", 2)]),
    "a DELETE of none": (delete(Essay), [("DELETE", "Essay", 0)]),
    "a SELECT": (select(Book), [("SELECT", "Book", -1)]),
    "text": (text("UPDATE books SET copies = 4"), [("UPDATE", "", 3)]),
    "a table's UPDATE": (
        update(Book.metadata.tables["books"]).values(copies=2),
        [("UPDATE", "", 3)],
    ),
}


@on_each_database
@pytest.mark.parametrize("what", STATEMENTS)
def test_how_many_rows_are_written_by(twin: Twin, what: str) -> None:
    statement, expected = STATEMENTS[what]

    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        captured = await executed(twin, lambda session: session.execute(statement))
        assert [(fact.operation, fact.entity, fact.rows) for fact in captured] == expected

    twin.run(story)


MANY: dict[str, tuple[Any, Any, tuple[str, str, int, int]]] = {
    "INSERT": (insert(Author), NEW, ("INSERT", "Author", 2, 2)),
    "UPDATE": (update(Book), COPIES, ("UPDATE", "Book", 2, 2)),
}


@on_each_database
@pytest.mark.parametrize("kind", MANY)
def test_how_many_rows_are_written_by_one_for_many(twin: Twin, kind: str) -> None:
    statement, rows, expected = MANY[kind]

    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        (fact,) = await executed(twin, lambda session: session.execute(statement, rows))
        assert (fact.operation, fact.entity, fact.batch_size, fact.rows) == expected

    twin.run(story)


@on_each_database
def test_how_many_rows_an_insert_returns_in_batches_nobody_reports(twin: Twin) -> None:
    async def story() -> None:
        returning = insert(Author).returning(Author.id)
        captured = await executed(twin, lambda session: session.execute(returning, NEW))
        assert {(fact.operation, fact.entity, fact.rows) for fact in captured} == {
            ("INSERT", "Author", -1)
        }

    twin.run(story)


FLUSHES: dict[str, tuple[Any, tuple[str, str, str, int, int]]] = {
    "one new object": (flush_one, ("INSERT", "authors", "Author", 1, 1)),
    "one change": (flush_change, ("UPDATE", "books", "Book", 1, 1)),
    "three changes": (flush_changes, ("UPDATE", "books", "Book", 3, 3)),
    "one deletion": (flush_deletion, ("DELETE", "books", "Book", 1, 1)),
}


@on_each_database
@pytest.mark.parametrize("what", FLUSHES)
def test_how_many_rows_are_flushed_of(twin: Twin, what: str) -> None:
    how, expected = FLUSHES[what]

    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        *_, fact = await executed(twin, how)
        assert fact.in_flush
        captured = fact.operation, fact.collection, fact.entity, fact.batch_size, fact.rows
        assert captured == expected

    twin.run(story)


def test_a_flush_writes_the_tables_of_a_class_and_of_its_base(twin: Twin) -> None:
    async def flush_all(session: Any) -> None:
        session.add_all([Manager(), Employee(), Student(courses=[Course()])])
        await session.flush()

    async def story() -> None:
        async with tables(twin):
            captured = {(fact.collection, fact.entity) for fact in await executed(twin, flush_all)}
        assert captured == {
            ("employees", "Employee"),
            ("managers", "Manager"),
            ("students", "Student"),
            ("courses", "Course"),
            ("attendance", ""),
        }

    twin.run(story)


@on_each_database
def test_what_fails_has_written_nothing(twin: Twin) -> None:
    async def insert_again(session: Any) -> None:
        with pytest.raises(DBAPIError):
            await session.execute(insert(Author).values(id=1, name="another"))

    async def story() -> None:
        await keep(twin, *authors(1))
        (fact,) = await executed(twin, insert_again)
        assert (fact.operation, fact.entity, fact.rows) == ("INSERT", "Author", -1)
        assert fact.error

    twin.run(story)


# Lookups by primary key


async def get(session: Any) -> Any:
    return await session.get(Author, 1)


async def get_nobody(session: Any) -> Any:
    return await session.get(Author, 404)


async def get_manager(session: Any) -> Any:
    return await session.get(Manager, 1)


async def get_exam(session: Any) -> Any:
    return await session.get(Exam, (1, 1))


async def merge(session: Any) -> Any:
    return await session.merge(Author(id=1, name="author 0"))


async def select_by_key(session: Any) -> Any:
    return await session.scalar(select(Author).where(Author.id == 1))


async def select_alias(session: Any) -> Any:
    return await session.scalar(select(aliased(Author)))


async def refresh(session: Any) -> Any:
    await session.refresh(await session.scalar(select(Author)))


async def read_lazily(session: Any) -> Any:
    book = await session.scalar(select(Book))
    return await session.run_sync(lambda _: book.author)


async def select_with_books(session: Any) -> Any:
    return (await session.scalars(select(Author).options(selectinload(Author.books)))).all()


LOOKUPS: dict[str, tuple[Any, list[tuple[str, bool, str]]]] = {
    "get()": (get, [("Author", True, "id")]),
    "get() of nobody": (get_nobody, [("Author", True, "id")]),
    "get() of a subclass": (get_manager, [("Manager", True, "id")]),
    "get() by two columns": (get_exam, [("Exam", True, "")]),
    "merge()": (merge, [("Author", True, "id")]),
    "a select by key": (select_by_key, [("Author", False, "")]),
    "a select of an alias": (select_alias, [("Author", False, "")]),
    "refresh()": (refresh, [("Author", False, "")] * 2),
    "a lazy load": (read_lazily, [("Book", False, ""), ("Author", False, "")]),
    "an eager load": (select_with_books, [("Author", False, ""), ("Book", False, "")]),
}


@pytest.mark.parametrize("what", LOOKUPS)
def test_what_is_looked_up_by_its_key(twin: Twin, what: str) -> None:
    how, expected = LOOKUPS[what]

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *authors(1, books_each=1))
            captured = await executed(twin, how)
        assert [(fact.entity, fact.by_key, fact.key) for fact in captured] == expected

    twin.run(story)


# What is the same again


def named(name: str) -> Callable[[Any], Awaitable[object]]:
    return lambda session: session.scalar(select(Author).where(Author.name == name))


async def prints(twin: Twin, *works: Callable[[Any], Awaitable[object]]) -> list[tuple[int, int]]:
    return [(fact.fingerprint, fact.text) for fact in await executed(twin, *works)]


def test_the_same_select_has_one_fingerprint(twin: Twin) -> None:
    async def story() -> None:
        one, same, other = await prints(twin, named("Ada"), named("Ada"), named("Grace"))
        assert one == same
        assert one[1] == other[1]
        assert one[0] != other[0]
        assert 0 not in one

    twin.run(story)


def test_minus_one_is_another_parameter_than_minus_two(twin: Twin) -> None:
    def by_id(number: int) -> Callable[[Any], Awaitable[object]]:
        return lambda session: session.scalar(select(Author).where(Author.id == number))

    async def story() -> None:
        one, other = await prints(twin, by_id(-1), by_id(-2))
        assert (one[0] != other[0], one[1] == other[1]) == (True, True)

    twin.run(story)


def test_another_text_has_another_fingerprint(twin: Twin) -> None:
    async def count(session: Any) -> Any:
        return await session.scalar(select(func.count(Author.id)))

    async def story() -> None:
        assert len(set(await prints(twin, count, get_nobody, count, get_nobody))) == 2

    twin.run(story)


def test_what_writes_has_no_fingerprint(twin: Twin) -> None:
    async def story() -> None:
        captured = await executed(
            twin, flush_one, lambda session: session.execute(update(Book).values(copies=2))
        )
        assert [fact.fingerprint for fact in captured] == [0, 0]
        assert all(fact.text for fact in captured)

    twin.run(story)


# Streams


async def stream(session: Any, query: Any, *, is_async: bool) -> None:
    if is_async:
        found = [author async for author in await session.stream_scalars(query)]
    else:
        found = list(await session.scalars(query))
    assert len(found) == 3


@on_each_database
@pytest.mark.parametrize("option", [{"yield_per": 2}, {"stream_results": True}, {}])
def test_what_is_streamed(twin: Twin, option: dict[str, Any]) -> None:
    query = select(Author).execution_options(**option)

    async def story() -> None:
        await keep(twin, *authors(3))
        streamed, plain = await executed(
            twin,
            lambda session: stream(session, query, is_async=twin.is_async),
            get_nobody,
        )
        # AsyncSession.stream() asks for it by itself.
        assert (streamed.streamed, plain.streamed) == (bool(option) or twin.is_async, False)

    twin.run(story)

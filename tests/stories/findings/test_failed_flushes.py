"""Stories of flushes that fail, however they were asked for, and of what is no failed flush."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from session_tracer.testing import Captured, capture
from tests.library import Author, Book, Loan, authors, keep
from tests.stories.findings.due import Above, Due, assert_found
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.twins import Twin


async def tell(twin: Twin, work: Callable[[Any], Awaitable[object]]) -> Captured:
    with capture(twin.factory) as captured:
        async with twin.session() as session:  # <- opened
            await work(session)
    return captured


async def flush(session: Any) -> None:
    session.add_all([Author(name=None), Author(name="new", books=[Book(title="first")])])
    with pytest.raises(IntegrityError):
        await session.flush()  # <- flushed
    await session.rollback()


async def commit(session: Any) -> None:
    (await session.get(Book, 1)).copies = -1
    with pytest.raises(IntegrityError):
        await session.commit()  # <- flushed
    await session.rollback()


async def autoflush(session: Any) -> None:
    session.add(Author(name="author 0"))
    with pytest.raises(IntegrityError):
        await session.scalars(select(Book))  # <- flushed
    await session.rollback()


def books_of(author: Author) -> object:
    return author.books  # <- flushed


async def read_lazily(session: Any) -> None:
    author = await session.get(Author, 1)
    session.add(Author(name="author 0"))
    with pytest.raises(IntegrityError):
        await session.run_sync(lambda _: books_of(author))
    await session.rollback()


async def begin_a_savepoint(session: Any) -> None:
    session.add(Author(name=None))
    with pytest.raises(IntegrityError):
        async with session.begin_nested():  # <- flushed
            pass
    await session.rollback()


async def delete(session: Any) -> None:
    await session.execute(insert(Loan).values(book_id=1))
    await session.delete(await session.get(Author, 1))
    session.add(Author(name=None))
    with pytest.raises(IntegrityError):
        await session.flush()  # <- flushed
    await session.rollback()


FAILED: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "flush()": (
        flush,
        "Author",
        "name",
        {"trigger": "explicit", "new": {"Author": 2, "Book": 1}},
    ),
    "commit()": (
        commit,
        "Book",
        "copies_are_not_negative",
        {"trigger": "commit", "dirty": {"Book": 1}},
    ),
    "autoflush": (
        autoflush,
        "Author",
        "authors_name_key",
        {"trigger": "autoflush", "new": {"Author": 1}},
    ),
    "a lazy load": (
        read_lazily,
        "Author",
        "authors_name_key",
        {"trigger": "autoflush", "new": {"Author": 1}},
    ),
    "a savepoint that is to begin": (
        begin_a_savepoint,
        "Author",
        "name",
        {"trigger": "savepoint", "new": {"Author": 1}},
    ),
    "a deletion": (
        delete,
        "Author",
        "",
        {"trigger": "explicit", "new": {"Author": 1}, "deleted": {"Author": 1, "Book": 1}},
    ),
}


@on_each_database
@pytest.mark.parametrize("what", FAILED)
def test_a_flush_that_fails_by(twin: Twin, what: str) -> None:
    how, entity, constraint, held = FAILED[what]

    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        captured = await tell(twin, how)
        awaited, block = ("await ", "async with") if twin.is_async else ("", "with")
        evidence = {
            "error": "sqlalchemy.exc.IntegrityError",
            **held,
            "duration_ms": Above(0),
            "alternatives": [f"{block} session.begin_nested(): around the code that may fail"],
        }
        due = Due(
            id="failed-flush",
            site=marked(books_of if how is read_lazily else how, "<- flushed"),
            opened=marked(tell, "<- opened"),
            remedy=f"{awaited or 'call '}session.rollback() where IntegrityError is caught",
            entity=entity,
            evidence=evidence,
        )
        assert_found(captured, due)
        named = captured.findings[0].evidence.get("constraint", "")
        # SQLite names none, and PostgreSQL's drivers no NOT NULL.
        is_named = twin.database == "postgresql" and constraint not in ("", "name")
        assert named == (constraint if is_named else "")

    twin.run(story)


async def leave_a_savepoint(session: Any) -> None:
    session.add(Author(name="kept"))
    with suppress(IntegrityError):
        async with session.begin_nested():  # <- flushed
            session.add(Author(name=None))
    await session.commit()


async def flush_in_a_savepoint(session: Any) -> None:
    session.add(Author(name="kept"))
    with suppress(IntegrityError):
        async with session.begin_nested():
            session.add(Author(name=None))
            await session.flush()  # <- flushed
    await session.commit()


@on_each_database
@pytest.mark.parametrize("how", [leave_a_savepoint, flush_in_a_savepoint])
def test_a_flush_that_fails_in_a_savepoint(twin: Twin, how: Any) -> None:
    async def story() -> None:
        captured = await tell(twin, how)
        due = Due(
            id="failed-flush",
            site=marked(how, "<- flushed"),
            opened=marked(tell, "<- opened"),
            remedy="catch IntegrityError outside of the savepoint's block: "
            "only the savepoint is rolled back",
            entity="Author",
            evidence={"new": {"Author": 1}, "alternatives": None},
        )
        assert_found(captured, due)
        assert [summary.outcome for summary in captured.sessions] == ["committed"]

    twin.run(story)


async def insert_twice(session: Any) -> None:
    with pytest.raises(IntegrityError):
        await session.execute(insert(Author), [{"name": "same"}, {"name": "same"}])
    await session.rollback()


async def read_nonsense(session: Any) -> None:
    with pytest.raises(DBAPIError):
        await session.execute(text("SELECT nonsense"))
    await session.rollback()


async def flush_what_is_right(session: Any) -> None:
    session.add_all([Author(name="one"), Author(name="another")])
    await session.flush()
    session.add(Author(name="a third"))
    await session.commit()


async def raise_after_a_flush(session: Any) -> None:
    with suppress(LookupError):
        async with session.begin_nested():
            session.add(Author(name="one"))
            await session.flush()
            raise LookupError
    await session.commit()


@on_each_database
@pytest.mark.parametrize(
    "how", [insert_twice, read_nonsense, flush_what_is_right, raise_after_a_flush]
)
def test_what_is_no_failed_flush(twin: Twin, how: Any) -> None:
    async def story() -> None:
        assert_found(await tell(twin, how))

    twin.run(story)


@on_each_database
def test_what_is_only_refused_at_the_commit(twin: Twin) -> None:
    """The flush went well; the COMMIT itself fails, where the database checks at that time."""

    async def story() -> None:
        async def lend_nothing(session: Any) -> None:
            session.add(Loan(book_id=404))
            if twin.database == "postgresql":
                with pytest.raises(IntegrityError):
                    await session.commit()
                await session.rollback()
            else:
                await session.commit()

        assert_found(await tell(twin, lend_nothing))

    twin.run(story)

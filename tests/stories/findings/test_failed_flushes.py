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

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.twins import Twin


async def tell(twin: Twin, work: Callable[[Any], Awaitable[object]]) -> Captured:
    with capture(twin.factory) as told:
        async with twin.session() as session:  # <- opened
            await work(session)
    return told


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


async def read_lazily(session: Any) -> None:
    def books(_: object) -> object:
        return author.books  # <- flushed

    author = await session.get(Author, 1)
    session.add(Author(name="author 0"))
    with pytest.raises(IntegrityError):
        await session.run_sync(books)
    await session.rollback()


async def leave_a_savepoint(session: Any) -> None:
    with suppress(IntegrityError):
        async with session.begin_nested():  # <- flushed
            session.add(Author(name=None))
    session.add(Author(name="kept"))
    await session.commit()


async def delete(session: Any) -> None:
    await session.execute(insert(Loan).values(book_id=1))
    await session.delete(await session.get(Author, 1))
    session.add(Author(name=None))
    with pytest.raises(IntegrityError):
        await session.flush()  # <- flushed
    await session.rollback()


EXPLICIT = "catch IntegrityError here, and call {}session.rollback() in the except block"
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
    "a deletion": (
        delete,
        "Author",
        "",
        {"trigger": "explicit", "new": {"Author": 1}, "deleted": {"Author": 1, "Book": 1}},
    ),
}


@pytest.mark.parametrize("what", FAILED)
def test_a_flush_that_fails_by(twin: Twin, what: str) -> None:
    how, entity, constraint, held = FAILED[what]

    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        told = await tell(twin, how)
        awaited, block = ("await ", "async with") if twin.is_async else ("", "with")
        evidence = {
            "error": "sqlalchemy.exc.IntegrityError",
            **held,
            "duration_ms": Above(0),
            "alternatives": [f"{block} session.begin_nested(): around what may fail"],
        }
        due = Due(
            id="failed-flush",
            site=marked(how, "<- flushed"),
            opened=marked(tell, "<- opened"),
            remedy=EXPLICIT.format(awaited),
            entity=entity,
            evidence=evidence,
        )
        assert_found(told, due)
        named = told.findings[0].evidence.get("constraint", "")
        # SQLite names none, and PostgreSQL's drivers no NOT NULL.
        is_named = twin.database == "postgresql" and constraint not in ("", "name")
        assert named == (constraint if is_named else "")

    twin.run(story)

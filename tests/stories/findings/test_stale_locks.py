"""Stories of rows that are locked after their objects were loaded, and of locks that are right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import aliased, joinedload, selectinload

from session_tracer import silence
from session_tracer.testing import Captured, capture
from tests.good_code.silence import assert_silent, only_sync
from tests.library import Author, Book, Map, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked
from tests.twins import on_each_database, on_postgresql

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.twins import Twin

LOCKING = select(Book).order_by(Book.id).with_for_update()
FIRST = LOCKING.where(Book.title == "book 0.0")
LEAST = 1  # book 0.0 has this id

# The second session of a story is another transaction's.
OTHERS = {"nested-sessions", "split-writes", "discarded-changes"}


async def traced(twin: Twin, work: Callable[[Any], Awaitable[object]]) -> Captured:
    await keep(twin, *authors(2, books_each=2))
    with capture(twin.factory, ignore=OTHERS) as captured:
        async with twin.session() as session:  # <- opened
            await work(session)
    return captured


async def buy_elsewhere(twin: Twin) -> None:
    """Another transaction adds nine copies of each book."""
    async with twin.session() as other:
        await other.execute(update(Book).values(copies=Book.copies + 9))
        await other.commit()


async def by_select(session: Any) -> Any:
    return (await session.scalars(FIRST)).one()  # <- locked


async def by_rows(session: Any) -> Any:
    return next(iter((await session.execute(FIRST)).all()))[0]  # <- locked


def query(session: Any) -> Any:
    return session.query(Book).filter_by(id=LEAST).with_for_update().one()  # <- locked


async def by_query(session: Any) -> Any:
    return await session.run_sync(query)


async def by_get(session: Any) -> Any:
    return await session.get(Book, LEAST, with_for_update=True)  # <- locked


async def by_join(session: Any) -> Any:
    other = select(Author, Book).join(Author.books).where(Book.id == LEAST)
    return (await session.execute(other.with_for_update(of=Book))).one()[1]  # <- locked


async def by_alias(session: Any) -> Any:
    a_book = aliased(Book)
    return (await session.scalars(select(a_book).with_for_update().limit(1))).one()  # <- locked


ON_SELECT = "add .execution_options(populate_existing=True) to this SELECT"
LATE: dict[str, tuple[Any, str]] = {
    "a SELECT": (by_select, ON_SELECT),
    "rows": (by_rows, ON_SELECT),
    "a Query": (by_query, ON_SELECT),
    "an OF of its table": (by_join, ON_SELECT),
    "an alias": (by_alias, ON_SELECT),
    "get()": (
        by_get,
        "session.get(Book, ..., with_for_update=True, populate_existing=True)",
    ),
}


@on_each_database
@pytest.mark.parametrize(("lock", "remedy"), LATE.values(), ids=LATE)
def test_a_lock_after_the_load_keeps_the_old_values(twin: Twin, lock: Any, remedy: str) -> None:
    async def work(session: Any) -> None:
        book = await session.get(Book, LEAST)  # <- loaded
        await buy_elsewhere(twin)
        assert await lock(session) is book
        assert book.copies == 1  # the other transaction's change is not seen
        await session.commit()

    async def story() -> None:
        captured = await traced(twin, work)
        wait = "await " if twin.is_async else ""
        assert_found(
            captured,
            Due(
                id="stale-lock",
                site=marked(query if lock is by_query else lock, "<- locked"),
                opened=marked(traced, "<- opened"),
                remedy=wait + remedy if remedy.startswith("session") else remedy,
                entity="Book",
                evidence={
                    "loaded_at": str(marked(work, "<- loaded")),
                    "alternatives": [
                        f"{wait}session.refresh(book, with_for_update=True) in its place"
                    ],
                },
            ),
        )
        assert captured.findings[0].message == (
            "1 Book object was in the session before SELECT ... FOR UPDATE locked its row, and "
            "keeps the values from before the lock"
        )

    twin.run(story)


def test_all_objects_of_one_statement_are_one_finding(twin: Twin) -> None:
    async def work(session: Any) -> None:
        kept = (await session.scalars(select(Author).options(selectinload(Author.books)))).all()
        both = select(Author, Book).join(Author.books).with_for_update()
        for _ in range(3):  # locked by the first of them
            assert len((await session.execute(both)).all()) == 4
        assert len(kept) == 2
        await session.commit()

    async def story() -> None:
        (finding,) = (await traced(twin, work)).findings
        assert finding.id == "stale-lock"
        assert finding.count == 6
        assert finding.evidence["objects"] == {"Author": 2, "Book": 4}

    twin.run(story)


@only_sync
def test_what_an_earlier_transaction_loaded_is_reported_where_commits_expire_nothing(
    twin: Twin,
) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured, twin.factory(expire_on_commit=False) as session:
            book = session.scalars(select(Book)).one()
            session.commit()
            session.scalars(FIRST).one()
            session.close()
        (finding,) = captured.findings
        assert finding.id == "stale-lock"
        del book

    twin.run(story)


@only_sync
def test_a_joined_relationship_is_locked_with_its_parent(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured, twin.factory() as session:
            books = session.scalars(select(Book)).all()
            locking = select(Author).options(joinedload(Author.books)).with_for_update()
            session.scalars(locking).unique().all()
            session.commit()
        (finding,) = captured.findings
        assert (finding.entity, finding.count) == ("Book", len(books))

    twin.run(story)


# The remedies, and other right code.


async def by_select_anew(session: Any) -> Any:
    return (await session.scalars(FIRST.execution_options(populate_existing=True))).one()


async def by_get_anew(session: Any) -> Any:
    return await session.get(Book, LEAST, with_for_update=True, populate_existing=True)


async def by_refresh(session: Any) -> Any:
    book = await session.get(Book, LEAST)
    await session.refresh(book, with_for_update=True)
    return book


async def after_expire_all(session: Any) -> Any:
    session.expire_all()
    return await by_select(session)


async def after_expire(session: Any) -> Any:
    session.expire(await session.get(Book, LEAST), ["copies"])
    return await by_select(session)


async def and_refresh(session: Any) -> Any:
    book = await by_select(session)
    await session.refresh(book)
    return book


async def and_expire(session: Any) -> Any:
    book = await by_select(session)
    session.expire(book)
    await session.get(Book, LEAST)
    return book


async def after_rollback(session: Any) -> Any:
    await session.rollback()
    return await by_select(session)


async def twice(session: Any) -> Any:
    await by_select_anew(session)
    return await by_select(session)


RIGHT = [
    by_select_anew,
    by_get_anew,
    by_refresh,
    after_expire_all,
    after_expire,
    and_refresh,
    and_expire,
    after_rollback,
    twice,
]


@on_each_database
@pytest.mark.parametrize("lock", RIGHT, ids=lambda lock: lock.__name__)
def test_a_lock_that_loads_anew_is_silent_and_sees_what_others_wrote(twin: Twin, lock: Any) -> None:
    async def work(session: Any) -> None:
        book = await session.get(Book, LEAST)
        await buy_elsewhere(twin)
        assert await lock(session) is book
        assert book.copies == 10
        await session.commit()

    async def story() -> None:
        assert_silent(await traced(twin, work), sessions=2)

    twin.run(story)


async def lock_first(session: Any) -> None:
    kept = (await session.scalars(LOCKING)).all()
    assert (await session.scalars(LOCKING)).all() == kept
    assert await session.get(Book, LEAST, with_for_update=True) in kept


async def lock_what_is_new(session: Any) -> None:
    book = Book(title="book 9.9", author_id=1)
    session.add(book)
    await session.flush()
    locking = LOCKING.where(Book.title == "book 9.9")
    assert (await session.scalars(locking)).one() is book


async def lock_what_is_written(session: Any) -> None:
    book = await session.get(Book, LEAST)
    book.copies += 1
    assert (await session.scalars(FIRST)).one() is book
    async with session.begin_nested():
        assert (await session.scalars(FIRST)).one() is book


async def lock_columns(session: Any) -> None:
    books = (await session.scalars(select(Book))).all()
    rows = (await session.execute(select(Book.id, Book.copies).with_for_update())).all()
    assert len(rows) == len(books)


async def lock_others(session: Any) -> None:
    kept = (await session.scalars(select(Author))).all()
    locking = select(Author, Book).join(Author.books).with_for_update(of=Book)
    assert len((await session.execute(locking)).all()) == 2 * len(kept)


async def lock_without_what_is_selected_in(session: Any) -> None:
    books = (await session.scalars(select(Book))).all()
    locking = select(Author).options(selectinload(Author.books)).with_for_update()
    assert sum(len(author.books) for author in await session.scalars(locking)) == len(books)


async def lock_no_row(session: Any) -> None:
    books = (await session.scalars(select(Book))).all()
    assert (await session.scalars(LOCKING.where(Book.copies > 99))).all() == []
    for book in books:
        assert await session.get(Book, book.id) is book


async def read_without_lock(session: Any) -> None:
    books = (await session.scalars(select(Book))).all()
    assert (await session.scalars(select(Book).order_by(Book.id))).all() == books


SILENT = [
    lock_first,
    lock_what_is_new,
    lock_what_is_written,
    lock_columns,
    lock_others,
    lock_without_what_is_selected_in,
    lock_no_row,
    read_without_lock,
]


@pytest.mark.parametrize("lock", SILENT, ids=lambda lock: lock.__name__)
def test_a_lock_whose_values_cannot_be_old_is_silent(twin: Twin, lock: Any) -> None:
    async def work(session: Any) -> None:
        await lock(session)
        await session.commit()

    async def story() -> None:
        assert_silent(await traced(twin, work), sessions=1)

    twin.run(story)


@on_postgresql
def test_a_transaction_that_refuses_rows_that_have_changed_is_silent(twin: Twin) -> None:
    async def work(session: Any) -> None:
        options = {"isolation_level": "REPEATABLE READ"}
        await session.connection(execution_options=options)
        book = await session.get(Book, LEAST)
        assert await by_select(session) is book
        await session.commit()

    async def story() -> None:
        assert_silent(await traced(twin, work), sessions=1)

    twin.run(story)


@only_sync
def test_a_subclass_that_is_loaded_by_its_base_is_named(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, Map(scale=5))
        with capture(twin.factory) as captured, twin.factory() as session:
            found = session.scalars(select(Map)).one()
            assert session.scalars(select(Map).with_for_update()).one() is found
            session.commit()
        (finding,) = captured.findings
        assert (finding.id, finding.entity) == ("stale-lock", "Map")

    twin.run(story)


@only_sync
def test_a_lock_in_a_silenced_block_is_silent(twin: Twin) -> None:
    async def work(session: Any) -> None:
        await session.get(Book, LEAST)
        with silence("stale-lock", reason="its values are not used"):
            await by_select(session)
        await session.commit()

    async def story() -> None:
        assert_silent(await traced(twin, work), sessions=1)

    twin.run(story)


@only_sync
def test_the_session_is_left_as_it_was(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory), twin.factory() as session:
            book = session.scalars(select(Book)).one()
            session.scalars(FIRST).one()
            assert "get" not in session.identity_map.__dict__
            held = session.scalars(FIRST)
            session.commit()
            assert "get" not in session.identity_map.__dict__
            del held, book

    twin.run(story)

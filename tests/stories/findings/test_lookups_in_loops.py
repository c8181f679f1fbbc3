"""Stories of objects that are looked up by primary key, one after the other or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from session_tracer.testing import Captured, capture
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.mappings import (
    Course,
    Employee,
    Engineer,
    Exam,
    Manager,
    Student,
    tables,
)
from tests.stories.findings.remedies import pasted, to_write
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.twins import Twin


async def get(session: Any, key: int) -> Any:
    return await session.get(Author, key)  # <- asked


async def get_one(session: Any, key: int) -> Any:
    return await session.get_one(Author, key)  # <- asked


async def merge(session: Any, key: int) -> Any:
    return await session.merge(Author(id=key, name=f"author {key - 1}"))  # <- asked


async def get_to_lock(session: Any, key: int) -> Any:
    return await session.get(Author, key, with_for_update=True)  # <- asked


async def get_with_books(session: Any, key: int) -> Any:
    return await session.get(Author, key, options=[selectinload(Author.books)])  # <- asked


async def query_by_key(session: Any, key: int) -> Any:
    return await session.scalar(select(Author).where(Author.id == key))


async def ask(
    twin: Twin,
    how: Callable[[Any, Any], Awaitable[Any]],
    keys: Any,
    before: Any = None,
    **settings: Any,
) -> Captured:
    """What is told of a session that asks for each key, when something may be there before."""
    with capture(twin.factory, **settings) as captured:
        async with twin.session() as session:  # <- opened
            kept = [] if before is None else (await session.scalars(before)).all()
            kept += [await how(session, key) for key in keys]  # <- loops
    return captured


def looked_up(how: Any, entity: str, count: int, remedy: str) -> Due:
    return Due(
        id="get-in-loop",
        site=marked(how, "<- asked"),
        opened=marked(ask, "<- opened"),
        remedy=f"{remedy}{'' if remedy.endswith('loop') else BEFORE} at {marked(ask, '<- loops')}",
        entity=entity,
        count=count,
        evidence={"loop": str(marked(ask, "<- loops"))},
    )


BEFORE = "  # before the loop"
IN_ONE = "select(Author).where(Author.id.in_(keys))"


@pytest.mark.parametrize("how", [get, get_one, merge])
def test_ten_lookups_from_one_line(twin: Twin, how: Any) -> None:
    keys = range(1, 11)

    async def story() -> None:
        await keep(twin, *authors(10))
        assert_found(await ask(twin, how, keys[:9]))
        captured = await ask(twin, how, keys)
        assert_found(captured, looked_up(how, "Author", 10, IN_ONE))
        (finding,) = captured.findings
        assert finding.message == (
            "Author was looked up by at least 10 different primary keys, one SELECT each"
        )
        assert_found(await ask(twin, how, keys, pasted(to_write(finding), keys=keys)))

    twin.run(story)


@pytest.mark.parametrize("how", [get, get_to_lock, get_with_books, merge])
def test_lookups_however_they_are_asked_for(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        captured = await ask(twin, how, (1, 2, 3), gets_from_one_site=3)
        assert_found(captured, looked_up(how, "Author", 3, IN_ONE))

    twin.run(story)


def test_rows_that_are_not_there(twin: Twin) -> None:
    async def story() -> None:
        captured = await ask(twin, get, (1, 2, 3), gets_from_one_site=3)
        assert_found(captured, looked_up(get, "Author", 3, IN_ONE))

    twin.run(story)


async def get_exam(session: Any, key: tuple[int, int]) -> Any:
    return await session.get(Exam, key)  # <- asked


async def get_employee(session: Any, key: int) -> Any:
    return await session.get(Employee, key)  # <- asked


async def get_manager(session: Any, key: int) -> Any:
    return await session.get(Manager, key)  # <- asked


KEYS: dict[str, tuple[Any, Callable[[], list[Any]], tuple[Any, ...], Due]] = {
    "a key of two columns": (
        get_exam,
        lambda: [Student(exams=[Exam(course=Course()) for _ in range(3)])],
        ((1, 1), (1, 2), (1, 3)),
        looked_up(get_exam, "Exam", 3, "run one select(Exam) for all keys before the loop"),
    ),
    "a class with subclasses": (
        get_employee,
        lambda: [Manager(), Engineer(), Employee()],
        (1, 2, 3),
        looked_up(get_employee, "Employee", 3, "select(Employee).where(Employee.id.in_(keys))"),
    ),
    "a subclass with a table of its own": (
        get_manager,
        lambda: [Manager(), Manager(), Manager()],
        (1, 2, 3),
        looked_up(get_manager, "Manager", 3, "select(Manager).where(Manager.id.in_(keys))"),
    ),
}


@pytest.mark.parametrize("what", KEYS)
def test_lookups_by(twin: Twin, what: str) -> None:
    how, kept, keys, due = KEYS[what]

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *kept())
            assert_found(await ask(twin, how, keys, gets_from_one_site=4))
            captured = await ask(twin, how, keys, gets_from_one_site=3)
            assert_found(captured, due)
            before: Any = select(Exam) if how is get_exam else pasted(due.remedy, keys=keys)
            assert_found(await ask(twin, how, keys, before, gets_from_one_site=3))

    twin.run(story)


# Near-misses: each asks for three keys or more, where two lookups would be a loop.


async def get_elsewhere(session: Any, key: int) -> Any:
    if key == 2:
        return await session.get(Author, key)
    return await session.get(Author, key)


async def get_both(session: Any, key: int) -> Any:
    return await session.get(Author if key == 1 else Book, key)


async def get_the_first(session: Any, _: int) -> Any:
    return await session.get(Author, 1)


async def get_the_expired(session: Any, key: int) -> Any:
    author = await session.get(Author, key)
    session.expire(author)
    return await session.get(Author, key)


async def refresh(session: Any, key: int) -> Any:
    author = await session.get(Author, key)
    await session.refresh(author)
    return author


async def merge_a_new_one(session: Any, key: int) -> Any:
    return await session.merge(Author(name=f"new {key}"))


async def merge_without_a_load(session: Any, key: int) -> Any:
    with session.sync_session.no_autoflush:
        book = await session.get(Book, key)
        session.expunge(book)
        return await session.merge(book, load=False)


async def read_the_author(session: Any, key: int) -> Any:
    def author_of(_: object) -> Any:
        return book.author

    book = await session.scalar(select(Book).where(Book.id == key))
    return await session.run_sync(author_of)


ALL_AUTHORS = select(Author)
NO_LOOP: dict[str, tuple[Any, Any]] = {
    "two lines": (get_elsewhere, None),
    "two classes": (get_both, None),
    "the same object": (get_the_first, None),
    "what the identity map holds": (get, ALL_AUTHORS),
    "what is expired and reloaded": (get_the_expired, ALL_AUTHORS),
    "what is refreshed": (refresh, ALL_AUTHORS),
    "objects without a key": (merge_a_new_one, None),
    "what is merged without a load": (merge_without_a_load, select(Book)),
    "a query of the application's own": (query_by_key, None),
    "many-to-ones, read lazily": (read_the_author, None),
}


@pytest.mark.parametrize("what", NO_LOOP)
def test_no_lookups_in_a_loop(twin: Twin, what: str) -> None:
    how, before = NO_LOOP[what]
    keys = (1, 2) if what in ("two lines", "two classes") else (1, 2, 3, 4)
    discarded = ("objects without a key",)

    async def story() -> None:
        await keep(twin, *authors(4, books_each=1))
        captured = await ask(
            twin,
            how,
            keys,
            before,
            gets_from_one_site=2,
            ignore={"discarded-changes"} if what in discarded else set(),
        )
        assert_found(captured)

    twin.run(story)

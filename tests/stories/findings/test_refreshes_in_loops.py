"""Stories of `refresh()` called for each object of a loop, and called for a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import inspect, select, update
from sqlalchemy.orm import joinedload, load_only, selectinload, undefer

from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.mappings import Course, Exam, Student, tables
from tests.stories.findings.reading import tell
from tests.stories.findings.remedies import pasted, to_write
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from tests.twins import Twin

EACH = "select(Author).where(Author.id.in_(keys)).execution_options(populate_existing=True)"


def refresh_each(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        session.refresh(author)  # <- refreshed


def refresh_names(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        session.refresh(author, ["name"])  # <- refreshed


def refresh_to_lock(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        session.refresh(author, with_for_update=True)  # <- refreshed


def refresh_after_a_flush_of_nothing(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        session.flush()
        session.refresh(author)  # <- refreshed


def refreshed(how: Any, count: int) -> Due:
    return Due(
        id="refresh-in-loop",
        site=marked(how, "<- refreshed"),
        opened=marked(tell, "<- opened"),
        remedy=f"{EACH}  # before the loop",
        entity="Author",
        count=count,
        evidence={"loop": str(marked(how, "<- refreshed"))},
    )


@pytest.mark.parametrize(
    "how",
    [
        refresh_each,
        refresh_names,
        refresh_to_lock,
        refresh_after_a_flush_of_nothing,
    ],
)
def test_a_refresh_of_each_object(twin: Twin, how: Callable[[Session], None]) -> None:
    async def story() -> None:
        await keep(twin, *authors(4))
        assert_found(await tell(twin, how))
        assert_found(await tell(twin, how, refreshes_from_one_site=4), refreshed(how, 4))
        await keep(twin, Author(name="another"))
        assert_found(await tell(twin, how), refreshed(how, 5))

    twin.run(story)


def test_what_it_reports_and_its_remedy(twin: Twin) -> None:
    found: list[Any] = []

    def select_them_again(session: Session) -> None:
        (finding,) = found
        known = session.scalars(select(Author)).all()
        session.execute(update(Author).values(name=Author.name + "!"), execution_options=NOTHING)
        keys = [author.id for author in known]
        session.scalars(pasted(to_write(finding).partition("  #")[0], keys=keys)).all()
        assert all(author.name.endswith("!") for author in known)
        session.rollback()

    async def story() -> None:
        await keep(twin, *authors(7))
        (finding,) = (await tell(twin, refresh_each)).findings
        assert finding.message == "at least 5 Author objects were refreshed, one SELECT each"
        assert finding.total is not None
        assert finding.total.count == 7
        found.append(finding)
        assert_found(await tell(twin, select_them_again, refreshes_from_one_site=2))

    twin.run(story)


NOTHING = {"synchronize_session": False}


def refresh_named(session: Session, query: Any, names: list[str] | None) -> None:
    for one in session.scalars(query).unique().all():  # <- selected
        session.refresh(one, names)  # <- named


NAMED_AT, SELECTED_AT = marked(refresh_named, "<- named"), marked(refresh_named, "<- selected")
IN_KEYS = "select(Author).where(Author.id.in_(keys))"
AGAIN = ".execution_options(populate_existing=True)"

# What is selected, what refresh() names, and what to select in its place.
NAMED: dict[str, tuple[Any, list[str] | None, str]] = {
    "a collection": (
        select(Author),
        ["books"],
        "select(Author).options(selectinload(Author.books))",
    ),
    "a deferred column": (
        select(Author),
        ["biography"],
        "select(Author).options(undefer(Author.biography))",
    ),
    "both": (
        select(Author),
        ["books", "biography"],
        "select(Author).options(undefer(Author.biography), selectinload(Author.books))",
    ),
    "its object": (select(Book), ["author"], "select(Book).options(joinedload(Book.author))"),
}


def loaded(one: Any) -> set[str]:
    return set(inspect(one).dict)


@pytest.mark.parametrize("what", NAMED)
def test_a_refresh_of_what_the_select_of_the_objects_left_out(twin: Twin, what: str) -> None:
    query, names, remedy = NAMED[what]

    def each(session: Session) -> None:
        refresh_named(session, query, names)

    def once(session: Session) -> None:
        for one in session.scalars(pasted(remedy)).unique().all():
            assert set(names or ()) <= loaded(one)

    async def story() -> None:
        await keep(twin, *authors(6, books_each=1))
        (finding,) = (await tell(twin, each)).findings
        assert finding.id == "refresh-in-loop"
        assert (finding.site, finding.remedy) == (NAMED_AT, f"{remedy} at {SELECTED_AT}")
        assert finding.evidence["loaded_at"] == str(SELECTED_AT)
        entity, options = remedy.removeprefix("select(").split(")", 1)
        again = f"select({entity}).where({entity}.id.in_(keys)){options}{AGAIN}"
        (other,) = finding.evidence["alternatives"]
        assert other.startswith(f"{again}  # if {entity}.")
        assert_found(await tell(twin, once, refreshes_from_one_site=2))

    twin.run(story)


# What an option of their SELECT had loaded is there after the remedy as well.
READ_AGAIN: dict[str, tuple[Any, list[str] | None, str, set[str]]] = {
    "a collection that came with the objects": (
        select(Author).options(selectinload(Author.books)),
        ["books"],
        f"{IN_KEYS}.options(selectinload(Author.books)){AGAIN}",
        {"books"},
    ),
    "a column and a collection": (
        select(Author),
        ["name", "books"],
        f"{IN_KEYS}.options(selectinload(Author.books)){AGAIN}",
        {"books", "name"},
    ),
    "objects that came with a collection": (
        select(Author).options(selectinload(Author.books), undefer(Author.biography)),
        None,
        f"{IN_KEYS}.options(selectinload(Author.books), undefer(Author.biography)){AGAIN}",
        {"biography", "books", "name"},
    ),
    "a column of objects that came with a collection": (
        select(Author).options(joinedload(Author.books)),
        ["name"],
        f"{IN_KEYS}.options(selectinload(Author.books)){AGAIN}",
        {"books", "name"},
    ),
    "objects of which a part was selected": (
        select(Author).options(load_only(Author.id)),
        None,
        f"{IN_KEYS}{AGAIN}",
        {"name"},
    ),
    "what is no attribute of a row": (
        select(Author),
        ["letters"],
        f"{IN_KEYS}{AGAIN}",
        {"name"},
    ),
}


@pytest.mark.parametrize("what", READ_AGAIN)
def test_a_refresh_that_reads_the_objects_again(twin: Twin, what: str) -> None:
    query, names, remedy, there = READ_AGAIN[what]

    def each(session: Session) -> None:
        refresh_named(session, query, names)

    def once(session: Session) -> None:
        known = session.scalars(query).unique().all()
        session.execute(update(Author).values(name=Author.name + "!"), execution_options=NOTHING)
        session.scalars(pasted(remedy, keys=[one.id for one in known])).all()
        for one in known:
            assert there <= loaded(one)
            assert one.name.endswith("!")
        session.rollback()

    async def story() -> None:
        await keep(twin, *authors(6, books_each=1))
        (finding,) = (await tell(twin, each)).findings
        assert (finding.id, finding.site) == ("refresh-in-loop", NAMED_AT)
        assert finding.remedy == f"{remedy}  # before the loop"
        assert "alternatives" not in finding.evidence
        assert_found(await tell(twin, once, refreshes_from_one_site=2))

    twin.run(story)


def refresh_books_after_a_write(session: Session) -> None:
    writers = session.scalars(select(Author)).all()
    session.add(Book(title="late", author_id=writers[0].id))
    session.flush()
    assert session.scalar(select(Book.title).where(Book.title == "late"))
    for author in writers:
        session.refresh(author, ["books"])
    session.rollback()


def refresh_books_of_new_objects(session: Session) -> None:
    writers = [Author(name=f"new {number}") for number in range(6)]
    session.add_all(writers)
    session.flush()
    assert session.scalar(select(Author.name).where(Author.name == "new 1"))
    for author in writers:
        session.refresh(author, ["books"])
    session.rollback()


def refresh_books_after_they_expired(session: Session) -> None:
    writers = session.scalars(select(Author)).all()
    session.expire_all()
    for author in writers:
        session.refresh(author, ["books"])


@pytest.mark.parametrize(
    "how",
    [
        refresh_books_after_a_write,
        refresh_books_of_new_objects,
        refresh_books_after_they_expired,
    ],
)
def test_a_select_before_brings_no_collection_that_is_refreshed_later(
    twin: Twin, how: Callable[[Session], None]
) -> None:
    async def story() -> None:
        await keep(twin, *authors(6))
        found = [one for one in (await tell(twin, how)).findings if one.id == "refresh-in-loop"]
        assert [one.remedy for one in found] == [
            f"{IN_KEYS}.options(selectinload(Author.books)){AGAIN}  # before the loop"
        ]

    twin.run(story)


def test_a_key_of_two_columns(twin: Twin) -> None:
    def each(session: Session) -> None:
        for exam in session.scalars(select(Exam)).all():
            session.refresh(exam)

    async def story() -> None:
        async with tables(twin):
            async with twin.session() as session:
                session.add(Student(exams=[Exam(course=Course()) for _ in range(3)]))
                await session.commit()
            (finding,) = (await tell(twin, each, refreshes_from_one_site=3)).findings
            assert finding.remedy == (
                "select(Exam).execution_options(populate_existing=True)  # before the loop"
            )

    twin.run(story)


# Near-misses: each refreshes three times, where two would be a loop.


def refresh_one(session: Session) -> None:
    author = session.get_one(Author, 1)
    for _ in range(3):
        session.refresh(author)


def refresh_each_after_a_change(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        session.execute(update(Author).where(Author.id == author.id).values(name=f"{author.id}"))
        session.refresh(author)
    session.commit()


def refresh_each_in_a_transaction_of_its_own(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        session.rollback()
        session.refresh(author)


def _again(session: Session, author: Author) -> None:
    session.refresh(author)


def refresh_one_after_the_other(session: Session) -> None:
    first, second, third = session.scalars(select(Author)).all()
    _again(session, first)
    _again(session, second)
    _again(session, third)


@pytest.mark.parametrize(
    "how",
    [
        refresh_one,
        refresh_each_after_a_change,
        refresh_each_in_a_transaction_of_its_own,
        refresh_one_after_the_other,
    ],
)
def test_what_is_no_refresh_in_a_loop(twin: Twin, how: Callable[[Session], None]) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        assert_found(await tell(twin, how, refreshes_from_one_site=2))

    twin.run(story)

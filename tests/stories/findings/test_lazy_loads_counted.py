"""Stories of lazy loads that are one too many, however they come about, and of one too few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.orm import (
    aliased,
    selectinload,
    with_polymorphic,
)

from session_tracer import Finding
from session_tracer.testing import capture
from tests.good_code.silence import only_async
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.mappings import (
    Company,
    Course,
    Employee,
    Manager,
    Report,
    Student,
    tables,
)
from tests.stories.findings.reading import OPENED, READING, SELECTED, line_of, read_each, tell
from tests.stories.findings.remedies import pasted, to_write
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from tests.twins import Twin


def books_of(author: Author) -> int:
    return len(author.books)  # <- books


READ = marked(books_of, "<- books")


def test_the_books_of_five_authors(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(5, books_each=2))
        captured = await read_each(twin, select(Author), books_of)
        (summary,) = captured.sessions
        assert captured.findings == [
            Finding(
                id="n-plus-one",
                severity="warning",
                message="Author.books was lazily loaded for at least 5 Author objects, "
                "one SELECT each",
                remedy=f"select(Author).options(selectinload(Author.books)) at {SELECTED}",
                site=READ,
                session_id=summary.id,
                session_name="default",
                session_site=OPENED,
                entity="Author",
                attribute="books",
                count=5,
                evidence={
                    "loaded_at": str(SELECTED),
                    "loop": str(READING),
                    "statement": captured.findings[0].evidence["statement"],
                },
            )
        ]
        assert_found(await read_each(twin, pasted(to_write(captured.findings[0])), books_of))

    twin.run(story)


def test_the_books_of_four_authors(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(4, books_each=2))
        captured = await read_each(twin, select(Author), books_of)
        assert_found(captured)
        assert [summary.lazy_loads for summary in captured.sessions] == [{"relationship": 4}]

    twin.run(story)


def test_a_finding_is_reported_once_and_for_each_line(twin: Twin) -> None:
    def books_elsewhere(author: Author) -> int:
        return len(author.books)  # <- elsewhere

    async def story() -> None:
        await keep(twin, *authors(30, books_each=1))
        halves = select(Author).where(Author.id <= 15), select(Author).where(Author.id > 15)
        with capture(twin.factory) as captured:
            async with twin.session() as session:  # <- opened
                first, second = [(await session.scalars(half)).all() for half in halves]
                await session.run_sync(lambda _: [books_of(author) for author in first])
                await session.run_sync(lambda _: [books_elsewhere(author) for author in second])
        lines = READ, marked(books_elsewhere, "<- elsewhere")
        assert [(finding.site, finding.count) for finding in captured.findings] == [
            (line, 5) for line in lines
        ]

    twin.run(story)


def attending() -> list[Any]:
    return [Student(courses=[Course()]) for _ in range(5)]


@only_async
def test_what_is_awaited_by_its_name(twin: Twin) -> None:
    async def story() -> None:
        async with tables(twin):
            await keep(twin, *attending())
            with capture(twin.factory) as captured:
                async with twin.session() as session:  # <- opened
                    students = (await session.scalars(select(Student))).all()  # <- selected
                    for student in students:
                        assert await student.awaitable_attrs.courses  # <- awaited
            write = "select(Student).options(selectinload(Student.courses))"
            due = Due(
                id="n-plus-one",
                site=marked(story, "<- awaited"),
                opened=marked(story, "<- opened"),
                remedy=f"{write} at {marked(story, '<- selected')}",
                entity="Student",
                attribute="courses",
                count=5,
            )
            assert_found(captured, due)

    twin.run(story)


def delete_each(session: Session, query: Select[Any]) -> None:
    for author in session.scalars(query):  # <- selected
        session.delete(author)  # <- deleted
    session.commit()


def test_a_cascade_that_reads_what_it_deletes(twin: Twin) -> None:
    async def told_of(query: Select[Any]) -> Any:
        with capture(twin.factory) as captured:
            async with twin.session() as session:  # <- opened
                await session.run_sync(lambda plain: delete_each(plain, query))
        return captured

    async def story() -> None:
        await keep(twin, *authors(5, books_each=1))
        captured = await told_of(select(Author))
        due = Due(
            id="n-plus-one",
            site=marked(delete_each, "<- deleted"),
            opened=marked(told_of, "<- opened"),
            remedy="select(Author).options(selectinload(Author.books)) at "
            f"{marked(delete_each, '<- selected')}",
            entity="Author",
            attribute="books",
            count=5,
        )
        assert_found(captured, due)
        select_ = captured.findings[0].remedy.partition(" at ")[0]
        await keep(twin, *authors(5, books_each=1))
        assert_found(await told_of(pasted(select_)))

    twin.run(story)


def expire_each(session: Session) -> None:
    kept = session.scalars(select(Author)).all()  # <- selected
    for author in kept:
        session.expire(author, ["books"])  # <- expired
    for author in kept:
        books_of(author)


def test_what_was_expired_by_hand(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(5, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:  # <- opened
                await session.run_sync(expire_each)
        expired = marked(expire_each, "<- expired")
        due = Due(
            id="n-plus-one",
            site=READ,
            opened=marked(story, "<- opened"),
            remedy="select(Author).options(selectinload(Author.books)) after expire() at "
            f"{expired}",
            entity="Author",
            attribute="books",
            count=5,
            evidence={
                "loaded_at": str(marked(expire_each, "<- selected")),
                "expired_at": str(expired),
            },
        )
        assert_found(captured, due)

    twin.run(story)


ALIAS = aliased(Author)
POLYMORPHIC = with_polymorphic(Employee, [Manager])

OF_MANAGERS = "selectin_polymorphic(Employee, [Manager])"

# What is selected by an alias of its class is named by the class.
ALIASED: dict[str, tuple[Callable[[], list[Any]], Any, Callable[[Any], object], str]] = {
    "an alias": (
        lambda: authors(5),
        select(ALIAS),
        lambda author: author.books,
        "select(Author).options(selectinload(Author.books))",
    ),
    "a class with its subclasses": (
        lambda: [Manager(reports=[Report()]) for _ in range(5)],
        select(POLYMORPHIC),
        lambda manager: manager.reports,
        f"select(Employee).options({OF_MANAGERS}, selectinload(Manager.reports))",
    ),
}


@pytest.mark.parametrize("what", ALIASED)
def test_what_is_selected_by(twin: Twin, what: str) -> None:
    kept, query, read, write = ALIASED[what]

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *kept())
            captured = await read_each(twin, query, read)
            (finding,) = captured.findings
            assert (finding.site, finding.remedy) == (line_of(read), f"{write} at {SELECTED}")
            assert_found(await read_each(twin, pasted(write), read))

    twin.run(story)


# Objects that came one by one: an option at the SELECT of one of them saves no statement.


def _one_by_one(session: Session) -> None:
    for key in range(1, 11):
        books_of(session.scalars(select(Author).where(Author.id == key)).one())


def _by_their_keys(session: Session) -> None:
    for key in range(1, 9):
        author = session.get(Author, key)
        assert author is not None
        assert author.biography == ""  # deferred
        books_of(author)


def _in_pages_of_two(session: Session) -> None:
    for first in range(1, 11, 2):
        for author in session.scalars(select(Author).where(Author.id.in_((first, first + 1)))):
            books_of(author)


def _at_once(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        assert author.biography == ""  # deferred
        books_of(author)


@pytest.mark.parametrize(
    ("work", "attributes"),
    [
        (_one_by_one, []),
        (_by_their_keys, []),
        (_in_pages_of_two, ["books"]),
        (_at_once, ["biography", "books"]),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("_"),
)
def test_only_objects_that_came_together_count(
    twin: Twin, work: Callable[[Session], None], attributes: list[str]
) -> None:
    async def story() -> None:
        await keep(twin, *authors(10, books_each=1))
        captured = await tell(twin, work)
        assert [one.attribute for one in captured.findings if one.id == "n-plus-one"] == attributes

    twin.run(story)


# Objects that the session itself has added: no SELECT has brought them.


def _make(session: Session, name: str) -> Author:
    author = Author(name=name)
    session.add(author)
    session.scalars(select(Book).where(Book.title == name)).first()  # flushes the author
    return author


def _added(session: Session) -> None:
    for author in [_make(session, f"new {number}") for number in range(10)]:
        books_of(author)


def _added_and_selected_again_one_by_one(session: Session) -> None:
    kept = [_make(session, f"new {number}") for number in range(6)]
    for author in kept:
        session.expire_all()
        books_of(session.scalars(select(Author).where(Author.name == author.name)).one())


def _mostly_added(session: Session) -> None:
    selected = session.scalars(select(Author).limit(4)).all()
    for author in [*selected, *(_make(session, f"new {number}") for number in range(6))]:
        books_of(author)


def _half_of_them_added(session: Session) -> None:
    selected = session.scalars(select(Author).limit(6)).all()
    for author in [*(_make(session, f"new {number}") for number in range(6)), *selected]:
        books_of(author)


def _populated_by_one_select(session: Session) -> None:
    kept = [_make(session, f"new {number}") for number in range(6)]
    session.scalars(select(Author).execution_options(populate_existing=True)).all()
    for author in kept:
        books_of(author)


@pytest.mark.parametrize(
    ("work", "attributes"),
    [
        (_added, []),
        (_added_and_selected_again_one_by_one, []),
        (_mostly_added, []),
        (_half_of_them_added, ["books"]),
        (_populated_by_one_select, ["books"]),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("_"),
)
def test_objects_that_were_added_do_not_count(
    twin: Twin, work: Callable[[Session], None], attributes: list[str]
) -> None:
    async def story() -> None:
        await keep(twin, *authors(10, books_each=1))
        captured = await tell(twin, work)
        found = [one for one in captured.findings if one.id == "n-plus-one"]
        assert [one.attribute for one in found] == attributes
        assert all("_make" not in one.evidence.get("loaded_at", "") for one in found)

    twin.run(story)


def _company(session: Session) -> Company:
    """A company that was added, and whose staff was not."""
    company = Company()
    session.add(company)
    session.flush()
    session.execute(insert(Employee), [{"company_id": company.id} for _ in range(6)])
    return company


def read_badges(session: Session) -> None:
    for employee in _company(session).staff:
        len(employee.badges)


def read_badges_of_the_selected(session: Session) -> None:
    company = _company(session)
    own = select(Company).where(Company.id == company.id)
    badges = selectinload(Company.staff).selectinload(Employee.badges)
    session.scalars(own.options(badges)).one()
    assert len(company.staff) == 6
    for employee in company.staff:
        len(employee.badges)


def read_badges_of_the_committed(session: Session) -> None:
    company = _company(session)
    session.commit()
    session.refresh(company)
    for employee in company.staff:
        len(employee.badges)


def test_what_a_lazy_load_has_brought_for_an_added_object_counts(twin: Twin) -> None:
    async def story() -> None:
        async with tables(twin):
            for work in (read_badges, read_badges_of_the_committed):
                captured = await tell(twin, work)
                (found,) = [one for one in captured.findings if one.id == "n-plus-one"]
                assert found.remedy == (
                    "select(Company).options(selectinload(Company.staff)"
                    ".selectinload(Employee.badges)) before Company.staff is read"
                )
            captured = await tell(twin, read_badges_of_the_selected)
            assert [one for one in captured.findings if one.id == "n-plus-one"] == []

    twin.run(story)

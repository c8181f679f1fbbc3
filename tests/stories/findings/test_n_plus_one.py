"""Stories of attributes loaded for one object after the other.

Each remedy is run: the story is told again with what the finding says to write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from session_tracer.testing import capture
from tests.library import Author, Book, Essay, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.mappings import (
    Answer,
    Company,
    Course,
    Employee,
    Engineer,
    Exam,
    Manager,
    Office,
    Part,
    Plant,
    Report,
    Student,
    Trip,
    Truck,
    Vehicle,
    tables,
)
from tests.stories.findings.reading import OPENED, SELECTED, line_of, read_each
from tests.stories.findings.remedies import pasted, to_write
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from session_tracer import CallSite
    from tests.twins import Twin


def all_of_them(query: Select[Any]) -> Select[Any]:
    return query


def locked(query: Select[Any]) -> Select[Any]:
    return query.with_for_update()


def whole(query: Select[Any]) -> Select[Any]:
    return query.where(Part.whole_id.is_(None))


def innermost(query: Select[Any]) -> Select[Any]:
    return query.order_by(Part.id.desc()).limit(1)


@dataclass
class OneByOne:
    """What is read of each object that is selected, three of which are kept; what to write."""

    entity: str
    attribute: str | None
    kept: Callable[[], list[Any]]
    root: type[Any]
    read: Callable[[Any], object]
    write: str
    narrow: Callable[[Select[Any]], Select[Any]] = all_of_them
    site: CallSite | None = None
    loaded: CallSite | None = SELECTED
    # What SQLAlchemy loads as well, for what is read.
    also: tuple[tuple[str, str | None, str], ...] = ()

    def due(self) -> list[Due]:
        all_ = (*self.also, (self.entity, self.attribute, self.write))
        return [
            Due(
                id="n-plus-one",
                site=self.site or line_of(self.read),
                opened=OPENED,
                remedy=f"{write} at {SELECTED}",
                entity=entity,
                attribute=attribute,
                count=3,
                evidence={"loaded_at": str(self.loaded or line_of(self.read))},
            )
            for entity, attribute, write in all_
        ]


def managers() -> list[Any]:
    return [Manager(office=Office(plants=[Plant()]), reports=[Report()]) for _ in range(3)]


def exams(count: int) -> list[Exam]:
    return [Exam(course=Course(), answers=[Answer()]) for _ in range(count)]


def nested(deep: int, wide: int = 1) -> Part:
    return Part(parts=[nested(deep - 1) for _ in range(wide)] if deep else [])


def walk_down(part: Part) -> None:
    for one in part.parts:  # <- down
        walk_down(one)


def walk_up(part: Part | None) -> None:
    while part is not None:
        part = part.whole  # <- up


OF_MANAGERS = "selectin_polymorphic(Employee, [Manager])"
OFFICE = "joinedload(Manager.office)"
STAFF = "selectinload(Company.staff)"

ONE_BY_ONE = {
    "a collection": OneByOne(
        "Author",
        "books",
        lambda: authors(3, books_each=1),
        Author,
        lambda author: author.books,
        "select(Author).options(selectinload(Author.books))",
    ),
    "a many-to-one": OneByOne(
        "Book",
        "author",
        lambda: authors(3, books_each=1),
        Book,
        lambda book: book.author,
        "select(Book).options(joinedload(Book.author))",
    ),
    # PostgreSQL refuses to lock the rows of an outer join.
    "a many-to-one of rows that are locked": OneByOne(
        "Book",
        "author",
        lambda: authors(3, books_each=1),
        Book,
        lambda book: book.author,
        "select(Book).options(selectinload(Book.author))",
        narrow=locked,
    ),
    "a subclass's many-to-one of rows that are locked": OneByOne(
        "Manager",
        "office",
        managers,
        Employee,
        lambda manager: manager.office,
        f"select(Employee).options({OF_MANAGERS}, selectinload(Manager.office))",
        narrow=locked,
        also=(("Manager", None, f"select(Employee).options({OF_MANAGERS})"),),
    ),
    "a many-to-many": OneByOne(
        "Student",
        "courses",
        lambda: [Student(courses=[Course(), Course()]) for _ in range(3)],
        Student,
        lambda student: student.courses,
        "select(Student).options(selectinload(Student.courses))",
    ),
    "a relationship to itself": OneByOne(
        "Part",
        "parts",
        lambda: [nested(1) for _ in range(3)],
        Part,
        lambda part: part.parts,
        "select(Part).options(selectinload(Part.parts))",
        narrow=whole,
    ),
    "a tree": OneByOne(
        "Part",
        "parts",
        lambda: [nested(1, wide=2)],
        Part,
        walk_down,
        "select(Part).options(selectinload(Part.parts, recursion_depth=-1))",
        narrow=whole,
        site=marked(walk_down, "<- down"),
        loaded=marked(walk_down, "<- down"),
    ),
    "a tree from within": OneByOne(
        "Part",
        "whole",
        lambda: [nested(3)],
        Part,
        walk_up,
        "select(Part).options(selectinload(Part.whole, recursion_depth=-1))",
        narrow=innermost,
        site=marked(walk_up, "<- up"),
        loaded=marked(walk_up, "<- up"),
    ),
    "the relationship behind an association proxy": OneByOne(
        "Student",
        "exams",
        lambda: [Student(exams=exams(1)) for _ in range(3)],
        Student,
        lambda student: len(student.examined),
        "select(Student).options(selectinload(Student.exams))",
    ),
    "what a relationship brought": OneByOne(
        "Exam",
        "answers",
        lambda: [Student(exams=exams(3))],
        Student,
        lambda student: [exam.answers for exam in student.exams],
        "select(Student).options(selectinload(Student.exams).selectinload(Exam.answers))",
        loaded=None,
    ),
    "objects with a key of two columns": OneByOne(
        "Exam",
        "answers",
        lambda: [Student(exams=exams(3))],
        Exam,
        lambda exam: exam.answers,
        "select(Exam).options(selectinload(Exam.answers))",
    ),
    "a subclass's collection": OneByOne(
        "Manager",
        "reports",
        managers,
        Employee,
        lambda manager: manager.reports,
        f"select(Employee).options({OF_MANAGERS}, selectinload(Manager.reports))",
    ),
    "a subclass's many-to-one": OneByOne(
        "Manager",
        "office",
        managers,
        Employee,
        lambda manager: manager.office,
        f"select(Employee).options({OF_MANAGERS}, joinedload(Manager.office))",
        also=(("Manager", None, f"select(Employee).options({OF_MANAGERS})"),),
    ),
    "a subclass's columns": OneByOne(
        "Manager",
        None,
        managers,
        Employee,
        lambda manager: manager.budget,
        f"select(Employee).options({OF_MANAGERS})",
    ),
    "a subclass's deferred column": OneByOne(
        "Manager",
        "secret",
        managers,
        Employee,
        lambda manager: manager.secret,
        f"select(Employee).options({OF_MANAGERS}, undefer(Manager.secret))",
    ),
    "a collection of several subclasses": OneByOne(
        "Employee",
        "badges",
        lambda: [Manager(), Engineer(), Employee()],
        Employee,
        lambda employee: employee.badges,
        "select(Employee).options(selectinload(Employee.badges))",
    ),
    "a deferred column of several subclasses": OneByOne(
        "Employee",
        "diary",
        lambda: [Manager(), Engineer(), Employee()],
        Employee,
        lambda employee: employee.diary,
        "select(Employee).options(undefer(Employee.diary))",
    ),
    "a collection of a subclass with no table": OneByOne(
        "Truck",
        "trips",
        lambda: [Truck(trips=[Trip()]) for _ in range(3)],
        Vehicle,
        lambda truck: truck.trips,
        "select(Vehicle).options(selectin_polymorphic(Vehicle, [Truck]), "
        "selectinload(Truck.trips))",
    ),
    "columns of a subclass with no table": OneByOne(
        "Truck",
        None,
        lambda: [Truck(load=1, axles=2) for _ in range(3)],
        Vehicle,
        lambda truck: truck.load,
        "select(Vehicle).options(selectin_polymorphic(Vehicle, [Truck]))",
    ),
    "a deferred column": OneByOne(
        "Author",
        "biography",
        lambda: authors(3),
        Author,
        lambda author: author.biography,
        "select(Author).options(undefer(Author.biography))",
    ),
    "a group of deferred columns": OneByOne(
        "Essay",
        None,
        lambda: [Essay(title="on reading") for _ in range(3)],
        Essay,
        lambda essay: essay.text,
        'select(Essay).options(undefer_group("body"))',
    ),
    "a deferred column_property": OneByOne(
        "Course",
        "size",
        lambda: [Course() for _ in range(3)],
        Course,
        lambda course: course.size,
        "select(Course).options(undefer(Course.size))",
    ),
    "three relationships deep": OneByOne(
        "Office",
        "plants",
        lambda: [Company(staff=managers())],
        Company,
        lambda company: [manager.office.plants for manager in company.staff],
        f"select(Company).options({STAFF}.options("
        f"{OF_MANAGERS}, {OFFICE}.selectinload(Office.plants)))",
        loaded=None,
        also=(
            (
                "Manager",
                None,
                f"select(Company).options({STAFF}.options({OF_MANAGERS}))",
            ),
            (
                "Manager",
                "office",
                f"select(Company).options({STAFF}.options({OF_MANAGERS}, {OFFICE}))",
            ),
        ),
    ),
    "the items of an association proxy": OneByOne(
        "Exam",
        "course",
        lambda: [Student(exams=exams(3))],
        Student,
        lambda student: list(student.examined),
        "select(Student).options(selectinload(Student.exams).joinedload(Exam.course))",
        loaded=None,
    ),
}


@pytest.mark.parametrize("what", ONE_BY_ONE)
def test_what_is_loaded_one_by_one_and_what_to_write(twin: Twin, what: str) -> None:
    case = ONE_BY_ONE[what]

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *case.kept())
            query = case.narrow(select(case.root))
            captured = await read_each(twin, query, case.read, lazy_loads_from_one_site=4)
            assert_found(captured)
            at_three = {"lazy_loads_from_one_site": 3}
            captured = await read_each(twin, query, case.read, **at_three)
            assert_found(captured, *case.due())
            written = case.narrow(pasted(to_write(captured.findings[-1])))
            assert_found(await read_each(twin, written, case.read, **at_three))

    twin.run(story)


# By a SELECT that leaves out what is read: what it is of, what is read, what to replace by what.
LEFT_OUT: dict[str, tuple[Callable[[], list[Any]], Callable[[Any], object], str, str]] = {
    "select(Author).options(lazyload(Author.books))": (
        lambda: authors(3, books_each=1),
        lambda author: author.books,
        "lazyload(Author.books)",
        "selectinload(Author.books)",
    ),
    "select(Book).options(Load(Book).lazyload(Book.author))": (
        lambda: authors(3, books_each=1),
        lambda book: book.author,
        "lazyload(Book.author)",
        "joinedload(Book.author)",
    ),
    "select(Book).options(lazyload(Book.author)).with_for_update()": (
        lambda: authors(3, books_each=1),
        lambda book: book.author,
        "lazyload(Book.author)",
        "selectinload(Book.author)",
    ),
    "select(Student).options(selectinload(Student.exams).lazyload(Exam.answers))": (
        lambda: [Student(exams=exams(3))],
        lambda student: [exam.answers for exam in student.exams],
        "lazyload(Exam.answers)",
        "selectinload(Exam.answers)",
    ),
    "select(Student).options(lazyload(Student.exams))": (
        lambda: [Student(exams=exams(3))],
        lambda student: [exam.answers for exam in student.exams],
        "lazyload(Student.exams)",
        "selectinload(Student.exams).selectinload(Exam.answers)",
    ),
    "select(Author).options(defer(Author.name))": (
        lambda: authors(3),
        lambda author: author.name,
        "defer(Author.name)",
        "undefer(Author.name)",
    ),
}


@pytest.mark.parametrize("written", LEFT_OUT)
def test_an_option_that_leaves_it_out_is_to_be_replaced(twin: Twin, written: str) -> None:
    """SQLAlchemy refuses the other option beside it."""
    kept, read, option, better = LEFT_OUT[written]

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *kept())
            captured = await read_each(twin, pasted(written), read, lazy_loads_from_one_site=3)
            (finding,) = captured.findings
            assert finding.remedy == f"replace {option} by {better} in the SELECT at {SELECTED}"
            cured = pasted(written.replace(option, better))
            assert_found(await read_each(twin, cured, read, lazy_loads_from_one_site=3))
            (few,) = finding.evidence["alternatives"]
            code, _, when = few.partition(" before ")
            assert when == "the loop, for the few objects that need it"
            needed = pasted(code.replace("(...)", "()"))
            with capture(twin.factory, lazy_loads_from_one_site=3) as captured:
                async with twin.session() as session:
                    await session.run_sync(lambda plain: read_needed(plain, needed))
            assert_found(captured)

    def read_needed(session: Session, needed: Select[Any]) -> None:
        every = session.scalars(pasted(written)).all()
        assert [*session.scalars(needed).unique()] == every
        for one in every:
            read(one)

    twin.run(story)


# Other options that the one which is advised can stand beside.
BESIDE: dict[str, tuple[Callable[[], list[Any]], Callable[[Any], object], str, str]] = {
    'lazyload("*")': (
        lambda: authors(3, books_each=1),
        lambda author: author.books,
        "Author",
        "selectinload(Author.books)",
    ),
    "lazyload(Student.courses)": (
        lambda: [Student(exams=exams(1)) for _ in range(3)],
        lambda student: student.exams,
        "Student",
        "selectinload(Student.exams)",
    ),
    "load_only(Author.id)": (
        lambda: authors(3),
        lambda author: author.name,
        "Author",
        "undefer(Author.name)",
    ),
}


@pytest.mark.parametrize("other", BESIDE)
def test_an_option_for_others_can_stay(twin: Twin, other: str) -> None:
    kept, read, root, option = BESIDE[other]

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *kept())
            written = pasted(f"select({root}).options({other})")
            (finding,) = (await read_each(twin, written, read, lazy_loads_from_one_site=3)).findings
            assert finding.remedy == f"select({root}).options({option}) at {SELECTED}"
            assert "alternatives" not in finding.evidence
            cured = pasted(f"select({root}).options({other}, {option})")
            assert_found(await read_each(twin, cured, read, lazy_loads_from_one_site=3))

    twin.run(story)


def all_of(session: Session, model: type[Any]) -> list[Any]:
    return list(session.scalars(select(model)))


def read_all(session: Session, all_: Callable[[Session], list[Any]]) -> None:
    for author in all_(session):
        assert author.books


def select_authors(session: Session) -> list[Author]:
    return list(session.scalars(select(Author)))  # <- for authors


def test_the_line_of_a_function_that_selects_any_class_is_not_to_be_changed(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        remedies = []
        for all_ in (lambda session: all_of(session, Author), select_authors):
            with capture(twin.factory, lazy_loads_from_one_site=3) as captured:
                async with twin.session() as session:
                    await session.run_sync(lambda plain, all_=all_: read_all(plain, all_))
            remedies += [finding.remedy for finding in captured.findings]
        write = "select(Author).options(selectinload(Author.books))"
        assert remedies == [write, f"{write} at {marked(select_authors, '<- for authors')}"]

    twin.run(story)

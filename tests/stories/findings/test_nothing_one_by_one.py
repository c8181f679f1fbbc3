"""Stories of objects read one by one whose attributes are not lazily loaded one by one."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    contains_eager,
    immediateload,
    joinedload,
    object_session,
    raiseload,
    selectin_polymorphic,
    selectinload,
    subqueryload,
    undefer,
    undefer_group,
    with_polymorphic,
)

from session_tracer.testing import capture
from tests.library import Author, Book, Essay, Letter, authors, keep
from tests.stories.findings.due import assert_found
from tests.stories.findings.mappings import (
    Bicycle,
    Company,
    Course,
    Employee,
    Exam,
    Manager,
    Part,
    Report,
    Shelf,
    Student,
    Thing,
    Truck,
    Vehicle,
    Visit,
    tables,
)
from tests.stories.findings.reading import read_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from tests.twins import Twin

POLYMORPHIC = with_polymorphic(Employee, [Manager])


def books_of(author: Author) -> int:
    return len(author.books)


def dynamic_letters(author: Author) -> list[Letter]:
    return author.letters.all()


def write_only_visits(company: Company) -> object:
    session = object_session(company)
    assert session is not None
    return session.scalars(company.visits.select()).all()


def refused(author: Author) -> None:
    with pytest.raises(InvalidRequestError, match="raise"):
        books_of(author)


def shelves() -> list[Any]:
    return [Shelf(joined=[], things=[Thing(), Thing()]) for _ in range(3)]


def companies() -> list[Any]:
    return [Company(staff=[Manager(reports=[Report()])], visits=[Visit()]) for _ in range(3)]


def three_authors() -> list[Any]:
    return authors(3, books_each=2)


def same_books_again(author: Author) -> int:
    return sum(books_of(author) for _ in range(5))


# Each is read of three objects or more, where two lazy loads would be too many.
SILENT: dict[str, tuple[Callable[[], list[Any]], Any, Callable[[Any], object]]] = {
    **{
        f"a collection by {eagerly.__name__}()": (
            three_authors,
            select(Author).options(eagerly(Author.books)),
            books_of,
        )
        for eagerly in (selectinload, joinedload, subqueryload, immediateload)
    },
    **{
        f"a many-to-one by {eagerly.__name__}()": (
            three_authors,
            select(Book).options(eagerly(Book.author)),
            lambda book: book.author,
        )
        for eagerly in (selectinload, joinedload, subqueryload, immediateload)
    },
    **{
        f"a relationship with lazy={lazy!r}": (
            shelves,
            select(Shelf),
            attrgetter(lazy),
        )
        for lazy in ("joined", "selectin", "subquery", "immediate")
    },
    "a collection that the query joins": (
        three_authors,
        select(Author).join(Author.books).options(contains_eager(Author.books)),
        books_of,
    ),
    "a dynamic relationship": (three_authors, select(Author), dynamic_letters),
    "a write-only relationship": (companies, select(Company), write_only_visits),
    "a load that raiseload refuses": (
        three_authors,
        select(Author).options(raiseload(Author.books)),
        refused,
    ),
    "a many-to-one whose object is there": (
        shelves,
        select(Shelf).options(selectinload(Shelf.things)),
        lambda shelf: [thing.shelf for thing in shelf.things],
    ),
    "a many-to-one to nothing": (
        lambda: [Thing() for _ in range(3)],
        select(Thing),
        lambda thing: thing.shelf,
    ),
    "a single object's collection again and again": (
        lambda: authors(1, books_each=2),
        select(Author),
        same_books_again,
    ),
    "a tree that is loaded to its leaves": (
        lambda: [Part(parts=[Part(parts=[Part(), Part()]), Part()])],
        select(Part)
        .where(Part.whole_id.is_(None))
        .options(selectinload(Part.parts, recursion_depth=-1)),
        lambda part: [one.parts for one in part.parts],
    ),
    "an association proxy's objects": (
        lambda: [Student(exams=[Exam(course=Course())]) for _ in range(3)],
        select(Student).options(selectinload(Student.exams).joinedload(Exam.course)),
        lambda student: list(student.examined),
    ),
    "a subclass's columns, loaded for it": (
        companies,
        select(Employee).options(selectin_polymorphic(Employee, [Manager])),
        lambda manager: manager.budget,
    ),
    "a subclass's columns, in the query": (
        companies,
        select(POLYMORPHIC),
        lambda manager: manager.budget,
    ),
    "a subclass's columns, selected as such": (
        companies,
        select(Manager),
        lambda manager: manager.budget,
    ),
    "a subclass's columns, mapped to be loaded": (
        lambda: [Bicycle(gears=3) for _ in range(3)],
        select(Vehicle),
        lambda bicycle: bicycle.gears,
    ),
    "a subclass's columns that nobody reads": (
        lambda: [Truck(load=1) for _ in range(3)],
        select(Vehicle),
        lambda truck: truck.kind,
    ),
    "a deferred column that is undeferred": (
        three_authors,
        select(Author).options(undefer(Author.biography)),
        lambda author: author.biography,
    ),
    "a deferred column that nobody reads": (
        three_authors,
        select(Author),
        lambda author: author.name,
    ),
    "a group that is undeferred": (
        lambda: [Essay(title="on reading") for _ in range(3)],
        select(Essay).options(undefer_group("body")),
        lambda essay: essay.text + essay.notes,
    ),
    "a column_property that is undeferred": (
        lambda: [Course() for _ in range(3)],
        select(Course).options(undefer(Course.size)),
        lambda course: course.size,
    ),
}


@pytest.mark.parametrize("what", SILENT)
def test_what_is_not_loaded_lazily_for_each(twin: Twin, what: str) -> None:
    kept, query, read = SILENT[what]

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *kept())
            assert_found(await read_each(twin, query, read, lazy_loads_from_one_site=2))

    twin.run(story)


def test_objects_of_two_sessions(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(4))
        for half in select(Author).where(Author.id <= 2), select(Author).where(Author.id > 2):
            captured = await read_each(twin, half, books_of, lazy_loads_from_one_site=3)
            assert_found(captured)

    twin.run(story)


def read_in_portions(session: Session) -> None:
    query = select(Author).options(selectinload(Author.books)).execution_options(yield_per=1)
    for author in session.scalars(query):
        books_of(author)


def test_collections_of_rows_that_come_in_portions(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3, books_each=2))
        with capture(twin.factory, lazy_loads_from_one_site=2) as captured:
            async with twin.session() as session:
                await session.run_sync(read_in_portions)
        assert_found(captured)

    twin.run(story)


def refresh_each(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        session.refresh(author, ["books"])
        books_of(author)


def test_collections_that_are_refreshed_by_their_name(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        with capture(twin.factory, lazy_loads_from_one_site=2) as captured:
            async with twin.session() as session:
                await session.run_sync(refresh_each)
        assert_found(captured)

    twin.run(story)


def test_a_subclass_s_columns_that_a_commit_expired(twin: Twin) -> None:
    """They are reloaded after it, as all others are."""

    def read(session: Session) -> None:
        kept = session.scalars(select(Employee)).all()
        session.commit()
        for manager in kept:
            assert isinstance(manager, Manager)
            assert manager.budget == 0

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *companies())
            with capture(twin.factory, lazy_loads_from_one_site=2) as captured:
                async with twin.session() as session:
                    await session.run_sync(read)
            assert_found(captured)

    twin.run(story)

"""Tests the code of loader options: each is run, and brings what it says."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import ForeignKey, create_engine, event, inspect, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    joinedload,
    mapped_column,
    registry,
    relationship,
    selectinload,
    with_polymorphic,
)

from session_tracer.hooks import loader_options
from session_tracer.hooks.loader_options import Selection, selection
from tests.library import Author, Book, Essay
from tests.stories.findings import mappings
from tests.stories.findings.mappings import (
    Bicycle,
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
    Shelf,
    Student,
    Truck,
    Vehicle,
)
from tests.stories.findings.remedies import pasted

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("entity", "attribute", "option"),
    [
        (Author, "books", "selectinload(Author.books)"),
        (Book, "author", "joinedload(Book.author)"),
        (Author, "biography", "undefer(Author.biography)"),
        (Essay, "text", 'undefer_group("body")'),
        (Essay, "notes, text", 'undefer_group("body")'),
        (Author, "name, biography", "undefer(Author.name), undefer(Author.biography)"),
        (Course, "size", "undefer(Course.size)"),
        (Student, "courses", "selectinload(Student.courses)"),
        (Part, "whole", "joinedload(Part.whole)"),
        (Manager, "badges", "selectinload(Employee.badges)"),
        (Manager, "diary", "undefer(Employee.diary)"),
        (Author, "letters", ""),
        (Company, "visits", ""),
        (Student, "examined", ""),
        (Author, "nothing", ""),
        (Author, "name, nothing", ""),
        (Author, "", ""),
    ],
)
def test_the_option_for_an_attribute(entity: type, attribute: str, option: str) -> None:
    assert loader_options.loader(inspect(entity), attribute) == option


@pytest.mark.parametrize(
    ("entity", "attribute", "owner"),
    [
        (Author, "books", "Author"),
        (Manager, "badges", "Employee"),
        (Manager, "reports", "Manager"),
        (Manager, "budget, diary", "Manager"),
        (Manager, "", "Manager"),
        (Manager, "nothing", "Manager"),
    ],
)
def test_the_class_that_an_attribute_is_mapped_on(entity: type, attribute: str, owner: str) -> None:
    assert loader_options.owner(inspect(entity), attribute) == owner


@pytest.mark.parametrize(
    ("entity", "key"),
    [(Author, "id"), (Manager, "id"), (Truck, "id"), (Exam, "")],
)
def test_the_attribute_that_is_the_primary_key(entity: type, key: str) -> None:
    assert loader_options.primary_key(inspect(entity)) == key


def test_an_attribute_that_bears_another_name_than_its_column() -> None:
    class Base(DeclarativeBase):
        pass

    class Ticket(Base):
        __tablename__ = "tickets"
        number: Mapped[int] = mapped_column("ticket_no", primary_key=True)

    assert loader_options.primary_key(inspect(Ticket)) == "number"


# Where an object was loaded through others, the options are nested.


@pytest.fixture
def session() -> Iterator[Session]:
    """One company with all kinds of staff, a tree of parts, and vehicles."""
    engine = create_engine("sqlite://")
    mappings.Base.metadata.create_all(engine)
    with Session(engine) as kept:
        office = Office(plants=[Plant()])
        staff = [Manager(reports=[Report()], office=office), Engineer(), Employee()]
        kept.add_all([Company(staff=staff), Truck(load=1), Bicycle(gears=3), Shelf()])
        kept.add(Part(parts=[Part(parts=[Part(parts=[Part()])])]))
        kept.add(Student(exams=[Exam(course=Course())]))
        kept.commit()
    with Session(engine) as session:
        yield session
    engine.dispose()


def of(instance: object, attribute: str) -> tuple[str, str]:
    found = selection(inspect(instance), attribute)
    return found.root, found.options


def test_an_object_that_was_selected_itself(session: Session) -> None:
    company = session.scalars(select(Company)).one()
    assert of(company, "staff") == ("Company", "selectinload(Company.staff)")


def test_an_object_that_was_selected_by_an_alias(session: Session) -> None:
    company = session.scalars(select(aliased(Company))).one()
    assert of(company, "staff") == ("Company", "selectinload(Company.staff)")


def test_an_object_that_was_got_by_its_key(session: Session) -> None:
    manager = session.get_one(Manager, 1)
    assert of(manager, "reports") == ("Manager", "selectinload(Manager.reports)")


def test_an_object_that_was_added(session: Session) -> None:
    manager = Manager()
    session.add(manager)
    session.flush()
    assert of(manager, "reports") == ("Manager", "selectinload(Manager.reports)")


@pytest.mark.parametrize("eagerly", [selectinload, joinedload])
def test_an_object_that_was_loaded_eagerly(session: Session, eagerly: Any) -> None:
    query = select(Student).options(eagerly(Student.exams))
    student = session.scalars(query).unique().one()
    assert of(student.exams[0], "course") == (
        "Student",
        "selectinload(Student.exams).joinedload(Exam.course)",
    )


def test_an_object_that_was_loaded_lazily(session: Session) -> None:
    student = session.scalars(select(Student)).one()
    assert of(student.exams[0], "answers") == (
        "Student",
        "selectinload(Student.exams).selectinload(Exam.answers)",
    )


OF_MANAGERS = "selectin_polymorphic(Employee, [Manager])"


@pytest.mark.parametrize(
    ("attribute", "options"),
    [
        ("badges", "selectinload(Employee.badges)"),
        ("company", "joinedload(Employee.company)"),
        ("diary", "undefer(Employee.diary)"),
        ("reports", f"{OF_MANAGERS}, selectinload(Manager.reports)"),
        ("office", f"{OF_MANAGERS}, joinedload(Manager.office)"),
        ("secret", f"{OF_MANAGERS}, undefer(Manager.secret)"),
        ("budget, office_id", OF_MANAGERS),
    ],
)
@pytest.mark.parametrize("entity", [Employee, with_polymorphic(Employee, [Manager])])
def test_an_object_that_was_selected_by_its_base_class(
    session: Session, entity: Any, attribute: str, options: str
) -> None:
    manager = session.scalars(select(entity).where(entity.id == 1)).one()
    assert of(manager, attribute) == ("Employee", options)


@pytest.mark.parametrize(
    ("attribute", "options"),
    [
        ("badges", "selectinload(Company.staff).selectinload(Employee.badges)"),
        (
            "reports",
            f"selectinload(Company.staff).options({OF_MANAGERS}, selectinload(Manager.reports))",
        ),
        ("budget", f"selectinload(Company.staff).options({OF_MANAGERS})"),
    ],
)
def test_an_object_of_a_subclass_that_a_relationship_brought(
    session: Session, attribute: str, options: str
) -> None:
    manager = session.scalars(select(Company)).one().staff[0]
    assert of(manager, attribute) == ("Company", options)


def test_a_relationship_that_is_followed_again(session: Session) -> None:
    whole = session.scalars(select(Part).where(Part.whole_id.is_(None))).one()
    part = whole.parts[0]
    assert of(whole, "parts") == ("Part", "selectinload(Part.parts)")
    assert of(part, "parts") == ("Part", "selectinload(Part.parts, recursion_depth=-1)")
    assert of(part, "whole") == ("Part", "selectinload(Part.parts).joinedload(Part.whole)")


def test_what_no_option_brings(session: Session) -> None:
    company = session.scalars(select(Company)).one()
    assert of(company, "visits") == ("Company", "")
    assert of(company, "nothing") == ("Company", "")


def test_an_object_whose_path_nobody_knows() -> None:
    state: Any = SimpleNamespace(
        manager=SimpleNamespace(mapper=inspect(Author)), load_path=None, _instance_dict=None
    )
    assert selection(state, "books") == Selection("Author", "selectinload(Author.books)")
    assert loader_options.route_to(state, inspect(Author).relationships["books"]) is None


def test_options_are_nested_through_five_relationships_and_no_more() -> None:
    to_and_fro: list[Any] = [
        inspect(Author).relationships["books"],
        inspect(Book).relationships["author"],
    ]

    def state_at(depth: int) -> Any:
        path: list[Any] = [inspect(Author)]
        for number in range(depth):
            prop = to_and_fro[number % 2]
            path += [prop, prop.mapper]
        return SimpleNamespace(
            manager=SimpleNamespace(mapper=path[-1]),
            load_path=SimpleNamespace(path=tuple(path)),
            runid=1,
            _instance_dict=None,
        )

    assert selection(state_at(4), "books").options.count("load(") == 5
    assert selection(state_at(5), "author").options.count("load(") == 6
    assert selection(state_at(6), "books").options == "selectinload(Author.books)"


# What a SELECT of the base class leaves out


def test_columns_that_are_left_out(session: Session) -> None:
    manager = session.scalars(select(Employee).where(Employee.id == 1)).one()
    assert loader_options.is_left_out(inspect(manager), {"budget", "office_id"})
    assert not loader_options.is_left_out(inspect(manager), {"kind"})
    assert not loader_options.is_left_out(inspect(manager), {"kind", "budget"})
    truck = session.scalars(select(Vehicle).where(Vehicle.kind == "truck")).one()
    assert loader_options.is_left_out(inspect(truck), {"load"})


def test_columns_that_are_not(session: Session) -> None:
    manager = session.get_one(Manager, 1)
    assert not loader_options.is_left_out(inspect(manager), {"budget"})
    assert not loader_options.is_left_out(inspect(Manager()), {"budget"})


# The code that is printed is code that runs.


def executed(session: Session) -> list[str]:
    statements: list[str] = []
    event.listen(
        session.get_bind(), "before_cursor_execute", lambda *told: statements.append(told[2])
    )
    return statements


@pytest.mark.parametrize("attribute", ["badges", "company", "diary", "reports", "office", "budget"])
def test_the_code_brings_the_attribute(session: Session, attribute: str) -> None:
    manager = session.scalars(select(Employee).where(Employee.id == 1)).one()
    found = selection(inspect(manager), attribute)
    session.expunge_all()
    query = pasted(f"select({found.root}).options({found.options})")
    (again,) = session.scalars(query.where(Employee.id == 1)).unique()
    statements = executed(session)
    getattr(again, attribute)
    assert statements == []


def test_a_mapped_class_can_be_forgotten() -> None:
    made = registry()

    @made.mapped
    class Tree:
        __tablename__ = "trees"
        id: Mapped[int] = mapped_column(primary_key=True)
        up: Mapped[int | None] = mapped_column(ForeignKey("trees.id"))
        trees: Mapped[list[Any]] = relationship("Tree")

    assert loader_options.loader(inspect(Tree), "trees") == "selectinload(Tree.trees)"
    assert loader_options.primary_key(inspect(Tree)) == "id"
    gone = weakref.ref(inspect(Tree))
    made.dispose()
    del Tree, made
    gc.collect()
    assert gone() is None

"""The detached lazy load: what was read too late, where the object came from, what to write."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Select, StaticPool, create_engine, select
from sqlalchemy.orm import Session, joinedload, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import Finding
from session_tracer.testing import capture
from tests.library import Author, Book, Essay, authors, keep
from tests.outline import outline
from tests.stories import detached
from tests.stories.findings import mappings
from tests.stories.findings.remedies import pasted
from tests.stories.lines import marked
from tests.twins import Twin

pytestmark = pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")


class Read(NamedTuple):
    """Something read too late, and what is concluded from it."""

    leave: Callable[[Twin, Select[Any]], Awaitable[Any]]
    read: Callable[[Any], object]
    entity: type[Any]
    attribute: str
    why: str
    remedy: str


CLOSED = {
    "a collection": Read(
        detached.closed,
        detached.read_books,
        Author,
        "books",
        "the relationship was never loaded",
        "select(Author).options(selectinload(Author.books)) at {loaded}",
    ),
    "a many-to-one": Read(
        detached.closed,
        detached.read_author,
        Book,
        "author",
        "the relationship was never loaded",
        "select(Book).options(joinedload(Book.author)) at {loaded}",
    ),
    "a deferred column": Read(
        detached.closed,
        detached.read_biography,
        Author,
        "biography",
        "the column is deferred and was never loaded",
        "select(Author).options(undefer(Author.biography)) at {loaded}",
    ),
    "a column of a deferred group": Read(
        detached.closed,
        detached.read_text,
        Essay,
        "text",
        "the column is deferred and was never loaded",
        'select(Essay).options(undefer_group("body")) at {loaded}',
    ),
    "a dynamic relationship": Read(
        detached.closed,
        detached.read_letters,
        Author,
        "letters",
        "a dynamic relationship runs a query each time it is read",
        "read Author.letters while the session is open, "
        "or set lazy='select' and load it with selectinload(Author.letters)",
    ),
}

EXPIRED = {
    "a column after a commit": Read(
        detached.expired_by_commit,
        detached.read_name,
        Author,
        "name",
        "the column was expired by the commit at {expired}",
        "use sessionmaker(expire_on_commit=False), read Author.name before the commit at "
        "{expired}, or pass the Author to session.merge() of an open session",
    ),
    "the first of several columns": Read(
        detached.expired_by_commit,
        detached.read_title,
        Book,
        "title",
        "the column was expired by the commit at {expired}",
        "use sessionmaker(expire_on_commit=False), read Book.title before the commit at {expired}, "
        "or pass the Book to session.merge() of an open session",
    ),
    "a collection after a commit": Read(
        detached.expired_by_commit,
        detached.read_books,
        Author,
        "books",
        "the relationship was never loaded, or expired by the commit at {expired}",
        "select(Author).options(selectinload(Author.books)) at {loaded}, and "
        "sessionmaker(expire_on_commit=False): the commit at {expired} expired what was loaded "
        "before",
    ),
    "a deferred column after a commit": Read(
        detached.expired_by_commit,
        detached.read_biography,
        Author,
        "biography",
        "the column is deferred and was never loaded, or expired by the commit at {expired}",
        "select(Author).options(undefer(Author.biography)) at {loaded}, and "
        "sessionmaker(expire_on_commit=False): the commit at {expired} expired what was loaded "
        "before",
    ),
    "a column after a rollback": Read(
        detached.expired_by_rollback,
        detached.read_name,
        Author,
        "name",
        "the column was expired by the rollback at {expired}",
        "call session.refresh() with the Author before it leaves the session, "
        "or pass the Author to session.merge() of an open session",
    ),
    "a collection after a rollback": Read(
        detached.expired_by_rollback,
        detached.read_books,
        Author,
        "books",
        "the relationship was never loaded, or expired by the rollback at {expired}",
        "select(Author).options(selectinload(Author.books)) after the rollback at {expired}, "
        "which expired what was loaded before",
    ),
    "a column after expire()": Read(
        detached.expired_by_hand,
        detached.read_name,
        Author,
        "name",
        "the column was expired by expire() at {expired}",
        "call session.refresh() with the Author before it leaves the session, "
        "or pass the Author to session.merge() of an open session",
    ),
    "a column after expire_all()": Read(
        detached.expired_with_all,
        detached.read_name,
        Author,
        "name",
        "the column was expired by expire_all() at {expired}",
        "call session.refresh() with the Author before it leaves the session, "
        "or pass the Author to session.merge() of an open session",
    ),
}


async def stock(twin: Twin) -> None:
    await keep(twin, *authors(1, books_each=1), Essay(title="on leaving"))


@pytest.mark.parametrize("what", [*CLOSED, *EXPIRED])
def test_what_is_read_after_the_session_is_closed(twin: Twin, what: str) -> None:
    late = {**CLOSED, **EXPIRED}[what]
    sites = {"opened": marked(late.leave, "opened"), "loaded": marked(late.leave, "loaded")}
    if what in EXPIRED:
        sites["expired"] = marked(late.leave, "expired")

    remedy = late.remedy.format(**sites)
    if twin.is_async:
        remedy = remedy.replace("sessionmaker", "async_sessionmaker")

    async def story() -> None:
        await stock(twin)
        with capture(twin.factory, name="shop-db") as told:
            found = await late.leave(twin, select(late.entity))
            with pytest.raises(DetachedInstanceError):
                late.read(found)
        (summary,) = told.sessions
        assert [detached.steady(finding) for finding in told.findings] == [
            Finding(
                id="detached-lazy-load",
                severity="error",
                message=f"{late.entity.__name__}.{late.attribute} was read a moment after "
                "its session was closed",
                remedy=remedy,
                site=marked(late.read, "read"),
                session_id=summary.id,
                session_name="shop-db",
                session_site=sites["opened"],
                entity=late.entity.__name__,
                attribute=late.attribute,
                evidence={
                    "why": late.why.format(**sites),
                    "departure": "close",
                    "loaded_at": str(sites["loaded"]),
                    "opened_at": str(sites["opened"]),
                    "departed_at": str(marked(late.leave, "departed")),
                    **({"expired_at": str(sites["expired"])} if what in EXPIRED else {}),
                },
            )
        ]
        assert told.findings[0].help == "session-tracer findings detached-lazy-load"

    twin.run(story)


LEFT = {
    "close": (detached.closed, "its session was closed"),
    "reset": (detached.reset, "its session was reset"),
    "invalidate": (detached.invalidated, "its session was invalidated"),
    "expunge": (detached.expunged, "it was expunged from its session"),
    "expunge_all": (detached.expunged_with_all, "its session was emptied by expunge_all()"),
    "deleted": (detached.deleted, "it was deleted"),
    "deleted and expired": (detached.deleted_and_expired, "it was deleted"),
    "collected": (
        detached.collected,
        "its session was garbage collected without being closed",
    ),
}


@pytest.mark.parametrize("departure", LEFT)
def test_each_way_an_object_leaves_its_session(twin: Twin, departure: str) -> None:
    leave, left = LEFT[departure]

    async def story() -> None:
        await keep(twin, Author(name="somebody"), Essay(title="on leaving"))
        # A session that nobody closed is a mistake of its own.
        besides = {"abandoned-session"} if departure == "collected" else set()
        with capture(twin.factory, ignore=besides) as told:
            essay = await leave(twin, select(Essay))
            with pytest.raises(DetachedInstanceError):
                detached.read_text(essay)
        (summary,) = told.sessions
        assert [detached.steady(finding) for finding in told.findings] == [
            Finding(
                id="detached-lazy-load",
                severity="error",
                message=f"Essay.text was read a moment after {left}",
                remedy=f'select(Essay).options(undefer_group("body")) at {marked(leave, "loaded")}',
                site=marked(detached.read_text, "read"),
                session_id=summary.id,
                session_name="default",
                session_site=marked(leave, "opened"),
                entity="Essay",
                attribute="text",
                evidence={
                    "why": "the column is deferred and was never loaded",
                    "departure": departure.partition(" ")[0],
                    "loaded_at": str(marked(leave, "loaded")),
                    "opened_at": str(marked(leave, "opened")),
                    "departed_at": str(marked(leave, "departed")),
                },
            )
        ]
        said = f"detached deferred Essay.text after {departure.partition(' ')[0]}"
        assert outline(told.facts).count(said) == 1

    twin.run(story)


# The remedy begins at the statement that was written, however the object was reached.


def _company() -> Any:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    mappings.Base.metadata.create_all(engine)
    with Session(engine) as session:
        office = mappings.Office(plants=[mappings.Plant()])
        staff = [mappings.Manager(reports=[mappings.Report()], office=office)]
        session.add(mappings.Company(staff=staff))
        exams = [mappings.Exam(course=mappings.Course())]
        session.add(mappings.Student(exams=exams))
        session.commit()
    return sessionmaker(engine)


def _students(session: Session, *options: Any) -> Any:
    return session.scalars(select(mappings.Student).options(*options)).unique().all()


def _employees(session: Session, *options: Any) -> Any:
    return session.scalars(select(mappings.Employee).options(*options)).unique().all()


def _companies(session: Session, *options: Any) -> Any:
    return session.scalars(select(mappings.Company).options(*options)).unique().all()


def _company_by_key(session: Session, *options: Any) -> Any:
    return [session.get(mappings.Company, 1, options=options)]


def _one_by_one(session: Session) -> Any:
    return [exam for student in _students(session) for exam in student.exams]


def _joined(session: Session) -> Any:
    return [
        exam
        for student in _students(session, joinedload(mappings.Student.exams))
        for exam in student.exams
    ]


REACHED: dict[str, tuple[Any, Any, Any, str]] = {
    "a child that was loaded lazily": (
        _one_by_one,
        _students,
        lambda exam: exam.course.id,
        "select(Student).options(selectinload(Student.exams).joinedload(Exam.course))",
    ),
    "a child that was joined": (
        _joined,
        _students,
        lambda exam: exam.course.id,
        "select(Student).options(selectinload(Student.exams).joinedload(Exam.course))",
    ),
    "a column of a subclass": (
        _employees,
        _employees,
        lambda manager: manager.budget,
        "select(Employee).options(selectin_polymorphic(Employee, [Manager]))",
    ),
    "a relationship of a subclass": (
        _employees,
        _employees,
        lambda manager: list(manager.reports),
        (
            "select(Employee).options(selectin_polymorphic(Employee, [Manager]), "
            "selectinload(Manager.reports))"
        ),
    ),
    "a deferred column of a subclass": (
        _employees,
        _employees,
        lambda manager: manager.secret,
        (
            "select(Employee).options(selectin_polymorphic(Employee, [Manager]), "
            "undefer(Manager.secret))"
        ),
    ),
    "a collection of what was got by its key": (
        _company_by_key,
        _company_by_key,
        lambda company: list(company.staff),
        "session.get(Company, key, options=[selectinload(Company.staff)])",
    ),
}


@pytest.mark.parametrize("what", REACHED)
def test_the_remedy_is_code_that_brings_what_was_read(what: str) -> None:
    reach, again, read, code = REACHED[what]
    maker = _company()
    with capture(maker) as told:
        with maker() as session:
            reached = reach(session)
        with pytest.raises(DetachedInstanceError):
            read(reached[0])
    (finding,) = told.findings
    assert finding.remedy.partition(" at ")[0] == code
    assert "expired" not in finding.message + str(finding.evidence["why"])
    (options,) = filter(None, re.findall(r"options(?:=\[(.*)\]\)|\((.*)\))$", code)[0])
    with capture(maker) as cured:
        with maker() as session:
            loaded = again(session, *pasted(f"[{options}]"))
            reached = [exam for root in loaded for exam in getattr(root, "exams", [root])]
        read(reached[0])
    assert cured.findings == []


@pytest.mark.parametrize(
    ("option", "better", "read"),
    [
        ("lazyload(Author.books)", "selectinload(Author.books)", detached.read_books),
        ("defer(Author.biography)", "undefer(Author.biography)", detached.read_biography),
    ],
)
def test_an_option_that_leaves_out_what_was_read_is_to_be_replaced(
    twin: Twin, option: str, better: str, read: Callable[[Any], object]
) -> None:
    async def story() -> None:
        await stock(twin)
        with capture(twin.factory) as told:
            found = await detached.closed(twin, select(Author).options(pasted(option)))
            with pytest.raises(DetachedInstanceError):
                read(found)
        (finding,) = told.findings
        loaded = marked(detached.closed, "loaded")
        assert finding.remedy == f"replace {option} by {better} in the SELECT at {loaded}"
        with capture(twin.factory) as told:
            read(await detached.closed(twin, select(Author).options(pasted(better))))
        assert told.findings == []

    twin.run(story)


def test_a_column_of_a_subclass_after_a_commit() -> None:
    maker = _company()
    with capture(maker) as told:
        with maker() as session:
            (manager,) = _employees(session)
            session.commit()
        with pytest.raises(DetachedInstanceError):
            _ = manager.budget
    (finding,) = told.findings
    assert "selectin_polymorphic(Employee, [Manager])" in finding.remedy
    assert "sessionmaker(expire_on_commit=False)" in finding.remedy


def test_the_remedy_names_no_line_where_nothing_is_selected(tmp_path: Path) -> None:
    """A library runs the statement: the application's line is where it was called."""
    (tmp_path / "crud.py").write_text(
        "__session_tracer_hide__ = True\n"
        "def every(session, entity):\n"
        "    return session.query(entity).all()\n"
    )
    maker = _company()
    crud: dict[str, Any] = {"__name__": "crud"}
    source = (tmp_path / "crud.py").read_text()
    exec(compile(source, str(tmp_path / "crud.py"), "exec"), crud)
    with capture(maker) as told:
        with maker() as session:
            (company,) = crud["every"](session, mappings.Company)
        with pytest.raises(DetachedInstanceError):
            _ = company.staff
    (finding,) = told.findings
    assert finding.remedy == "select(Company).options(selectinload(Company.staff))"

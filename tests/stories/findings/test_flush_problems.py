"""Stories of flushes that fail for a reason that rollback() does not cure, and of what does."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import ForeignKey, create_engine, delete, event, insert, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    object_session,
    relationship,
    sessionmaker,
)

from session_tracer.testing import capture
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.orm import Session

    from session_tracer import Finding


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    __tablename__ = "shelf"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(default="")
    boxes: Mapped[list[Box]] = relationship(back_populates="shelf")
    places: Mapped[list[Place]] = relationship()


class Box(Base):
    __tablename__ = "box"
    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelf.id"))
    shelf: Mapped[Shelf] = relationship(back_populates="boxes")


class Place(Base):
    __tablename__ = "place"
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelf.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


class Tidy(DeclarativeBase):
    """The same tables, mapped as the remedies have it."""


class TidyShelf(Tidy):
    __tablename__ = "shelf"
    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(default="")
    boxes: Mapped[list[TidyBox]] = relationship(cascade="all, delete-orphan")
    places: Mapped[list[TidyPlace]] = relationship(cascade="all, delete-orphan")


class TidyBox(Tidy):
    __tablename__ = "box"
    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelf.id"))


class TidyPlace(Tidy):
    __tablename__ = "place"
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelf.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    url = f"sqlite:///{tmp_path / 'store.db'}?timeout=0.05"
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


def findings(maker: sessionmaker[Session], work: Callable[[Session], object]) -> list[Finding]:
    """What is reported of work whose error, if it has one, leaves the session."""
    with capture(maker) as captured, suppress(Exception), maker() as session:
        work(session)
    assert captured.metrics.get("session_tracer.errors", []) == []
    return list(captured.findings)


def failed(maker: sessionmaker[Session], work: Callable[[Session], object]) -> Finding:
    (finding,) = findings(maker, work)
    assert finding.id == "failed-flush"
    assert "_OTHER" not in str(finding)
    return finding


# A child whose parent is gone.


def delete_a_full_shelf(session: Session, shelf: Any = Shelf, box: Any = Box) -> None:
    full = shelf(boxes=[box()])
    session.add(full)
    session.commit()
    session.delete(full)
    session.commit()


def take_a_box_off(session: Session, shelf: Any = Shelf, box: Any = Box) -> None:
    full = shelf(boxes=[box()])
    session.add(full)
    session.commit()
    full.boxes.pop()
    session.commit()


def take_a_place_off(session: Session, shelf: Any = Shelf, place: Any = Place) -> None:
    full = shelf(places=[place(number=1)])
    session.add(full)
    session.commit()
    full.places.clear()
    session.commit()


@pytest.mark.parametrize(
    ("work", "name", "mapped"),
    [
        (delete_a_full_shelf, "Shelf.boxes", TidyBox),
        (take_a_box_off, "Shelf.boxes", TidyBox),
        (take_a_place_off, "Shelf.places", TidyPlace),
    ],
)
def test_a_child_whose_parent_is_gone(
    maker: sessionmaker[Session], work: Any, name: str, mapped: Any
) -> None:
    finding = failed(maker, work)
    assert finding.remedy.startswith(f'relationship(cascade="all, delete-orphan") for {name}')
    assert finding.evidence["relationship"] == name
    assert findings(maker, lambda session: work(session, TidyShelf, mapped)) == []


def test_a_child_that_loses_its_parent_by_itself_is_not_the_relationships_fault(
    maker: sessionmaker[Session],
) -> None:
    def forget(session: Session) -> None:
        box = Box(shelf=Shelf())
        session.add(box)
        session.commit()
        box.shelf_id = None  # type: ignore[assignment] # which the database refuses
        session.commit()

    def move(session: Session) -> None:
        box, other = Box(shelf=Shelf()), Shelf()
        session.add_all([box, other])
        session.commit()
        box.shelf_id = other.id
        session.commit()

    assert failed(maker, forget).remedy == "set Box.shelf_id before the flush"
    assert findings(maker, move) == []


class Deleting(DeclarativeBase):
    """Its database deletes the children."""


class DeletingShelf(Deleting):
    __tablename__ = "shelf"
    id: Mapped[int] = mapped_column(primary_key=True)
    boxes: Mapped[list[DeletingBox]] = relationship(cascade="all, delete", passive_deletes=True)


class DeletingBox(Deleting):
    __tablename__ = "box"
    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelf.id", ondelete="CASCADE"))


class Loose(DeclarativeBase):
    """A child may be without a parent."""


class LooseShelf(Loose):
    __tablename__ = "shelf"
    id: Mapped[int] = mapped_column(primary_key=True)
    boxes: Mapped[list[LooseBox]] = relationship()


class LooseBox(Loose):
    __tablename__ = "box"
    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey("shelf.id"))


def delete_a_shelf_of_unread_boxes(session: Session, shelf: Any, box: Any) -> None:
    """The database has to delete what is not loaded."""
    session.add(shelf(id=1, boxes=[box()]))
    session.commit()
    session.expunge_all()
    session.delete(session.get_one(shelf, 1))
    session.commit()


@pytest.mark.parametrize(
    ("shelf", "box", "remedy", "left"),
    [
        (
            DeletingShelf,
            DeletingBox,
            (
                'relationship(cascade="all, delete", passive_deletes=True) and '
                'ForeignKey(..., ondelete="CASCADE"): the database deletes the children'
            ),
            [],
        ),
        (
            LooseShelf,
            LooseBox,
            "allow NULL in Box.shelf_id, if a child may be without a parent",
            [None],
        ),
    ],
)
def test_what_else_may_become_of_a_child(
    maker: sessionmaker[Session], tmp_path: Path, shelf: Any, box: Any, remedy: str, left: list[Any]
) -> None:
    finding = failed(maker, delete_a_full_shelf)
    assert remedy in finding.evidence["alternatives"]
    engine = create_engine(f"sqlite:///{tmp_path / 'another.db'}")
    event.listen(engine, "connect", lambda plain, _: plain.execute("PRAGMA foreign_keys = ON"))
    shelf.metadata.create_all(engine)
    another = sessionmaker(engine)
    assert findings(another, lambda it: delete_a_shelf_of_unread_boxes(it, shelf, box)) == []
    with another() as session:
        assert session.scalars(select(box.shelf_id)).all() == left
    engine.dispose()


# An object that is not complete.


def look_up(session: Session) -> Shelf:
    return session.scalars(select(Shelf)).first() or Shelf()  # <- queries


def add_too_early(session: Session) -> None:
    box = Box()
    session.add(box)  # <- added
    box.shelf = look_up(session)
    session.commit()


def add_without_autoflush(session: Session) -> None:
    with session.no_autoflush:
        box = Box()
        session.add(box)
        box.shelf = look_up(session)
    session.commit()


def add_when_complete(session: Session) -> None:
    box = Box()
    box.shelf = look_up(session)
    session.add(box)
    session.commit()


def test_an_incomplete_object_that_a_query_flushes(maker: sessionmaker[Session]) -> None:
    finding = failed(maker, add_too_early)
    added = marked(add_too_early, "<- added")
    assert finding.site == marked(look_up, "<- queries")
    assert finding.message.endswith("IntegrityError: Box.shelf_id was not set")
    assert finding.remedy.startswith("with session.no_autoflush: around the query")
    assert finding.evidence["alternatives"][0] == (
        f"call session.add() at {added} only after the object is complete"
    )
    assert finding.evidence["added_at"] == str(added)
    assert finding.evidence["error_code"] == "SQLITE_CONSTRAINT_NOTNULL"
    assert findings(maker, add_without_autoflush) == []
    assert findings(maker, add_when_complete) == []


@pytest.mark.filterwarnings("ignore:Column 'place.shelf_id'")
def test_a_key_that_was_never_set(maker: sessionmaker[Session]) -> None:
    def place(session: Session) -> None:
        session.add(Place(number=1))
        session.commit()

    def place_on_a_shelf(session: Session) -> None:
        session.add(Place(shelf_id=1, number=1))
        session.commit()

    assert failed(maker, place).remedy == "set Place.shelf_id before the flush"
    assert findings(maker, place_on_a_shelf) == []


# Two objects of one key.


def add_it_again(session: Session) -> None:
    session.add(Shelf(id=7))
    session.commit()
    kept = session.get(Shelf, 7)  # <- loaded
    session.add(Shelf(id=7, label="new"))
    session.commit()
    del kept


def merge_it(session: Session) -> None:
    session.merge(Shelf(id=7, label="new"))
    session.commit()


def add_twice(session: Session) -> None:
    session.add_all([Shelf(id=8), Shelf(id=8)])
    session.commit()


@pytest.mark.filterwarnings("ignore:New instance")
@pytest.mark.parametrize("work", [add_it_again, add_twice])
def test_two_objects_of_one_key(maker: sessionmaker[Session], work: Any) -> None:
    finding = failed(maker, work)
    assert finding.remedy == "session.merge(shelf) in place of session.add(shelf)"
    assert findings(maker, merge_it) == []


def test_a_key_that_only_the_database_knows_is_a_duplicate(maker: sessionmaker[Session]) -> None:
    with maker.begin() as session:
        session.execute(insert(Shelf).values(id=9))

    def add(session: Session) -> None:
        session.add(Shelf(id=9))
        session.commit()

    finding = failed(maker, add)
    assert finding.remedy == "catch IntegrityError outside of the session's block, which rolls back"
    assert finding.evidence["alternatives"] == [
        "with session.begin_nested(): around the code that may fail",
        "insert(...).on_conflict_do_nothing(), if the row may exist",
    ]
    with capture(maker) as captured, suppress(IntegrityError), maker() as session:
        add(session)
    assert captured.findings == []
    for cured in (roll_back, add_in_a_savepoint, leave_what_is_there):
        assert findings(maker, cured) == []
    with maker() as session:
        assert session.scalars(select(Shelf.label)).all() == ["", "roll_back", "savepoint", "left"]


def roll_back(session: Session) -> None:
    session.add(Shelf(id=9))
    try:
        session.commit()
    except IntegrityError:
        session.rollback()
    session.add(Shelf(label="roll_back"))
    session.commit()


def add_in_a_savepoint(session: Session) -> None:
    session.add(Shelf(label="savepoint"))
    with suppress(IntegrityError), session.begin_nested():
        session.add(Shelf(id=9))
    session.commit()


def leave_what_is_there(session: Session) -> None:
    session.execute(sqlite.insert(Shelf).values(id=9, label="new").on_conflict_do_nothing())
    session.add(Shelf(label="left"))
    session.commit()


# What another transaction does.


def test_a_row_that_another_transaction_deletes(maker: sessionmaker[Session]) -> None:
    def change(session: Session) -> None:
        session.add(Shelf(id=2))
        session.flush()
        shelf = session.get_one(Shelf, 2)
        session.execute(delete(Shelf), execution_options={"synchronize_session": False})
        shelf.label = "new"
        session.commit()

    finding = failed(maker, change)
    assert "another transaction has changed or deleted its row" in finding.remedy
    assert finding.message.endswith("another transaction has changed or deleted the row")


@contextmanager
def locked(maker: sessionmaker[Session]) -> Iterator[None]:
    with closing(sqlite3.connect(maker.kw["bind"].url.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


class StorageError(Exception):
    """What an application raises in place of a database's error."""


def write(session: Session) -> None:
    session.add(Shelf())
    session.commit()


def write_or_raise(session: Session) -> None:
    try:
        write(session)
    except Exception as error:
        session.rollback()
        raise StorageError from error


@pytest.mark.parametrize("work", [write, write_or_raise])
def test_a_database_that_is_locked(maker: sessionmaker[Session], work: Any) -> None:
    with locked(maker):
        finding = failed(maker, work)
    assert finding.message.endswith(
        "OperationalError: the database is locked by another transaction"
    )
    assert finding.evidence["error_code"] == "SQLITE_BUSY"
    assert finding.remedy.startswith("roll back and repeat the whole transaction")
    assert findings(maker, work) == []


# A listener.


def note(mapper: Any, connection: Any, shelf: Shelf) -> None:
    flush_again(shelf)  # <- listens


def flush_again(shelf: Shelf) -> None:
    session = object_session(shelf)
    assert session is not None
    session.flush()


def commit_within(mapper: Any, connection: Any, shelf: Shelf) -> None:
    session = object_session(shelf)
    assert session is not None
    session.commit()  # <- listens


def note_by_the_connection(mapper: Any, connection: Any, shelf: Shelf) -> None:
    connection.execute(insert(Shelf).values(label="noted"))


def refuse(mapper: Any, connection: Any, shelf: Shelf) -> None:
    raise LookupError  # <- listens


@contextmanager
def listening(listener: Any) -> Iterator[None]:
    event.listen(Shelf, "after_insert", listener)
    try:
        yield
    finally:
        event.remove(Shelf, "after_insert", listener)


@pytest.mark.parametrize("listener", [note, commit_within])
def test_a_listener_that_uses_the_session(maker: sessionmaker[Session], listener: Any) -> None:
    with listening(listener):
        finding = failed(maker, write)
    assert finding.site == marked(listener, "<- listens")
    assert finding.remedy == (
        f"use the connection that the listener at {finding.site} is given, and not the session"
    )
    assert "rollback" not in finding.remedy
    with listening(note_by_the_connection):
        assert findings(maker, write) == []


def test_a_listener_that_raises_is_the_line(maker: sessionmaker[Session]) -> None:
    with listening(refuse):
        finding = failed(maker, write)
    assert finding.site == marked(refuse, "<- listens")
    assert finding.message == "a commit's flush of 1 Shelf failed with LookupError"

"""That mapped classes which forbid nearly everything are asked nothing more when they are traced.

`tests/test_hostile.py` has classes that refuse comparison, hash and description; here are those
that refuse access itself, or are not what they seem.
"""

from __future__ import annotations

import functools
import gc
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from sqlalchemy import Engine, ForeignKey, event, select
from sqlalchemy.orm import (
    DeclarativeBase,
    DeclarativeMeta,
    Mapped,
    MappedAsDataclass,
    Session,
    composite,
    joinedload,
    mapped_column,
    object_session,
    reconstructor,
    registry,
    relationship,
    selectinload,
    sessionmaker,
    validates,
)

from tests.hostile.worlds import alike, attempt
from tests.outline import outline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# What was asked of the classes, in order: the same with the tracer as without it.
ASKED: list[str] = []


class ForbiddenBase(DeclarativeBase):
    """What all of them but a few are mapped with."""


class Watched:
    """Writes down each name that is looked up on it, and knows no name that is not mapped."""

    def __getattribute__(self, name: str) -> Any:
        # By these two SQLAlchemy comes from an object to its state, and so do we.
        if name not in ("_sa_instance_state", "__dict__"):
            ASKED.append(name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        ASKED.append(f"unknown {name}")
        raise AttributeError(name)

    def __setattr__(self, name: str, value: object) -> None:
        ASKED.append(f"set {name}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        ASKED.append(f"delete {name}")
        super().__delattr__(name)


class Closed(Watched, ForbiddenBase):
    """Each look at it is written down."""

    __tablename__ = "closed"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[str] = mapped_column(default="", deferred=True)
    parts: Mapped[list[Part]] = relationship(back_populates="closed", cascade="all")


class Part(Watched, ForbiddenBase):
    """Belongs to one of them."""

    __tablename__ = "parts"

    id: Mapped[int] = mapped_column(primary_key=True)
    closed_id: Mapped[int | None] = mapped_column(ForeignKey("closed.id"))
    closed: Mapped[Closed | None] = relationship(back_populates="parts")


class Masked(ForbiddenBase):
    """Says itself of which class it is, and has a property that raises for each name of ours."""

    __tablename__ = "masked"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[str] = mapped_column(default="", deferred=True)

    @property  # type: ignore[misc] # as a proxy or a mock does
    def __class__(self) -> type:
        ASKED.append("__class__")
        return Masked

    def _refused(self) -> Any:
        raise AssertionError("a property was read")

    _session_tracer = property(_refused)
    __name__ = property(_refused)
    entity = session = probe = key = state = property(_refused)


class Meta(DeclarativeMeta):
    """A metaclass whose classes refuse to be compared, counted, described or iterated."""

    def __eq__(cls, other: object) -> bool:
        if other is not cls and isinstance(other, Meta):
            ASKED.append("class ==")
        return cls is other

    __hash__ = DeclarativeMeta.__hash__

    def __repr__(cls) -> str:
        raise AssertionError("a class was described")

    def __len__(cls) -> int:
        raise AssertionError("a class was counted")

    def __iter__(cls) -> Iterator[Any]:
        raise AssertionError("a class was iterated")

    def __instancecheck__(cls, instance: object) -> bool:
        ASKED.append("isinstance")
        return type.__instancecheck__(cls, instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        ASKED.append("issubclass")
        return type.__subclasscheck__(cls, subclass)


_META = registry(metadata=ForbiddenBase.metadata)


class MetaBase(metaclass=Meta):
    """What those with the metaclass are mapped with."""

    __abstract__ = True
    registry = _META
    metadata = _META.metadata
    made: ClassVar[list[str]] = []

    def __init_subclass__(cls, **options: Any) -> None:
        MetaBase.made.append(cls.__name__)
        super().__init_subclass__(**options)


class Strict(MetaBase):
    """Has that metaclass."""

    __tablename__ = "strict"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[str] = mapped_column(default="", deferred=True)


class Slim:
    """Has slots for what SQLAlchemy needs of an instance, and no dictionary of its own but that."""

    __slots__ = ("__dict__", "__weakref__", "_sa_instance_state")

    def __init__(self, name: str) -> None:
        self.name = name


class Point:
    """A composite that will not be compared."""

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __composite_values__(self) -> tuple[int, int]:
        return self.x, self.y

    __hash__ = None  # type: ignore[assignment] # as a class that has an __eq__ does

    def __eq__(self, other: object) -> bool:
        ASKED.append("point ==")
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)


class Watcher(ForbiddenBase):
    """Has a validator, a reconstructor, a composite, and a `__del__` that uses its session."""

    __tablename__ = "watchers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    x: Mapped[int] = mapped_column(default=0)
    y: Mapped[int] = mapped_column(default=0)
    notes: Mapped[str] = mapped_column(default="", deferred=True)
    at: Mapped[Point] = composite(Point, "x", "y")

    @validates("name")
    def _valid(self, key: str, value: str) -> str:
        ASKED.append(f"valid {key}")
        return value

    @reconstructor
    def _made_again(self) -> None:
        ASKED.append("reconstructed")


# SQLAlchemy warns of a `__del__` that it sees as it maps a class.
def _dying(self: Any) -> None:
    ASKED.append(f"{type(self).__name__} died in a session: {object_session(self) is not None}")


class Plain(MappedAsDataclass, DeclarativeBase, unsafe_hash=True):
    """A dataclass, which compares and hashes by its columns."""

    metadata = ForbiddenBase.metadata


class Data(Plain):
    """Such a one."""

    __tablename__ = "data"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str]
    notes: Mapped[str] = mapped_column(default="", deferred=True)


class Last(ForbiddenBase):
    """Uses a session as it dies."""

    __tablename__ = "last"

    id: Mapped[int] = mapped_column(primary_key=True)
    session: ClassVar[Session | None] = None
    counted: ClassVar[list[int]] = []


def _dying_busily(self: Last) -> None:
    if Last.session is not None:
        Last.counted.append(len(Last.session.scalars(select(Watcher)).all()))


Last.__del__ = _dying_busily  # after it is mapped


@pytest.fixture(scope="module", autouse=True)
def _slim_is_mapped() -> Iterator[None]:
    mapped = registry(metadata=ForbiddenBase.metadata)
    plain: Any = Data.__table__
    table = plain.to_metadata(ForbiddenBase.metadata, name="slim")
    mapped.map_imperatively(Slim, table)
    Slim.__del__ = Watcher.__del__ = _dying  # type: ignore[attr-defined] # after it is mapped
    yield
    del Slim.__del__, Watcher.__del__  # type: ignore[attr-defined] # set above
    mapped.dispose()
    ForbiddenBase.metadata.remove(table)


def use(engine: Engine, entity: Any) -> list[str]:
    """Whatever can be done to objects of a class: what comes of it, and what that was asked."""
    ASKED.clear()
    got: list[str] = []
    with sessionmaker(engine)() as session:
        one = entity(name="one")
        works: tuple[Callable[[], object], ...] = (
            lambda: session.add(one),
            session.flush,
            lambda: session.refresh(one),
            session.commit,
            lambda: one.name,
            lambda: one.notes,
            lambda: setattr(one, "name", "two"),
            lambda: one in session,
            session.begin_nested().rollback,
            lambda: session.merge(one) is one,
            lambda: session.expire(one, ["name"]),
            lambda: [each.name for each in session.scalars(select(entity))],
            lambda: session.get(entity, 1) is one,
            lambda: session.expunge(one),
            lambda: one.notes,
            lambda: session.merge(one).name,
            lambda: session.delete(session.get(entity, 1)),
            session.commit,
            lambda: session.add_all([entity(name=name) for name in ("three", "four")]),
            session.commit,
            session.expunge_all,
            lambda: [each.notes for each in session.scalars(select(entity))],
            lambda: session.add(entity(name=None)),
            session.flush,
            session.rollback,
        )
        got += map(attempt, works)
        last: Any = session.scalars(select(entity)).first()
        session.expire(last)
    got.append(attempt(lambda: last.name))
    one = last = None
    gc.collect()
    return got + ASKED


@pytest.mark.parametrize("entity", [Closed, Masked, Strict, Slim, Watcher, Data])
def test_a_class_that_forbids_is_asked_no_more_than_without_us(tmp_path: Path, entity: Any) -> None:
    told = alike(tmp_path, lambda engine: use(engine, entity), metadata=ForbiddenBase.metadata)
    (summary,) = told.sessions
    assert summary.new == {entity.__name__: 3}
    assert summary.deleted == {entity.__name__: 1}
    assert {finding.entity for finding in told.findings if finding.entity} == {entity.__name__}


def _parts(found: Any) -> list[int]:
    return [len(one.parts) for one in found]


def use_together(engine: Engine) -> list[str]:
    """What relationships do."""
    ASKED.clear()
    with sessionmaker(engine)() as session:
        session.add_all([Closed(name=f"{n}", parts=[Part(), Part()]) for n in range(6)])
        session.commit()
        got = [attempt(lambda: [len(one.parts) for one in session.scalars(select(Closed))])]
        session.expunge_all()
        for option in (selectinload(Closed.parts), joinedload(Closed.parts)):
            found = session.scalars(select(Closed).options(option)).unique().all()
            got.append(attempt(functools.partial(_parts, found)))
            session.expunge_all()
        part = session.scalars(select(Part)).first()
        assert part is not None
        got.append(attempt(lambda: part.closed.name if part.closed else ""))
        got.append(attempt(lambda: session.delete(part.closed)))
        session.commit()
    got.append(attempt(lambda: found[0].parts.append(Part())))
    return got + ASKED


def test_relationships_of_such_classes_are_asked_no_more(tmp_path: Path) -> None:
    told = alike(tmp_path, use_together, metadata=ForbiddenBase.metadata)
    assert [finding.id for finding in told.findings if finding.severity == "warning"] == [
        "n-plus-one"
    ]
    assert outline(told.facts)[-1] == "session close: committed"


def test_a_listener_that_keeps_every_state_keeps_as_many(tmp_path: Path) -> None:
    def work(engine: Engine) -> list[int]:
        kept: list[Any] = []

        @event.listens_for(Watcher, "load")
        def load(target: Any, _: Any) -> None:
            kept.append(target)

        try:
            with sessionmaker(engine)() as session:
                session.add_all([Watcher(name=str(n)) for n in range(5)])
                session.commit()
                session.expunge_all()
                session.scalars(select(Watcher)).all()
                gc.collect()
                held = len(session.identity_map)
                kept.clear()
                gc.collect()
                return [held, len(session.identity_map)]
        finally:
            event.remove(Watcher, "load", load)

    told = alike(tmp_path, work, metadata=ForbiddenBase.metadata)
    (summary,) = told.sessions
    assert summary.loaded == {"Watcher": 5}


def test_objects_that_use_their_session_as_they_die_find_it_as_it_would_be(tmp_path: Path) -> None:
    def work(engine: Engine) -> list[int]:
        Last.counted.clear()
        with sessionmaker(engine)() as session:
            session.add_all([Last(id=1), Watcher(name="Ada")])
            session.commit()
            Last.session = session
            session.expunge_all()
            gc.collect()
            session.scalars(select(Last)).all()
            gc.collect()
            Last.session = None
        return list(Last.counted)

    told = alike(tmp_path, work, metadata=ForbiddenBase.metadata)
    assert len(told.sessions) == 1

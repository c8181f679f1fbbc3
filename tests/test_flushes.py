"""Tests the reported contents and trigger of a flush, and that no value's own code is called."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event, func, literal, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, attributes, sessionmaker

from session_tracer import Exporter, facts, instrument
from session_tracer.hooks.flush_contents import change_of, constraint
from session_tracer.testing import Captured, capture
from tests.library import Author, Base, Book, authors
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.twins import Twin


def triggers(captured: Captured) -> list[str]:
    """Why each flush that began ran."""
    return [fact.trigger for fact in captured.facts if isinstance(fact, facts.FlushBegan)]


@pytest.fixture
def factory() -> Iterator[sessionmaker[Session]]:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


@pytest.mark.filterwarnings("ignore:New instance .* conflicts:sqlalchemy.exc.SAWarning")
def test_what_a_flush_repeats_is_counted_the_same_with_and_without_facts(
    factory: sessionmaker[Session],
) -> None:
    def story(**heard: Any) -> list[Any]:
        logged: list[Mapping[str, Any]] = []
        exporter = Exporter(on_log=logged.append, **heard)
        with instrument(factory, exporter=exporter, single_row_writes=3):
            with factory() as session:
                session.add_all([*authors(6), Author(id=3, name="the id is taken")])
                with pytest.raises(IntegrityError):
                    session.flush()
            with factory() as session:
                for number in range(6):
                    session.add(Author(name=func.upper(f"one by one {number}")))
                session.flush()
                session.rollback()
        keys = ("event", "finding_id", "count", "statements", "error_type")
        return [[event.get(key) for key in keys] for event in logged]

    published: list[facts.Fact] = []
    quiet = story()
    assert quiet == story(on_fact=published.append)
    # The second session writes row by row; the first one's error is handled.
    assert [one[0] for one in quiet].count("finding") == 1
    executed = [one for one in published if isinstance(one, facts.StatementExecuted)]
    assert len([one for one in executed if one.operation == "INSERT"]) == 13


@pytest.mark.parametrize(("least", "counts"), [(7, [7]), (8, [])])
def test_a_statement_between_two_that_a_flush_repeats_is_no_row(
    least: int,
    counts: list[int],
    factory: sessionmaker[Session],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(mapper: Any, connection: Any, author: Author) -> None:
        if author.id % 3 == 0:
            connection.execute(select(literal(author.name))).scalar()

    monkeypatch.setattr(Author.__mapper__, "batch", False)  # each is read after its own INSERT
    logged: list[Mapping[str, Any]] = []
    exporter = Exporter(on_log=logged.append)
    event.listen(Author, "after_insert", read)
    try:
        with instrument(factory, exporter=exporter, single_row_writes=least), factory() as session:
            session.add_all(authors(7))
            session.flush()
            session.rollback()
    finally:
        event.remove(Author, "after_insert", read)
    (closed,) = [one for one in logged if one["event"] == "session.closed"]
    assert closed["statements"] == 9
    assert [one["count"] for one in logged if one["event"] == "finding"] == counts


def test_a_statement_that_runs_within_a_repeated_one_ends_the_repeats(
    factory: sessionmaker[Session],
) -> None:
    def upper(name: str) -> str:
        if name == "two":
            session.execute(select(1)).all()
        return name.upper()

    logged: list[Mapping[str, Any]] = []
    exporter = Exporter(on_log=logged.append)
    with instrument(factory, exporter=exporter, single_row_writes=4), factory() as session:
        driver: Any = session.connection().connection.dbapi_connection
        driver.create_function("upper", 1, upper)
        for name in ("zero", "one", "two", "three", "four"):
            session.add(Author(name=func.upper(name)))
        session.flush()
        session.rollback()
    (closed,) = [one for one in logged if one["event"] == "session.closed"]
    assert closed["statements"] == 6
    (finding,) = [one for one in logged if one["event"] == "finding"]
    assert (finding["finding_id"], finding["count"]) == ("row-by-row-writes", 4)


# Why.


def test_each_flush_has_its_trigger(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                ada, grace, mary, jane = authors(4)
                session.add(ada)
                await session.flush()
                session.add(grace)
                await session.scalars(select(Author))
                session.add(mary)
                async with session.begin_nested():
                    pass
                session.add(jane)
                await session.commit()
        assert triggers(captured) == ["explicit", "autoflush", "savepoint", "commit"]

    twin.run(story)


def test_a_savepoint_that_is_released_flushes_for_the_savepoint(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                async with session.begin_nested():
                    session.add(Author(name="Ada"))
                await session.commit()
        assert triggers(captured) == ["savepoint"]

    twin.run(story)


def test_a_block_that_ends_flushes_for_the_commit(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session, session.begin():
                session.add(Author(name="Ada"))
        assert triggers(captured) == ["commit"]

    twin.run(story)


def test_a_lazy_load_flushes_first(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add(Author(name="Ada"))
                await session.flush()
                session.expire_all()
                ada = (await session.scalars(select(Author))).one()
                session.add(Author(name="Grace"))
                await session.run_sync(lambda _: ada.books)
        assert triggers(captured) == ["explicit", "autoflush"]

    twin.run(story)


class ShopSession(Session):
    """A session with a flush of its own."""

    def flush(self, objects: Any = None) -> None:
        super().flush(objects)


def test_a_flush_of_a_subclass_is_not_taken_for_the_reason(factory: sessionmaker[Session]) -> None:
    made_by = sessionmaker(factory.kw["bind"], class_=ShopSession)
    with capture(made_by) as captured, made_by() as session:
        ada, grace, mary, jane = authors(4)
        session.add(ada)
        session.flush()
        session.add(grace)
        session.scalars(select(Author))
        session.add(mary)
        session.begin_nested().commit()
        session.add(jane)
        session.commit()
    assert triggers(captured) == ["explicit", "autoflush", "savepoint", "commit"]


def commit(session: Session) -> None:
    """An application's own function that happens to bear such a name."""
    session.flush()


def test_a_function_of_the_applications_is_not_taken_for_the_reason(
    factory: sessionmaker[Session],
) -> None:
    with capture(factory) as captured, factory() as session:
        session.add(Author(name="Ada"))
        commit(session)
    assert triggers(captured) == ["explicit"]


def test_a_flush_with_nothing_to_do_is_not_reported(factory: sessionmaker[Session]) -> None:
    with capture(factory) as captured, factory() as session:
        session.flush()
        session.scalars(select(Author))
        session.commit()
    assert triggers(captured) == []


# What changed.


class Hostile:
    """A value that must be left alone."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("its __eq__ was called")

    def __ne__(self, other: object) -> bool:
        raise AssertionError("its __ne__ was called")

    def __hash__(self) -> int:
        raise AssertionError("its __hash__ was called")

    def __repr__(self) -> str:
        raise AssertionError("its __repr__ was called")

    def __bool__(self) -> bool:
        raise AssertionError("its __bool__ was called")


class HostileText(str):
    """One that looks harmless."""

    __slots__ = ()
    __hash__ = Hostile.__hash__

    def __eq__(self, other: object) -> bool:
        raise AssertionError("its __eq__ was called")

    def __ne__(self, other: object) -> bool:
        raise AssertionError("its __ne__ was called")


class Genre(enum.Enum):
    """A value of the application's."""

    NOVEL = "novel"
    POEM = "poem"


def after(before: object, now: object) -> bool:
    """Whether a persistent book is reported as changed when its title goes from one to another."""
    book = Book(id=1)
    state = attributes.instance_state(book)
    attributes.set_committed_value(book, "title", before)
    state._commit_all(state.dict)
    book.title = now  # type: ignore[assignment] # any value will do
    return change_of(state) == "written"


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (Hostile(), Hostile()),
        ("Emma", Hostile()),
        (Hostile(), None),
        (HostileText("Emma"), HostileText("Emma")),
        ("Emma", HostileText("Emma")),
        (HostileText("Emma"), "Emma"),
    ],
    ids=["hostile", "to", "from", "texts", "to text", "from text"],
)
def test_a_value_that_could_answer_back_counts_as_changed(before: object, now: object) -> None:
    assert after(before, now)


def test_a_value_that_is_the_very_same_is_unchanged() -> None:
    hostile = Hostile()
    assert not after(hostile, hostile)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ("Emma", "Emma", False),
        ("Emma", "Persuasion", True),
        (None, None, False),
        (None, "Emma", True),
        ("Emma", None, True),
        (1, 2, True),
        (1000, int("1000"), False),
        (1.5, 1.5, False),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00"), False),
        (dt.date(1815, 12, 23), dt.date(1815, 12, 23), False),
        (dt.datetime(1815, 12, 23, tzinfo=dt.UTC), dt.datetime(1815, 12, 24, tzinfo=dt.UTC), True),
        (uuid.UUID(int=1), uuid.UUID(int=1), False),
        (b"Emma", b"Emma", False),
        (Genre.NOVEL, Genre.NOVEL, False),
        (Genre.NOVEL, Genre.POEM, True),
        ([1], [1], True),
    ],
)
def test_plain_values_are_compared(before: object, now: object, expected: bool) -> None:
    assert after(before, now) is expected


def test_an_object_that_nothing_was_done_to_is_unchanged() -> None:
    book = Book(id=1)
    attributes.set_committed_value(book, "title", "Emma")
    state = attributes.instance_state(book)
    state._commit_all(state.dict)
    assert change_of(state) == ""


def test_a_value_whose_old_one_was_never_loaded_counts_as_changed() -> None:
    book = Book(id=1)
    book.title = "Emma"
    assert change_of(attributes.instance_state(book)) == "written"


def test_a_value_that_the_database_computes_is_a_change_beside_what_is_unchanged(
    factory: sessionmaker[Session],
) -> None:
    """When the flush ends and what is unchanged is looked at again, the value is forgotten."""
    with factory() as session:
        session.add_all(authors(2))
        session.commit()
    with capture(factory) as captured, factory() as session:
        author, another = session.scalars(select(Author).order_by(Author.id))
        author.name = func.upper(author.name)
        another.name = str(another.name)
        session.flush()
        session.rollback()
    (flushed,) = [fact for fact in captured.facts if isinstance(fact, facts.FlushCompleted)]
    assert (flushed.dirty, flushed.unchanged) == ({"Author": 1}, {"Author": 1})


def test_a_flush_distinguishes_changed_from_unchanged(factory: sessionmaker[Session]) -> None:
    with factory.begin() as session:
        session.add_all(authors(3, books_each=1))
    with capture(factory) as captured, factory() as session:
        emma, persuasion, sanditon = session.scalars(select(Book).order_by(Book.id))
        emma.copies = 5
        persuasion.copies = persuasion.copies + 0
        session.delete(sanditon)
        session.add(Author(name="Ada"))
        session.commit()
    (flushed,) = [fact for fact in captured.facts if isinstance(fact, facts.FlushCompleted)]
    assert (flushed.new, flushed.dirty, flushed.unchanged, flushed.deleted) == (
        {"Author": 1},
        {"Book": 1},
        {"Book": 1},
        {"Book": 1},
    )


# What stopped it.


@on_each_database
def test_a_failed_flush_names_the_constraint_where_the_driver_does(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add(Author(name="Ada", books=[Book(title="Notes", copies=-1)]))
                with pytest.raises(IntegrityError):
                    await session.flush()
        (failed,) = [fact for fact in captured.facts if isinstance(fact, facts.FlushFailed)]
        named = {"postgresql": "copies_are_not_negative", "sqlite": ""}
        assert (failed.trigger, failed.new, failed.error, failed.constraint) == (
            "explicit",
            {"Author": 1, "Book": 1},
            "sqlalchemy.exc.IntegrityError",
            named[twin.database],
        )

    twin.run(story)


@pytest.mark.parametrize(
    "error", [None, ValueError("no"), IntegrityError("no", None, ValueError())]
)
def test_an_error_that_is_about_no_constraint_names_none(error: BaseException | None) -> None:
    assert constraint(error) == ""

"""Tests that loaded objects are counted, and that nothing lives longer for it."""

from __future__ import annotations

import gc
import uuid
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, attributes, joinedload, selectinload, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import CallSite, facts, instrument
from session_tracer.exporter import Exporter
from session_tracer.hooks.scopes import ledger_of
from session_tracer.ledger import object_counter
from session_tracer.testing import Captured, capture
from tests.library import Author, Base, Book, Item, Map, authors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Factory = sessionmaker[Session]


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[Factory]:
    engine = create_engine(f"sqlite:///{tmp_path / 'loads.db'}")
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    with factory.begin() as session:
        session.add_all(authors(3, books_each=2))
        session.add_all([Item(kind="item"), Map(scale=100)])
    yield factory
    engine.dispose()


def test_the_identity_map_of_this_sqlalchemy_is_known() -> None:
    assert object_counter.IS_KNOWN


def loaded(told: Captured) -> list[dict[str, int]]:
    """What each statement's rows became."""
    return [fact.loaded for fact in told.facts if isinstance(fact, facts.ObjectsLoaded)]


def test_each_statements_objects_are_counted_by_entity(factory: Factory) -> None:
    with capture(factory) as told, factory() as session:
        everyone = session.scalars(select(Author).order_by(Author.id)).all()
        assert len(everyone[0].books) == 2
        session.scalars(select(Author).options(joinedload(Author.books))).unique().all()
        items = session.scalars(select(Item)).all()
    (summary,) = told.sessions
    assert len(items) == 2
    assert loaded(told) == [{"Author": 3}, {"Book": 2}, {"Book": 4}, {"Item": 1, "Map": 1}]
    assert summary.loaded == {"Author": 3, "Book": 6, "Item": 1, "Map": 1}
    assert summary.transitions == {
        "loaded_as_persistent": 11,
        "persistent_to_detached": 11,
    }
    assert (summary.identity_map_size, summary.identity_map_peak) == (11, 11)


def test_what_the_session_holds_already_is_not_loaded_again(factory: Factory) -> None:
    with capture(factory) as told, factory() as session:
        everyone = session.scalars(select(Author)).all()
        assert session.scalars(select(Author)).all() == everyone
        session.refresh(everyone[0])
        session.expire_all()
        assert everyone[0].name == "author 0"
    assert loaded(told) == [{"Author": 3}]


def test_what_nobody_holds_is_loaded_again(factory: Factory) -> None:
    with capture(factory) as told, factory() as session:
        for _ in range(2):
            session.scalars(select(Author)).all()
    assert loaded(told) == [{"Author": 3}, {"Author": 3}]


def test_what_is_written_is_not_loaded_but_counts_for_the_peak(factory: Factory) -> None:
    with capture(factory) as told, factory() as session:
        written = [Author(name="Ada"), Author(name="Grace")]
        session.add_all(written)
        session.commit()
        found = session.scalars(select(Author)).all()
        session.expunge_all()
        again = session.scalars(select(Author)).all()
    (summary,) = told.sessions
    assert (len(written), len(found), len(again)) == (2, 5, 5)
    assert loaded(told) == [{"Author": 3}, {"Author": 5}]
    assert (summary.identity_map_size, summary.identity_map_peak) == (5, 5)


def test_each_scope_counts_anew(factory: Factory) -> None:
    with capture(factory) as told, factory() as session:
        kept = session.scalars(select(Book)).all()
        session.close()
        session.scalars(select(Author)).all()
        session.reset()
    assert len(kept) == 6
    assert [summary.loaded for summary in told.sessions] == [{"Book": 6}, {"Author": 3}]
    assert [summary.identity_map_peak for summary in told.sessions] == [6, 3]


def test_how_full_the_map_was_is_noted_while_it_is_followed(factory: Factory) -> None:
    with capture(factory), factory() as session:
        session.connection()
        ledger = ledger_of(session)
        assert ledger is not None
        counter = ledger.counter
        kept = session.scalars(select(Book)).all()
        assert (len(kept), counter.peak) == (6, 0)
        counter.follow(on=True)
        for number in (1, 2, 3):  # what nobody keeps is gone before the next is loaded
            session.scalars(select(Author).where(Author.id == number)).one()
        assert (counter.peak, counter.size()) == (7, 6)
        counter.follow(on=False)
        session.scalars(select(Author)).all()
        assert counter.peak == 0


# Where an object came from.


@dataclass
class Trail:
    """What is known of where an object came from."""

    opened: CallSite | None
    loaded: CallSite | None
    departure: str | None


def trail(instance: object) -> Trail:
    """What an object says of its session."""
    mark = object_counter.mark_of(attributes.instance_state(instance))
    assert mark is not None
    departure = mark.departure or mark.origin.departure
    return Trail(mark.origin.scope.opened_site, mark.site, departure)


def here(function: Callable[..., object], offset: int) -> CallSite:
    """A line of a function, counted from the one that begins with `def`."""
    code = function.__code__
    return CallSite(code.co_filename, code.co_firstlineno + offset, code.co_name)


def load_and_close(factory: Factory) -> list[Author]:
    session = factory()
    found = session.scalars(select(Author).options(selectinload(Author.books))).all()
    session.close()
    return list(found)


def load_and_expunge(session: Session) -> Author:
    first = session.scalars(select(Author)).first()
    assert first is not None
    session.expunge(first)
    return first


def write_and_close(factory: Factory) -> Author:
    session = factory()
    author = Author(name="Ada")
    session.add(author)
    session.commit()
    session.close()
    return author


def test_an_object_knows_the_lines_that_opened_and_loaded(factory: Factory) -> None:
    with capture(factory):
        found = load_and_close(factory)
    expected = Trail(here(load_and_close, 1), here(load_and_close, 2), "close")
    assert [trail(author) for author in found] == [expected] * 3
    assert [trail(book) for author in found for book in author.books] == [expected] * 6


def test_an_object_that_leaves_by_itself_knows_how(factory: Factory) -> None:
    with capture(factory), factory() as session:
        author = load_and_expunge(session)
        left = trail(author)
        session.add(author)
    opened = left.opened
    assert left == Trail(opened, here(load_and_expunge, 1), "expunge")
    # Once more in the session, it left with it.
    assert trail(author).departure == "close"


def test_an_object_that_was_written_knows_the_line_that_wrote_it(factory: Factory) -> None:
    with capture(factory):
        author = write_and_close(factory)
    assert trail(author) == Trail(here(write_and_close, 1), here(write_and_close, 4), "close")


def test_a_refused_load_knows_where_the_object_came_from_and_how_it_left(factory: Factory) -> None:
    with capture(factory) as told:
        session = factory()
        author = load_and_expunge(session)
        session.close()
        with pytest.raises(DetachedInstanceError):
            author.books  # noqa: B018 - reading it is the mistake
    (refused,) = [fact for fact in told.facts if isinstance(fact, facts.DetachedLoadFailed)]
    assert (refused.entity, refused.attribute, refused.load) == ("Author", "books", "relationship")
    assert (refused.loaded_site, refused.departure, refused.departed_site) == (
        here(load_and_expunge, 1),
        "expunge",
        here(load_and_expunge, 3),
    )


def test_an_object_of_an_untraced_session_knows_nothing(factory: Factory) -> None:
    with factory() as session:
        author = session.scalars(select(Author)).first()
    assert object_counter.mark_of(attributes.instance_state(author)) is None


# Nothing lives longer. What dies when, without the garbage collector's help, is compared with what
# the same work leaves where nobody traces.

Refs = dict[str, weakref.ref[Any]]


def refs_to(session: Session, *instances: object) -> Refs:
    """Weak references to everything that a session keeps."""
    connection = session.connection()
    assert connection.connection.dbapi_connection is not None
    kept: dict[str, object] = {
        "session": session,
        "identity map": session.identity_map,
        "transaction": session.get_transaction(),
        "connection": connection,
    }
    for number, instance in enumerate(instances):
        kept[f"instance {number}"] = instance
        kept[f"state {number}"] = attributes.instance_state(instance)
    return {name: weakref.ref(one) for name, one in kept.items()}


KEPT: list[object] = []


def closed(factory: Factory) -> Refs:
    with factory() as session:
        return refs_to(session, *session.scalars(select(Author)))


def committed(factory: Factory) -> Refs:
    with factory() as session:
        author = session.scalars(select(Author)).first()
        assert author is not None
        author.name = uuid.uuid4().hex
        session.add(Author(name=uuid.uuid4().hex))
        refs = refs_to(session, author, *author.books)
        session.commit()
        author.name  # noqa: B018 - a reload of what expired
        return refs


def savepoints(factory: Factory) -> Refs:
    with factory() as session:
        with session.begin_nested():
            refs = refs_to(session, *session.scalars(select(Author)))
        session.begin_nested().rollback()
        return refs


def refused(factory: Factory) -> Refs:
    with factory() as session:
        refs = refs_to(session, *session.scalars(select(Author)))
        session.add(Author(name="author 0"))
        with pytest.raises(IntegrityError):
            session.flush()
        return refs


def abandoned(factory: Factory) -> Refs:
    session = factory()
    return refs_to(session, *session.scalars(select(Author)))


def left_dirty(factory: Factory) -> Refs:
    session = factory()
    author = session.scalars(select(Author)).first()
    assert author is not None
    author.name = uuid.uuid4().hex
    return refs_to(session, author)


def detached(factory: Factory) -> Refs:
    with factory() as session:
        authors = session.scalars(select(Author)).all()
        KEPT.extend(authors)
        refs = refs_to(session)
    with pytest.raises(DetachedInstanceError):
        authors[0].books  # noqa: B018 - reading it is the mistake
    return refs


def expunged(factory: Factory) -> Refs:
    with factory() as session:
        author = load_and_expunge(session)
        refs = refs_to(session, author)
        KEPT.append(author)
        session.expire_all()
        session.merge(author)
        session.expunge_all()
        session.scalars(select(Book)).all()
        return refs


def reset(factory: Factory) -> Refs:
    session = factory()
    refs = refs_to(session, *session.scalars(select(Author)))
    KEPT.append(session)
    session.reset()
    session.scalars(select(Author)).all()
    session.invalidate()
    return refs


def fates(work: Callable[[Factory], Refs], factory: Factory) -> tuple[set[str], set[str]]:
    """What is alive right after the work, and what after garbage collection."""
    gc.collect()
    gc.disable()
    try:
        refs = work(factory)
        at_once = {name for name, ref in refs.items() if ref() is not None}
    finally:
        gc.enable()
    gc.collect()
    return at_once, {name for name, ref in refs.items() if ref() is not None}


WORKS = (
    closed, committed, savepoints, refused, abandoned, left_dirty, detached, expunged, reset,
)  # fmt: skip


@pytest.mark.parametrize("work", WORKS)
def test_nothing_lives_longer_than_where_nobody_traces(
    factory: Factory, work: Callable[[Factory], Refs]
) -> None:
    try:
        untraced = fates(work, factory)
        with instrument(factory, exporter=Exporter()):
            traced = fates(work, factory)
    finally:
        KEPT.clear()
    assert traced == untraced


def test_an_identity_map_is_freed_by_reference_counting_alone(factory: Factory) -> None:
    with capture(factory):
        at_once, afterwards = fates(closed, factory)
    assert (at_once, afterwards) == (set(), set())


def test_a_detached_object_keeps_neither_session_nor_map(factory: Factory) -> None:
    try:
        with capture(factory):
            at_once, _ = fates(detached, factory)
    finally:
        KEPT.clear()
    assert at_once == set()


def test_a_map_is_left_as_it_would_be_without_us(factory: Factory) -> None:
    session = factory()
    with capture(factory):
        session.scalars(select(Author)).all()
        session.close()
        session.scalars(select(Author)).all()
    assert type(session.identity_map._wr) is weakref.ref
    assert set(vars(session.identity_map)) == set(vars(Session().identity_map))
    session.close()


# What a session lets go of as it is closed.


def let_go(factory: Factory, work: Callable[[Session], object]) -> dict[str, int]:
    """How many objects the session holds as it is closed, by mapped class."""
    with capture(factory), factory() as session:
        held = work(session)
        ledger = ledger_of(session)
        session.close()
        del held
    assert ledger is not None
    return dict(ledger.detached)


def test_objects_of_one_class_are_let_go(factory: Factory) -> None:
    assert let_go(factory, lambda session: session.scalars(select(Author)).all()) == {"Author": 3}


def test_objects_of_a_hierarchy_are_let_go_as_of_its_base(factory: Factory) -> None:
    assert let_go(factory, lambda session: session.scalars(select(Map)).all()) == {"Item": 1}
    assert let_go(factory, lambda session: session.scalars(select(Item)).all()) == {"Item": 2}


def test_objects_in_the_place_of_others_that_are_gone_are_let_go_as_what_they_are(
    factory: Factory,
) -> None:
    with factory() as before:
        book = before.scalars(select(Book)).first()
    assert book is not None

    def add_detached(session: Session) -> list[object]:
        *kept, _ = session.scalars(select(Author)).all()
        del _
        session.add(book)
        return [*kept, book]

    def add_new(session: Session) -> list[object]:
        *kept, _ = session.scalars(select(Author)).all()
        del _
        new = Book(title="new", author=kept[0])
        session.add(new)
        session.flush()
        return [*kept, new]

    assert let_go(factory, add_new) == {"Author": 2, "Book": 1}
    assert let_go(factory, add_detached) == {"Author": 2, "Book": 1}


def test_a_merged_object_is_let_go_as_what_it_is(factory: Factory) -> None:
    with factory() as before:
        book = before.scalars(select(Book)).first()
    assert book is not None

    def merge(session: Session) -> list[object]:
        one = session.get(Author, 1)
        del one
        return [session.merge(book, load=False)]

    assert let_go(factory, merge) == {"Book": 1}

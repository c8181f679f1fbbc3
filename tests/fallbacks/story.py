"""A program that meets most of what is told, and its story, to see what is missing from it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, raiseload, sessionmaker

from session_tracer.testing import capture
from tests.library import Author, Base, Book, authors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["PROGRAM", "Story", "differs", "library", "tell"]

Factory = sessionmaker[Session]


def library() -> Iterator[Factory]:
    """Sessions on a database with two authors of two books each."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    with factory.begin() as session:
        session.add_all(authors(2, books_each=2))
    try:
        yield factory
    finally:
        engine.dispose()


def read(factory: Factory) -> list[object]:
    with factory() as session:
        first, second = session.scalars(select(Author).order_by(Author.id))
        lazily = [book.title for book in first.books]
        deferred = second.biography
        session.expire(first)
        return [lazily, deferred, first.name, session.get(Book, 1) in first.books]


def wander(factory: Factory) -> list[object]:
    with factory() as session:
        book = session.scalars(select(Book)).first()
        assert book is not None
        return [len(book.author.books)]


def write(factory: Factory) -> list[object]:
    with factory() as session:
        session.add(Author(name="autoflushed"))
        count = len(session.scalars(select(Author)).all())
        with session.begin_nested():
            session.add(Author(name="in a savepoint"))
        author = session.get(Author, 1)
        assert author is not None
        author.name = "renamed"
        session.commit()
        session.delete(author.books[0])
        session.flush()
        session.rollback()
        return [count, author.name]


def detach(factory: Factory) -> list[object]:
    with factory() as session:
        book = session.get(Book, 1)
        expunged = session.get(Book, 2)
        assert book is not None
        assert expunged is not None
        session.expunge(expunged)
        author = session.get_one(Book, 3).author
    return [
        refused(lambda: book.author),
        refused(lambda: expunged.author),
        refused(lambda: author.books),
    ]


def fail(factory: Factory) -> list[object]:
    with factory() as session:
        session.add(Author(id=1, name="there is one"))
        failed = refused(session.flush)
        pending = refused(lambda: session.execute(select(1)))
        session.rollback()
        return [failed, pending, session.scalar(select(1))]


def cross(factory: Factory) -> list[object]:
    with factory() as session, factory() as other:
        author = session.scalars(select(Author).options(raiseload(Author.books))).first()
        assert author is not None
        return [refused(lambda: author.books), refused(lambda: other.add(author))]


def block(factory: Factory) -> list[object]:
    with factory() as session, session.begin():
        session.add(Author(id=1, name="there is one"))
        return [refused(session.flush), refused(lambda: session.execute(select(1)))]


def join(factory: Factory) -> list[object]:
    with factory() as outer, outer.connection() as connection:
        with factory(bind=connection) as session:
            session.add(Author(name="of somebody else's transaction"))
            session.flush()
        return [connection.in_transaction()]


PROGRAM: Final[tuple[Callable[[Factory], list[object]], ...]] = (
    read,
    wander,
    write,
    detach,
    fail,
    block,
    cross,
    join,
)


def refused(act: Callable[[], object]) -> str:
    """The exception that comes of it, as the application sees it."""
    try:
        act()
    except Exception as error:
        # The message tells addresses in memory.
        return type(error).__name__
    return "nothing"


class Story(NamedTuple):
    """What the application saw, what was told of it, and what is counted as an error of ours.

    `places` are the functions that the facts name.
    """

    seen: list[list[object]]
    facts: list[str]
    findings: list[str]
    errors: int
    places: frozenset[str]


def tell(factory: Factory) -> Story:
    """Run the program traced, in one session after the other."""
    with capture(factory) as told:
        seen = [part(factory) for part in PROGRAM]
    errors = sum(point.value for point in told.metrics.get("session_tracer.errors", ()))
    findings = [finding.id for finding in told.findings]
    places = frozenset(map(_place, told.facts))
    return Story(seen, [_described(fact) for fact in told.facts], findings, errors, places)


_TOLD: Final = (
    *("trigger", "kind", "load", "operation", "entity", "attribute", "loaded", "new"),
    *("departure", "joined"),
)


def _described(fact: Any) -> str:
    told = [(name, getattr(fact, name, None)) for name in _TOLD]
    words = [name if value is True else str(value) for name, value in told if value]
    if ")." in getattr(fact, "options", ""):
        words.append("by nested options")
    return " ".join([type(fact).__name__, *words])


def _place(one: Any) -> str:
    site = getattr(one, "site", None)
    return "nowhere" if site is None else f"in {site.function}"


def differs(normal: list[str], less: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """What is told no longer, and what is told instead, with how often."""
    before, after = Counter(normal), Counter(less)
    return dict(before - after), dict(after - before)

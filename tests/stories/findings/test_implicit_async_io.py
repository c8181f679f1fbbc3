"""Stories of attributes that are read under asyncio and would have to be loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sqlalchemy import select
from sqlalchemy.exc import MissingGreenlet, StatementError
from sqlalchemy.orm import lazyload, selectinload

from session_tracer.testing import capture
from tests.good_code.silence import only_async
from tests.library import Author, Book, Essay, Item, Map, authors, keep
from tests.stories import detached
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import Select

    from tests.twins import Twin

# SQLAlchemy 2.1 wraps the error of a statement that could not be awaited.
REFUSED = (MissingGreenlet, StatementError)
# The driver has made a coroutine by the time SQLAlchemy finds that it cannot await it.
pytestmark = [
    only_async,
    pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited"),
]


async def read_too_early(
    twin: Twin,
    query: Select[Any],
    meanwhile: Callable[[Any, Any], Awaitable[None]],
    read: Callable[[Any], object],
) -> None:
    async with twin.session() as session:  # <- opened
        found = (await session.scalars(query)).first()  # <- loaded
        await meanwhile(session, found)
        with pytest.raises(REFUSED):
            read(found)


OPENED = marked(read_too_early, "<- opened")
LOADED = marked(read_too_early, "<- loaded")


async def nothing(session: Any, found: Any) -> None:
    """Reads at once."""


async def commit(session: Any, found: Any) -> None:
    await session.commit()  # <- expired


async def rollback(session: Any, found: Any) -> None:
    await session.rollback()  # <- expired


async def expire(session: Any, found: Any) -> None:
    session.expire(found)  # <- expired


async def expire_some(session: Any, found: Any) -> None:
    session.expire(found, ["name", "books"])  # <- expired


async def expire_all(session: Any, found: Any) -> None:
    session.expire_all()  # <- expired


def read_letters(author: Author) -> object:
    return author.letters.all()  # read


def count_letters(author: Author) -> object:
    return author.letters.count()  # read


def go_through_letters(author: Author) -> object:
    return list(author.letters)  # read


def read_scale(item: Any) -> object:
    return item.scale  # read


def add_a_book(author: Author) -> None:
    author.books.append(Book(title="one more"))  # read


def replace_the_books(author: Author) -> None:
    author.books = []  # read


class Read(NamedTuple):
    """What is read, after what, and what is said of it."""

    entity: type[Any]
    attribute: str
    read: Callable[[Any], object]
    why: str
    remedy: str
    others: tuple[str, ...]
    meanwhile: Callable[[Any, Any], Awaitable[None]] = nothing


NEVER = "the relationship was never loaded"
DEFERRED = "the column is deferred and was never loaded"
QUERY = "a dynamic relationship runs a query each time it is read"
ATTRS = "await {0}.awaitable_attrs.{1}, with AsyncAttrs among the bases of {2}"
KEEP = "and async_sessionmaker(expire_on_commit=False)"
LETTERS = (
    Author, "letters", QUERY, "(await session.scalars(author.letters.statement)).all()",
    ('lazy="write_only", and await session.scalars(author.letters.select())',),
)  # fmt: skip
BOOKS = ATTRS.format("author", "books", "Author")
NAME = ATTRS.format("author", "name", "Author")


def letters(read: Callable[[Any], object]) -> Read:
    entity, attribute, why, remedy, others = LETTERS
    return Read(entity, attribute, read, why, remedy, others)


def books(read: Callable[[Any], object]) -> Read:
    remedy = "select(Author).options(selectinload(Author.books)) at {loaded}"
    others = ('await session.refresh(author, ["books"])', BOOKS)
    return Read(Author, "books", read, NEVER, remedy, others)


READS = {
    "a collection": books(detached.read_books),
    "a collection that is appended to": books(add_a_book),
    "a collection that is replaced": books(replace_the_books),
    "a many-to-one": Read(
        Book,
        "author",
        detached.read_author,
        NEVER,
        "select(Book).options(joinedload(Book.author)) at {loaded}",
        (
            'await session.refresh(book, ["author"])',
            ATTRS.format("book", "author", "Book"),
        ),
    ),
    "a deferred column": Read(
        Author,
        "biography",
        detached.read_biography,
        DEFERRED,
        "select(Author).options(undefer(Author.biography)) at {loaded}",
        (
            'await session.refresh(author, ["biography"])',
            ATTRS.format("author", "biography", "Author"),
        ),
    ),
    "a column of a deferred group": Read(
        Essay,
        "text",
        detached.read_text,
        DEFERRED,
        'select(Essay).options(undefer_group("body")) at {loaded}',
        (
            'await session.refresh(essay, ["text"])',
            ATTRS.format("essay", "text", "Essay"),
        ),
    ),
    "a dynamic relationship": letters(read_letters),
    "a dynamic relationship that is counted": letters(count_letters),
    "a dynamic relationship that is gone through": letters(go_through_letters),
    "a subclass's column": Read(
        Item,
        "scale",
        read_scale,
        "the SELECT of the base class did not load the subclass's column",
        "select(Item).options(selectin_polymorphic(Item, [Map])) at {loaded}",
        ('await session.refresh(map, ["scale"])', ATTRS.format("map", "scale", "Map")),
    ),
    "a column after a commit": Read(
        Author,
        "name",
        detached.read_name,
        "the column was expired by the commit at {expired}",
        "async_sessionmaker(expire_on_commit=False)",
        ("await session.refresh(author)", NAME),
        commit,
    ),
    "a column after a rollback": Read(
        Author,
        "name",
        detached.read_name,
        "the column was expired by the rollback at {expired}",
        "await session.refresh(author)",
        (NAME,),
        rollback,
    ),
    "a column after expire()": Read(
        Author,
        "name",
        detached.read_name,
        "the column was expired by expire() at {expired}",
        "await session.refresh(author)",
        (NAME,),
        expire,
    ),
    "a column after expire() of a few": Read(
        Author,
        "name",
        detached.read_name,
        "the column was expired by expire() at {expired}",
        "await session.refresh(author)",
        (NAME,),
        expire_some,
    ),
    "a column after expire_all()": Read(
        Author,
        "name",
        detached.read_name,
        "the column was expired by expire_all() at {expired}",
        "await session.refresh(author)",
        (NAME,),
        expire_all,
    ),
    "a collection after a commit": Read(
        Author,
        "books",
        detached.read_books,
        f"{NEVER}, or expired by the commit at {{expired}}",
        'await session.refresh(author, ["books"])',
        (
            f"select(Author).options(selectinload(Author.books)), {KEEP}",
            BOOKS,
        ),
        commit,
    ),
    "a many-to-one after a commit": Read(
        Book,
        "author",
        detached.read_author,
        f"{NEVER}, or expired by the commit at {{expired}}",
        'await session.refresh(book, ["author"])',
        (
            f"select(Book).options(joinedload(Book.author)), {KEEP}",
            ATTRS.format("book", "author", "Book"),
        ),
        commit,
    ),
    "a collection after expire()": Read(
        Author,
        "books",
        detached.read_books,
        f"{NEVER}, or expired by expire() at {{expired}}",
        'await session.refresh(author, ["books"])',
        (
            "select(Author).options(selectinload(Author.books)) after expire() at {expired}",
            BOOKS,
        ),
        expire,
    ),
    "a deferred column after a commit": Read(
        Author,
        "biography",
        detached.read_biography,
        f"{DEFERRED}, or expired by the commit at {{expired}}",
        'await session.refresh(author, ["biography"])',
        (
            f"select(Author).options(undefer(Author.biography)), {KEEP}",
            ATTRS.format("author", "biography", "Author"),
        ),
        commit,
    ),
}


OUTCOMES: dict[Any, str] = {commit: "committed", rollback: "rolled_back"}


def test_an_option_that_leaves_out_what_is_read_is_to_be_replaced(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        lazy = select(Author).options(lazyload(Author.books))
        with capture(twin.factory) as captured:
            await read_too_early(twin, lazy, nothing, detached.read_books)
        (finding,) = captured.findings
        replaced = "replace lazyload(Author.books) by selectinload(Author.books)"
        assert finding.remedy == f"{replaced} in the SELECT at {LOADED}"
        eager = select(Author).options(selectinload(Author.books))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                detached.read_books((await session.scalars(eager)).first())
        assert_found(captured)

    twin.run(story)


@pytest.mark.parametrize("what", READS)
def test_what_is_read_without_an_await(twin: Twin, what: str) -> None:
    read = READS[what]
    sites = {"loaded": LOADED}
    if read.meanwhile is not nothing:
        sites["expired"] = marked(read.meanwhile, "<- expired")

    async def story() -> None:
        await keep(twin, *authors(1, books_each=1), Essay(title="on waiting"), Map(scale=1))
        with capture(twin.factory) as captured:
            await read_too_early(twin, select(read.entity), read.meanwhile, read.read)
        assert_found(
            captured,
            Due(
                id="implicit-async-io",
                site=marked(read.read, "read"),
                opened=OPENED,
                remedy=read.remedy.format(**sites),
                entity="Map" if read.entity is Item else read.entity.__name__,
                attribute=read.attribute,
                evidence={
                    "why": read.why.format(**sites),
                    "loaded_at": str(LOADED),
                    "expired_at": str(sites["expired"]) if "expired" in sites else None,
                    "alternatives": [other.format(**sites) for other in read.others],
                    "identity": None,
                },
            ),
        )
        assert (captured.findings[0].severity, captured.sessions[0].outcome) == (
            "error",
            OUTCOMES.get(read.meanwhile, "closed"),
        )

    twin.run(story)


async def load_where_needed(session: Any, author: Author) -> list[Book]:
    try:
        return author.books
    except (MissingGreenlet, StatementError):
        await session.refresh(author, ["books"])
        return author.books


async def log_whatever_fails(session: Any, author: Author) -> list[Book]:
    try:
        return author.books
    except Exception:
        return []


@pytest.mark.parametrize(
    ("how", "severity"), [(load_where_needed, "info"), (log_whatever_fails, "error")]
)
def test_an_error_that_is_caught_by_its_name_is_expected(
    twin: Twin, how: Callable[[Any, Author], Awaitable[list[Book]]], severity: str
) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                await how(session, author)
        assert [(one.id, one.severity) for one in captured.findings] == [
            ("implicit-async-io", severity)
        ]

    twin.run(story)

"""The detached lazy load: what was read too late, where the object came from, what to write."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import Finding
from session_tracer.testing import capture
from tests.library import Author, Book, Essay, authors, keep
from tests.outline import outline
from tests.stories import detached
from tests.stories.lines import marked
from tests.twins import Twin

pytestmark = pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")


class Read(NamedTuple):
    """Something read too late, and what is concluded from it."""

    leave: Callable[[Twin, type[Any]], Awaitable[Any]]
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

    async def story() -> None:
        await stock(twin)
        with capture(twin.factory, name="shop-db") as told:
            found = await late.leave(twin, late.entity)
            with pytest.raises(DetachedInstanceError):
                late.read(found)
        (summary,) = told.sessions
        assert [detached.steady(finding) for finding in told.findings] == [
            Finding(
                id="detached-lazy-load",
                severity="error",
                message=f"{late.entity.__name__}.{late.attribute} was read a moment after "
                "its session was closed",
                remedy=late.remedy.format(**sites),
                site=marked(late.read, "read"),
                session_id=summary.id,
                session_name="shop-db",
                session_site=sites["opened"],
                entity=late.entity.__name__,
                attribute=late.attribute,
                evidence={
                    "why": late.why.format(**sites),
                    "session": summary.id,
                    "departure": "close",
                    "loaded_at": str(sites["loaded"]),
                    "opened_at": str(sites["opened"]),
                    "departed_at": str(marked(late.leave, "departed")),
                    **({"expired_at": str(sites["expired"])} if what in EXPIRED else {}),
                },
            )
        ]
        assert told.findings[0].help == "docs/findings.md#detached-lazy-load"

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
            essay = await leave(twin, Essay)
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
                    "session": summary.id,
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

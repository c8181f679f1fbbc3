"""The load that could not be awaited: what was read, why it was not there, what to write."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from session_tracer import Finding
from session_tracer.detectors.refused import ImplicitAsyncIO
from session_tracer.facts import (
    AttributeLoaded,
    DetachedLoadFailed,
    ImplicitLoadFailed,
    LoadRefused,
    SessionClosed,
    SessionOpened,
)
from tests.detectors.feeding import at, reported

OPENED = at(12, "get_db", "/srv/shop/db.py")
LOADED = at(18, "authors", "/srv/shop/repo.py")
COMMITTED = at(40, "rename")
READ = at(42, "render")
SELECT = "select(Author).options(selectinload(Author.books))"
ATTRS = "with AsyncAttrs among the bases of Author"


def refused(**changes: Any) -> ImplicitLoadFailed:
    """`author.books` of an author that was selected without them."""
    values: dict[str, Any] = {
        "at": 2,
        "site": READ,
        "entity": "Author",
        "attribute": "books",
        "load": "relationship",
        "root": "Author",
        "options": "selectinload(Author.books)",
        "loaded_site": LOADED,
        **changes,
    }
    return ImplicitLoadFailed(**values)


def only(fact: ImplicitLoadFailed) -> Finding:
    (finding,) = reported(ImplicitAsyncIO(), fact)
    assert isinstance(finding, Finding)
    return finding


def test_a_relationship_that_was_never_loaded() -> None:
    assert reported(ImplicitAsyncIO(), SessionOpened(1, OPENED), refused()) == [
        Finding(
            id="implicit-async-io",
            severity="error",
            message="Author.books was not loaded when it was read, and reading cannot await the "
            "load",
            remedy=f"{SELECT} at {LOADED}",
            site=READ,
            session_id="9b21e0456789abcd",
            session_name="orders-db",
            session_site=OPENED,
            entity="Author",
            attribute="books",
            evidence={
                "why": "the relationship was never loaded",
                "loaded_at": str(LOADED),
                "alternatives": [
                    'await session.refresh(author, ["books"])',
                    f"await author.awaitable_attrs.books, {ATTRS}",
                ],
            },
        )
    ]


# The fact, the end of the message, why, the remedy, and what else there is to do.
CASES: dict[str, tuple[ImplicitLoadFailed, str, str, str, list[str]]] = {
    "of an object that came by a relationship": (
        refused(
            entity="Book",
            attribute="notes",
            root="Author",
            options="selectinload(Author.books).selectinload(Book.notes)",
        ),
        "Book.notes was not loaded when it was read, and reading cannot await the load",
        "the relationship was never loaded",
        f"select(Author).options(selectinload(Author.books).selectinload(Book.notes)) at {LOADED}",
        [
            'await session.refresh(book, ["notes"])',
            "await book.awaitable_attrs.notes, with AsyncAttrs among the bases of Book",
        ],
    ),
    "of an object that was added": (
        refused(loaded_site=None),
        "Author.books was not loaded when it was read, and reading cannot await the load",
        "the relationship was never loaded",
        'await session.refresh(author, ["books"])',
        [f"await author.awaitable_attrs.books, {ATTRS}"],
    ),
    "of a deferred column": (
        refused(attribute="biography", load="deferred", options="undefer(Author.biography)"),
        "Author.biography was not loaded when it was read, and reading cannot await the load",
        "the column is deferred and was never loaded",
        f"select(Author).options(undefer(Author.biography)) at {LOADED}",
        [
            'await session.refresh(author, ["biography"])',
            f"await author.awaitable_attrs.biography, {ATTRS}",
        ],
    ),
    "of a column after a commit": (
        refused(
            attribute="name", load="expired", options="", expired_by="commit",
            expired_site=COMMITTED,
        ),
        "Author.name was read after the commit expired it, and reading cannot await the reload",
        f"the column was expired by the commit at {COMMITTED}",
        "async_sessionmaker(expire_on_commit=False)",
        ["await session.refresh(author)", f"await author.awaitable_attrs.name, {ATTRS}"],
    ),
    "of a column after a rollback": (
        refused(
            attribute="name", load="expired", options="", expired_by="rollback",
            expired_site=COMMITTED,
        ),
        "Author.name was read after the rollback expired it, and reading cannot await the reload",
        f"the column was expired by the rollback at {COMMITTED}",
        "await session.refresh(author)",
        [f"await author.awaitable_attrs.name, {ATTRS}"],
    ),
    "of a column that expire() expired": (
        refused(attribute="name", load="expired", options="", loaded_site=None),
        "Author.name was read after it had expired, and reading cannot await the reload",
        "the column was expired",
        "await session.refresh(author)",
        [f"await author.awaitable_attrs.name, {ATTRS}"],
    ),
    "of a relationship after a commit": (
        refused(expired_by="commit", expired_site=COMMITTED),
        "Author.books was not loaded when it was read, and reading cannot await the load",
        f"the relationship was never loaded, or expired by the commit at {COMMITTED}",
        'await session.refresh(author, ["books"])',
        [
            f"{SELECT}, and async_sessionmaker(expire_on_commit=False)",
            f"await author.awaitable_attrs.books, {ATTRS}",
        ],
    ),
    "of a relationship after expire_all()": (
        refused(expired_by="expire_all", expired_site=COMMITTED),
        "Author.books was not loaded when it was read, and reading cannot await the load",
        f"the relationship was never loaded, or expired by expire_all() at {COMMITTED}",
        'await session.refresh(author, ["books"])',
        [
            f"{SELECT} after expire_all() at {COMMITTED}",
            f"await author.awaitable_attrs.books, {ATTRS}",
        ],
    ),
    "of a dynamic relationship": (
        refused(attribute="letters", load="dynamic", options=""),
        "Author.letters runs a query when it is read, and reading cannot await the query",
        "a dynamic relationship runs a query each time it is read",
        "(await session.scalars(author.letters.statement)).all()",
        ['lazy="write_only", and await session.scalars(author.letters.select())'],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_load(case: str) -> None:
    fact, message, why, remedy, others = CASES[case]
    finding = only(fact)
    assert (finding.message, finding.evidence["why"], finding.remedy) == (message, why, remedy)
    assert finding.evidence["alternatives"] == others


@pytest.mark.parametrize("case", CASES)
def test_the_remedy_is_code_of_a_coroutine(case: str) -> None:
    code = only(CASES[case][0]).remedy.partition(" at ")[0]
    ast.parse(f"async def work():\n    {code}")


def test_the_expiry_has_its_place_in_the_evidence() -> None:
    fact = refused(load="expired", expired_by="commit", expired_site=COMMITTED, identity="id=7")
    evidence = only(fact).evidence
    assert evidence["expired_at"] == str(COMMITTED)
    assert evidence["identity"] == "id=7"


def test_an_object_is_called_as_its_class_is() -> None:
    for entity, called in (
        ("OrderLine", "order_line"),
        ("HTTPLog", "http_log"),
        ("Import", "import_"),
        ("Session", "session_"),
    ):
        finding = only(refused(entity=entity, loaded_site=None))
        assert finding.remedy == f'await session.refresh({called}, ["books"])'


def test_where_no_line_took_part_there_is_a_finding_all_the_same() -> None:
    finding = only(refused(site=None, loaded_site=None, expired_by="commit"))
    assert (finding.site, finding.evidence["why"]) == (
        None,
        "the relationship was never loaded, or expired by the commit",
    )


def test_a_loop_is_reported_once() -> None:
    assert len(reported(ImplicitAsyncIO(), *[refused()] * 50)) == 1


def test_another_attribute_and_another_line_are_reported_too() -> None:
    facts = [refused(), refused(attribute="letters"), refused(site=at(43, "render")), refused()]
    assert len(reported(ImplicitAsyncIO(), *facts)) == 3


def test_code_that_is_made_as_it_runs_fills_no_memory() -> None:
    facts = [refused(site=at(line)) for line in range(1000)]
    assert len(reported(ImplicitAsyncIO(), *facts)) == 100


def test_other_loads_are_no_business_of_it() -> None:
    assert reported(
        ImplicitAsyncIO(),
        SessionOpened(1, OPENED),
        AttributeLoaded(2, READ, "relationship", "Author", "books"),
        LoadRefused(3, READ, "Author", "books"),
        DetachedLoadFailed(4, READ, "Author", "books", "relationship"),
        SessionClosed(5, OPENED, "close", "closed"),
    ) == []  # fmt: skip

"""Sessions that hold, and statements that load, very many objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import Finding
from session_tracer.detectors.sizes import LargeIdentityMap, LargeResult
from session_tracer.facts import (
    AttributeLoaded,
    FlushCompleted,
    ObjectsLoaded,
    SessionOpened,
    StatementExecuted,
    TransactionEnded,
)
from tests.detectors.feeding import MS, SECOND, PlayedScope, at, reported

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.facts import Fact
    from session_tracer.model.findings import Retraction

OPENED = at(12, "get_db", "/srv/shop/db.py")
OPENING = SessionOpened(0, OPENED)
OF_SESSION: dict[str, Any] = {
    "session_id": "9b21e0456789abcd",
    "session_name": "orders-db",
    "session_site": OPENED,
}
SELECTED, COMMIT = at(18, "authors", "/srv/shop/repo.py"), at(92, "place_order")


def loaded(number: int, when: int = 2 * SECOND, at_once: int = 0) -> ObjectsLoaded:
    return ObjectsLoaded(when, SELECTED, {"Author": number, "Book": 1}, at_once)


# large-identity-map


def grown(*steps: tuple[Fact, int], **settings: Any) -> list[Finding | Retraction]:
    """What is reported of a scope whose identity map has a given size after each fact."""
    scope = PlayedScope([LargeIdentityMap()], **settings)
    for fact, size in steps:
        scope.ledger.identity_map_peak = max(size, scope.ledger.identity_map_peak)
        scope.play(fact)
    return scope.reported


def committed(size: int, when: int = 2 * SECOND) -> tuple[Fact, int]:
    return TransactionEnded(when, COMMIT, "committed", MS, size=size), size


def test_an_identity_map_that_one_load_makes_large() -> None:
    assert grown((OPENING, 0), (loaded(10_000), 10_001), (loaded(1), 10_002)) == [
        Finding(
            id="large-identity-map",
            severity="warning",
            message="the identity map has grown to 10001 objects",
            remedy="select(Author).execution_options(yield_per=1000)",
            site=SELECTED,
            entity="Author",
            count=10_001,
            evidence={
                "age_ms": 2000.0,
                "came": {"Author": 10_000, "Book": 1},
                "commits": 0,
                "alternatives": [
                    "use one session for each batch of objects",
                    "call session.expunge_all() after each batch",
                ],
            },
            **OF_SESSION,
        )
    ]


def test_an_identity_map_that_grows_from_commit_to_commit() -> None:
    written = FlushCompleted(1, COMMIT, "commit", MS, {"Order": 1_500})
    steps = [step for n in range(1, 9) for step in ((written, n * 1_500), committed(n * 1_500))]
    (found,) = grown((OPENING, 0), *steps)
    assert isinstance(found, Finding)
    assert (found.message, found.remedy, found.site, found.entity) == (
        "the identity map has grown to 10500 objects over 6 commits",
        "use one session for each batch of objects",
        COMMIT,
        "Order",
    )
    assert found.evidence["sizes_after_commits"] == [1500, 3000, 4500, 6000, 7500, 9000]
    assert found.evidence["alternatives"] == ["call session.expunge_all() after each batch"]


def test_of_many_commits_the_first_and_the_last_are_reported() -> None:
    steps = [committed(n) for n in range(1, 102)]
    (found,) = grown(*steps, large_identity_map_objects=100)
    assert found.evidence["sizes_after_commits"] == [1, 2, 3, 99, 100, 101]


def test_an_identity_map_of_ten_thousand_objects_is_not_large() -> None:
    assert grown((loaded(9_999), 10_000), committed(10_000)) == []


def test_a_savepoint_is_no_commit() -> None:
    released = TransactionEnded(1, COMMIT, "committed", MS, nested=True, size=5)
    (found,) = grown((released, 5), committed(20), large_identity_map_objects=10)
    assert found.evidence["sizes_after_commits"] == [20]
    assert found.message == "the identity map has grown to 20 objects over 1 commit"


def test_the_largest_of_many_classes_are_reported() -> None:
    many = ObjectsLoaded(1, SELECTED, {f"Entity{number}": number for number in range(1, 31)})
    (found,) = grown((many, 465), large_identity_map_objects=100)
    assert list(found.evidence["came"]) == [f"Entity{number}" for number in range(30, 25, -1)]


# large-result


def test_a_statement_that_loads_more_than_five_thousand_objects() -> None:
    result = ObjectsLoaded(1, SELECTED, {"Author": 5_001})
    assert reported(LargeResult(), OPENING, result) == [
        Finding(
            id="large-result",
            severity="info",
            message="one SELECT loaded 5001 Author objects",
            remedy="select(Author).execution_options(yield_per=1000)",
            site=SELECTED,
            entity="Author",
            count=5_001,
            evidence={
                "loaded": {"Author": 5_001},
                "alternatives": ["select(Author).limit(...)"],
            },
            **OF_SESSION,
        )
    ]


def statement(eager: str = "") -> StatementExecuted:
    return StatementExecuted(1, SELECTED, "SELECT", "books", "Book", MS, eager)


LAZY = AttributeLoaded(1, SELECTED, "relationship", "Author", "books")
BOOKS = ObjectsLoaded(2, SELECTED, {"Book": 6_000})


@pytest.mark.parametrize("reading", [[LAZY, statement()], [statement("Author.books")]])
def test_a_collection_that_is_too_large_to_be_loaded(reading: Iterable[Fact]) -> None:
    (found,) = reported(LargeResult(), *reading, BOOKS)
    assert isinstance(found, Finding)
    assert (found.message, found.remedy, found.attribute) == (
        "one SELECT for Author.books loaded 6000 Book objects",
        "select only the Book objects that are needed",
        "books",
    )
    assert found.evidence["alternatives"] == [
        'set lazy="write_only" for Author.books, and run its select() with yield_per'
    ]


def test_a_statement_after_a_collection_is_not_for_it() -> None:
    (found,) = reported(LargeResult(), LAZY, statement(), statement(), BOOKS)
    assert found.message == "one SELECT loaded 6000 Book objects"


def test_five_thousand_objects_are_not_too_many() -> None:
    assert reported(LargeResult(), loaded(4_999)) == []


def test_what_is_streamed_is_not_large_however_much_it_is() -> None:
    assert reported(LargeResult(), loaded(50_000, at_once=1_000)) == []


def test_results_are_not_added_up() -> None:
    assert reported(LargeResult(), loaded(3_000), loaded(3_000)) == []

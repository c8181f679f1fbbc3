"""What is loaded one by one, or again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import Finding
from session_tracer.detectors.loading import GetInLoop, NPlusOne
from session_tracer.detectors.selects import RepeatedSelects
from session_tracer.facts import ObjectsExpired, TransactionBegan
from tests.detectors.feeding import at, reported
from tests.detectors.reading import (
    COMMIT,
    COMMITTED,
    EXPIRED,
    FLUSHED,
    LOOP,
    OF_SESSION,
    OPENING,
    OTHER,
    SELECTED,
    deferred,
    get,
    lazy,
    one,
    refresh,
    reload_,
    select,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from session_tracer.facts import Fact

# n-plus-one


def test_a_relationship_loaded_for_each_of_many_objects() -> None:
    assert reported(NPlusOne(), OPENING, *map(lazy, range(12))) == [
        Finding(
            id="n-plus-one",
            severity="warning",
            message="Author.books was lazily loaded for at least 5 Author objects, one SELECT each",
            remedy=f"select(Author).options(selectinload(Author.books)) at {SELECTED}",
            site=LOOP,
            entity="Author",
            attribute="books",
            count=5,
            evidence={"loaded_at": str(SELECTED)},
            **OF_SESSION,
        )
    ]


def test_a_deferred_column_loaded_for_each_of_many_objects() -> None:
    found = one(reported(NPlusOne(), *map(deferred, range(5))))
    assert (found.message, found.remedy) == (
        (
            "Author.biography is deferred, and was loaded for at least 5 Author objects, "
            "one SELECT each"
        ),
        f"select(Author).options(undefer(Author.biography)) at {SELECTED}",
    )


def test_deferred_columns_that_are_loaded_together() -> None:
    loads = [deferred(parent, attribute="biography, motto", options="") for parent in range(5)]
    found = one(reported(NPlusOne(), *loads))
    assert found.message == (
        "Author.biography and Author.motto are deferred, and were loaded for at least "
        "5 Author objects, one SELECT each"
    )
    assert found.remedy == (
        f"select(Author).options(undefer(Author.biography), undefer(Author.motto)) at {SELECTED}"
    )


def test_what_was_itself_lazily_loaded_is_selected_with_its_root() -> None:
    options = "selectinload(Author.books).selectinload(Book.reviews)"
    nested: dict[str, Any] = {
        "entity": "Book",
        "attribute": "reviews",
        "root": "Author",
        "options": options,
    }
    found = one(reported(NPlusOne(), *[lazy(parent, **nested) for parent in range(5)]))
    assert found.remedy == f"select(Author).options({options}) at {SELECTED}"


def test_where_the_line_that_selected_is_unknown_the_remedy_names_none() -> None:
    found = one(reported(NPlusOne(), *[lazy(parent, loaded_site=None) for parent in range(5)]))
    assert found.remedy == "select(Author).options(selectinload(Author.books))"
    assert found.evidence == {}


def test_the_remedy_without_a_loader_option_is_in_words() -> None:
    found = one(reported(NPlusOne(), *[lazy(parent, options="") for parent in range(5)]))
    assert found.remedy == "load Author.books for all objects with one SELECT before the loop"


def test_what_a_rollback_expired_has_to_be_selected_after_it() -> None:
    expired: dict[str, Any] = {"expired_by": "rollback", "expired_site": COMMIT}
    found = one(reported(NPlusOne(), *[lazy(parent, **expired) for parent in range(5)]))
    assert found.remedy == (
        f"select(Author).options(selectinload(Author.books)) after the rollback at {COMMIT}"
    )
    assert found.evidence == {
        "loaded_at": str(SELECTED),
        "expired_at": str(COMMIT),
        "why": "the rollback expired everything that was loaded before",
    }


def test_four_lazy_loads_are_nothing() -> None:
    assert reported(NPlusOne(), *map(lazy, range(4))) == []


def test_the_same_object_loaded_again_is_not_another_one() -> None:
    assert reported(NPlusOne(), *map(lazy, [1, 2, 3, 4] * 5)) == []


def test_two_lines_that_stay_below_are_nothing() -> None:
    assert reported(NPlusOne(), *[lazy(n, site) for site in (LOOP, OTHER) for n in range(4)]) == []


def test_two_attributes_that_stay_below_are_nothing() -> None:
    both = [lazy(n, attribute=name) for name in ("books", "letters") for n in range(4)]
    assert reported(NPlusOne(), *both) == []


def test_two_scopes_that_stay_below_are_nothing() -> None:
    detector = NPlusOne()
    assert reported(detector, *map(lazy, range(4))) == []
    assert reported(detector, *map(lazy, range(4, 8))) == []


def test_what_a_commit_expired_is_another_finding() -> None:
    assert reported(NPlusOne(), *[lazy(parent, **EXPIRED) for parent in range(9)]) == []


def test_reloads_and_refreshes_are_no_lazy_loads() -> None:
    loads = [lazy(parent, kind=kind) for kind in ("expired", "refresh") for parent in range(9)]
    assert reported(NPlusOne(), *loads) == []


def test_a_finding_is_drawn_for_each_line_and_attribute() -> None:
    loads = [
        *map(lazy, range(6)),
        *[lazy(n, OTHER) for n in range(6)],
        *[lazy(n, attribute="letters") for n in range(6)],
    ]
    found = reported(NPlusOne(), *loads)
    assert [(f.site, f.attribute) for f in found if isinstance(f, Finding)] == [
        (LOOP, "books"),
        (OTHER, "books"),
        (LOOP, "letters"),
    ]


def test_how_many_lazy_loads_are_too_many_can_be_chosen() -> None:
    assert one(reported(NPlusOne(), lazy(1), lazy(2), lazy_loads_from_one_site=2)).count == 2


# get-in-loop


def test_objects_that_are_looked_up_one_by_one() -> None:
    assert reported(GetInLoop(), OPENING, *map(get, range(1, 30))) == [
        Finding(
            id="get-in-loop",
            severity="warning",
            message="Author was looked up by at least 10 different primary keys, one SELECT each",
            remedy="select(Author).where(Author.id.in_(keys))",
            site=LOOP,
            entity="Author",
            count=10,
            **OF_SESSION,
        )
    ]


def test_the_remedy_for_a_composite_primary_key_is_in_words() -> None:
    found = one(reported(GetInLoop(), *[get(number, key="") for number in range(1, 11)]))
    assert found.remedy == "run one select(Author) for all keys before the loop"


def get_of_a_loaded(key: int) -> Iterable[Fact]:
    return (lazy(key), get(key))


NO_LOOKUPS: dict[str, Callable[[int], Iterable[Fact]]] = {
    "the same key each time": lambda key: [get(7)],
    "keys that cannot be compared": lambda key: [get(0)],
    "a SELECT that is not by key": lambda key: [get(key, by_key=False)],
    "a lookup that fails": lambda key: [get(key, error="sqlalchemy.exc.OperationalError")],
    "a lazy load of a many-to-one": get_of_a_loaded,
    "each from a line of its own": lambda key: [get(key, at(key))],
    "each of another class": lambda key: [get(key, entity=f"Entity{key}")],
}


@pytest.mark.parametrize("what", NO_LOOKUPS)
def test_what_is_no_lookup_in_a_loop(what: str) -> None:
    facts = [fact for key in range(1, 30) for fact in NO_LOOKUPS[what](key)]
    assert reported(GetInLoop(), *facts) == []


def both(times: int) -> list[Fact]:
    return [get(key, entity=entity) for key in range(1, times + 1) for entity in ("Author", "Book")]


def test_several_classes_that_one_loop_looks_up_are_one_finding() -> None:
    found = one(reported(GetInLoop(), *both(30)))
    assert found.message == (
        "Author and Book were looked up by at least 9 different primary keys, one SELECT each"
    )
    assert (found.entity, found.evidence["entities"]) == ("Author", {"Author": 10, "Book": 9})


def test_classes_that_are_looked_up_in_two_loops_are_two_findings() -> None:
    loops = [get(key, entity=entity) for entity in ("Author", "Book") for key in range(1, 11)]
    assert [one(reported(GetInLoop(), *loops[:10])).entity, len(reported(GetInLoop(), *loops))] == [
        "Author",
        2,
    ]


def test_nine_lookups_are_nothing() -> None:
    assert reported(GetInLoop(), *map(get, range(1, 10))) == []


def test_two_lines_that_look_up_nine_are_nothing() -> None:
    both = [get(key, site) for site in (LOOP, OTHER) for key in range(1, 10)]
    assert reported(GetInLoop(), *both) == []


# repeated-select


def test_the_same_select_again_and_again() -> None:
    assert reported(RepeatedSelects(), OPENING, *[select() for _ in range(9)]) == [
        Finding(
            id="repeated-select",
            severity="warning",
            message="the same SELECT of Author with the same parameters ran at least 5 times "
            "from one line",
            remedy="run it once and keep the result",
            site=LOOP,
            entity="Author",
            count=5,
            evidence={
                "why": "the identity map is not a query cache: "
                "only get() can return without a SELECT",
            },
            **OF_SESSION,
        )
    ]


def test_the_same_select_from_several_lines_is_reported_at_the_last() -> None:
    found = one(reported(RepeatedSelects(), *[select(site=OTHER)] * 4, select()))
    assert (found.site, found.evidence["first_at"]) == (LOOP, str(OTHER))
    assert found.message.endswith("ran at least 5 times from several lines")


def test_a_row_that_is_looked_up_and_is_not_there() -> None:
    found = one(reported(RepeatedSelects(), *[get(7)] * 5))
    assert found.message == (
        "Author was looked up by the same primary key at least 5 times from one line"
    )
    assert found.evidence["why"].startswith("the row does not exist, or the application kept no ")


def test_four_times_is_nothing() -> None:
    assert reported(RepeatedSelects(), *[select()] * 4) == []


def began() -> Fact:
    return TransactionBegan(1, LOOP)


def wrote(table: str) -> Fact:
    return select(operation="UPDATE", collection=table, in_flush=True)


def test_a_select_that_is_repeated_after_writes_to_other_tables() -> None:
    assert len(reported(RepeatedSelects(), *[select(), wrote("books")] * 5)) == 1


def test_the_repeats_after_a_write_are_enough() -> None:
    before = [select(), wrote("authors")] * 3
    assert reported(RepeatedSelects(), *before, *[select()] * 4) == []
    assert len(reported(RepeatedSelects(), *before, *[select()] * 5)) == 1


REPEATS: dict[str, list[Fact]] = {
    "other parameters": [select(fingerprint) for fingerprint in range(1, 100)],
    "parameters that cannot be compared": [select(0)] * 9,
    "a lazy load": [lazy(1), select()] * 9,
    "a reload": [reload_(1), select()] * 9,
    "an eager loader's": [select(eager="Author.books")] * 9,
    "a SELECT that fails": [select(error="sqlalchemy.exc.OperationalError")] * 9,
    "the next value of a sequence": [select(entity="", in_flush=True)] * 9,
    "what writes": [select(operation="UPDATE")] * 9,
    "a result that may differ": [select(reads=frozenset())] * 9,
    "one in each transaction": [began(), select(), COMMITTED] * 9,
    "a table that is written to": [select(), wrote("authors")] * 9,
    "a table of a schema that is written to": [select(), wrote('shop."Authors"')] * 9,
    "a procedure, whose writes are not known": [select(), wrote("")] * 9,
    "objects that are expired": [select(), ObjectsExpired(1, LOOP, 1)] * 9,
}


@pytest.mark.parametrize("what", REPEATS)
def test_what_is_no_repeated_select(what: str) -> None:
    assert reported(RepeatedSelects(), *REPEATS[what]) == []


def test_a_select_after_a_lazy_load_counts() -> None:
    assert len(reported(RepeatedSelects(), *[lazy(1), select(8), select(9)] * 5)) == 1


def test_a_select_that_is_run_in_a_flush_by_the_application_counts() -> None:
    assert len(reported(RepeatedSelects(), *[select(in_flush=True)] * 5)) == 1


def test_what_was_forgotten_is_what_was_seen_least_recently() -> None:
    kept = [fact for n in range(4) for fact in (select(1), *map(select, range(10, 900)))]
    assert len(reported(RepeatedSelects(), *kept, select(1), repeats_of_one_select=5)) == 1
    lost = [fact for n in range(4) for fact in (select(1), *map(select, range(9, 1_100)))]
    assert reported(RepeatedSelects(), *lost, select(1), repeats_of_one_select=5) == []


def unrelated() -> list[Fact]:
    """What the detectors of repeated SELECTs are asked about before the first few SELECTs."""
    write = select(operation="INSERT", site=OTHER, rows=1, collection="books")
    eager = select(8, OTHER, entity="Book", eager="Author.books")
    return [write, write, FLUSHED, *refresh(OTHER), eager]


def test_what_else_is_judged_before_the_first_selects_does_not_hide_them() -> None:
    settings: dict[str, Any] = {"single_row_writes": 2}
    selects, gets = [select() for _ in range(5)], [get(number) for number in range(1, 11)]
    assert len(reported(RepeatedSelects(), *unrelated(), *selects, **settings)) == 1
    assert len(reported(GetInLoop(), *unrelated(), *gets, **settings)) == 1
    early = [selects[0], *unrelated(), *selects[1:]]
    assert len(reported(RepeatedSelects(), *early, **settings)) == 1

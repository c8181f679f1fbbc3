"""What is read back from the database after the session itself had it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from session_tracer import Finding
from session_tracer.detectors.reloads import RefreshAfterWrite, ReloadAfterCommit
from session_tracer.facts import FlushCompleted, TransactionEnded
from tests.detectors.feeding import MS, reported
from tests.detectors.reading import (
    COMMIT,
    COMMITTED,
    EXPIRED,
    FLUSHED,
    LOOP,
    OF_SESSION,
    OPENING,
    OTHER,
    lazy,
    one,
    refresh,
    reload_,
    select,
)

if TYPE_CHECKING:
    from session_tracer.facts import Fact

# reload-after-commit


def test_objects_that_a_commit_expired_and_a_loop_reloads() -> None:
    assert reported(ReloadAfterCommit(), OPENING, COMMITTED, *map(reload_, range(9))) == [
        Finding(
            id="reload-after-commit",
            severity="warning",
            message="at least 5 Author objects expired by a commit were reloaded, one SELECT each",
            remedy="sessionmaker(expire_on_commit=False)",
            site=LOOP,
            entity="Author",
            count=5,
            evidence={
                "committed_at": str(COMMIT),
                "reloaded": {"Author": 5},
                "alternatives": ["select them again with one statement after the commit"],
            },
            **OF_SESSION,
        )
    ]


def test_a_relationship_that_a_commit_expired_counts_as_a_reload() -> None:
    found = one(reported(ReloadAfterCommit(), *[lazy(parent, **EXPIRED) for parent in range(5)]))
    assert (found.entity, found.attribute) == ("Author", "books")
    assert found.evidence["attributes"] == ["Author.books"]
    assert found.remedy == (
        f"select(Author).options(selectinload(Author.books)) after the commit at {COMMIT}"
    )
    assert found.evidence["alternatives"] == [
        "sessionmaker(expire_on_commit=False)  # if Author.books was loaded before the commit"
    ]


def test_a_relationship_for_which_no_option_is_known() -> None:
    loads = [lazy(parent, options="", **EXPIRED) for parent in range(5)]
    assert one(reported(ReloadAfterCommit(), *loads)).remedy == (
        f"load Author.books for all objects with one SELECT after the commit at {COMMIT}"
    )


def test_an_object_whose_columns_and_relationship_are_reloaded_counts_once() -> None:
    both = [fact for n in range(4) for fact in (reload_(n), lazy(n, **EXPIRED))]
    assert reported(ReloadAfterCommit(), COMMITTED, *both) == []
    found = one(reported(ReloadAfterCommit(), COMMITTED, *both, reload_(4)))
    assert (found.count, found.evidence["reloaded"]) == (5, {"Author": 5})


def test_objects_of_several_classes_are_reloaded() -> None:
    books = [reload_(10 + n, entity="Book") for n in range(2)]
    found = one(reported(ReloadAfterCommit(), COMMITTED, *books, *map(reload_, range(5))))
    assert found.message == (
        "at least 7 objects (Book and Author) expired by a commit were reloaded, one SELECT each"
    )
    assert (found.entity, found.attribute) == ("Author", None)


def test_a_few_objects_of_each_class_are_what_a_commit_costs() -> None:
    each = [
        reload_(10 * number + n, entity=entity)
        for number, entity in enumerate(("Author", "Book", "Shelf"))
        for n in range(4)
    ]
    assert reported(ReloadAfterCommit(), COMMITTED, *each) == []


def test_the_remedy_names_the_maker_of_async_sessions() -> None:
    found = one(reported(ReloadAfterCommit(), *map(reload_, range(5)), is_async=True))
    assert found.remedy == "async_sessionmaker(expire_on_commit=False)"


def test_four_objects_reloaded_are_nothing() -> None:
    assert reported(ReloadAfterCommit(), COMMITTED, *map(reload_, range(4))) == []


def test_each_commit_begins_a_new_count() -> None:
    loop = [fact for _ in range(10) for fact in (COMMITTED, *map(reload_, range(4)))]
    assert reported(ReloadAfterCommit(), *loop) == []


def test_a_savepoint_and_a_rollback_do_not_begin_a_new_count() -> None:
    released = TransactionEnded(1, COMMIT, "committed", MS, nested=True)
    rolled_back = TransactionEnded(1, COMMIT, "rolled_back", MS)
    between = [
        reload_(1),
        released,
        reload_(2),
        rolled_back,
        *map(reload_, range(3, 6)),
    ]
    assert len(reported(ReloadAfterCommit(), COMMITTED, *between)) == 1


def test_a_loop_that_commits_and_reloads_is_one_finding() -> None:
    loop = [fact for _ in range(10) for fact in (COMMITTED, *map(reload_, range(8)))]
    assert len(reported(ReloadAfterCommit(), *loop)) == 1


def test_another_line_that_reloads_is_another_finding() -> None:
    others = [reload_(parent, OTHER) for parent in range(5)]
    loop = [COMMITTED, *map(reload_, range(5)), COMMITTED, *others]
    assert [f.site for f in reported(ReloadAfterCommit(), *loop) if isinstance(f, Finding)] == [
        LOOP,
        OTHER,
    ]


@pytest.mark.parametrize("by", ["rollback", "expire", "expire_all", ""])
def test_what_was_expired_by_anything_else_is_no_reload_after_a_commit(by: str) -> None:
    loads = [reload_(parent, expired_by=by) for parent in range(9)]
    assert reported(ReloadAfterCommit(), COMMITTED, *loads) == []


def test_a_refresh_is_no_reload() -> None:
    loads = [reload_(parent, kind="refresh") for parent in range(9)]
    assert reported(ReloadAfterCommit(), COMMITTED, *loads) == []


# refresh-after-write


def test_objects_refreshed_directly_after_the_commit_that_wrote_them() -> None:
    loop = [fact for _ in range(9) for fact in (FLUSHED, COMMITTED, *refresh(**EXPIRED))]
    assert reported(RefreshAfterWrite(), OPENING, *loop) == [
        Finding(
            id="refresh-after-write",
            severity="info",
            message="Author was refreshed directly after a commit at least 5 times, "
            "one SELECT each",
            remedy="remove refresh(), and use sessionmaker(expire_on_commit=False)",
            site=LOOP,
            entity="Author",
            count=5,
            evidence={
                "committed_at": str(COMMIT),
                "why": "an INSERT returns generated values if the database supports RETURNING",
                "alternatives": [
                    (
                        '__mapper_args__ = {"eager_defaults": True}'
                        "  # for values generated by an UPDATE"
                    )
                ],
            },
            **OF_SESSION,
        )
    ]


def test_objects_refreshed_directly_after_the_flush_that_wrote_them() -> None:
    found = one(reported(RefreshAfterWrite(), *[FLUSHED, *refresh()] * 5))
    assert (found.message, found.remedy, found.evidence["flushed_at"]) == (
        "Author was refreshed directly after a flush at least 5 times, one SELECT each",
        "remove refresh()",
        str(COMMIT),
    )


def test_a_commit_that_expires_nothing() -> None:
    found = one(reported(RefreshAfterWrite(), *[FLUSHED, COMMITTED, *refresh()] * 5))
    assert (found.remedy, found.evidence["committed_at"]) == ("remove refresh()", str(COMMIT))


UPDATED = "an object has the values that its UPDATE has written"
INSERTED = "an INSERT returns generated values if the database supports RETURNING"


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (["INSERT"] * 5, INSERTED),
        (["UPDATE"] * 5, UPDATED),
        ([*["UPDATE"] * 4, "INSERT"], f"{INSERTED}, and {UPDATED}"),
    ],
)
def test_why_the_values_are_there(written: list[str], why: str) -> None:
    facts = [fact for by in written for fact in (FLUSHED, *refresh(written=by))]
    assert one(reported(RefreshAfterWrite(), *facts)).evidence["why"] == why


def test_several_objects_refreshed_after_one_commit() -> None:
    assert len(reported(RefreshAfterWrite(), COMMITTED, *refresh() * 5)) == 1


def test_the_statements_of_the_flush_itself_come_before_it_is_over() -> None:
    written = [FLUSHED, select(operation="RELEASE"), select(in_flush=True)]
    assert len(reported(RefreshAfterWrite(), *[*written, *refresh()] * 5)) == 1


REFRESHES: dict[str, list[Fact]] = {
    "four times": [FLUSHED, *refresh()] * 4,
    "four times from each of two lines": [
        fact for site in (LOOP, OTHER) for _ in range(4) for fact in (FLUSHED, *refresh(site))
    ],
    "with nothing written": refresh() * 9,
    "after a flush of nothing": [FlushCompleted(1, COMMIT, "explicit", MS), *refresh()] * 9,
    "after a rollback": [FLUSHED, TransactionEnded(1, COMMIT, "rolled_back", 1), *refresh()] * 9,
    "with another SELECT in between": [FLUSHED, select(), *refresh()] * 9,
    "with a lazy load in between": [FLUSHED, lazy(1), select(), *refresh()] * 9,
    "of what was not written": [FLUSHED, *refresh(written="")] * 9,
    "not at all": [FLUSHED, lazy(1), select()] * 9,
}


@pytest.mark.parametrize("when", REFRESHES)
def test_what_is_no_refresh_after_a_write(when: str) -> None:
    assert reported(RefreshAfterWrite(), *REFRESHES[when]) == []

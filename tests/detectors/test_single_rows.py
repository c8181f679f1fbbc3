"""Rows that are written by a statement each, where one could write them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import Finding
from session_tracer.detectors.single_rows import RowByRowWrites
from session_tracer.facts import FlushBegan, SessionOpened, StatementExecuted
from tests.detectors.feeding import MS, at, reported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.facts import Fact, Trigger
    from session_tracer.model.findings import Retraction
    from session_tracer.where.callsite import CallSite

OPENED = at(12, "get_db", "/srv/shop/db.py")
OPENING = SessionOpened(1, OPENED)
OF_SESSION: dict[str, Any] = {
    "session_id": "9b21e0456789abcd",
    "session_name": "orders-db",
    "session_site": OPENED,
}
COMMIT, USE, EXCEPT, LOOP = at(92, "place_order"), at(97), at(95), at(77, "reserve")
INTEGRITY = "sqlalchemy.exc.IntegrityError"


def messages(found: list[Finding | Retraction]) -> list[str]:
    return [one.message for one in found]


def remedies(found: list[Finding | Retraction]) -> list[str]:
    return [one.remedy for one in found if isinstance(one, Finding)]


def evidence(found: list[Finding | Retraction], key: str) -> list[Any]:
    return [one.evidence.get(key) for one in found]


def write(
    operation: str = "INSERT",
    site: CallSite | None = COMMIT,
    *,
    in_flush: bool = True,
    text: int = 1,
    rows: int = 1,
    **more: Any,
) -> Fact:
    more = {"collection": "lines", "entity": "", **more}
    return StatementExecuted(
        1, site, operation, duration=MS, in_flush=in_flush, text=text, rows=rows, **more
    )


def a_flush(number: int, trigger: Trigger = "commit", **more: Any) -> Iterator[Fact]:
    yield FlushBegan(1, more.get("site", COMMIT), trigger)
    for _ in range(number):
        yield write(**more)


def test_objects_that_set_different_columns_do_not_go_together() -> None:
    texts = [write("UPDATE", text=1 + number % 3) for number in range(60)]
    assert reported(RowByRowWrites(), OPENING, *a_flush(0), *texts) == [
        Finding(
            id="row-by-row-writes",
            severity="info",
            message="at least 20 rows of lines were updated one by one in one flush",
            remedy="session.execute(update(...), [{...}, {...}, ...])",
            site=COMMIT,
            count=20,
            evidence={
                "table": "lines",
                "kind": "UPDATE",
                "flushes": 1,
                "why": "each row sets other columns, or another SQL expression, than the row "
                "before: one statement can only write consecutive rows that set the same columns",
            },
            **OF_SESSION,
        )
    ]


def test_rows_with_the_same_statement_have_the_reason_why_they_are_written_one_by_one() -> None:
    whys = [
        why
        for operation in ("INSERT", "UPDATE", "DELETE")
        for why in evidence(reported(RowByRowWrites(), *a_flush(20, operation=operation)), "why")
    ]
    assert [why.partition(" if ")[2].split(", ")[0] for why in whys] == [
        "they set a SQL expression",
        "they set a SQL expression",
        "they depend on each other",
    ]


def test_rows_written_by_an_execute_each_are_one_statement_with_a_list() -> None:
    inserts = [write(site=LOOP, in_flush=False, entity="Line") for _ in range(20)]
    (found,) = reported(RowByRowWrites(), *inserts)
    assert isinstance(found, Finding)
    assert (found.message, found.remedy, found.site, found.entity) == (
        "at least 20 rows of lines were inserted one by one from one line",
        "session.execute(insert(Line), [{...}, {...}, ...])",
        LOOP,
        "Line",
    )
    assert found.evidence["why"] == "there is one execute() for each row"


def test_rows_deleted_by_an_execute_each_are_one_statement() -> None:
    deletes = [write("DELETE", LOOP, in_flush=False, entity="Line") for _ in range(20)]
    assert remedies(reported(RowByRowWrites(), *deletes)) == [
        "one session.execute(delete(Line).where(...)) for all rows"
    ]


def test_a_flush_for_each_row_is_to_be_one_after_the_loop() -> None:
    loop = [fact for _ in range(20) for fact in a_flush(1, "explicit", site=LOOP)]
    (found,) = reported(RowByRowWrites(), *loop)
    assert isinstance(found, Finding)
    assert (found.message, found.remedy, found.evidence["flushes"]) == (
        "at least 20 rows of lines were inserted one by one in 20 flushes from one line",
        "one session.flush() after the loop, none inside it",
        20,
    )


def test_a_loop_that_flushes_several_rows_at_a_time_has_the_reason_of_these_flushes() -> None:
    a_few = [write(text=1, site=LOOP), write(text=2, site=LOOP)]
    loop = [fact for _ in range(10) for fact in (FlushBegan(1, LOOP, "explicit"), *a_few)]
    (found,) = reported(RowByRowWrites(), *loop)
    assert isinstance(found, Finding)
    assert (
        found.message
        == "at least 20 rows of lines were inserted one by one in 10 flushes from one line"
    )
    assert found.evidence["why"].startswith("each row sets other columns")


@pytest.mark.parametrize("trigger", ["autoflush", "commit", "savepoint"])
def test_an_implicit_flush_for_each_row_is_another_finding(trigger: Trigger) -> None:
    loop = [fact for _ in range(60) for fact in a_flush(1, trigger)]
    assert reported(RowByRowWrites(), *loop) == []


def test_nineteen_rows_are_few() -> None:
    assert reported(RowByRowWrites(), *a_flush(19)) == []


def test_rows_of_another_kind_table_or_line_are_counted_apart() -> None:
    for one, other in (
        ({"operation": "INSERT"}, {"operation": "UPDATE"}),
        ({"collection": "lines"}, {"collection": "orders"}),
        ({"site": LOOP}, {"site": USE}),
    ):
        both = [write(in_flush=False, **kind) for kind in (one, other) for _ in range(19)]
        assert reported(RowByRowWrites(), *both) == []


def test_rows_that_go_together_are_not_counted() -> None:
    together = write(rows=500, in_flush=False)
    unknown = write(rows=-1, batch_size=500, in_flush=False)
    assert reported(RowByRowWrites(), *[together, unknown] * 60) == []


def test_what_reads_or_fails_is_not_counted() -> None:
    others = [write("SELECT"), write("SAVEPOINT"), write(error=INTEGRITY)]
    assert reported(RowByRowWrites(), *others * 60) == []


def test_rows_are_reported_once_and_not_for_the_next_flush_too() -> None:
    flushes = [fact for _ in range(3) for fact in a_flush(120)]
    assert len(reported(RowByRowWrites(), *flushes)) == 1


def test_facts_without_a_line_are_survived() -> None:
    found = reported(RowByRowWrites(), *[write(site=None, in_flush=False) for _ in range(20)])
    assert [one.site for one in found if isinstance(one, Finding)] == [None]

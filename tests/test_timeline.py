"""Tests that a session's steps stay in order, fold where they repeat, and are never endless."""

from __future__ import annotations

import pytest

from session_tracer import CallSite
from session_tracer.model.counts import add_counts
from session_tracer.model.timeline import Step, Timeline

HERE = CallSite("shop.py", 1, "sell")
THERE = CallSite("shop.py", 2, "sell")


def verbs(timeline: Timeline) -> list[tuple[int, str, int]]:
    """When, what, and how often."""
    return [(step.at, step.verb, step.count) for step in timeline]


def test_steps_come_in_the_order_in_which_they_were_added() -> None:
    timeline = Timeline(10)
    timeline.add(1, "begin", "", HERE)
    timeline.add(2, "select", "Book", HERE)
    timeline.add(3, "commit", "", None)
    assert list(timeline) == [
        Step(1, "begin", "", HERE),
        Step(2, "select", "Book", HERE),
        Step(3, "commit", "", None),
    ]


def test_a_repeat_is_counted_at_the_step_it_repeats() -> None:
    timeline = Timeline(10)
    first = timeline.add(1, "lazy", "Author.books", HERE)
    assert timeline.add(2, "lazy", "Author.books", HERE) is first
    assert timeline.add(3, "lazy", "Author.books", HERE) is first
    assert list(timeline) == [Step(1, "lazy", "Author.books", HERE, 3)]


@pytest.mark.parametrize(
    ("verb", "subject", "site"),
    [
        ("select", "Author.books", HERE),
        ("lazy", "Author.letters", HERE),
        ("lazy", "Author.books", THERE),
        ("lazy", "Author.books", None),
    ],
)
def test_what_differs_in_verb_subject_or_site_is_no_repeat(
    verb: str, subject: str, site: CallSite | None
) -> None:
    timeline = Timeline(10)
    timeline.add(1, "lazy", "Author.books", HERE)
    timeline.add(2, verb, subject, site)
    assert [step.count for step in timeline] == [1, 1]


def test_a_site_of_another_caller_is_the_same_line() -> None:
    timeline = Timeline(10)
    timeline.add(1, "lazy", "Author.books", HERE)
    timeline.add(2, "lazy", "Author.books", CallSite("shop.py", 1, "sell", (THERE,)))
    assert verbs(timeline) == [(1, "lazy", 2)]


def test_the_turns_of_a_loops_body_fold() -> None:
    timeline = Timeline(10)
    for turn in range(3):
        for number, verb in enumerate(("select", "lazy", "flush", "refresh")):
            timeline.add(10 * turn + number, verb, "", HERE)
    assert verbs(timeline) == [(0, "select", 3), (1, "lazy", 3), (2, "flush", 3), (3, "refresh", 3)]


def test_a_repeat_is_not_looked_for_further_back_than_that() -> None:
    timeline = Timeline(20)
    for turn in range(2):
        for verb in ("one", "two", "three", "four", "five"):
            timeline.add(turn, verb, "", HERE)
    assert verbs(timeline) == [
        (turn, verb, 1) for turn in range(2) for verb in ("one", "two", "three", "four", "five")
    ]


@pytest.mark.parametrize("boundary", ["begin", "commit", "rollback"])
def test_two_transactions_are_two_stories(boundary: str) -> None:
    timeline = Timeline(10)
    timeline.add(1, "select", "Book", HERE)
    timeline.add(2, boundary, "", HERE)
    timeline.add(3, "select", "Book", HERE)
    assert verbs(timeline) == [(1, "select", 1), (2, boundary, 1), (3, "select", 1)]


def test_a_savepoint_is_no_boundary() -> None:
    timeline = Timeline(10)
    for at in range(3):
        timeline.add(at, "savepoint", "", HERE)
        timeline.add(at, "release", "", HERE)
    assert verbs(timeline) == [(0, "savepoint", 3), (0, "release", 3)]


def test_a_step_may_refuse_to_fold() -> None:
    timeline = Timeline(10)
    timeline.add(1, "close", "", HERE)
    timeline.add(2, "close", "", HERE, fold=False)
    assert verbs(timeline) == [(1, "close", 1), (2, "close", 1)]


@pytest.mark.parametrize(
    ("most", "added", "kept", "left_out"),
    [
        (4, 4, [0, 1, 2, 3], 0),
        (4, 5, [0, 1, 3, 4], 1),
        (4, 100, [0, 1, 98, 99], 96),
        (5, 100, [0, 1, 2, 98, 99], 95),
        (5, 5, [0, 1, 2, 3, 4], 0),
        (5, 0, [], 0),
    ],
)
def test_the_middle_of_a_long_session_is_left_out(
    most: int, added: int, kept: list[int], left_out: int
) -> None:
    timeline = Timeline(most)
    for at in range(added):
        timeline.add(at, "select", f"statement {at}", HERE)
    assert [step.at for step in timeline] == kept
    assert timeline.left_out == left_out
    assert len(timeline) == len(kept)
    assert len(timeline) + timeline.left_out == added


def test_repeats_fold_after_the_middle_was_left_out() -> None:
    timeline = Timeline(4)
    for at in range(10):
        timeline.add(at, "select", f"statement {at}", HERE)
    for at in range(10, 20):
        timeline.add(at, "lazy", "Author.books", HERE)
    assert verbs(timeline) == [
        (0, "select", 1),
        (1, "select", 1),
        (9, "select", 1),
        (10, "lazy", 10),
    ]
    assert timeline.left_out == 7


def test_a_repeat_of_what_was_kept_first_folds_across_the_border() -> None:
    timeline = Timeline(4)
    for at, verb in enumerate(("begin", "select", "lazy", "select", "lazy")):
        timeline.add(at, verb, "", HERE)
    assert verbs(timeline) == [(0, "begin", 1), (1, "select", 2), (2, "lazy", 2)]
    assert timeline.left_out == 0


def test_counts_are_added_entity_by_entity() -> None:
    total = {"Author": 1}
    add_counts(total, {"Author": 2, "Book": 3})
    add_counts(total, {})
    assert total == {"Author": 3, "Book": 3}

"""Tests how the cost of tracing is measured, and that it stays in the budget."""

from __future__ import annotations

import dis
import os
import re
import sys
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from benchmarks import budget, page, results
from benchmarks.budget import Budget, Spent
from benchmarks.count import Meter, any_package, counted
from benchmarks.measure import show, why_not
from benchmarks.plot import plot
from benchmarks.results import Count, Figure, Ratios, Row, Section
from benchmarks.variants import (
    BARE,
    FLOORS,
    LEVELS,
    SPANS,
    Factory,
    InForce,
    Level,
    Variant,
    nothing,
)
from benchmarks.works import WORKS, SyncWork
from session_tracer import DEFAULT_DETECTORS, Finding
from session_tracer.facts import (
    ConnectionAcquired,
    ConnectionReleased,
    Fact,
    FlushBegan,
    FlushCompleted,
    SessionClosed,
    SessionOpened,
    StatementExecuted,
    TransactionBegan,
    TransactionEnded,
)

if TYPE_CHECKING:
    from pathlib import Path

    from session_tracer.ledger.report import Report

CHANGE_ONE = WORKS[0]
SMALL = [work for work in WORKS if work.key in ("W1", "W5", "W6")]

# The guard


# One of them takes as long to count as all others, and `all` counts it at each level.
LARGEST = next(work for work in budget.COUNTED if work.title == "add 1,000, commit")
SOME = {"A": LEVELS["A"]}
LEVELS_OF_LARGEST = LEVELS if os.environ.get("SESSION_TRACER_TEST_LEVELS") == "all" else SOME


@pytest.mark.timeout(600)  # counting takes ten seconds, and many times that on a busy machine
def test_no_unit_of_work_executes_more_than_is_budgeted() -> None:
    others = [work for work in budget.COUNTED if work is not LARGEST]
    spent = {**budget.spend(others), **budget.spend([LARGEST], LEVELS_OF_LARGEST)}
    assert budget.excesses(spent, budget.read()) == []


class OneMoreDetector:
    """Is called for everything that a unit of work does, and reports nothing."""

    facts = (
        SessionOpened,
        TransactionBegan,
        ConnectionAcquired,
        StatementExecuted,
        FlushBegan,
        FlushCompleted,
        ConnectionReleased,
        TransactionEnded,
        SessionClosed,
    )

    def memory(self) -> None:
        return None

    def judge(self, fact: Fact, report: Report, memory: None) -> tuple[Finding, ...]:
        return ()


def test_one_detector_more_is_over_the_budget() -> None:
    spent_now = budget.spend([CHANGE_ONE], {"A": LEVELS["A"]})
    more = Variant("A", "", Level(False, False, (*DEFAULT_DETECTORS, OneMoreDetector())))
    committed = Budget(budget.PYTHON, spent_now)
    found = budget.excesses(budget.spend([CHANGE_ONE], {"A": more}), committed)
    assert {excess.partition(":")[0] for excess in found} == {"W1 get, change, commit at level A"}
    assert budget.excesses(spent_now, committed) == []


def test_a_count_is_the_same_every_time() -> None:
    # At level A: with recorded spans, a duration decides whether it has an exemplar.
    once, again = (budget.spend(SMALL, {"A": LEVELS["A"]}) for _ in range(2))
    assert once == again


BUDGETED = Budget("3.11", {("get, change, commit", "A"): Spent(10_000, 1_000)})


@pytest.mark.parametrize(
    ("python", "spent", "over"),
    [
        ("3.11", Spent(10_200, 1_020), []),
        ("3.11", Spent(10_201, 1_000), ["10,201 instructions"]),
        ("3.11", Spent(10_000, 1_021), ["1,021 calls"]),
        ("3.13", Spent(99_999, 1_100), []),
        ("3.13", Spent(1, 1_101), ["1,101 calls"]),
    ],
)
def test_instructions_are_compared_on_the_python_they_were_counted_on(
    python: str, spent: Spent, over: list[str]
) -> None:
    found = budget.excesses({("get, change, commit", "A"): spent}, BUDGETED, python)
    assert [" ".join(re.findall(r"executes (\S+ \w+);", excess)) for excess in found] == over


def test_an_excess_names_the_work_the_numbers_and_what_to_do() -> None:
    (message,) = budget.excesses({("get, change, commit", "A"): Spent(1, 1_500)}, BUDGETED, "3.11")
    assert message == (
        "W1 get, change, commit at level A: session_tracer executes 1,500 calls; the budget is"
        " 1,000 plus 2%. Run `python -m benchmarks.count W1 A` to see where. To allow it, run"
        " `python3 tasks.py benchmark --write-budget`."
    )


def test_every_level_of_every_counted_work_has_a_budget() -> None:
    assert budget.read().spending.keys() == {
        (work.title, level) for work in budget.COUNTED for level in LEVELS
    }


def test_a_budget_is_written_for_one_line_and_leaves_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "FILE", tmp_path / "budget.json")
    first, second = ({("open, close", "A"): Spent(n, n)} for n in (1, 2))
    monkeypatch.setattr(budget, "SQLALCHEMY", "2.0")
    budget.write(first)
    monkeypatch.setattr(budget, "SQLALCHEMY", "2.1")
    budget.write(second)
    assert [budget.read(line) for line in ("2.0", "2.1")] == [
        Budget(budget.PYTHON, first),
        Budget(budget.PYTHON, second),
    ]


# The counting


def test_an_untraced_session_executes_nothing_of_session_tracer() -> None:
    packages = {function.package for function in counted(CHANGE_ONE, BARE)}
    assert "sqlalchemy" in packages
    assert "session_tracer" not in packages


def twice(number: int) -> int:
    return len(range(number)) + len(range(number))


def call_twice(_sessions: sessionmaker[Session]) -> None:
    twice(3)


@pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="3.12.1 and 3.13.0 have no events of opcodes; instructions are counted on 3.11",
)
def test_calls_and_instructions_are_those_a_function_makes_itself() -> None:
    meter = Meter(any_package)
    match meter.on(SyncWork("", "", call_twice)):
        case SyncWork(run=run):
            profile = meter.profile(lambda: run(sessionmaker()))
    own = [counts for function, counts in profile.items() if function.name == "twice"]
    assert [(counts.calls, counts.c_calls, counts.calls_out) for counts in own] == [(1, 2, 0)]
    # The first instruction has no event.
    assert 8 < own[0].instructions < len([*dis.get_instructions(twice, adaptive=False)])


# The proofs


@pytest.mark.parametrize(
    "variant", [*FLOORS, SPANS, *LEVELS.values()], ids=lambda variant: variant.name
)
def test_a_variant_proves_that_it_is_active(variant: Variant) -> None:
    for work in SMALL:
        show(variant, work)


def missing(_factory: Factory) -> Any:
    raise ModuleNotFoundError("No module named 'tracer_of_others'")


def idle(_factory: Factory) -> Any:
    return nothing_traced()


class nothing_traced:
    def __enter__(self) -> InForce:
        return InForce(self.prove)

    def __exit__(self, *exception: object) -> None:
        pass

    def prove(self) -> None:
        raise AssertionError("it is active, and the UPDATE of W1 was not traced")


def test_a_tracer_is_left_out_with_its_reason() -> None:
    assert [
        why_not(Variant("other", "", applied), [CHANGE_ONE]) for applied in (nothing, missing, idle)
    ] == [
        None,
        "ModuleNotFoundError: No module named 'tracer_of_others'",
        "AssertionError: it is active, and the UPDATE of W1 was not traced",
    ]


# The page

SECTION = Section(
    "SQLAlchemy 2.1.9, a machine",
    [
        Ratios(
            "SQLite 3.40.1",
            2,
            {"bare": "no tracing", "control": "again", "A": "all on", "Sentry": "another"},
            {"ddtrace": "ModuleNotFoundError: No module named 'ddtrace'"},
            [
                Row(
                    "W1",
                    "get, change, commit",
                    0.00025,
                    40,
                    {"control": [1.0, 1.01], "A": [1.05, 1.06], "Sentry": [1.6, 1.7]},
                ),
                Row(
                    "W5",
                    "open, close",
                    0.000005,
                    40,
                    {"control": [1.0, 1.1], "A": [1.5, 1.6], "Sentry": [1.0, 1.0]},
                ),
            ],
        )
    ],
    [Figure("import", "70 ms", "under 60 ms", False)],
    [
        Count("W1", "get, change, commit", "A", {"session_tracer": 2_500, "sqlalchemy": 200}),
        Count("W1", "get, change, commit", "B", {"session_tracer": 3_000, "opentelemetry": 500}),
        Count("W1", "get, change, commit", "C", {"session_tracer": 3_400, "opentelemetry": 1_600}),
        Count("W1", "get, change, commit", "spans", {"opentelemetry": 1_250, "benchmarks": 90}),
    ],
)


def test_a_measured_ratio_has_its_goal_and_is_bold_if_it_misses_it() -> None:
    assert page.levels(SECTION) == [
        [
            ["work", "on", "untraced", "A", "goal", "control"],
            [
                "W1 get, change, commit",
                "SQLite 3.40.1",
                "250 µs",
                "1.06 [1.05..1.06]",
                "1.15",
                "1.00 [1.00..1.01]",
            ],
            [
                "W5 open, close",
                "SQLite 3.40.1",
                "5 µs",
                "**1.55 [1.50..1.60]**",
                "1.20",
                "1.05 [1.00..1.10]",
            ],
        ]
    ]


def test_instructions_have_their_goal_and_packages() -> None:
    header, at_a, *_ = page.instructions(SECTION)[0]
    assert dict(zip(header, at_a, strict=True)) == {
        "work": "W1 get, change, commit",
        "level": "A",
        "instructions": "**2,700**",
        "goal": "2,600",
        "session_tracer": "2,500",
        "sqlalchemy": "200",
        "opentelemetry": "0",
        "others": "0",
    }


def test_statement_spans_are_compared_with_the_price_of_the_sdk() -> None:
    assert page.counted_spans(SECTION)[0][1:] == [
        ["W1 get, change, commit", "1,500", "1,250", "**1.20**", "1.10"]
    ]
    assert page.statement_spans(SECTION) == []
    row = Row(
        "W3",
        "add",
        0.02,
        9,
        {"control": [1, 1], "B": [1.1, 1.2], "C": [1.6, 1.7], "spans": [1.5, 1.5]},
    )
    cheap = Row(
        "W2",
        "select",
        0.02,
        9,
        {"control": [1, 1], "B": [1.1, 1.2], "C": [1.1, 1.2], "spans": [1.01, 1.0]},
    )
    assert page.statement_spans(Section("", [Ratios("SQLite", 2, {}, {}, [row, cheap])])) == [
        [
            ["work", "on", "C adds to B", "OpenTelemetry's spans alone", "compared", "goal"],
            ["W3 add", "SQLite", "50%", "50%", "1.00 [1.00..1.00]", "1.10"],
        ]
    ]


def test_the_readme_has_the_medians_of_both_databases() -> None:
    (on_sqlite,) = SECTION.ratios
    on_postgresql = Ratios("PostgreSQL 18.4", 2, on_sqlite.titles, {}, on_sqlite.rows)
    assert page.overview(Section("a machine", [on_sqlite, on_postgresql])) == (
        "| work | untraced, SQLite 3.40.1 | control | A | PostgreSQL 18.4: A |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| W1 get, change, commit | 250 µs | 1.00 | 1.06 | 1.06 |\n"
        "| W5 open, close | 5 µs | 1.05 | **1.55** | **1.55** |\n\n"
        "a machine.\n"
    )


def test_missing_variants_and_noisy_rows_are_noted() -> None:
    assert page.explained(SECTION) == [
        "Sentry: another.",
        "ddtrace is missing: ModuleNotFoundError: No module named 'ddtrace'",
    ]
    (noisy,) = page.noise(SECTION)
    assert noisy == (
        "The control of W5 open, close on SQLite 3.40.1 is off by 5.0%, allowed are 3%:"
        " measure it again on a quieter machine."
    )


def test_results_come_back_from_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    line = results.sqlalchemy_line()
    assert results.saved("works", line) is None
    results.save("works", SECTION)
    assert results.saved("works", line) == SECTION


def test_the_page_is_written_between_its_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(page, "PLOT", tmp_path / "performance.svg")
    monkeypatch.setattr(page, "README", tmp_path / "README.md")
    page.PAGE.write_text(f"before\n{page.BEGIN}old\n{page.END}after\n")
    monkeypatch.setattr(results, "sqlalchemy_line", lambda: "2.1")
    results.save("memory", SECTION)
    page.write_page()
    assert page.PAGE.read_text() == (
        f"before\n{page.BEGIN}\n## Memory and standing costs\n\n"
        "At level A if no level is named.\n\n### SQLAlchemy 2.1.9, a machine\n\n"
        "| what | measured | goal |\n| --- | --- | --- |\n"
        "| import | **70 ms** | under 60 ms |\n\n"
        f"{page.END}after\n"
    )


def test_the_committed_page_shows_the_committed_results() -> None:
    assert page.figures() in page.PAGE.read_text(encoding="utf-8")
    section = results.saved("works", results.LINES[0])
    assert section is not None
    assert page.overview(section) in page.README.read_text(encoding="utf-8")


def test_the_plot_has_a_mark_for_each_variant_and_a_line_for_each_goal() -> None:
    drawn = ET.fromstring(plot(SECTION))
    svg = "{http://www.w3.org/2000/svg}"
    titles = [
        title.text for mark in drawn.iter(f"{svg}circle") for title in mark.iter(f"{svg}title")
    ]
    assert titles == [
        "W1 get, change, commit, SQLite 3.40.1: Sentry 1.65",
        "W1 get, change, commit, SQLite 3.40.1: A 1.06",
        "W5 open, close, SQLite 3.40.1: Sentry 1.00",
        "W5 open, close, SQLite 3.40.1: A 1.55",
    ]

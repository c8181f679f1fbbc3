"""Tests how often, and for how long, the plugin's report has what repeats in a test."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from session_tracer.model.findings import Finding
from session_tracer.model.totals import Tally, Total
from session_tracer.pytest_plugin.annotations import workflow_commands
from session_tracer.pytest_plugin.case import Reported
from session_tracer.pytest_plugin.cost import Cost
from session_tracer.pytest_plugin.run_findings import Entry, RunFindings
from session_tracer.pytest_plugin.summary import rows
from session_tracer.where.callsite import CallSite
from tests.plugin.suites import steady

if TYPE_CHECKING:
    from tests.plugin.suites import Suites


def row(run_summary: list[str]) -> str:
    (found,) = [steady(line) for line in run_summary if line.startswith("n-plus-one")]
    return found


def test_the_sessions_of_a_test_count_together(suites: Suites) -> None:
    run = suites.run_source(
        """
def test_twice(SessionLocal):
    for _ in range(2):
        with SessionLocal() as session:
            read_one_by_one(session, 12)
""",
        "--session-tracer",
    )
    assert "Author.books 24 SELECTs, TIME of TIME 1 test" in row(run.summary)


def test_a_session_that_tests_share_counts_for_each_of_them(suites: Suites) -> None:
    run = suites.run_source(
        """
def test_before(shared_session):
    read_one_by_one(shared_session, 12)
    shared_session.expire_all()

def test_after(shared_session):
    shared_session.expunge_all()
    read_one_by_one(shared_session, 12)
""",
        "--session-tracer",
    )
    assert "Author.books 12 SELECTs, TIME of TIME 2 tests" in row(run.summary)


def test_the_failure_and_the_junit_file_have_the_total(suites: Suites) -> None:
    run = suites.run_source(
        """
def test_reads(session):
    read_one_by_one(session, 12)
""",
        "--session-tracer=warning",
        "--junitxml=junit.xml",
    )
    lazily = suites.at("# reads lazily")
    report = run.reports["test_reads"]["call"]
    assert steady(report.longrepr.reprcrash.message) == (
        f"session finding: n-plus-one (Author.books: 12 SELECTs, TIME of TIME at {lazily})"
    )
    assert "at least" not in report.longreprtext
    properties = ET.parse(suites.folder / "junit.xml").iter("property")
    (found,) = [
        one.get("value") for one in properties if one.get("name") == "session_tracer.finding"
    ]
    assert steady(found or "") == f"n-plus-one {lazily}, 12 SELECTs, TIME of TIME"


def test_the_json_report_has_the_total(suites: Suites) -> None:
    suites.run_source(
        """
def test_reads(session):
    read_one_by_one(session, 12)
""",
        "--session-tracer",
        "--session-tracer-json=found.json",
    )
    (found,) = json.loads((suites.folder / "found.json").read_text())["findings"]
    assert found["count"] == 12
    assert 0 < found["total_ms"] < found["test_ms"]
    assert found["message"].startswith(
        "Author.books was lazily loaded for Author objects, one SELECT each: 12 SELECTs, "
    )


def finding(total: Total | None, count: int = 5) -> Finding:
    return Finding(
        id="n-plus-one",
        severity="warning",
        message="Author.books was lazily loaded for at least 5 Author objects",
        remedy="",
        site=None,
        session_id="1",
        session_name="default",
        session_site=None,
        count=count,
        total=total,
    )


def total_of(*milliseconds: int) -> Total:
    tally = Tally()
    for one in milliseconds:
        tally.add(one * 1_000_000)
    return Total("SELECT", tally)


def test_a_worker_hands_its_totals_on() -> None:
    here, there = RunFindings(), RunFindings()
    here.add(Reported(finding(total_of(3, 4)), "call", "new"), "test_a")
    there.merge(here.dump())
    (entry,) = there.new
    assert entry.cost == Cost(7.0, 2, 0.0, "SELECT")
    (command,) = workflow_commands(there.new, {})
    assert command == (
        "::warning title=n-plus-one::"
        "Author.books was lazily loaded for Author objects: 2 SELECTs, 7.0 ms%0A"
    )


@pytest.mark.parametrize("order", [1, -1])
def test_a_run_has_the_numbers_of_the_test_in_which_it_took_the_longest(order: int) -> None:
    found = RunFindings()
    for test, total in [("test_a", total_of(30)), ("test_b", total_of(1, 1, 1))][::order]:
        found.add(Reported(finding(total), "call", "new"), test)
    (entry,) = found.new
    assert entry.cost == Cost(30.0, 1, 0.0, "SELECT")
    assert set(entry.tests) == {"test_a", "test_b"}


@pytest.mark.parametrize("order", [1, -1])
def test_what_took_the_most_time_comes_first(order: int) -> None:
    found = RunFindings()
    slow, fast = finding(total_of(30)), finding(total_of(1, 1, 1))
    entries = [("test_a", slow), ("test_b", fast)][::order]
    for test, one in entries:
        found.add(Reported(replace(one, entity=test), "call", "new"), test)
    assert [entry.finding.entity for entry in found.new] == ["test_a", "test_b"]


def test_a_row_has_each_of_its_subjects_once() -> None:
    site = CallSite("app/report.py", 3, "totals")
    twice = [
        Entry(replace(finding(None), entity="Author", site=site, attribute=attribute), "new")
        for attribute in (None, None, "books")
    ]
    (row,) = rows(twice)
    assert " Author, Author.books " in row.rest


def test_what_does_not_repeat_keeps_its_number() -> None:
    entry = Entry(finding(None), "new", cost=Cost.of([finding(None, 3), finding(None, 7)]))
    assert entry.count == 7
    assert entry.message == entry.finding.message

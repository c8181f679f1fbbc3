"""That the thresholds in tests are those of small data, and that each can be set."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Final

import pytest

from session_tracer import Settings
from session_tracer.pytest_plugin.configured import SETTINGS, SMALL, settings_for_tests

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

# Reads books of two and of three authors, where production would read those of a thousand.
READS: Final = """
@pytest.mark.parametrize("authors", [1, 2, 3])
def test_reads(session, authors):
    read_one_by_one(session, authors)
"""
# What finds itself in a loop of the application, and how often the loop turns.
SERVICE: Final = """
from sqlalchemy import select
from tests.library import Author

def get_each(session, ids):
    for id_ in ids:
        session.get(Author, id_)

def commit_and_read(session, ids):
    authors = session.scalars(select(Author).where(Author.id.in_(ids))).all()
    session.commit()
    return [author.name for author in authors]

def flush_and_refresh(session, ids):
    for id_ in ids:
        author = Author(name=f"new {id_}")
        session.add(author)
        session.flush()
        session.refresh(author)
"""
USES: Final = {
    "get_each": "get-in-loop",
    "commit_and_read": "reload-after-commit",
    "flush_and_refresh": "refresh-after-write",
}


def test_two_lazy_loads_are_a_finding_in_a_test(suites: Suites) -> None:
    run = suites.run_source(READS, "--session-tracer=warning")
    assert run.outcomes == {
        "test_reads[1]": "passed",
        "test_reads[2]": "failed",
        "test_reads[3]": "failed",
    }


@pytest.mark.parametrize("use", USES)
def test_three_are_a_finding_in_a_test(suites: Suites, use: str) -> None:
    (suites.folder / "service.py").write_text(SERVICE)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        f"""
import service

@pytest.mark.parametrize("most", [2, 3])
def test_uses(session, most):
    service.{use}(session, range(1, most + 1))
""",
        "--session-tracer=info",
    )
    assert run.outcomes == {"test_uses[2]": "passed", "test_uses[3]": "failed"}
    assert run.summary[0].startswith(f"{USES[use]} ")


def test_the_configuration_file_sets_a_threshold(suites: Suites) -> None:
    suites.configure("session_tracer = warning\nsession_tracer_lazy_loads_from_one_site = 3")
    run = suites.run_source(READS)
    assert run.outcomes["test_reads[2]"] == "passed"
    assert run.outcomes["test_reads[3]"] == "failed"


def test_the_environment_takes_precedence_over_the_configuration_file(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_TRACER_LAZY_LOADS_FROM_ONE_SITE", "4")
    suites.configure("session_tracer_lazy_loads_from_one_site = 2")
    run = suites.run_source(READS, "--session-tracer=warning")
    assert set(run.outcomes.values()) == {"passed"}


def test_the_markers_and_the_fixture_have_the_same_thresholds(suites: Suites) -> None:
    run = suites.run_source("""
def test_reads(session_trace, session):
    read_one_by_one(session, 2)
    assert [finding.id for finding in session_trace.findings] == ["n-plus-one"]
""")
    assert run.outcomes == {"test_reads": "passed"}


def test_the_configuration_file_ignores_findings_and_changes_their_severity(
    suites: Suites,
) -> None:
    suites.configure(
        "session_tracer_ignore =\n    large-flush@jobs/*\n    n-plus-one:Author.books\n"
        "session_tracer_severities = detached-lazy-load=info"
    )
    run = suites.run_source(
        READS + "\ndef test_late(SessionLocal): read_too_late(SessionLocal)\n",
        "--session-tracer=warning",
    )
    assert set(run.outcomes.values()) == {"passed"}
    assert run.summary[-1] == "1 finding in 5 sessions"


BAD: Final = {
    "session_tracer_lazy_loads_from_one_site = many": (
        "Invalid session_tracer_lazy_loads_from_one_site='many' in pytest's configuration file: "
        "expected an integer of at least 2."
    ),
    "session_tracer_gets_from_one_site = 1": (
        "Invalid session_tracer_gets_from_one_site='1' in pytest's configuration file: "
        "expected an integer of at least 2."
    ),
    "session_tracer_leak_after_seconds = soon": (
        "Invalid session_tracer_leak_after_seconds='soon' in pytest's configuration file: "
        "expected a positive number of seconds."
    ),
    "session_tracer_ignore = n-plus-on": (
        "Invalid session_tracer_ignore='n-plus-on': expected the id of a finding. "
        "Did you mean 'n-plus-one'?"
    ),
    "session_tracer_severities = large-flushes=info": (
        "Invalid session_tracer_severities='large-flushes': expected the id of a finding. "
        "Did you mean 'large-flush'?"
    ),
}


@pytest.mark.parametrize("line", BAD)
def test_an_invalid_setting_is_refused_at_the_start(suites: Suites, line: str) -> None:
    suites.configure(line)
    run = suites.run_source("def test_never_begins(): pass", "--session-tracer")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.has(f"session_tracer: {BAD[line]}")
    assert "test_never_begins" not in run.text


def test_an_invalid_setting_is_refused_once_before_workers_start(suites: Suites) -> None:
    (line, message), *_ = BAD.items()
    suites.configure(line)
    suites.write("def test_never_begins(): pass")
    run = suites.run("-n2", "--session-tracer", apart=True)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.text.count(message) == 1


def test_a_project_may_use_names_of_its_own_in_the_environment(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application may have detectors, whose findings the variable ignores."""
    monkeypatch.setenv("SESSION_TRACER_IGNORE", "slow-statement")
    run = suites.run_source("def test_passes(): pass", "--session-tracer")
    assert run.outcomes == {"test_passes": "passed"}


def test_the_small_thresholds_are_lower_than_those_of_the_application() -> None:
    small, usual = settings_for_tests({}), Settings()
    differing = {
        option.name
        for option in fields(Settings)
        if getattr(small, option.name) != getattr(usual, option.name)
    }
    assert differing == set(SMALL)
    assert all(getattr(small, name) < getattr(usual, name) for name in SMALL)
    assert set(SMALL) <= set(SETTINGS)


@pytest.mark.parametrize(
    "table",
    [
        "tool.pytest.ini_options",
        pytest.param(
            "tool.pytest",
            marks=pytest.mark.skipif(pytest.version_tuple < (9,), reason="pytest 9 has the table"),
        ),
    ],
)
def test_a_configuration_in_toml_has_lists(suites: Suites, table: str) -> None:
    (suites.folder / "tox.ini").unlink()
    (suites.folder / "pyproject.toml").write_text(
        f"""
[{table}]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
session_tracer = "warning"
session_tracer_lazy_loads_from_one_site = "3"
session_tracer_ignore = ["large-flush@jobs/*", "detached-lazy-load"]
session_tracer_severities = ["large-result=error", "left-open=info"]
session_tracer_budget = ["statements=3", "sql_ms=60000"]
"""
    )
    run = suites.run_source(READS + "\ndef test_late(SessionLocal): read_too_late(SessionLocal)\n")
    assert run.outcomes == {
        "test_reads[1]": "passed",
        "test_reads[2]": "passed",
        "test_reads[3]": "failed",
        "test_late": "passed",
    }
    message = run.reports["test_reads[3]"]["call"].longrepr.reprcrash.message
    assert message.startswith("session budget: statements 4 > 3 (")
    assert "; session finding: n-plus-one (" in message

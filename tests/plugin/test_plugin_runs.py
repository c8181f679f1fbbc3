"""That a whole run is summed up once: over tests and workers, against a baseline, for GitHub."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from session_tracer.model.findings import Finding, Severity
from session_tracer.pytest_plugin.annotations import is_github_actions, workflow_commands
from session_tracer.pytest_plugin.case import Reported
from session_tracer.pytest_plugin.cost import Cost
from session_tracer.pytest_plugin.run_findings import Entry, RunFindings
from session_tracer.pytest_plugin.summary import rows
from session_tracer.version import VERSION
from session_tracer.where.callsite import CallSite
from tests.plugin.suites import ROOT, steady

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugin.suites import Suites

MANY = """
@pytest.mark.parametrize("_", range(3))
def test_lazily(SessionLocal, _):
    with SessionLocal() as session:
        read_one_by_one(session, 12)

def test_late(SessionLocal):
    read_too_late(SessionLocal)
"""


def test_findings_are_grouped_by_id_and_site(suites: Suites) -> None:
    run = suites.run_source(MANY, "--session-tracer")
    late, lazily = suites.at("# reads too late"), suites.at("# reads lazily")
    assert [steady(line) for line in run.summary] == [
        f"detached-lazy-load {late} Author.books 1 test (test_library.py::test_late)",
        (
            " write select(Author).options(selectinload(Author.books)) at "
            f"{suites.at('# selects')} in first()"
        ),
        ' allow @pytest.mark.session_allow("detached-lazy-load:Author.books", reason="...")',
        f"n-plus-one {lazily} Author.books 12 SELECTs, TIME of TIME 3 tests",
        (
            " write select(Author).options(selectinload(Author.books)) at "
            f"{suites.at('# selects some')} in read_one_by_one()"
        ),
        ' allow @pytest.mark.session_allow("n-plus-one:Author.books", reason="...")',
        "2 findings in 5 sessions",
    ]


def test_several_options_of_one_statement_are_written_once() -> None:
    site = CallSite("/srv/views.py", 9, "show")
    attributes = [("Author", "books"), ("Author", "awards"), ("Book", "shelf")]
    entries = [
        Entry(
            replace(
                finding("warning", "", site),
                id="n-plus-one",
                remedy=f"select({entity}).options(selectinload({entity}.{attribute})) at a.py:7",
                entity=entity,
                attribute=attribute,
            ),
            "new",
        )
        for entity, attribute in attributes
    ]
    (row,) = rows(entries)
    assert row.below[:-1] == [
        (
            "write select(Author).options(selectinload(Author.books), selectinload(Author.awards))"
            " at a.py:7"
        ),
        "write select(Book).options(selectinload(Book.shelf)) at a.py:7",
    ]


def test_the_other_lines_of_a_mistake_are_shown_with_their_remedies() -> None:
    site, other = CallSite("/srv/views.py", 9, "show"), CallSite("/srv/parts.py", 3, "part")
    named = replace(
        finding("warning", "", site),
        id="query-in-loop",
        entity="Author",
        remedy="run one SELECT of Author before the loop",
        evidence={"loop": "views.py:8 in show()"},
    )
    text = "one statement runs for each item"
    unnamed = replace(named, site=other, entity=None, message=text, remedy="select once")
    (row,) = rows([Entry(named, "new", sessions=["1"]), Entry(unnamed, "new", sessions=["1"])])
    assert row.below[:-1] == [
        f"also /srv/parts.py:3   {text}",
        "do run one SELECT of Author before the loop",
        "do select once",
    ]


def test_each_class_is_named_once() -> None:
    found = finding("warning", "", CallSite("/srv/views.py", 9, "show"))
    several = replace(found, evidence={"entities": {"Book": 2, "Author": 1}})
    alone = replace(found, entity="Author")
    entries = [Entry(one, "new", tests={"t.py::test_a": "call"}) for one in (several, alone)]
    assert {row.rest.split("   ")[1].strip() for row in rows(entries)} == {"Author, Book", "Author"}


def test_of_several_tests_the_one_is_named_that_takes_the_longest() -> None:
    found = finding("warning", "", CallSite("/srv/views.py", 9, "show"))
    tests = dict.fromkeys(["t.py::test_a", "t.py::test_b", "t.py::test_c"], "call")
    entry = Entry(found, "new", tests=tests)
    assert [row.rest.rpartition("   ")[2] for row in rows([entry])] == ["3 tests (t.py::test_a, …)"]
    entry.has_cost(Cost(1.0, 3, 8.0, "SELECT"), "t.py::test_c")
    entry.has_cost(Cost(2.0, 2, 8.0, "SELECT"), "t.py::test_b")
    assert [row.rest.rpartition("   ")[2] for row in rows([entry])] == ["3 tests (t.py::test_b, …)"]


def test_what_happens_outside_of_tests_is_reported_as_that(suites: Suites) -> None:
    run = suites.run_source(
        """
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

request_finding(sessionmaker(create_engine("sqlite://")), "warning")

def test_nothing():
    pass
""",
        "--session-tracer=info",
    )
    assert run.outcomes == {"test_nothing": "passed"}
    assert run.summary[0] == f"demo-warning   {suites.at('# requests')}   outside of tests"


def test_a_baseline_accepts_what_is_known_and_reports_what_is_new(suites: Suites) -> None:
    options = ("--session-tracer=warning", "--session-tracer-baseline=known.jsonl")
    suites.write("def test_late(SessionLocal): read_too_late(SessionLocal)\n")
    written = suites.run(*options, "--session-tracer-update-baseline")
    assert written.outcomes == {"test_late": "passed"}
    assert written.summary[-1] == "1 new, 0 known; updated known.jsonl"

    # Lines above it do not matter.
    suites.write(f"\n\n{MANY}")
    run = suites.run(*options)
    assert run.outcomes == {
        "test_lazily[0]": "failed",
        "test_lazily[1]": "failed",
        "test_lazily[2]": "failed",
        "test_late": "passed",
    }
    assert run.summary[0].startswith("n-plus-one ")
    assert run.summary[-1] == "1 new, 1 known (baseline)"
    properties = dict(run.reports["test_late"]["teardown"].user_properties)
    assert "session_tracer.finding" not in properties

    # What is known already stays, and what is accepted fails no test.
    updated = suites.run(*options, "--session-tracer-update-baseline", "-k", "lazily")
    assert set(updated.outcomes.values()) == {"passed"}
    assert updated.summary[-1] == "1 new, 0 known; updated known.jsonl"
    again = suites.run(*options)
    assert set(again.outcomes.values()) == {"passed"}
    assert again.summary == ["0 new, 2 known (baseline)"]


def test_the_configuration_file_can_name_the_baseline(suites: Suites) -> None:
    suites.write("def test_late(SessionLocal): read_too_late(SessionLocal)\n")
    suites.run("--session-tracer-baseline=known.jsonl", "--session-tracer-update-baseline")
    suites.configure("session_tracer = error\nsession_tracer_baseline = known.jsonl")
    run = suites.run()
    assert run.outcomes == {"test_late": "passed"}
    assert run.summary == ["0 new, 1 known (baseline)"]


def test_the_environment_can_name_the_baseline(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    suites.write("def test_late(SessionLocal): read_too_late(SessionLocal)\n")
    suites.run("--session-tracer-baseline=known.jsonl", "--session-tracer-update-baseline")
    monkeypatch.setenv("SESSION_TRACER_BASELINE_PATH", "known.jsonl")
    assert suites.run().summary == []
    assert suites.run("--session-tracer=error").summary == ["0 new, 1 known (baseline)"]


def test_a_baseline_that_is_not_there_is_refused(suites: Suites) -> None:
    run = suites.run_source(MANY, "--session-tracer-baseline=nowhere.jsonl")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.has("--session-tracer-baseline: ", "nowhere.jsonl")


def test_workers_find_together(suites: Suites) -> None:
    suites.write(MANY)
    suites.write(
        MANY
        + """
@pytest.mark.session_budget(statements=0)
def test_has_no_budget(SessionLocal):
    first(SessionLocal)
""",
        "test_others",
    )
    run = suites.run(
        "-n2",
        "--session-tracer=error",
        "--session-tracer-baseline=known.jsonl",
        "--session-tracer-update-baseline",
        "--junitxml=junit.xml",
        apart=True,
    )
    assert run.has(
        "session budget: statements 1 > 0 (select Author at test_others.py:",
        "FAILED test_others.py::test_has_no_budget - session budget: statements 1 > 0",
        "1 failed, 8 passed",
    )
    assert [line.split()[0] for line in run.summary if not line.startswith(" ")] == [
        "detached-lazy-load",
        "detached-lazy-load",
        "n-plus-one",
        "n-plus-one",
        "4",
    ]
    assert run.summary[-1] == "4 new, 0 known; updated known.jsonl"
    assert (suites.folder / "known.jsonl").read_text().count('"id"') == 4
    assert (suites.folder / "junit.xml").read_text().count("session_tracer.finding") == 8


def test_github_shows_new_findings(suites: Suites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(suites.folder.parent))
    run = suites.run_source(
        'def test_requests(SessionLocal): request_finding(SessionLocal, "warning")',
        "--session-tracer",
    )
    line = suites.at("# requests").partition(":")[2]
    file = f"{suites.folder.name}/test_library.py"
    assert run.summary[-1] == (
        f"::warning file={file},line={line},title=demo-warning::it was requested%0Arequest less"
    )


def finding(severity: Severity, message: str, site: CallSite | None) -> Finding:
    return Finding(
        id="demo",
        severity=severity,
        message=message,
        remedy="50% less",
        site=site,
        session_id="1",
        session_name="default",
        session_site=None,
        count=3,
        evidence={"loaded": {"Author": 1}, "at": ["here"]},
    )


def test_what_github_reads_is_escaped() -> None:
    site = CallSite("/srv/a,b:c%.py", 7, "f")
    commands = workflow_commands(
        [
            Entry(finding("error", "two\r\nlines: 100%", site), "new"),
            Entry(finding("info", "nowhere", None), "new"),
        ],
        {"GITHUB_WORKSPACE": "/elsewhere"},
    )
    assert list(commands) == [
        "::error file=/srv/a%2Cb%3Ac%25.py,line=7,title=demo::two%0D%0Alines: 100%25%0A50%25 less",
        "::notice title=demo::nowhere%0A50%25 less",
    ]


@pytest.mark.parametrize("value", ["", "false", None])
def test_there_are_no_annotations_elsewhere(value: str | None) -> None:
    assert not is_github_actions({} if value is None else {"GITHUB_ACTIONS": value})


def test_findings_are_the_same_after_they_are_dumped_and_merged() -> None:
    site = CallSite("/srv/a.py", 7, "f")
    here, there = RunFindings(), RunFindings()
    here.add(Reported(finding("error", "one", site), "call", "new"), "test_a")
    here.add(Reported(finding("error", "one", site), "teardown", "new"), "test_b")
    here.add(Reported(finding("info", "two", None), "call", "known"), "")
    here.sessions = 4
    there.merge(here.dump())
    assert there.new == here.new
    assert (there.known, there.sessions) == (1, 4)
    there.merge(here.dump())
    assert there.new == here.new
    assert there.sessions == 8


def test_a_plugin_that_is_not_used_imports_nothing() -> None:
    program = """
import sys
import pytest
before = set(sys.modules)
import session_tracer.pytest_plugin
heavy = {name.partition(".")[0] for name in set(sys.modules) - before}
assert heavy <= {"session_tracer"}, heavy
loaded = {name for name in sys.modules if name.startswith("session_tracer.")}
assert all(name.startswith("session_tracer.pytest_plugin") for name in loaded), loaded
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_an_application_may_have_imported_the_package_before_pytest(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest warns of plugins' packages that it is too late to rewrite the assertions of."""
    install(suites.folder / "installed")
    monkeypatch.setenv("PYTHONPATH", f"{suites.folder / 'installed'}:{ROOT}")
    suites.write("def test_late(SessionLocal): read_too_late(SessionLocal)\n")
    program = """
import sys
import session_tracer, session_tracer.settings
import pytest
print(session_tracer.__file__)
sys.exit(pytest.main(["-W", "error", "-p", "no:cacheprovider", "--session-tracer"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=suites.folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(str(suites.folder / "installed"))
    assert "detached-lazy-load" in done.stdout


def install(folder: Path) -> None:
    """Lay the package out as a wheel would."""
    shutil.copytree(ROOT / "session_tracer", folder / "session_tracer")
    info = folder / f"session_tracer-{VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: session-tracer\nVersion: {VERSION}\n")
    (info / "RECORD").write_text("session_tracer/__init__.py,,\n")
    (info / "entry_points.txt").write_text(
        "[pytest11]\nsession_tracer = session_tracer.pytest_plugin\n"
    )


COMPARED = """
import threading

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from tests.library import Author

@pytest.fixture(autouse=True)
def same_threads():
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before

def test_the_first_session():
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        session.execute(text("SELECT 1"))
    engine.dispose()

def test_failures_that_repeat(SessionLocal):
    for _ in range(3):
        with pytest.raises(IntegrityError), SessionLocal.begin() as session:
            session.add(Author(id=1, name="new"))
"""


@pytest.mark.parametrize(
    ("option", "mark"),
    [("--session-tracer", ""), ("-v", "pytestmark = pytest.mark.session_budget(statements=99)")],
)
@pytest.mark.parametrize("chosen", ["test_the_first_session", "test_failures_that_repeat"])
def test_no_thread_starts_during_a_test(
    suites: Suites, chosen: str, option: str, mark: str
) -> None:
    suites.write(COMPARED + mark)
    run = suites.run(option, "-k", chosen, apart=True)
    assert run.exit_code == 0, run.text
    assert run.has("1 passed")


def test_a_file_has_one_path_wherever_a_test_goes(suites: Suites) -> None:
    run = suites.run_source(
        """
import os, shutil

def test_far_away(SessionLocal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read_too_late(SessionLocal)

def test_where_nothing_is_left(SessionLocal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path)
    with SessionLocal() as session:
        read_one_by_one(session, 12)

@pytest.mark.session_allow("n-plus-one@test_library.py", reason="of old")
def test_is_allowed(SessionLocal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SessionLocal() as session:
        read_one_by_one(session, 12)
""",
        "--session-tracer",
    )
    assert set(run.outcomes.values()) == {"passed"}
    assert str(suites.folder) not in "\n".join(run.summary)
    assert [line for line in run.summary if "n-plus-one@test_library.py" in line] == []
    assert run.summary[-1] == "2 findings in 4 sessions, 1 allowed"


INTERRUPT: Final = """
def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Interrupting())

class Interrupting:
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            raise KeyboardInterrupt
"""


def test_workers_that_are_stopped_are_named(suites: Suites) -> None:
    conftest = suites.folder / "conftest.py"
    conftest.write_text(conftest.read_text() + INTERRUPT)
    suites.write(MANY)
    run = suites.run("--session-tracer", "-n1", apart=True)
    assert run.has("no findings in 0 sessions; the findings of 1 worker are missing")

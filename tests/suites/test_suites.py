"""Tests that a suite is run and traced to the last test, and that nothing that differs passes."""

from pathlib import Path

import pytest

import tasks
from tests.suites.__main__ import audit, verdict
from tests.suites.comparing import Difference, Known, differences, summary
from tests.suites.outcomes import Outcomes
from tests.suites.suite import Run, SuiteFailed, run
from tests.suites.tracing import Account

SUITE = '''
"""A suite as SQLAlchemy's: of sessions, of what is expected to fail, of who listens."""

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.events import SessionEvents


@pytest.fixture
def session():
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_a_session(session):
    assert session.scalar(select(1)) == 1


def test_all_events_are_cleared():
    SessionEvents._clear()


def test_another_session(session):
    assert session.scalar(select(2)) == 2


def test_nobody_listens():
    with Session() as session:
        assert list(session.dispatch.after_begin) == []


def test_fails():
    raise AssertionError("as it always has")


@pytest.fixture
def broken():
    yield
    raise AssertionError("as it leaves")


def test_passes_and_then_fails(broken):
    pass


def test_is_skipped():
    pytest.skip("for want of a database")


@pytest.mark.xfail
def test_is_expected_to_fail():
    raise AssertionError


@pytest.mark.xfail
def test_is_expected_to_fail_and_passes():
    pass
'''
ALIKE = {
    "test_suite.py::test_a_session": "passed",
    "test_suite.py::test_all_events_are_cleared": "passed",
    "test_suite.py::test_another_session": "passed",
    "test_suite.py::test_fails": "failed",
    "test_suite.py::test_passes_and_then_fails": "error and passed",
    "test_suite.py::test_is_skipped": "skipped",
    "test_suite.py::test_is_expected_to_fail": "xfailed",
    "test_suite.py::test_is_expected_to_fail_and_passes": "xpassed",
}
LISTENS = "test_suite.py::test_nobody_listens"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The source tree of a small suite."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = mypy\n")
    return tmp_path


def test_only_who_looks_for_listeners_sees_the_tracing(tree: Path) -> None:
    bare = run(tree, ["-n", "0"], traced=False)
    traced = run(tree, ["-n", "1"], traced=True)
    assert bare.outcomes.of_tests == {**ALIKE, LISTENS: "passed"}
    assert traced.outcomes.of_tests == {**ALIKE, LISTENS: "failed"}
    # The session of the test that lists listeners begins no transaction: no span, but a scope.
    assert traced.account == Account(scopes=3, spans=4)
    problem = verdict(bare.outcomes, traced)
    assert len(problem) == 1
    assert problem[0].startswith(f"{LISTENS}: passed, and failed when traced\n")
    assert "assert list(session.dispatch.after_begin) == []" in problem[0]


def test_a_suite_that_cannot_be_collected_is_reported(tree: Path) -> None:
    (tree / "test_suite.py").write_text("import nothing_of_that_name")
    with pytest.raises(SuiteFailed, match="No module named 'nothing_of_that_name'"):
        run(tree, ["-n", "0"], traced=False)


def test_what_is_the_same_is_no_difference() -> None:
    same = {"a": "passed", "b": "failed"}
    assert differences(same, same) == []


def test_each_kind_of_difference_is_seen() -> None:
    bare = {"a": "passed", "b": "failed", "c": "passed", "e[x-1]": "passed"}
    traced = {"a": "failed", "b": "passed", "d": "passed", "e[x-1]": "error and passed"}
    known = [Known("e*", "it lists the listeners")]
    assert differences(bare, traced, known) == [
        Difference("a", "passed", "failed"),
        Difference("b", "failed", "passed"),
        Difference("c", "passed", "not run"),
        Difference("d", "not run", "passed"),
        Difference("e[x-1]", "passed", "error and passed", "it lists the listeners"),
    ]


def test_a_summary_counts_the_most_frequent_first() -> None:
    assert summary({"a": "skipped", "b": "passed", "c": "passed"}) == "2 passed, 1 skipped"
    assert summary({}) == "no test"


def test_a_known_difference_is_reported_and_is_no_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, traced = (
        Outcomes({"a": "passed", "b": "passed"}),
        Outcomes({"a": "failed", "b": "failed"}),
    )
    known = (Known("a", "it lists the listeners"),)
    monkeypatch.setattr("tests.suites.__main__.KNOWN", known)
    assert verdict(bare, Run(traced, None, 0.0)) == ["b: passed, and failed when traced"]
    assert capsys.readouterr().out == (
        "  known difference: a: passed, and failed when traced; it lists the listeners\n"
    )


def test_the_account_of_workers_is_added_up() -> None:
    account = Account(1, 2, 3, {"lifetime": 1}, ["said"], ["left"])
    account.add(Account(1, 2, 3, {"lifetime": 1, "record": 2}, ["said too"], ["left too"]))
    assert account == Account(
        2, 4, 6, {"lifetime": 2, "record": 2}, ["said", "said too"], ["left", "left too"]
    )


def test_every_fault_of_the_tracing_is_a_problem() -> None:
    account = Account(0, 0, 0, {"lifetime": 2}, ["a test: it failed"], ["another test"])
    assert audit(account) == [
        "no session was traced: these tests prove nothing",
        "session_tracer.errors: 2 in lifetime",
        "another context was left after another test",
        "a test: it failed",
    ]


def test_a_good_account_is_no_problem() -> None:
    assert audit(Account(scopes=3, spans=4, findings=1)) == []


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        (["2.0"], ["sqlalchemy[asyncio]==2.0.* -m tests.suites"]),
        (["2.1.9", "test/ext"], ["sqlalchemy[asyncio]==2.1.9 -m tests.suites test/ext"]),
        (
            ["-n", "4"],
            [
                "sqlalchemy[asyncio]==2.1.* -m tests.suites -n 4",
                "sqlalchemy[asyncio]==2.0.* -m tests.suites -n 4",
            ],
        ),
    ],
)
def test_the_task_takes_a_line_a_version_or_both_lines(
    arguments: list[str], commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(tasks, "environment", lambda folder, requirements, *_: requirements[-1])
    monkeypatch.setattr(tasks, "run", lambda command: ran.append(" ".join(command)))
    assert tasks.suites(arguments) == 0
    assert ran == commands

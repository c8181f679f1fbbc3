"""That a session that a test leaves open, in a transaction, is reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

LEAVES = """
LEFT = []

@pytest.fixture
def left_by_a_fixture(SessionLocal):
    session = SessionLocal()  # opened by a fixture
    session.connection()  # begun by a fixture
    LEFT.append(session)

def test_leaves_it(SessionLocal):
    session = SessionLocal()  # opened by a test
    first(SessionLocal)
    LEFT.append(session)
    session.connection()  # begun by a test

def test_its_fixture_leaves_it(left_by_a_fixture):
    pass
"""

ENDS = """
KEPT = []

@pytest.fixture(scope="module")
def shared_in_use(SessionLocal):
    with SessionLocal() as session:
        session.connection()
        yield session

@pytest.fixture(scope="class")
def of_a_class(SessionLocal):
    with SessionLocal() as session:
        session.connection()
        yield session

@pytest.fixture
def closed_by_its_fixture(SessionLocal):
    with SessionLocal() as session:
        yield session

@pytest.fixture
def closer():
    opened = []
    yield opened.append
    for session in opened:
        session.close()

def test_of_the_module(shared_in_use):
    shared_in_use.connection()

class TestOfTheClass:
    def test_one(self, of_a_class):
        of_a_class.connection()

    def test_two(self, of_a_class):
        of_a_class.connection()

def test_a_fixture_closes_it(closed_by_its_fixture, closer, SessionLocal):
    closed_by_its_fixture.connection()
    session = SessionLocal()
    closer(session)
    session.connection()

def test_it_is_in_no_transaction(SessionLocal):
    KEPT.append(SessionLocal())
    KEPT.append(SessionLocal())
    commit(KEPT[-1])

def test_it_closes_it(SessionLocal):
    first(SessionLocal)
"""


def test_it_is_reported_with_where_it_was_opened(suites: Suites) -> None:
    run = suites.run_source(LEAVES, "--session-tracer=error")
    assert set(run.outcomes.values()) == {"passed"}
    assert run.summary == [
        (
            f"left-open   {suites.at('# opened by a fixture')}   "
            "1 test (test_library.py::test_its_fixture_leaves_it, teardown)"
        ),
        (
            "    a session was still open after its test, in a transaction begun at "
            f"{suites.at('# begun by a fixture')} in left_by_a_fixture()"
        ),
        "    write with SessionLocal() as session:",
        (
            f"left-open   {suites.at('# opened by a test')}   "
            "1 test (test_library.py::test_leaves_it, teardown)"
        ),
        (
            "    a session was still open after its test, in a transaction begun at "
            f"{suites.at('# begun by a test')} in test_leaves_it()"
        ),
        "    write with SessionLocal() as session:",
        "2 findings in 4 sessions",
    ]


def test_it_fails_the_teardown_where_warnings_do(suites: Suites) -> None:
    run = suites.run_source(LEAVES, "--session-tracer=warning")
    assert run.outcomes == {
        "test_leaves_it": "teardown error",
        "test_its_fixture_leaves_it": "teardown error",
    }
    shown = run.reports["test_leaves_it"]["teardown"].longreprtext
    assert shown.startswith(f"session finding: left-open ({suites.at('# opened by a test')})\n")


def test_a_session_that_is_closed_is_not_left_open(suites: Suites) -> None:
    run = suites.run_source(ENDS, "--session-tracer=info")
    assert set(run.outcomes.values()) == {"passed"}
    assert run.summary == []


def test_a_session_that_was_left_open_is_not_reported_as_collected_too(suites: Suites) -> None:
    run = suites.run_source(
        """
import gc

def test_leaves_it(SessionLocal):
    session = SessionLocal()
    session.connection()
    session.itself = session

def test_collects():
    gc.collect()
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {"test_leaves_it": "teardown error", "test_collects": "passed"}
    assert [line.split()[0] for line in run.summary if not line.startswith(" ")] == [
        "left-open",
        "1",
    ]


def test_nothing_is_reported_without_an_option(suites: Suites) -> None:
    run = suites.run_source(
        LEAVES.replace("def test_leaves_it(", "def test_leaves_it(session_trace, ")
    )
    assert set(run.outcomes.values()) == {"passed"}
    assert run.summary == []

"""That a flush that fails again and again is reported of the application, and not of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

IMPORTING: Final = """
from sqlalchemy.exc import IntegrityError
from tests.library import Author

def create(session, name):
    session.add(Author(name=name))
    session.commit()  # creates

def create_or_skip(session, name):
    try:
        create(session, name)
    except IntegrityError:
        session.rollback()

def import_all(session, names):
    for name in names:
        create_or_skip(session, name)

def import_each(maker, names):
    for name in names:
        with maker() as session:
            create_or_skip(session, name)

def import_strictly(maker, names):
    with maker() as session:
        for name in names:
            create(session, name)
"""

TESTS: Final = """
from importing import create_or_skip, import_all, import_each, import_strictly

NAMES = [f"of every test {i}" for i in range(12)]

@pytest.fixture(scope="module")
def imported(SessionLocal):
    names = [f"of a fixture {i}" for i in range(12)]
    with SessionLocal() as session:
        import_all(session, names)
    return names

def test_imports_twice(session):
    names = [f"of a test {i}" for i in range(12)]
    import_all(session, names)
    import_all(session, names)

def test_imports_in_two_sessions(SessionLocal):
    for _ in range(2):
        with SessionLocal() as session:
            import_all(session, NAMES)

def test_imports_what_another_test_has(session):
    import_all(session, NAMES)

def test_imports_what_a_fixture_has(session, imported):
    import_all(session, imported)

def test_creates_one_again_and_again(session):
    for _ in range(12):
        create_or_skip(session, "again")

def test_of_a_loop_that_fails(session):
    import_all(session, ["the same"] * 12)

def test_of_a_loop_that_opens_a_session_for_each(SessionLocal):
    import_each(SessionLocal, ["the other"] * 12)

def test_of_what_is_not_handled(SessionLocal):
    try:
        import_strictly(SessionLocal, NAMES)
    except Exception:
        pass
"""


def test_what_tests_have_had_written_may_fail_to_be_written_again(suites: Suites) -> None:
    (suites.folder / "importing.py").write_text(IMPORTING)
    suites.configure("pythonpath = .\nsession_tracer_ignore = commit-in-loop")
    run = suites.run_source(TESTS, "--session-tracer=warning")
    assert run.outcomes == {
        "test_imports_twice": "passed",
        "test_imports_in_two_sessions": "passed",
        "test_imports_what_another_test_has": "passed",
        "test_imports_what_a_fixture_has": "passed",
        "test_creates_one_again_and_again": "passed",
        "test_of_a_loop_that_fails": "failed",
        "test_of_a_loop_that_opens_a_session_for_each": "failed",
        "test_of_what_is_not_handled": "failed",
    }
    assert {line.split()[0] for line in run.summary[:-1] if not line.startswith(" ")} == {
        "failed-flush"
    }

"""That loops with commits are found where a test joins its session to an outer transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

IMPORTING: Final = """
from uuid import uuid4
from tests.library import Author

def save(session, name):
    session.add(Author(name=f"{name} {uuid4()}"))  # SQLite keeps what a savepoint has written
    session.commit()  # commits

def import_all(session, names):
    for name in names:
        save(session, name)  # loops
"""

TESTS: Final = """
from importing import import_all, save

NAMES = [f"new {number}" for number in range(12)]

@pytest.fixture(params=["conditional_savepoint", "create_savepoint"])
def joined(SessionLocal, request):
    with SessionLocal.kw["bind"].connect() as connection:
        transaction = connection.begin()
        mode = request.param
        with SessionLocal(bind=connection, join_transaction_mode=mode) as session:
            yield session
        transaction.rollback()

def test_of_the_application(joined):
    import_all(joined, NAMES)

def test_that_loops_itself(joined):
    for name in NAMES:
        save(joined, name)

def test_of_requests(joined):
    def request(name):
        save(joined, name)
    for name in NAMES:
        request(name)

def test_of_one_after_the_other(joined):
    save(joined, "1"); save(joined, "2"); save(joined, "3"); save(joined, "4")
    save(joined, "5"); save(joined, "6"); save(joined, "7"); save(joined, "8")
    save(joined, "9"); save(joined, "10"); save(joined, "11"); save(joined, "12")
"""


def test_a_loop_of_the_application_is_reported_and_none_of_a_test(suites: Suites) -> None:
    suites.write(TESTS)
    (suites.folder / "importing.py").write_text(IMPORTING)
    run = suites.run("--session-tracer=error")
    assert set(run.outcomes.values()) == {"passed"}, run.text
    found, remedy, *_ = run.summary
    assert found.startswith(f"commit-in-loop   {suites.at('# commits', 'importing')}   Author")
    assert "2 tests (" in found
    assert f"once after the loop at {suites.at('# loops', 'importing')}" in remedy
    assert run.summary[-1].startswith("1 finding in ")

"""That a budget is kept, or the test fails and shows what its sessions did."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.plugin.suites import steady

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

# What does something twice, how it is described, and where.
USES = {
    "sessions": ("first(SessionLocal), first(SessionLocal)", "opened ×2", "# opens"),
    "commits": ("commit(session), commit(session)", "commit ×2", "# commits"),
    "flushes": ("flush(session), flush(session)", "flush ×2", "# flushes"),
    "statements": ("first(SessionLocal), first(SessionLocal)", "select Author ×2", "# selects"),
    "lazy_loads": ("read_one_by_one(session, 2)", "lazy Author.books ×2", "# reads lazily"),
    "loaded": ("session.scalars(select(Author).limit(2)).all()  # loads", "Author ×2", "# loads"),
}


@pytest.mark.parametrize("budget", USES)
def test_a_budget_is_kept_up_to_its_number(suites: Suites, budget: str) -> None:
    twice, cause, where = USES[budget]
    run = suites.run_source(f"""
def use(SessionLocal, session):
    {twice}

@pytest.mark.session_budget({budget}=1)
def test_one_too_many(SessionLocal, session):
    use(SessionLocal, session)

@pytest.mark.session_budget({budget}=2)
def test_as_many(SessionLocal, session):
    use(SessionLocal, session)
""")
    assert run.outcomes == {"test_one_too_many": "failed", "test_as_many": "passed"}
    crash = run.reports["test_one_too_many"]["call"].longrepr.reprcrash
    assert crash.message == f"session budget: {budget} 2 > 1 ({cause} at {suites.at(where)})"
    marked = suites.at(f"session_budget({budget}=1)")
    assert f"{crash.path}:{crash.lineno}" == f"{suites.folder}/{marked}"
    assert run.has(f"FAILED test_library.py::test_one_too_many - {crash.message[:30]}")


def test_the_failure_shows_what_each_session_did(suites: Suites) -> None:
    run = suites.run_source("""
@pytest.mark.session_budget(statements=6, commits=1, lazy_loads=11)
def test_totals(SessionLocal):
    with SessionLocal() as session:  # opens its own
        read_one_by_one(session, 12)
    first(SessionLocal)
""")
    assert steady(run.reports["test_totals"]["call"].longreprtext) == steady(f"""\
session budget: statements 14 > 6 (lazy Author.books ×12 at {suites.at("# reads lazily")}), \
lazy_loads 12 > 11 (lazy Author.books ×12 at {suites.at("# reads lazily")})

● session default ID · closed · 1 ms · connection held 1 ms, 5 % of it in SQL
  opened {suites.at("# opens its own")} in test_totals() · 13 statements · identity map peak 36
    0.0  begin {suites.at("# selects some")} in read_one_by_one()
    1.0  select Author 12 loaded 1 ms {suites.at("# selects some")} in read_one_by_one()
    2.0  lazy Author.books ×12 24 loaded 1 ms {suites.at("# reads lazily")} in <lambda>
    3.0  close {suites.at("# opens its own")} in test_totals()

● session default ID · closed · 1 ms · connection held 1 ms, 5 % of it in SQL
  opened {suites.at("# opens")} in first() · 1 statement · identity map peak 12
    0.0  begin {suites.at("# selects")} in first()
    1.0  select Author 12 loaded 1 ms {suites.at("# selects")} in first()
    2.0  close {suites.at("# opens")} in first()""")


def test_of_many_sessions_the_first_are_shown(suites: Suites) -> None:
    run = suites.run_source("""
@pytest.mark.session_budget(sessions=6)
def test_seven(SessionLocal):
    for _ in range(7):
        first(SessionLocal)
""")
    shown = run.reports["test_seven"]["call"].longreprtext
    assert shown.count("● session") == 5
    assert shown.endswith("\n\n… 2 more sessions")


def test_fixtures_may_do_what_they_like(suites: Suites) -> None:
    run = suites.run_source("""
@pytest.fixture
def stocked(SessionLocal):
    with SessionLocal() as session:
        flush(session)
        commit(session)
        yield
        read_one_by_one(session, 3)

@pytest.mark.session_budget(sessions=0, statements=0, flushes=0, commits=0, loaded=0, lazy_loads=0)
def test_nothing(stocked):
    pass

@pytest.mark.session_budget(sessions=0)
def test_what_others_opened(session, shared_session):
    read_one_by_one(session, 1)
    read_one_by_one(shared_session, 1)
""")
    assert set(run.outcomes.values()) == {"passed"}


def test_a_session_of_a_wider_fixture_counts_for_the_test_that_uses_it(suites: Suites) -> None:
    run = suites.run_source("""
@pytest.mark.session_budget(statements=1)
def test_once(shared_session):
    shared_session.execute(text("SELECT 1"))

@pytest.mark.session_budget(statements=1)
def test_once_again(shared_session):
    shared_session.execute(text("SELECT 1"))

@pytest.mark.session_budget(statements=1)
def test_twice(shared_session):
    shared_session.execute(text("SELECT 1"))
    shared_session.execute(text("SELECT 2"))
""")
    assert run.outcomes == {
        "test_once": "passed",
        "test_once_again": "passed",
        "test_twice": "failed",
    }
    shown = run.reports["test_twice"]["call"].longreprtext
    assert "session default " in shown
    assert " · still open · " in shown
    assert "2 statements" in shown


def test_the_nearest_mark_counts_for_each_budget(suites: Suites) -> None:
    run = suites.run_source("""
@pytest.mark.session_budget(sessions=1, statements=0)
class TestReading:
    @pytest.mark.session_budget(statements=1)
    def test_by_its_own(self, SessionLocal):
        first(SessionLocal)

    def test_by_the_class(self, SessionLocal):
        first(SessionLocal)

@pytest.mark.parametrize("times", [
    pytest.param(1, marks=pytest.mark.session_budget(sessions=1)),
    pytest.param(2, marks=pytest.mark.session_budget(sessions=1)),
])
def test_by_the_parameter(SessionLocal, times):
    for _ in range(times):
        first(SessionLocal)
""")
    assert run.outcomes == {
        "TestReading::test_by_its_own": "passed",
        "TestReading::test_by_the_class": "failed",
        "test_by_the_parameter[1]": "passed",
        "test_by_the_parameter[2]": "failed",
    }


ALL = "sessions, commits, flushes, statements, lazy_loads, loaded, sql_ms, slowest_statement_ms"
UNKNOWN = f"Unknown budget 'rows' in session_budget(). Available: {ALL}."
BAD = (
    {
        "statments=6": "Unknown budget 'statments' in session_budget(). Did you mean 'statements'? "
        f"Available: {ALL}.",
        "rows=6": UNKNOWN,
    }
    | {
        budget: f"Invalid session_budget({budget}): expected an integer of at least 0."
        for budget in ("statements=-1", "statements=True", "statements=1.5", "statements=None")
    }
    | {
        budget: f"Invalid session_budget({budget}): expected milliseconds of at least 0."
        for budget in ("sql_ms=-0.5", "sql_ms='9'", "slowest_statement_ms=True")
    }
)


@pytest.mark.parametrize("budget", BAD)
def test_an_impossible_budget_is_refused_as_the_test_is_collected(
    suites: Suites, budget: str
) -> None:
    run = suites.run_source(f"""
@pytest.mark.session_budget({budget})
def test_refused():
    pass
""")
    assert run.exit_code == pytest.ExitCode.INTERRUPTED
    assert run.has(
        "ERROR collecting test_library.py",
        f"test_library.py::test_refused: {BAD[budget]}",
    )


@pytest.mark.parametrize("budgets", ["", "6", "6, statements=6"])
def test_a_budget_has_a_name(suites: Suites, budgets: str) -> None:
    run = suites.run_source(f"""
@pytest.mark.session_budget({budgets})
def test_refused():
    pass
""")
    assert run.has(
        "test_refused: Invalid session_budget(): expected keyword arguments. Available: " + ALL
    )


def test_an_impossible_budget_that_is_not_collected_fails_the_setup(suites: Suites) -> None:
    run = suites.run_source("""
@pytest.mark.parametrize("_", [pytest.param(1, marks=pytest.mark.session_budget(rows=1))])
def test_parameter(_):
    pass

class Case(unittest.TestCase):
    @pytest.mark.session_budget(rows=1)
    def test_method(self):
        pass

def test_fine():
    pass
""")
    assert run.outcomes == {
        "test_parameter[1]": "setup error",
        "Case::test_method": "setup error",
        "test_fine": "passed",
    }
    for name in ("test_parameter[1]", "Case::test_method"):
        assert run.reports[name]["setup"].longreprtext == UNKNOWN


def test_a_test_that_fails_by_itself_keeps_its_failure(suites: Suites) -> None:
    run = suites.run_source("""
pytestmark = pytest.mark.session_budget(sessions=0)

def test_fails(SessionLocal):
    first(SessionLocal)
    assert SessionLocal is None

def test_skips(SessionLocal):
    first(SessionLocal)
    pytest.skip("not now")

@pytest.mark.xfail(raises=ZeroDivisionError)
def test_is_known_to_fail(SessionLocal):
    first(SessionLocal)
    1 / 0

@pytest.mark.xfail
def test_is_known_to_be_greedy(SessionLocal):
    first(SessionLocal)

class Case(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def library(self, SessionLocal):
        self.SessionLocal = SessionLocal

    def test_method_fails(self):
        first(self.SessionLocal)
        self.assertEqual(1, 2)

    def test_subtest_fails(self):
        first(self.SessionLocal)
        with self.subTest("one"):
            self.assertEqual(1, 2)

    def test_method_is_greedy(self):
        first(self.SessionLocal)
""")
    # Versions of pytest differ in what becomes of the test around a subtest that failed.
    run.outcomes.pop("Case::test_subtest_fails")
    assert run.outcomes == {
        "test_fails": "failed",
        "test_skips": "skipped",
        "test_is_known_to_fail": "xfailed",
        "test_is_known_to_be_greedy": "xfailed",
        "Case::test_method_fails": "failed",
        "Case::test_method_is_greedy": "failed",
    }
    message = {name: phases["call"].longreprtext for name, phases in run.reports.items()}
    assert "session budget" not in message["test_fails"]
    assert "session budget" not in message["Case::test_method_fails"]
    assert "session budget" not in message["Case::test_subtest_fails"]
    assert message["test_is_known_to_be_greedy"].startswith("session budget: sessions 1 > 0")
    assert message["Case::test_method_is_greedy"].startswith("session budget: sessions 1 > 0")


SLOW = """
from sqlalchemy import event

@pytest.fixture(autouse=True)
def sleeps(SessionLocal):
    engine = SessionLocal.kw["bind"]
    event.listen(engine, "connect", lambda connection, _: connection.create_function(
        "sleep_ms", 1, lambda ms: __import__("time").sleep(ms / 1000)
    ))
    engine.dispose()

def wait(session, ms, times=1):
    for _ in range(times):
        session.execute(text(f"SELECT sleep_ms({ms})"))  # waits
"""


def test_a_budget_of_time_is_of_all_statements_together(suites: Suites) -> None:
    run = suites.run_source(
        SLOW
        + """
@pytest.mark.session_budget(sql_ms=59.5)
def test_waits_too_long(session):
    wait(session, 20, times=3)
    session.execute(text("SELECT 1"))

@pytest.mark.session_budget(sql_ms=60_000)
def test_waits(session):
    wait(session, 20, times=3)
"""
    )
    assert run.outcomes == {"test_waits_too_long": "failed", "test_waits": "passed"}
    message = run.reports["test_waits_too_long"]["call"].longrepr.reprcrash.message
    where = re.escape(suites.at("# waits"))
    assert re.fullmatch(
        rf"session budget: sql_ms \d+\.\d > 59\.5 \(select ×3, \d+\.\d ms at {where}\)", message
    )


def test_a_budget_of_the_slowest_statement_is_of_each(suites: Suites) -> None:
    run = suites.run_source(
        SLOW
        + """
@pytest.mark.session_budget(slowest_statement_ms=150)
def test_has_a_slow_one(session):
    session.execute(text("SELECT 1"))
    wait(session, 200)

@pytest.mark.session_budget(slowest_statement_ms=150)
def test_has_many(session):
    wait(session, 10, times=20)
"""
    )
    assert run.outcomes == {"test_has_a_slow_one": "failed", "test_has_many": "passed"}
    message = run.reports["test_has_a_slow_one"]["call"].longrepr.reprcrash.message
    where = re.escape(suites.at("# waits"))
    assert re.fullmatch(
        rf"session budget: slowest_statement_ms 2\d\d\.\d > 150 \(select at {where}\)", message
    )


def test_the_configuration_file_has_budgets_for_every_test(suites: Suites) -> None:
    suites.configure("session_tracer_budget = statements=1, sessions=1\n    sql_ms=60e3")
    run = suites.run_source("""
def test_once(SessionLocal):
    first(SessionLocal)

def test_twice(session):
    session.execute(text("SELECT 1"))
    session.execute(text("SELECT 2"))

@pytest.mark.session_budget(statements=2)
def test_may_twice(session):
    session.execute(text("SELECT 1"))
    session.execute(text("SELECT 2"))

@pytest.mark.session_budget(statements=2)
def test_has_the_other_default(SessionLocal):
    first(SessionLocal)
    first(SessionLocal)

class Case(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def library(self, SessionLocal):
        self.SessionLocal = SessionLocal

    def test_twice(self):
        first(self.SessionLocal)
        first(self.SessionLocal)
""")
    assert run.outcomes == {
        "test_once": "passed",
        "test_twice": "failed",
        "test_may_twice": "passed",
        "test_has_the_other_default": "failed",
        "Case::test_twice": "failed",
    }
    # No findings are reported that were not asked for.
    assert run.summary == []
    assert set(suites.run("--session-tracer=off").outcomes.values()) == {"passed"}


def test_a_wide_marker_and_a_default_give_way_to_a_nearer_one(suites: Suites) -> None:
    suites.configure("session_tracer_budget = statements=0")
    run = suites.run_source("""
@pytest.mark.session_budget(statements=1)
class TestReading:
    def test_by_the_class(self, SessionLocal):
        first(SessionLocal)

    @pytest.mark.session_budget(statements=2)
    def test_by_its_own(self, SessionLocal):
        first(SessionLocal)
        first(SessionLocal)
""")
    assert set(run.outcomes.values()) == {"passed"}


BAD_DEFAULTS = {
    "statements=many": "Invalid 'statements=many' in session_tracer_budget of pytest's "
    "configuration file: expected an integer of at least 0.",
    "statements": "Invalid 'statements' in session_tracer_budget of pytest's configuration file: "
    "expected an integer of at least 0.",
    "statements=1.5": "Invalid 'statements=1.5' in session_tracer_budget of pytest's "
    "configuration file: expected an integer of at least 0.",
    "sql_ms=nan": "Invalid 'sql_ms=nan' in session_tracer_budget of pytest's configuration file: "
    "expected milliseconds of at least 0.",
    "commits=1, statments=6": "Unknown budget 'statments' in session_tracer_budget of pytest's "
    f"configuration file. Did you mean 'statements'? Available: {ALL}.",
}


@pytest.mark.parametrize("options", [(), ("--session-tracer",)], ids=["off", "on"])
@pytest.mark.parametrize("text", BAD_DEFAULTS)
def test_an_impossible_default_is_refused_at_the_start(
    suites: Suites, text: str, options: tuple[str, ...]
) -> None:
    suites.configure(f"session_tracer_budget = {text}")
    run = suites.run_source("def test_never_begins(): pass", *options)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.has(f"session_tracer: {BAD_DEFAULTS[text]}")


def test_the_fixture_has_the_times(suites: Suites) -> None:
    run = suites.run_source(
        SLOW
        + """
def test_waits(session, session_trace):
    assert (session_trace.sql_ms, session_trace.slowest_statement_ms) == (0, 0)
    wait(session, 20, times=2)
    assert session_trace.sql_ms >= 40
    assert 20 <= session_trace.slowest_statement_ms < session_trace.sql_ms
"""
    )
    assert run.outcomes == {"test_waits": "passed"}, run.text

"""That a test may have the findings that its marker allows, and no others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.plugin.suites import steady

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

# Each makes one finding.
FINDINGS: Final = {
    "n-plus-one": "read_one_by_one(session, 3)",
    "detached-lazy-load": "read_too_late(SessionLocal)",
    "left-open": "KEPT.append(SessionLocal()); KEPT[-1].connection()",
    "large-flush": "add_many(session)",
}
ADD_MANY: Final = """
from uuid import uuid4
from tests.library import Author

def add_many(session):
    session.add_all([Author(name=str(uuid4())) for _ in range(41)])
    session.flush()
"""


@pytest.mark.parametrize("id_", FINDINGS)
def test_the_last_line_of_a_finding_would_have_it_ignored(suites: Suites, id_: str) -> None:
    suites.configure("session_tracer_large_flush_objects = 40\npythonpath = .")
    (suites.folder / "service.py").write_text(ADD_MANY)
    begin = "from service import add_many\nKEPT = []\n"
    source = f"{begin}\ndef test_finds(SessionLocal, session):\n    {FINDINGS[id_]}\n"
    found = suites.run_source(source, "--session-tracer=warning")
    assert found.outcomes["test_finds"] in ("failed", "teardown error")
    assert found.summary[0].startswith(f"{id_} ")
    *_, last, _end = found.summary
    marker = last.removeprefix("    allow ")
    allowed = suites.run_source(
        source.replace("def test_finds", f"{marker}\ndef test_finds"), "--session-tracer=warning"
    )
    assert allowed.outcomes == {"test_finds": "passed"}
    assert allowed.summary == []
    assert allowed.has("no findings in ", ", 1 allowed")


def test_the_last_line_of_a_finding_outside_of_tests_is_a_setting(suites: Suites) -> None:
    (suites.folder / "begin.py").write_text(
        """
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool
from tests.library import Author, Base, authors

engine = create_engine("sqlite://", poolclass=StaticPool)
Base.metadata.create_all(engine)
with Session(engine) as session:
    session.add_all(authors(3))
    session.commit()
with Session(engine) as session:
    for author in session.scalars(select(Author)).all():
        author.books
"""
    )
    suites.configure("pythonpath = .")
    found = suites.run_source("import begin\n\ndef test_nothing(): pass", "--session-tracer")
    assert found.summary[0].startswith("n-plus-one   begin.py:14   ")
    *_, last, _end = found.summary
    setting = last.removeprefix("    allow ")
    suites.configure(f"pythonpath = .\n{setting}")
    assert setting == "session_tracer_ignore = n-plus-one:Author.books"
    assert suites.run("--session-tracer").summary == []


def test_only_what_is_named_is_allowed(suites: Suites) -> None:
    run = suites.run_source(
        """
pytestmark = pytest.mark.session_allow("large-result", reason="it is a report")

def both(SessionLocal, session):
    read_one_by_one(session, 3)
    read_too_late(SessionLocal)

@pytest.mark.session_allow("n-plus-one:Author.books", "detached-lazy-load", reason="of old")
def test_both(SessionLocal, session):
    both(SessionLocal, session)

@pytest.mark.session_allow("n-plus-one:Author.letters", reason="another attribute")
@pytest.mark.session_allow("n-plus-one:Book", reason="another class")
@pytest.mark.session_allow("n-plus-one@app/*", reason="another file")
@pytest.mark.session_allow("detached-lazy-load@test_*.py", reason="this file")
def test_one(SessionLocal, session):
    both(SessionLocal, session)

@pytest.mark.session_allow("n-plus-one", reason="every attribute")
@pytest.mark.session_allow("*@test_library.py", reason="this file")
class TestOfAClass(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def library(self, SessionLocal, session):
        self.given = SessionLocal, session

    def test_method(self):
        both(*self.given)

@pytest.mark.parametrize("_", [
    pytest.param(1, marks=pytest.mark.session_allow("*", reason="this parameter")),
    2,
])
def test_parameter(SessionLocal, session, _):
    both(SessionLocal, session)
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_both": "passed",
        "test_one": "failed",
        "TestOfAClass::test_method": "passed",
        "test_parameter[1]": "passed",
        "test_parameter[2]": "failed",
    }
    one = run.reports["test_one"]["call"].longrepr.reprcrash.message
    assert one.startswith("session finding: n-plus-one (")
    # The same finding is new in one test and allowed in another.
    rows = [re.split("   +", line) for line in run.summary if not line.startswith(" ")]
    assert [(row[0], steady(row[-1])) for row in rows[:-1]] == [
        ("detached-lazy-load", "1 test (test_library.py::test_parameter[2])"),
        ("n-plus-one", "2 tests"),
    ]
    assert run.summary[-1] == "2 findings in 11 sessions, 2 allowed"


def test_what_is_allowed_is_in_no_report(suites: Suites) -> None:
    run = suites.run_source(
        """
@pytest.mark.session_allow("n-plus-one", reason="of old")
def test_reads(session, session_trace):
    read_one_by_one(session, 3)
    assert session_trace.findings == []
    assert False, "for another reason"
""",
        "--session-tracer",
    )
    report = run.reports["test_reads"]["call"]
    assert [name for name, _ in report.sections if name == "session findings"] == []
    properties = [name for name, _ in run.reports["test_reads"]["teardown"].user_properties]
    assert "session_tracer.finding" not in properties


def test_a_marker_alone_traces_nothing(suites: Suites) -> None:
    run = suites.run_source("""
@pytest.mark.session_allow("n-plus-one", reason="of old")
def test_is_not_traced(SessionLocal):
    with SessionLocal() as session:
        assert "_session_tracer" not in session.__dict__
""")
    assert run.outcomes == {"test_is_not_traced": "passed"}


NOTHING: Final = (
    "Invalid session_allow(): expected ids of findings and a reason, such as "
    "session_allow('n-plus-one:Author.books', reason='...')."
)
BAD: Final = {
    "reason='of old'": NOTHING,
    "": NOTHING,
    "'n-plus-one', because='of old'": NOTHING,
    "'n-plus-one'": "Invalid session_allow(reason=None): expected a non-empty string.",
    "'n-plus-one', reason=' '": "Invalid session_allow(reason=' '): expected a non-empty string.",
    "'n-plus-on', reason='of old'": (
        "Invalid session_allow='n-plus-on': expected the id of a finding. "
        "Did you mean 'n-plus-one'?"
    ),
    "'n-plus-on:Author', reason='of old'": (
        "Invalid session_allow='n-plus-on': expected the id of a finding. "
        "Did you mean 'n-plus-one'?"
    ),
    "7, reason='of old'": (
        "Invalid session_allow(7): expected the id of a finding, optionally followed by @glob, "
        ":Entity or :Entity.attribute."
    ),
    "'n-plus-one:', reason='of old'": (
        "Invalid session_allow('n-plus-one:'): expected the id of a finding, optionally followed "
        "by @glob, :Entity or :Entity.attribute."
    ),
}


@pytest.mark.parametrize("given", BAD)
@pytest.mark.parametrize("options", [(), ("--session-tracer",)], ids=["off", "on"])
def test_an_invalid_marker_is_refused_as_the_test_is_collected(
    suites: Suites, given: str, options: tuple[str, ...]
) -> None:
    run = suites.run_source(
        f"""
@pytest.mark.session_allow({given})
def test_refused():
    pass
""",
        *options,
    )
    assert run.exit_code == pytest.ExitCode.INTERRUPTED
    assert run.has(
        "ERROR collecting test_library.py", f"test_library.py::test_refused: {BAD[given]}"
    )


def test_an_invalid_marker_that_is_not_collected_fails_the_setup(suites: Suites) -> None:
    run = suites.run_source(
        """
class Case(unittest.TestCase):
    @pytest.mark.session_allow("n-plus-on", reason="of old")
    def test_method(self):
        pass
""",
        "--session-tracer",
    )
    assert run.outcomes == {"Case::test_method": "setup error"}
    assert run.reports["Case::test_method"]["setup"].longreprtext.startswith(
        "Invalid session_allow='n-plus-on': "
    )

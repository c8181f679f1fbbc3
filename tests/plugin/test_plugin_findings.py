"""That findings are reported, and fail the tests they are of where that is wanted."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Final

import pytest

from tests.plugin.suites import steady

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

THREE = """
@pytest.mark.parametrize("severity", ["info", "warning", "error"])
def test_requests(SessionLocal, severity):
    request_finding(SessionLocal, severity)

def test_is_quiet(SessionLocal):
    first(SessionLocal)
"""
FAILING = {
    "--session-tracer": set[str](),
    "--session-tracer=report": set[str](),
    "--session-tracer=error": {"error"},
    "--session-tracer=warning": {"error", "warning"},
    "--session-tracer=info": {"error", "warning", "info"},
}


@pytest.mark.parametrize("option", FAILING)
def test_a_test_fails_for_findings_of_that_severity_or_above(suites: Suites, option: str) -> None:
    run = suites.run_source(THREE, option)
    expected = {
        f"test_requests[{severity}]": "failed" if severity in FAILING[option] else "passed"
        for severity in ("info", "warning", "error")
    }
    assert run.outcomes == {**expected, "test_is_quiet": "passed"}
    site = suites.at("# requests")
    assert run.summary == [
        f"demo-error     {site}   1 test (test_library.py::test_requests[error])",
        "    it was requested",
        "    do request less",
        '    allow @pytest.mark.session_allow("demo-error@test_library.py", reason="...")',
        f"demo-warning   {site}   1 test (test_library.py::test_requests[warning])",
        "    it was requested",
        "    do request less",
        '    allow @pytest.mark.session_allow("demo-warning@test_library.py", reason="...")',
        f"demo-info      {site}   1 test (test_library.py::test_requests[info])",
        "    it was requested",
        "    do request less",
        '    allow @pytest.mark.session_allow("demo-info@test_library.py", reason="...")',
        "3 findings in 5 sessions",
    ]


def test_the_failure_is_the_findings(suites: Suites) -> None:
    run = suites.run_source(
        """
def test_one(SessionLocal):
    read_too_late(SessionLocal)

def test_two(SessionLocal, session):
    read_one_by_one(session, 5)
    read_too_late(SessionLocal)
    request_finding(SessionLocal, "info")
""",
        "--session-tracer=warning",
    )
    lazily, late = suites.at("# reads lazily"), suites.at("# reads too late")
    one, two = (run.reports[name]["call"] for name in ("test_one", "test_two"))
    headline = f"session finding: detached-lazy-load (Author.books at {late})"
    assert one.longrepr.reprcrash.message == headline
    assert one.longreprtext.startswith(
        f"{headline}\n\n✖ detached-lazy-load  Author.books was read "
    )
    assert steady(two.longrepr.reprcrash.message) == (
        f"session findings: n-plus-one (Author.books: 5 SELECTs, TIME of TIME at {lazily}), "
        f"detached-lazy-load (Author.books at {late})"
    )
    assert "\n\n▲ n-plus-one  Author.books was lazily loaded for Author" in two.longreprtext
    assert "\n\n✖ detached-lazy-load  Author.books" in two.longreprtext
    # What it does not fail for is in a section of its own.
    assert "demo-info" not in two.longreprtext
    assert [name for name, _ in one.sections] == []
    (listed,) = [text for name, text in two.sections if name == "session findings"]
    assert listed.startswith("◆ demo-info  it was requested")


def test_what_fixtures_do_fails_them(suites: Suites) -> None:
    run = suites.run_source(
        """
@pytest.fixture
def loud_before(SessionLocal):
    request_finding(SessionLocal, "error")

@pytest.fixture
def loud_after(SessionLocal):
    yield
    request_finding(SessionLocal, "error")

def test_before(loud_before):
    pass

def test_after(loud_after):
    pass

def test_all(SessionLocal, loud_before, loud_after):
    request_finding(SessionLocal, "error")

def test_failing(loud_before, loud_after):
    assert False
""",
        "--session-tracer=error",
    )
    assert run.outcomes == {
        "test_before": "teardown error",
        "test_after": "teardown error",
        "test_all": "failed",
        "test_failing": "failed",
    }
    site = suites.at("# requests")
    for name in ("test_before", "test_after"):
        crash = run.reports[name]["teardown"].longrepr.reprcrash
        assert crash.message == f"session finding: demo-error ({site})"
    assert run.summary[0] == f"demo-error   {site}   4 tests (test_library.py::test_before, …)"


def test_a_test_that_fails_by_itself_keeps_its_failure(suites: Suites) -> None:
    run = suites.run_source(
        """
def test_fails(SessionLocal):
    request_finding(SessionLocal, "error")
    assert SessionLocal is None

def test_skips(SessionLocal):
    request_finding(SessionLocal, "error")
    pytest.skip("not now")

@pytest.fixture
def broken(SessionLocal):
    request_finding(SessionLocal, "error")
    1 / 0

def test_never_begins(broken):
    pass

@pytest.fixture
def breaks(SessionLocal):
    yield
    request_finding(SessionLocal, "error")
    1 / 0

def test_ends_badly(breaks):
    pass
""",
        "--session-tracer=error",
    )
    assert run.outcomes == {
        "test_fails": "failed",
        "test_skips": "skipped",
        "test_never_begins": "setup error",
        "test_ends_badly": "teardown error",
    }
    for name, when in {
        "test_fails": "call",
        "test_never_begins": "setup",
        "test_ends_badly": "teardown",
    }.items():
        report = run.reports[name][when]
        assert "session finding" not in report.longreprtext
        (listed,) = [text for heading, text in report.sections if heading == "session findings"]
        assert listed.startswith("✖ demo-error  it was requested")


def test_the_configuration_file_can_ask_for_it(suites: Suites) -> None:
    suites.configure("session_tracer = warning")
    suites.write(THREE)
    outcomes = suites.run().outcomes
    assert outcomes["test_requests[warning]"] == "failed"
    assert outcomes["test_requests[info]"] == "passed"
    assert set(suites.run("--session-tracer=report").outcomes.values()) == {"passed"}
    off = suites.run("--session-tracer=off")
    assert set(off.outcomes.values()) == {"passed"}
    assert off.summary == []


def test_nothing_is_done_without_an_option(suites: Suites) -> None:
    run = suites.run_source("""
def test_is_not_traced(SessionLocal):
    request_finding(SessionLocal, "error")
    with SessionLocal() as session:
        assert "_session_tracer" not in session.__dict__
""")
    assert run.outcomes == {"test_is_not_traced": "passed"}
    assert run.summary == []
    assert "session_tracer" not in run.text.partition("collected")[2]
    assert run.reports["test_is_not_traced"]["teardown"].user_properties == []


def test_nothing_found_is_one_line(suites: Suites) -> None:
    run = suites.run_source("def test_reads(SessionLocal): first(SessionLocal)", "--session-tracer")
    assert run.summary == []
    assert run.has("no findings in 2 sessions")


@pytest.mark.parametrize(
    ("options", "message"),
    {
        ("--session-tracer=warn",): "Invalid --session-tracer='warn': expected report, info"
        ", warning, error or off.",
        ("--session-tracer-update-baseline",): "--session-tracer-update-baseline needs a "
        "file: add --session-tracer-baseline=FILE.",
    }.items(),
)
def test_an_impossible_option_is_refused(
    suites: Suites, options: tuple[str, ...], message: str
) -> None:
    suites.write(THREE)
    run = suites.run(*options)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.has(message)


@pytest.mark.parametrize(
    "options",
    [
        ("--session-tracer", "below"),
        ("-v", "--session-tracer", "below", "-k", "late"),
        ("below", "--session-tracer"),
        ("--session-tracer", "report", "below"),
        ("--session-tracer", "-v", "below"),
    ],
    ids=" ".join,
)
def test_a_path_may_follow_the_option(suites: Suites, options: tuple[str, ...]) -> None:
    """Its own conftest.py, which brings an option, is found before options are read."""
    below = suites.folder / "below"
    below.mkdir()
    (below / "conftest.py").write_text(
        "def pytest_addoption(parser): parser.addoption('--of-below')"
    )
    suites.write("def test_not_meant(): assert False")
    suites.write(
        """
def test_late(SessionLocal, pytestconfig):
    read_too_late(SessionLocal)
    assert pytestconfig.getoption("--of-below") == "given"
""",
        "below/test_below",
    )
    run = suites.run(*options, "--of-below=given")
    assert run.outcomes == {"test_late": "passed"}, run.text
    assert run.summary[-1] == "1 finding in 2 sessions"


def test_the_option_can_stand_in_the_configuration_file(suites: Suites) -> None:
    suites.configure("", addopts="--session-tracer")
    suites.write("def test_late(SessionLocal): read_too_late(SessionLocal)\n")
    assert suites.run("test_library.py").summary[-1] == "1 finding in 2 sessions"


def test_an_impossible_default_is_refused(suites: Suites) -> None:
    suites.configure("session_tracer = loud")
    run = suites.run_source(THREE)
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.has("Invalid session_tracer='loud' in pytest's configuration file: expected ")


def test_a_bad_setting_in_the_environment_is_refused(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_TRACER_TIMELINE_STEPS", "many")
    message = "Invalid SESSION_TRACER_TIMELINE_STEPS='many'"
    run = suites.run_source("""
def test_asks(session_trace): pass

@pytest.mark.session_budget(sessions=1)
def test_has_a_budget(): pass

def test_does_not_ask(): pass
""")
    assert run.outcomes == {
        "test_asks": "setup error",
        "test_has_a_budget": "setup error",
        "test_does_not_ask": "passed",
    }
    assert run.reports["test_asks"]["setup"].longreprtext.startswith(message)
    everything = suites.run("--session-tracer")
    assert everything.exit_code == pytest.ExitCode.USAGE_ERROR
    assert everything.has(f"session_tracer: {message}")


def test_what_the_settings_silence_is_not_found(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_TRACER_IGNORE", "demo-error,left-open")
    run = suites.run_source(
        """
def test_requests(SessionLocal):
    request_finding(SessionLocal, "error")
    test_requests.session = SessionLocal()
    test_requests.session.connection()
""",
        "--session-tracer=info",
    )
    assert run.outcomes == {"test_requests": "passed"}
    assert run.has("no findings in 3 sessions")


def test_a_lost_session_is_of_the_test_that_lost_it(suites: Suites) -> None:
    run = suites.run_source(
        """
import gc
from session_tracer import silence

KEPT = []

@pytest.fixture(autouse=True, scope="module")
def no_collection():
    gc.disable()
    yield
    gc.enable()

def lose(SessionLocal):
    session = SessionLocal()
    session.connection()
    session.itself = session

def test_loses(SessionLocal):
    with silence("left-open", reason="only what is found later is asked about"):
        lose(SessionLocal)

def test_is_innocent():
    gc.collect()
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {"test_loses": "passed", "test_is_innocent": "passed"}


def test_what_several_tests_do_with_one_session_is_not_added_up(suites: Suites) -> None:
    run = suites.run_source(
        """
def read(session, times):
    each(range(times), lambda _: session.scalars(select(Author)).all())

@pytest.mark.parametrize("_", range(3))
def test_reads_few(shared_session, _):
    read(shared_session, 4)

def test_reads_many(shared_session):
    read(shared_session, 5)
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_reads_few[0]": "passed",
        "test_reads_few[1]": "passed",
        "test_reads_few[2]": "passed",
        "test_reads_many": "failed",
    }
    assert [line for line in run.summary if "repeated-select" in line]


def test_what_the_test_itself_repeats_is_no_finding(suites: Suites) -> None:
    run = suites.run_source(
        """
def test_creates_many(session):
    for number in range(10):
        session.add(Author(name=str(number)))
        session.commit()

def test_checks_many(session):
    assert [session.scalar(select(Author).limit(1)) for _ in range(5)]

def test_checks_in_a_helper(session):
    def check():
        assert session.scalar(select(Author).limit(1))
    for _ in range(5):
        check()

def test_of_code_that_repeats(session):
    read_one_by_one(session, 5)
""",
        "--session-tracer=info",
    )
    assert run.outcomes == {
        "test_creates_many": "passed",
        "test_checks_many": "passed",
        "test_checks_in_a_helper": "passed",
        "test_of_code_that_repeats": "failed",
    }


SERVICE: Final = """
from sqlalchemy import select
from tests.library import Author

def find(session):
    return session.scalar(select(Author).limit(1))

def find_again(session):
    for _ in range(5):
        find(session)

def find_in_a_row(session):
    find(session)
    find(session)
    find(session)
    find(session)
    find(session)

async def find_later(session):
    return await session.scalar(select(Author).limit(1))

async def find_again_later(session):
    for _ in range(5):
        await find_later(session)
"""


def test_the_repeats_of_a_test_its_fixtures_and_helpers_are_no_finding(suites: Suites) -> None:
    folder = suites.folder / "test"
    folder.mkdir()
    (suites.folder / "service.py").write_text(SERVICE)
    (folder / "helpers.py").write_text(
        "from service import find\n\n"
        "def check_all(session):\n"
        "    for _ in range(5):\n"
        "        find(session)\n"
    )
    (folder / "test_service.py").write_text(
        """
import pytest
from helpers import check_all
from service import find, find_again, find_in_a_row

@pytest.fixture
def found(session):
    for _ in range(5):
        find(session)

def test_calls_in_a_row(session):
    find(session)
    find(session)
    find(session)
    find(session)
    find(session)

def test_loop(session):
    for _ in range(5):
        find(session)

def test_fixture(found):
    pass

def test_helper(session):
    check_all(session)

def test_fixture_and_test(session, request):
    request.getfixturevalue("found")
    find(session)

def test_of_a_loop(session):
    find_again(session)

def test_of_calls_in_a_row(session):
    find_in_a_row(session)

def test_of_a_loop_in_a_loop(session):
    for _ in range(2):
        find_again(session)
"""
    )
    suites.configure("pythonpath = .")
    run = suites.run("--session-tracer=warning")
    assert run.outcomes == {
        "test_calls_in_a_row": "passed",
        "test_loop": "passed",
        "test_fixture": "passed",
        "test_helper": "passed",
        "test_fixture_and_test": "passed",
        "test_of_a_loop": "failed",
        "test_of_calls_in_a_row": "failed",
        "test_of_a_loop_in_a_loop": "failed",
    }


def test_the_repeats_of_an_asynchronous_test_are_no_finding(suites: Suites) -> None:
    (suites.folder / "service.py").write_text(SERVICE)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import find_again_later, find_later
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import StaticPool
from tests.library import Base

@pytest.fixture
async def session():
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()

async def test_calls_in_a_row(session):
    await find_later(session)
    await find_later(session)
    await find_later(session)
    await find_later(session)
    await find_later(session)

async def test_loop(session):
    for _ in range(5):
        await find_later(session)

async def test_of_a_loop(session):
    await find_again_later(session)
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_calls_in_a_row": "passed",
        "test_loop": "passed",
        "test_of_a_loop": "failed",
    }


CALLS: Final = """
from sqlalchemy import select
from tests.library import Author

def find(session):
    return session.scalar(select(Author).limit(1))

def find_thrice(session):
    find(session)
    find(session)
    find(session)

def find_many(session):
    for _ in range(5):
        find(session)

def load(session):
    return session.scalars(select(Author).limit(2)).all()

def render(authors):
    for author in authors:
        author.books

def add_many(session):
    session.add_all([Author(name=f"many {number}") for number in range(41)])
    session.flush()

def load_and_render(session):
    for author in load(session):
        author.books
"""


def test_each_call_of_a_test_counts_from_zero(suites: Suites) -> None:
    (suites.folder / "service.py").write_text(CALLS)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import find, find_many, find_thrice, load, render

def test_calls_in_a_row(session):
    find_thrice(session)
    find_thrice(session)

def test_calls_in_a_loop(session):
    for _ in range(4):
        find_thrice(session)

def test_of_one_call_after_another(session):
    find(session)
    find_many(session)

def test_of_the_objects_of_another_call(session):
    authors = load(session)
    render(authors)
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_calls_in_a_row": "passed",
        "test_calls_in_a_loop": "passed",
        "test_of_one_call_after_another": "failed",
        "test_of_the_objects_of_another_call": "failed",
    }


def test_a_remedy_does_not_name_a_line_of_the_tests_as_the_select_to_change(
    suites: Suites,
) -> None:
    (suites.folder / "service.py").write_text(CALLS)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import load_and_render, render

@pytest.fixture
def loaded(session):
    return session.scalars(select(Author).limit(2)).all()

def test_of_what_a_fixture_loads(loaded):
    render(loaded)

def test_of_what_the_application_loads(session):
    load_and_render(session)

def test_of_what_the_application_reads_too_late(SessionLocal):
    with SessionLocal() as session:
        authors = session.scalars(select(Author).limit(1)).all()
    with pytest.raises(Exception):
        render(authors)

def test_reads_too_late(SessionLocal):
    with SessionLocal() as session:
        author = session.scalars(select(Author).limit(1)).one()  # loaded
    with pytest.raises(Exception):
        author.books
""",
        "--session-tracer=report",
    )
    select_ = "select(Author).options(selectinload(Author.books))"
    assert sorted(line.strip() for line in run.summary if line.startswith("    write")) == [
        f"write {select_}",
        f"write {select_}",
        f"write {select_} at service.py:18 in load()",
        f"write {select_} at {suites.at('# loaded')} in test_reads_too_late()",
    ]


def test_what_a_fixture_prepares_may_cost_what_it_does(suites: Suites) -> None:
    (suites.folder / "service.py").write_text(CALLS)
    suites.configure("pythonpath = .\nsession_tracer_large_flush_objects = 40")
    run = suites.run_source(
        """
from service import add_many, find_many, load, render

@pytest.fixture
def prepared(session):
    add_many(session)
    find_many(session)
    render(load(session))
    return session

@pytest.fixture
def loses(SessionLocal):
    read_too_late(SessionLocal)

def test_prepared(prepared): ...

def test_adds_many_itself(session):
    session.add_all([Author(name=str(number)) for number in range(41)])
    session.flush()

def test_of_code_that_adds_many(session):
    add_many(session)

def test_of_a_fixture_that_is_wrong(loses): ...
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_prepared": "passed",
        "test_adds_many_itself": "passed",
        "test_of_code_that_adds_many": "failed",
        "test_of_a_fixture_that_is_wrong": "teardown error",
    }


CLIENT: Final = """
from fastapi import Depends, FastAPI
from service import find, find_again

app = FastAPI()

def get_session(): ...

@app.get("/one")
def one(session=Depends(get_session)):
    find(session)

@app.get("/one_later")
async def one_later(session=Depends(get_session)):
    find(session)

@app.get("/many")
def many(session=Depends(get_session)):
    find_again(session)

@app.get("/many_later")
async def many_later(session=Depends(get_session)):
    find_again(session)
"""


def test_the_requests_of_a_test_client_are_the_tests_repeats(suites: Suites) -> None:
    (suites.folder / "service.py").write_text(SERVICE)
    (suites.folder / "application.py").write_text(CLIENT)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
import threading
from application import app, get_session
from fastapi.testclient import TestClient
from service import find_again

@pytest.fixture
def client(session):
    app.dependency_overrides[get_session] = lambda: session
    with TestClient(app) as client:
        yield client

@pytest.mark.parametrize("path", ["/one", "/one_later"])
def test_in_a_row(client, path):
    client.get(path)
    client.get(path)
    client.get(path)
    client.get(path)
    client.get(path)

@pytest.mark.parametrize("path", ["/one", "/one_later"])
def test_in_a_loop(client, path):
    for _ in range(5):
        client.get(path)

@pytest.mark.parametrize("path", ["/many", "/many_later"])
def test_of_the_applications_loop(client, path):
    client.get(path)

def test_of_a_thread(session):
    working = threading.Thread(target=find_again, args=(session,))
    working.start()
    working.join()
""",
        *("-W", "ignore"),  # what the client warns of
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_in_a_row[/one]": "passed",
        "test_in_a_row[/one_later]": "passed",
        "test_in_a_loop[/one]": "passed",
        "test_in_a_loop[/one_later]": "passed",
        "test_of_the_applications_loop[/many]": "failed",
        "test_of_the_applications_loop[/many_later]": "failed",
        "test_of_a_thread": "failed",
    }


@pytest.mark.parametrize("plugin", ["asyncio", "anyio"])
def test_the_requests_of_an_asynchronous_client_are_the_tests_repeats(
    suites: Suites, plugin: str
) -> None:
    """An endpoint that is no coroutine runs in a thread, for which the test's task waits."""
    (suites.folder / "service.py").write_text(SERVICE)
    (suites.folder / "application.py").write_text(CLIENT)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        f"""
import httpx
from application import app, get_session

pytestmark = pytest.mark.{plugin}

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.fixture
def client(session):
    app.dependency_overrides[get_session] = lambda: session
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

@pytest.mark.parametrize("path", ["/one", "/one_later"])
async def test_in_a_row(client, path):
    await client.get(path)
    await client.get(path)
    await client.get(path)
    await client.get(path)
    await client.get(path)

@pytest.mark.parametrize("path", ["/one", "/one_later"])
async def test_in_a_loop(client, path):
    for _ in range(5):
        await client.get(path)

@pytest.mark.parametrize("path", ["/many", "/many_later"])
async def test_of_the_applications_loop(client, path):
    await client.get(path)
""",
        *("-W", "ignore"),  # what the client warns of
        *("-o", "asyncio_mode=strict"),
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_in_a_row[/one]": "passed",
        "test_in_a_row[/one_later]": "passed",
        "test_in_a_loop[/one]": "passed",
        "test_in_a_loop[/one_later]": "passed",
        "test_of_the_applications_loop[/many]": "failed",
        "test_of_the_applications_loop[/many_later]": "failed",
    }, run.text


def test_what_a_library_calls_a_test_again_for_is_the_tests_repeat(suites: Suites) -> None:
    (suites.folder / "service.py").write_text(SERVICE)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from hypothesis import HealthCheck, given, settings, strategies
from service import find, find_again

quick = settings(
    suppress_health_check=list(HealthCheck), max_examples=8, database=None, deadline=None
)

@quick
@given(number=strategies.integers())
def test_of_many_examples(session, number):
    find(session)

@quick
@given(number=strategies.integers())
def test_of_a_loop(session, number):
    find_again(session)

def test_of_a_library_that_calls_back(session):
    each([session] * 5, lambda session: find(session))

def test_of_a_library_that_calls_the_application(session):
    each([session] * 5, find)
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_of_many_examples": "passed",
        "test_of_a_loop": "failed",
        "test_of_a_library_that_calls_back": "failed",
        "test_of_a_library_that_calls_the_application": "failed",
    }, run.text


def test_what_a_test_commits_before_it_calls_the_application_is_no_finding(suites: Suites) -> None:
    (suites.folder / "service.py").write_text(
        """
from sqlalchemy import select
from tests.library import Author

def load(session):
    return session.scalars(select(Author).order_by(Author.id).limit(5)).all()

def save(session, author):
    session.add(author)
    session.commit()

def names(authors):
    return [author.name for author in authors]

def save_and_name(session):
    authors = load(session)
    save(session, authors[0])
    return names(authors)

def save_and_name_each(session):
    return [save_and_name(session) for _ in range(2)]
"""
    )
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import load, names, save, save_and_name, save_and_name_each

@pytest.fixture
def saved(session):
    authors = load(session)
    session.commit()
    return authors

def test_commits(session):
    authors = load(session)
    session.commit()
    names(authors)

def test_has_it_committed(session):
    authors = load(session)
    save(session, authors[0])
    names(authors)

def test_has_a_fixture_that_commits(saved):
    names(saved)

def test_of_code_that_commits_and_reloads(session):
    save_and_name(session)

def test_of_code_that_does_it_again(session):
    session.commit()
    save_and_name_each(session)
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_commits": "passed",
        "test_has_it_committed": "passed",
        "test_has_a_fixture_that_commits": "passed",
        "test_of_code_that_commits_and_reloads": "failed",
        "test_of_code_that_does_it_again": "failed",
    }


def test_a_lock_of_what_a_test_has_loaded_or_added_is_no_finding(suites: Suites) -> None:
    (suites.folder / "service.py").write_text(
        """
from uuid import uuid4
from sqlalchemy import select
from tests.library import Author

def first(session):
    return session.scalars(select(Author).order_by(Author.id)).first()

def add(session):
    author = Author(name=uuid4().hex)
    session.add(author)
    session.commit()
    return author

def lock(session, author):
    locked = select(Author).where(Author.id == author.id).with_for_update()
    return session.scalars(locked).one()

def read_and_lock(session):
    author = first(session)
    lock(session, author)
    session.commit()

def add_and_lock(session):
    author = add(session)
    lock(session, author)
    session.commit()
"""
    )
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import add, add_and_lock, first, lock, read_and_lock

@pytest.fixture
def session(SessionLocal):
    with SessionLocal(expire_on_commit=False) as session:
        yield session

@pytest.fixture
def loaded(session):
    return first(session)

@pytest.fixture
def added(session):
    return add(session)

def test_loads(session):
    author = first(session)
    lock(session, author)
    session.commit()

def test_adds(session):
    author = add(session)
    lock(session, author)
    session.commit()

def test_has_a_fixture_that_loads(session, loaded):
    lock(session, loaded)
    session.commit()

def test_has_a_fixture_that_adds(session, added):
    lock(session, added)
    session.commit()

def test_of_code_that_loads_and_locks(session):
    read_and_lock(session)

def test_of_code_that_adds_and_locks(session):
    add_and_lock(session)
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_loads": "passed",
        "test_adds": "passed",
        "test_has_a_fixture_that_loads": "passed",
        "test_has_a_fixture_that_adds": "passed",
        "test_of_code_that_loads_and_locks": "failed",
        "test_of_code_that_adds_and_locks": "failed",
    }, run.text


def test_a_lock_of_what_an_asynchronous_test_has_loaded_is_no_finding(suites: Suites) -> None:
    (suites.folder / "service.py").write_text(
        """
from sqlalchemy import select
from tests.library import Author

async def first(session):
    return (await session.scalars(select(Author).order_by(Author.id))).first()

async def lock(session, author):
    locked = select(Author).where(Author.id == author.id).with_for_update()
    return (await session.scalars(locked)).one()

async def read_and_lock(session):
    author = await first(session)
    await lock(session, author)
    await session.commit()
"""
    )
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from tests.library import Base, authors
from service import first, lock, read_and_lock

@pytest_asyncio.fixture
async def session(tmp_path):
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'library.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session:
        session.add_all(authors(1))
        await session.commit()
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield session
    await engine.dispose()

@pytest_asyncio.fixture
async def loaded(session):
    return await first(session)

async def test_loads(session):
    author = await first(session)
    await lock(session, author)
    await session.commit()

async def test_has_a_fixture_that_loads(session, loaded):
    await lock(session, loaded)
    await session.commit()

async def test_of_code_that_loads_and_locks(session):
    await read_and_lock(session)
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_loads": "passed",
        "test_has_a_fixture_that_loads": "passed",
        "test_of_code_that_loads_and_locks": "failed",
    }, run.text


def test_the_classes_that_one_line_is_about_are_in_one_row(suites: Suites) -> None:
    (suites.folder / "service.py").write_text(
        """
def create(session, thing):
    session.add(thing)
    session.commit()
    session.refresh(thing)  # refreshes each

def create_all(session, things):
    for thing in things:
        create(session, thing)
    for thing in things:
        session.refresh(thing)
"""
    )
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import create_all

def test_creates_authors(session):
    create_all(session, [Author(name=str(uuid4())) for _ in range(5)])

def test_creates_books(session):
    create_all(session, [Book(title=str(uuid4()), author_id=1) for _ in range(6)])
""",
        "--session-tracer=report",
    )
    rows = [steady(line) for line in run.summary if line.startswith("refresh-after-write")]
    # Not the 11 of both tests together: the number is shown beside the time of one.
    assert [re.sub("[56] SELECTs", "SELECTs", row) for row in sorted(rows)] == [
        "refresh-after-write service.py:11 Author, Book SELECTs, TIME of TIME 2 tests",
        "refresh-after-write service.py:5 Author, Book SELECTs, TIME of TIME 2 tests",
    ]
    assert run.summary[-1] == "2 findings in 3 sessions"


def test_two_loops_that_call_one_line_are_two_rows(suites: Suites) -> None:
    """Each has its own numbers."""
    (suites.folder / "service.py").write_text(
        """
from uuid import uuid4
from tests.library import Author

def create(session):
    session.add(Author(name=str(uuid4())))
    session.commit()

def seed(session):
    for _ in range(20):
        create(session)

def seed_more(session):
    for _ in range(12):
        create(session)
"""
    )
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import seed, seed_more

def test_seeds(session):
    seed(session)

def test_seeds_more(session):
    seed_more(session)
""",
        "--session-tracer=report",
    )
    row = "commit-in-loop service.py:7 Author {} commits, TIME of TIME 1 test ({})"
    assert sorted(steady(line) for line in run.summary if line.startswith("commit-in-loop")) == [
        row.format(12, "test_library.py::test_seeds_more"),
        row.format(20, "test_library.py::test_seeds"),
    ]
    remedies = [line.partition(" at ")[2] for line in run.summary if "once after" in line]
    assert sorted(remedies) == [
        "service.py:11 in seed(), or once for each batch",
        "service.py:15 in seed_more(), or once for each batch",
    ]


def test_what_is_refreshed_after_each_commit_of_a_loop_is_in_the_row_of_the_commits(
    suites: Suites,
) -> None:
    (suites.folder / "service.py").write_text(
        """
def create_all(session, things):
    for thing in things:
        session.add(thing)
        session.commit()
        session.refresh(thing)
"""
    )
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import create_all

def test_creates_few(session):
    create_all(session, [Author(name=str(uuid4())) for _ in range(4)])

def test_creates_many(session):
    create_all(session, [Author(name=str(uuid4())) for _ in range(12)])
""",
        "--session-tracer=report",
    )
    # Each has the number of the test in which it took longest: on a busy machine, of either.
    row, also = (steady(line) for line in run.summary if "service.py:" in line)
    number, time = r"(4|12)", "TIME of TIME"
    assert re.fullmatch(
        rf"commit-in-loop service.py:5 Author {number} commits, {time} 2 tests", row
    )
    assert re.fullmatch(
        rf" also refresh-after-write service.py:6 Author {number} SELECTs, {time}", also
    )
    assert run.summary[-1] == "1 finding in 3 sessions"


def test_each_line_that_one_loop_leads_to_is_shown(suites: Suites) -> None:
    """One SELECT of each class before the loop is one change; it concerns both lines."""
    (suites.folder / "service.py").write_text(
        """
from sqlalchemy import select
from tests.library import Author, Book

def authors(session, name):
    return session.scalars(select(Author).where(Author.name == name)).all()

def books(session, title):
    return session.scalars(select(Book).where(Book.title == title)).all()

def again(session, name):
    return session.scalars(select(Author).where(Author.name == name)).all()

def both(session, key):
    authors(session, key)
    books(session, key)
    again(session, key)

def find_all(session, keys):
    for key in keys:
        both(session, key)

def find_apart(session, keys):
    for key in keys:
        authors(session, key)
    for key in keys:
        books(session, key)
"""
    )
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import find_all

def test_finds(session):
    find_all(session, "abcdef")
""",
        "--session-tracer=report",
    )
    row, *also, remedy, _, last = map(steady, run.summary)
    assert "Author, Book 18 SELECTs, TIME of TIME 1 test" in row
    # The line that took the longest comes first.
    own = {6: "Author", 9: "Book", 12: "Author"}
    first = next(line for line in own if f"query-in-loop service.py:{line} " in row)
    assert sorted(also) == sorted(
        f" also service.py:{line} {entity} 6 SELECTs, TIME of TIME"
        for line, entity in own.items()
        if line != first
    )
    assert remedy.endswith(" before the loop at service.py:21 in find_all()")
    assert last == "1 finding in 2 sessions"

    suites.write(
        """
from service import find_apart

def test_finds(session):
    find_apart(session, "abcdef")
"""
    )
    run = suites.run("--session-tracer=report")
    rows = sorted(line.split()[1] for line in run.summary if line.startswith("query-in-loop"))
    assert rows == ["service.py:6", "service.py:9"]
    assert not [line for line in run.summary if line.startswith("    also")]


WRITES: Final = """
from uuid import uuid4
from sqlalchemy import insert
from tests.library import Author

def add(session, times):
    for _ in range(times):
        session.execute(insert(Author).values(name=str(uuid4()), biography=""))

def add_elsewhere(session, times):
    for _ in range(times):
        session.execute(insert(Author).values(name=str(uuid4()), biography=""))

def commit_each(session, is_written):
    for is_new in is_written:
        if is_new:
            session.add(Author(name=str(uuid4())))
        session.commit()
"""


def test_counting_begins_with_the_first_thing_that_a_test_does(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_TRACER_SINGLE_ROW_WRITES", "3")
    (suites.folder / "service.py").write_text(WRITES)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import add

@pytest.mark.parametrize("_", range(3))
def test_adds_few(shared_session, _):
    add(shared_session, 2)

def test_adds_many(shared_session):
    add(shared_session, 3)
""",
        "--session-tracer=info",
    )
    assert run.outcomes == {
        "test_adds_few[0]": "passed",
        "test_adds_few[1]": "passed",
        "test_adds_few[2]": "passed",
        "test_adds_many": "failed",
    }
    assert [line for line in run.summary if "row-by-row-writes" in line]


ADDS: Final = """
from sqlalchemy import insert
from tests.library import Author

def insert_one(session, name):
    session.execute(insert(Author).values(name=name, biography=""))

def insert_each(session, names):
    for name in names:
        insert_one(session, name)

def flush_one(session, name):
    session.add(Author(name=name))
    session.flush()

def flush_each(session, names):
    for name in names:
        flush_one(session, name)
"""


def test_rows_that_a_test_writes_one_by_one_are_its_own(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_TRACER_SINGLE_ROW_WRITES", "6")
    (suites.folder / "service.py").write_text(ADDS)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import flush_each, flush_one, insert_each, insert_one

NAMES = [str(number) for number in range(6)]

def test_a_call_for_each(session):
    for name in NAMES:
        insert_one(session, name)

def test_a_call_that_flushes_for_each(session):
    for name in NAMES:
        flush_one(session, name)

def test_a_helper_of_its_own(session):
    def keep(name):
        insert_one(session, name)
    list(map(keep, NAMES))

def test_of_a_loop(session):
    for number in range(2):
        insert_each(session, [name + str(number) for name in NAMES])

def test_of_a_loop_that_flushes(session):
    flush_each(session, NAMES)
""",
        "--session-tracer=info",
    )
    assert run.outcomes == {
        "test_a_call_for_each": "passed",
        "test_a_call_that_flushes_for_each": "passed",
        "test_a_helper_of_its_own": "passed",
        "test_of_a_loop": "failed",
        "test_of_a_loop_that_flushes": "failed",
    }


ADDS_ALL: Final = """
from sqlalchemy import literal
from tests.library import Author

def add_all(session, times):
    session.add_all([Author(name=literal(f"{times} {number}")) for number in range(6)])
    session.flush()
"""


def test_rows_of_one_flush_are_not_the_tests_loop(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_TRACER_SINGLE_ROW_WRITES", "6")
    (suites.folder / "service.py").write_text(ADDS_ALL)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import add_all

def test_in_a_loop(session):
    for times in range(2):
        add_all(session, times)
""",
        "--session-tracer=info",
    )
    assert run.outcomes == {"test_in_a_loop": "failed"}
    assert [line for line in run.summary if line.startswith("row-by-row-writes   service.py:7")]


def test_the_applications_own_tracing_reports_a_shared_session_once(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin counts from zero in each test, which the application's tracing must not show."""
    monkeypatch.setenv("SESSION_TRACER_SINGLE_ROW_WRITES", "3")
    (suites.folder / "service.py").write_text(WRITES)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import add, add_elsewhere
from session_tracer import Exporter, instrument

FOUND = []

@pytest.fixture(scope="module")
def traced_session(SessionLocal):
    with instrument(SessionLocal, exporter=Exporter(on_finding=FOUND.append)):
        with SessionLocal() as session:
            yield session

@pytest.mark.parametrize("_", range(3))
def test_adds_many(traced_session, _):
    add(traced_session, 3)
    assert [finding.id for finding in FOUND] == ["row-by-row-writes"]

def test_adds_many_elsewhere(traced_session):
    add_elsewhere(traced_session, 3)
    assert [finding.id for finding in FOUND] == ["row-by-row-writes"] * 2
""",
        "--session-tracer=report",
    )
    assert set(run.outcomes.values()) == {"passed"}
    # The one that took longer comes first.
    found = [line for line in run.summary if line.startswith("row-by-row-writes")]
    assert sorted("3 tests (" in line for line in found) == [False, True]


def test_what_a_fixture_wrote_is_no_commit_of_the_tests(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_TRACER_COMMITS_FROM_ONE_SITE", "2")
    (suites.folder / "service.py").write_text(WRITES)
    suites.configure("pythonpath = .")
    run = suites.run_source(
        """
from service import commit_each

def test_flushes(shared_session):
    flush(shared_session)

def test_commits_what_another_wrote(shared_session):
    commit_each(shared_session, [False, True])

def test_commits_its_own(shared_session):
    commit_each(shared_session, [True, True])
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_flushes": "passed",
        "test_commits_what_another_wrote": "passed",
        "test_commits_its_own": "failed",
    }
    assert [line for line in run.summary if "commit-in-loop" in line]


def test_a_session_of_a_fixture_is_not_nested(suites: Suites) -> None:
    run = suites.run_source(
        """
def test_next_to_another_of_its_own(SessionLocal):
    with SessionLocal() as session:
        session.connection()
        first(SessionLocal)

def test_next_to_a_fixture(SessionLocal, session, shared_session):
    session.connection()
    first(SessionLocal)
    shared_session.connection()
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_next_to_a_fixture": "passed",
        "test_next_to_another_of_its_own": "failed",
    }
    assert "nested-sessions" in run.text


SESSIONS = """
from sqlalchemy.orm import scoped_session
from tests.library import Author

def opened(SessionLocal):
    with SessionLocal() as session:
        yield session

def ask(session):
    session.connection()

def save(SessionLocal, name):
    with SessionLocal() as session:
        session.add(Author(name=name))
        session.commit()

def save_with_another(SessionLocal, name):
    with SessionLocal() as session:
        session.add(Author(name=name))
        session.commit()
        save(SessionLocal, name + name)

class Application:
    every = []

    def __init__(self, SessionLocal):
        self.session = scoped_session(SessionLocal, scopefunc=lambda: 1)
        self.every.append(self)

    def add(self):
        self.session.add(Author(name=str(id(self))))
        self.session.commit()

    def nest(self, SessionLocal):
        self.session.connection()
        with SessionLocal() as session:
            session.connection()
        self.session.commit()
"""


@pytest.fixture
def sessions(suites: Suites) -> None:
    (suites.folder / "sessions.py").write_text(SESSIONS)
    suites.configure("pythonpath = .")


@pytest.mark.usefixtures("sessions")
def test_a_session_of_the_tests_beside_the_applications(suites: Suites) -> None:
    run = suites.run_source(
        """
from sessions import ask, save, save_with_another

def test_saves_by_itself(SessionLocal):
    with SessionLocal() as session:
        session.add(Author(name="first"))
        session.commit()
        save(SessionLocal, "second")

def test_uses_a_fixtures_again(SessionLocal, session):
    session.close()
    ask(session)
    session.add(Author(name="third"))
    session.commit()
    save(SessionLocal, "fourth")

def test_the_application_has_two(SessionLocal):
    save_with_another(SessionLocal, "fifth")
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_saves_by_itself": "passed",
        "test_uses_a_fixtures_again": "passed",
        "test_the_application_has_two": "failed",
    }
    assert "split-writes" in run.text


@pytest.mark.usefixtures("sessions")
def test_the_session_of_the_applications_registry_is_its_own(suites: Suites) -> None:
    run = suites.run_source(
        """
from sessions import Application

@pytest.fixture
def application(SessionLocal):
    application = Application(SessionLocal)
    application.add()
    return application

def test_nests_another_one(SessionLocal, application):
    application.nest(SessionLocal)

def test_holds_it(SessionLocal, application):
    application.session.connection()
    application.nest(SessionLocal)
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {"test_nests_another_one": "failed", "test_holds_it": "passed"}
    assert "nested-sessions" in run.text


@pytest.mark.usefixtures("sessions")
def test_what_is_resumed_or_registered_is_not_given_up(suites: Suites) -> None:
    run = suites.run_source(
        """
from sessions import Application, ask, opened
from tests.stories.findings.due import look_ahead

@pytest.fixture
def of_a_generator(SessionLocal):
    for session in opened(SessionLocal):
        yield session

@pytest.fixture
def used(of_a_generator):
    ask(of_a_generator)

def test_waits(used):
    look_ahead(20)

def test_has_a_registry(SessionLocal):
    Application(SessionLocal).add()
    look_ahead(61)

def test_gives_it_up(SessionLocal):
    generator = opened(SessionLocal)
    ask(next(generator))
    look_ahead(20)
    generator.close()
""",
        "--session-tracer=warning",
    )
    assert run.outcomes == {
        "test_waits": "passed",
        "test_has_a_registry": "passed",
        "test_gives_it_up": "failed",
    }


def test_how_long_a_shared_session_lives_is_no_tests_fault(suites: Suites) -> None:
    run = suites.run_source(
        """
from tests.stories.findings.due import look_ahead

def test_waits(shared_session):
    shared_session.connection()
    look_ahead(61)

def test_keeps_its_own_waiting(session):
    session.connection()
    look_ahead(61)
""",
        "--session-tracer=error",
    )
    assert run.outcomes == {"test_waits": "passed", "test_keeps_its_own_waiting": "failed"}
    assert "leaked-session" in run.reports["test_keeps_its_own_waiting"]["call"].longreprtext
    assert "outside of tests" not in run.text


def test_what_the_watch_finds_of_a_shared_session_is_no_tests_fault(suites: Suites) -> None:
    run = suites.run_source(
        """
import time

def test_waits(shared_session):
    shared_session.connection()
    time.sleep(0.5)

def test_keeps_its_own_waiting(session):
    session.connection()
    time.sleep(0.5)
""",
        "--session-tracer=warning",
        "--override-ini=session_tracer_idle_in_transaction_seconds=0.1",
    )
    assert run.outcomes == {"test_waits": "passed", "test_keeps_its_own_waiting": "failed"}
    assert run.text.count("idle-in-transaction   ") == 1


def test_a_junit_file_has_counts_and_findings(suites: Suites) -> None:
    suites.run_source(THREE, "--session-tracer=error", "--junitxml=junit.xml")
    properties = {
        case.get("name"): [(one.get("name"), one.get("value")) for one in case.iter("property")]
        for case in ET.parse(suites.folder / "junit.xml").iter("testcase")
    }
    counts = {
        "sessions": 1,
        "commits": 0,
        "flushes": 0,
        "statements": 1,
        "lazy_loads": 0,
        "loaded": 12,
    }
    *numbers, sql, slowest = properties["test_is_quiet"]
    assert numbers == [(f"session_tracer.{name}", str(count)) for name, count in counts.items()]
    assert (sql[0], slowest[0]) == (
        "session_tracer.sql_ms",
        "session_tracer.slowest_statement_ms",
    )
    assert float(str(sql[1])) >= float(str(slowest[1])) >= 0
    assert properties["test_requests[info]"][-1] == (
        "session_tracer.finding",
        f"demo-info {suites.at('# requests')}",
    )


def test_the_applications_own_logs_and_spans_are_as_they_are_without(suites: Suites) -> None:
    run = suites.run_source(
        """
import structlog
from opentelemetry import context
from session_tracer import instrument, Exporter

@pytest.fixture
def logged():
    events = []
    structlog.configure(processors=[lambda *given: events.append(given[2]) or given[2]],
                        logger_factory=structlog.ReturnLoggerFactory())
    yield events
    structlog.reset_defaults()

def test_logs_nothing(SessionLocal, logged):
    first(SessionLocal)
    read_too_late(SessionLocal)
    assert logged == []

def test_its_own_logs(SessionLocal, logged):
    run = []
    with instrument(SessionLocal, name="own", exporter=Exporter(on_session=run.append)):
        first(SessionLocal)
    assert [summary.name for summary in run] == ["own"]
    assert {event["session_name"] for event in logged} == {"own"}

def test_the_context_is_the_callers(SessionLocal):
    before = context.get_current()
    with SessionLocal() as session:
        session.execute(text("SELECT 1"))
        assert context.get_current() is before
""",
        "--session-tracer",
    )
    assert set(run.outcomes.values()) == {"passed"}

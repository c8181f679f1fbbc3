"""That the fixture `session_trace` shows what the sessions of its test do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.plugin.suites import Suites


@pytest.mark.parametrize("options", [(), ("--session-tracer",)], ids=["alone", "with the option"])
def test_it_counts_what_the_test_does(suites: Suites, options: tuple[str, ...]) -> None:
    run = suites.run_source(
        """
def counts(trace):
    names = ("opened", "statements", "commits", "flushes", "lazy_loads", "loaded")
    return tuple(getattr(trace, name) for name in names)

@pytest.fixture
def busy(SessionLocal):
    read_too_late(SessionLocal)
    with SessionLocal() as session:
        commit(session)
        flush(session)
        yield session
        flush(session)

def test_others_do_not_count(busy, session_trace):
    assert counts(session_trace) == (0, 0, 0, 0, 0, 0)
    assert session_trace.sessions == []

def test_itself_counts(session_trace, SessionLocal, session, shared_session):
    flush(session)
    assert counts(session_trace) == (0, 1, 0, 1, 0, 0)
    session.rollback()
    read_one_by_one(session, 2)
    assert counts(session_trace) == (0, 4, 0, 1, 2, 6)
    first(SessionLocal)
    commit(shared_session)
    assert counts(session_trace) == (1, 6, 1, 1, 2, 18)
    used, opened, shared = session_trace.sessions
    assert [one.statements for one in (used, opened, shared)] == [4, 1, 1]
    assert [one.ending for one in (used, opened, shared)] == ["", "close", ""]
    assert used.loaded == {"Author": 2, "Book": 4}
    assert used.lazy_loads == {"relationship": 2}
    assert used.identity_map_peak == 6

def test_a_refresh_is_asked_for(session_trace, SessionLocal):
    with SessionLocal() as session:
        author = session.get(Author, 1)
        session.refresh(author)
        session.commit()
        author.name
    assert (session_trace.statements, session_trace.lazy_loads) == (3, 1)
    assert session_trace.sessions[0].lazy_loads == {"refresh": 1, "expired": 1}

def test_a_failed_flush_is_one(session_trace, session):
    session.add(Author(name="author 0"))
    with pytest.raises(Exception, match="UNIQUE"):
        session.flush()
    assert (session_trace.flushes, session_trace.commits) == (1, 0)

def test_a_savepoint_is_no_commit(session_trace, session):
    with session.begin_nested():
        session.execute(text("SELECT 1"))
    assert session_trace.commits == 0
""",
        *options,
    )
    assert set(run.outcomes.values()) == {"passed"}, run.text


def test_it_has_the_findings_and_the_open_sessions(suites: Suites) -> None:
    run = suites.run_source("""
@pytest.fixture
def loud(SessionLocal):
    request_finding(SessionLocal, "info")

def test_findings(loud, session_trace, SessionLocal, session):
    assert [finding.id for finding in session_trace.findings] == ["demo-info"]
    read_too_late(SessionLocal)
    assert session_trace.findings[1:] == [session_trace.sessions[0].findings[0]]
    assert session_trace.findings[1].id == "detached-lazy-load"

@pytest.fixture
def author(SessionLocal):
    return first(SessionLocal)

def test_an_object_of_a_session_before(author, session_trace):
    with pytest.raises(DetachedInstanceError):
        author.books
    assert len(session_trace.findings) == 1
    assert session_trace.sessions == []

def test_open(session_trace, SessionLocal, session, shared_session):
    assert [live.transaction for live in session_trace.open] == ["none"]
    session.connection()
    with SessionLocal() as another:
        assert [live.transaction for live in session_trace.open] == ["open", "none"]
    assert len(session_trace.open) == 1

def test_text(session_trace, SessionLocal):
    assert str(session_trace) == ""
    first(SessionLocal)
    head, opened, *steps = str(session_trace).splitlines()
    assert head.startswith("● session default ")
    assert [step.split()[1] for step in steps] == ["begin", "select", "close"]
""")
    assert set(run.outcomes.values()) == {"passed"}, run.text


def test_it_can_be_asked_for_as_the_test_runs(suites: Suites) -> None:
    run = suites.run_source("""
def test_counts_from_then_on(request, SessionLocal):
    first(SessionLocal)
    trace = request.getfixturevalue("session_trace")
    assert trace.statements == 0
    first(SessionLocal)
    assert trace.statements == 1

@pytest.fixture
def trace(request, SessionLocal):
    trace = request.getfixturevalue("session_trace")
    first(SessionLocal)
    return trace

def test_setup_is_setup(trace, SessionLocal):
    assert trace.statements == 0
    first(SessionLocal)
    assert trace.statements == 1

def test_is_traced_no_longer(SessionLocal):
    with SessionLocal() as session:
        assert "_session_tracer" not in session.__dict__
""")
    assert set(run.outcomes.values()) == {"passed"}, run.text


def test_two_fixtures_have_the_same_trace(suites: Suites) -> None:
    run = suites.run_source("""
from session_tracer.pytest_plugin import SessionTrace

@pytest.fixture
def quiet(session_trace: SessionTrace):
    yield
    assert session_trace.statements == 1
    assert session_trace.findings == []

def test_reads(quiet, SessionLocal):
    first(SessionLocal)

def test_reads_too_much(quiet, SessionLocal):
    first(SessionLocal)
    first(SessionLocal)
""")
    assert run.outcomes == {"test_reads": "passed", "test_reads_too_much": "teardown error"}


def test_threads_count_for_the_test_that_runs(suites: Suites) -> None:
    run = suites.run_source("""
from concurrent.futures import ThreadPoolExecutor

@pytest.mark.session_budget(sessions=40, statements=40)
def test_in_threads(SessionLocal, session_trace):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: first(SessionLocal), range(40)))
    assert (session_trace.opened, session_trace.statements) == (40, 40)
""")
    assert run.outcomes == {"test_in_threads": "passed"}, run.text


@pytest.mark.parametrize("plugin", ["asyncio", "anyio"])
def test_coroutines_are_tests_too(suites: Suites, plugin: str) -> None:
    if plugin == "asyncio":
        mark, fixture = "asyncio(loop_scope='module')", "pytest_asyncio.fixture(loop_scope='module'"
    else:
        mark, fixture = "anyio", "pytest.fixture("
    run = suites.run_source(
        f"""
import pytest_asyncio
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from tests.library import Base, authors

pytestmark = pytest.mark.{mark}
LEFT = []

@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"

@{fixture}, scope="module")
async def maker(tmp_path_factory):
    file = tmp_path_factory.mktemp("asynchronous") / "library.db"
    engine = create_async_engine(f"sqlite+aiosqlite:///{{file}}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    maker = async_sessionmaker(engine)
    async with maker() as session:
        session.add_all(authors(2))
        await session.commit()
    yield maker
    for session in LEFT:
        await session.close()
    await engine.dispose()

@{fixture}, scope="module")
async def shared(maker):
    async with maker() as session:
        await session.connection()
        yield session

@{fixture})
async def session(maker):
    async with maker() as session:
        yield session

async def read(maker):
    async with maker() as session:
        return (await session.scalars(select(Author))).first()

@pytest.mark.session_budget(statements=1, commits=0)
async def test_once(maker, session_trace):
    await read(maker)
    assert session_trace.sessions[0].is_async
    assert (session_trace.statements, session_trace.loaded) == (1, 2)

@pytest.mark.session_budget(statements=1)
async def test_twice(maker):
    await asyncio.gather(read(maker), read(maker))

@pytest.mark.session_budget(loaded=1)
async def test_of_a_fixture(session):
    await session.scalars(select(Author))

@pytest.mark.session_budget(loaded=1)
async def test_of_a_wider_fixture(shared):
    await shared.scalars(select(Author))

async def test_too_late(maker):
    author = await read(maker)
    with pytest.raises(DetachedInstanceError):
        author.books

async def test_left_open(maker, session_trace):
    LEFT.append(maker())  # is left open
    await LEFT[0].connection()
    assert [live.transaction for live in session_trace.open] == ["open"]

async def test_ends(maker):
    pass
""".replace("(,", "("),
        "--session-tracer=error",
        "-o",
        "asyncio_mode=strict",
    )
    assert run.outcomes == {
        "test_once": "passed",
        "test_twice": "failed",
        "test_of_a_fixture": "failed",
        "test_of_a_wider_fixture": "failed",
        "test_too_late": "failed",
        "test_left_open": "passed",
        "test_ends": "passed",
    }, run.text
    for name in ("test_of_a_fixture", "test_of_a_wider_fixture"):
        message = run.reports[name]["call"].longrepr.reprcrash.message
        assert message.startswith("session budget: loaded 2 > 1 (Author ×2 at ")
    assert run.text.count("left-open ") == 1
    assert run.has(f"left-open            {suites.at('# is left open')}", "1 test (")


def test_an_open_session_lasts_until_its_last_step(suites: Suites) -> None:
    run = suites.run_source(
        """
from time import sleep

def test_waits(session_trace, session):
    session.scalars(select(Author)).all()
    sleep(0.2)
    [used] = session_trace.sessions
    assert used.loaded == {"Author": 12}
    assert used.duration_ms < 200
"""
    )
    assert run.outcomes == {"test_waits": "passed"}

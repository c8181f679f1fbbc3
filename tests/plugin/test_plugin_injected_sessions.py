"""That what tests do with a session they opened is not put at a line of the application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

SERVICE: Final = """
import asyncio
from contextlib import asynccontextmanager
from sqlalchemy import select, text
from tests.library import Author
from tests.stories.findings.due import look_ahead

async def handle(session):
    return await session.scalar(text("SELECT 1"))  # handles

async def handle_both(session):
    await asyncio.gather(handle(session), handle(session))

@asynccontextmanager
async def lent(maker):
    async with maker() as session:
        await session.connection()
        yield session

async def prepare(maker):
    async with lent(maker) as session:
        await handle_both(session)

class Application:
    async def start(self, maker):
        self.session = maker()
        await self.session.connection()

    async def request(self):
        await handle(self.session)

def read(session):
    session.scalars(select(Author).limit(1)).all()  # reads

def opened(SessionLocal):
    return SessionLocal()

def read_and_wait(session):
    session.scalars(select(Author).limit(1)).all()  # reads and waits
    look_ahead(31)

def read_in_its_own(SessionLocal):
    with SessionLocal() as session:
        read(session)
        look_ahead(31)
"""

TASKS: Final = """
import pytest_asyncio
from service import Application, handle, handle_both, lent, prepare
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

@pytest_asyncio.fixture
async def maker():
    engine = create_async_engine("sqlite+aiosqlite://")
    yield async_sessionmaker(engine)
    await engine.dispose()

@pytest_asyncio.fixture
async def shared(maker):
    async with maker() as session:  # opens a fixture's
        await session.connection()
        yield session

@pytest_asyncio.fixture
async def borrowed(maker):
    async with lent(maker) as session:  # borrows
        yield session

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def borrowed_for_all():
    engine = create_async_engine("sqlite+aiosqlite://")
    async with lent(async_sessionmaker(engine)) as session:  # borrows for all
        yield session
    await engine.dispose()

@pytest_asyncio.fixture
async def prepared(maker):
    await prepare(maker)

@pytest_asyncio.fixture
async def application(maker):
    application = Application()
    await application.start(maker)
    yield application
    await application.session.close()
"""


@pytest.fixture
def service(suites: Suites) -> Suites:
    (suites.folder / "service.py").write_text(SERVICE)
    suites.configure("pythonpath = .")
    return suites


def test_tasks_that_share_a_session_of_the_tests(service: Suites) -> None:
    run = service.run_source(
        TASKS
        + """
async def test_of_a_fixture(shared):
    await asyncio.gather(handle(shared), handle(shared))

async def test_of_requests(shared):
    await asyncio.gather(handle_both(shared), asyncio.sleep(0))

async def test_of_a_fixtures_block(borrowed):
    await handle_both(borrowed)

@pytest.mark.asyncio(loop_scope="module")
async def test_of_a_wider_fixtures_block(borrowed_for_all):
    await handle_both(borrowed_for_all)

async def test_of_its_own_block(maker):
    async with lent(maker) as session:  # borrows itself
        await handle_both(session)

async def test_of_the_application(application):
    await asyncio.gather(application.request(), application.request())

async def test_of_a_function_of_the_application(maker):
    await prepare(maker)

async def test_of_what_a_fixture_calls(prepared):
    pass
""",
        "--session-tracer=error",
    )
    expected = dict.fromkeys(run.outcomes, "failed")
    expected["test_of_what_a_fixture_calls"] = "teardown error"
    assert run.outcomes == expected, run.text
    for test, words in {
        "test_of_a_fixture": "# opens a fixture's",
        "test_of_requests": "# opens a fixture's",
        "test_of_a_fixtures_block": "# borrows",
        "test_of_a_wider_fixtures_block": "# borrows for all",
        "test_of_its_own_block": "# borrows itself",
        "test_of_the_application": "",
        "test_of_a_function_of_the_application": "",
        "test_of_what_a_fixture_calls": "",
    }.items():
        phase = "teardown" if test == "test_of_what_a_fixture_calls" else "call"
        text = " ".join(run.reports[test][phase].longreprtext.split())
        assert f"({service.at('# handles', 'service')})" in text
        before, found, line = text.partition("; the tests opened the session at ")
        assert bool(found) == bool(words), before
        assert line.startswith(f"{service.at(words)} in " if words else "")


def test_how_long_a_transaction_of_the_tests_is_open(service: Suites) -> None:
    source = """
from service import opened, read, read_and_wait, read_in_its_own
from tests.stories.findings.due import look_ahead

@pytest.fixture
def from_a_helper(SessionLocal):
    with opened(SessionLocal) as session:
        yield session

def test_of_a_fixture(session):
    read(session)
    look_ahead(31)

def test_of_a_helper(from_a_helper):
    read(from_a_helper)
    look_ahead(31)

def test_that_leaks(session):
    read(session)
    look_ahead(61)

def test_in_which_the_application_waits(session):
    read_and_wait(session)

def test_of_the_application(SessionLocal):
    read_in_its_own(SessionLocal)
"""
    run = service.run_source(source, "--session-tracer=warning")
    silent = ["test_of_a_fixture", "test_of_a_helper", "test_that_leaks"]
    found = ["test_in_which_the_application_waits", "test_of_the_application"]
    expected = dict.fromkeys(silent, "passed") | dict.fromkeys(found, "failed")
    assert run.outcomes == expected, run.text

    # Of one that is not idle, its line is the one that began it.
    service.configure("pythonpath = .\nsession_tracer_idle_in_transaction_seconds = 99")
    run = service.run("--session-tracer=warning")
    expected["test_in_which_the_application_waits"] = "passed"
    assert run.outcomes == expected, run.text
    assert run.summary[0].startswith(f"long-transaction   {service.at('# reads', 'service')} ")

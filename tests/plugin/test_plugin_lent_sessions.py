"""That a session which the application's context manager opens for a test is the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

APPLICATION: Final = """
from contextlib import ExitStack, contextmanager
from uuid import uuid4
from tests.library import Author

@contextmanager
def lent(SessionLocal):
    with SessionLocal() as session:
        yield session
        session.commit()

@contextmanager
def begun(SessionLocal):
    with SessionLocal() as session:
        session.connection()
        yield session

@contextmanager
def wrapped(SessionLocal):
    with lent(SessionLocal) as session:
        yield [session]

@contextmanager
def prepared(SessionLocal):
    nest(SessionLocal)
    yield

class Unit:
    def __init__(self, SessionLocal):
        self.maker = SessionLocal

    def __enter__(self):
        self.session = self.maker()
        return self

    def __exit__(self, *_):
        self.session.close()

    def ask(self):
        self.session.connection()

def opened(SessionLocal):
    return SessionLocal()

def ask(session):
    session.connection()

def write(session):
    session.add(Author(name=str(uuid4())))
    session.flush()

def save(SessionLocal):
    with lent(SessionLocal) as session:
        write(session)

def nest(SessionLocal):
    with lent(SessionLocal) as session:
        ask(session)
        save(SessionLocal)

def nest_begun(SessionLocal):
    with begun(SessionLocal) as session:
        save(SessionLocal)

def nest_unit(SessionLocal):
    with Unit(SessionLocal) as unit:
        unit.ask()
        save(SessionLocal)

def nest_on_a_stack(SessionLocal):
    with ExitStack() as stack:
        ask(stack.enter_context(begun(SessionLocal)))
        save(SessionLocal)

def split(SessionLocal):
    with lent(SessionLocal) as session:
        write(session)
        session.commit()
        save(SessionLocal)
"""

TESTS: Final = """
from contextlib import nullcontext
import lending
from lending import Unit, ask, begun, lent, opened, prepared, save, wrapped, write

@pytest.fixture
def held(SessionLocal):
    with lent(SessionLocal) as session:
        yield session

@pytest.fixture
def unit(SessionLocal):
    with Unit(SessionLocal) as unit:
        yield unit

def test_nests(SessionLocal):
    with lent(SessionLocal) as session:
        session.connection()
        save(SessionLocal)

def test_nests_after_a_function(SessionLocal):
    with lent(SessionLocal) as session:
        ask(session)
        save(SessionLocal)

def test_nests_in_what_is_begun(SessionLocal):
    with begun(SessionLocal):
        save(SessionLocal)

def test_nests_in_what_is_wrapped(SessionLocal):
    with wrapped(SessionLocal) as [session]:
        ask(session)
        save(SessionLocal)

def test_nests_in_an_object(SessionLocal):
    with Unit(SessionLocal) as unit:
        unit.ask()
        save(SessionLocal)

def test_nests_in_what_a_function_returns(SessionLocal):
    with opened(SessionLocal) as session:
        session.connection()
        save(SessionLocal)

def nest(SessionLocal):
    with lent(SessionLocal) as session:
        write(session)
        session.commit()
        save(SessionLocal)

def test_nests_in_a_helper(SessionLocal):
    nest(SessionLocal)

def test_nests_in_a_fixtures(SessionLocal, held):
    ask(held)
    save(SessionLocal)

def test_nests_in_a_fixtures_object(SessionLocal, unit):
    unit.ask()
    save(SessionLocal)

def test_splits_in_a_fixtures(SessionLocal, held):
    write(held)
    held.commit()
    save(SessionLocal)

def test_splits(SessionLocal):
    with lent(SessionLocal) as session:
        write(session)
        session.commit()
        save(SessionLocal)
        write(session)

@pytest.mark.parametrize(
    "function", ["nest", "nest_begun", "nest_unit", "nest_on_a_stack", "split"]
)
def test_of_the_application(SessionLocal, function):
    with lent(SessionLocal) as session:
        ask(session)
    with nullcontext():
        getattr(lending, function)(SessionLocal)

def test_of_an_applications_function_in_a_context_manager(SessionLocal):
    with prepared(SessionLocal):
        pass

def test_of_a_function_in_a_block_without_a_connection(SessionLocal):
    with begun(SessionLocal) as session, lent(SessionLocal):
        session.close()
        lending.nest_on_a_stack(SessionLocal)
"""

LATER: Final = """
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4
from tests.library import Author

@asynccontextmanager
async def lent(maker):
    async with maker() as session:
        yield session
        await session.commit()

async def write(session):
    session.add(Author(name=str(uuid4())))
    await session.flush()

async def save(maker):
    async with lent(maker) as session:
        await write(session)

async def nest(maker):
    async with lent(maker) as session:
        await session.connection()
        await save(maker)

async def split(maker):
    async with lent(maker) as session:
        await write(session)
        await session.commit()
        await save(maker)

async def nest_on_a_stack(maker):
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(lent(maker))
        await session.connection()
        await save(maker)
"""

TESTS_LATER: Final = """
import pytest_asyncio
from lending import lent, nest, nest_on_a_stack, save, split, write
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from tests.library import Base

@pytest_asyncio.fixture
async def maker(tmp_path):
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'library.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield async_sessionmaker(engine)
    await engine.dispose()

@pytest_asyncio.fixture
async def held(maker):
    async with lent(maker) as session:
        yield session

async def test_nests(maker):
    async with lent(maker) as session:
        await session.connection()
        await save(maker)

async def test_nests_in_a_fixtures(maker, held):
    await held.connection()
    await save(maker)

async def test_splits_in_a_fixtures(maker, held):
    await write(held)
    await held.commit()
    await save(maker)

async def test_splits(maker):
    async with lent(maker) as session:
        await write(session)
        await session.commit()
        await save(maker)
        await write(session)

async def test_of_the_application(maker):
    await nest(maker)

async def test_of_the_application_that_splits(maker):
    await split(maker)

async def test_of_a_function_in_a_block_without_a_connection(maker):
    async with lent(maker):
        await nest_on_a_stack(maker)
"""


@pytest.mark.parametrize(
    ("application", "tests"),
    [pytest.param(APPLICATION, TESTS, id="sync"), pytest.param(LATER, TESTS_LATER, id="async")],
)
def test_what_is_next_to_a_lent_session(suites: Suites, application: str, tests: str) -> None:
    (suites.folder / "lending.py").write_text(application)
    suites.configure("pythonpath = .")
    run = suites.run_source(tests, "--session-tracer=warning")
    expected = {name: "failed" if "_of_" in name else "passed" for name in run.outcomes}
    assert run.outcomes == expected, run.text
    assert set(expected.values()) == {"failed", "passed"}
    for name, reports in run.reports.items():
        if "_of_" in name:
            found = "split-writes" if "split" in name else "nested-sessions"
            assert found in reports["call"].longreprtext

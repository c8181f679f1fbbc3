"""That what prepares a test is held against neither the test nor the application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

SHOP: Final = """
from uuid import uuid4

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import StaticPool
from tests.library import Author, Base

maker = sessionmaker(create_engine("sqlite://", poolclass=StaticPool))
Base.metadata.create_all(maker.kw["bind"])

def seed():
    with maker() as session:
        for _ in range(12):
            session.add(Author(name=str(uuid4())))
            session.commit()

async def seed_async():
    async_maker = async_sessionmaker(create_async_engine("sqlite+aiosqlite://"))
    async with async_maker() as session:
        connection = await session.connection()
        await connection.run_sync(Base.metadata.create_all)
        for _ in range(12):
            session.add(Author(name=str(uuid4())))
            await session.commit()
    await async_maker.kw["bind"].dispose()
"""

HOOKS: Final = """

from shop import seed

def pytest_sessionstart():
    seed()

def pytest_collection_finish():
    seed()

def pytest_runtest_setup():
    seed()

def pytest_sessionfinish():
    seed()
"""

TESTS: Final = """
from shop import seed, seed_async

seed()

def setup_module():
    seed()

class TestOfUnittest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        seed()

    def setUp(self):
        seed()
        self.addCleanup(seed)

    def tearDown(self):
        seed()

    def test_prepared_by_a_method(self):
        pass

    def test_itself(self):
        seed()

class TestOfUnittestAsync(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        await seed_async()
        self.addAsyncCleanup(seed_async)

    async def asyncTearDown(self):
        await seed_async()

    async def test_prepared_by_an_async_method(self):
        pass

    async def test_itself_async(self):
        await seed_async()

class TestOfPytest:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def prepared(cls):
        seed()
        yield
        seed()

    def setup_method(self):
        seed()

    def test_prepared_for_the_class(self):
        pass

@pytest.fixture
def late():
    seed()
    return seed

@pytest.fixture
async def prepared_async():
    await seed_async()
    yield
    await seed_async()

async def test_prepared_by_an_async_fixture(prepared_async):
    pass

def test_prepared_late(request):
    request.getfixturevalue("late")

def test_calls_what_a_fixture_returns(late):
    late()
"""


def test_what_prepares_a_test_may_cost_what_it_likes(suites: Suites) -> None:
    (suites.folder / "shop.py").write_text(SHOP)
    with (suites.folder / "conftest.py").open("a") as conftest:
        conftest.write(HOOKS)
    suites.configure("pythonpath = .")
    run = suites.run_source(TESTS, "--session-tracer=warning")
    assert run.outcomes == {
        "TestOfUnittest::test_itself": "failed",
        "TestOfUnittest::test_prepared_by_a_method": "passed",
        "TestOfUnittestAsync::test_itself_async": "failed",
        "TestOfUnittestAsync::test_prepared_by_an_async_method": "passed",
        "TestOfPytest::test_prepared_for_the_class": "passed",
        "test_prepared_by_an_async_fixture": "passed",
        "test_prepared_late": "passed",
        "test_calls_what_a_fixture_returns": "failed",
    }
    assert {line.split()[0] for line in run.summary[:-1] if not line.startswith(" ")} == {
        "commit-in-loop"
    }


WAREHOUSE: Final = """
import contextlib

from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool
from tests.library import Author, Base

maker = sessionmaker(create_engine("sqlite://", poolclass=StaticPool))
Base.metadata.create_all(maker.kw["bind"])

@contextlib.contextmanager
def managed():
    with maker() as session:
        session.execute(text("SELECT 1"))
        yield session
        session.commit()

def get(key):
    with managed() as session:
        return session.get(Author, key)

def start(key):
    get(key)
    with managed() as session:
        session.get(Author, key)

def start_all():
    for key in range(101):
        start(key)
"""

LOOPS: Final = """
from warehouse import get, start, start_all

@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("call", [get, start])
def test_loops_itself(call, before):
    for _ in range(before):
        get(1)
    for key in range(101):
        call(key)

def test_the_application_loops():
    start_all()
"""


def test_a_loop_of_the_test_may_open_sessions_by_functions_of_the_application(
    suites: Suites,
) -> None:
    (suites.folder / "warehouse.py").write_text(WAREHOUSE)
    suites.configure("pythonpath = .")
    run = suites.run_source(LOOPS, "--session-tracer=info")
    failed = [name for name, outcome in run.outcomes.items() if outcome != "passed"]
    assert failed == ["test_the_application_loops"]

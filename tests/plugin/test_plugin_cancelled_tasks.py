"""That a task of the application is reported if a test cancels it, and not if its fixture ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

APPLICATION: Final = """
import asyncio

from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

maker = async_sessionmaker(create_async_engine("sqlite+aiosqlite://", poolclass=NullPool))

class Sweeper:
    async def __aenter__(self):
        self.swept = asyncio.Event()
        self.task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def run(self):
        async with maker.begin() as session:
            await session.execute(select(1))
            self.swept.set()
            await asyncio.sleep(60)
"""

TESTS: Final = """
import gc
import pytest_asyncio
from application import Sweeper

@pytest_asyncio.fixture
async def sweeper():
    async with Sweeper() as sweeper:
        yield sweeper

@pytest_asyncio.fixture
async def task():
    sweeper = await Sweeper().__aenter__()
    await sweeper.swept.wait()
    return sweeper.task  # the plugin's event loop ends before it

@pytest_asyncio.fixture
async def broken():
    async with Sweeper() as sweeper:
        await sweeper.swept.wait()
        raise LookupError

class TestOfUnittest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.sweeper = await self.enterAsyncContext(Sweeper())

    async def test_ends(self):
        await self.sweeper.swept.wait()

async def test_whose_fixture_ends(sweeper):
    await sweeper.swept.wait()

async def test_whose_loop_ends(task):
    pass

async def test_whose_fixture_fails(broken):
    pass

async def test_cancels_it(sweeper):
    await sweeper.swept.wait()
    sweeper.task.cancel()
    await asyncio.wait([sweeper.task])

async def test_whose_block_ends():
    async with Sweeper() as sweeper:
        await sweeper.swept.wait()
"""


def test_what_a_fixture_stops_may_be_at_work(suites: Suites) -> None:
    (suites.folder / "application.py").write_text(APPLICATION)
    suites.configure("pythonpath = .")
    run = suites.run_source(TESTS, "--session-tracer=info")
    assert run.outcomes == {
        "TestOfUnittest::test_ends": "passed",
        "test_whose_fixture_ends": "passed",
        "test_whose_loop_ends": "passed",
        "test_whose_fixture_fails": "setup error",
        "test_cancels_it": "failed",
        "test_whose_block_ends": "failed",
    }
    assert [line.split()[0] for line in run.summary[:-1] if not line.startswith(" ")] == [
        "cancelled-transaction"
    ]
    assert "2 tests" in run.summary[0]

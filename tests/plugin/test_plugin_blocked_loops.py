"""That statements of the application are reported only if a task could have run meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

APPLICATION: Final = """
import asyncio
import time

from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

maker = sessionmaker(create_engine("sqlite://", poolclass=NullPool))

@event.listens_for(maker.kw["bind"], "connect")
def listen(connection, _record):
    connection.create_function("slow", 1, lambda seconds: time.sleep(seconds) or 1)

async def answer():
    with maker() as session:
        session.execute(text("SELECT slow(0.03)"))  # answers

async def start():
    await answer()

async def watch(seconds=60):
    await asyncio.sleep(seconds)
"""

TESTS: Final = """
import application
from application import answer, start, watch

async def beside(work, other):
    task = asyncio.ensure_future(other)
    await asyncio.sleep(0)
    try:
        await work
    finally:
        task.cancel()

@pytest.fixture
async def started():
    await beside(start(), asyncio.sleep(0.01))

async def ask():
    with application.maker() as session:
        session.execute(text("SELECT slow(0.03)"))

async def test_of_a_fixture_that_starts_the_application(started):
    pass

async def test_of_the_tests_own_coroutine():
    await beside(ask(), asyncio.sleep(0.01))

async def test_next_to_a_task_that_waits_for_ever():
    other = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    await asyncio.create_task(answer())
    other.cancel()

async def test_next_to_one_that_sleeps_for_long():
    other = asyncio.create_task(watch())
    await asyncio.sleep(0)
    await asyncio.create_task(answer())
    other.cancel()

async def test_alone():
    await answer()

async def test_starts_an_application_next_to_another_one():
    await beside(start(), watch(0.01))

async def test_two_requests():
    await asyncio.gather(answer(), answer())

async def test_next_to_one_that_wakes_meanwhile():
    other = asyncio.create_task(watch(0.01))
    await asyncio.sleep(0)
    await asyncio.create_task(answer())
    other.cancel()

async def test_next_to_one_whose_answer_is_there():
    got = asyncio.get_running_loop().create_future()
    async def wait():
        await got
    async def other():
        got.set_result(None)
        await answer()
    await beside(other(), wait())
"""


def test_it_is_reported_if_another_task_was_ready(suites: Suites) -> None:
    (suites.folder / "application.py").write_text(APPLICATION)
    suites.configure("pythonpath = .\nsession_tracer_blocked_loop_seconds = 0.02")
    run = suites.run_source(TESTS, "--session-tracer=warning")
    assert run.outcomes == {
        "test_of_a_fixture_that_starts_the_application": "passed",
        "test_of_the_tests_own_coroutine": "passed",
        "test_next_to_a_task_that_waits_for_ever": "passed",
        "test_next_to_one_that_sleeps_for_long": "passed",
        "test_alone": "passed",
        "test_starts_an_application_next_to_another_one": "passed",
        "test_two_requests": "failed",
        "test_next_to_one_that_wakes_meanwhile": "failed",
        "test_next_to_one_whose_answer_is_there": "failed",
    }
    (row, what, *_) = run.summary
    assert row.split()[:2] == ["blocked-event-loop", "application.py:17"]
    assert "kept another task of its event loop waiting" in what

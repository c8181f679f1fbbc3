"""Tests the tracer where what it takes hold of as it is imported is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.fallbacks.story import differs

CHECKOUT: Final = Path(__file__).parents[2]

# What is taken away is given back as soon as the tracer is imported: others could not do without.
PROGRAM: Final = """
import asyncio, json, logging, sys
import opentelemetry.sdk.metrics.export, opentelemetry.sdk.trace.export
import sqlalchemy.orm, structlog
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

said = []
class Said(logging.Handler):
    def emit(self, record):
        said.append(record.args[0])
logging.getLogger("session_tracer").addHandler(Said())

{take}
import session_tracer.testing
{give_back}
from tests.fallbacks.story import library, tell

for factory in library():
    story = tell(factory)

async def read():
    engine = create_async_engine("sqlite+aiosqlite://")
    maker = async_sessionmaker(engine)
    with session_tracer.testing.capture(maker) as told:
        async with maker() as session:
            await session.scalar(sqlalchemy.select(1))
    await engine.dispose()
    return len(told.sessions)

print(json.dumps({{**story._asdict(), "places": sorted(story.places),
    "of_asyncio": asyncio.run(read()), "said": said}}))
"""


class Missing(NamedTuple):
    """What is taken away and given back, and what is told otherwise than normally.

    Of the facts and of the findings: what is told no longer, and what is told instead.
    """

    take: str
    give_back: str
    otherwise: dict[str, object] = {}  # noqa: RUF012 - nobody changes it
    facts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    findings: tuple[dict[str, int], dict[str, int]] = ({}, {})


MISSING: Final = {
    "frames": Missing(
        "frames = sys._getframe; del sys._getframe",
        "sys._getframe = frames",
        {"places": ["nowhere"], "of_asyncio": 0, "said": ["sys._getframe"]},
        facts=(
            {
                "FlushBegan autoflush": 1,
                "FlushCompleted autoflush {'Author': 1}": 1,
                "FlushBegan savepoint": 1,
                "FlushCompleted savepoint {'Author': 1}": 1,
                "FlushBegan commit": 1,
                "FlushCompleted commit": 1,
                "DetachedLoadFailed relationship Book author close": 1,
                "DetachedLoadFailed relationship Book author expunge": 1,
                "DetachedLoadFailed relationship Author books close by nested options": 1,
                "RollbackPending": 2,
                "LoadRefused Author books": 1,
                "ObjectCrossed Author": 1,
            },
            {
                "FlushBegan explicit": 3,
                "FlushCompleted explicit {'Author': 1}": 2,
                "FlushCompleted explicit": 1,
            },
        ),
        findings=(
            {
                "detached-lazy-load": 3,
                "failed-flush": 2,
                "pending-rollback": 2,
                "crossed-sessions": 1,
            },
            {},
        ),
    ),
    "running loop": Missing(
        "running = asyncio._get_running_loop; del asyncio._get_running_loop",
        "asyncio._get_running_loop = running",
    ),
    "a constructor of asyncio's that somebody replaced": Missing(
        "made = AsyncSession.__init__; AsyncSession.__init__ = lambda *a, **kw: made(*a, **kw)",
        "",
        {"of_asyncio": 0, "said": ["AsyncSession.__init__"]},
    ),
}


def told(missing: Missing) -> dict[str, Any]:
    program = PROGRAM.format(take=missing.take, give_back=missing.give_back)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def normal() -> dict[str, Any]:
    """What is told with everything there."""
    return told(Missing("", ""))


@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
def test_less_is_told(normal: dict[str, Any], missing: Missing) -> None:
    less = told(missing)
    assert differs(normal["facts"], less["facts"]) == missing.facts
    assert differs(normal["findings"], less["findings"]) == missing.findings
    alike = {"facts": less["facts"], "findings": less["findings"]}
    assert less == {**normal, **alike, **missing.otherwise}

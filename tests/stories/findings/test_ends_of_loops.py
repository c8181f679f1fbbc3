"""Stories of tasks that are left with a transaction as their event loop ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from session_tracer.testing import capture
from tests.stories.findings.due import stay

if TYPE_CHECKING:
    from pathlib import Path


def test_a_task_that_is_left_as_its_event_loop_ends_is_an_info(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}", poolclass=NullPool)
    factory = async_sessionmaker(engine)

    async def sweep(here: asyncio.Event) -> None:
        async with factory.begin() as session:
            await session.execute(select(1))
            await stay(here)

    async def main(cancels: bool) -> None:
        here = asyncio.Event()
        task = asyncio.create_task(sweep(here), name="sweeper")
        await here.wait()
        if cancels:
            task.cancel()
            await asyncio.wait([task])

    with capture(factory) as captured:
        asyncio.run(main(cancels=False))
        asyncio.run(main(cancels=True))
    left, cancelled = captured.findings
    assert (left.id, left.severity) == ("cancelled-transaction", "info")
    assert left.message.startswith(
        'task "sweeper" was cancelled, as its event loop ended, during a transaction, which was '
    )
    assert left.remedy.startswith("await the task before the event loop ends")
    assert cancelled.severity == "warning"
    assert cancelled.remedy.startswith("run the work again")


def test_a_task_that_is_awaited_before_its_event_loop_ends_is_none(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}", poolclass=NullPool)
    factory = async_sessionmaker(engine)

    async def sweep() -> None:
        async with factory.begin() as session:
            await session.execute(select(1))

    async def main() -> None:
        task = asyncio.create_task(sweep())
        await task

    with capture(factory) as captured:
        asyncio.run(main())
    assert captured.findings == []

"""Stories of tasks that are cancelled, in whatever block their transaction is open."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from session_tracer.facts import TransactionCancelled
from session_tracer.testing import capture
from tests.library import Author, Base
from tests.stories.findings.due import stay
from tests.stories.lines import line

Story = Callable[[Path, asyncio.Event], Awaitable[None]]


async def leave_the_sessions_block(path: Path, here: asyncio.Event) -> None:
    async with awaited(path)() as session:
        session.add(Author(name="Jane Austen"))
        await session.flush()
        await stay(here)


async def leave_the_factorys_block(path: Path, here: asyncio.Event) -> None:
    async with awaited(path).begin() as session:
        session.add(Author(name="Jane Austen"))
        await session.flush()
        await stay(here)


async def leave_the_transactions_block(path: Path, here: asyncio.Event) -> None:
    async with awaited(path)() as session, session.begin():
        session.add(Author(name="Jane Austen"))
        await session.flush()
        await stay(here)


async def leave_a_finally(path: Path, here: asyncio.Event) -> None:
    session = awaited(path)()
    try:
        session.add(Author(name="Jane Austen"))
        await session.flush()
        await stay(here)
    finally:
        await session.close()


async def leave_a_session_that_blocks(path: Path, here: asyncio.Event) -> None:
    with blocking(path)() as session:
        session.add(Author(name="Jane Austen"))
        session.flush()
        await stay(here)


async def leave_the_block_of_a_factory_that_blocks(path: Path, here: asyncio.Event) -> None:
    with blocking(path).begin() as session:
        session.add(Author(name="Jane Austen"))
        session.flush()
        await stay(here)


async def commit_before(path: Path, here: asyncio.Event) -> None:
    async with awaited(path)() as session:
        session.add(Author(name="Jane Austen"))
        await session.commit()
        await stay(here)


async def commit_by_a_block_before(path: Path, here: asyncio.Event) -> None:
    async with awaited(path).begin() as session:
        session.add(Author(name="Jane Austen"))
    await stay(here)


CANCELLED = (
    leave_the_sessions_block,
    leave_the_factorys_block,
    leave_the_transactions_block,
    leave_a_finally,
    leave_a_session_that_blocks,
    leave_the_block_of_a_factory_that_blocks,
)


@pytest.mark.parametrize("story", CANCELLED)
def test_a_task_is_cancelled_during_a_transaction(story: Story, tmp_path: Path) -> None:
    (fact,) = cancelled(story, tmp_path)
    assert line(fact.site) == "await stay(here)"
    assert fact.owner.name == 'task "the one that is cancelled"'


@pytest.mark.parametrize("story", [commit_before, commit_by_a_block_before])
def test_a_task_is_cancelled_with_no_transaction_open(story: Story, tmp_path: Path) -> None:
    assert cancelled(story, tmp_path) == []


def awaited(path: Path) -> async_sessionmaker[AsyncSession]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
    return async_sessionmaker(engine)


def blocking(path: Path) -> sessionmaker[Session]:
    return sessionmaker(create_engine(f"sqlite:///{path}", poolclass=NullPool))


def cancelled(story: Any, folder: Path) -> list[TransactionCancelled]:
    """What is told of cancellations as the story is cut off where it sleeps."""
    path = folder / "library.db"
    Base.metadata.create_all(blocking(path).kw["bind"])

    async def cut_off() -> None:
        here = asyncio.Event()
        task = asyncio.create_task(story(path, here), name="the one that is cancelled")
        await here.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    with capture() as captured:
        asyncio.run(cut_off())
    return [fact for fact in captured.facts if isinstance(fact, TransactionCancelled)]

"""What the load does in one session, with exact counts."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.orm.exc import DetachedInstanceError

from benchmarks.soak.model import Author, Book, Reading

if TYPE_CHECKING:
    from random import Random

    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import sessionmaker

    from benchmarks.soak.account import Account

_NUMBERS = itertools.count()


class Refused(Exception):
    """An error of the application."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A thread or task: its shelf, random numbers, counts, and how long it sometimes waits."""

    shelf: int
    random: Random
    account: Account
    idle_seconds: float


# Any: a Select of one entity has different types in SQLAlchemy 2.0 and 2.1.
def shelf(worker: Worker) -> Any:
    """The authors of the worker's shelf that are never deleted."""
    return select(Author).where(Author.shelf == worker.shelf, Author.id < 0).order_by(Author.id)


def load(session: Session, worker: Worker) -> list[Author]:
    authors = list(session.scalars(shelf(worker)))
    worker.account.add("loaded", "Author", len(authors))
    return authors


def new_author(worker: Worker) -> Author:
    return Author(shelf=worker.shelf, name=f"new {next(_NUMBERS)}")


def flush(session: Session, worker: Worker) -> None:
    """Flush, and count what was in it."""
    new, deleted = list(session.new), list(session.deleted)
    changed = [one for one in session.dirty if one not in deleted]
    dirty = [one for one in changed if session.is_modified(one)]
    unchanged = [one for one in changed if not session.is_modified(one)]
    session.flush()
    states = (("new", new), ("dirty", dirty), ("unchanged", unchanged), ("deleted", deleted))
    for state, objects in states:
        for one in objects:
            worker.account.add(state, type(one).__name__)


def keep(worker: Worker, *, authors: int = 0, books: int = 0, visits: int = 0) -> None:
    """Counts what was committed and must be in the tables at the end."""
    worker.account.add("kept", "authors", authors)
    worker.account.add("kept", "books", books)
    worker.account.add("kept", "visits", visits)


# In one session, with or without asyncio


def read(session: Session, worker: Worker) -> None:
    authors = list(session.scalars(shelf(worker).options(selectinload(Author.books))))
    worker.account.add("loaded", "Author", len(authors))
    worker.account.add("loaded", "Book", sum(len(author.books) for author in authors))


def n_plus_one(session: Session, worker: Worker) -> None:
    for author in load(session, worker):
        worker.account.add("loaded", "Book", len(author.books))
        worker.account.add("lazy_loads", "relationship")


def write(session: Session, worker: Worker) -> None:
    author = load(session, worker)[0]
    author.visits += 1
    added = new_author(worker)
    added.books = [Book(title="one"), Book(title="two")]
    session.add(added)
    flush(session, worker)
    session.commit()
    keep(worker, authors=1, books=2, visits=1)
    assert author.name  # the commit has expired it
    worker.account.add("lazy_loads", "expired")


def refresh(session: Session, worker: Worker) -> None:
    session.refresh(load(session, worker)[0])
    worker.account.add("lazy_loads", "refresh")


def delete(session: Session, worker: Worker) -> None:
    added = new_author(worker)
    session.add(added)
    flush(session, worker)
    session.delete(added)
    flush(session, worker)
    session.commit()


def roll_back(session: Session, worker: Worker) -> None:
    author = load(session, worker)[0]
    author.visits += 1
    session.add(new_author(worker))
    flush(session, worker)
    session.rollback()


def savepoints(session: Session, worker: Worker) -> None:
    added = new_author(worker)
    with session.begin_nested():
        session.add(added)
        flush(session, worker)
    try:
        with session.begin_nested():
            session.add(Author(shelf=worker.shelf, name="a0"))
            worker.account.add("refused", "Author")
            session.flush()
    except IntegrityError:
        pass
    session.commit()
    keep(worker, authors=1)


def touch(session: Session, worker: Worker) -> None:
    author = load(session, worker)[0]
    author.name = str(author.name)
    flush(session, worker)
    session.commit()


def fail(session: Session, worker: Worker) -> None:
    session.add(Author(shelf=worker.shelf, name="a0"))
    worker.account.add("refused", "Author")
    session.flush()


def fail_after_a_flush(session: Session, worker: Worker) -> None:
    session.add(new_author(worker))
    flush(session, worker)
    raise Refused


def bulk(session: Session, worker: Worker) -> None:
    session.execute(insert(Reading), [{"note": "bulk"} for _ in range(20)])
    session.commit()
    worker.account.add("kept", "readings", 20)


def stream(session: Session, worker: Worker) -> None:
    readings = select(Reading).order_by(Reading.id).limit(200)
    for reading in session.scalars(readings, execution_options={"yield_per": 50}):
        assert reading.note
        worker.account.add("loaded", "Reading")


def nothing(session: Session, worker: Worker) -> None:
    """A session that is not used."""


Shared: TypeAlias = Callable[[Session, Worker], None]


@dataclass(frozen=True, slots=True)
class Work:
    """What is done in one session, how it ends, and its share of all works.

    The time of `steady` works can be compared: all of a kind take about the same time, so a change
    is caused by session_tracer or the collector.
    """

    do: Shared
    outcome: str
    weight: int
    error: type[Exception] | None = None
    steady: bool = False


SHARED = (
    Work(read, "closed", 30, steady=True),
    Work(n_plus_one, "closed", 10, steady=True),
    Work(write, "committed", 20, steady=True),
    Work(refresh, "closed", 3),
    Work(delete, "committed", 4),
    Work(roll_back, "rolled_back", 5),
    Work(savepoints, "committed", 4),
    Work(touch, "committed", 4),
    Work(fail, "failed", 3, IntegrityError),
    Work(fail_after_a_flush, "failed", 3, Refused),
    Work(bulk, "committed", 3),
    Work(stream, "closed", 3),
    Work(nothing, "unused", 3),
)


# In a thread alone


def lose(factory: sessionmaker[Session], worker: Worker) -> None:
    """Forget an open session; the garbage collector finds it."""

    def forget() -> None:
        load(factory(), worker)

    forget()
    gc.collect(1)
    worker.account.add("sessions", "abandoned")


def load_detached(factory: sessionmaker[Session], worker: Worker) -> None:
    with factory() as session:
        author = load(session, worker)[0]
    try:
        author.books  # noqa: B018 - to read it is what fails
    except DetachedInstanceError:
        worker.account.add("lazy_loads", "detached")
    worker.account.add("sessions", "closed")


def linger(factory: sessionmaker[Session], worker: Worker) -> None:
    """Keep a transaction open for a while."""
    with factory() as session:
        load(session, worker)
        time.sleep(worker.idle_seconds)
        session.commit()
    worker.account.add("sessions", "committed")


InThread: TypeAlias = Callable[["sessionmaker[Session]", Worker], None]
IN_THREAD: tuple[tuple[InThread, int], ...] = ((lose, 2), (load_detached, 2), (linger, 1))


# In a task alone


async def linger_awaiting(factory: async_sessionmaker[AsyncSession], worker: Worker) -> None:
    async with factory() as session:
        await session.run_sync(load, worker)
        await asyncio.sleep(worker.idle_seconds)
        await session.commit()
    worker.account.add("sessions", "committed")


async def stream_awaiting(factory: async_sessionmaker[AsyncSession], worker: Worker) -> None:
    async with factory() as session:
        readings = select(Reading).order_by(Reading.id).limit(200)
        options = {"yield_per": 50}
        async for _ in await session.stream_scalars(readings, execution_options=options):
            worker.account.add("loaded", "Reading")
    worker.account.add("sessions", "closed")


async def be_cancelled(factory: async_sessionmaker[AsyncSession], worker: Worker) -> None:
    """A task is cancelled while the database works for it, after a flush."""
    flushed = asyncio.Event()

    async def wait_for_ever() -> None:
        async with factory() as session:
            session.add(new_author(worker))
            await session.run_sync(flush, worker)
            flushed.set()
            await session.execute(select(func.pg_sleep(60)))

    task = asyncio.create_task(wait_for_ever())
    task.add_done_callback(lambda _: flushed.set())  # it may fail before
    await flushed.wait()
    await asyncio.sleep(0.02)
    await end(task)
    worker.account.add("sessions", "failed")


async def be_cancelled_anywhere(factory: async_sessionmaker[AsyncSession], worker: Worker) -> None:
    """A task is cancelled at any moment, before, in or after what it reads."""
    outcome = ""

    async def wander() -> None:
        nonlocal outcome
        async with factory() as session:
            outcome = "unused"
            try:
                await session.execute(select(func.pg_sleep(0.01)))
                await session.execute(select(func.pg_sleep(0.01)))
                outcome = "closed"
            except asyncio.CancelledError:
                outcome = "failed" if session.in_transaction() else "unused"
                raise

    task = asyncio.create_task(wander())
    await asyncio.sleep(worker.random.random() * 0.05)
    await end(task)
    if outcome:
        worker.account.add("sessions", outcome)


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(result, Exception):
        raise result


InTask: TypeAlias = Callable[["async_sessionmaker[AsyncSession]", Worker], Awaitable[None]]
IN_TASK: tuple[tuple[InTask, int], ...] = (
    (linger_awaiting, 1),
    (stream_awaiting, 3),
    (be_cancelled, 2),
    (be_cancelled_anywhere, 3),
)

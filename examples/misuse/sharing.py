"""Objects that belong to another session, and sessions that belong to another thread or task."""

import asyncio

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from examples.misuse.db import AsyncSessionLocal, SessionLocal, async_engine
from examples.misuse.models import Author, Book, Order


def rename_and_log(author_id: int = 1) -> None:
    """Gives an author to a second session, while it belongs to the first."""
    with SessionLocal() as session:
        author = session.get_one(Author, author_id)
        _save(author)


def _save(author: Author) -> None:
    with SessionLocal.begin() as session:
        session.add(author)


async def front_page() -> str:
    """Reads two lists at the same time, in one session."""
    async with AsyncSessionLocal() as session:
        author = await session.get_one(Author, 1)
        books, orders = await asyncio.gather(
            session.scalars(select(Book).where(Book.author_id == author.id)),
            session.scalars(select(Order)),
        )
        return f"{len(books.all())} books by {author.name}, {len(orders.all())} orders"


def count_on_two_loops() -> None:
    """Uses an engine on two event loops in turn."""
    # SQLite's driver allows that; the pool's queue, in which sessions wait, belongs to one loop.
    engine = create_async_engine(async_engine.url, pool_size=1, max_overflow=0)
    for _ in range(2):
        asyncio.run(_count_twice(engine))
    asyncio.run(engine.dispose())


async def _count_twice(engine: AsyncEngine) -> None:
    await asyncio.gather(_count(engine), _count(engine), return_exceptions=True)


async def _count(engine: AsyncEngine) -> int:
    async with AsyncSession(engine) as session:
        return len((await session.scalars(select(Book))).all())


async def serve_two_reports() -> None:
    """Serves two requests, and one of them waits for the statement of the other."""
    await asyncio.gather(_report(), asyncio.sleep(0.01))


async def _report() -> int:
    with SessionLocal() as session:
        counted = session.scalar(text(_SLOW))
        return int(counted or 0)


_SLOW = """
    WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < 3000000)
    SELECT count(*) FROM numbers
"""


async def serve_from_one_session() -> None:
    """Serves three requests, each in a task of its own, from one session."""
    async with AsyncSessionLocal() as session:
        for book_id in (1, 2, 3):
            served = asyncio.Event()
            request = asyncio.create_task(_serve(session, book_id, served))
            await served.wait()
            del request


async def _serve(session: AsyncSession, book_id: int, served: asyncio.Event) -> None:
    session.add(Order(book_id=book_id))
    await session.commit()
    served.set()

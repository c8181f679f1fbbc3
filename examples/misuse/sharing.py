"""Objects that belong to another session, and sessions that belong to another thread or task."""

import asyncio

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from examples.misuse.db import AsyncSessionLocal, SessionLocal
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


def open_and_close() -> None:
    """Uses a session on two event loops in turn."""
    session = AsyncSessionLocal()
    asyncio.run(_count(session))
    asyncio.run(_count(session, last=True))


async def _count(session: AsyncSession, *, last: bool = False) -> int:
    books = len((await session.scalars(select(Book))).all())
    await session.commit()
    if last:
        await session.close()
    return books


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

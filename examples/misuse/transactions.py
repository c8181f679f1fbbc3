"""Transactions that are too long, too many or cut off, and connections that are held too long."""

import asyncio
import time
from contextlib import suppress

from sqlalchemy import select

from examples.misuse.db import AsyncSessionLocal, NarrowSessionLocal, SessionLocal
from examples.misuse.models import Author, Book, Order

NAMES = [f"New author {number}" for number in range(60)]


def reprice_all() -> None:
    """Waits for each new price in the transaction, which locks the table all the time."""
    with SessionLocal.begin() as session:
        for book in session.scalars(select(Book).limit(15)).all():
            book.price = _price_of(book.title)
            session.flush()


def _price_of(title: str) -> int:
    time.sleep(0.05)  # a service answers
    return len(title)


def pay(book_id: int = 1) -> str:
    """Waits for the bank and holds a connection that others may need."""
    with SessionLocal() as session:
        book = session.get_one(Book, book_id)
        receipt = _charge(book.price)
        session.add(Order(book_id=book_id))
        session.commit()
        return receipt


def _charge(amount: int) -> str:
    time.sleep(0.8)  # the bank answers
    return f"paid {amount}"


def import_authors() -> None:
    """Commits after each author."""
    with SessionLocal() as session:
        for name in NAMES[:12]:
            session.add(Author(name=name))
            session.commit()


def order(book_id: int = 1) -> None:
    """Commits the order in its own session, and the stock in another one."""
    with SessionLocal() as session:
        session.add(Order(book_id=book_id))
        session.commit()
        _take_from_stock(book_id)


def _take_from_stock(book_id: int) -> None:
    with SessionLocal.begin() as session:
        session.get_one(Book, book_id).copies -= 1


def show_book(book_id: int = 1) -> str:
    """Reads the author in a second session, while the first one holds a connection."""
    with SessionLocal() as session:
        book = session.get_one(Book, book_id)
        return f"{book.title} by {_name_of(book.author_id)}"


def _name_of(author_id: int) -> str:
    with SessionLocal() as session:
        return session.get_one(Author, author_id).name


def show_book_on_a_busy_day(book_id: int = 1) -> str:
    """Does the same when the pool has no connection left, and waits for the one it holds."""
    with NarrowSessionLocal() as session:
        book = session.get_one(Book, book_id)
        with NarrowSessionLocal() as another:
            author = another.get_one(Author, book.author_id)
        return f"{book.title} by {author.name}"


def import_authors_carefully() -> None:
    """Adds each author in its own savepoint."""
    with SessionLocal.begin() as session:
        for name in NAMES:
            with session.begin_nested():
                session.add(Author(name=name))


async def order_within_a_moment() -> None:
    """Waits for the bank, and is cancelled after the order was flushed."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await _order_and_pay(1)


async def _order_and_pay(book_id: int) -> None:
    async with AsyncSessionLocal() as session:
        session.add(Order(book_id=book_id))
        await session.flush()
        await asyncio.sleep(60)  # the bank does not answer
        await session.commit()


def rename_author(name: str = "Author 1") -> None:
    """Begins a transaction, when a SELECT has begun one already."""
    with SessionLocal() as session:
        author = session.scalars(select(Author).where(Author.name == name)).one()
        with session.begin():
            author.name = name.upper()


def raise_prices() -> None:
    """Streams the books, and commits after each of them."""
    with SessionLocal() as session:
        for book in session.scalars(select(Book).limit(6).execution_options(yield_per=2)):
            book.price += 1
            session.commit()

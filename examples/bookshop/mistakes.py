"""More views of the shop, for the ways a session can end; most make a mistake."""

import gc
import time
from contextlib import suppress

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from examples.bookshop import shop
from examples.bookshop.db import AsyncSessionLocal, SessionLocal, request_session
from examples.bookshop.models import Book, Customer
from examples.bookshop.repo import BookRepository, CustomerRepository


def empty_basket_page(basket: shop.Basket) -> str:
    """Opens a session before knowing whether it needs one."""
    with request_session() as session:
        if not basket:
            return "your basket is empty"
        return f"{len(BookRepository(session).with_ids(basket))} books in your basket"


def rename_page(email: str, name: str) -> str:
    """Changes a customer and never commits."""
    with request_session() as session:
        CustomerRepository(session).with_email(email).name = name
        return "your name is changed"


def preview_page(subject: str) -> str:
    """Tries new prices in the database, and rolls them back."""
    with request_session() as session:
        books = BookRepository(session).about(subject)
        for book in books:
            book.price_pence += 100
        session.flush()
        session.rollback()
        return f"{len(books)} prices would change"


def missing_book_page(book_id: int) -> str:
    """Lets NoResultFound leave the block that owns the session."""
    with request_session() as session:
        return session.get_one(Book, book_id).title


def sign_up_page(email: str) -> str:
    """Swallows a failed flush and continues with the session (PendingRollbackError)."""
    with request_session() as session:
        session.add(Customer(name="Somebody", email=email))
        with suppress(IntegrityError):  # known already, so nothing to add
            session.flush()
        return f"welcome, {CustomerRepository(session).with_email(email).name}"


def slow_payment_page(email: str) -> str:
    """Waits for the bank with a transaction open, and so holds its connection."""
    with request_session() as session:
        customer = CustomerRepository(session).with_email(email)
        time.sleep(0.03)
        return f"{customer.name} has paid"


def forgotten_session_page() -> str:
    """Opens a session and closes it nowhere."""
    session = SessionLocal()
    title = session.scalars(select(Book.title).limit(1)).one()
    del session
    gc.collect()  # a busy process comes to this by itself
    return title


def blurbs_page(text: str) -> str:
    """Reads a deferred column in a loop."""
    with request_session() as session:
        return "; ".join(book.blurb for book in shop.search(session, text))


def late_blurb_page(text: str) -> str:
    """Reads a deferred column after the session has closed."""
    with request_session() as session:
        first, *_ = shop.search(session, text)
    return first.blurb


def clearance_page(books: range) -> str:
    """Gets and commits each book by itself instead of all at once."""
    with request_session() as session:
        for book_id in books:
            session.get_one(Book, book_id).price_pence -= 1
            session.commit()
        return f"{len(books)} prices lowered"


async def async_restock_page(titles: int) -> str:
    """Reads the stock that the commit has expired, without await (MissingGreenlet)."""
    async with AsyncSessionLocal() as session:
        shelves = await session.run_sync(shop.restock, titles)
        return f"{sum(stock.quantity for stock in shelves)} copies on {titles} shelves"

"""Flushes that fail, and flushes that write one by one, again and again, too much, or nothing."""

from contextlib import suppress

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError

from examples.misuse.db import SessionLocal
from examples.misuse.models import Author, Book

NAMES = [f"New author {number}" for number in range(1_200)]


def sell(book_id: int = 1, copies: int = 100) -> None:
    """Sells more copies than there are, which a constraint forbids."""
    with SessionLocal() as session:
        session.get_one(Book, book_id).copies -= copies
        session.commit()


def sell_basket(book_ids: tuple[int, ...] = (1, 2), copies: int = 100) -> None:
    """Continues after a failed flush without a rollback."""
    with SessionLocal() as session:
        for book_id in book_ids:
            session.get_one(Book, book_id).copies -= copies
            with suppress(IntegrityError):  # sold out: on with the next
                session.flush()
        session.commit()


def discount_while_dear() -> None:
    """Changes the price of a book and adds up the prices of all, in turn."""
    with SessionLocal.begin() as session:
        for book in session.scalars(select(Book)).all():
            if session.scalars(select(func.sum(Book.price))).one() > 100:
                book.price -= 1


def import_authors() -> None:
    """Adds a large file's authors as objects, in one flush."""
    with SessionLocal.begin() as session:
        session.add_all([Author(name=name) for name in NAMES])


def tidy_names() -> None:
    """Sets each name to the value that it has already."""
    with SessionLocal.begin() as session:
        for author in session.scalars(select(Author)):
            author.name = author.name.strip()


def copy_authors() -> None:
    """Executes an INSERT for each row."""
    with SessionLocal.begin() as session:
        for name in NAMES[:60]:
            session.execute(insert(Author).values(name=name))


def change_author(book_id: int = 1) -> None:
    """Gives a book to a new author, who is not added to the session."""
    with SessionLocal() as session:
        book = session.get_one(Book, book_id)
        Author(name="New author", books=[book])
        session.commit()

"""Sessions that are not ended, or are ended before their work is saved."""

import gc
import time

from sqlalchemy import select

from examples.misuse.db import SessionLocal
from examples.misuse.models import Author, Book


def send_catalogue() -> None:
    """Keeps its session open while it sends the catalogue away."""
    session = SessionLocal()
    titles = session.scalars(select(Book.title)).all()
    session.commit()
    _send(", ".join(titles))
    session.close()


def _send(text: str) -> int:
    time.sleep(1.0)  # a slow line
    return len(text)


def hire(name: str) -> Author:
    """Opens a session, adds an author, and forgets both the commit and the close."""
    session = SessionLocal()
    author = Author(name=name)
    session.add(author)
    session.flush()
    return author


def forget_an_author() -> None:
    """Uses a new author whose session is not kept."""
    hire("Jane Austen")
    gc.collect()  # a busy process comes to this by itself


def raise_price(book_id: int = 1) -> int:
    """Sets a price, and closes the session without a commit."""
    with SessionLocal() as session:
        book = session.get_one(Book, book_id)
        book.price += 1
        return book.price


def count_twice() -> int:
    """Uses a session after the end of its block, which begins a transaction that no block ends."""
    with SessionLocal() as session:
        authors = session.scalars(select(Author)).all()
    books = session.scalars(select(Book)).all()
    session.close()
    return len(authors) + len(books)

"""Objects that are loaded one by one, repeatedly, or all at once."""

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from examples.misuse.db import SessionLocal
from examples.misuse.models import Author, Book, Order


def count_books() -> dict[str, int]:
    """Loads the books of each author separately."""
    with SessionLocal() as session:
        authors = session.scalars(select(Author)).all()
        return {author.name: len(author.books) for author in authors}


def total_of(book_ids: tuple[int, ...] = tuple(range(1, 13))) -> int:
    """Loads each book of a basket by its key."""
    with SessionLocal() as session:
        return sum(session.get_one(Book, book_id).price for book_id in book_ids)


def count_orders() -> dict[str, int]:
    """Counts the orders of each book separately."""
    with SessionLocal() as session:
        counts = {}
        for book in session.scalars(select(Book)).all():
            orders = select(func.count()).select_from(Order).where(Order.book_id == book.id)
            counts[book.title] = session.scalars(orders).one()
        return counts


def count_copies() -> dict[str, int]:
    """Reads each book again by itself."""
    with SessionLocal() as session:
        books = session.scalars(select(Book)).all()
        for book in books:
            session.refresh(book)
        return {book.title: book.copies for book in books}


def price_list() -> list[int]:
    """Opens a session for the price of each book."""
    return [_price(book_id) for book_id in range(1, 21)]


def _price(book_id: int) -> int:
    with SessionLocal() as session:
        return session.get_one(Book, book_id).price


def label_books() -> list[str]:
    """Selects the same author again for each of his books."""
    with SessionLocal() as session:
        titles = session.scalars(select(Book.title).limit(6)).all()
        return [f"{title}, as {_house_author(session).name} writes" for title in titles]


def _house_author(session: Session) -> Author:
    return session.scalars(select(Author).where(Author.name == "Author 1")).one()


def raise_prices() -> list[str]:
    """Reads the books again after the commit that expired them."""
    with SessionLocal() as session:
        books = session.scalars(select(Book)).all()
        for book in books:
            book.price += 1
        session.commit()
        return [f"{book.title} costs {book.price}" for book in books]


def take_orders(book_ids: tuple[int, ...] = tuple(range(1, 9))) -> list[int]:
    """Refreshes each order for its id, which the flush has set."""
    with SessionLocal.begin() as session:
        orders = [Order(book_id=book_id) for book_id in book_ids]
        for order in orders:
            session.add(order)
            session.flush()
            session.refresh(order)
        return [order.id for order in orders]


def import_files(files: int = 3, rows: int = 400) -> int:
    """Keeps every author of every file, in one session."""
    with SessionLocal() as session:
        authors: list[Author] = []
        for file in range(files):
            authors += [Author(name=f"Author {file}.{row}") for row in range(rows)]
            session.add_all(authors[-rows:])
            session.commit()
        return len(authors)


def dearest() -> str:
    """Loads every book to find one."""
    with SessionLocal() as session:
        books = session.scalars(select(Book)).all()
        return max(books, key=lambda book: book.price).title


def sell_one(book_id: int = 1) -> None:
    """Locks a book that it has loaded before, and counts on from the old number of copies."""
    with SessionLocal() as session:
        book = session.get_one(Book, book_id)
        if book.copies:
            session.scalars(select(Book).where(Book.id == book_id).with_for_update()).one()
            book.copies -= 1
            session.commit()


def title_of_a_book_that_goes(book_id: int = 1) -> str:
    """Reads a book that a commit has expired, when its row is deleted."""
    with SessionLocal() as session:
        book = session.get_one(Book, book_id)
        session.commit()
        _delete(book_id)
        return book.title


def _delete(book_id: int) -> None:
    with SessionLocal.begin() as session:
        session.execute(delete(Book).where(Book.id == book_id))

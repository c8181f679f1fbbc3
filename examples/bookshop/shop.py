"""What the shop does for its customers and suppliers, one unit of work a function."""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from examples.bookshop.catalogue import Title, new_book, price_of
from examples.bookshop.models import Book, Order, OrderLine, Stock, Subject
from examples.bookshop.repo import (
    AuthorRepository,
    BookRepository,
    CustomerRepository,
    StockRepository,
)

Basket = Mapping[int, int]
"""Copies wanted, by the book's id."""

FULL_SHELF = 12


class OutOfStockError(Exception):
    """The shop holds fewer copies than the basket asks for."""


def search(session: Session, text: str) -> Sequence[Book]:
    return BookRepository(session).matching(text)


def reserve(session: Session, basket: Basket) -> None:
    """Take the basket's copies off the shelves; the database refuses to go below zero."""
    for stock in StockRepository(session).of(basket):
        stock.quantity = Stock.quantity - basket[stock.book_id]


def place_order(session: Session, email: str, basket: Basket) -> int:
    """Sell a basket to a customer and commit; return the order's number.

    Raises OutOfStockError, and has then changed nothing.
    """
    customer = CustomerRepository(session).with_email(email)
    books = BookRepository(session).with_ids(basket)
    order = Order(customer=customer)
    order.lines = [
        OrderLine(book=book, quantity=basket[book.id], price_pence=book.price_pence)
        for book in books
    ]
    session.add(order)
    try:
        reserve(session, basket)
        session.flush()
    except IntegrityError as error:
        session.rollback()
        raise OutOfStockError from error
    number = order.id  # the commit expires the order
    session.commit()
    return number


def restock(session: Session, titles: int) -> Sequence[Stock]:
    """Fill up the emptiest shelves and commit."""
    shelves = StockRepository(session).lowest(titles)
    for stock in shelves:
        stock.quantity = FULL_SHELF
    session.commit()
    return shelves


def accept_delivery(session: Session, titles: Iterable[Title]) -> int:
    """Add a supplier's titles and commit; skip those the shop has, and return how many it took."""
    accepted = 0
    for title in titles:
        author = AuthorRepository(session).named(title.author)
        statement = select(Subject).where(Subject.name.in_(title.subjects))
        subjects = list(session.scalars(statement))
        try:
            with session.begin_nested():
                session.add(new_book(title, author, subjects, quantity=FULL_SHELF))
        except IntegrityError:
            continue  # the savepoint took back this title only
        accepted += 1
    session.commit()
    return accepted


def reprice(session: Session, subject: str) -> int:
    """Set the price of every book on a subject again and commit."""
    books = BookRepository(session).about(subject)
    for book in books:
        book.price_pence = price_of(book.year)
    session.commit()
    return len(books)

"""The mistakes that a setting puts in the place of right views, each named by its finding."""

import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from flask import Flask, request
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from examples.flask_app.models import Author, Book, Customer, Order, OrderLine, db
from examples.flask_app.payment import charge
from examples.flask_app.views import Json

logger = logging.getLogger(__name__)


def list_authors() -> list[Json]:
    """Loads the books of each author by a statement of its own."""
    return [author.as_json() for author in db.session.scalars(select(Author).order_by(Author.id))]


# Authors that a request has loaded, for those that follow.
_authors: dict[int, Author] = {}


def read_author(author_id: int) -> Json:
    """Reads the books of an author whose session another request has closed."""
    if author_id not in _authors:
        _authors[author_id] = db.get_or_404(Author, author_id)
        return {"id": author_id, "name": _authors[author_id].name, "books": []}
    return _authors[author_id].as_json()


def read_prices() -> Json:
    """Asks for each price by a statement of its own."""
    prices = {}
    for book_id in request.args.getlist("book", type=int):
        prices[str(book_id)] = db.session.scalar(select(Book.price).where(Book.id == book_id))
    return prices


def change_price(book_id: int) -> Json:
    """Forgets to commit."""
    book = db.get_or_404(Book, book_id)
    book.price = request.get_json()["price"]
    return book.as_json()


def sign_up() -> Json:
    """Uses the session on after a failed flush, without a rollback."""
    email = request.get_json()["email"]
    db.session.add(Customer(email=email))
    try:
        db.session.commit()
    except IntegrityError:
        logger.info("a known customer signs up")
    return db.session.scalars(select(Customer).where(Customer.email == email)).one().as_json()


def place_order() -> Json:
    """Commits each line of the order by itself."""
    placed = Order()
    db.session.add(placed)
    for book in request.get_json()["books"]:
        db.session.add(OrderLine(book_id=book, order=placed))
        db.session.commit()
    return placed.as_json()


def pay(order_id: int) -> Json:
    """Keeps a transaction open while the other company is asked."""
    order = db.get_or_404(Order, order_id)
    charge(order_id)
    order.is_paid = True
    db.session.commit()
    return order.as_json()


# A session for all pages of a catalogue; not all visitors come for the last page.
_catalogues: dict[str, tuple[Session, int]] = {}


def read_catalogue() -> Json:
    """Keeps the session for the next page, until the last page closes it."""
    after = request.args.get("after", "")
    session, last = (
        _catalogues.pop(after) if after in _catalogues else (db.session.session_factory(), 0)
    )
    of_a_page = select(Book).where(Book.id > last).order_by(Book.id).limit(10)
    books = session.scalars(of_a_page).all()
    following = None
    if len(books) == 10:
        following = uuid4().hex
        _catalogues[following] = session, books[-1].id
    else:
        session.close()
    return {"books": [book.as_json() for book in books], "next": following}


MISTAKES: dict[str, Callable[..., Any]] = {
    "n-plus-one": list_authors,
    "detached-lazy-load": read_author,
    "query-in-loop": read_prices,
    "discarded-changes": change_price,
    "pending-rollback": sign_up,
    "commit-in-loop": place_order,
    "idle-in-transaction": pay,
    "leaked-session": read_catalogue,
}


def make(app: Flask, names: Iterable[str]) -> None:
    """Put these mistakes in the place of the views of their names."""
    for name in names:
        if name not in MISTAKES:
            sys.exit(f"Unknown mistake {name!r}. Available: {', '.join(MISTAKES)}")
        mistake = MISTAKES[name]
        app.view_functions[f"shop.{mistake.__name__}"] = mistake

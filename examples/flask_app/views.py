"""The views of the shop, and the sessions that they use."""

from typing import Any

from flask import Blueprint, abort, request
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import selectinload

from examples.flask_app.models import Author, Book, Customer, Order, OrderLine, db
from examples.flask_app.payment import charge

Json = dict[str, Any]

shop = Blueprint("shop", __name__)


@shop.get("/authors")
def list_authors() -> list[Json]:
    """All authors with their books."""
    authors = select(Author).options(selectinload(Author.books)).order_by(Author.id)
    return [author.as_json() for author in db.session.scalars(authors)]


@shop.get("/authors/<int:author_id>")
def read_author(author_id: int) -> Json:
    """One author with the books."""
    return db.get_or_404(Author, author_id).as_json()


@shop.get("/prices")
def read_prices() -> Json:
    """The prices of the books that are named."""
    named = request.args.getlist("book", type=int)
    prices = db.session.execute(select(Book.id, Book.price).where(Book.id.in_(named)))
    return {str(row.id): row.price for row in prices}


@shop.patch("/books/<int:book_id>")
def change_price(book_id: int) -> Json:
    """Give a book another price."""
    book = db.get_or_404(Book, book_id)
    book.price = request.get_json()["price"]
    db.session.commit()
    return book.as_json()


@shop.post("/customers")
def sign_up() -> tuple[Json, int]:
    """A new customer; 409 if the address is known."""
    new = Customer(email=request.get_json()["email"])
    db.session.add(new)
    try:
        db.session.commit()
    except IntegrityError:
        db.session.rollback()
        abort(409)
    return new.as_json(), 201


@shop.post("/orders")
def place_order() -> tuple[Json, int]:
    """An order with a line for each book."""
    placed = Order(lines=[OrderLine(book_id=book) for book in request.get_json()["books"]])
    db.session.add(placed)
    db.session.commit()
    return placed.as_json(), 201


@shop.post("/orders/<int:order_id>/pay")
def pay(order_id: int) -> Json:
    """Pay an order. The transaction ends before the other company is asked."""
    order = db.get_or_404(Order, order_id)
    db.session.commit()
    charge(order_id)
    order.is_paid = True
    db.session.commit()
    return order.as_json()


@shop.get("/catalogue")
def read_catalogue() -> Json:
    """All books, ten at a time: a page names the one that follows."""
    after = request.args.get("after", 0, type=int)
    of_a_page = select(Book).where(Book.id > after).order_by(Book.id).limit(10)
    books = db.session.scalars(of_a_page).all()
    return {
        "books": [book.as_json() for book in books],
        "next": str(books[-1].id) if len(books) == 10 else None,
    }


@shop.get("/bestsellers")
def bestsellers() -> list[Json]:
    """The three books that are bought most; here, the first three."""
    return [book.as_json() for book in db.session.scalars(select(Book).order_by(Book.id).limit(3))]

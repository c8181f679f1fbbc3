"""The mistakes that a setting puts in the place of right routes, each named by its finding."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, NamedTuple
from uuid import uuid4

from fastapi import APIRouter, HTTPException, Query, status
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from examples.fastapi_app.db import SessionDep, SessionLocal
from examples.fastapi_app.models import Author, Book, Customer, Order, OrderLine
from examples.fastapi_app.payment import charge
from examples.fastapi_app.schemas import (
    AuthorOut,
    BookOut,
    CustomerIn,
    CustomerOut,
    OrderIn,
    OrderOut,
    Page,
    PriceIn,
)

logger = logging.getLogger(__name__)


async def list_authors(session: SessionDep) -> list[dict[str, Any]]:
    """Loads the books of each author by a statement of its own."""
    authors = (await session.scalars(select(Author).order_by(Author.id))).all()
    return [
        {"id": author.id, "name": author.name, "books": await author.awaitable_attrs.books}
        for author in authors
    ]


async def read_author(author_id: int, session: SessionDep) -> Author:
    """FastAPI reads the author's books, and nothing awaits them."""
    author = await session.get(Author, author_id)
    if author is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    return author


async def read_prices(book: Annotated[list[int], Query()], session: SessionDep) -> dict[int, int]:
    """Asks for each price by a statement of its own."""
    prices = {}
    for book_id in book:
        price = await session.scalar(select(Book.price).where(Book.id == book_id))
        if price is not None:
            prices[book_id] = price
    return prices


async def change_price(book_id: int, change: PriceIn, session: SessionDep) -> Book:
    """Forgets to commit."""
    book = await session.get(Book, book_id)
    if book is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    book.price = change.price
    return book


async def sign_up(customer: CustomerIn, session: SessionDep) -> Customer:
    """Uses the session on after a failed flush, without a rollback."""
    session.add(Customer(email=customer.email))
    try:
        await session.commit()
    except IntegrityError:
        logger.info("a known customer signs up")
    known = select(Customer).where(Customer.email == customer.email)
    return (await session.scalars(known)).one()


async def place_order(order: OrderIn, session: SessionDep) -> Order:
    """Commits each line of the order by itself."""
    placed = Order()
    session.add(placed)
    for book in order.books:
        session.add(OrderLine(book_id=book, order=placed))
        await session.commit()
    return placed


async def pay(order_id: int, session: SessionDep) -> Order:
    """Keeps a transaction open while the other company is asked."""
    order = await session.get(Order, order_id)
    if order is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    await charge(order_id)
    order.is_paid = True
    await session.commit()
    return order


# A session for all pages of a catalogue; not all visitors come for the last page.
_catalogues: dict[str, tuple[AsyncSession, int]] = {}


async def read_catalogue(after: str = "0") -> Page:
    """Keeps the session for the next page, until the last page closes it."""
    session, last = _catalogues.pop(after) if after in _catalogues else (SessionLocal(), 0)
    of_a_page = select(Book).where(Book.id > last).order_by(Book.id).limit(10)
    books = (await session.scalars(of_a_page)).all()
    following = None
    if len(books) == 10:
        following = uuid4().hex
        _catalogues[following] = session, books[-1].id
    else:
        await session.close()
    return Page(books=[BookOut.model_validate(book) for book in books], next=following)


# One session for all requests.
_session = SessionLocal()


async def bestsellers() -> Sequence[Book]:
    """Uses the session that the others use."""
    return (await _session.scalars(select(Book).order_by(Book.id).limit(3))).all()


class Mistake(NamedTuple):
    """The route in whose place a mistake is made."""

    method: str
    path: str
    endpoint: Callable[..., Any]
    response_model: Any = None


MISTAKES = {
    "n-plus-one": Mistake("GET", "/authors", list_authors, list[AuthorOut]),
    "implicit-async-io": Mistake("GET", "/authors/{author_id}", read_author, AuthorOut),
    "query-in-loop": Mistake("GET", "/prices", read_prices),
    "discarded-changes": Mistake("PATCH", "/books/{book_id}", change_price, BookOut),
    "pending-rollback": Mistake("POST", "/customers", sign_up, CustomerOut),
    "commit-in-loop": Mistake("POST", "/orders", place_order, OrderOut),
    "idle-in-transaction": Mistake("POST", "/orders/{order_id}/pay", pay, OrderOut),
    "leaked-session": Mistake("GET", "/catalogue", read_catalogue),
    "shared-session": Mistake("GET", "/bestsellers", bestsellers, list[BookOut]),
}


def router_of(names: Iterable[str]) -> APIRouter:
    """The routes of these mistakes."""
    router = APIRouter()
    for name in names:
        if name not in MISTAKES:
            sys.exit(f"Unknown mistake {name!r}. Available: {', '.join(MISTAKES)}")
        mistake = MISTAKES[name]
        router.add_api_route(
            mistake.path,
            mistake.endpoint,
            methods=[mistake.method],
            response_model=mistake.response_model,
        )
    return router

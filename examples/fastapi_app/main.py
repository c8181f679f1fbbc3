"""The application: `uvicorn examples.fastapi_app.main:app`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Request, status
from fastapi.responses import JSONResponse
from sqlalchemy import exc, select
from sqlalchemy.orm import selectinload

from examples.fastapi_app import mistakes
from examples.fastapi_app.config import MISTAKES
from examples.fastapi_app.db import SessionDep, SessionLocal, engine
from examples.fastapi_app.models import (
    Author,
    Book,
    Customer,
    Model,
    Order,
    OrderLine,
    fill_shelves,
)
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
from session_tracer.asgi import WorkMiddleware


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Create the tables, and close all connections in the end."""
    async with engine.begin() as connection:
        await connection.run_sync(Model.metadata.create_all)
    async with SessionLocal() as session:
        await fill_shelves(session)
    yield
    await engine.dispose()


app = FastAPI(title="Shop", lifespan=lifespan)
app.add_middleware(WorkMiddleware)
# The first route that matches is used: a mistake is made in place of what follows.
app.include_router(mistakes.router_of(MISTAKES))


@app.exception_handler(exc.TimeoutError)
async def no_connection(_: Request, _error: Exception) -> JSONResponse:
    """No connection of the pool was free in time."""
    return JSONResponse({"detail": "busy"}, status.HTTP_503_SERVICE_UNAVAILABLE)


@app.get("/authors", response_model=list[AuthorOut])
async def list_authors(session: SessionDep) -> Sequence[Author]:
    """All authors with their books."""
    authors = select(Author).options(selectinload(Author.books)).order_by(Author.id)
    return (await session.scalars(authors)).all()


@app.get("/authors/{author_id}", response_model=AuthorOut)
async def read_author(author_id: int, session: SessionDep) -> Author:
    """One author with the books."""
    author = await session.get(Author, author_id, options=[selectinload(Author.books)])
    if author is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    return author


@app.get("/prices")
async def read_prices(book: Annotated[list[int], Query()], session: SessionDep) -> dict[int, int]:
    """The prices of the books that are named."""
    prices = await session.execute(select(Book.id, Book.price).where(Book.id.in_(book)))
    return {row.id: row.price for row in prices}


@app.patch("/books/{book_id}", response_model=BookOut)
async def change_price(book_id: int, change: PriceIn, session: SessionDep) -> Book:
    """Give a book another price."""
    book = await session.get(Book, book_id)
    if book is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    book.price = change.price
    await session.commit()
    return book


@app.post("/customers", response_model=CustomerOut, status_code=status.HTTP_201_CREATED)
async def sign_up(customer: CustomerIn, session: SessionDep) -> Customer:
    """A new customer; 409 if the address is known."""
    new = Customer(email=customer.email)
    session.add(new)
    try:
        await session.commit()
    except exc.IntegrityError:
        await session.rollback()
        raise HTTPException(status.HTTP_409_CONFLICT) from None
    return new


@app.post("/orders", response_model=OrderOut, status_code=status.HTTP_201_CREATED)
async def place_order(order: OrderIn, session: SessionDep) -> Order:
    """An order with a line for each book."""
    placed = Order(lines=[OrderLine(book_id=book) for book in order.books])
    session.add(placed)
    await session.commit()
    return placed


@app.post("/orders/{order_id}/pay", response_model=OrderOut)
async def pay(order_id: int, session: SessionDep) -> Order:
    """Pay an order. The transaction ends before the other company is asked."""
    order = await session.get(Order, order_id)
    if order is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    await session.commit()
    await charge(order_id)
    order.is_paid = True
    await session.commit()
    return order


@app.get("/catalogue")
async def read_catalogue(session: SessionDep, after: str = "0") -> Page:
    """All books, ten at a time: a page names the one that follows."""
    of_a_page = select(Book).where(Book.id > int(after)).order_by(Book.id).limit(10)
    books = (await session.scalars(of_a_page)).all()
    return Page(
        books=[BookOut.model_validate(book) for book in books],
        next=str(books[-1].id) if len(books) == 10 else None,
    )


@app.get("/bestsellers", response_model=list[BookOut])
async def bestsellers(session: SessionDep) -> Sequence[Book]:
    """The three books that are bought most; here, the first three."""
    return (await session.scalars(select(Book).order_by(Book.id).limit(3))).all()

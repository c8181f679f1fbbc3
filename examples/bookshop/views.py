"""What the shop's visitors ask for; each view answers with one line of text."""

from collections.abc import Awaitable, Callable

from sqlalchemy.exc import StatementError

from examples.bookshop import report, shop
from examples.bookshop.catalogue import read_titles
from examples.bookshop.db import AsyncSessionLocal, request_session
from examples.bookshop.models import Author, Book
from examples.bookshop.repo import AsyncAuthorRepository, AsyncBookRepository, AuthorRepository


def respond(view: Callable[[], str]) -> str:
    """Run a view as a web framework would: its error becomes a status, and the shop stays open."""
    try:
        return view()
    except Exception as error:
        return server_error(error)


async def respond_async(view: Awaitable[str]) -> str:
    try:
        return await view
    except Exception as error:
        return server_error(error)


def server_error(error: Exception) -> str:
    # SQLAlchemy 2.1 wraps MissingGreenlet in a StatementError.
    cause = error.orig if isinstance(error, StatementError) and error.orig else error
    return f"500 Internal Server Error ({type(cause).__name__})"


def search_page(text: str) -> str:
    with request_session() as session:
        books = shop.search(session, text)
        authors = {book.author.name for book in books}
        return f"{len(books)} books by {len(authors)} authors match {text!r}"


def order_page(email: str, basket: shop.Basket) -> str:
    with request_session() as session:
        try:
            return f"order {shop.place_order(session, email, basket)} placed"
        except shop.OutOfStockError:
            return "409 Conflict: we do not have that many copies"


def report_page(authors: int) -> str:
    with request_session() as session:
        first, *_ = report.totals(session, authors)
        return f"{first.author}: {first.titles} titles, {first.pence / 100:.2f} pounds"


def author_page(name: str) -> str:
    with request_session() as session:
        author = AuthorRepository(session).named(name)
    return render_author(author)


def delivery_page(name: str) -> str:
    with request_session() as session:
        titles = list(read_titles(name))
        return f"{shop.accept_delivery(session, titles)} of {len(titles)} titles were new"


def reprice_page(subject: str) -> str:
    with request_session() as session:
        return f"{shop.reprice(session, subject)} prices set"


def restock_page(titles: int) -> str:
    with request_session() as session:
        shelves = shop.restock(session, titles)
        # The commit has expired them all, so each is selected again, one by one.
        return f"{sum(stock.quantity for stock in shelves)} copies on {titles} shelves"


async def async_search_page(text: str) -> str:
    async with AsyncSessionLocal() as session:
        books = await AsyncBookRepository(session).matching(text)
        return f"{len(books)} books match {text!r}"


async def async_order_page(email: str, basket: shop.Basket) -> str:
    async with AsyncSessionLocal() as session:
        try:
            return f"order {await session.run_sync(shop.place_order, email, basket)} placed"
        except shop.OutOfStockError:
            return "409 Conflict: we do not have that many copies"


async def async_author_page(name: str) -> str:
    async with AsyncSessionLocal() as session:
        author = await AsyncAuthorRepository(session).named(name)
    return render_author(author)


async def async_book_page(book_id: int) -> str:
    async with AsyncSessionLocal() as session:
        book = await session.get_one(Book, book_id)
        # book.author needs a SELECT, which only an await could run.
        return f"{book.title} by {book.author.name}"


async def async_report_page(authors: int) -> str:
    async with AsyncSessionLocal() as session:
        return await report.full_report(session, authors)


def render_author(author: Author) -> str:
    return f"{author.name}: " + ", ".join(book.title for book in author.books)

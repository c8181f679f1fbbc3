"""The monthly report: what stands on the shelves, and what was sold this month."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from examples.bookshop.models import Author, Book, Order, OrderLine
from examples.bookshop.repo import AuthorRepository


@dataclass(frozen=True, slots=True)
class AuthorTotal:
    """What one author's titles cost together."""

    author: str
    titles: int
    pence: int


def totals(session: Session, authors: int) -> list[AuthorTotal]:
    """The authors with most titles, each with the price of one copy of everything."""
    result = []
    for author in AuthorRepository(session).most_published(authors):
        pence = sum(book.price_pence for book in author.books)
        result.append(AuthorTotal(author.name, len(author.books), pence))
    return result


async def sales(session: AsyncSession, month: dt.date) -> Sequence[tuple[str, int]]:
    """Copies sold since the first of the month by author, counted by the database."""
    statement = (
        select(Author.name, func.sum(OrderLine.quantity))
        .join(Author.books)
        .join(OrderLine, OrderLine.book_id == Book.id)
        .join(OrderLine.order)
        .where(Order.placed_on >= month.replace(day=1))
        .group_by(Author.name)
        .order_by(func.sum(OrderLine.quantity).desc(), Author.name)
    )
    return [(name, copies) for name, copies in await session.execute(statement)]


async def full_report(session: AsyncSession, authors: int) -> str:
    """Both parts in one session: the sync part runs as it is, N+1 included."""
    ranked = await session.run_sync(totals, authors)
    sold = await sales(session, dt.date.today())
    return f"{len(ranked)} authors on the shelves, {sum(copies for _, copies in sold)} copies sold"

"""The SELECTs of the shop, each written once and run by a sync or an async repository."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, joinedload, selectinload

from examples.bookshop.models import Author, Book, Customer, Stock, Subject


def books_matching(text: str) -> Select[Any]:
    """Books whose title, author or subject contains the text, with all that a list shows."""
    # Select[Any], because it is Select[tuple[Book]] in SQLAlchemy 2.0 and Select[Book] in 2.1.
    return (
        select(Book)
        .join(Book.author)
        .where(
            or_(
                Book.title.icontains(text),
                Author.name.icontains(text),
                Book.subjects.any(Subject.name.icontains(text)),
            )
        )
        .options(joinedload(Book.author), selectinload(Book.subjects))
        .order_by(Book.year, Book.title)
    )


def author_named(name: str) -> Select[Any]:
    return select(Author).where(Author.name == name)


class BookRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def matching(self, text: str) -> Sequence[Book]:
        return self.session.scalars(books_matching(text)).all()

    def with_ids(self, ids: Collection[int]) -> Sequence[Book]:
        return self.session.scalars(select(Book).where(Book.id.in_(ids))).all()

    def about(self, subject: str) -> Sequence[Book]:
        statement = select(Book).join(Book.subjects).where(Subject.name == subject)
        return self.session.scalars(statement).all()


class AuthorRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def named(self, name: str) -> Author:
        author: Author = self.session.scalars(author_named(name)).one()
        return author

    def most_published(self, limit: int) -> Sequence[Author]:
        statement = (
            select(Author)
            .join(Author.books)
            .group_by(Author.id)
            .order_by(func.count().desc(), Author.name)
            .limit(limit)
        )
        return self.session.scalars(statement).all()


class StockRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def of(self, book_ids: Collection[int]) -> Sequence[Stock]:
        return self.session.scalars(select(Stock).where(Stock.book_id.in_(book_ids))).all()

    def lowest(self, limit: int) -> Sequence[Stock]:
        statement = select(Stock).order_by(Stock.quantity, Stock.book_id).limit(limit)
        return self.session.scalars(statement).all()


class CustomerRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def with_email(self, email: str) -> Customer:
        return self.session.scalars(select(Customer).where(Customer.email == email)).one()


class AsyncBookRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def matching(self, text: str) -> Sequence[Book]:
        return (await self.session.scalars(books_matching(text))).all()


class AsyncAuthorRepository:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def named(self, name: str) -> Author:
        author: Author = (await self.session.scalars(author_named(name))).one()
        return author

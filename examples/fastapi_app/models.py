"""The tables of the shop, and what stands on its shelves at first."""

from sqlalchemy import ForeignKey, String, func, select
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Model(AsyncAttrs, DeclarativeBase):
    """The declarative base of the shop's tables."""


class Author(Model):
    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80))

    books: Mapped[list["Book"]] = relationship(back_populates="author", order_by="Book.id")


class Book(Model):
    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"), index=True)
    title: Mapped[str] = mapped_column(String(120))
    price: Mapped[int]  # in cents

    author: Mapped[Author] = relationship(back_populates="books")


class Customer(Model):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(80), unique=True)


class Order(Model):
    __tablename__ = "purchase"

    id: Mapped[int] = mapped_column(primary_key=True)
    is_paid: Mapped[bool] = mapped_column(default=False)

    lines: Mapped[list["OrderLine"]] = relationship(back_populates="order")


class OrderLine(Model):
    __tablename__ = "purchase_line"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("purchase.id"), index=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"))

    order: Mapped[Order] = relationship(back_populates="lines")


async def fill_shelves(session: AsyncSession) -> None:
    """Twelve authors of three books each, unless there are some."""
    if await session.scalar(select(func.count()).select_from(Author)):
        return
    session.add_all(
        Author(
            name=f"Author {number}",
            books=[Book(title=f"Book {number}.{part}", price=900 + part) for part in (1, 2, 3)],
        )
        for number in range(1, 13)
    )
    await session.commit()

"""The tables of the shop, and what stands on its shelves at first."""

from typing import Any

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey, String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Model(DeclarativeBase):
    """The declarative base of the shop's tables."""


db = SQLAlchemy(model_class=Model)


class Author(Model):
    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80))

    books: Mapped[list["Book"]] = relationship(back_populates="author", order_by="Book.id")

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "books": [book.as_json() for book in self.books],
        }


class Book(Model):
    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"), index=True)
    title: Mapped[str] = mapped_column(String(120))
    price: Mapped[int]  # in cents

    author: Mapped[Author] = relationship(back_populates="books")

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "title": self.title, "price": self.price}


class Customer(Model):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(80), unique=True)

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "email": self.email}


class Order(Model):
    __tablename__ = "purchase"

    id: Mapped[int] = mapped_column(primary_key=True)
    is_paid: Mapped[bool] = mapped_column(default=False)

    lines: Mapped[list["OrderLine"]] = relationship(back_populates="order")

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "is_paid": self.is_paid}


class OrderLine(Model):
    __tablename__ = "purchase_line"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("purchase.id"), index=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"))

    order: Mapped[Order] = relationship(back_populates="lines")


def fill_shelves() -> None:
    """Twelve authors of three books each, unless there are some."""
    if db.session.scalar(select(func.count()).select_from(Author)):
        return
    db.session.add_all(
        Author(
            name=f"Author {number}",
            books=[Book(title=f"Book {number}.{part}", price=900 + part) for part in (1, 2, 3)],
        )
        for number in range(1, 13)
    )
    db.session.commit()

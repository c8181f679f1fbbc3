"""The tables of the shop: authors, books, stock, customers and orders."""

import datetime as dt

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Model(DeclarativeBase):
    """The declarative base of the shop's tables."""


book_subject = Table(
    "book_subject",
    Model.metadata,
    Column("book_id", ForeignKey("book.id"), primary_key=True),
    Column("subject_id", ForeignKey("subject.id"), primary_key=True),
)


class Author(Model):
    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)

    books: Mapped[list["Book"]] = relationship(back_populates="author", order_by="Book.year")


class Subject(Model):
    __tablename__ = "subject"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)

    books: Mapped[list["Book"]] = relationship(secondary=book_subject, back_populates="subjects")


class Book(Model):
    __tablename__ = "book"
    __table_args__ = (UniqueConstraint("author_id", "title", name="one_edition_of_each_book"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"), index=True)
    title: Mapped[str] = mapped_column(String(120), index=True)
    year: Mapped[int]
    price_pence: Mapped[int]
    # Only the page of one book shows it, so lists do not load it.
    blurb: Mapped[str] = mapped_column(Text, deferred=True)

    author: Mapped[Author] = relationship(back_populates="books")
    subjects: Mapped[list[Subject]] = relationship(secondary=book_subject, back_populates="books")
    stock: Mapped["Stock"] = relationship(back_populates="book")


class Stock(Model):
    __tablename__ = "stock"
    __table_args__ = (CheckConstraint("quantity >= 0", name="stock_is_not_negative"),)

    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"), primary_key=True)
    quantity: Mapped[int]

    book: Mapped[Book] = relationship(back_populates="stock")


class Customer(Model):
    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    email: Mapped[str] = mapped_column(String(120), unique=True)

    orders: Mapped[list["Order"]] = relationship(back_populates="customer")


class Order(Model):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customer.id"), index=True)
    placed_on: Mapped[dt.date] = mapped_column(default=dt.date.today, index=True)

    customer: Mapped[Customer] = relationship(back_populates="orders")
    lines: Mapped[list["OrderLine"]] = relationship(
        back_populates="order", cascade="all, delete-orphan"
    )


class OrderLine(Model):
    __tablename__ = "order_line"
    __table_args__ = (CheckConstraint("quantity > 0", name="a_line_sells_something"),)

    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"), primary_key=True)
    quantity: Mapped[int]
    price_pence: Mapped[int]

    order: Mapped[Order] = relationship(back_populates="lines")
    book: Mapped[Book] = relationship()

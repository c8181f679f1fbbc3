"""The mapped classes of the stories: a small library of authors, books and shelves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    mapped_column,
    relationship,
)

if TYPE_CHECKING:
    from tests.twins import Twin


class Base(DeclarativeBase):
    """What all of them are mapped with."""


class Author(Base):
    """Has books, and a biography that is loaded when it is asked for."""

    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    biography: Mapped[str] = mapped_column(default="", deferred=True)
    books: Mapped[list[Book]] = relationship(back_populates="author", cascade="all")
    letters: DynamicMapped[Letter] = relationship()


class Book(Base):
    """Is by one author; there are never fewer than none of it."""

    __tablename__ = "books"
    __table_args__ = (CheckConstraint("copies >= 0", name="copies_are_not_negative"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    copies: Mapped[int] = mapped_column(default=1)
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
    author: Mapped[Author] = relationship(back_populates="books")


class Letter(Base):
    """Is written by an author, and read through a dynamic relationship."""

    __tablename__ = "letters"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))


class Essay(Base):
    """Has two columns that are loaded together, when either is asked for."""

    __tablename__ = "essays"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    text: Mapped[str] = mapped_column(default="", deferred=True, deferred_group="body")
    notes: Mapped[str] = mapped_column(default="", deferred=True, deferred_group="body")


class Loan(Base):
    """Is of a book; where the database checks such things, it does so at the COMMIT."""

    __tablename__ = "loans"

    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(
        ForeignKey("books.id", deferrable=True, initially="DEFERRED", name="loan_is_of_a_book")
    )


class Item(Base):
    """The base of a joined inheritance."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}  # noqa: RUF012 - SQLAlchemy's own spelling


class Map(Item):
    """A kind of item with a table of its own."""

    __tablename__ = "maps"

    id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    scale: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "map"}  # noqa: RUF012 - SQLAlchemy's own spelling


def authors(count: int, books_each: int = 0) -> list[Author]:
    """New authors, each with this number of books."""
    return [
        Author(
            name=f"author {number}",
            books=[Book(title=f"book {number}.{book}") for book in range(books_each)],
        )
        for number in range(count)
    ]


async def keep(twin: Twin, *objects: Base) -> None:
    """Commit objects with a session that is not traced, as the start of a test."""
    async with twin.session() as session:
        session.add_all(objects)
        await session.commit()

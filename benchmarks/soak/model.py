"""The tables that the load reads and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import ForeignKey, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Each thread and task has its own shelf, so that no two wait for the same row.
AUTHORS_ON_A_SHELF = 5
BOOKS_OF_AN_AUTHOR = 3
READINGS = 300


class Model(DeclarativeBase):
    pass


class Author(Model):
    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    shelf: Mapped[int] = mapped_column(index=True)
    name: Mapped[str] = mapped_column(unique=True)
    visits: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    books: Mapped[list[Book]] = relationship(passive_deletes="all", order_by="Book.id")

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy has typed it


class Book(Model):
    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"), index=True)
    title: Mapped[str]


class Reading(Model):
    """Written in bulk, and read as a stream."""

    __tablename__ = "reading"

    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]


def populate(connection: Connection, shelves: int) -> None:
    """Creates the tables, with a few authors on each shelf that are never deleted."""
    Model.metadata.create_all(connection)
    authors = range(shelves * AUTHORS_ON_A_SHELF)
    connection.execute(
        insert(Author),
        [
            {"id": -number - 1, "shelf": number % shelves, "name": f"a{number}", "version": 1}
            for number in authors
        ],
    )
    connection.execute(
        insert(Book),
        [
            {"author_id": -number - 1, "title": f"book {number}"}
            for number in authors
            for _ in range(BOOKS_OF_AN_AUTHOR)
        ],
    )
    connection.execute(insert(Reading), [{"note": "first"} for _ in range(READINGS)])

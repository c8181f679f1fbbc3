"""The mapped classes of the two worlds: each way of mapping that loads or writes differently."""

from __future__ import annotations

from typing import Any, NoReturn

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    Connection,
    ForeignKey,
    String,
    Table,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    WriteOnlyMapped,
    column_property,
    configure_mappers,
    mapped_column,
    relationship,
    validates,
)

from tests.differential.diary import DIARY, name
from tests.differential.listeners import happened

__all__ = ["CLASSES", "Author", "Base", "Book", "Item", "Letter", "Map", "Page", "Tag", "fill"]


class Base(AsyncAttrs, DeclarativeBase):
    """What all of them are mapped with."""


book_tags = Table(
    "book_tags",
    Base.metadata,
    Column("book_id", ForeignKey("books.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
)


class Author(Base):
    """Says when it is compared, hashed, shown or asked for a property."""

    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    age: Mapped[int | None]
    biography: Mapped[str] = mapped_column(default="", deferred=True)
    notes: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(JSON), default=dict)
    books: Mapped[list[Book]] = relationship(back_populates="author", cascade="all, delete-orphan")
    letters: DynamicMapped[Letter] = relationship(cascade="all", back_populates="author")

    def __eq__(self, other: object) -> bool:
        DIARY.write("spoken", name(self), "__eq__")
        return self is other

    def __hash__(self) -> int:
        DIARY.write("spoken", name(self), "__hash__")
        return id(self)

    def __repr__(self) -> str:
        DIARY.write("spoken", name(self), "__repr__")
        return "an author"

    @validates("name")
    def validate_name(self, key: str, value: Any) -> Any:
        DIARY.write("spoken", name(self), "validate", key, value)
        if value == "refused":
            raise ValueError("this name is refused")
        return value

    @hybrid_property
    def is_old(self) -> bool:
        DIARY.write("spoken", name(self), "is_old")
        return (self.age or 0) > 3


class Book(Base):
    """Knows its version, so that it can be stale, and cannot be compared by its truth."""

    __tablename__ = "books"
    __table_args__ = (CheckConstraint("copies >= 0", name="copies_are_not_negative"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    copies: Mapped[int] = mapped_column(server_default="1")
    version: Mapped[int] = mapped_column()
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
    author: Mapped[Author] = relationship(back_populates="books")
    tags: Mapped[list[Tag]] = relationship(secondary=book_tags, lazy="selectin")
    letters: WriteOnlyMapped[Letter] = relationship(back_populates="book")
    pages: Mapped[list[Page]] = relationship(cascade="all, delete-orphan", order_by="Page.number")
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's own spelling

    def __bool__(self) -> NoReturn:
        raise TypeError("a book is neither true nor false")


class Page(Base):
    """Has a key of two columns, and is part of one book."""

    __tablename__ = "pages"

    book_id: Mapped[int] = mapped_column(ForeignKey("books.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(default="", deferred=True, deferred_group="body")
    foot: Mapped[str] = mapped_column(default="", deferred=True, deferred_group="body")


class Tag(Base):
    """Is on many books, whose number is a column of its own."""

    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(unique=True)
    slug: Mapped[str | None] = mapped_column(onupdate=func.lower("SLUG"))
    books_tagged: Mapped[int] = column_property(
        select(func.count(book_tags.c.book_id))
        .where(book_tags.c.tag_id == id)  # noqa: A003 - the column above
        .correlate_except(book_tags)
        .scalar_subquery()
    )


class Letter(Base):
    """Brings its author by a join, and refuses to load its book."""

    __tablename__ = "letters"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(default="")
    author_id: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))
    book_id: Mapped[int | None] = mapped_column(ForeignKey("books.id"))
    author: Mapped[Author | None] = relationship(lazy="joined", back_populates="letters")
    book: Mapped[Book | None] = relationship(lazy="raise", back_populates="letters")


class Item(Base):
    """The base of a joined inheritance, and a tree."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("items.id"))
    parent: Mapped[Item | None] = relationship(remote_side="Item.id", back_populates="children")
    children: Mapped[list[Item]] = relationship(back_populates="parent")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}  # noqa: RUF012 - SQLAlchemy's own spelling


class Map(Item):
    """A kind of item with a table of its own."""

    __tablename__ = "maps"

    id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    scale: Mapped[str] = mapped_column(String(10), default="1:1")
    __mapper_args__ = {"polymorphic_identity": "map"}  # noqa: RUF012 - SQLAlchemy's own spelling


CLASSES = (Author, Book, Tag, Letter, Item, Map, Page)


def fill(connection: Connection) -> None:
    """The rows that every world begins with."""
    Base.metadata.create_all(connection)
    rows: tuple[tuple[Any, list[dict[str, Any]]], ...] = (
        (
            Author,
            [{"name": f"author {n}", "age": n, "biography": "", "notes": {}} for n in (1, 2, 3)],
        ),
        (Book, [{"title": f"book {n}", "author_id": 1 + n // 3, "version": 1} for n in range(6)]),
        (Tag, [{"label": label} for label in ("old", "new", "red")]),
        (book_tags, [{"book_id": 1 + n, "tag_id": 1 + n % 3} for n in range(5)]),
        (Page, [{"book_id": 1 + n // 2, "number": n, "text": "", "foot": ""} for n in range(6)]),
        (Letter, [{"text": "dear", "author_id": 1 + n % 3, "book_id": 1 + n} for n in range(4)]),
        (
            Item.__table__,
            [{"kind": ("item", "map")[n % 2], "parent_id": n or None} for n in range(4)],
        ),
        (Map.__table__, [{"id": n, "scale": "1:2"} for n in (2, 4)]),
    )
    for table, values in rows:
        connection.execute(insert(table), values)


def _listen() -> None:
    """Listen to two of the classes, so that the rest is loaded on SQLAlchemy's shorter roads."""

    def written(event_name: str) -> Any:
        def listener(mapper: Any, connection: Any, target: Any) -> None:
            DIARY.write("heard", event_name, name(target))
            happened(event_name, target)

        return listener

    def loaded(event_name: str) -> Any:
        def listener(target: Any, *_: Any) -> None:
            DIARY.write("heard", event_name, name(target))
            happened(event_name, target)

        return listener

    for listened_to in (Author, Book):
        for verb in ("insert", "update", "delete"):
            for when in ("before", "after"):
                event.listen(listened_to, f"{when}_{verb}", written(f"{when}_{verb}"))
        for event_name in ("load", "refresh", "refresh_flush", "expire"):
            event.listen(listened_to, event_name, loaded(event_name))


configure_mappers()
_listen()

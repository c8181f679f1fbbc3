"""The works: plain functions of a session factory, and the small schema that they use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import Connection, ForeignKey, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)
from sqlalchemy.orm.exc import DetachedInstanceError

AUTHORS = 50
BOOKS_PER_AUTHOR = 4
SALES = 10_000

RunSync = Callable[[sessionmaker[Session]], None]
RunAsync = Callable[[async_sessionmaker[AsyncSession]], Awaitable[None]]


class Model(DeclarativeBase):
    pass


class Author(Model):
    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    visits: Mapped[int]
    books: Mapped[list[Book]] = relationship(back_populates="author")


class Book(Model):
    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"), index=True)
    title: Mapped[str]
    author: Mapped[Author] = relationship(back_populates="books")


class Sale(Model):
    """Read in thousands; not written after the tables are filled."""

    __tablename__ = "sales"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    pieces: Mapped[int]
    cents: Mapped[int]


class Order(Model):
    """Written by the works, and emptied by `tidy` outside the measured time."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    pieces: Mapped[int]


def populate(connection: Connection) -> None:
    """Drops the tables, creates them and fills them."""
    Model.metadata.drop_all(connection)
    Model.metadata.create_all(connection)
    # One author more than W7 reads: the one whose books are read when it is detached.
    connection.execute(
        insert(Author), [{"name": f"author {n}", "visits": 0} for n in range(AUTHORS + 1)]
    )
    connection.execute(
        insert(Book),
        [
            {"author_id": author, "title": f"book {n} of {author}"}
            for author in range(1, AUTHORS + 2)
            for n in range(BOOKS_PER_AUTHOR)
        ],
    )
    connection.execute(
        insert(Sale),
        [{"title": f"sale {n}", "pieces": n % 7, "cents": n} for n in range(SALES)],
    )


def tidy(connection: Connection) -> None:
    connection.execute(delete(Order))


def change_one(sessions: sessionmaker[Session], key: int = 1) -> None:
    with sessions() as session:
        author = session.get_one(Author, key)
        author.visits += 1
        session.commit()


def select_1k(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        # The variable keeps the objects: the identity map refers to them weakly.
        sales = session.scalars(select(Sale).order_by(Sale.id).limit(1_000)).all()
        assert len(sales) == 1_000


def select_10k(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        sales = session.scalars(select(Sale).order_by(Sale.id).limit(10_000)).all()
        assert len(sales) == 10_000


def add_1k(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        session.add_all([Order(title="added", pieces=n) for n in range(1_000)])
        session.flush()
        session.commit()


def reload_100(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        orders = [Order(title="reloaded", pieces=n) for n in range(100)]
        session.add_all(orders)
        session.commit()
        for order in orders:
            assert order.title == "reloaded"


def open_and_close(sessions: sessionmaker[Session]) -> None:
    sessions().close()


async def change_one_async(sessions: async_sessionmaker[AsyncSession], key: int = 1) -> None:
    async with sessions() as session:
        author = await session.get_one(Author, key)
        author.visits += 1
        await session.commit()


def load_lazily(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        *authors, detached = session.scalars(select(Author).order_by(Author.id)).all()
        for author in authors:
            assert len(author.books) == BOOKS_PER_AUTHOR
    try:
        _ = detached.books
    except DetachedInstanceError:
        return
    raise AssertionError("the books of a detached author were loaded")


@dataclass(frozen=True, slots=True)
class SyncWork:
    key: str
    title: str
    run: RunSync
    units_at_least: int = 1


@dataclass(frozen=True, slots=True)
class AsyncWork:
    key: str
    title: str
    run: RunAsync
    units_at_least: int = 1


@dataclass(frozen=True, slots=True)
class ThreadsWork:
    """W1 by this number of threads at once; a unit is one session."""

    threads: int
    key: str = "W1"

    @property
    def units_at_least(self) -> int:
        return self.threads

    @property
    def title(self) -> str:
        return f"{self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True, slots=True)
class TasksWork:
    """W6 by this number of tasks at once; a unit is one session."""

    tasks: int
    key: str = "W6"

    @property
    def units_at_least(self) -> int:
        return self.tasks

    @property
    def title(self) -> str:
        return f"{self.tasks:,} task{'s' * (self.tasks > 1)}"


Work = SyncWork | AsyncWork | ThreadsWork | TasksWork

WORKS: tuple[SyncWork | AsyncWork, ...] = (
    SyncWork("W1", "get, change, commit", change_one),
    SyncWork("W2", "select 1,000", select_1k),
    SyncWork("W2", "select 10,000", select_10k),
    SyncWork("W3", "add 1,000, commit", add_1k),
    SyncWork("W4", "add 100, commit, reload each", reload_100),
    SyncWork("W5", "open, close", open_and_close),
    AsyncWork("W6", "W1 under AsyncSession", change_one_async),
    SyncWork("W7", "50 lazy loads, one detached", load_lazily),
)

SCALING: tuple[Work, ...] = (
    *map(ThreadsWork, (1, 2, 4, 16)),
    *map(TasksWork, (1, 10, 100, 1_000)),
)

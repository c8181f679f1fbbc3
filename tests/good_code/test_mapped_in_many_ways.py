"""Mappings of every kind, written and read as they are meant to be."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    ForeignKey,
    Numeric,
    Table,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    WriteOnlyMapped,
    column_property,
    mapped_column,
    relationship,
    selectin_polymorphic,
    selectinload,
)

from tests.good_code.silence import beginning, only_async, silent
from tests.library import Author, Book, Item, Map, authors, keep
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.orm import Session

    from tests.twins import Twin


class Base(DeclarativeBase):
    """What these classes are mapped with."""


class Status(Enum):
    OPEN = "open"
    PAID = "paid"


labels_of_products = Table(
    "labels_of_products",
    Base.metadata,
    Column("product_id", ForeignKey("products.id"), primary_key=True),
    Column("label_id", ForeignKey("labels.id"), primary_key=True),
)


class Label(Base):
    """A word that many products bear."""

    __tablename__ = "labels"

    id: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column(unique=True)

    def __init__(self, word: str) -> None:
        self.word = word


class Product(Base):
    """Has the time of its last change from the database, and a version."""

    __tablename__ = "products"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    name: Mapped[str] = mapped_column()
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2), default=Decimal(1))
    details: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(JSON), default=dict)
    status: Mapped[Status] = mapped_column(default=Status.OPEN)
    created_at: Mapped[dt.datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now()
    )
    updated_at: Mapped[dt.datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=func.now()
    )
    labels: Mapped[set[Label]] = relationship(secondary=labels_of_products)
    words: AssociationProxy[set[str]] = association_proxy("labels", "word")
    prices: WriteOnlyMapped[Price] = relationship(passive_deletes=True)
    shouted = column_property(func.upper(name))

    @hybrid_property
    def is_dear(self) -> bool:
        return self.price > 100

    # Nobody who only looks on may compare or show an object.
    def __eq__(self, other: object) -> bool:
        raise AssertionError("somebody compared two products")

    def __repr__(self) -> str:
        raise AssertionError("somebody showed a product")

    __hash__ = object.__hash__


class Price(Base):
    """What a product has cost, from when."""

    __tablename__ = "prices"

    product_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("products.id"), primary_key=True)
    since: Mapped[dt.date] = mapped_column(primary_key=True)
    price: Mapped[int]


class Account(Base):
    """Is versioned: who changes it must have seen the last change."""

    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's own spelling


class Category(AsyncAttrs, Base):
    """Is within another one."""

    __tablename__ = "categories"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("categories.id"))
    children: Mapped[list[Category]] = relationship(back_populates="parent")
    parent: Mapped[Category | None] = relationship(
        back_populates="children", remote_side="Category.id"
    )


class Entry(Base):
    """A line of the log of all changes."""

    __tablename__ = "entries"

    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


def in_a_shop(twin: Twin, story: Callable[[], Awaitable[None]]) -> None:
    """Run a story on empty tables of these classes."""

    async def on_empty_tables() -> None:
        await twin.execute(Base.metadata.create_all)
        try:
            await story()
        finally:
            await twin.execute(Base.metadata.drop_all)

    twin.run(on_empty_tables)


def products(count: int) -> list[Product]:
    return [Product(name=f"product {number}") for number in range(count)]


# Writing.


@on_each_database
def test_keys_of_the_applications_own_and_columns_of_the_databases(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=1):
            async with beginning(twin) as session:
                added = products(120)
                session.add_all(added)
                await session.flush()
                assert len({product.id for product in added}) == 120

    in_a_shop(twin, story)


@on_each_database
def test_the_time_of_the_last_change_is_the_databases(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=3):
            async with beginning(twin) as session:
                session.add_all(products(80))
            async with beginning(twin) as session:
                for number, product in enumerate(await session.scalars(select(Product))):
                    product.price = Decimal(number + 2)
                    product.status = Status.PAID

    in_a_shop(twin, story)


def test_a_listener_that_logs_what_is_flushed(twin: Twin) -> None:
    def log(session: Session, context: object, instances: object) -> None:
        for changed in session.dirty:
            session.add(Entry(what=type(changed).__name__))

    async def story() -> None:
        async with beginning(twin) as session:
            session.add_all(products(15))
        with silent(twin.factory, sessions=1, statements=3):
            async with twin.session() as session:
                event.listen(session.sync_session, "before_flush", log)
                for product in await session.scalars(select(Product)):
                    product.name = f"new {product.name}"
                await session.commit()

    in_a_shop(twin, story)


@on_each_database
def test_versions_are_checked_row_by_row(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=3):
            async with beginning(twin) as session:
                session.add_all(Account() for _ in range(15))
            async with beginning(twin) as session:
                for account in await session.scalars(select(Account)):
                    account.balance += 1

    in_a_shop(twin, story)


def test_labels_are_shared_by_many_products(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=6):
            async with beginning(twin) as session:
                words = [Label(f"word {number}") for number in range(10)]
                for product in products(40):
                    product.labels.update(words)
                    session.add(product)
            async with beginning(twin) as session:
                statement = select(Product).options(selectinload(Product.labels))
                for product in await session.scalars(statement):
                    assert len(product.words) == 10
                    product.labels.pop()

    in_a_shop(twin, story)


def test_a_tree_is_written_and_read_level_by_level(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=5):
            async with beginning(twin) as session:
                root = Category(name="all")
                for number in range(5):
                    branch = Category(name=f"branch {number}", parent=root)
                    branch.children = [Category(name=f"leaf {leaf}") for leaf in range(4)]
                session.add(root)
            async with twin.session() as session:
                deep = selectinload(Category.children, recursion_depth=2)
                top = select(Category).where(Category.parent_id.is_(None)).options(deep)
                (root,) = await session.scalars(top)
                assert sum(len(branch.children) for branch in root.children) == 20

    in_a_shop(twin, story)


@only_async
def test_relationships_are_awaited(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=4):
            async with beginning(twin) as session:
                session.add(Category(name="all", children=[Category(name="lamps")]))
            async with twin.session() as session:
                (root,) = await session.scalars(select(Category).where(Category.name == "all"))
                (child,) = await root.awaitable_attrs.children
                assert await child.awaitable_attrs.parent is root

    in_a_shop(twin, story)


def test_a_dictionary_is_changed_in_place(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=3, statements=4):
            async with beginning(twin) as session:
                session.add(Product(name="lamp", details={"colour": "red"}))
            async with beginning(twin) as session:
                (product,) = await session.scalars(select(Product))
                product.details["colour"] = "blue"
            async with twin.session() as session:
                (product,) = await session.scalars(select(Product))
                assert product.details == {"colour": "blue"}

    in_a_shop(twin, story)


def test_a_write_only_collection_is_added_to_and_asked(twin: Twin) -> None:
    async def story() -> None:
        day = dt.date(2024, 1, 1)
        with silent(twin.factory, sessions=2, statements=4):
            async with beginning(twin) as session:
                lamp = Product(name="lamp")
                session.add(lamp)
                await session.flush()
                prices = [{"since": day + dt.timedelta(n), "price": n} for n in range(100)]
                await session.execute(lamp.prices.insert().values(), prices)
            async with twin.session() as session:
                (lamp,) = await session.scalars(select(Product))
                late = lamp.prices.select().where(Price.price > 90)
                assert len((await session.scalars(late)).all()) == 9
                assert (await session.get_one(Price, (lamp.id, day))).price == 0

    in_a_shop(twin, story)


def test_a_book_for_each_of_many_authors(twin: Twin) -> None:
    """What changes of the authors is a collection that is not even loaded."""

    async def story() -> None:
        await keep(twin, *authors(30))
        with silent(twin.factory, sessions=1, statements=2):
            async with beginning(twin) as session:
                for author in await session.scalars(select(Author)):
                    session.add(Book(title="Notes", author=author))

    twin.run(story)


def test_a_book_is_appended_to_each_of_many_authors(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(30, books_each=1))
        with silent(twin.factory, sessions=1, statements=3):
            async with beginning(twin) as session:
                statement = select(Author).options(selectinload(Author.books))
                for author in await session.scalars(statement):
                    author.books.append(Book(title="Notes"))

    twin.run(story)


def test_books_go_from_one_author_to_another(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2, books_each=30))
        with silent(twin.factory, sessions=1, statements=3):
            async with beginning(twin) as session:
                statement = select(Author).options(selectinload(Author.books)).order_by(Author.id)
                first, second = await session.scalars(statement)
                for book in list(first.books):
                    book.author = second
                assert len(second.books) == 60

    twin.run(story)


# Reading.


def test_a_page_that_sorts_a_collection(twin: Twin) -> None:
    """The same objects in another order are no change."""

    async def story() -> None:
        await keep(twin, *authors(12, books_each=3))
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                statement = select(Author).options(selectinload(Author.books))
                for author in await session.scalars(statement):
                    author.books = sorted(author.books, key=lambda book: -book.id)

    twin.run(story)


def test_a_page_that_decorates_its_objects(twin: Twin) -> None:
    """What is not mapped is nobody's business."""

    async def story() -> None:
        await keep(twin, *authors(12))
        with silent(twin.factory, sessions=1, statements=1):
            async with twin.session() as session:
                for author in await session.scalars(select(Author)):
                    author.link = f"/authors/{author.id}"

    twin.run(story)


def test_objects_of_several_classes_in_one_hierarchy(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *(Map(scale=number) for number in range(20)), Item(kind="item"))
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                statement = select(Item).options(selectin_polymorphic(Item, [Map]))
                found = (await session.scalars(statement)).all()
                assert sum(item.scale for item in found if isinstance(item, Map)) == 190

    twin.run(story)


def test_a_whole_aggregate_is_merged(twin: Twin) -> None:
    """The books are loaded with their collection, not one by one."""

    async def story() -> None:
        await keep(twin, *authors(1, books_each=20))
        with silent(twin.factory, sessions=2, statements=5):
            async with twin.session() as session:
                statement = select(Author).options(selectinload(Author.books))
                (author,) = await session.scalars(statement)
            for book in author.books:
                book.copies += 1
            async with beginning(twin) as session:
                await session.merge(author)

    twin.run(story)


@on_each_database
def test_computed_columns_hybrids_and_rows_of_both(twin: Twin) -> None:
    async def story() -> None:
        await twin.execute(
            lambda connection: connection.execute(
                insert(Product), [{"name": f"product {n}", "price": n * 10} for n in range(20)]
            )
        )
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                dear = await session.scalars(select(Product).where(Product.is_dear))
                assert {product.shouted[:7] for product in dear} == {"PRODUCT"}
                rows = await session.execute(select(Product, func.length(Product.name)))
                assert sum(product.is_dear for product, _ in rows) == 9

    in_a_shop(twin, story)


@on_each_database
def test_a_row_is_locked_before_it_is_changed(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=1, statements=3):
            async with beginning(twin) as session:
                author = await session.get(Author, 1)
                await session.refresh(author, with_for_update=True)
                author.name = "Ada"

    twin.run(story)

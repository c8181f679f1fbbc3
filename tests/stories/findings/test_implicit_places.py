"""Where attributes are read under asyncio without an await, and reads beside it that are fine."""

from __future__ import annotations

from string import Formatter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, raiseload, selectinload
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer.testing import Captured, capture
from tests.good_code.silence import assert_silent, only_async
from tests.library import Author, Letter, authors, keep
from tests.stories import detached
from tests.stories.findings import mappings, shop
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.shop import Customer, Order
from tests.stories.lines import line, marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.twins import Twin

REFUSED = (MissingGreenlet, StatementError)
BOOKS = "await author.awaitable_attrs.books, with AsyncAttrs among the bases of Author"
pytestmark = [
    only_async,
    pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited"),
]


def errors(captured: Captured) -> list[Any]:
    """Failures of our own."""
    return captured.metrics.get("session_tracer.errors", [])


# Places.


def by_name(customer: Customer) -> object:
    return {name: getattr(customer, name) for name in ("id", "name", "orders")}


def within(customer: Customer) -> object:
    def inner() -> object:
        return customer.orders

    return inner()


def in_a_generator(customer: Customer) -> Iterator[Order]:
    yield from customer.orders


PLACES: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "a comprehension": (
        lambda customer: [len(one.orders) for one in [customer]],
        "<lambda>",
        "lambda customer: [len(one.orders) for one in [customer]],",
    ),
    "a key to sort by": (
        lambda customer: sorted([customer], key=lambda one: len(one.orders)),
        "<lambda>",
        "lambda customer: sorted([customer], key=lambda one: len(one.orders)),",
    ),
    "a loop over names": (
        by_name,
        "by_name",
        'return {name: getattr(customer, name) for name in ("id", "name", "orders")}',
    ),
    "a function within a function": (within, "inner", "return customer.orders"),
    "a generator": (
        lambda customer: list(in_a_generator(customer)),
        "in_a_generator",
        "yield from customer.orders",
    ),
    "the standard library": (
        lambda customer: Formatter().format("{0.orders}", customer),
        "<lambda>",
        'lambda customer: Formatter().format("{0.orders}", customer),',
    ),
    "a property": (
        lambda customer: customer.total,
        "Customer.total",
        "return len(self.orders)  # <- total",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_line_that_reads_is_named(twin: Twin, place: str) -> None:
    read, function, source = PLACES[place]

    async def story() -> None:
        async with shop.opened(twin):
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    customer = (await session.scalars(select(Customer))).one()
                    with pytest.raises(REFUSED):
                        read(customer)
        (finding,) = captured.findings
        assert (finding.id, finding.entity, finding.attribute) == (
            "implicit-async-io",
            "Customer",
            "orders",
        )
        assert finding.site is not None
        assert (finding.site.function, line(finding.site)) == (function, source)
        assert errors(captured) == []

    twin.run(story)


async def shown_after_commit(twin: Twin) -> str:
    async with twin.session() as session:  # <- opened
        customer = (await session.scalars(select(Customer))).one()  # <- loaded
        await session.commit()  # <- expired
        with pytest.raises(REFUSED):
            repr(customer)
        return "shown"


@on_each_database
def test_a_repr_of_what_a_commit_expired(twin: Twin) -> None:
    async def story() -> None:
        async with shop.opened(twin):
            with capture(twin.factory) as captured:
                assert await shown_after_commit(twin) == "shown"
        show: Any = Customer.__repr__
        assert_found(
            captured,
            Due(
                id="implicit-async-io",
                site=marked(show, "<- repr"),
                opened=marked(shown_after_commit, "<- opened"),
                remedy="async_sessionmaker(expire_on_commit=False)",
                entity="Customer",
                attribute="name",
                evidence={"expired_at": str(marked(shown_after_commit, "<- expired"))},
            ),
        )

    twin.run(story)


# What brought the object.


async def read_what_was_added(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened
        author = Author(name="new")
        session.add(author)
        await session.flush()
        with pytest.raises(REFUSED):
            detached.read_books(author)
        await session.rollback()


def test_an_object_that_was_added_and_never_selected(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await read_what_was_added(twin)
        assert_found(
            captured,
            Due(
                id="implicit-async-io",
                site=marked(detached.read_books, "read"),
                opened=marked(read_what_was_added, "<- opened"),
                remedy='await session.refresh(author, ["books"])',
                entity="Author",
                attribute="books",
                evidence={
                    "loaded_at": None,
                    "alternatives": [BOOKS],
                },
            ),
        )

    twin.run(story)


async def read_what_came_by_a_relationship(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened
        query = select(Customer).options(selectinload(Customer.orders))
        customer = (await session.scalars(query)).one()  # <- loaded
        session.expire(customer, ["name"])
        with pytest.raises(REFUSED):
            _ = customer.orders[0].customer.name  # <- read


def test_an_object_whose_other_attributes_are_loaded(twin: Twin) -> None:
    async def story() -> None:
        async with shop.opened(twin):
            with capture(twin.factory) as captured:
                await read_what_came_by_a_relationship(twin)
        (finding,) = captured.findings
        assert (finding.entity, finding.attribute) == ("Customer", "name")
        assert finding.site == marked(read_what_came_by_a_relationship, "<- read")
        assert errors(captured) == []

    twin.run(story)


async def read_what_the_database_made(twin: Twin, commit_first: bool) -> None:
    async with twin.session() as session:  # <- opened
        customer = (await session.scalars(select(Customer))).one()
        if commit_first:
            await session.commit()
            await session.refresh(customer)
        customer.name = "Grace"
        await session.flush()
        with pytest.raises(REFUSED):
            _ = customer.changed_at  # <- read
        await session.rollback()


@on_each_database
@pytest.mark.parametrize("commit_first", [False, True])
def test_a_column_that_the_database_fills_in_at_a_flush(twin: Twin, commit_first: bool) -> None:
    async def story() -> None:
        async with shop.opened(twin):
            with capture(twin.factory) as captured:
                await read_what_the_database_made(twin, commit_first)
        (finding,) = captured.findings
        assert finding.message == (
            "Customer.changed_at was read after the flush expired it, "
            "and reading cannot await the reload"
        )
        assert finding.remedy == '__mapper_args__ = {"eager_defaults": True}  # in Customer'
        assert finding.evidence["why"] == "the column was expired by the flush"
        assert finding.site == marked(read_what_the_database_made, "<- read")
        assert errors(captured) == []

    twin.run(story)


# How often.


def test_a_loop_is_reported_once_for_an_attribute_and_a_line(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                for author in (await session.scalars(select(Author))).all():
                    for read in (detached.read_books, detached.read_biography):
                        with pytest.raises(REFUSED):
                            read(author)
        assert [one.attribute for one in captured.findings] == ["books", "biography"]

    twin.run(story)


# Beside it.


class Audited(Session):
    """An application's own Session, whose frames lie between an attribute and its load."""

    def execute(self, *arguments: Any, **keywords: Any) -> Any:
        state = self
        assert state is self
        return super().execute(*arguments, **keywords)


def test_an_attribute_of_a_session_with_an_execute_of_its_own(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        engine: Any = twin.engine
        maker = async_sessionmaker(engine, sync_session_class=Audited)
        with capture(maker) as captured:
            async with maker() as session:
                author = (await session.scalars(select(Author))).one()
                with pytest.raises(REFUSED):
                    detached.read_books(author)
        assert [one.attribute for one in captured.findings] == ["books"]
        assert errors(captured) == []

    twin.run(story)


def test_a_flush_that_reading_asks_for_is_no_failure_of_its_own(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                session.add(Author(name="pending"))
                with pytest.raises(REFUSED):
                    detached.read_books(author)
                await session.rollback()
        assert [(one.id, one.attribute) for one in captured.findings] == [
            ("implicit-async-io", "books")
        ]
        assert errors(captured) == []

    twin.run(story)


async def executed(session: AsyncSession) -> None:
    session.sync_session.execute(text("SELECT 1"))


async def got(session: AsyncSession) -> None:
    session.sync_session.get(Author, 2)


async def refreshed(session: AsyncSession) -> None:
    author = (await session.scalars(select(Author))).one()
    session.sync_session.refresh(author, ["books"])


async def merged(session: AsyncSession) -> None:
    session.sync_session.merge(Author(id=2, name="merged"))


async def queried(session: AsyncSession) -> None:
    author = (await session.scalars(select(Author))).one()
    author.letters.filter(Letter.id > 1).all()


async def connected(session: AsyncSession) -> None:
    session.sync_session.connection()


@pytest.mark.parametrize("do", [executed, got, refreshed, merged, queried, connected])
def test_an_error_that_is_about_no_attribute(twin: Twin, do: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        if do is connected:
            await twin.dispose()
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                with pytest.raises(REFUSED):
                    await do(session)
        assert captured.findings == []
        assert errors(captured) == []

    twin.run(story)


def test_what_is_awaited_is_fine(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session(expire_on_commit=False) as session:
                query = select(Author).options(selectinload(Author.books))
                author = (await session.scalars(query)).one()
                await session.commit()
                assert (author.name, len(author.books)) == ("author 0", 1)
                await session.refresh(author, ["biography"])
                assert author.biography == ""
                assert await session.run_sync(lambda _: author.letters.all()) == []
        assert_silent(captured, sessions=1)

    twin.run(story)


def test_awaitable_attributes_are_fine(twin: Twin) -> None:
    async def story() -> None:
        async with mappings.tables(twin):
            await keep(twin, mappings.Company(name="company"))  # type: ignore[arg-type] # mapped with another base
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    company = (await session.scalars(select(mappings.Company))).one()
                    await session.commit()
                    assert await company.awaitable_attrs.name == "company"
                    assert await company.awaitable_attrs.staff == []
        assert_silent(captured, sessions=1)

    twin.run(story)


def test_a_load_that_somebody_forbade_is_a_decision(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                query = select(Author).options(raiseload(Author.books))
                author = (await session.scalars(query)).one()
                with pytest.raises(InvalidRequestError, match="lazy='raise'"):
                    detached.read_books(author)
        assert_silent(captured, sessions=1)

    twin.run(story)


def test_an_object_that_left_its_session_is_detached_instead(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
            with pytest.raises(DetachedInstanceError):
                detached.read_books(author)
        assert [one.id for one in captured.findings] == ["detached-lazy-load"]
        assert errors(captured) == []

    twin.run(story)


def test_an_object_of_a_session_that_nobody_traces(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        engine: Any = twin.engine
        with capture(twin.factory) as captured:
            async with AsyncSession(engine) as session:
                author = (await session.scalars(select(Author))).one()
                with pytest.raises(REFUSED):
                    detached.read_books(author)
        assert (captured.findings, captured.facts, errors(captured)) == ([], [], [])

    twin.run(story)


def test_an_order_knows_its_customer_without_a_load(twin: Twin) -> None:
    async def story() -> None:
        async with shop.opened(twin):
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    await session.scalars(select(Customer))
                    held = (await session.scalars(select(Customer))).all()
                    orders = (await session.scalars(select(Order))).all()
                    # The identity map has it: nothing needs to be awaited.
                    assert [order.customer.name for order in orders] == ["Ada", "Ada"]
                    assert len(held) == 1
        assert_silent(captured, sessions=1)

    twin.run(story)

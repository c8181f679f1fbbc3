"""Units of work that are committed or rolled back, in each of the ways that are taught."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from tests.good_code.silence import beginning, only_sync, silent
from tests.library import Author, Book, authors, keep
from tests.twins import on_each_database, on_postgresql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from tests.twins import Twin


class OutOfStockError(Exception):
    """What the rules of the business raise."""


async def count(session: Any, entity: type[Any]) -> int:
    """How many rows there are."""
    return int(await session.scalar(select(func.count()).select_from(entity)))


# Blocks of SQLAlchemy's own.


def test_commit_as_you_go(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=3):
            async with twin.session(expire_on_commit=False) as session:
                author = Author(name="Ada")
                session.add(author)
                await session.commit()
                session.add(Book(title="Notes", author_id=author.id))
                await session.commit()
                assert await count(session, Book) == 1

    twin.run(story)


def test_a_session_that_begins_once_in_a_block(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                async with session.begin():
                    session.add_all(authors(2))
                async with session.begin():
                    assert await count(session, Author) == 2

    twin.run(story)


def test_a_session_and_its_transaction_in_one_block(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=2):
            async with twin.session() as session, session.begin():
                session.add_all(authors(2))
            async with beginning(twin) as session:
                assert await count(session, Author) == 2

    twin.run(story)


def test_a_block_that_an_error_leaves(twin: Twin) -> None:
    async def fail(session: Any) -> None:
        session.add(Author(name="Ada"))
        await session.flush()
        session.add(Author(name="Grace"))
        raise OutOfStockError

    async def story() -> None:
        with silent(twin.factory, sessions=4, statements=4):
            with pytest.raises(OutOfStockError):
                async with twin.session() as session:
                    await fail(session)
            with pytest.raises(OutOfStockError):
                async with twin.session() as session, session.begin():
                    await fail(session)
            with pytest.raises(OutOfStockError):
                async with beginning(twin) as session:
                    await fail(session)
            async with twin.session() as session:
                assert await count(session, Author) == 0

    twin.run(story)


def test_a_session_goes_on_after_a_block_of_its_transaction_has_failed(twin: Twin) -> None:
    async def fail(session: Any) -> None:
        async with session.begin():
            session.add(Author(name="Ada"))
            await session.flush()
            raise OutOfStockError

    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                with pytest.raises(OutOfStockError):
                    await fail(session)
                async with session.begin():
                    session.add(Author(name="Grace"))

    twin.run(story)


def test_a_session_that_begins_only_explicitly(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session(autobegin=False) as session:
                for author in authors(2):
                    async with session.begin():
                        session.add(author)

    twin.run(story)


def test_a_stack_of_blocks(twin: Twin) -> None:
    async def work(*, fails: bool) -> None:
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(twin.session())
            session.add(Author(name="Ada"))
            await session.flush()
            if fails:
                raise OutOfStockError
            await session.commit()

    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=2):
            with pytest.raises(OutOfStockError):
                await work(fails=True)
            await work(fails=False)

    twin.run(story)


@on_each_database
def test_a_session_that_reads_without_a_transaction(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        reader = twin.engine.execution_options(isolation_level="AUTOCOMMIT")
        with silent(twin.factory, sessions=2, statements=4):
            for _ in range(2):
                async with twin.session(bind=reader) as session:
                    assert await count(session, Author) == 2
                    assert (await session.get_one(Author, 1)).name == "author 0"

    twin.run(story)


# The same written out.


@asynccontextmanager
async def session_scope(twin: Twin) -> AsyncIterator[Any]:
    """The block that SQLAlchemy's documentation has shown for many years."""
    session = twin.session()
    try:
        yield session
        await session.commit()
    except BaseException:
        await session.rollback()
        raise
    finally:
        await session.close()


def test_a_session_scope_that_commits_on_success(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=3, statements=3):
            for name in ("Ada", "Grace"):
                async with session_scope(twin) as session:
                    session.add(Author(name=name))
            async with session_scope(twin) as session:
                assert await count(session, Author) == 2

    twin.run(story)


def test_a_session_scope_that_rolls_back_on_an_error(twin: Twin) -> None:
    async def fail() -> None:
        async with session_scope(twin) as session:
            session.add(Author(name="Ada"))
            await session.flush()
            session.add(Author(name="Grace"))
            raise OutOfStockError

    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=2):
            with pytest.raises(OutOfStockError):
                await fail()
            async with session_scope(twin) as session:
                assert await count(session, Author) == 0

    twin.run(story)


def test_an_error_is_handled_where_the_session_is_closed(twin: Twin) -> None:
    async def place(session: Any) -> bool:
        try:
            session.add(Author(name="Ada"))
            await session.flush()
            session.add(Author(name="Grace"))
            raise OutOfStockError
        except OutOfStockError:
            await session.rollback()
            return False
        finally:
            await session.close()

    async def story() -> None:
        with silent(twin.factory, sessions=3):
            for _ in range(3):
                assert not await place(twin.session())

    twin.run(story)


def test_what_turns_out_not_to_be_wanted_is_rolled_back(twin: Twin) -> None:
    """A dry run: everything is done, and taken back on purpose."""

    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=2):
            async with twin.session() as session:
                session.add_all(authors(3))
                await session.flush()
                assert await count(session, Author) == 3
                await session.rollback()
            async with twin.session() as session:
                session.add_all(authors(3))
                await session.rollback()
                assert await count(session, Author) == 0

    twin.run(story)


def test_several_transactions_of_one_session(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=6):
            async with twin.session(expire_on_commit=False) as session:
                for author in authors(5):
                    session.add(author)
                    await session.commit()
                assert await count(session, Author) == 5

    twin.run(story)


def test_a_flush_in_the_middle_to_learn_a_key(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=2):
            async with beginning(twin) as session:
                author = Author(name="Ada")
                session.add(author)
                await session.flush()
                session.add_all(Book(title=f"volume {n}", author_id=author.id) for n in range(3))

    twin.run(story)


def test_an_object_is_changed_and_deleted(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2, books_each=2))
        with silent(twin.factory, sessions=1, statements=5):
            async with beginning(twin) as session:
                renamed = await session.get_one(Author, 1)
                renamed.name = "Grace"
                gone = await session.get_one(Author, 2)
                await session.delete(gone)

    twin.run(story)


def test_an_object_is_set_to_what_it_was_and_not_committed(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=1):
            async with twin.session() as session:
                author = await session.get_one(Author, 1)
                author.name = str(author.name)

    twin.run(story)


def test_a_unit_of_work_that_is_tried_again_with_a_new_session(twin: Twin) -> None:
    attempts = []

    async def attempt() -> None:
        async with beginning(twin) as session:
            session.add(Author(name="Ada"))
            await session.flush()
            attempts.append(session)
            if len(attempts) < 3:
                await session.execute(text("SELECT * FROM there_is_no_such_table"))

    async def story() -> None:
        with silent(twin.factory, sessions=3, statements=5):
            while len(attempts) < 3:
                with suppress(SQLAlchemyError):
                    await attempt()

    twin.run(story)


@on_each_database
def test_a_statement_that_fails_is_answered_by_a_rollback(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                try:
                    await session.execute(insert(Author).values(name="author 0", biography=""))
                except IntegrityError:
                    await session.rollback()
                assert await count(session, Author) == 1

    twin.run(story)


def test_statements_alone_without_an_object(twin: Twin) -> None:
    table = Author.metadata.tables["authors"]

    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=4):
            async with beginning(twin) as session:
                await session.execute(text("SELECT 1"))
                await session.execute(insert(table), {"name": "Ada", "biography": ""})
                await session.execute(update(table).values(name="Grace"))
                rows = await session.execute(select(table.c.name))
                assert rows.scalars().all() == ["Grace"]

    twin.run(story)


# A class for it.


class Authors:
    """A repository: it neither begins nor ends anything."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def add(self, author: Author) -> None:
        self._session.add(author)

    async def called(self, name: str) -> Author | None:
        found: Author | None = await self._session.scalar(select(Author).filter_by(name=name))
        return found


class Books:
    """Another one, of the same session."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def publish(self, author: Author, title: str) -> None:
        self._session.add(Book(title=title, author=author))
        await self._session.flush()


class UnitOfWork:
    """Rolls back what nobody has committed by the end of its block."""

    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    async def __aenter__(self) -> Self:
        self._session = self._twin.session(expire_on_commit=False)
        self.authors = Authors(self._session)
        self.books = Books(self._session)
        return self

    async def __aexit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.rollback()
        await self._session.close()

    async def commit(self) -> None:
        await self._session.commit()


def test_a_unit_of_work_class_with_repositories(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=4):
            async with UnitOfWork(twin) as unit:
                unit.authors.add(Author(name="Ada"))
                await unit.commit()
            async with UnitOfWork(twin) as unit:
                author = await unit.authors.called("Ada")
                assert author is not None
                await unit.books.publish(author, "Notes")
                await unit.books.publish(author, "Letters")
                await unit.commit()

    twin.run(story)


def test_a_unit_of_work_class_that_rolls_back_by_default(twin: Twin) -> None:
    async def fail() -> None:
        async with UnitOfWork(twin) as unit:
            await unit.books.publish(Author(name="Ada"), "Notes")
            raise OutOfStockError

    async def story() -> None:
        with silent(twin.factory, sessions=3, statements=2):
            async with UnitOfWork(twin) as unit:
                unit.authors.add(Author(name="Ada"))
            with pytest.raises(OutOfStockError):
                await fail()
            async with UnitOfWork(twin) as unit:
                assert await unit.authors.called("Ada") is None

    twin.run(story)


def test_services_that_are_given_the_session(twin: Twin) -> None:
    async def register(session: Any, name: str) -> Author:
        author = Author(name=name)
        session.add(author)
        await session.flush()
        return author

    async def publish(session: Any, author: Author, title: str) -> None:
        session.add(Book(title=title, author_id=author.id))

    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=3):
            async with beginning(twin) as session:
                ada, grace = await register(session, "Ada"), await register(session, "Grace")
                await publish(session, ada, "Notes")
                await publish(session, grace, "Compilers")

    twin.run(story)


# What PostgreSQL alone can.


@only_sync
@on_postgresql
def test_a_transaction_in_two_phases(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=3, statements=3):
            with twin.factory(twophase=True) as session:
                session.add(Author(name="Ada"))
                session.commit()
            with twin.factory(twophase=True) as session:
                session.add(Author(name="Grace"))
                session.prepare()
                session.commit()
            with twin.factory() as session:
                assert session.scalar(select(func.count()).select_from(Author)) == 2

    twin.run(story)

"""What the documentation of the findings promises never to be one, sentence by sentence."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, async_scoped_session
from sqlalchemy.orm import raiseload, scoped_session, selectinload

from tests.good_code.silence import only_async, only_sync, silent
from tests.library import Author, Essay, authors, keep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.orm import Session, SessionTransaction

    from tests.twins import Twin


async def change_much(session: Any) -> None:
    """Leave something of every kind unsaved: flushed and not, new, changed and deleted."""
    session.add(Author(name="Ada"))
    renamed, deleted, _ = (await session.scalars(select(Author).order_by(Author.id))).all()
    renamed.name = "Grace"
    await session.flush()
    session.add(Author(name="Mary"))
    deleted.biography = "unknown"
    await session.delete(deleted)


# A session joined to an outer transaction of its Connection may be closed with uncommitted changes.


@asynccontextmanager
async def outer_transaction(twin: Twin) -> AsyncIterator[Any]:
    if isinstance(twin.engine, AsyncEngine):
        async with twin.engine.connect() as connection, connection.begin() as transaction:
            yield connection
            await transaction.rollback()
    else:
        with twin.engine.connect() as plain, plain.begin() as outer:
            yield plain
            outer.rollback()


@pytest.mark.parametrize("mode", ["conditional_savepoint", "create_savepoint", "rollback_only"])
def test_a_session_joined_to_an_outer_transaction_is_closed(twin: Twin, mode: str) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        async with outer_transaction(twin) as connection:
            with silent(twin.factory, sessions=1, statements=3):
                async with twin.session(bind=connection, join_transaction_mode=mode) as session:
                    await change_much(session)

    twin.run(story)


# An exception leaving the block, or being handled where the session is closed, is a reason to
# discard.


def test_an_exception_leaves_the_block(twin: Twin) -> None:
    async def fail() -> None:
        async with twin.session() as session:
            await change_much(session)
            raise LookupError

    async def story() -> None:
        await keep(twin, *authors(2))
        with silent(twin.factory, sessions=1, statements=3), pytest.raises(LookupError):
            await fail()

    twin.run(story)


def test_an_exception_is_handled_where_the_session_is_closed(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with silent(twin.factory, sessions=1, statements=3):
            session = twin.session()
            try:
                await change_much(session)
                raise LookupError
            except LookupError:
                await session.close()

    twin.run(story)


def test_an_exception_passes_where_the_session_is_closed(twin: Twin) -> None:
    async def fail() -> None:
        session = twin.session()
        try:
            await change_much(session)
            raise LookupError
        finally:
            await session.close()

    async def story() -> None:
        await keep(twin, *authors(2))
        with (
            silent(twin.factory, sessions=1, statements=3),
            pytest.raises(LookupError),
        ):
            await fail()

    twin.run(story)


def test_a_generator_is_closed_before_its_end(twin: Twin) -> None:
    async def names() -> AsyncIterator[str]:
        async with twin.session() as session:
            await change_much(session)
            yield "Ada"
            await session.commit()

    async def story() -> None:
        await keep(twin, *authors(2))
        with silent(twin.factory, sessions=1, statements=3):
            named: Any = names()
            assert await anext(named) == "Ada"
            await named.aclose()

    twin.run(story)


# A transaction begun only by reading and ended by close is the normal end of a read.


@pytest.mark.parametrize("ending", ["close", "reset", "invalidate"])
def test_a_transaction_that_only_reads_is_ended_by_close(twin: Twin, ending: str) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with silent(twin.factory, sessions=1, statements=2):
            session = twin.session()
            found = (await session.scalars(select(Author))).all()
            await session.get_one(Author, found[0].id)
            await session.refresh(found[1])
            await getattr(session, ending)()

    twin.run(story)


# Sequential hand-over between threads or tasks.


@only_sync
def test_a_sequential_hand_over_between_threads(twin: Twin) -> None:
    async def story() -> None:
        def work(name: str) -> None:
            session.add(Author(name=name))
            session.commit()
            session.scalars(select(Author).where(Author.name == name)).one()

        with silent(twin.factory, sessions=1, statements=10):
            session = twin.factory()
            for number in range(5):
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(work, f"author {number}").result()
            session.close()

    twin.run(story)


@only_async
def test_a_sequential_hand_over_between_tasks(twin: Twin) -> None:
    async def story() -> None:
        async def work(name: str) -> None:
            session.add(Author(name=name))
            await session.commit()
            (await session.scalars(select(Author).where(Author.name == name))).one()

        with silent(twin.factory, sessions=1, statements=10):
            session = twin.session()
            for number in range(5):
                await asyncio.create_task(work(f"author {number}"))
            await session.close()

    twin.run(story)


# A session never used.


def test_a_session_never_used(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=4, statements=0) as captured:
            async with twin.session():
                pass
            await twin.session().close()
            committed = twin.session()
            await committed.rollback()
            await committed.close()
            forgotten = twin.session()
            del forgotten
            gc.collect()
        assert {summary.outcome for summary in captured.sessions} == {"unused"}

    twin.run(story)


# The first four lazy loads.


def test_the_first_four_lazy_loads(twin: Twin) -> None:
    def read(session: Session) -> None:
        for author in session.scalars(select(Author)).all()[:4]:
            assert len(author.books) == 2
        for author in session.scalars(select(Author)).all()[4:8]:
            assert author.biography == ""
        for essay in session.scalars(select(Essay)).all():
            assert essay.text == ""

    async def story() -> None:
        essays = [Essay(title=f"essay {number}") for number in range(4)]
        await keep(twin, *authors(8, books_each=2), *essays)
        with silent(twin.factory, sessions=1, statements=15) as captured:
            async with twin.session() as session:
                await session.run_sync(read)
        (summary,) = captured.sessions
        assert summary.lazy_loads == {"relationship": 4, "deferred": 8}

    twin.run(story)


# Autoflush with nothing to flush.


def test_autoflush_with_nothing_to_flush(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=21) as captured:
            async with twin.session() as session:
                session.add(Author(name="Ada"))
                await session.flush()
                for number in range(20):
                    page = select(Author).order_by(Author.id).limit(5).offset(5 * number)
                    await session.scalars(page)
                await session.commit()
        (summary,) = captured.sessions
        assert summary.flushes == 1

    twin.run(story)


# Savepoints that a test fixture restarts.


@only_sync
def test_savepoints_that_a_test_fixture_restarts(twin: Twin) -> None:
    async def story() -> None:
        async with outer_transaction(twin) as connection:
            with silent(twin.factory, sessions=1, statements=180) as captured:
                session = twin.factory(bind=connection)
                session.begin_nested()

                @event.listens_for(session, "after_transaction_end")
                def restart(session: Session, ended: SessionTransaction) -> None:
                    if ended.nested and not session.in_nested_transaction():
                        session.begin_nested()

                for number in range(60):
                    session.add(Author(name=f"author {number}"))
                    session.get_nested_transaction().commit()
                session.close()
        (summary,) = captured.sessions
        assert summary.savepoints > 60

    twin.run(story)


# `scoped_session` reused after `remove()`.


@only_sync
def test_a_scoped_session_reused_after_remove(twin: Twin) -> None:
    async def story() -> None:
        scoped = scoped_session(twin.factory)
        with silent(scoped, sessions=12, statements=24):
            for number in range(12):
                scoped.add(Author(name=f"author {number}"))
                scoped.commit()
                scoped.scalars(select(Author)).all()
                scoped.remove()

    twin.run(story)


@only_async
def test_an_async_scoped_session_reused_after_remove(twin: Twin) -> None:
    async def story() -> None:
        scoped = async_scoped_session(twin.factory, asyncio.current_task)
        with silent(scoped, sessions=12, statements=24):
            for number in range(12):
                scoped.add(Author(name=f"author {number}"))
                await scoped.commit()
                (await scoped.scalars(select(Author))).all()
                await scoped.remove()

    twin.run(story)


# An object detached and only read where it is loaded.


def test_an_object_detached_and_only_read_where_it_is_loaded(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(20, books_each=2))
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session(expire_on_commit=False) as session:
                statement = select(Author).options(selectinload(Author.books))
                found = (await session.scalars(statement)).all()
                await session.commit()
            for author in found:
                author.name = author.name.upper()
                assert (author.name, len(author.books)) == (f"AUTHOR {author.id - 1}", 2)

    twin.run(story)


# `raiseload` errors: they are somebody's decision (count them, name them in the timeline).


@pytest.mark.parametrize("sql_only", [False, True])
def test_raiseload_errors(twin: Twin, sql_only: bool) -> None:
    refusing = select(Author).options(raiseload(Author.books, sql_only=sql_only))

    async def story() -> None:
        await keep(twin, *authors(12, books_each=1))
        with silent(twin.factory, sessions=1) as captured:
            async with twin.session() as session:
                for author in (await session.scalars(refusing)).all():
                    with pytest.raises(InvalidRequestError, match=r"raise"):
                        author.books  # noqa: B018 - reading it is what is refused
        (summary,) = captured.sessions
        (step,) = [step for step in summary.timeline if step.verb == "refused"]
        assert (step.subject, step.count) == ("Author.books", 12)

    twin.run(story)

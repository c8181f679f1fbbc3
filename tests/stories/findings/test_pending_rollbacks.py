"""Stories of sessions that are used after a failed flush, and of those that are rolled back."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import (
    IntegrityError,
    InvalidRequestError,
    PendingRollbackError,
    SQLAlchemyError,
)

from session_tracer.testing import Captured, capture
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Above, Due, assert_found
from tests.stories.findings.remedies import pasted
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from session_tracer import CallSite
    from tests.twins import Twin


async def tell(twin: Twin, work: Callable[[Any], Awaitable[object]]) -> Captured:
    with capture(twin.factory) as captured:
        async with twin.session() as session:  # <- opened
            await work(session)
    return captured


def note() -> None:
    """What a handler does about it: nothing."""


async def swallow_here(session: Any) -> None:
    session.add(Author(name=None))
    try:
        await session.flush()  # <- flushed
    except IntegrityError:  # <- caught
        note()
    with pytest.raises(PendingRollbackError):
        await session.scalars(select(Author))  # <- used


async def swallow_a_commits(session: Any) -> None:
    try:
        session.add(Author(name=None))
        await session.commit()  # <- flushed
    except SQLAlchemyError as error:  # <- caught
        del error
    with pytest.raises(PendingRollbackError):
        await session.scalars(select(Author))  # <- used


async def save(session: Any, author: Author) -> None:
    try:
        session.add(author)
        await session.flush()  # <- flushed
    except KeyError:
        note()
    except IntegrityError:
        note()
        raise


async def save_or_not(session: Any, author: Author) -> bool:
    try:
        await save(session, author)
    except (IntegrityError, LookupError):  # <- caught
        return False
    return True


async def swallow_within(session: Any) -> None:
    assert not await save_or_not(session, Author(name=None))
    with pytest.raises(PendingRollbackError):
        await session.scalars(select(Author))  # <- used


async def swallow_in_a_loop(session: Any) -> None:
    for name in (None, "new"):
        try:
            await add_and_flush(session, name)
        except PendingRollbackError:
            session.expunge_all()
        except Exception:  # <- caught
            continue


async def add_and_flush(session: Any, name: str | None) -> None:
    session.add(Author(name=name))
    await session.flush()  # <- flushed # <- used


async def suppress_it(session: Any) -> None:
    session.add(Author(name=None))
    with suppress(SQLAlchemyError):  # <- caught
        await session.scalars(select(Book))  # <- flushed
    with pytest.raises(PendingRollbackError):
        await session.get(Author, 7)  # <- used


@contextmanager
def forgiving() -> Iterator[None]:
    with suppress(IntegrityError):
        yield


async def swallow_by_a_context_manager(session: Any) -> None:
    session.add(Author(name=None))
    with forgiving():
        await session.flush()  # <- flushed
    with pytest.raises(PendingRollbackError):
        await session.connection()  # <- used


async def run_and_swallow(session: Any) -> None:
    def work(plain: Any) -> None:
        plain.add(Author(name=None))
        plain.flush()

    try:
        await session.run_sync(work)
    except IntegrityError:  # <- caught
        note()
    with pytest.raises(PendingRollbackError):
        await session.scalars(select(Author))  # <- used


async def rename(session: Any) -> None:
    session.add(Author(name=None))
    try:
        await session.flush()  # <- flushed
    except IntegrityError as error:  # <- caught
        with pytest.raises(PendingRollbackError):
            await session.scalars(select(Author))  # <- used
        await session.rollback()
        raise LookupError("no such name") from error


async def use_before_the_rollback(session: Any) -> None:
    with suppress(LookupError):
        await rename(session)


SWALLOWED: dict[str, tuple[Any, Any, Any, Any]] = {
    "in the same function": (swallow_here, swallow_here, swallow_here, swallow_here),
    "at a commit": (swallow_a_commits, swallow_a_commits, swallow_a_commits, swallow_a_commits),
    "in an inner function": (swallow_within, save, save_or_not, swallow_within),
    "in a loop": (swallow_in_a_loop, add_and_flush, swallow_in_a_loop, add_and_flush),
    "in a handler that goes on": (use_before_the_rollback, rename, rename, rename),
    "by suppress()": (suppress_it, suppress_it, suppress_it, suppress_it),
    "by what the source does not tell": (
        swallow_by_a_context_manager,
        swallow_by_a_context_manager,
        None,
        swallow_by_a_context_manager,
    ),
}


SET = "set Author.name before the flush"
QUERY = "with session.no_autoflush: around the query, which flushed an incomplete object"


def failed(site: CallSite, remedy: str = SET) -> Due:
    return Due(
        id="failed-flush",
        site=site,
        opened=marked(tell, "<- opened"),
        remedy=remedy,
        entity="Author",
    )


@pytest.mark.parametrize("how", SWALLOWED)
def test_a_failure_that_is_swallowed(twin: Twin, how: str) -> None:
    work, flushed, caught, used = SWALLOWED[how]

    async def story() -> None:
        await keep(twin, *authors(1))
        captured = await tell(twin, work)
        awaited = "await " if twin.is_async else ""
        rollback = f"{awaited}session.rollback()"
        if caught is None:
            swallowed, where = None, "in the except block that caught the failure"
        else:
            swallowed = str(marked(caught, "<- caught"))
            where = f"at {swallowed}"
        pending = Due(
            id="pending-rollback",
            site=marked(used, "<- used"),
            opened=marked(tell, "<- opened"),
            remedy=f"{rollback} {where}",
            evidence={
                "error_type": "sqlalchemy.exc.IntegrityError",
                "failed_ago_ms": Above(0),
                "failed_at": str(marked(flushed, "<- flushed")),
                "swallowed_at": swallowed,
            },
        )
        remedy = QUERY if work is suppress_it else SET
        assert_found(captured, failed(marked(flushed, "<- flushed"), remedy), pending)

    twin.run(story)


def test_a_failure_that_is_swallowed_outside_of_run_sync(twin: Twin) -> None:
    async def story() -> None:
        captured = await tell(twin, run_and_swallow)
        assert [finding.id for finding in captured.findings] == ["failed-flush", "pending-rollback"]
        swallowed = marked(run_and_swallow, "<- caught")
        assert captured.findings[1].evidence["swallowed_at"] == str(swallowed)
        assert captured.findings[1].site == marked(run_and_swallow, "<- used")

    twin.run(story)


# In a block, SQLAlchemy has another error for it: the block is to be left first.


async def swallow_in_a_block(session: Any) -> None:
    async with session.begin():
        session.add(Author(name=None))
        try:
            await session.flush()  # <- flushed
        except IntegrityError:  # <- caught
            note()
        with pytest.raises(InvalidRequestError, match="inside context manager"):
            await session.scalars(select(Author))  # <- used


async def swallow_in_a_savepoints_block(session: Any) -> None:
    async with session.begin_nested():
        session.add(Author(name=None))
        try:
            await session.flush()  # <- flushed
        except IntegrityError:  # <- caught
            note()
        with pytest.raises(InvalidRequestError, match="inside context manager"):
            await session.scalars(select(Author))  # <- used


async def swallow_after_a_savepoint(session: Any) -> None:
    savepoint = await begun(session)
    session.add(Author(name=None))
    try:
        await session.flush()  # <- flushed
    except IntegrityError:  # <- caught
        note()
    with pytest.raises(PendingRollbackError):
        await session.scalars(select(Author))  # <- used
    await savepoint.rollback()
    assert (await session.scalars(select(Author))).all() == []


async def begun(session: Any) -> Any:
    """A savepoint that is no block."""
    savepoint = session.begin_nested()
    return await savepoint if hasattr(savepoint, "__await__") else savepoint


IN_BLOCKS = {
    "a transaction": (
        swallow_in_a_block,
        "catch IntegrityError outside of the transaction's block, not inside it",
    ),
    "a savepoint": (
        swallow_in_a_savepoints_block,
        "catch IntegrityError outside of the savepoint's block, not inside it",
    ),
    "a savepoint without a block": (
        swallow_after_a_savepoint,
        "{}savepoint.rollback() at {}",
    ),
}


@on_each_database
@pytest.mark.parametrize("what", IN_BLOCKS)
def test_a_failure_that_is_swallowed_in(twin: Twin, what: str) -> None:
    how, then = IN_BLOCKS[what]

    async def story() -> None:
        captured = await tell(twin, how)
        awaited = "await " if twin.is_async else ""
        caught = str(marked(how, "<- caught"))
        pending = Due(
            id="pending-rollback",
            site=marked(how, "<- used"),
            opened=marked(tell, "<- opened"),
            remedy=then.format(awaited, caught),
            evidence={"swallowed_at": caught},
        )
        assert_found(captured, failed(marked(how, "<- flushed")), pending)

    twin.run(story)


async def use_it_often(session: Any) -> None:
    session.add(Author(name=None))
    with suppress(IntegrityError):
        await session.flush()
    for _ in range(3):
        with suppress(PendingRollbackError):
            await session.scalars(select(Author))
    await session.rollback()
    session.add(Author(name=None))
    with suppress(IntegrityError):
        await session.flush()
    with suppress(PendingRollbackError):
        await session.commit()


def test_each_failure_is_reported_once(twin: Twin) -> None:
    async def story() -> None:
        captured = await tell(twin, use_it_often)
        assert [finding.id for finding in captured.findings] == [
            "failed-flush",
            "pending-rollback",
        ] * 2

    twin.run(story)


# Near-misses: the flush fails, and the session is rolled back before it is used again.


async def roll_back_where_it_is_caught(session: Any) -> None:
    session.add(Author(name=None))
    try:
        await session.flush()
    except IntegrityError:
        await pasted("session.rollback()", session=session)
    assert (await session.scalars(select(Author))).all() == []


async def catch_around_a_savepoints_block(session: Any) -> None:
    try:
        async with session.begin_nested():
            session.add(Author(name=None))
            await session.flush()
    except IntegrityError:
        note()
    await session.scalars(select(Author))


async def catch_around_a_transactions_block(session: Any) -> None:
    try:
        async with session.begin():
            session.add(Author(name=None))
            await session.flush()
    except IntegrityError:
        note()
    await session.scalars(select(Author))


async def roll_back_later(session: Any) -> None:
    session.add(Author(name=None))
    with suppress(IntegrityError):
        await session.flush()
    session.add(Author(name="new"))
    session.expunge_all()
    await session.rollback()
    session.add(Author(name="another"))
    await session.commit()


async def close_and_use_again(session: Any) -> None:
    session.add(Author(name=None))
    with suppress(IntegrityError):
        await session.flush()
    await session.rollback()
    await session.close()


@pytest.mark.parametrize(
    "how",
    [
        roll_back_where_it_is_caught,
        roll_back_later,
        close_and_use_again,
        catch_around_a_savepoints_block,
        catch_around_a_transactions_block,
    ],
)
def test_a_failure_that_is_rolled_back(twin: Twin, how: Any) -> None:
    async def story() -> None:
        assert_found(await tell(twin, how))

    twin.run(story)

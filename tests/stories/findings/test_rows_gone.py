"""Stories of objects without a row to load again, and of code that knows of it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, func, inspect, select, text, update
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError
from sqlalchemy.orm.exc import ObjectDeletedError

from session_tracer.testing import Captured, capture
from tests.good_code.silence import assert_silent, only_sync
from tests.library import Author, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.twins import Twin


async def traced(twin: Twin, work: Callable[[Any], Awaitable[object]], **settings: Any) -> Captured:
    await keep(twin, *authors(2))
    with capture(twin.factory, ignore={"discarded-changes"}, **settings) as captured:
        async with twin.session() as session:  # <- opened
            with suppress(SQLAlchemyError):
                await work(session)
    return captured


async def first(session: Any) -> Any:
    return (await session.scalars(select(Author).order_by(Author.id))).first()  # <- loaded


async def remove_row(session: Any) -> None:
    """As another transaction would; SQLite has one writer at a time."""
    await session.execute(text("DELETE FROM authors"))


def read(author: Any) -> str:
    name: str = author.name  # <- read
    return name


# What was there before. Under asyncio an expired attribute can only be read in run_sync().


async def read_after_a_commit(session: Any) -> None:
    author = await first(session)
    await session.commit()  # <- expired
    await remove_row(session)
    await session.run_sync(lambda _: read(author))


async def read_after_an_expire(session: Any) -> None:
    author = await first(session)
    await remove_row(session)
    session.expire(author)  # <- expired
    await session.run_sync(lambda _: read(author))


async def read_after_an_expire_all(session: Any) -> None:
    author = await first(session)
    await remove_row(session)
    session.expire_all()  # <- expired
    await session.run_sync(lambda _: read(author))


async def read_after_a_rollback(session: Any) -> None:
    author = await first(session)
    await session.rollback()  # <- expired
    await remove_row(session)
    await session.run_sync(lambda _: read(author))


READ: dict[str, tuple[Any, str]] = {
    "a commit()": (read_after_a_commit, "the commit"),
    "an expire()": (read_after_an_expire, "expire()"),
    "an expire_all()": (read_after_an_expire_all, "expire_all()"),
    "a rollback()": (read_after_a_rollback, "the rollback"),
}


@pytest.mark.parametrize(("work", "what"), READ.values(), ids=READ)
def test_a_read_names_what_had_expired_the_object(twin: Twin, work: Any, what: str) -> None:
    async def story() -> None:
        captured = await traced(twin, work)
        wait = "await " if twin.is_async else ""
        expired = marked(work, "<- expired")
        ask = (
            f"{wait}session.get(Author, inspect(author).identity) before the object is read: "
            "it returns None if the row is gone"
        )
        keep_values = (
            f"{'async_' if twin.is_async else ''}sessionmaker(expire_on_commit=False), "
            f"or read the Author before the commit at {expired}"
        )
        is_commit = what == "the commit"
        assert_found(
            captured,
            Due(
                id="row-gone",
                site=marked(read, "<- read"),
                opened=marked(traced, "<- opened"),
                remedy=keep_values if is_commit else ask,
                entity="Author",
                evidence={
                    "reason": "gone",
                    "expired_at": str(expired),
                    "loaded_at": str(marked(first, "<- loaded")),
                    "alternatives": [ask] if is_commit else None,
                },
            ),
        )
        (finding,) = captured.findings
        assert finding.message == (
            f"the Author object was read after {what} at {expired} had expired it, "
            "and its row is gone: it was deleted, or its key changed"
        )

    twin.run(story)


async def refresh_what_is_gone(session: Any) -> None:
    author = await first(session)
    await remove_row(session)
    await session.refresh(author)  # <- refreshed


def test_a_refresh_that_finds_no_row_is_reported(twin: Twin) -> None:
    async def story() -> None:
        captured = await traced(twin, refresh_what_is_gone)
        wait = "await " if twin.is_async else ""
        assert_found(
            captured,
            Due(
                id="row-gone",
                site=marked(refresh_what_is_gone, "<- refreshed"),
                opened=marked(traced, "<- opened"),
                remedy=f"{wait}session.get(Author, inspect(author).identity, "
                "populate_existing=True), which returns None if the row is gone",
                entity="Author",
                evidence={"reason": "gone", "alternatives": None},
            ),
        )

    twin.run(story)


# What is not persistent.


async def refresh_what_was_merged(session: Any) -> None:
    author = Author(name="new")
    await session.merge(author)  # <- cause
    await session.commit()
    await session.refresh(author)  # <- refused


async def refresh_what_was_rolled_back(session: Any) -> None:
    author = Author(name="new")
    session.add(author)
    await session.flush()
    await session.rollback()  # <- cause
    await session.refresh(author)  # <- refused


async def refresh_what_was_rolled_back_unflushed(session: Any) -> None:
    author = Author(name="new")
    session.add(author)
    await session.rollback()  # <- cause
    await session.refresh(author)  # <- refused


async def refresh_what_a_savepoint_undid(session: Any) -> None:
    author = Author(name="new")
    with suppress(LookupError):
        async with session.begin_nested():
            session.add(author)
            await session.flush()
            raise LookupError  # <- cause
    await session.refresh(author)  # <- refused


async def refresh_what_is_pending(session: Any) -> None:
    author = Author(name="new")
    session.add(author)
    await session.refresh(author)  # <- refused


async def refresh_what_was_never_added(session: Any) -> None:
    await session.refresh(Author(name="new"))  # <- refused


async def expire_what_was_never_added(session: Any) -> None:
    session.expire(Author(name="new"))  # <- refused


async def refresh_what_was_deleted(session: Any) -> None:
    author = await first(session)
    await session.delete(author)
    await session.flush()  # <- cause
    await session.refresh(author)  # <- refused


async def refresh_what_was_expunged(session: Any) -> None:
    author = await first(session)
    session.expunge(author)  # <- cause
    await session.refresh(author)  # <- refused


async def refresh_what_was_expunged_unflushed(session: Any) -> None:
    author = Author(name="new")
    session.add(author)
    session.expunge(author)
    await session.refresh(author)  # <- refused


NOT_PERSISTENT: dict[str, tuple[Any, str, str, str]] = {
    "an argument of merge()": (
        refresh_what_was_merged,
        "merged",
        (
            "refresh() was refused: the Author object is the one that merge() at {cause} copied, "
            "and not the session's own"
        ),
        "author = {wait}session.merge(author) at {cause}: what it returns is the session's object",
    ),
    "what a rollback undid": (
        refresh_what_was_rolled_back,
        "rolled_back",
        (
            "refresh() was refused: the Author object has no row, "
            "because the rollback at {cause} undid its INSERT"
        ),
        "session.add(author) and {wait}session.flush() again after the rollback",
    ),
    "what a rollback took out": (
        refresh_what_was_rolled_back_unflushed,
        "rolled_back",
        (
            "refresh() was refused: the Author object has no row, "
            "because the rollback at {cause} undid its INSERT"
        ),
        "session.add(author) and {wait}session.flush() again after the rollback",
    ),
    "what is not flushed": (
        refresh_what_is_pending,
        "pending",
        (
            "refresh() was refused: the Author object has no row, "
            "because it was added and is not flushed"
        ),
        "{wait}session.flush() before refresh()",
    ),
    "what was never added": (
        refresh_what_was_never_added,
        "never_added",
        "refresh() was refused: the Author object was never added to the session",
        "session.add(author) and {wait}session.flush() before refresh()",
    ),
    "an expire() of what was never added": (
        expire_what_was_never_added,
        "never_added",
        "expire() was refused: the Author object was never added to the session",
        "session.add(author) and {wait}session.flush() before expire()",
    ),
    "what was deleted": (
        refresh_what_was_deleted,
        "deleted",
        (
            "refresh() was refused: the Author object has no row, because the flush at {cause} "
            "deleted it"
        ),
        "leave out refresh()",
    ),
    "what was expunged": (
        refresh_what_was_expunged,
        "detached",
        "refresh() was refused: the Author object is detached: it left its session at {cause}",
        "author = {wait}session.merge(author)",
    ),
    "what was expunged before it was flushed": (
        refresh_what_was_expunged_unflushed,
        "never_added",
        "refresh() was refused: the Author object was never added to the session",
        "session.add(author) and {wait}session.flush() before refresh()",
    ),
}


@pytest.mark.parametrize(
    ("work", "reason", "message", "remedy"), NOT_PERSISTENT.values(), ids=NOT_PERSISTENT
)
def test_a_refresh_of_what_is_not_persistent_names_the_reason(
    twin: Twin, work: Any, reason: str, message: str, remedy: str
) -> None:
    async def story() -> None:
        captured = await traced(twin, work)
        has_cause = "{cause}" in message
        words = {
            "wait": "await " if twin.is_async else "",
            "cause": marked(work, "<- cause") if has_cause else "",
        }
        (finding,) = captured.findings
        assert finding.message == message.format(**words)
        assert finding.remedy == remedy.format(**words)
        assert (finding.id, finding.severity, finding.entity) == ("row-gone", "error", "Author")
        assert finding.site == marked(work, "<- refused")
        assert finding.evidence["reason"] == reason
        assert finding.evidence.get("cause_at") == (str(words["cause"]) if has_cause else None)

    twin.run(story)


def test_what_the_rollback_of_a_savepoint_undid_is_told_from_what_was_never_added(
    twin: Twin,
) -> None:
    async def story() -> None:
        captured = await traced(twin, refresh_what_a_savepoint_undid)
        (finding,) = captured.findings
        assert finding.evidence["reason"] == "rolled_back"
        assert finding.site == marked(refresh_what_a_savepoint_undid, "<- refused")

    twin.run(story)


@only_sync
def test_an_object_of_another_session_is_not_this_sessions_to_refresh(twin: Twin) -> None:
    async def story() -> None:
        async def work(session: Any) -> None:
            async with twin.session() as other:
                author = await first(other)
                await session.refresh(author)  # <- refused

        captured = await traced(twin, work)
        elsewhere = [one for one in captured.findings if one.id == "row-gone"]
        assert [(one.site, one.evidence["reason"]) for one in elsewhere] == [
            (marked(work, "<- refused"), "elsewhere")
        ]

    twin.run(story)


# The remedies.


@only_sync
def test_with_a_merge_the_object_of_another_session_is_refreshed(twin: Twin) -> None:
    async def story() -> None:
        names = []

        async def work(session: Any) -> None:
            async with twin.session() as other:
                author = await first(other)
                await other.rollback()
            author = await session.merge(author)
            await session.refresh(author)
            names.append(read(author))

        captured = await traced(twin, work)
        assert names == ["author 0"]
        assert_silent(captured, sessions=2)

    twin.run(story)


async def delete_and_leave_out_the_refresh(session: Any) -> str:
    author = await first(session)
    await session.delete(author)
    await session.flush()
    await session.commit()
    return "gone" if await session.get(Author, inspect(author).identity) is None else "there"


async def keep_values(session: Any) -> str:
    author = await first(session)
    session.sync_session.expire_on_commit = False
    await session.commit()
    await remove_row(session)
    return read(author)


async def read_before_the_commit(session: Any) -> str:
    author = await first(session)
    name = read(author)
    await session.commit()
    await remove_row(session)
    return name


async def ask_for_the_row(session: Any) -> str:
    author = await first(session)
    await session.commit()
    await remove_row(session)
    author = await session.get(Author, inspect(author).identity)
    return "gone" if author is None else read(author)


async def ask_instead_of_a_refresh(session: Any) -> str:
    author = await first(session)
    await remove_row(session)
    author = await session.get(Author, inspect(author).identity, populate_existing=True)
    return "gone" if author is None else read(author)


async def keep_what_merge_returns(session: Any) -> str:
    author = Author(name="new")
    author = await session.merge(author)
    await session.commit()
    await session.refresh(author)
    return read(author)


async def add_again(session: Any) -> str:
    author = Author(name="new")
    session.add(author)
    await session.flush()
    await session.rollback()
    session.add(author)
    await session.flush()
    await session.refresh(author)
    return read(author)


async def flush_first(session: Any) -> str:
    author = Author(name="new")
    session.add(author)
    await session.flush()
    await session.refresh(author)
    return read(author)


async def merge_what_was_expunged(session: Any) -> str:
    author = await first(session)
    session.expunge(author)
    author = await session.merge(author)
    await session.refresh(author)
    return read(author)


@pytest.mark.parametrize(
    ("work", "result"),
    [
        (keep_values, "author 0"),
        (read_before_the_commit, "author 0"),
        (ask_for_the_row, "gone"),
        (ask_instead_of_a_refresh, "gone"),
        (keep_what_merge_returns, "new"),
        (add_again, "new"),
        (flush_first, "new"),
        (merge_what_was_expunged, "author 0"),
        (delete_and_leave_out_the_refresh, "gone"),
    ],
    ids=lambda work: getattr(work, "__name__", None),
)
def test_with_a_remedy_it_works_and_nothing_is_reported(twin: Twin, work: Any, result: str) -> None:
    async def story() -> None:
        results = []

        async def keeping(session: Any) -> None:
            results.append(await work(session))

        captured = await traced(twin, keeping)
        assert results == [result]
        assert_silent(captured, sessions=1)

    twin.run(story)


# Code that knows of it.


async def get_what_is_gone(session: Any) -> None:
    author = await first(session)
    await remove_row(session)
    session.expire(author)
    assert await session.get(Author, inspect(author).identity) is None


async def expect_that_it_is_deleted(session: Any) -> None:
    author = await first(session)
    await session.commit()
    await remove_row(session)
    try:
        await session.run_sync(lambda _: read(author))
    except ObjectDeletedError:
        await session.rollback()


async def expect_that_a_refresh_fails(session: Any) -> None:
    author = await first(session)
    await remove_row(session)
    try:
        await session.refresh(author)
    except InvalidRequestError:
        await session.rollback()


async def flush_what_is_gone(session: Any) -> None:
    """The book's author is expired, and looked for as the book is written."""
    author = await first(session)
    await session.execute(update(Author).values(biography="long"))
    await session.delete(author)
    await session.flush()


async def read_what_is_there(session: Any) -> None:
    author = await first(session)
    await session.commit()
    await session.execute(delete(Author).where(Author.name == "author 1"))
    await session.run_sync(lambda _: read(author))
    assert await session.scalar(select(func.count(Author.id))) == 1


@pytest.mark.parametrize(
    "work",
    [
        get_what_is_gone,
        expect_that_it_is_deleted,
        expect_that_a_refresh_fails,
        flush_what_is_gone,
        read_what_is_there,
    ],
    ids=lambda work: work.__name__,
)
def test_code_that_expects_it_is_not_reported(twin: Twin, work: Any) -> None:
    async def story() -> None:
        assert_silent(await traced(twin, work), sessions=1)

    twin.run(story)


async def read_many_times(session: Any) -> None:
    author = await first(session)
    await session.commit()
    await remove_row(session)
    for _ in range(3):
        with suppress(SQLAlchemyError):
            await session.run_sync(lambda _: read(author))


def test_one_line_is_reported_once(twin: Twin) -> None:
    async def story() -> None:
        captured = await traced(twin, read_many_times)
        assert [finding.id for finding in captured.findings] == ["row-gone"]

    twin.run(story)


def test_a_key_is_reported_only_where_keys_may_be(twin: Twin) -> None:
    async def story() -> None:
        captured = await traced(twin, refresh_what_is_gone, record_identity=True)
        (finding,) = captured.findings
        assert finding.evidence["identity"] == "1"

    twin.run(story)

"""Stories of transactions that SQLAlchemy refuses to begin or to use, and of those it accepts."""

from __future__ import annotations

import unittest
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError

from session_tracer.testing import Captured, capture
from tests.good_code.silence import assert_silent, beginning, only_sync
from tests.library import Author, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.orm import Session

    from session_tracer import CallSite
    from tests.twins import Twin


async def traced(twin: Twin, work: Callable[[Any], Awaitable[object]]) -> Captured:
    await keep(twin, *authors(2))
    with capture(twin.factory, ignore={"discarded-changes"}) as captured:
        async with twin.session() as session:  # <- opened
            with suppress(SQLAlchemyError):
                await work(session)
    return captured


# begin() during a transaction.


async def begin_after_a_read(session: Any) -> None:
    (await session.scalars(select(Author))).all()  # <- began
    async with session.begin():  # <- refused
        pass


async def begin_after_an_add(session: Any) -> None:
    session.add(Author(name="new"))  # <- began
    async with session.begin():  # <- refused
        pass


async def find(session: Any) -> Author:
    found: Author = (await session.scalars(select(Author).limit(1))).one()  # <- began
    return found


async def begin_after_a_read_elsewhere(session: Any) -> None:
    author = await find(session)
    async with session.begin():  # <- refused
        author.biography = "long"


async def begin_after_a_commit_and_a_read(session: Any) -> None:
    author = (await session.scalars(select(Author).limit(1))).one()
    await session.commit()
    await session.refresh(author)  # <- began
    async with session.begin():  # <- refused
        pass


async def begin_in_a_block(session: Any) -> None:
    async with session.begin():  # <- began
        await enter(session)


BY_USE: dict[str, tuple[Any, Any]] = {
    "a SELECT": (begin_after_a_read, begin_after_a_read),
    "an add()": (begin_after_an_add, begin_after_an_add),
    "another function": (begin_after_a_read_elsewhere, find),
    "a refresh() after a commit()": (begin_after_a_commit_and_a_read,) * 2,
}


@pytest.mark.parametrize(("work", "beginner"), BY_USE.values(), ids=BY_USE)
def test_a_begin_names_the_line_that_has_begun_the_transaction(
    twin: Twin, work: Any, beginner: Any
) -> None:
    async def story() -> None:
        captured = await traced(twin, work)
        began = marked(beginner, "<- began")
        commit = f"{'await ' if twin.is_async else 'call '}session.commit()"
        assert_found(
            captured,
            Due(
                id="refused-transaction",
                site=marked(work, "<- refused"),
                opened=marked(traced, "<- opened"),
                remedy=f"begin the block of session.begin() before {began}",
                evidence={
                    "began_at": str(began),
                    "ended_at": None,
                    "alternatives": [f"leave out this begin(), and {commit} at the end"],
                },
            ),
        )

    twin.run(story)


def test_a_begin_in_a_block_names_the_block(twin: Twin) -> None:
    async def story() -> None:
        captured = await traced(twin, begin_in_a_block)
        began = marked(begin_in_a_block, "<- began")
        block = f"{'async ' if twin.is_async else ''}with session.begin_nested():"
        assert_found(
            captured,
            Due(
                id="refused-transaction",
                site=marked(enter, "<- refused"),
                opened=marked(traced, "<- opened"),
                remedy=f"leave out this begin(): the block at {began} commits at its end",
                evidence={"alternatives": [f"{block}  # a savepoint in that transaction"]},
            ),
        )

    twin.run(story)


# The remedies.


async def read_in_the_block(session: Any) -> None:
    async with session.begin():
        author = (await session.scalars(select(Author).order_by(Author.id))).first()
        author.biography = "long"


async def read_and_commit(session: Any) -> None:
    author = (await session.scalars(select(Author).order_by(Author.id))).first()
    author.biography = "long"
    await session.commit()


async def let_the_outer_block_commit(session: Any) -> None:
    async with session.begin():
        await read_and_change(session)


async def read_and_change(session: Any) -> None:
    author = (await session.scalars(select(Author).order_by(Author.id))).first()
    author.biography = "long"


async def begin_a_savepoint(session: Any) -> None:
    async with session.begin(), session.begin_nested():
        await read_and_change(session)


@pytest.mark.parametrize(
    "work",
    [read_in_the_block, read_and_commit, let_the_outer_block_commit, begin_a_savepoint],
    ids=lambda work: work.__name__,
)
def test_with_a_remedy_it_is_written_and_nothing_is_reported(twin: Twin, work: Any) -> None:
    async def story() -> None:
        captured = await traced(twin, work)
        assert_silent(captured, sessions=1)
        async with twin.session() as session:
            query = select(func.count()).where(Author.biography == "long")
            assert await session.scalar(query) == 1

    twin.run(story)


# The block of a transaction that has ended.


async def commit_in_a_block(session: Any) -> None:
    async with session.begin():  # <- began
        session.add(Author(name="new"))
        await session.commit()  # <- ended
        (await session.scalars(select(Author))).all()  # <- refused


async def rollback_in_a_block(session: Any) -> None:
    async with session.begin():  # <- began
        session.add(Author(name="new"))
        await session.flush()
        await session.rollback()  # <- ended
        session.add(Author(name="newer"))  # <- refused


async def close_in_a_block(session: Any) -> None:
    async with session.begin():  # <- began
        (await session.scalars(select(Author))).all()
        await session.close()  # <- ended
        (await session.scalars(select(Author))).all()  # <- refused


async def commit_in_a_savepoints_block(session: Any) -> None:
    session.add(Author(name="new"))
    async with session.begin_nested():  # <- began
        session.add(Author(name="newer"))
        await session.commit()  # <- ended
        (await session.scalars(select(Author))).all()  # <- refused


async def commit_in_an_inner_savepoints_block(session: Any) -> None:
    async with session.begin(), session.begin_nested():
        async with session.begin_nested():
            pass
        async with session.begin_nested():  # <- began
            await finish(session)
            (await session.scalars(select(Author))).all()  # <- refused


async def finish(session: Any) -> None:
    await session.commit()  # <- ended


def roll_back_the_savepoint(session: Session) -> None:
    savepoint = session.get_nested_transaction()
    assert savepoint is not None
    savepoint.rollback()  # <- ended


async def roll_a_savepoint_back_in_its_block(session: Any) -> None:
    session.add(Author(name="new"))
    async with session.begin_nested():  # <- began
        await session.run_sync(roll_back_the_savepoint)
        (await session.scalars(select(Author))).all()  # <- refused


IN_BLOCKS: dict[str, tuple[Any, Any, str, str]] = {
    "a commit()": (
        commit_in_a_block,
        commit_in_a_block,
        "a transaction after the commit",
        "leave out the commit at {ended}: the block at {began} commits at its end",
    ),
    "a rollback()": (
        rollback_in_a_block,
        rollback_in_a_block,
        "a transaction after the rollback",
        "leave the block at {began} before the session is used again",
    ),
    "a close()": (
        close_in_a_block,
        close_in_a_block,
        "a transaction after close()",
        "leave out close() at {ended}, or leave the block at {began} first",
    ),
    "a commit() in a savepoint": (
        commit_in_a_savepoints_block,
        commit_in_a_savepoints_block,
        "a savepoint after the commit",
        "leave out the commit at {ended}: the block at {began} releases its savepoint at its end",
    ),
    "a commit() in the second of two savepoints": (
        commit_in_an_inner_savepoints_block,
        finish,
        "a savepoint after the commit",
        "leave out the commit at {ended}: the block at {began} releases its savepoint at its end",
    ),
    "a rollback() of the savepoint": (
        roll_a_savepoint_back_in_its_block,
        roll_back_the_savepoint,
        "a savepoint after the rollback",
        "leave the block at {began} before the session is used again",
    ),
}


@pytest.mark.parametrize(("work", "ender", "what", "remedy"), IN_BLOCKS.values(), ids=IN_BLOCKS)
def test_use_in_the_block_of_a_transaction_that_has_ended_names_what_ended_it(
    twin: Twin, work: Any, ender: Any, what: str, remedy: str
) -> None:
    async def story() -> None:
        captured = await traced(twin, work)
        began, ended = marked(work, "<- began"), marked(ender, "<- ended")
        (finding,) = captured.findings
        assert finding.site == marked(work, "<- refused")
        assert finding.message == (
            f"the session was used in the block of {what} at {ended} had ended it"
        )
        assert finding.remedy == remedy.format(began=began, ended=ended)
        assert (finding.id, finding.severity) == ("refused-transaction", "warning")
        assert (finding.evidence["began_at"], finding.evidence["ended_at"]) == (
            str(began),
            str(ended),
        )

    twin.run(story)


def test_a_transaction_that_is_committed_twice_names_the_first_commit(twin: Twin) -> None:
    async def begins(session: Any) -> None:
        transaction = await session.begin() if twin.is_async else session.begin()  # <- began
        await session.commit()  # <- ended
        await transaction.commit()  # <- refused

    async def story() -> None:
        captured = await traced(twin, begins)
        (finding,) = captured.findings
        began, ended = marked(begins, "<- began"), marked(begins, "<- ended")
        assert finding.site == marked(begins, "<- refused")
        assert finding.message == (
            f"a transaction begun at {began} was used after the commit at {ended} had ended it"
        )

    twin.run(story)


# The remedies.


async def leave_the_commit_to_the_block(session: Any) -> None:
    async with session.begin():
        session.add(Author(name="new"))
    (await session.scalars(select(Author))).all()


async def leave_the_block_after_the_rollback(session: Any) -> None:
    async with session.begin():
        session.add(Author(name="newer"))
        await session.rollback()
    async with session.begin():
        session.add(Author(name="new"))


async def roll_a_part_back_alone(session: Any) -> None:
    async with session.begin():
        with suppress(LookupError):
            async with session.begin_nested():
                session.add(Author(name="newer"))
                raise LookupError
        session.add(Author(name="new"))


async def leave_the_release_to_the_block(session: Any) -> None:
    async with session.begin():
        async with session.begin_nested():
            session.add(Author(name="new"))
        (await session.scalars(select(Author))).all()


async def commit_last_in_the_block(session: Any) -> None:
    async with session.begin():
        session.add(Author(name="new"))
        await session.commit()


@pytest.mark.parametrize(
    "work",
    [
        leave_the_commit_to_the_block,
        leave_the_block_after_the_rollback,
        roll_a_part_back_alone,
        leave_the_release_to_the_block,
        commit_last_in_the_block,
    ],
    ids=lambda work: work.__name__,
)
def test_where_the_block_is_left_first_nothing_is_reported(twin: Twin, work: Any) -> None:
    async def story() -> None:
        captured = await traced(twin, work)
        assert_silent(captured, sessions=1)
        async with twin.session() as session:
            names = await session.scalars(select(Author.name).where(Author.name.like("new%")))
            assert names.all() == ["new"]

    twin.run(story)


# Code that knows of it.


async def try_to_begin(session: Any) -> None:
    (await session.scalars(select(Author))).all()
    try:
        await enter(session)
    except InvalidRequestError:
        session.add(Author(name="new"))
    await session.commit()


async def enter(session: Any) -> None:
    async with session.begin():  # <- refused
        pass


async def ask_before_the_begin(session: Any) -> None:
    (await session.scalars(select(Author))).all()
    if not session.in_transaction():
        await enter(session)
    session.add(Author(name="new"))
    await session.commit()


async def expect_it_in_a_test(session: Any) -> None:
    (await session.scalars(select(Author))).all()
    with pytest.raises(InvalidRequestError):
        await enter(session)
    await session.commit()


@pytest.mark.parametrize(
    "work",
    [try_to_begin, ask_before_the_begin, expect_it_in_a_test],
    ids=lambda work: work.__name__,
)
def test_code_that_expects_the_refusal_is_not_reported(twin: Twin, work: Any) -> None:
    async def story() -> None:
        assert_silent(await traced(twin, work), sessions=1)

    twin.run(story)


# What a test's assertion calls, rather than a block in which it is called.
ASSERTIONS: dict[str, Callable[[type[Exception], Any], object]] = {
    "unittest": unittest.TestCase().assertRaises,
    "pytest": lambda kind, call: pytest.raises(kind, call),  # noqa: RUF061 - what is tested
}


@only_sync
@pytest.mark.parametrize("how", ASSERTIONS)
@pytest.mark.parametrize(("kind", "due"), [(InvalidRequestError, 0), (Exception, 1)])
def test_what_a_tests_assertion_calls_is_to_be_refused(
    twin: Twin, how: str, kind: type[Exception], due: int
) -> None:
    async def work(session: Any) -> None:
        session.scalars(select(Author)).all()
        ASSERTIONS[how](kind, session.begin)
        session.commit()

    async def story() -> None:
        with capture(twin.factory) as captured:
            session = twin.factory()
            await work(session)
            session.close()
        assert [one.id for one in captured.findings] == ["refused-transaction"] * due

    twin.run(story)


async def log_any_error(session: Any) -> None:
    (await session.scalars(select(Author))).all()
    try:
        async with session.begin():  # <- refused
            pass
    except Exception as error:
        del error


def test_code_that_catches_every_error_does_not_expect_this_one(twin: Twin) -> None:
    async def story() -> None:
        captured = await traced(twin, log_any_error)
        assert [finding.site for finding in captured.findings] == [
            marked(log_any_error, "<- refused")
        ]

    twin.run(story)


async def begin_twice(session: Any) -> None:
    (await session.scalars(select(Author))).all()
    for _ in range(3):
        with suppress(SQLAlchemyError):
            await enter(session)


def test_one_line_that_is_refused_again_is_reported_once(twin: Twin) -> None:
    async def story() -> None:
        captured = await traced(twin, begin_twice)
        assert [finding.id for finding in captured.findings] == ["refused-transaction"]

    twin.run(story)


def test_the_makers_block_is_named_as_well(twin: Twin) -> None:
    async def within() -> None:
        async with beginning(twin) as session:  # <- began
            await enter(session)

    async def story() -> None:
        with capture(twin.factory) as captured, suppress(SQLAlchemyError):
            await within()
        began: CallSite = marked(within, "<- began")
        (finding,) = captured.findings
        assert finding.message == (
            f"begin() was refused: begin() at {began} has begun a transaction already"
        )

    twin.run(story)

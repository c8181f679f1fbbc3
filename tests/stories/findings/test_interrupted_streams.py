"""Stories of streamed results whose transaction ends, and of those that are read to the end."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.engine.cursor import BufferedRowCursorFetchStrategy
from sqlalchemy.exc import SQLAlchemyError

from session_tracer.testing import Captured, capture
from tests.good_code.silence import assert_silent, only_async, only_sync
from tests.library import Author, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.orm import Session

    from tests.twins import Twin

IN_PORTIONS = select(Author).order_by(Author.id).execution_options(yield_per=2)


async def traced(twin: Twin, work: Callable[[Any], Awaitable[object]], rows: int = 6) -> Captured:
    await keep(twin, *authors(rows))
    with capture(twin.factory, ignore={"discarded-changes"}) as captured:
        async with twin.session() as session:  # <- opened
            # SQLite raises none, and asyncpg raises its own.
            with suppress(Exception):
                await work(session)
    return captured


async def each(twin: Twin, session: Any, do: Callable[[Any, Any], Awaitable[object]]) -> None:
    """Do it for each author, streamed; AsyncSession streams otherwise."""
    if twin.is_async:
        async for author in await session.stream_scalars(IN_PORTIONS):  # <- async
            await do(session, author)
    else:
        for author in await session.scalars(IN_PORTIONS):  # <- sync
            await do(session, author)


def of_each(twin: Twin) -> Any:
    return marked(each, "<- async" if twin.is_async else "<- sync")


async def change_and_commit(session: Any, author: Any) -> None:
    author.biography = "long"
    await session.commit()  # <- ended


async def change_and_roll_back(session: Any, author: Any) -> None:
    author.biography = "long"
    await session.rollback()  # <- ended


ENDS: dict[str, tuple[Any, str]] = {
    "a commit": (change_and_commit, "the commit"),
    "a rollback": (change_and_roll_back, "the rollback"),
}


@on_each_database
@pytest.mark.parametrize(("do", "end"), ENDS.values(), ids=ENDS)
def test_a_stream_that_is_read_on_names_what_ended_it(twin: Twin, do: Any, end: str) -> None:
    async def story() -> None:
        captured = await traced(twin, lambda session: each(twin, session, do))
        found = [one for one in captured.findings if one.id == "interrupted-stream"]
        (finding,) = found
        ended, streamed = marked(do, "<- ended"), of_each(twin)
        assert finding.site == ended
        assert finding.severity == "warning"
        assert finding.message == (
            f"{end} at {ended} ended the transaction of the result that is streamed at {streamed} "
            "after 2 rows, and the result was read on"
        )
        assert finding.evidence["streamed_at"] == str(streamed)
        assert finding.evidence["read_at"] == str(of_each(twin))
        assert finding.evidence["rows"] == 2

    twin.run(story)


@only_sync
def test_a_result_that_is_returned_from_its_session_is_reported_when_it_is_read(twin: Twin) -> None:
    async def story() -> None:
        def stream() -> Any:
            with twin.factory() as session:
                return session.scalars(IN_PORTIONS)  # <- streamed

        await keep(twin, *authors(3))
        with capture(twin.factory) as captured:
            authors_ = stream()
            with suppress(SQLAlchemyError):
                authors_.all()  # <- read
        (finding,) = captured.findings
        assert finding.id == "interrupted-stream"
        assert finding.remedy == "read the rows before the session is closed"
        assert finding.evidence["streamed_at"] == str(marked(stream, "<- streamed"))
        assert finding.evidence["read_at"] == str(marked(story, "<- read"))

    twin.run(story)


@only_sync
def test_rows_of_textual_sql_that_are_read_one_by_one_are_followed_too(twin: Twin) -> None:
    async def work(session: Any) -> None:
        names = text("SELECT name FROM authors").execution_options(stream_results=True)
        for _ in await session.execute(names):  # <- streamed
            await session.commit()  # <- ended

    async def story() -> None:
        captured = await traced(twin, work, rows=3)
        ended = marked(work, "<- ended")
        assert_found(
            captured,
            Due(
                id="interrupted-stream",
                site=ended,
                opened=marked(traced, "<- opened"),
                remedy="call session.commit() after the last row is read",
                evidence={"rows": 1, "streamed_at": str(marked(work, "<- streamed"))},
            ),
        )

    twin.run(story)


# The remedies, and other right code.


async def nothing(session: Any, author: Any) -> None:
    del session
    author.biography = "long"


async def in_a_savepoint(session: Any, author: Any) -> None:
    with suppress(LookupError):
        async with session.begin_nested():
            author.biography = "longer"
            raise LookupError
    async with session.begin_nested():
        author.biography = "long"


@on_each_database
@pytest.mark.parametrize("do", [nothing, in_a_savepoint], ids=lambda do: do.__name__)
def test_a_stream_that_is_read_to_the_end_before_the_commit_is_silent(twin: Twin, do: Any) -> None:
    async def work(session: Any) -> None:
        await each(twin, session, do)
        await session.commit()

    async def story() -> None:
        assert_silent(await traced(twin, work), sessions=1)
        async with twin.session() as session:
            query = select(func.count()).where(Author.biography == "long")
            assert await session.scalar(query) == 6

    twin.run(story)


@on_each_database
def test_pages_by_key_with_a_commit_after_each_are_silent(twin: Twin) -> None:
    async def work(session: Any) -> None:
        last = 0
        while True:
            page = select(Author).where(Author.id > last).order_by(Author.id).limit(2)
            found = (await session.scalars(page)).all()
            if not found:
                return
            last = found[-1].id
            for author in found:
                author.biography = "long"
            await session.commit()

    async def story() -> None:
        assert_silent(await traced(twin, work), sessions=1)

    twin.run(story)


@only_sync
def test_a_stream_that_is_left_early_is_silent(twin: Twin) -> None:
    async def breaks(session: Any) -> None:
        authors_ = await session.scalars(IN_PORTIONS)
        for author in authors_:
            author.biography = "long"
            break
        await session.commit()
        (await session.scalars(select(Author))).all()

    async def closes(session: Any) -> None:
        authors_ = await session.scalars(IN_PORTIONS)
        authors_.fetchmany(2)
        authors_.close()
        await session.commit()

    async def takes_the_first(session: Any) -> None:
        (await session.scalars(IN_PORTIONS)).first()
        await session.commit()

    async def story() -> None:
        for work in (breaks, closes, takes_the_first):
            async with twin.session() as session:
                await session.execute(text("DELETE FROM authors"))
                await session.commit()
            assert_silent(await traced(twin, work), sessions=1)

    twin.run(story)


@only_async
def test_an_async_stream_in_partitions_is_silent(twin: Twin) -> None:
    async def work(session: Any) -> None:
        result = await session.stream_scalars(IN_PORTIONS)
        async for portion in result.partitions(2):
            assert len(portion) == 2
        await session.commit()

    async def story() -> None:
        assert_silent(await traced(twin, work), sessions=1)

    twin.run(story)


@only_sync
def test_a_streamed_result_gives_the_same_rows_as_untraced(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(5))

        async def read() -> list[Any]:
            async with twin.session() as session:
                rows = select(Author.name).order_by(Author.id)
                streamed = rows.execution_options(stream_results=True)
                found: list[Any] = [(await session.execute(streamed)).all()]
                result = await session.execute(streamed)
                found.append([result.fetchone(), result.fetchmany(2), result.fetchall()])
                result = (await session.execute(streamed)).yield_per(2)
                found.append([list(portion) for portion in result.partitions()])
                result = await session.execute(streamed)
                found.append((result.first(), result.keys()))
                return [str(one) for one in found]

        untraced = await read()
        with capture(twin.factory) as captured:
            assert await read() == untraced
        assert captured.findings == []

    twin.run(story)


def strategy_of(session: Session) -> object:
    """What fetches the rows of a streamed result, as SQLAlchemy knows it."""
    result: Any = session.execute(select(Author).execution_options(yield_per=2))
    strategy: object = result.raw.cursor_strategy
    result.close()
    return strategy


def test_what_fetches_a_streamed_result_is_still_of_sqlalchemys_class(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                strategy = await session.run_sync(strategy_of)
        assert isinstance(strategy, BufferedRowCursorFetchStrategy)
        assert captured.findings == []

    twin.run(story)

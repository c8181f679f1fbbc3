"""Loops that run one SELECT again because they read a large result in parts, or wait for others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, or_, select, text, tuple_
from sqlalchemy.orm import selectinload

from session_tracer.detectors import selects
from session_tracer.testing import capture
from tests.good_code.silence import assert_silent, only_async
from tests.library import Author, Book, authors, keep
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy.orm import Session

    from tests.twins import Twin

MANY = 24


async def pages(session: Any) -> list[int]:
    found: list[int] = []
    page = select(Author.id).order_by(Author.id).limit(4)
    while some := (await session.scalars(page.offset(len(found)))).all():
        found += some
    return found


async def numbered_pages(session: Any) -> list[int]:
    page = select(Author.id).order_by(Author.id)
    found: list[int] = []
    for number in range(6):
        found += (await session.scalars(page.slice(4 * number, 4 * (number + 1)))).all()
    return found


async def pages_with_books(session: Any) -> list[int]:
    found: list[int] = []
    page = select(Author).options(selectinload(Author.books)).order_by(Author.id).limit(4)
    while some := (await session.scalars(page.offset(len(found)))).all():
        found += [author.id for author in some]
    return found


async def pages_as_text(session: Any) -> list[int]:
    found: list[int] = []
    page = "SELECT id FROM authors ORDER BY id LIMIT 4 OFFSET "
    while some := (await session.scalars(text(f"{page}{len(found)}"))).all():
        found += some
    return found


async def pages_by_key(session: Any) -> list[int]:
    found: list[int] = []
    last = 0
    while True:
        page = select(Author.id).where(Author.id > last).order_by(Author.id).limit(4)
        some = (await session.scalars(page)).all()
        if not some:
            return found
        found += some
        last = some[-1]


async def pages_by_key_from_the_end(session: Any) -> list[int]:
    found: list[int] = []
    last = 1_000_000
    while True:
        before = select(Author.id).where(Author.id < last, Author.biography == "")
        some = (await session.scalars(before.order_by(Author.id.desc()).limit(5))).all()
        if not some:
            return found[::-1]
        found += some
        last = some[-1]


async def pages_by_two_columns(session: Any) -> list[int]:
    found: list[int] = []
    last = ("", 0)
    while True:
        biography, key = last
        after = or_(
            Author.biography > biography,
            (Author.biography == biography) & (Author.id > key),
        )
        page = select(Author.biography, Author.id).where(after)
        some = (await session.execute(page.order_by(*page.selected_columns).limit(4))).all()
        if not some:
            return found
        found += [row.id for row in some]
        last = some[-1]


async def pages_by_a_row_of_columns(session: Any) -> list[int]:
    found: list[int] = []
    last = ("", 0)
    columns = (Author.biography, Author.id)
    while True:
        page = select(*columns).where(tuple_(*columns) > last).order_by(*columns).limit(4)
        some = (await session.execute(page)).all()
        if not some:
            return found
        found += [row.id for row in some]
        last = some[-1]


async def pages_by_key_in_a_loop_that_counts(session: Any) -> list[int]:
    found: list[int] = []
    page = select(Author.id).order_by(Author.id).limit(4)
    for number in range(7):
        some = (await session.scalars(page.where(Author.id > (found or [0])[-1]))).all()
        assert bool(some) == (number < 6)
        found += some
    return found


async def windows(session: Any) -> list[int]:
    found: list[int] = []
    for first in range(1, MANY, 4):
        in_window = Author.id.between(first, first + 3)
        found += (await session.scalars(select(Author.id).where(in_window))).all()
    return found


async def chunks(session: Any) -> list[int]:
    keys = list(range(1, MANY + 1))
    found: list[int] = []
    for first in range(0, MANY, 5):  # the last is smaller
        chunk = keys[first : first + 5]
        found += (await session.scalars(select(Author.id).where(Author.id.in_(chunk)))).all()
    return found


async def chunks_of_a_function(session: Any) -> list[int]:
    def chunked(keys: list[int]) -> list[list[int]]:
        return [keys[first : first + 6] for first in range(0, len(keys), 6)]

    found: list[int] = []
    for chunk in chunked(list(range(1, MANY + 1))):
        found += (await session.scalars(select(Author.id).where(Author.id.in_(chunk)))).all()
    return found


async def chunks_of_pairs(session: Any) -> list[int]:
    keys = [(number + 1, f"author {number}") for number in range(MANY)]
    found: list[int] = []
    for first in range(0, MANY, 4):
        both = tuple_(Author.id, Author.name).in_(keys[first : first + 4])
        found += (await session.scalars(select(Author.id).where(both))).all()
    return found


def _each_batch(session: Session) -> list[int]:
    found: list[int] = []
    streamed = select(Author.id).order_by(Author.id).execution_options(yield_per=6)
    for batch in session.scalars(streamed).partitions():
        books = session.scalar(select(func.count()).where(Book.author_id.in_(batch)))
        assert books == 2 * len(batch)
        found += batch
    return found


async def one_query_for_each_batch_of_a_stream(session: Any) -> list[int]:
    return await session.run_sync(_each_batch)  # type: ignore[no-any-return]


def _each_streamed(session: Session) -> list[int]:
    query = select(Author).order_by(Author.id).options(selectinload(Author.books))
    streamed = session.scalars(query.execution_options(yield_per=5))
    return [author.id for author in streamed if len(author.books) == 2]


async def eager_loads_of_a_stream(session: Any) -> list[int]:
    return await session.run_sync(_each_streamed)  # type: ignore[no-any-return]


async def a_poll_that_ends_its_transaction(session: Any) -> list[int]:
    found: list[int] = []
    for number in range(MANY):
        found += (await session.scalars(select(Author.id).where(Author.id == number + 1))).all()
        await session.rollback()
    return found


PARTS: list[Callable[[Any], Awaitable[list[int]]]] = [
    pages,
    numbered_pages,
    pages_with_books,
    pages_as_text,
    pages_by_key,
    pages_by_key_from_the_end,
    pages_by_two_columns,
    pages_by_a_row_of_columns,
    pages_by_key_in_a_loop_that_counts,
    windows,
    chunks,
    chunks_of_a_function,
    chunks_of_pairs,
    one_query_for_each_batch_of_a_stream,
    eager_loads_of_a_stream,
    a_poll_that_ends_its_transaction,
]


@on_each_database
@pytest.mark.parametrize("read", PARTS)
def test_reading_everything_in_parts(twin: Twin, read: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(MANY, books_each=2))
        with capture(twin.factory, queries_from_one_site=3) as captured:
            async with twin.session() as session:
                assert len(await read(session)) == MANY
                # Of another walk over the same rows the parts are no others.
                assert len(await read(session)) == MANY
        assert_silent(captured, sessions=1, statements=2)

    twin.run(story)


def test_a_consumer_that_waits_for_each_message(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selects, "_PAUSE", 1_000_000)

    async def story() -> None:
        await keep(twin, *authors(6))
        with capture(twin.factory, queries_from_one_site=3) as captured:
            async with twin.session() as session:
                for number in range(6):
                    await asyncio.sleep(0.01)
                    await session.scalar(select(Author).where(Author.id == number))
        assert_silent(captured, sessions=1, statements=6)

    if twin.is_async:
        twin.run(story)


async def _named(session: Any, number: int) -> Author | None:
    found: Author | None = await session.scalar(select(Author).where(Author.id == number))
    return found


def test_a_few_calls_that_follow_one_another(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        with capture(twin.factory, queries_from_one_site=3) as captured:
            async with twin.session() as session:
                assert await _named(session, 1)
                assert await _named(session, 2)
                assert await _named(session, 3)
        assert_silent(captured, sessions=1, statements=3)

    twin.run(story)


class _Loader:
    """Loads what is asked for at the same time with one SELECT."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def load(self, key: int) -> Any:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(lambda: loop.create_task(self._dispatch()))
        return await self._waiting.setdefault(key, loop.create_future())

    async def _dispatch(self) -> None:
        waiting, self._waiting = self._waiting, {}
        found = {author.id: author for author in await self._authors(list(waiting))}
        for key, future in waiting.items():
            future.set_result(found.get(key))

    async def _authors(self, keys: Sequence[int]) -> Any:
        return (await self._session.scalars(select(Author).where(Author.id.in_(keys)))).all()


@only_async
def test_a_batching_loader(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(MANY))
        with capture(twin.factory, queries_from_one_site=3) as captured:
            async with twin.session() as session:
                loader = _Loader(session)
                for first in range(1, MANY, 4):
                    loads = [loader.load(key) for key in range(first, first + 4)]
                    assert all(await asyncio.gather(*loads))
        assert_silent(captured, sessions=1, statements=6)

    twin.run(story)

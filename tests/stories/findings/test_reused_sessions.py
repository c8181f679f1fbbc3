"""Stories of sessions that are used again after they were closed."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import scoped_session

from session_tracer.testing import capture
from tests.good_code.silence import only_async, only_sync
from tests.library import Author
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator

    from tests.twins import Twin


async def use_after_the_block(twin: Twin) -> None:
    async with twin.session() as session:  # <- closed
        (await session.scalars(select(Author))).all()
    session.add(Author(name="Ada"))  # <- used
    await session.commit()
    await session.close()


async def use_after_the_block_for_the_first_time(twin: Twin) -> None:
    async with twin.session() as session:  # <- closed
        pass
    (await session.scalars(select(Author))).all()  # <- used
    await session.close()


async def use_after_the_block_in_a_block_around_it(twin: Twin) -> None:
    with suppress(LookupError):
        async with twin.session() as session:  # <- closed
            (await session.scalars(select(Author))).all()
        (await session.scalars(select(Author))).all()  # <- used
    await session.close()


REUSED = (
    use_after_the_block,
    use_after_the_block_for_the_first_time,
    use_after_the_block_in_a_block_around_it,
)


@pytest.mark.parametrize("reuse", REUSED, ids=lambda story: story.__name__)
def test_a_session_that_is_used_again(twin: Twin, reuse: Callable[[Twin], Any]) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await reuse(twin)
        used = marked(reuse, "<- used")
        block = "async with" if twin.is_async else "with"
        assert_found(
            captured,
            Due(
                id="reused-after-close",
                site=used,
                opened=used,
                remedy=f"{block} SessionLocal() as session:  # around all uses of the session",
                evidence={"closed_at": str(marked(reuse, "<- closed"))},
            ),
        )
        assert [finding.session_id for finding in captured.findings] == [captured.sessions[1].id]

    twin.run(story)


async def use_after_close(twin: Twin) -> None:
    session = twin.session()
    for _ in range(3):
        (await session.scalars(select(Author))).all()
        await session.close()


async def use_in_one_block_after_the_other(twin: Twin) -> None:
    session = twin.session()
    for _ in range(3):
        async with session:
            (await session.scalars(select(Author))).all()


async def use_in_a_block_of_the_caller(twin: Twin) -> None:
    session = twin.session()

    async def read() -> None:
        (await session.scalars(select(Author))).all()

    async def read_in_a_block() -> None:
        async with session:
            await read()

    for _ in range(3):
        await read_in_a_block()


async def use_with_a_finally(twin: Twin) -> None:
    async with twin.session() as session:
        (await session.scalars(select(Author))).all()
    try:
        (await session.scalars(select(Author))).all()
    finally:
        await session.close()


async def use_in_a_transactions_block(twin: Twin) -> None:
    async with twin.session() as session:
        (await session.scalars(select(Author))).all()
    async with session.begin():
        session.add(Author(name="Ada"))


async def use_in_the_generator_that_closes_it(twin: Twin) -> None:
    session = twin.session()

    @asynccontextmanager
    async def unit_of_work() -> AsyncIterator[Any]:
        try:
            yield session
            await session.commit()
        finally:
            await session.close()

    for number in range(3):
        async with unit_of_work():
            if number:
                session.add(Author(name=f"Ada {number}"))


async def close_twice(twin: Twin) -> None:
    session = twin.session()
    (await session.scalars(select(Author))).all()
    await session.close()
    await session.close()


async def use_after_reset(twin: Twin) -> None:
    session = twin.session()
    (await session.scalars(select(Author))).all()
    await session.reset()
    (await session.scalars(select(Author))).all()
    await session.close()


async def use_after_invalidate(twin: Twin) -> None:
    session = twin.session()
    (await session.scalars(select(Author))).all()
    await session.invalidate()
    (await session.scalars(select(Author))).all()
    await session.close()


async def use_after_commit(twin: Twin) -> None:
    async with twin.session() as session:
        session.add(Author(name="Ada"))
        await session.commit()
        (await session.scalars(select(Author))).all()


async def open_another_one(twin: Twin) -> None:
    for _ in range(2):
        session = twin.session()
        (await session.scalars(select(Author))).all()
        await session.close()


async def only_look_after_close(twin: Twin) -> None:
    session = twin.session()
    await session.close()
    assert not session.in_transaction()
    assert len(session.identity_map) == 0


GOOD = (
    use_after_close,
    use_in_one_block_after_the_other,
    use_in_a_block_of_the_caller,
    use_with_a_finally,
    use_in_a_transactions_block,
    use_in_the_generator_that_closes_it,
    close_twice,
    use_after_reset,
    use_after_invalidate,
    use_after_commit,
    open_another_one,
    only_look_after_close,
)


@pytest.mark.parametrize("use", GOOD, ids=lambda story: story.__name__)
def test_a_session_that_is_not_used_after_its_close(twin: Twin, use: Callable[[Twin], Any]) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await use(twin)
        assert_found(captured)

    twin.run(story)


def a_session(twin: Twin) -> Generator[Any]:
    session = twin.factory()
    try:
        yield session
    finally:
        session.close()  # <- closed


@only_sync
def test_a_session_whose_generator_is_dropped(twin: Twin) -> None:
    def take_one() -> Any:
        return next(a_session(twin))  # <- dropped

    def use() -> None:
        session = take_one()
        session.scalars(select(Author)).all()  # <- used
        session.close()

    async def story() -> None:
        with capture(twin.factory) as captured:
            use()
        (finding,) = captured.findings
        assert (finding.id, finding.site) == ("reused-after-close", marked(use, "<- used"))
        assert finding.evidence == {
            "closed_at": str(marked(a_session, "<- closed")),
            "dropped_at": str(marked(take_one, "<- dropped")),
        }

    twin.run(story)


@only_sync
def test_a_session_whose_generator_is_kept(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            generator = a_session(twin)
            session = next(generator)
            session.scalars(select(Author)).all()
            generator.close()
        assert_found(captured)

    twin.run(story)


@only_sync
def test_a_scoped_session_is_a_new_one_after_remove(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            session = scoped_session(twin.factory)
            for _ in range(3):
                session.scalars(select(Author)).all()
                session.remove()
        assert_found(captured)

    twin.run(story)


@only_sync
def test_a_session_that_another_thread_goes_on_with(twin: Twin) -> None:
    def use_and_close(session: Any) -> None:
        session.scalars(select(Author)).all()
        session.close()

    async def story() -> None:
        with capture(twin.factory) as captured:
            session = twin.factory()
            use_and_close(session)
            other = threading.Thread(target=use_and_close, args=(session,))
            other.start()
            other.join()
            asyncio.run(asyncio.to_thread(use_and_close, session))
        assert_found(captured)

    twin.run(story)


@only_async
def test_a_session_that_another_task_goes_on_with(twin: Twin) -> None:
    async def use_and_close(session: Any) -> None:
        (await session.scalars(select(Author))).all()
        await session.close()

    async def story() -> None:
        with capture(twin.factory) as captured:
            session = twin.session()
            await asyncio.create_task(use_and_close(session))
            await asyncio.create_task(use_and_close(session))
        assert_found(captured)

    twin.run(story)


def between_two_items(session: Any) -> Generator[int]:
    for number in range(3):
        session.scalars(select(Author)).all()
        session.close()
        yield number


def before_the_end(session: Any) -> Generator[int]:
    for number in range(3):
        session.scalars(select(Author)).all()
        yield number
        session.close()


def around_another_one(session: Any) -> Generator[None]:
    session.scalars(select(Author)).all()
    yield
    session.close()


def of_something_else(session: Any) -> Generator[Author]:
    yield from session.scalars(select(Author))
    session.close()


@only_sync
@pytest.mark.parametrize(
    "generator", [between_two_items, before_the_end, around_another_one, of_something_else]
)
def test_a_session_that_a_generator_closes_and_has_not_lent(
    twin: Twin, generator: Callable[[Any], Generator[Any]]
) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            session = twin.factory()
            for _ in range(2):
                for _ in generator(session):
                    pass
                session.scalars(select(Author)).all()
                session.close()
        assert_found(captured)

    twin.run(story)


@only_sync
def test_a_session_of_a_registry_that_a_generator_lends_twice(twin: Twin) -> None:
    def lend() -> Generator[Any]:
        yield registry
        registry.close()

    def lend_one() -> Generator[Any]:
        session = registry()
        yield session
        session.close()

    async def story() -> None:
        with capture(twin.factory) as captured:
            for lender in (lend, lend_one):
                for _ in range(2):
                    lent = lender()
                    next(lent)
                    registry.scalars(select(Author)).all()
                    next(lent, None)
            registry.remove()
        assert_found(captured)

    registry = scoped_session(twin.factory)
    twin.run(story)


def lend_in_a_helper(twin: Twin) -> Generator[Any]:
    session = twin.factory()
    yield (session, "and more")
    session.close()  # <- closed


def lend_what_is_bound_to_it(twin: Twin) -> Generator[Any]:
    session = twin.factory()
    session.info["lent"] = session
    try:
        yield
    finally:
        session.close()  # <- closed


@only_sync
@pytest.mark.parametrize("lend", [lend_in_a_helper, lend_what_is_bound_to_it])
def test_a_session_that_is_used_after_its_generator_has_ended(
    twin: Twin, lend: Callable[[Twin], Generator[Any]]
) -> None:
    def use(session: Any) -> None:
        session.scalars(select(Author)).all()  # <- used
        session.close()

    async def story() -> None:
        with capture(twin.factory) as captured:
            generator: Any = lend(twin)
            next(generator)
            session = generator.gi_frame.f_locals["session"]
            session.scalars(select(Author)).all()
            next(generator, None)
            use(session)
        (finding,) = captured.findings
        assert (finding.id, finding.site) == ("reused-after-close", marked(use, "<- used"))
        assert finding.evidence == {"closed_at": str(marked(lend, "<- closed"))}

    twin.run(story)

"""Stories of sessions and transactions that last, and of the same code with the remedy applied."""

from __future__ import annotations

import asyncio
import itertools
import os
import sysconfig
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from sqlalchemy import event, func, select, text

from session_tracer.testing import capture
from tests.good_code.silence import only_async, only_sync
from tests.library import Author, authors, keep
from tests.stories.findings.due import assert_found, look_ahead, stay
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from session_tracer import Finding
    from session_tracer.testing import Captured
    from tests.twins import Twin

    Work = Callable[["Place"], Coroutine[Any, Any, None]]

# A name is an author's alone.
NUMBERS: Final = itertools.count()
COUNT: Final = select(func.count()).select_from(Author)
# How far to look ahead, and what else would be found by then.
LASTING: Final[dict[str, tuple[int, dict[str, Any]]]] = {
    "leaked-session": (
        61,
        {"idle_in_transaction_seconds": 9999, "long_transaction_seconds": 9999},
    ),
    "idle-in-transaction": (6, {}),
    "long-transaction": (31, {"idle_in_transaction_seconds": 9999}),
}


@dataclass
class Place:
    """Where a story runs: its database, how far to look ahead, and what it leaves open."""

    twin: Twin
    later: int
    left: list[Any] = field(default_factory=list)
    generators: list[Any] = field(default_factory=list)

    def wait(self) -> None:
        look_ahead(self.later)  # <- waits


def block(twin: Twin) -> str:
    """The line of code that closes a session in all cases."""
    return f"{'async with' if twin.is_async else 'with'} SessionLocal() as session:"


async def add(session: Any) -> None:
    session.add(Author(name=f"Ada {next(NUMBERS)}"))
    await session.flush()


# Code that leaves its session, and the same code with the remedy applied.


async def leave(place: Place) -> None:
    session = place.twin.session()
    place.left.append(session)
    await add(session)


async def leave_and_fail(place: Place) -> None:
    await leave(place)
    raise LookupError


async def dependency(place: Place) -> AsyncIterator[Any]:
    session = place.twin.session()
    place.left.append(session)
    yield session
    await session.close()


async def leave_a_generator(place: Place) -> None:
    generator = dependency(place)
    place.generators.append(generator)
    await add(await anext(generator))


async def keep_in_a_block(place: Place) -> None:
    async with place.twin.session() as session:
        await add(session)
        await session.commit()


async def keep_in_a_block_and_fail(place: Place) -> None:
    await keep_in_a_block(place)
    raise LookupError


async def dependency_with_a_block(place: Place) -> AsyncIterator[Any]:
    async with place.twin.session() as session:
        yield session
        await session.commit()


async def use_up_a_generator(place: Place) -> None:
    async for session in dependency_with_a_block(place):
        await add(session)


# Who runs it, and when time passes.


async def by_one_that_goes_on(place: Place, work: Work) -> None:
    """A worker does other work next."""
    if not place.twin.is_async:
        for step in (work, wait):
            await step(place)
        return
    here = asyncio.Event()
    task = asyncio.create_task(one_by_one(work(place), stay(here)))
    await here.wait()
    place.wait()
    task.cancel()
    await asyncio.wait({task})


async def by_one_that_ends(place: Place, work: Work) -> None:
    if place.twin.is_async:
        task = asyncio.create_task(work(place))
        await asyncio.wait({task})
        place.wait()
        task.exception()
        return
    thread = threading.Thread(target=place.twin.drive, args=(work(place),))
    thread.start()
    thread.join()
    place.wait()


async def by_one_that_is_cancelled(place: Place, work: Work) -> None:
    here = asyncio.Event()
    task = asyncio.create_task(one_by_one(work(place), stay(here)))
    await here.wait()
    task.cancel()
    await asyncio.wait({task})
    place.wait()
    assert task.cancelled()


async def one_by_one(*steps: Awaitable[None]) -> None:
    for step in steps:
        await step


async def wait(place: Place) -> None:
    place.wait()


class Gone(NamedTuple):
    """Who leaves a session that no code can close, how, the cure, and the reason that is given."""

    by: Callable[[Place, Work], Awaitable[None]]
    leaves: Work
    cured: Work
    reason: str


BY_ALL: Final = {
    "returned": Gone(by_one_that_goes_on, leave, keep_in_a_block, "leave() has returned"),
    "ended": Gone(by_one_that_ends, leave, keep_in_a_block, " has ended"),
}
BY_THREADS: Final = {
    "suspended": Gone(
        by_one_that_goes_on,
        leave_a_generator,
        use_up_a_generator,
        "dependency() is a generator that is not resumed",
    )
}
BY_TASKS: Final = {
    "failed": Gone(by_one_that_ends, leave_and_fail, keep_in_a_block_and_fail, " has failed"),
    "cancelled": Gone(by_one_that_is_cancelled, leave, keep_in_a_block, " was cancelled"),
}


def remedy(found: Finding, twin: Twin, state: str, reason: str) -> str:
    """The remedy that is due for a session which no code is left to close."""
    if found.id == "long-transaction":
        return "commit as soon as the last statement is done"
    if found.id == "idle-in-transaction":
        why = found.remedy.removeprefix("close the session: ").partition(";")[0]
        assert why.endswith(reason)
        return f"close the session: {why}; `{block(twin)}` closes it"
    if state == "suspended":
        return f"yield inside `{block(twin)}`, and close the generator when its caller is done"
    return f"commit or roll back, then close the session; `{block(twin)}` always closes it"


async def seen(place: Place, work: Callable[[Place], Any], **settings: Any) -> Captured:
    """What is found as it runs; what it leaves open is rolled back and closed at the end."""
    with capture(place.twin.factory, **settings) as captured:
        await work(place)
        for session in place.left:
            await session.rollback()
            await session.close()
    return captured


async def assert_cures(twin: Twin, id_: str, state: str, gone: Gone) -> None:
    later, settings = LASTING[id_]
    place = Place(twin, later)
    (found,) = (await seen(place, lambda it: gone.by(it, gone.leaves), **settings)).findings
    assert (found.id, found.evidence["owner_state"]) == (id_, state)
    assert found.remedy == remedy(found, twin, state, gone.reason)
    for generator in place.generators:
        await generator.aclose()
    cured = Place(twin, later)
    assert_found(await seen(cured, lambda it: gone.by(it, gone.cured), **settings))
    async with twin.session() as session:
        assert await session.scalar(COUNT) == 1


@pytest.mark.parametrize("state", BY_ALL)
@pytest.mark.parametrize("id_", LASTING)
def test_with_the_remedy_nothing_is_left_open_and_the_change_is_saved(
    twin: Twin, id_: str, state: str
) -> None:
    twin.run(lambda: assert_cures(twin, id_, state, BY_ALL[state]))


@only_sync
@pytest.mark.parametrize("state", BY_THREADS)
@pytest.mark.parametrize("id_", LASTING)
def test_with_the_remedy_no_generator_keeps_a_session(twin: Twin, id_: str, state: str) -> None:
    twin.run(lambda: assert_cures(twin, id_, state, BY_THREADS[state]))


@only_async
@pytest.mark.parametrize("state", BY_TASKS)
@pytest.mark.parametrize("id_", LASTING)
def test_with_the_remedy_a_task_leaves_nothing_open(twin: Twin, id_: str, state: str) -> None:
    twin.run(lambda: assert_cures(twin, id_, state, BY_TASKS[state]))


# A session that a registry has made.


async def leave_in_a_registry(place: Place) -> None:
    registry = place.twin.registry(lambda: None)
    place.left.append(registry)
    registry.add(Author(name=f"Ada {next(NUMBERS)}"))
    await registry.flush()


async def read_in_a_registry(place: Place) -> None:
    registry = place.twin.registry(lambda: None)
    place.left.append(registry)
    await registry.scalar(COUNT)


async def remove_from_the_registry(place: Place) -> None:
    registry = place.twin.registry(lambda: None)
    await add(registry)
    await registry.commit()
    await registry.remove()


async def registry_of_a_dependency(place: Place) -> AsyncIterator[Any]:
    registry = place.twin.registry(lambda: None)
    place.left.append(registry)
    await registry.connection()
    yield registry
    await registry.remove()


async def leave_a_generator_with_a_registry(place: Place) -> None:
    generator = registry_of_a_dependency(place)
    place.generators.append(generator)
    await add(await anext(generator))


AT_THE_END: Final = "at the end of each request or task"
REMOVED: Final = [
    (leave_in_a_registry, "leaked-session", f"commit or roll back; {{}} {AT_THE_END}"),
    (
        leave_in_a_registry,
        "idle-in-transaction",
        "close the session: leave_in_a_registry() has returned; {} closes it",
    ),
    (read_in_a_registry, "leaked-session", f"{{}}  # {AT_THE_END}"),
]
YIELDED: Final = (
    "yield inside try, with {} in its finally, and close the generator when its caller is done"
)


async def assert_removes(twin: Twin, leaves: Work, id_: str, remedy: str) -> None:
    later, settings = LASTING[id_]
    place = Place(twin, later)
    (found,) = (await seen(place, lambda it: by_one_that_goes_on(it, leaves), **settings)).findings
    remove = f"{'await ' if twin.is_async else ''}Session.remove()"
    assert (found.id, found.remedy) == (id_, remedy.format(remove))
    for generator in place.generators:
        await generator.aclose()
    cured = Place(twin, later)
    assert_found(await seen(cured, lambda it: by_one_that_goes_on(it, remove_from_the_registry)))


@pytest.mark.parametrize(("leaves", "id_", "remedy"), REMOVED)
def test_with_the_remedy_nothing_is_left_in_a_registry(
    twin: Twin, leaves: Work, id_: str, remedy: str
) -> None:
    twin.run(lambda: assert_removes(twin, leaves, id_, remedy))


@only_sync
def test_with_the_remedy_no_generator_keeps_the_session_of_a_registry(twin: Twin) -> None:
    work = leave_a_generator_with_a_registry
    twin.run(lambda: assert_removes(twin, work, "leaked-session", YIELDED))


# Code that waits while its own session has a transaction.


async def write_and_wait(place: Place) -> None:
    async with place.twin.session() as session:
        await add(session)
        place.wait()  # <- called
        await session.commit()


async def commit_before_the_wait(place: Place) -> None:
    async with place.twin.session() as session:
        await add(session)
        await session.commit()
        place.wait()


async def close_before_the_wait(place: Place) -> None:
    async with place.twin.session() as session:
        await add(session)
        await session.commit()
    place.wait()


async def wait_before_the_session(place: Place) -> None:
    place.wait()
    async with place.twin.session() as session:
        await add(session)
        await session.commit()


async def wait_before_the_transaction(place: Place) -> None:
    async with place.twin.session() as session:
        place.wait()
        await add(session)
        await session.commit()


BEFORE_THE_WAIT: Final = {
    "leaked-session": (
        "commit before the wait at {}, or open the session after it",
        (close_before_the_wait, wait_before_the_session),
    ),
    "idle-in-transaction": (
        "commit or close before the wait at {}, or wait outside the transaction",
        (commit_before_the_wait, close_before_the_wait, wait_before_the_transaction),
    ),
    "long-transaction": (
        "commit before the work at {}, or begin after it",
        (commit_before_the_wait, wait_before_the_transaction),
    ),
}


@pytest.mark.parametrize("id_", LASTING)
def test_with_the_remedy_no_transaction_is_open_during_the_wait(twin: Twin, id_: str) -> None:
    remedy, cures = BEFORE_THE_WAIT[id_]
    later, settings = LASTING[id_]

    async def story() -> None:
        place = Place(twin, later)
        (found,) = (await seen(place, write_and_wait, **settings)).findings
        assert (found.id, found.remedy) == (id_, remedy.format(marked(Place.wait, "<- waits")))
        for cured in cures:
            assert_found(await seen(place, cured, **settings))
        async with twin.session() as session:
            assert await session.scalar(COUNT) == 1 + len(cures)

    twin.run(story)


# A session that a dependency opens, and that its caller uses.


async def lend(place: Place) -> AsyncIterator[Any]:
    async with place.twin.session() as session:
        yield session


async def read_and_wait(place: Place) -> None:
    async for session in lend(place):
        await session.scalar(COUNT)
        place.wait()  # <- calls


async def read_and_commit_before_the_wait(place: Place) -> None:
    async for session in lend(place):
        await session.scalar(COUNT)
        await session.commit()
        place.wait()


def test_with_the_remedy_a_dependencys_session_is_not_idle(twin: Twin) -> None:
    async def story() -> None:
        place = Place(twin, 6)
        (found,) = (await seen(place, read_and_wait)).findings
        wait, calls = marked(Place.wait, "<- waits"), marked(read_and_wait, "<- calls")
        assert found.id == "idle-in-transaction"
        assert found.remedy == (
            f"commit or close before the wait at {wait}, called from {calls}, "
            "or wait outside the transaction"
        )
        assert_found(await seen(place, read_and_commit_before_the_wait))

    twin.run(story)


@only_async  # A thread may have left its generator.
def test_the_function_that_a_session_was_lent_to_is_named(twin: Twin) -> None:
    async def answer(session: Any) -> None:
        del session
        place.wait()  # <- calls

    # A framework has the session from one function, and calls the others with it.
    serve = (
        "async def serve(sessions, *functions):\n"
        "    async for session in sessions:\n"
        "        for function in functions:\n"
        "            await function(session)\n"
    )
    file = os.path.join(sysconfig.get_path("purelib"), "shop_web", "routing.py")
    framework: dict[str, Any] = {"__name__": "shop_web.routing"}
    exec(compile(serve, file, "exec"), framework)

    async def respond(place: Place) -> None:
        await framework["serve"](lend(place), read, answer)

    async def story() -> None:
        (found,) = (await seen(place, respond)).findings
        wait, calls = marked(Place.wait, "<- waits"), marked(answer, "<- calls")
        assert found.id == "idle-in-transaction"
        assert found.remedy == (
            f"commit or close before the wait at {wait}, called from {calls}, "
            "or wait outside the transaction"
        )

    place = Place(twin, 6)
    twin.run(story)


# A session of which it is not known whether the code that waits has it.


async def make(place: Place) -> Any:
    return place.twin.session()


async def read(session: Any) -> None:
    await session.scalar(COUNT)


async def read_twice_and_wait(place: Place) -> None:
    session = await make(place)
    for _ in range(2):
        await read(session)
    place.wait()
    await session.close()


async def read_twice_close_and_wait(place: Place) -> None:
    session = await make(place)
    for _ in range(2):
        await read(session)
    await session.close()
    place.wait()


def test_with_the_remedy_a_session_is_closed_after_its_last_statement(twin: Twin) -> None:
    async def story() -> None:
        place = Place(twin, 6)
        (found,) = (await seen(place, read_twice_and_wait)).findings
        assert found.id == "idle-in-transaction"
        assert found.remedy == "commit or close as soon as the last statement's result is read"
        assert_found(await seen(place, read_twice_close_and_wait))

    twin.run(story)


# A transaction of many statements, each of which takes time.

SLOWLY: Final = text("UPDATE authors SET name = slowly(name)")


def slowly(name: str) -> str:
    time.sleep(0.07)
    return name.upper()


def can_be_slow(connection: Any, record: Any) -> None:
    del record
    if hasattr(connection, "run_async"):
        connection.run_async(lambda driver: driver.create_function("slowly", 1, slowly))
    else:
        connection.create_function("slowly", 1, slowly)


async def write_slowly(place: Place) -> None:
    async with place.twin.session() as session:
        for _ in range(4):
            await session.execute(SLOWLY)
        place.wait()
        await session.commit()


async def write_slowly_in_batches(place: Place) -> None:
    async with place.twin.session() as session:
        for _ in range(4):
            await session.execute(SLOWLY)
            await session.commit()
        place.wait()


def test_with_the_remedy_no_transaction_has_all_the_statements(twin: Twin) -> None:
    async def story() -> None:
        await twin.dispose()
        engine: Any = twin.engine
        event.listen(getattr(engine, "sync_engine", engine), "connect", can_be_slow)
        await keep(twin, *authors(1))
        place = Place(twin, 0)
        settings = {"long_transaction_seconds": 0.2}
        (found,) = (await seen(place, write_slowly, **settings)).findings
        assert found.id == "long-transaction"
        assert found.remedy == "commit in batches, so that locks are held for a short time"
        assert_found(await seen(place, write_slowly_in_batches, **settings))
        async with twin.session() as session:
            assert await session.scalar(select(Author.name)) == "AUTHOR 0"

    twin.run(story)

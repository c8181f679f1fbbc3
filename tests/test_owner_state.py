"""Whether the thread or task that opened or used a session can still close it."""

from __future__ import annotations

import asyncio
import inspect
import os
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from session_tracer.ledger.registry import LIVE, look
from session_tracer.testing import capture
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from session_tracer import LiveSession

ONE = text("SELECT 1")
PACKAGES = sysconfig.get_paths()["purelib"]
# More than a machine with other work ever needs.
LONG = 20


@dataclass
class Shop:
    """A factory, the sessions that were left open, and a request that waits until it is seen."""

    factory: sessionmaker[Session]
    left: list[Any] = field(default_factory=list)
    waiting: threading.Event = field(default_factory=threading.Event)
    seen: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.waiting.set()
        assert self.seen.wait(LONG)  # <- waits


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    engine = create_engine(
        f"sqlite:///{tmp_path / 'shop.db'}", connect_args={"check_same_thread": False}
    )
    shop = Shop(sessionmaker(engine))
    with capture(shop.factory):
        yield shop
        for session in shop.left:
            session.close()
    engine.dispose()


def oldest() -> LiveSession:
    """The oldest open session, as a finding about it would have it."""
    first = min(LIVE, key=lambda ledger: ledger.opened_at)
    return look(first.reports[0])


def in_pool(shop: Shop, *requests: Callable[[Shop], Any]) -> LiveSession:
    """The oldest session as the last request waits, all of them in the one thread of a pool."""
    with ThreadPoolExecutor(1, thread_name_prefix="gthread") as pool:
        *before, last = requests
        for request in before:
            pool.submit(request, shop).result()
        waits = pool.submit(last, shop)
        assert shop.waiting.wait(LONG)
        live = oldest()
        shop.seen.set()
        waits.result()
    return live


def ask(session: Any) -> None:
    session.execute(ONE)


def ask_again(session: Any) -> None:
    session.execute(ONE)


def make(shop: Shop) -> Session:
    return shop.factory()


def make_ready(shop: Shop) -> Session:
    session = shop.factory()
    session.execute(ONE)
    return session


@contextmanager
def unit_of_work(shop: Shop) -> Iterator[Session]:
    session = shop.factory()
    try:
        yield session
    finally:
        session.close()


def authenticated(view: Callable[[Shop], Any]) -> Callable[[Shop], Any]:
    @wraps(view)
    def wrapper(shop: Shop) -> Any:
        return view(shop)

    return wrapper


# Requests that still have their session.


def works_itself(shop: Shop) -> None:
    with shop.factory() as session:
        session.execute(ONE)
        shop.wait()  # <- called


def works_by_a_helper(shop: Shop) -> None:
    with shop.factory() as session:
        ask(session)
        shop.wait()  # <- called


def works_by_two_helpers(shop: Shop) -> None:
    with shop.factory() as session:
        ask(session)
        ask_again(session)
        shop.wait()  # <- called


def works_with_what_a_helper_made(shop: Shop) -> None:
    with make(shop) as session:
        ask(session)
        shop.wait()  # <- called


def works_with_what_a_helper_made_ready(shop: Shop) -> None:
    with make_ready(shop) as session:
        ask(session)
        shop.wait()  # <- called


def works_in_a_unit_of_work(shop: Shop) -> None:
    with unit_of_work(shop) as session:
        ask(session)
        shop.wait()  # <- called


def works_with_a_registry(shop: Shop) -> None:
    registry = scoped_session(shop.factory)
    ask(registry)
    shop.wait()  # <- called
    registry.remove()


@pytest.mark.parametrize(
    "request_",
    [
        works_itself,
        works_by_a_helper,
        works_by_two_helpers,
        works_with_what_a_helper_made,
        works_with_what_a_helper_made_ready,
        works_in_a_unit_of_work,
        works_with_a_registry,
    ],
)
def test_a_request_that_has_its_session_is_running(
    shop: Shop, request_: Callable[[Shop], Any]
) -> None:
    live = in_pool(shop, authenticated(request_))
    assert live.owner_state == "running"
    assert live.owner_stack[:2] == (marked(Shop.wait, "<- waits"), marked(request_, "<- called"))


# Requests that left it open.


def leaves_its_own(shop: Shop) -> None:
    session = shop.factory()
    shop.left.append(session)
    session.execute(ONE)


def leaves_a_helpers(shop: Shop) -> None:
    session = shop.factory()
    shop.left.append(session)
    ask(session)


def leaves_two_helpers(shop: Shop) -> None:
    session = shop.factory()
    shop.left.append(session)
    ask(session)
    ask_again(session)


def leaves_what_a_helper_made(shop: Shop) -> None:
    session = make(shop)
    shop.left.append(session)
    ask(session)


def innocent(shop: Shop) -> None:
    with shop.factory() as session:
        ask(session)
        shop.wait()


def innocent_without_a_session(shop: Shop) -> None:
    shop.wait()


@pytest.mark.parametrize("other", [innocent, innocent_without_a_session])
@pytest.mark.parametrize(
    "request_", [leaves_its_own, leaves_a_helpers, leaves_two_helpers, leaves_what_a_helper_made]
)
def test_a_request_that_left_its_session_has_returned(
    shop: Shop, request_: Callable[[Shop], Any], other: Callable[[Shop], Any]
) -> None:
    live = in_pool(shop, authenticated(request_), authenticated(other))
    assert (live.owner_state, live.owner_stack) == ("returned", ())


def leaves_a_generator(shop: Shop) -> None:
    work = unit_of_work(shop)
    ask(work.__enter__())
    shop.left.append(work.gen)


def test_a_generator_that_is_not_resumed_is_suspended(shop: Shop) -> None:
    live = in_pool(shop, leaves_a_generator, innocent)
    assert (live.owner_state, live.owner_stack) == ("suspended", ())


def test_a_worker_that_goes_on_in_its_loop_is_not_the_sessions(shop: Shop) -> None:
    def work(shop: Shop) -> None:
        for job in (leaves_its_own, innocent_without_a_session):
            job(shop)

    live = in_pool(shop, work)
    assert (live.owner_state, live.owner_stack) == ("returned", ())


def test_what_a_loop_does_next_is_not_shown_where_it_may_have_the_session(shop: Shop) -> None:
    def work(shop: Shop) -> None:
        session = make(shop)
        for _ in range(2):
            ask(session)
        shop.wait()
        session.close()

    live = in_pool(shop, work)
    assert (live.owner_state, live.owner_stack) == ("", ())


def test_a_thread_that_has_ended(shop: Shop) -> None:
    thread = threading.Thread(target=leaves_its_own, args=(shop,), name="export-3")
    thread.start()
    thread.join()
    live = oldest()
    assert (live.owner, live.owner_state) == ('thread "export-3"', "ended")


# Tasks.


@dataclass
class AsyncShop:
    """As `Shop`, for asyncio."""

    factory: async_sessionmaker[AsyncSession]
    left: list[Any] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    seen: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        self.waiting.set()
        await self.seen.wait()  # <- waits


async def async_ask(session: AsyncSession) -> None:
    await session.execute(ONE)


@asynccontextmanager
async def dependency(shop: AsyncShop) -> AsyncIterator[AsyncSession]:
    async with shop.factory() as session:
        yield session


async def handles_itself(shop: AsyncShop) -> None:
    async with shop.factory() as session:
        await session.execute(ONE)
        await shop.wait()  # <- called


async def handles_by_a_helper(shop: AsyncShop) -> None:
    async with shop.factory() as session:
        await async_ask(session)
        await shop.wait()  # <- called


async def handles_a_dependencys(shop: AsyncShop) -> None:
    async with dependency(shop) as session:
        await async_ask(session)
        await shop.wait()  # <- called


async def drops(shop: AsyncShop) -> None:
    shop.left.append(session := shop.factory())
    await session.execute(ONE)


async def drops_and_waits(shop: AsyncShop) -> None:
    for job in (drops, AsyncShop.wait):
        await job(shop)


async def drops_and_fails(shop: AsyncShop) -> None:
    await drops(shop)
    raise LookupError


def in_loop(
    tmp_path: Path, work: Callable[[AsyncShop], Any], *, cancel: bool = False
) -> LiveSession:
    """The session as its task waits, or has ended."""

    async def story() -> LiveSession:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
        shop = AsyncShop(async_sessionmaker(engine))
        with capture(shop.factory):
            task = asyncio.create_task(work(shop), name="request-7")
            waiting = asyncio.create_task(shop.waiting.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if cancel:
                task.cancel()
                await asyncio.wait({task})
            live = oldest()
            shop.seen.set()
            await asyncio.gather(task, return_exceptions=True)
            for session in shop.left:
                await session.close()
        await engine.dispose()
        return live

    return asyncio.run(story())


@pytest.mark.parametrize("work", [handles_itself, handles_by_a_helper, handles_a_dependencys])
def test_a_task_that_has_its_session_is_waiting(
    tmp_path: Path, work: Callable[[AsyncShop], Any]
) -> None:
    live = in_loop(tmp_path, work)
    assert (live.owner, live.owner_state) == ('task "request-7"', "waiting")
    assert live.owner_stack[:2] == (marked(AsyncShop.wait, "<- waits"), marked(work, "<- called"))


@pytest.mark.parametrize(
    ("work", "state"),
    [(drops, "ended"), (drops_and_fails, "failed"), (drops_and_waits, "returned")],
)
def test_a_task_that_left_its_session(
    tmp_path: Path, work: Callable[[AsyncShop], Any], state: str
) -> None:
    live = in_loop(tmp_path, work)
    assert (live.owner_state, live.owner_stack) == (state, ())


def test_a_task_that_was_cancelled(tmp_path: Path) -> None:
    live = in_loop(tmp_path, drops_and_waits, cancel=True)
    assert (live.owner_state, live.owner_stack) == ("cancelled", ())


def test_a_task_that_is_inside_of_a_greenlet_has_not_returned(tmp_path: Path) -> None:
    seen: list[LiveSession] = []

    def look_inside(session: Session) -> None:
        session.execute(ONE)
        seen.append(oldest())

    async def works(shop: AsyncShop) -> None:
        async with shop.factory() as session:
            await session.execute(ONE)
            async with shop.factory() as other:
                await other.run_sync(look_inside)

    in_loop(tmp_path, lambda shop: works_and_waits(shop, works))
    assert seen[0].owner_state in ("running", "")


async def works_and_waits(shop: AsyncShop, works: Callable[[AsyncShop], Any]) -> None:
    await works(shop)
    async with shop.factory() as session:
        await session.execute(ONE)
        await shop.wait()


async def streams(shop: AsyncShop) -> AsyncIterator[int]:
    await shop.wait()  # <- called
    yield 1


def test_the_stack_of_a_task_goes_through_asynchronous_generators(tmp_path: Path) -> None:
    async def reads(shop: AsyncShop) -> None:
        async with shop.factory() as session:
            await session.execute(ONE)
            async for _ in streams(shop):  # <- reads
                pass

    live = in_loop(tmp_path, reads)
    assert live.owner_stack == (
        marked(AsyncShop.wait, "<- waits"),
        marked(streams, "<- called"),
        marked(reads, "<- reads"),
    )


async def stream(shop: AsyncShop) -> None:
    async for _ in streams(shop):  # <- streams
        pass


async def respond(work: Any) -> None:
    """As Starlette streams a response: in a task, while it waits for the client to go away."""
    async with asyncio.TaskGroup() as group:
        streaming = group.create_task(work)
        await asyncio.wait({streaming})


def test_a_response_that_is_streamed_is_the_sessions(tmp_path: Path) -> None:
    framework: dict[str, Any] = {"__name__": "starlette.responses", "asyncio": asyncio}
    code = compile(inspect.getsource(respond), os.path.join(PACKAGES, "responses.py"), "exec")
    exec(code, framework)

    async def request(shop: AsyncShop) -> None:
        async with shop.factory() as session:
            await session.execute(ONE)
            await framework["respond"](stream(shop))  # <- responds

    live = in_loop(tmp_path, request)
    assert live.owner_state == "waiting"
    assert live.owner_stack == (
        marked(AsyncShop.wait, "<- waits"),
        marked(streams, "<- called"),
        marked(stream, "<- streams"),
        marked(request, "<- responds"),
    )

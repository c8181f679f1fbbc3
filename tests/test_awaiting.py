"""Which task awaits which, and where a thread or a task is now."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.util import await_only, greenlet_spawn

from session_tracer.where.callsite import Locator
from session_tracer.where.owner import Owner, current, root_of
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.where.callsite import CallSite


def sites(owner: Owner) -> list[CallSite]:
    """The application's lines where the owner is now, innermost first."""
    return Locator().sites(owner.frames())


def comes_to(now: Callable[[], Any], wanted: Any) -> Any:
    """What it is in the end, which is waited for."""
    until = time.monotonic() + 20
    while now() != wanted and time.monotonic() < until:
        time.sleep(0.005)
    return now()


# Who awaits it.


async def in_a_task(work: Any) -> None:
    await asyncio.create_task(work())


async def in_a_gather(work: Any) -> None:
    await asyncio.gather(work(), asyncio.sleep(0))


async def in_a_group(work: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(work())


async def in_a_wait(work: Any) -> None:
    await asyncio.wait([asyncio.ensure_future(work())])


async def in_a_wait_for(work: Any) -> None:
    await asyncio.wait_for(work(), 20)


async def in_a_shield(work: Any) -> None:
    await asyncio.shield(work())


async def in_a_task_within_a_task(work: Any) -> None:
    await asyncio.create_task(in_a_gather(lambda: in_a_group(work)))


RUN = (
    in_a_task,
    in_a_gather,
    in_a_group,
    in_a_wait,
    in_a_wait_for,
    in_a_shield,
    in_a_task_within_a_task,
)


@pytest.mark.parametrize("run", RUN, ids=lambda function: function.__name__)
def test_the_root_is_who_awaits_it_outermost(run: Any) -> None:
    roots: list[Owner] = []

    async def work() -> None:
        await asyncio.sleep(0)
        roots.append(root_of(current()))

    async def whole() -> None:
        await run(work)
        assert roots == [current()]

    asyncio.run(whole())


def test_nobody_awaits_a_task_that_is_left_alone() -> None:
    async def work() -> Owner:
        await asyncio.sleep(0)
        return root_of(current())

    async def whole() -> None:
        task = asyncio.create_task(work(), name="alone")
        task.add_done_callback(lambda _: None)
        await asyncio.sleep(0.01)
        assert task.result().name == 'task "alone"'

    asyncio.run(whole())


class Touchy:
    """A callback that refuses to be asked anything."""

    def __call__(self, _: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)


class Vague:
    """A callback that has everything, and nothing of it as it should be."""

    def __call__(self, _: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return 7


def with_a_name_that_is_not_bound(bound: bool = False) -> Any:
    def callback(_: object) -> None:
        with suppress(NameError):
            later.append(1)

    if bound:
        later: list[int] = []
    return callback


@pytest.mark.parametrize("make", [Touchy, Vague, with_a_name_that_is_not_bound])
def test_an_applications_callbacks_are_passed_over(make: Any) -> None:
    roots: list[Owner] = []

    async def work() -> None:
        await asyncio.sleep(0)
        roots.append(root_of(current()))

    async def whole() -> None:
        task = asyncio.create_task(work())
        task.add_done_callback(make())
        await task
        assert roots == [current()]

    asyncio.run(whole())


def test_a_thread_is_its_own_root() -> None:
    assert root_of(current()) is current()


# Where it is now.


def test_where_a_thread_is_now() -> None:
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    owners: queue.SimpleQueue[Owner] = queue.SimpleQueue()

    def take() -> None:
        jobs.get()  # <- takes

    def work() -> None:
        owners.put(current())
        take()  # <- calls

    thread = threading.Thread(target=work)
    thread.start()
    owner = owners.get()
    wanted = [marked(take, "<- takes"), marked(work, "<- calls")]
    assert comes_to(lambda: sites(owner)[:2], wanted) == wanted
    jobs.put("one")
    thread.join()
    assert owner.frames() == []


def test_where_the_running_thread_is() -> None:
    def here() -> list[CallSite]:
        return sites(current())  # <- here

    assert here()[1] == marked(here, "<- here")


def test_where_a_task_waits_and_who_awaits_it() -> None:
    owners: list[Owner] = []

    async def upload() -> None:
        owners.append(current())
        await asyncio.sleep(20)  # <- sleeps

    async def export() -> None:
        await upload()  # <- calls

    async def whole() -> None:
        await asyncio.gather(export())  # <- gathers

    async def story() -> None:
        task = asyncio.create_task(whole())
        while not owners:
            await asyncio.sleep(0)
        assert sites(owners[0]) == [
            marked(upload, "<- sleeps"),
            marked(export, "<- calls"),
            marked(whole, "<- gathers"),
        ]
        task.cancel()
        await asyncio.wait([task])
        assert owners[0].frames() == []

    asyncio.run(story())


def test_where_a_task_waits_is_seen_from_another_thread() -> None:
    owners: list[Owner] = []
    seen: list[list[CallSite]] = []

    def look() -> None:
        while not owners:
            time.sleep(0.005)
        wanted = [marked(upload, "<- sleeps")]
        seen.append(comes_to(lambda: sites(owners[0])[:1], wanted))

    async def upload() -> None:
        owners.append(current())
        while not seen:
            await asyncio.sleep(0.05)  # <- sleeps

    looking = threading.Thread(target=look)
    looking.start()
    asyncio.run(upload())
    looking.join()
    assert seen == [[marked(upload, "<- sleeps")]]


def test_where_a_task_waits_in_a_greenlet() -> None:
    owners: list[Owner] = []

    def work() -> None:
        owners.append(current())
        await_only(asyncio.sleep(20))

    async def export() -> None:
        await greenlet_spawn(work)  # <- spawns

    async def story() -> None:
        task = asyncio.create_task(export())
        while not owners:
            await asyncio.sleep(0)
        assert sites(owners[0]) == [marked(export, "<- spawns")]
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(story())


def test_where_a_running_task_is() -> None:
    async def export() -> list[CallSite]:
        return sites(current())  # <- here

    assert asyncio.run(export())[1] == marked(export, "<- here")

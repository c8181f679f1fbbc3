"""Who uses a session: threads, tasks, pieces of a thread's work, and where each is now."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import linecache
import re
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.util import greenlet_spawn

from session_tracer.where.callsite import Locator
from session_tracer.where.owner import Owner, current
from session_tracer.where.running import locals_elsewhere, undisturbed
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.where.callsite import CallSite


def in_thread(work: Callable[[], Any], name: str = "export-3") -> Any:
    """What the function returns, in a thread of its own, which has ended by then."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(work()), name=name)
    thread.start()
    thread.join()
    (answer,) = answers
    return answer


def sites(owner: Owner) -> list[CallSite]:
    """The application's lines where the owner is now, innermost first."""
    return Locator().sites(owner.frames())


def comes_to(now: Callable[[], Any], wanted: Any) -> Any:
    """What it is in the end, which is waited for."""
    until = time.monotonic() + 20
    while now() != wanted and time.monotonic() < until:
        time.sleep(0.005)
    return now()


# Threads.


def test_the_main_thread_is_one_owner() -> None:
    assert current() is current()
    assert current().name == 'thread "MainThread"'
    assert current().is_current()
    assert not current().is_task


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="Python collects between instructions, not inside of one"
)
@pytest.mark.parametrize("is_collecting", [True, False], ids=["collecting", "switched off"])
def test_no_garbage_is_collected_while_another_threads_frame_is_asked(is_collecting: bool) -> None:
    """What a collection ends may let that thread run on: its function returns as it is read."""
    entered, done = threading.Event(), threading.Event()
    began: list[str] = []

    def work(depth: int) -> None:
        if depth:
            return work(depth - 1)
        entered.set()
        done.wait(20)
        return None

    def note(phase: str, info: dict[str, int]) -> None:
        del info
        frame = sys._getframe(1)
        if phase == "start":
            began.append(linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip())

    thread = threading.Thread(target=work, args=(40,))
    thread.start()
    entered.wait(20)
    owner = Owner(thread, None, None, None)
    threshold = gc.get_threshold()
    if not is_collecting:
        gc.disable()
    gc.callbacks.append(note)
    try:
        gc.set_threshold(1)
        frames = owner.frames()
        values = [locals_elsewhere(frame) for frame in frames]
        gc.set_threshold(*threshold)
        assert gc.isenabled() == is_collecting
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(note)
        gc.enable()
        done.set()
        thread.join()
    assert sum(one.get("depth") in range(41) for one in values) == 41
    assert bool(began) == is_collecting
    asking = re.compile(r"\.f_back|\.f_locals|_current_frames|return ask\(\)")
    assert [line for line in began if asking.search(line)] == []


def test_garbage_is_collected_after_a_frame_could_not_be_asked() -> None:
    class Refusing:
        @property
        def cr_frame(self) -> None:
            raise LookupError("not now")

    with pytest.raises(LookupError, match="not now"):
        undisturbed(partial(getattr, Refusing(), "cr_frame"))
    assert gc.isenabled()


def test_each_thread_is_an_owner() -> None:
    def twice() -> tuple[Owner, Owner, bool]:
        return current(), current(), current().is_current()

    first, second, is_current = in_thread(twice)
    assert first is second
    assert is_current
    assert (first.name, first.is_task) == ('thread "export-3"', False)
    assert first != current()
    assert not first.is_current()


def test_two_threads_of_one_name_are_two_owners() -> None:
    assert in_thread(current) != in_thread(current)


def test_an_owner_stays_itself_when_its_thread_is_gone() -> None:
    owner = in_thread(current)
    gc.collect()
    assert {owner: 1}[owner] == 1
    assert owner != in_thread(current)
    assert (owner.name, owner.thread_name, owner.frames()) == ('thread "export-3"', "", [])


def test_a_thread_is_not_kept() -> None:
    thread = threading.Thread(target=str)
    owner, gone = Owner(thread, None, None, None), weakref.ref(thread)
    del thread
    gc.collect()
    assert gone() is None
    assert owner.thread_name == ""


# Pieces of a thread's work.


def test_each_piece_of_work_in_a_context_of_its_own_is_an_owner() -> None:
    def pieces() -> list[Owner]:
        return [contextvars.copy_context().run(current) for _ in range(2)]

    first, second = in_thread(pieces)
    assert first != second
    assert first.name == second.name


def test_a_piece_of_work_is_current_in_its_own_context_alone() -> None:
    def pieces() -> list[bool]:
        mine, another = contextvars.copy_context(), contextvars.copy_context()
        owner = mine.run(current)
        return [mine.run(owner.is_current), another.run(owner.is_current), owner.is_current()]

    assert in_thread(pieces) == [True, False, False]


def test_a_context_that_goes_to_another_thread_takes_no_owner_along() -> None:
    def copied() -> tuple[Owner, contextvars.Context]:
        return current(), contextvars.copy_context()

    owner, context = in_thread(copied)
    assert in_thread(lambda: context.run(current)) != owner
    assert not in_thread(lambda: context.run(owner.is_current))
    assert context.run(current) == current()


def test_work_that_is_given_to_a_thread_is_an_owner_each_time() -> None:
    async def work() -> list[Owner]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        return [await asyncio.to_thread(current) for _ in range(2)]

    first, second = asyncio.run(work())
    assert first != second
    assert not first.is_task


def test_a_thread_does_not_report_a_piece_of_work_that_is_over() -> None:
    free = threading.Event()
    owners: list[Owner] = []

    def wait() -> None:
        owners.append(current())
        free.wait(20)  # <- waits

    async def work() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        before = await asyncio.to_thread(current)
        waiting = asyncio.create_task(asyncio.to_thread(wait))
        await asyncio.sleep(0)
        wanted = [marked(wait, "<- waits")]
        assert comes_to(lambda: [site for one in owners for site in sites(one)], wanted) == wanted
        assert before.thread_name == owners[0].thread_name
        assert before.frames() == []
        free.set()
        await waiting

    asyncio.run(work())


# Tasks.


def test_each_task_is_an_owner() -> None:
    async def own() -> Owner:
        return current()

    async def work() -> None:
        task = asyncio.create_task(own(), name="export-3")
        first, second = await task, await asyncio.create_task(own())
        assert first != second
        assert first != current()
        assert (first.name, first.is_task) == ('task "export-3"', True)
        assert not first.is_current()
        assert current() == current()
        assert current().is_current()

    asyncio.run(work())


def test_an_owner_stays_itself_when_its_task_is_gone() -> None:
    async def own() -> Owner:
        return current()

    async def work() -> None:
        owner = await asyncio.create_task(own())
        await asyncio.sleep(0)
        gc.collect()
        assert {owner: 1}[owner] == 1
        assert owner != await asyncio.create_task(own())
        assert owner.frames() == []

    asyncio.run(work())


def test_a_task_is_not_kept() -> None:
    async def own() -> Owner:
        return current()

    async def work() -> None:
        task = asyncio.create_task(own())
        owner, gone = await task, weakref.ref(task)
        del task
        await asyncio.sleep(0)
        gc.collect()
        assert gone() is None
        assert owner.loop() is asyncio.get_running_loop()

    asyncio.run(work())
    gc.collect()


def test_a_loop_is_not_kept() -> None:
    async def own() -> Owner:
        return current()

    owner = asyncio.run(own())
    gc.collect()
    assert owner.loop() is None


def test_nothing_is_added_to_a_tasks_context() -> None:
    async def work() -> None:
        before = dict(contextvars.copy_context())
        assert current().is_current()
        assert dict(contextvars.copy_context()) == before
        await greenlet_spawn(current)
        await asyncio.to_thread(current)
        assert dict(contextvars.copy_context()) == before

    before = dict(contextvars.copy_context())
    asyncio.run(work())
    current()
    assert dict(contextvars.copy_context()) == before


def test_a_greenlet_is_its_tasks() -> None:
    async def work() -> None:
        assert await greenlet_spawn(current) == current()
        assert await greenlet_spawn(current().is_current)

    asyncio.run(work())


def test_a_callback_of_the_loop_is_the_threads() -> None:
    async def work() -> tuple[Owner, bool, bool]:
        called: asyncio.Future[tuple[Owner, bool, bool]] = asyncio.Future()
        mine = current()
        asyncio.get_running_loop().call_soon(
            lambda: called.set_result((current(), current().is_current(), mine.is_current()))
        )
        return await called

    owner, is_current, is_mine = asyncio.run(work())
    assert (owner.is_task, is_current, is_mine) == (False, True, False)
    assert owner == current()

"""Tests which line loops, where something happens again and again."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from session_tracer.where.callsite import Locator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


class Watcher:
    """Asks at its second last and its last call which line loops."""

    def __init__(self, last: int = 3, opened: Any = None) -> None:
        self.locator, self.last, self.opened = Locator(), last, opened
        self.calls, self.before = 0, dict[tuple[int, int], int]()
        self.loop = ""

    def __call__(self, *_: object) -> int:
        self.calls += 1
        if self.calls == self.last - 1:
            self.before = self.locator.passed()
        elif self.calls == self.last:
            loop = self.locator.loop(self.before, self.opened)
            if loop is not None:
                self.loop = inspect.getsource(inspect.getmodule(type(self)) or pytest).splitlines()[
                    loop.line - 1
                ]
        return 1


def helper(watch: Watcher) -> None:
    watch()


def helper_with_a_loop_before(watch: Watcher) -> None:
    for _ in range(3):
        pass
    watch()


def helper_with_a_handler(watch: Watcher) -> None:
    with suppress(ValueError):
        int("1")
    try:
        int("x")
    except ValueError:
        int("2")
    watch()


def for_loop(watch: Watcher) -> None:
    for _ in range(5):
        watch()  # loops


def while_loop(watch: Watcher) -> None:
    while watch.calls < 5:
        helper(watch)  # loops


def comprehension(watch: Watcher) -> None:
    assert [watch() for _ in range(5)]  # loops


def generator_expression(watch: Watcher) -> None:
    assert sum(watch() for _ in range(5)) == 5  # loops


def generator(watch: Watcher) -> None:
    def numbers() -> Iterator[int]:
        for _ in range(5):
            yield watch()  # loops

    assert sum(numbers()) == 5


def through_a_helper(watch: Watcher) -> None:
    for _ in range(5):
        helper_with_a_loop_before(watch)  # loops


def through_a_helper_with_a_handler(watch: Watcher) -> None:
    for _ in range(5):
        helper_with_a_handler(watch)  # loops


def in_a_handler(watch: Watcher) -> None:
    for _ in range(5):
        try:
            int("x")
        except ValueError:
            helper(watch)  # loops
    int("0")


def in_a_block(watch: Watcher) -> None:
    @contextmanager
    def block() -> Iterator[None]:
        yield
        watch()

    for _ in range(5):
        with block():  # loops
            pass


def handled_in_the_loop(watch: Watcher) -> None:
    for _ in range(5):
        try:
            helper(watch)  # loops
        except ValueError:
            int("0")


def retried_in_a_loop(watch: Watcher) -> None:
    def create() -> int:
        for _ in range(3):
            try:
                return watch()
            except ValueError:
                int("0")
        return 0

    for _ in range(5):
        create()  # loops


def consumed_line_by_line(watch: Watcher) -> None:
    def numbers() -> Iterator[int]:
        for _ in range(5):
            yield watch()  # loops

    each = numbers()
    next(each)
    next(each)
    next(each)
    next(each)


def nested(watch: Watcher) -> None:
    for _ in range(5):
        for _ in range(2):
            helper(watch)  # loops


def recursive(watch: Watcher) -> None:
    def walk(depth: int) -> None:
        watch()
        for _ in range(2 if depth else 0):
            walk(depth - 1)  # loops

    walk(3)


def unrolled(watch: Watcher) -> None:
    helper(watch)
    helper(watch)
    helper(watch)


def after_a_loop(watch: Watcher) -> None:
    for _ in range(3):
        pass
    watch()
    watch()
    watch()


def after_a_handler(watch: Watcher) -> None:
    for _ in range(3):
        try:
            int("x")
        except ValueError:
            int("0")
    watch()
    watch()
    watch()


def retried(watch: Watcher) -> None:
    def create() -> int:
        for _ in range(3):
            try:
                return watch()
            except ValueError:
                int("0")
        return 0

    create()
    create()
    create()
    create()


def retried_with_more_in_the_block(watch: Watcher) -> None:
    def create() -> None:
        while True:
            try:
                helper(watch)
                int("0")
                break
            except ValueError:
                continue

    create()
    create()
    create()
    create()


def loops_of_one_turn(watch: Watcher) -> None:
    def remove() -> None:
        for _ in range(1):
            helper(watch)

    remove()
    remove()
    remove()
    remove()


def loop_of_the_interpreter(watch: Watcher) -> None:
    assert list(map(watch, range(5)))


LOOPS = [
    for_loop,
    while_loop,
    comprehension,
    generator_expression,
    generator,
    through_a_helper,
    through_a_helper_with_a_handler,
    in_a_handler,
    in_a_block,
    handled_in_the_loop,
    retried_in_a_loop,
    consumed_line_by_line,
    nested,
    recursive,
]


@pytest.mark.parametrize("story", LOOPS, ids=lambda story: story.__name__)
def test_the_line_that_loops(story: Callable[[Watcher], None]) -> None:
    watch = Watcher(last=4)
    story(watch)
    assert watch.loop.endswith("# loops"), watch.loop
    assert watch.loop.strip() in inspect.getsource(story)


@pytest.mark.parametrize(
    "story",
    [
        unrolled,
        after_a_loop,
        after_a_handler,
        retried,
        retried_with_more_in_the_block,
        loops_of_one_turn,
        loop_of_the_interpreter,
    ],
    ids=lambda story: story.__name__,
)
def test_where_no_line_loops(story: Callable[[Watcher], None]) -> None:
    watch = Watcher(last=3)
    story(watch)
    assert (watch.loop, watch.calls >= 3) == ("", True)


async def save(watch: Watcher) -> None:
    await asyncio.sleep(0)
    watch()


async def awaited(watch: Watcher) -> None:
    for _ in range(5):
        await save(watch)  # loops


async def iterated(watch: Watcher) -> None:
    async def numbers() -> Any:
        for number in range(5):
            await asyncio.sleep(0)
            yield number

    async for _ in numbers():
        await save(watch)  # loops


async def awaited_in_tasks(watch: Watcher) -> None:
    for _ in range(5):
        await asyncio.create_task(save(watch))  # loops


async def awaited_one_after_the_other(watch: Watcher) -> None:
    await save(watch)
    await save(watch)
    await save(watch)
    await save(watch)


@pytest.mark.parametrize(
    "story", [awaited, iterated, awaited_in_tasks], ids=lambda story: story.__name__
)
def test_the_line_that_loops_and_awaits(story: Callable[[Watcher], Awaitable[None]]) -> None:
    watch = Watcher(last=4)
    asyncio.run(story(watch))  # type: ignore[arg-type] # they are coroutines
    assert watch.loop.endswith("# loops"), watch.loop


def test_an_await_is_no_loop() -> None:
    watch = Watcher(last=4)
    asyncio.run(awaited_one_after_the_other(watch))
    assert watch.loop == ""


def test_the_function_that_opened_the_session_is_the_last_one_that_is_asked() -> None:
    """What calls it again opens another session."""

    def handle() -> None:
        watch.opened = opened
        list(map(watch, range(5)))

    watch = Watcher(last=4)
    locator = Locator()
    opened = locator.locate()
    for _ in range(2):
        watch.calls = 0
        handle()
    assert watch.loop.strip() == "handle()"
    # Where handle() has opened it:
    line = handle.__code__.co_firstlineno + 1
    opened = type(opened)(opened.file, line, "handle") if opened else None
    watch.loop = ""
    for _ in range(2):
        watch.calls = 0
        handle()
    assert watch.loop == ""


def test_a_loop_around_the_line_that_opened_the_session_is_none() -> None:
    """Its next turn opens another session."""
    watch, locator = Watcher(last=4), Locator()

    def work() -> None:
        while watch.calls < 5:
            watch.opened = locator.locate()
            helper(watch)
            helper(watch)
            helper(watch)
            helper(watch)
            helper(watch)

    work()
    assert watch.loop == ""


def test_a_loop_behind_the_line_that_opened_the_session() -> None:
    watch, locator = Watcher(last=4), Locator()

    def work() -> None:
        while watch.calls < 5:
            watch.opened = locator.locate()
            for _ in range(5):
                helper(watch)  # loops

    work()
    assert watch.loop.endswith("# loops")


def test_a_loop_whose_line_opened_the_session() -> None:
    """A scoped session is opened by its first use."""
    watch = Watcher(last=4)

    def rows() -> list[int]:
        return [1, 2, 3, 4, 5]

    def work() -> None:
        watch.opened = Locator().locate()
        watch.opened = type(watch.opened)(
            watch.opened.file, watch.opened.line + 4, watch.opened.function
        )
        for _ in rows():
            helper(watch)  # loops

    work()
    assert watch.loop.endswith("# loops")


def repeated(how: Callable[[Callable[..., bool | None]], None]) -> bool | None:
    """Whether it is a loop by which a function is called for the third time."""
    locator, known = Locator(), dict[tuple[int, int], int]()
    calls: list[bool | None] = []
    asked: list[Callable[[], Any]] = [
        lambda: None,
        lambda: known.update(locator.passed()),
        lambda: locator.is_repeated(known),
    ]

    def call(*_: object) -> bool | None:
        calls.append(asked[len(calls)]())
        return False

    how(call)
    return calls[2]


def each(call: Callable[..., bool | None]) -> None:
    for _ in range(3):
        call()


def in_a_row(call: Callable[..., bool | None]) -> None:
    call()
    call()
    call()


def by_a_function_in_c(call: Callable[..., bool | None]) -> None:
    assert list(map(call, range(3)))


@pytest.mark.parametrize(("how", "answer"), [(each, True), (in_a_row, False)])
def test_whether_a_loop_or_a_row_of_calls_repeats(how: Any, answer: bool) -> None:
    assert repeated(how) is answer


def test_a_loop_that_is_not_written_in_python() -> None:
    assert repeated(by_a_function_in_c) is not False

"""Stories of what repeats: by whom, of which objects, and in a session that a registry holds."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import async_scoped_session
from sqlalchemy.orm import scoped_session

from session_tracer.testing import capture
from tests.good_code.silence import only_async, only_sync
from tests.library import Author, Book, authors, keep
from tests.stories.findings import shop
from tests.stories.findings.due import until
from tests.stories.findings.reading import tell
from tests.stories.lines import marked
from tests.twins import SyncSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.orm import Session

    from session_tracer.testing import Captured
    from tests.twins import Twin


BY_TITLE = select(Book).where(Book.title == bindparam("title"))


async def find(session: Any) -> None:
    await session.scalar(select(Author).limit(1))


async def read_all_books(session: Any) -> None:
    kept = (await session.scalars(select(Author))).all()
    await session.run_sync(lambda _: [author.books for author in kept])


async def find_twice(session: Any) -> None:
    await find(session)
    await find(session)


async def find_often(session: Any) -> None:
    for _ in range(5):
        await find(session)


@only_async
@pytest.mark.parametrize(
    ("work", "found"),
    [
        (find_twice, []),
        (find_often, ["repeated-select"]),
        (read_all_books, ["n-plus-one"]),
    ],
)
def test_requests_that_share_a_session_do_not_repeat_for_one_another(
    twin: Twin, work: Any, found: list[str]
) -> None:
    async def serve(served: asyncio.Event, sessions: list[Any]) -> None:
        async with twin.session() as session:
            sessions.append(session)
            await served.wait()

    async def story() -> None:
        await keep(twin, *authors(5, books_each=1))
        with capture(twin.factory) as captured:
            served = asyncio.Event()
            sessions: list[Any] = []
            server = asyncio.create_task(serve(served, sessions))
            await until(lambda: sessions, is_async=True)
            for _ in range(4):
                # Not awaited, as a server's handlers are not.
                request = asyncio.create_task(work(*sessions))
                await until(request.done, is_async=True)
            served.set()
            await server
        ids = {finding.id for finding in captured.findings}
        assert ids & {"repeated-select", "n-plus-one"} == {*found}

    twin.run(story)


def test_objects_that_the_session_has_added_are_brought_by_no_select(twin: Twin) -> None:
    def read_new_ones(session: Session) -> None:
        added = [Author(name=f"new {number}") for number in range(6)]
        session.add_all(added)
        session.flush()
        assert [len(author.books) for author in added] == [0] * 6
        session.commit()

    def read_old_ones(session: Session) -> None:
        assert [len(author.books) for author in session.scalars(select(Author))] == [0] * 6

    async def story() -> None:
        assert (await tell(twin, read_new_ones)).findings == []
        assert [one.id for one in (await tell(twin, read_old_ones)).findings] == ["n-plus-one"]

    twin.run(story)


def test_what_a_delete_looks_for_is_not_the_query_that_flushes_it(twin: Twin) -> None:
    def delete_each(session: Session) -> None:
        for customer in session.scalars(select(shop.Customer).where(shop.Customer.id > 1)).all():
            session.delete(customer)
            session.scalar(select(shop.Order).where(shop.Order.id == customer.id))
        session.commit()

    def delete_all(session: Session) -> None:
        for customer in session.scalars(select(shop.Customer).where(shop.Customer.id > 1)).all():
            session.delete(customer)
        session.flush()  # <- flushed
        session.commit()

    async def story() -> None:
        async with shop.opened(twin):
            for work in (delete_each, delete_all):
                async with twin.session() as session:
                    session.add_all([shop.Customer(name=f"new {n}") for n in range(6)])
                    await session.commit()
                found = [
                    (one.id, one.site)
                    for one in (await tell(twin, work)).findings
                    if one.id == "n-plus-one"
                ]
                due = [("n-plus-one", marked(delete_all, "<- flushed"))]
                assert [one for one, _ in found] == [one for one, _ in due * (work is delete_all)]

    twin.run(story)


def by_execute(registry: scoped_session[Session], title: str) -> bool:
    return registry.scalar(select(Book).where(Book.title == title)) is not None


def by_query(registry: scoped_session[Session], title: str) -> bool:
    return registry.query(Book).filter_by(title=title).first() is not None


def by_the_models_query(registry: scoped_session[Session], title: str) -> bool:
    query = registry.query_property().__get__(None, Book)  # as Book.query
    return query.filter_by(title=title).first() is not None


@only_sync
@pytest.mark.parametrize("exists", [by_execute, by_query, by_the_models_query])
def test_the_loop_around_the_function_that_first_uses_a_registrys_session(
    twin: Twin, exists: Any
) -> None:
    registry = scoped_session(twin.factory)

    def add_missing(author: Author) -> None:
        for number in range(12):
            if not exists(registry, f"title {number}"):  # <- loops
                registry.add(Book(title=f"title {number}", author_id=author.id))
        registry.commit()

    async def story() -> None:
        author = Author(name="Ada")
        await keep(twin, author)
        with capture(twin.factory) as captured:
            author = Author(id=1, name="Ada")
            add_missing(author)
            registry.remove()
        (found,) = captured.findings
        place = str(marked(add_missing, "<- loops")).partition(" in ")[0]
        assert str(found.evidence["loop"]).startswith(place)

    twin.run(story)


@only_async
def test_the_loop_around_the_function_that_first_uses_a_tasks_session(twin: Twin) -> None:
    registry = async_scoped_session(twin.factory, asyncio.current_task)

    async def find(title: str) -> Any:
        session = registry()
        return await session.scalar(select(Book).where(Book.title == title))

    async def find_all() -> None:
        for number in range(12):
            await find(f"title {number}")  # <- loops

    async def story() -> None:
        with capture(twin.factory) as captured:
            await find_all()
            await registry.remove()
        (found,) = captured.findings
        place = str(marked(find_all, "<- loops")).partition(" in ")[0]
        assert str(found.evidence["loop"]).startswith(place)

    twin.run(story)


@only_sync
def test_a_worker_whose_jobs_open_a_session_each_has_no_loop_in_one_of_them(twin: Twin) -> None:
    registry = scoped_session(twin.factory)

    def job(number: int) -> None:
        with twin.factory() as session:  # not the registry's
            found = partial(session.scalar, BY_TITLE)
            list(map(found, [{"title": f"{number} {n}"} for n in range(12)]))

    def work() -> None:
        registry.query(Book).first()
        registry.remove()
        for number in range(2):
            job(number)

    async def story() -> None:
        with capture(twin.factory) as captured:
            work()
        assert {one.evidence.get("loop") for one in captured.findings} == {None}
        assert [one.id for one in captured.findings] == ["query-in-loop"] * 2

    twin.run(story)


# What opens a session for each turn of a loop, and ends it.


def registry_of(twin: Twin) -> Any:
    if twin.is_async:
        return async_scoped_session(twin.factory, asyncio.current_task)
    return scoped_session(twin.factory)


def as_async(twin: Twin, session: Any) -> Any:
    return session if twin.is_async else SyncSession(session)


async def by_a_registry(twin: Twin, work: Any, session: Any = None) -> None:
    if session is not None:
        await work(session)
        return
    registry = registry_of(twin)
    session = registry()
    try:
        await work(as_async(twin, session))
    finally:
        removed = registry.remove()
        if twin.is_async:
            await removed


async def by_a_factory(twin: Twin, work: Any, session: Any = None) -> None:
    if session is not None:
        await work(session)
    else:
        session = twin.session()
        try:
            await work(session)
        finally:
            await session.close()


@asynccontextmanager
async def session_of_its_own(twin: Twin) -> AsyncIterator[Any]:
    registry = registry_of(twin)
    session = registry()
    try:
        yield as_async(twin, session)
    finally:
        removed = registry.remove()
        if twin.is_async:
            await removed


CURRENT: list[Any] = []


@asynccontextmanager
async def current_session(twin: Twin) -> AsyncIterator[Any]:
    if CURRENT:
        yield CURRENT[0]
        return
    async with twin.session() as session:
        CURRENT.append(session)
        yield session
        CURRENT.clear()


async def by_a_generator(twin: Twin, work: Any, session: Any = None) -> None:
    async with session_of_its_own(twin) as own:
        await work(session or own)


async def by_the_outermost(twin: Twin, work: Any, _: Any = None) -> None:
    async with current_session(twin) as session:
        await work(session)


WAYS = [by_a_registry, by_a_factory, by_a_generator, by_the_outermost]


async def find_title(session: Any, title: str) -> None:
    await session.scalar(select(Book).where(Book.title == title))


def loop_of(captured: Captured) -> str:
    (found,) = captured.findings
    return str(found.evidence["loop"]).rpartition("/")[2].partition(" in ")[0]


def line(function: Any, mark: str) -> str:
    return str(marked(function, mark)).rpartition("/")[2].partition(" in ")[0]


@pytest.mark.parametrize("own", WAYS)
def test_calls_in_a_row_are_no_loop_where_each_turn_around_them_has_its_session(
    twin: Twin, own: Any
) -> None:
    async def three_in_a_row(session: Any) -> None:
        await find_title(session, "one")
        await find_title(session, "two")
        await find_title(session, "three")

    async def story() -> None:
        with capture(twin.factory, queries_from_one_site=3) as captured:
            for _ in range(3):
                await own(twin, three_in_a_row)
        assert captured.findings == []

    twin.run(story)


@pytest.mark.parametrize("own", WAYS)
def test_a_loop_in_what_has_its_session_is_named(twin: Twin, own: Any) -> None:
    async def each(session: Any) -> None:
        for number in range(4):
            await find_title(session, f"title {number}")  # <- loops

    async def story() -> None:
        with capture(twin.factory, queries_from_one_site=3) as captured:
            await own(twin, each)
        assert loop_of(captured) == line(each, "<- loops")

    twin.run(story)


@pytest.mark.parametrize("own", WAYS)
def test_a_loop_around_calls_that_are_given_its_session_is_named(twin: Twin, own: Any) -> None:
    async def each(session: Any) -> None:
        for number in range(4):
            find = partial(find_title, title=f"title {number}")
            await own(twin, find, session)  # <- loops

    async def story() -> None:
        with capture(twin.factory, queries_from_one_site=3) as captured:
            await own(twin, each)
        assert loop_of(captured) == line(each, "<- loops")

    twin.run(story)


@only_sync
def test_a_registrys_session_that_only_an_exception_removes_is_the_next_turns_too(
    twin: Twin,
) -> None:
    registry = scoped_session(twin.factory)

    def find_or_fail(title: str) -> Any:
        session = registry()
        try:
            return session.scalar(select(Book).where(Book.title == title))
        except ValueError:
            registry.remove()
            raise

    def each() -> None:
        for number in range(4):
            find_or_fail(f"title {number}")  # <- loops

    def before_it_is_removed() -> None:
        for number in range(4):
            registry.scalar(select(Book).where(Book.title == f"title {number}"))  # <- loops
        registry.remove()

    async def story() -> None:
        for work in (each, before_it_is_removed):
            with capture(twin.factory, queries_from_one_site=3) as captured:
                work()
            registry.remove()
            assert loop_of(captured) == line(work, "<- loops")

    twin.run(story)


# Tasks that a loop waits for, one after the other.


class Loader:
    """Loads what is asked for in a task of its own, at the event loop's next turn."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._queue: list[tuple[int, asyncio.Future[str]]] = []

    def load(self, key: int) -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        if not self._queue:
            loop.call_soon(lambda: asyncio.ensure_future(self._dispatch()))
        self._queue.append((key, future))
        return future

    async def _dispatch(self) -> None:
        queue, self._queue = self._queue, []
        keys = [key for key, _ in queue]
        query = select(Author.id, Author.name).where(Author.id.in_(keys))
        names = dict((await self._session.execute(query)).all())  # <- asked
        for key, future in queue:
            future.set_result(names[key])


async def key_by_key(session: Any) -> None:
    loader = Loader(session)
    for key in range(1, 6):
        assert await loader.load(key)  # <- loops


async def key_by_key_in_a_helper(session: Any) -> None:
    loader = Loader(session)

    async def name_of(key: int) -> str:
        return await loader.load(key)

    for key in range(1, 6):
        assert await name_of(key)  # <- loops


async def all_keys_at_once(session: Any) -> None:
    loader = Loader(session)
    names = await asyncio.gather(*(loader.load(key) for key in range(1, 6)))
    assert len(names) == 5


async def find_in_tasks(session: Any) -> None:
    for _ in range(5):
        await asyncio.create_task(find(session))  # <- loops


@only_async
@pytest.mark.parametrize(
    ("work", "found"),
    [
        (key_by_key, "query-in-loop"),
        (key_by_key_in_a_helper, "query-in-loop"),
        (all_keys_at_once, ""),
        (find_in_tasks, "repeated-select"),
    ],
)
def test_tasks_that_a_loop_waits_for_repeat_for_the_loop(twin: Twin, work: Any, found: str) -> None:
    async def open_session() -> None:
        async with twin.session() as session:
            await work(session)

    async def story() -> None:
        await keep(twin, *authors(5))
        with capture(twin.factory, queries_from_one_site=3, repeats_of_one_select=3) as captured:
            await asyncio.create_task(open_session())
        assert [one.id for one in captured.findings] == [found] * bool(found)
        for one in captured.findings:
            assert one.evidence["loop"] == str(marked(work, "<- loops"))

    twin.run(story)


async def serving(session: Any, start: Any) -> None:
    start(session)
    await asyncio.sleep(0.2)  # for ever


async def accepting(session: Any, start: Any) -> None:
    number = 0
    while number < 6:
        number += 1
        await asyncio.sleep(0.01)  # the next connection
        start(session, 1)


async def consuming(session: Any, start: Any) -> None:
    async def messages() -> Any:
        for number in range(6):
            await asyncio.sleep(0.01)
            yield number

    async for _ in messages():
        start(session, 1)


@only_async
@pytest.mark.parametrize("serve", [serving, accepting, consuming])
def test_a_server_whose_tasks_share_its_session_is_no_loop(twin: Twin, serve: Any) -> None:
    tasks: list[asyncio.Task[None]] = []
    served: list[int] = []
    done = asyncio.Event()
    one_at_a_time = asyncio.Lock()

    async def later(session: Any, number: int) -> None:
        await asyncio.sleep(0.02 * number)
        async with one_at_a_time:
            await find(session)
        served.append(number)
        if len(served) == 6:
            done.set()

    def start(session: Any, number: int = 6) -> None:
        tasks.extend([asyncio.create_task(later(session, n)) for n in range(1, number + 1)])

    async def main() -> None:
        async with twin.session() as session:
            await serve(session, start)
            # Nor are these awaited, or waited for in a loop: that would make one user of them.
            await done.wait()

    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory, repeats_of_one_select=3) as captured:
            await asyncio.create_task(main())
        assert "repeated-select" not in {one.id for one in captured.findings}

    twin.run(story)

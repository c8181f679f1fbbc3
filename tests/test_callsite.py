"""Tests that a site is the line that a developer would open."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import sysconfig
import threading
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jinja2 import Environment, FileSystemLoader
from sqlalchemy import create_engine, event, insert, select, text, update
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer import CallSite, Exporter, facts, instrument
from session_tracer.testing import Captured, capture
from session_tracer.where.callsite import Locator
from tests.library import Author, Base, Book, Item

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from types import FrameType

    from sqlalchemy.orm import ORMExecuteState

    from session_tracer.facts import Fact

Factory = sessionmaker[Session]
AsyncFactory = async_sessionmaker[AsyncSession]

ONE = text("SELECT 1")
SITE_PACKAGES = sysconfig.get_path("purelib")

_LINES = Path(__file__).read_text().splitlines()


def marked(mark: str, function: str) -> CallSite:
    """The site of the line of this file that ends in `# <- mark`."""
    (line,) = [n for n, line in enumerate(_LINES, 1) if line.endswith(f"# <- {mark}")]
    return CallSite(__file__, line, function)


def sites(captured: Captured, *kinds: type[Fact]) -> list[CallSite | None]:
    """The sites of all facts of these types."""
    return [fact.site for fact in captured.facts if isinstance(fact, kinds)]  # type: ignore[union-attr] # the caller names facts that have one


def executed(captured: Captured) -> list[CallSite | None]:
    """The sites of all statements."""
    return sites(captured, facts.StatementExecuted)


def chain(site: CallSite | None) -> list[CallSite]:
    """A site and its callers."""
    return [] if site is None else [site, *site.callers]


def compiled(source: str, file: str, name: str, **known: Any) -> dict[str, Any]:
    """What a module of this name holds that was compiled from this file."""
    module: dict[str, Any] = {"__name__": name, **known}
    exec(compile(source, file, "exec"), module)
    return module


@pytest.fixture
def factory() -> Iterator[Factory]:
    # One connection for every thread; closing it is the last thing a test does.
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    yield sessionmaker(engine)
    engine.dispose()


@pytest.fixture
def library(factory: Factory) -> Factory:
    """The factory, with one author and her book in the database."""
    with factory.begin() as session:
        Base.metadata.create_all(session.connection())
        session.add(Author(name="Ada", books=[Book(title="Notes")]))
    return factory


@pytest.fixture
async def async_factory() -> AsyncIterator[AsyncFactory]:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    yield async_sessionmaker(engine)
    await engine.dispose()


# Plain Python around a plain session.


def test_each_fact_names_the_line_that_made_it_happen(factory: Factory) -> None:
    with capture(factory) as captured:
        session = factory()  # <- opened
        session.execute(ONE)  # <- executed
        session.commit()  # <- committed
        session.close()  # <- closed
    name = "test_each_fact_names_the_line_that_made_it_happen"
    assert [(type(fact), fact.site) for fact in captured.facts if hasattr(fact, "site")] == [
        (facts.SessionOpened, marked("opened", name)),
        (facts.TransactionBegan, marked("executed", name)),
        (facts.ConnectionAcquired, marked("executed", name)),
        (facts.StatementExecuted, marked("executed", name)),
        (facts.TransactionEnded, marked("committed", name)),
        (facts.SessionClosed, marked("closed", name)),
    ]


@contextmanager
def unit_of_work(factory: Factory) -> Iterator[Session]:
    session = factory()  # <- unit of work opens
    try:
        yield session
        session.commit()  # <- unit of work commits
    finally:
        session.close()  # <- unit of work closes


def test_a_context_manager_is_not_hidden_by_contextlib(factory: Factory) -> None:
    with capture(factory, site_frames=2) as captured, unit_of_work(factory) as session:  # <- with
        session.execute(ONE)  # <- within
    caller = marked("with", "test_a_context_manager_is_not_hidden_by_contextlib")
    (opened,) = sites(captured, facts.SessionOpened)
    (statement,) = executed(captured)
    (committed,) = sites(captured, facts.TransactionEnded)
    (closed,) = sites(captured, facts.SessionClosed)
    assert chain(opened) == [marked("unit of work opens", "unit_of_work"), caller]
    assert chain(statement)[:1] == [marked("within", caller.function)]
    assert chain(committed) == [marked("unit of work commits", "unit_of_work"), caller]
    assert chain(closed) == [marked("unit of work closes", "unit_of_work"), caller]


def get_db(factory: Factory) -> Iterator[Session]:
    with factory() as session:  # <- get_db
        yield session


def test_a_generator_dependency_opens_and_closes_its_session(factory: Factory) -> None:
    # As FastAPI runs what Depends(get_db) names.
    with capture(factory) as captured, ExitStack() as request:
        session = request.enter_context(contextmanager(get_db)(factory))
        session.execute(ONE)  # <- with dependency
    name = "test_a_generator_dependency_opens_and_closes_its_session"
    assert sites(captured, facts.SessionOpened) == [marked("get_db", "get_db")]
    assert executed(captured) == [marked("with dependency", name)]
    assert sites(captured, facts.SessionClosed) == [marked("get_db", "get_db")]


def as_a_list(session: Session) -> list[Any]:
    return [session.scalar(ONE) for _ in range(1)]  # <- list


def as_a_set(session: Session) -> set[Any]:
    return {session.scalar(ONE) for _ in range(1)}  # <- set


def as_a_dict(session: Session) -> dict[int, Any]:
    return {n: session.scalar(ONE) for n in range(1)}  # <- dict


def as_a_generator(session: Session) -> int:
    return sum(session.scalars(ONE).one() for _ in range(1))  # <- generator


def as_a_nest(session: Session) -> list[set[int]]:
    return [{sum(session.scalars(ONE).one() for _ in "1") for _ in "2"} for _ in "3"]  # <- nest


@pytest.mark.parametrize(
    ("mark", "function"),
    [
        ("list", as_a_list),
        ("set", as_a_set),
        ("dict", as_a_dict),
        ("generator", as_a_generator),
        ("nest", as_a_nest),
    ],
)
def test_a_comprehension_bears_the_name_of_the_function_it_is_written_in(
    factory: Factory, mark: str, function: Callable[[Session], object]
) -> None:
    with capture(factory) as captured, factory() as session:
        function(session)
    assert executed(captured) == [marked(mark, function.__name__)]


def test_a_comprehension_is_no_frame_of_its_own_among_the_callers(factory: Factory) -> None:
    with capture(factory, site_frames=2) as captured, factory() as session:
        as_a_nest(session)  # <- calls the nest
    (statement,) = executed(captured)
    assert chain(statement) == [
        marked("nest", "as_a_nest"),
        marked(
            "calls the nest",
            "test_a_comprehension_is_no_frame_of_its_own_among_the_callers",
        ),
    ]


def test_a_comprehension_outside_of_every_function_is_of_the_module(tmp_path: Path) -> None:
    source = "found = [[locate() for _ in '1'] for _ in '2']\nclass Shop:\n"
    source += "    found = [locate() for _ in '1']\n"
    file = str(tmp_path / "shop.py")
    module = compiled(source, file, "shop", locate=Locator().locate)
    assert module["found"] == [[CallSite(file, 1, "<module>")]]
    assert module["Shop"].found == [CallSite(file, 3, "Shop")]


def test_a_lambda_is_a_line_of_the_application(factory: Factory) -> None:
    with capture(factory) as captured, factory() as session:
        works: list[Callable[[], object]] = [lambda: session.execute(ONE)]  # <- lambda
        works[0]()
    (statement,) = executed(captured)
    assert statement == marked("lambda", "<lambda>")
    assert str(statement).endswith(f":{statement.line} in <lambda>")


def test_a_lambda_in_a_comprehension_is_a_lambda(factory: Factory) -> None:
    with capture(factory) as captured, factory() as session:
        works: list[Callable[[], object]]
        works = [lambda: session.execute(ONE) for _ in range(1)]  # <- lambda in a list
        works[0]()
    assert executed(captured) == [marked("lambda in a list", "<lambda>")]


class Shelf:
    """A repository, as many applications have them."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def count(self) -> object:
        return self.session.scalar(ONE)  # <- method


def test_a_method_is_named_with_its_class(factory: Factory) -> None:
    with capture(factory) as captured, factory() as session:
        Shelf(session).count()
    assert executed(captured) == [marked("method", "Shelf.count")]


def test_generated_code_is_skipped(factory: Factory) -> None:
    @dataclass
    class Page:
        session: Session = field(default_factory=factory)

    with capture(factory) as captured:
        page = Page()  # <- makes a page
        page.session.close()
    name = "test_generated_code_is_skipped"
    assert sites(captured, facts.SessionOpened) == [marked("makes a page", name)]


# SQLAlchemy's own ways of speaking.


def test_a_scoped_session_is_opened_where_it_is_first_used(factory: Factory) -> None:
    registry = scoped_session(factory)
    with capture(registry) as captured:
        registry.execute(ONE)  # <- proxy
        registry.remove()  # <- removed
    name = "test_a_scoped_session_is_opened_where_it_is_first_used"
    assert sites(captured, facts.SessionOpened) == [marked("proxy", name)]
    assert executed(captured) == [marked("proxy", name)]
    assert sites(captured, facts.SessionClosed) == [marked("removed", name)]


class ShopSession(Session):
    """A session with a way of its own."""

    def count(self) -> object:
        return self.scalar(ONE)  # <- subclass


def test_a_session_subclass_is_part_of_the_application(factory: Factory) -> None:
    made_by = sessionmaker(factory.kw["bind"], class_=ShopSession)
    with capture(made_by) as captured, made_by() as session:
        session.execute(ONE)  # <- on a subclass
        session.count()
    name = "test_a_session_subclass_is_part_of_the_application"
    assert executed(captured) == [
        marked("on a subclass", name),
        marked("subclass", "ShopSession.count"),
    ]


def test_a_legacy_query_names_the_line_that_runs_it(library: Factory) -> None:
    with capture(library) as captured, library() as session:
        query = session.query(Author)
        query.all()  # <- query
    name = "test_a_legacy_query_names_the_line_that_runs_it"
    assert executed(captured) == [marked("query", name)]


def test_a_block_begins_and_commits_where_it_is_written(factory: Factory) -> None:
    with capture(factory) as captured, factory() as session:
        with session.begin():  # <- begin
            session.execute(ONE)
        with session.begin_nested():  # <- begin_nested
            pass
    name = "test_a_block_begins_and_commits_where_it_is_written"
    block, nested = marked("begin", name), marked("begin_nested", name)
    assert sites(captured, facts.TransactionBegan) == [block, nested, nested]
    assert sites(captured, facts.TransactionEnded)[:2] == [block, nested]


def test_a_factory_block_opens_commits_and_closes_where_it_is_written(factory: Factory) -> None:
    with capture(factory) as captured, factory.begin() as session:  # <- factory begin
        session.execute(ONE)
    name = "test_a_factory_block_opens_commits_and_closes_where_it_is_written"
    told_of = (facts.SessionOpened, facts.TransactionEnded, facts.SessionClosed)
    assert sites(captured, *told_of) == [marked("factory begin", name)] * 3


def test_a_lazy_load_names_the_line_that_reads_the_attribute(library: Factory) -> None:
    with capture(library) as captured, library() as session:
        author = session.scalars(select(Author)).one()
        assert len(author.books) == 1  # <- attribute
    name = "test_a_lazy_load_names_the_line_that_reads_the_attribute"
    assert sites(captured, facts.AttributeLoaded) == [marked("attribute", name)]


def test_what_an_autoflush_writes_is_of_the_line_that_asked(library: Factory) -> None:
    with capture(library) as captured, library() as session:
        session.add(Author(name="Grace"))
        session.scalars(select(Author))  # <- autoflush
    name = "test_what_an_autoflush_writes_is_of_the_line_that_asked"
    assert sites(captured, facts.FlushBegan) == [marked("autoflush", name)]
    assert executed(captured) == [marked("autoflush", name)] * 2


# Awaited.


async def test_an_awaited_call_names_the_line_that_awaits(async_factory: AsyncFactory) -> None:
    with capture(async_factory) as captured:
        session = async_factory()  # <- async opened
        await session.execute(ONE)  # <- awaited
        await session.commit()  # <- async committed
        await session.close()  # <- async closed
    name = "test_an_awaited_call_names_the_line_that_awaits"
    assert [(type(fact), fact.site) for fact in captured.facts if hasattr(fact, "site")] == [
        (facts.SessionOpened, marked("async opened", name)),
        (facts.TransactionBegan, marked("awaited", name)),
        (facts.ConnectionAcquired, marked("awaited", name)),
        (facts.StatementExecuted, marked("awaited", name)),
        (facts.TransactionEnded, marked("async committed", name)),
        (facts.SessionClosed, marked("async closed", name)),
    ]


async def test_an_async_scoped_session_is_opened_where_it_is_first_used(
    async_factory: AsyncFactory,
) -> None:
    registry = async_scoped_session(async_factory, scopefunc=asyncio.current_task)
    with capture(registry) as captured:
        await registry.execute(ONE)  # <- async proxy
        await registry.remove()  # <- async removed
    name = "test_an_async_scoped_session_is_opened_where_it_is_first_used"
    assert sites(captured, facts.SessionOpened) == [marked("async proxy", name)]
    assert executed(captured) == [marked("async proxy", name)]
    assert sites(captured, facts.SessionClosed) == [marked("async removed", name)]


async def test_a_stream_names_the_line_that_asks_for_it(async_factory: AsyncFactory) -> None:
    with capture(async_factory) as captured:
        async with async_factory() as session:
            result = await session.stream(ONE)  # <- stream
            assert [tuple(row) async for row in result] == [(1,)]
    name = "test_a_stream_names_the_line_that_asks_for_it"
    assert executed(captured) == [marked("stream", name)]


async def test_an_async_session_block_opens_and_closes_where_it_is_written(
    async_factory: AsyncFactory,
) -> None:
    with capture(async_factory) as captured:
        async with async_factory() as session:  # <- async with
            await session.execute(ONE)
    name = "test_an_async_session_block_opens_and_closes_where_it_is_written"
    told_of = (facts.SessionOpened, facts.TransactionEnded, facts.SessionClosed)
    assert sites(captured, *told_of) == [marked("async with", name)] * 3


async def test_an_async_factory_block_opens_commits_and_closes_where_it_is_written(
    async_factory: AsyncFactory,
) -> None:
    with capture(async_factory) as captured:
        async with async_factory.begin() as session:  # <- async factory begin
            await session.execute(ONE)
    name = "test_an_async_factory_block_opens_commits_and_closes_where_it_is_written"
    told_of = (facts.SessionOpened, facts.TransactionEnded, facts.SessionClosed)
    assert sites(captured, *told_of) == [marked("async factory begin", name)] * 3


async def test_an_async_transaction_begins_and_commits_where_it_is_written(
    async_factory: AsyncFactory,
) -> None:
    with capture(async_factory) as captured:
        async with async_factory() as session:
            async with session.begin():  # <- async begin
                await session.execute(ONE)
                async with session.begin_nested():  # <- async begin_nested
                    pass
            transaction = await session.begin()  # <- awaited begin
            await transaction.rollback()  # <- awaited rollback
    name = "test_an_async_transaction_begins_and_commits_where_it_is_written"
    assert sites(captured, facts.TransactionBegan) == [
        marked("async begin", name),
        marked("async begin_nested", name),
        marked("awaited begin", name),
    ]
    assert sites(captured, facts.TransactionEnded) == [
        marked("async begin_nested", name),
        marked("async begin", name),
        marked("awaited rollback", name),
    ]


async def get_async_db(factory: AsyncFactory) -> AsyncIterator[AsyncSession]:
    async with factory() as session:  # <- get_async_db
        yield session


async def test_an_async_generator_dependency_opens_and_closes_its_session(
    async_factory: AsyncFactory,
) -> None:
    with capture(async_factory) as captured:
        async with AsyncExitStack() as request:
            dependency = asynccontextmanager(get_async_db)(async_factory)
            session = await request.enter_async_context(dependency)
            await session.execute(ONE)  # <- with async dependency
    name = "test_an_async_generator_dependency_opens_and_closes_its_session"
    assert sites(captured, facts.SessionOpened) == [marked("get_async_db", "get_async_db")]
    assert executed(captured) == [marked("with async dependency", name)]
    assert sites(captured, facts.SessionClosed) == [marked("get_async_db", "get_async_db")]


def in_a_greenlet(session: Session) -> object:
    return session.scalar(ONE)  # <- run_sync


async def test_run_sync_names_the_function_it_runs_and_who_awaits_it(
    async_factory: AsyncFactory,
) -> None:
    with capture(async_factory, site_frames=2) as captured:
        async with async_factory() as session:
            await session.run_sync(in_a_greenlet)  # <- awaits run_sync
    name = "test_run_sync_names_the_function_it_runs_and_who_awaits_it"
    (statement,) = executed(captured)
    assert chain(statement) == [
        marked("run_sync", "in_a_greenlet"),
        marked("awaits run_sync", name),
    ]


async def rows(session: AsyncSession) -> list[Any]:
    return [await session.scalar(ONE) for _ in range(1)]  # <- async list


async def test_an_async_comprehension_bears_the_name_of_its_coroutine(
    async_factory: AsyncFactory,
) -> None:
    with capture(async_factory, site_frames=2) as captured:
        async with async_factory() as session:
            await rows(session)  # <- awaits async list
    name = "test_an_async_comprehension_bears_the_name_of_its_coroutine"
    (statement,) = executed(captured)
    assert chain(statement) == [marked("async list", "rows"), marked("awaits async list", name)]


async def test_work_in_a_thread_names_the_function_that_runs_there(
    factory: Factory,
) -> None:
    with capture(factory) as captured, factory() as session:
        await asyncio.to_thread(as_a_list, session)
    assert executed(captured) == [marked("list", "as_a_list")]


# Awaited by a task: the stack ends at the event loop, which asked for nothing.


async def with_gather(work: Awaitable[object]) -> None:
    await asyncio.gather(work, asyncio.sleep(0))  # <- gather


async def with_wait_for(work: Awaitable[object]) -> None:
    await asyncio.wait_for(work, 10)  # <- wait_for


async def with_shield(work: Awaitable[object]) -> None:
    await asyncio.shield(work)  # <- shield


async def with_wait(work: Awaitable[object]) -> None:
    await asyncio.wait([asyncio.ensure_future(work)])  # <- wait


async def with_group(work: Any) -> None:
    async with asyncio.TaskGroup() as group:  # <- group
        group.create_task(work)


async def with_task(work: Any) -> None:
    task = asyncio.create_task(work)
    await task  # <- task


async def with_nested_tasks(work: Any) -> None:
    task = asyncio.create_task(work)
    await asyncio.wait_for(asyncio.shield(asyncio.gather(task)), 10)  # <- nested tasks


@pytest.mark.parametrize(
    ("mark", "waiting"),
    [
        ("gather", with_gather),
        ("wait_for", with_wait_for),
        ("shield", with_shield),
        ("wait", with_wait),
        ("group", with_group),
        ("task", with_task),
        ("nested tasks", with_nested_tasks),
    ],
)
async def test_a_statement_in_a_task_names_the_line_that_awaits_the_task(
    async_factory: AsyncFactory, mark: str, waiting: Callable[[Awaitable[object]], Awaitable[None]]
) -> None:
    with capture(async_factory, site_frames=3) as captured:
        async with async_factory() as session:
            await waiting(session.execute(ONE))  # <- awaits who waits
    name = "test_a_statement_in_a_task_names_the_line_that_awaits_the_task"
    (site,) = executed(captured)
    assert chain(site) == [marked(mark, waiting.__name__), marked("awaits who waits", name)]


async def statement(session: AsyncSession) -> object:
    return await session.execute(ONE)  # <- coroutine of a task


async def test_a_coroutine_in_a_task_names_its_own_line_and_then_who_awaits_it(
    async_factory: AsyncFactory,
) -> None:
    with capture(async_factory, site_frames=3) as captured:
        async with async_factory() as session:
            await with_gather(statement(session))  # <- awaits gather
    name = "test_a_coroutine_in_a_task_names_its_own_line_and_then_who_awaits_it"
    (site,) = executed(captured)
    assert chain(site) == [
        marked("coroutine of a task", "statement"),
        marked("gather", "with_gather"),
        marked("awaits gather", name),
    ]


async def test_a_task_that_is_not_awaited_falls_back_to_where_its_session_was_opened(
    async_factory: AsyncFactory,
) -> None:
    with capture(async_factory) as captured:
        session = async_factory()  # <- opened for a task
        done = asyncio.Event()
        task = asyncio.create_task(session.execute(ONE))
        task.add_done_callback(lambda _: done.set())
        await done.wait()
        await session.close()
    name = "test_a_task_that_is_not_awaited_falls_back_to_where_its_session_was_opened"
    assert executed(captured) == [marked("opened for a task", name)]


async def test_a_task_that_is_not_awaited_falls_back_to_the_last_line_known(
    async_factory: AsyncFactory,
) -> None:
    with capture(async_factory) as captured:
        async with async_factory() as session:
            await session.execute(ONE)  # <- last line known
            done = asyncio.Event()
            task = asyncio.create_task(session.execute(ONE))
            task.add_done_callback(lambda _: done.set())
            await done.wait()
    name = "test_a_task_that_is_not_awaited_falls_back_to_the_last_line_known"
    assert executed(captured) == [marked("last line known", name)] * 2


def test_the_line_that_runs_the_event_loop_asked_for_nothing() -> None:
    async def main() -> list[CallSite | None]:
        async def look() -> CallSite | None:
            return Locator(frames=50).locate(1)  # <- looks

        return [await look(), await asyncio.create_task(look())]  # <- main

    here = "main"
    both = [marked("looks", "look"), marked("main", here)]
    alone, in_task = asyncio.run(main())
    assert chain(alone) == both
    assert chain(in_task) == both


# The roads to a statement, each of another length: what one has taught must not mislead another.


class ShelfAuthor(Author):
    """Reads a relationship on somebody's behalf."""

    @property
    def titles(self) -> list[str]:
        return [book.title for book in self.books]


class HookedSession(Session):
    """A session into which the application has put statements of its own."""

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        return super().execute(*args, **kwargs)

    def flush(self, objects: Any = None) -> None:
        with self.no_autoflush:
            self.scalar(ONE)
        super().flush(objects)


def ask_within(state: ORMExecuteState) -> None:
    state.session.connection().execute(ONE)


def ask_before_flush(session: Session, *_: object) -> None:
    session.scalars(select(Item)).all()


def by_execute(session: Session) -> None:
    session.execute(select(Author))


def by_scalars(session: Session) -> None:
    session.scalars(select(Author)).all()


def by_connection(session: Session) -> None:
    session.connection().execute(ONE)


def by_get(session: Session) -> None:
    session.get(Author, 1)


def by_query(session: Session) -> None:
    session.query(Author).all()
    session.query(Author).first()
    session.query(Author).count()


def by_attribute(session: Session) -> None:
    for author in session.scalars(select(Author)):
        assert author.books
        assert author.biography is not None
        session.expire(author)
        assert author.name


def by_property(session: Session) -> None:
    assert [author.titles for author in session.scalars(select(ShelfAuthor))]


def by_refresh(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        session.refresh(author)


def by_flush(session: Session) -> None:
    session.add(Author(name="flushed"))
    session.flush()


def by_autoflush(session: Session) -> None:
    session.add(Author(name="autoflushed"))
    session.scalars(select(Book)).all()


def by_savepoint(session: Session) -> None:
    savepoint = session.begin_nested()
    session.add(Author(name="nested"))
    session.begin_nested()
    savepoint.rollback()


def by_deletion(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        session.delete(author)
    session.flush()


def by_merge(session: Session) -> None:
    session.merge(Author(id=1, name="merged"))
    session.flush()


def by_bulk(session: Session) -> None:
    session.execute(insert(Author), [{"name": "bulk 1"}, {"name": "bulk 2"}])
    session.execute(update(Author).values(biography="long"))


ROADS = (
    by_execute, by_scalars, by_connection, by_get, by_query, by_attribute, by_property, by_refresh,
    by_flush, by_autoflush, by_savepoint, by_deletion, by_merge, by_bulk,
)  # fmt: skip


def travel(session: Session, road: Callable[[Session], None]) -> None:
    road(session)
    session.rollback()
    session.expunge_all()


@pytest.mark.parametrize("hooked", [False, True], ids=["plain", "hooked"])
@pytest.mark.parametrize("road", ROADS)
def test_a_road_leads_to_the_same_line_whatever_was_travelled_before(
    library: Factory, road: Callable[[Session], None], hooked: bool
) -> None:
    factory = sessionmaker(library.kw["bind"], class_=HookedSession if hooked else Session)
    if hooked:
        event.listen(factory, "do_orm_execute", ask_within)
        event.listen(factory, "before_flush", ask_before_flush)
    with capture(factory) as at_first, factory() as session:
        travel(session, road)
    with capture(factory) as captured, factory() as session:
        for another in ROADS:
            if another is not road:
                travel(session, another)
        before = len(executed(captured))
        travel(session, road)
    assert executed(captured)[before:] == executed(at_first)
    assert {site.file for site in executed(captured) if site is not None} == {__file__}


async def awaiting_scalars(session: AsyncSession) -> None:
    (await session.scalars(select(Author))).all()


async def awaiting_a_helper(session: AsyncSession) -> None:
    await awaiting_scalars(session)
    await awaiting_connection(session)


async def awaiting_connection(session: AsyncSession) -> None:
    await (await session.connection()).execute(ONE)


async def awaiting_a_function(session: AsyncSession) -> None:
    await session.run_sync(by_query)
    await session.run_sync(lambda inner: by_attribute(inner))
    await session.run_sync(by_flush)


async def awaiting_a_flush(session: AsyncSession) -> None:
    session.add(Author(name="flushed"))
    await session.flush()
    await awaiting_scalars(session)


async def awaiting_a_block(session: AsyncSession) -> None:
    async with session.begin_nested():
        await session.execute(ONE)


async def awaiting_a_task(session: AsyncSession) -> None:
    await asyncio.create_task(awaiting_scalars(session))
    await asyncio.gather(awaiting_a_flush(session))


ASYNC_ROADS = (
    awaiting_scalars, awaiting_a_helper, awaiting_connection, awaiting_a_function, awaiting_a_flush,
    awaiting_a_block, awaiting_a_task,
)  # fmt: skip


async def travel_async(
    session: AsyncSession, road: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    await road(session)
    await session.rollback()
    session.expunge_all()


@pytest.fixture
async def async_library(async_factory: AsyncFactory) -> AsyncFactory:
    async with async_factory.kw["bind"].begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with async_factory() as session, session.begin():
        biography = "long"
        session.add_all(
            Author(name=f"author {number}", biography=biography, books=[Book(title="one")])
            for number in range(2)
        )
    return async_factory


@pytest.mark.parametrize("road", ASYNC_ROADS)
async def test_an_awaited_road_leads_to_the_same_line_whatever_was_travelled_before(
    async_library: AsyncFactory, road: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    with capture(async_library) as at_first:
        async with async_library() as session:
            await travel_async(session, road)
    with capture(async_library) as captured:
        async with async_library() as session:
            for another in ASYNC_ROADS:
                if another is not road:
                    await travel_async(session, another)
            before = len(executed(captured))
            await travel_async(session, road)
    assert executed(captured)[before:] == executed(at_first)
    assert {site.file for site in executed(captured) if site is not None} == {__file__}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_the_stack_is_not_searched_for_a_line_that_is_known(
    is_async: bool,
    library: Factory,
    async_library: AsyncFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work() -> None:
        with library() as session:
            author = session.get_one(Author, 1)
            author.name += "."
            session.commit()

    async def await_work() -> None:
        async with async_library() as session:
            author = await session.get_one(Author, 1)
            author.name += "."
            await session.commit()

    searched: list[FrameType] = []
    kind_of = Locator._kind

    def looked_at(locator: Locator, frame: FrameType) -> int:
        searched.append(frame)
        return kind_of(locator, frame)

    with instrument(async_library if is_async else library, exporter=Exporter()):
        for _ in range(3):
            await await_work() if is_async else work()
        monkeypatch.setattr(Locator, "_kind", looked_at)
        await await_work() if is_async else work()
        monkeypatch.undo()
    # The callers at the first use are looked at, where they are a coroutine's.
    names = [frame.f_code.co_name for frame in searched]
    assert set(names) <= {
        "await_work",
        test_the_stack_is_not_searched_for_a_line_that_is_known.__name__,
    }


# How far the eye goes.


def inner(session: Session) -> None:
    session.execute(ONE)  # <- inner


def middle(session: Session) -> None:
    inner(session)  # <- middle


def outer(session: Session) -> None:
    middle(session)  # <- outer


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_site_carries_as_many_frames_as_asked_for(factory: Factory, frames: int) -> None:
    with capture(factory, site_frames=frames) as captured, factory() as session:
        outer(session)
    (site,) = executed(captured)
    assert (
        chain(site)
        == [
            marked("inner", "inner"),
            marked("middle", "middle"),
            marked("outer", "outer"),
        ][:frames]
    )


def test_sites_of_one_line_are_equal_for_all_callers() -> None:
    here = CallSite("shop.py", 3, "sell")
    assert CallSite("shop.py", 3, "sell", (CallSite("till.py", 1, "ring"),)) == here
    assert CallSite("shop.py", 4, "sell") != here


def test_a_chain_of_frames_holds_lines_of_the_application_alone(factory: Factory) -> None:
    @contextmanager
    def block() -> Iterator[None]:
        as_a_nest(session)
        yield

    with capture(factory, site_frames=50) as captured, factory() as session:
        work = ExitStack()
        thread = threading.Thread(target=lambda: work.enter_context(block()))  # <- in thread
        thread.start()
        thread.join()
        work.close()
    (site,) = executed(captured)
    assert [one.file for one in chain(site)] == [__file__] * 3
    assert [one.function for one in chain(site)] == ["as_a_nest", "block", "<lambda>"]


# Whose line it is.

LIBRARY = """
def find(session, statement):
    return session.execute(statement)
"""
IN_LIBRARY = CallSite(os.path.join(SITE_PACKAGES, "shop_kit", "orders.py"), 3, "find")


def of_library() -> Any:
    """A function of an installed package."""
    return compiled(LIBRARY, IN_LIBRARY.file, "shop_kit.orders")["find"]


def test_an_installed_package_is_passed_over_for_the_line_that_calls_it(factory: Factory) -> None:
    with capture(factory) as captured, factory() as session:
        of_library()(session, ONE)  # <- calls a library
    name = "test_an_installed_package_is_passed_over_for_the_line_that_calls_it"
    assert executed(captured) == [marked("calls a library", name)]


def test_an_installed_package_may_be_the_applications_own(factory: Factory) -> None:
    with capture(factory, application_packages=("shop_kit",)) as captured, factory() as session:
        of_library()(session, ONE)
    assert executed(captured) == [IN_LIBRARY]


@pytest.mark.parametrize(
    "folder",
    [
        os.path.join("home", "me", ".local", "lib", "python3", "site-packages"),
        os.path.join("usr", "lib", "python3", "dist-packages"),
    ],
)
def test_packages_of_a_user_and_of_a_distribution_are_installed_too(
    factory: Factory, folder: str
) -> None:
    file = os.path.join(os.sep, folder, "shop_kit", "orders.py")
    find = compiled(LIBRARY, file, "shop_kit.orders")["find"]
    with capture(factory) as captured, factory() as session:
        find(session, ONE)  # <- calls a package elsewhere
    name = "test_packages_of_a_user_and_of_a_distribution_are_installed_too"
    assert executed(captured) == [marked("calls a package elsewhere", name)]


def test_an_installed_package_is_never_a_site(factory: Factory) -> None:
    with capture(factory) as captured, factory() as session:  # <- last line of the application
        thread = threading.Thread(target=of_library(), args=(session, ONE))
        thread.start()
        thread.join()
    name = "test_an_installed_package_is_never_a_site"
    assert executed(captured) == [marked("last line of the application", name)]


CALLING_BACK = """\

def serve(session, view, render):
    found = view(session)
    return render(found)

def render(found):
    return [one.books for one in found]
"""


def of_framework() -> Any:
    """The functions of an installed package that calls the application's."""
    file = os.path.join(SITE_PACKAGES, "shop_web", "server.py")
    return compiled(CALLING_BACK, file, "shop_web.server")


def list_authors(session: Session) -> list[Author]:
    return list(session.scalars(select(Author)))  # <- the view reads


def test_what_a_framework_does_when_a_view_has_returned_is_not_its_callers(
    library: Factory,
) -> None:
    framework = of_framework()
    with capture(library) as captured, library() as session:
        framework["serve"](session, list_authors, framework["render"])  # <- serves
    # No more than the middleware or the server's start, whose line is not the one to open.
    assert sites(captured, facts.AttributeLoaded) == [marked("the view reads", "list_authors")]


def test_what_a_view_asks_a_library_for_is_the_views(library: Factory) -> None:
    framework = of_framework()

    def show_authors(session: Session) -> list[Any]:
        return framework["render"](list_authors(session))  # type: ignore[no-any-return] # <- shows

    with capture(library) as captured, library() as session:
        framework["serve"](session, show_authors, list)
    name = "show_authors"
    assert sites(captured, facts.AttributeLoaded) == [marked("shows", name)]


async def test_an_installed_package_that_is_awaited_is_passed_over_too(
    async_factory: AsyncFactory,
) -> None:
    awaiting = LIBRARY.replace("def", "async def").replace("return", "return await")
    find = compiled(awaiting, IN_LIBRARY.file, "shop_kit.orders")["find"]
    with capture(async_factory) as captured:
        async with async_factory() as session:
            await find(session, ONE)  # <- awaits a library
            await asyncio.gather(find(session, ONE))  # <- gathers a library
    name = "test_an_installed_package_that_is_awaited_is_passed_over_too"
    assert executed(captured) == [
        marked("awaits a library", name),
        marked("gathers a library", name),
    ]


def test_a_module_that_hides_itself_is_passed_over(factory: Factory, tmp_path: Path) -> None:
    hidden = "__session_tracer_hide__ = True\n" + LIBRARY
    find = compiled(hidden, str(tmp_path / "wrapper.py"), "wrapper")["find"]
    shown = compiled(LIBRARY, str(tmp_path / "wrapper.py"), "wrapper")["find"]
    with capture(factory) as captured, factory() as session:
        find(session, ONE)  # <- calls hidden
        shown(session, ONE)
    name = "test_a_module_that_hides_itself_is_passed_over"
    assert executed(captured) == [
        marked("calls hidden", name),
        CallSite(str(tmp_path / "wrapper.py"), 3, "find"),
    ]


def test_a_template_is_named_by_its_written_line(library: Factory, tmp_path: Path) -> None:
    template = tmp_path / "authors.html"
    template.write_text("<ul>\n{% for author in authors %}\n<li>{{ author.books }}\n{% endfor %}")
    page = Environment(loader=FileSystemLoader(tmp_path), autoescape=True).get_template(
        "authors.html"
    )
    with capture(library, site_frames=2) as captured, library() as session:
        page.render(authors=session.scalars(select(Author)).all())  # <- renders
    (site,) = sites(captured, facts.AttributeLoaded)
    name = "test_a_template_is_named_by_its_written_line"
    assert chain(site) == [CallSite(str(template), 3, "root"), marked("renders", name)]


def test_where_no_line_of_the_application_took_part_the_opened_one_is_named(
    factory: Factory,
) -> None:
    with capture(factory) as captured:
        session = factory()  # <- opened before
        thread = threading.Thread(target=session.execute, args=(ONE,))
        thread.start()
        thread.join()
        session.close()
    name = "test_where_no_line_of_the_application_took_part_the_opened_one_is_named"
    assert executed(captured) == [marked("opened before", name)]


def test_where_no_caller_is_found_there_is_no_site() -> None:
    found: list[CallSite | None] = []
    source = "def look(locator, found):\n    found.append(locator.locate())\n"
    look = compiled(source, os.path.join(sysconfig.get_path("stdlib"), "queue.py"), "queue")["look"]
    thread = threading.Thread(target=look, args=(Locator(), found))
    thread.start()
    thread.join()
    assert found == [None]


# The locator by itself.


def test_a_locator_knows_a_line_again() -> None:
    locator = Locator()

    def look() -> CallSite | None:
        return locator.locate()

    assert look() is look()


def test_a_locator_does_not_keep_code_that_is_made_as_it_runs() -> None:
    locator = Locator()
    for line in range(10_001):
        look = compiled("\n" * line + "look = lambda: locator.locate()", "made.py", "made")
        look["locator"] = locator
        assert look["look"]() == CallSite("made.py", line + 1, "<lambda>")
    assert len(locator._sites) < 100


def test_a_site_shows_its_file_from_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    below, beside = tmp_path / "app" / "views.py", tmp_path.parent / "views.py"
    assert str(CallSite(str(below), 41, "index")) == f"{Path('app/views.py')}:41 in index()"
    assert str(CallSite(str(beside), 41, "index")) == f"{beside}:41 in index()"


# An application that is installed.

SHOP = """\
from sqlalchemy import text
from session_tracer import instrument

def find(session):
    return session.execute(text("SELECT 1"))

def trace(exporter):
    return instrument(exporter=exporter)
"""


@pytest.fixture
def installed_shop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: Factory
) -> Iterator[Any]:
    """An application's package in site-packages, which defines the factory."""
    package = tmp_path / "site-packages" / "installed_shop"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "orders.py").write_text(SHOP)
    monkeypatch.syspath_prepend(package.parent)
    orders = importlib.import_module("installed_shop.orders")
    orders.SessionLocal = factory  # type: ignore[attr-defined] # a module as an application has it
    yield orders
    for name in ("installed_shop.orders", "installed_shop"):
        del sys.modules[name]


def found_in(orders: Any) -> list[CallSite | None]:
    return [CallSite(orders.__file__, 5, "find")]


def test_the_package_that_defines_the_factory_is_the_application(
    installed_shop: Any, factory: Factory
) -> None:
    with capture(factory) as captured, factory() as session:
        installed_shop.find(session)
    assert executed(captured) == found_in(installed_shop)


def test_the_package_that_instruments_is_the_application(
    installed_shop: Any, factory: Factory
) -> None:
    happened: list[Fact] = []
    with installed_shop.trace(Exporter(on_fact=happened.append)), factory() as session:
        installed_shop.find(session)
    found = [fact.site for fact in happened if isinstance(fact, facts.StatementExecuted)]
    assert found == found_in(installed_shop)


def test_a_package_that_neither_instruments_nor_defines_anything_is_a_library(
    installed_shop: Any, factory: Factory
) -> None:
    with capture(None) as captured, factory() as session:
        installed_shop.find(session)  # <- calls what is installed
    name = "test_a_package_that_neither_instruments_nor_defines_anything_is_a_library"
    assert executed(captured) == [marked("calls what is installed", name)]


def test_application_packages_may_be_a_list(installed_shop: Any, factory: Factory) -> None:
    packages = ["installed_shop"]
    with capture(None, application_packages=packages) as captured, factory() as session:
        installed_shop.find(session)
    assert executed(captured) == found_in(installed_shop)


async def test_the_end_of_an_async_dependency_that_begins_is_its_own_line(
    async_factory: AsyncFactory,
) -> None:
    @asynccontextmanager
    async def get_transaction() -> AsyncIterator[AsyncSession]:
        async with async_factory.begin() as session:  # <- begins for others
            yield session

    with capture(async_factory) as captured:
        async with get_transaction() as session:
            await session.execute(ONE)
    line = marked("begins for others", "get_transaction")
    assert sites(captured, facts.TransactionEnded, facts.SessionClosed) == [line, line]


async def test_the_end_of_an_async_dependency_that_fails_is_its_own_line(
    async_factory: AsyncFactory,
) -> None:
    @asynccontextmanager
    async def get_transaction() -> AsyncIterator[AsyncSession]:
        async with async_factory.begin() as session:  # <- rolls back for others
            yield session

    async def fail() -> None:
        async with get_transaction() as session:
            await session.execute(ONE)
            raise LookupError

    with capture(async_factory) as captured, pytest.raises(LookupError):
        await fail()
    line = marked("rolls back for others", "get_transaction")
    assert sites(captured, facts.TransactionEnded, facts.SessionClosed) == [line, line]

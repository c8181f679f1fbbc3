"""Stories of sessions that are open at the same time in one thread or task."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import wraps
from inspect import unwrap
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import StaticPool, create_engine, delete, select, text, update
from sqlalchemy.ext.asyncio import create_async_engine

from session_tracer.testing import capture
from tests.good_code.silence import only_async, only_sync
from tests.library import Author, Book, authors
from tests.stories.findings.due import Above, Due, assert_found
from tests.stories.lines import marked
from tests.twins import Twin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

PASS_IT = (
    "pass that session {}, or end it first: code that waits for a second "
    "connection while it holds one can deadlock the pool"
)


async def read(session: Any) -> None:
    (await session.scalars(select(Author))).all()  # <- reads


# A second connection.


async def look_up(twin: Twin) -> None:
    async with twin.session() as session:  # <- inner
        (await session.scalars(select(Book))).all()  # <- second


async def look_up_two(twin: Twin) -> None:
    async with twin.session() as session:
        (await session.scalars(select(Book))).all()
        await session.commit()
        (await session.scalars(select(Author))).all()


async def look_up_two_while_reading(twin: Twin) -> None:
    async with twin.session() as session:
        await read(session)
        await look_up_two(twin)


async def look_up_while_reading(twin: Twin) -> None:
    async with twin.session() as session:  # <- outer
        (await session.scalars(select(Author))).all()  # <- first
        for _ in range(2):
            await look_up(twin)  # <- calls


def test_a_session_inside_another_ones_transaction(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, name="shop-db") as captured:
            await look_up_while_reading(twin)
        outer, *inner = captured.sessions
        nested = Due(
            id="nested-sessions",
            site=marked(look_up, "<- second"),
            opened=marked(look_up, "<- inner"),
            remedy=PASS_IT.format(f"on at {marked(look_up_while_reading, '<- calls')}"),
            evidence={
                "called_at": str(marked(look_up_while_reading, "<- calls")),
                "other_session_id": outer.id,
                "other_session_name": "shop-db",
                "other_held_ms": Above(0),
                "other_opened_at": str(marked(look_up_while_reading, "<- outer")),
                "other_acquired_at": str(marked(look_up_while_reading, "<- first")),
            },
        )
        # Of each pair of lines, once: it is the same mistake.
        assert_found(captured, nested)
        assert captured.findings[0].session_id == inner[0].id

    twin.run(story)


def test_one_call_is_one_finding_whatever_its_session_does(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await look_up_two_while_reading(twin)
        assert [one.id for one in captured.findings] == ["nested-sessions"]

    twin.run(story)


# A function or a context manager that opens the sessions of many callers.


def given_a_session(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    async def new_function(twin: Twin, session: Any = None) -> Any:
        if session is not None:
            return await function(twin, session)
        async with twin.session() as session:
            return await function(twin, session)

    return new_function


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    async def new_function(*args: Any, **options: Any) -> Any:
        return await function(*args, **options)

    return new_function


@asynccontextmanager
async def own_session(twin: Twin) -> AsyncIterator[Any]:
    async with twin.session() as session:
        yield session


@asynccontextmanager
async def wrapped_session(twin: Twin) -> AsyncIterator[Any]:
    async with own_session(twin) as session:
        yield session


def handed_on_session(twin: Twin) -> Any:
    return wrapped_session(twin)


class OwnSession:
    def __init__(self, twin: Twin) -> None:
        self.twin = twin

    async def __aenter__(self) -> Any:
        self.session = self.twin.session()
        return self.session

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()


def in_a_block(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    async def new_function(twin: Twin) -> Any:
        async with own_session(twin) as own:
            return await function(twin, own)

    return new_function


@in_a_block
async def names(twin: Twin, own: Any) -> None:
    (await own.scalars(select(Author))).all()


async def call_names(twin: Twin) -> None:
    await names(twin)  # <- one


@asynccontextmanager
async def hold(twin: Twin) -> AsyncIterator[None]:
    """Another session is open in the block, which no line of it can see."""
    async with twin.session() as session:
        await read(session)
        yield


async def call_while_another_is_held(twin: Twin) -> None:
    held = hold(twin)
    await held.__aenter__()
    await call_names(twin)
    await held.__aexit__(None, None, None)


@logged
@given_a_session
async def titles(twin: Twin, session: Any) -> None:
    (await session.scalars(select(Book))).all()


@given_a_session
async def call_decorated(twin: Twin, session: Any) -> None:
    await read(session)
    await titles(twin, session)
    for _ in range(2):
        await titles(twin)  # <- one
    await titles(twin)  # <- another


async def block(twin: Twin) -> None:
    async with own_session(twin) as session:
        for _ in range(2):
            (await session.scalars(select(Book))).all()
            await session.commit()


@logged
async def block_of_a_class(twin: Twin) -> None:
    async with OwnSession(twin) as session:
        (await session.scalars(select(Book))).all()


async def enter_blocks(twin: Twin) -> None:
    async with own_session(twin) as session:
        await read(session)
        await block(twin)  # <- one
        await block_of_a_class(twin)  # <- another


async def enter_blocks_of_blocks(twin: Twin) -> None:
    async with own_session(twin) as session:
        await read(session)
        async with (  # <- one
            OwnSession(twin) as another,
        ):
            await read(another)
        async with own_session(twin) as another:  # <- another
            await read(another)


async def titles_in_a_wrapped_block(twin: Twin) -> None:
    async with handed_on_session(twin) as session:
        (await session.scalars(select(Book))).all()


async def enter_wrapped_blocks(twin: Twin) -> None:
    async with wrapped_session(twin) as session:
        await read(session)
        await titles_in_a_wrapped_block(twin)  # <- one
    await titles_in_a_wrapped_block(twin)


async def look_up_for(twin: Twin) -> None:
    await look_up(twin)


async def look_up_with(twin: Twin, db: Any) -> None:
    await read(db)
    await look_up_for(twin)  # <- one
    async with own_session(twin) as another:  # <- another
        await read(another)


async def call_in_a_row(twin: Twin) -> None:
    async with twin.session() as session:
        await read(session)
        await look_up_for(twin)  # <- one
        await look_up_with(twin, session)


@logged
async def open_both(twin: Twin) -> None:
    async with twin.session() as session:
        await read(session)
        async with twin.session() as another:
            await read(another)


CALLED: dict[Any, dict[Any, tuple[str, ...]]] = {
    call_decorated: {call_decorated: ("<- one", "<- another")},
    enter_blocks: {enter_blocks: ("<- one", "<- another")},
    enter_blocks_of_blocks: {enter_blocks_of_blocks: ("<- one", "<- another")},
    enter_wrapped_blocks: {enter_wrapped_blocks: ("<- one",)},
    call_in_a_row: {call_in_a_row: ("<- one",), look_up_with: ("<- one", "<- another")},
    call_while_another_is_held: {call_names: ("<- one",)},
    open_both: {},
}


@pytest.mark.parametrize("work", CALLED, ids=lambda story: story.__name__)
def test_the_line_that_had_a_session_opened_is_named(twin: Twin, work: Any) -> None:
    lines: list[str | None] = [
        str(marked(unwrap(at), one)) for at, marks in CALLED[work].items() for one in marks
    ]

    async def story() -> None:
        with capture(twin.factory) as captured:
            await work(twin)
        found = [(one.id, one.evidence.get("called_at"), one.remedy) for one in captured.findings]
        assert found == [
            ("nested-sessions", line, PASS_IT.format(f"on at {line}" if line else "to this code"))
            for line in lines or [None]
        ]

    twin.run(story)


async def nest_after_commit(twin: Twin) -> None:
    async with twin.session() as session:
        await read(session)
        await session.commit()
        await look_up(twin)


async def nest_before_reading(twin: Twin) -> None:
    async with twin.session() as session:
        await look_up(twin)
        await read(session)


async def nest_an_idle_one(twin: Twin) -> None:
    async with twin.session() as session:
        await read(session)
        async with twin.session() as another:
            another.add(Author(name="Ada"))
            another.expunge_all()


async def nest_one_of_the_same_connection(twin: Twin) -> None:
    async with twin.session() as session:
        await read(session)
        connection = await session.connection()
        async with twin.session(bind=connection) as another:
            await read(another)


async def nest_one_that_is_forgotten(twin: Twin) -> None:
    """What SQLAlchemy-Continuum does for its versions."""
    async with twin.session() as session:
        await read(session)
        forgotten = twin.session(bind=await session.connection())
        await read(forgotten)
        await session.commit()
    await look_up(twin)
    await forgotten.close()


async def nest_after_the_connection_was_closed(twin: Twin) -> None:
    async with twin.session() as session:
        await read(session)
        await session.run_sync(lambda plain: plain.connection().close())
        await look_up(twin)


async def nest_after_the_connection_was_invalidated(twin: Twin) -> None:
    async with twin.session() as session:
        await read(session)
        await session.run_sync(lambda plain: plain.connection().invalidate())
        await look_up(twin)


async def nest_in_the_only_connection(twin: Twin) -> None:
    """With StaticPool, and with what SQLAlchemy chooses for a database in memory."""
    make: Any = create_async_engine if twin.is_async else create_engine
    url = "sqlite+aiosqlite://" if twin.is_async else "sqlite://"
    for engine in (make(url), make(url, poolclass=StaticPool)):
        async with twin.session(bind=engine) as session, twin.session(bind=engine) as another:
            await session.execute(text("SELECT 1"))
            await another.execute(text("SELECT 1"))
        disposing = engine.dispose()
        if twin.is_async:
            await disposing


async def nest_one_of_another_engine(twin: Twin) -> None:
    replica = Twin(twin.url, twin.is_async)
    async with twin.session() as session, replica.session() as another:
        await read(session)
        await read(another)
    await replica.dispose()


NOT_NESTED = (
    nest_after_commit,
    nest_before_reading,
    nest_an_idle_one,
    nest_one_of_the_same_connection,
    nest_one_that_is_forgotten,
    nest_after_the_connection_was_closed,
    nest_after_the_connection_was_invalidated,
    nest_in_the_only_connection,
    nest_one_of_another_engine,
)


@pytest.mark.parametrize("nest", NOT_NESTED, ids=lambda story: story.__name__)
def test_sessions_that_hold_one_connection_at_a_time(
    twin: Twin, nest: Callable[[Twin], Any]
) -> None:
    async def story() -> None:
        with capture() as captured:
            await nest(twin)
        assert_found(captured)

    twin.run(story)


@only_sync
def test_another_threads_connection_is_its_own(twin: Twin) -> None:
    def work() -> None:
        with twin.factory() as session:
            session.scalars(select(Author)).all()

    async def story() -> None:
        with capture(twin.factory) as captured, twin.factory() as session:
            session.scalars(select(Author)).all()
            other = threading.Thread(target=work)
            other.start()
            other.join()
        assert_found(captured)

    twin.run(story)


@only_async
def test_another_tasks_connection_is_its_own(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await read(session)
                await asyncio.create_task(look_up(twin))
        assert_found(captured)

    twin.run(story)


async def call_itself(twin: Twin, depth: int) -> None:
    async with twin.session() as session:
        (await session.scalars(select(Author))).all()  # <- calls itself
        if depth:
            await call_itself(twin, depth - 1)


def test_a_function_that_calls_itself_with_its_session_open(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await call_itself(twin, 3)
        (finding,) = captured.findings
        assert (finding.id, finding.site) == (
            "nested-sessions",
            marked(call_itself, "<- calls itself"),
        )

    twin.run(story)


KEPT: list[Any] = []


def leave_open(twin: Twin) -> None:
    session = twin.factory()
    KEPT.append(session)
    session.scalars(select(Author)).all()


def close_its_own(twin: Twin) -> None:
    with twin.factory() as session:
        session.scalars(select(Author)).all()


def nest(twin: Twin) -> None:
    with twin.factory() as session:
        session.scalars(select(Author)).all()  # <- nests
        close_its_own(twin)


@only_sync
def test_a_session_that_was_left_open_on_a_threads_pool_is_not_nested_in(twin: Twin) -> None:
    """Each piece of work of a server's thread is another request's."""

    async def story() -> None:
        with capture(twin.factory) as captured, ThreadPoolExecutor(1) as pool:
            for view in (leave_open, close_its_own, leave_open, close_its_own, nest):
                pool.submit(view, twin).result()
        (finding,) = captured.findings
        assert finding.id == "nested-sessions"
        assert finding.evidence["other_acquired_at"] == str(marked(nest, "<- nests"))
        for session in KEPT:
            session.close()
        KEPT.clear()

    twin.run(story)


@asynccontextmanager
async def managed(twin: Twin, ask: bool) -> AsyncIterator[Any]:
    async with twin.session() as session:
        if ask:
            await session.execute(text("SELECT 1"))
        yield session
        await session.commit()


async def look_up_managed(twin: Twin, ask: bool) -> None:
    async with managed(twin, ask) as session:
        (await session.scalars(select(Book))).all()


async def nest_managed(twin: Twin, ask: bool) -> None:
    async with managed(twin, ask) as session:
        await read(session)
        await look_up_managed(twin, ask)


async def call_itself_managed(twin: Twin, ask: bool, depth: int = 1) -> None:
    async with managed(twin, ask) as session:
        await read(session)
        if depth:
            await call_itself_managed(twin, ask, depth - 1)


async def one_after_the_other(twin: Twin, ask: bool) -> None:
    for _ in range(3):
        await look_up_managed(twin, ask)


async def leave_open_managed(twin: Twin, ask: bool) -> None:
    manager = managed(twin, ask)
    LEFT.append(manager)
    session = await manager.__aenter__()
    await read(session)


async def call_again(twin: Twin, ask: bool) -> None:
    for _ in range(3):
        await leave_open_managed(twin, ask)


async def go_on_with_another(twin: Twin, ask: bool) -> None:
    await leave_open_managed(twin, ask)
    await look_up_managed(twin, ask)


LEFT: list[Any] = []
MANAGED = {
    nest_managed: 1,
    call_itself_managed: 1,
    one_after_the_other: 0,
    call_again: 0,
    go_on_with_another: 0,
}


@pytest.mark.parametrize("ask", [False, True], ids=["used by the function", "used by the manager"])
@pytest.mark.parametrize("work", MANAGED)
def test_sessions_that_one_context_manager_opens(twin: Twin, work: Any, ask: bool) -> None:
    async def story() -> None:
        with capture(twin.factory, ignore=AFTERWARDS) as captured:
            await work(twin, ask)
            while LEFT:
                await LEFT.pop().__aexit__(None, None, None)
        assert [one.id for one in captured.findings] == ["nested-sessions"] * MANAGED[work]

    twin.run(story)


AFTERWARDS = {"split-writes", "abandoned-session", "leaked-session"}


async def look_up_twice_in_each_of_many(twin: Twin) -> None:
    async with twin.session() as session:
        await read(session)
        for _ in range(15):
            await look_up(twin)
        await session.commit()
        (await session.scalars(select(Author))).all()
        for _ in range(15):
            await look_up(twin)


def test_a_loop_of_inner_sessions_is_one_finding_for_each_line_that_holds(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await look_up_twice_in_each_of_many(twin)
        assert [finding.id for finding in captured.findings] == ["nested-sessions"] * 2
        assert len({finding.evidence["other_acquired_at"] for finding in captured.findings}) == 2

    twin.run(story)


async def bind_and_go_on(twin: Twin) -> None:
    async with twin.session() as session:
        await read(session)
        async with twin.session(bind=await session.connection()) as bound:
            await read(bound)
        await read(session)
        await read(session)


def test_after_a_session_that_was_bound_to_its_connection_a_session_is_traced_on(
    twin: Twin,
) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await bind_and_go_on(twin)
        session, bound = captured.sessions
        assert (bound.statements, session.statements) == (1, 3)
        assert bound.held_ms == 0 < session.held_ms

    twin.run(story)


# Writes in two sessions.


async def save_a_book(twin: Twin) -> None:
    async with twin.session() as session:  # <- inner
        session.add(Book(title="Notes", author_id=1))
        await session.commit()  # <- second


async def save_both(twin: Twin) -> None:
    async with twin.session() as session:  # <- outer
        session.add_all(authors(2))
        await session.commit()  # <- first
        await save_a_book(twin)  # <- calls


async def save_both_the_other_way_round(twin: Twin) -> None:
    async with twin.session() as session:  # <- inner
        session.add(Book(title="Notes", author_id=1))
        async with twin.session() as another:  # <- outer
            another.add_all(authors(2))
            await another.commit()  # <- first
        await session.commit()  # <- second


async def save_both_in_blocks(twin: Twin) -> None:
    outer, inner = twin.session(), twin.session()  # <- inner # <- outer
    async with outer.begin():  # <- first
        outer.add_all(authors(2))
    async with inner.begin():  # <- second
        inner.add(Book(title="Notes", author_id=1))
    await outer.close()
    await inner.close()


SPLIT: dict[Any, Any] = {
    save_both: save_a_book,
    save_both_the_other_way_round: save_both_the_other_way_round,
    save_both_in_blocks: save_both_in_blocks,
}
ONE_FOR_ALL = "SessionLocal.begin() as session:  # one session for all of it"


@pytest.mark.parametrize("save", SPLIT, ids=lambda story: story.__name__)
def test_two_sessions_that_share_the_writing(twin: Twin, save: Callable[[Twin], Any]) -> None:
    second = SPLIT[save]
    call = None if save is second else str(marked(save, "<- calls"))
    also = "" if call is None else f", also for the call at {call}"

    async def story() -> None:
        with capture(twin.factory) as captured:
            await save(twin)
        assert_found(
            captured,
            Due(
                id="split-writes",
                site=marked(second, "<- second"),
                opened=marked(second, "<- inner"),
                remedy=f"{'async with' if twin.is_async else 'with'} {ONE_FOR_ALL}{also}",
                evidence={
                    "called_at": call,
                    "other_called_at": None,
                    "written": {"Book": 1},
                    "other_written": {"Author": 2},
                    "other_opened_at": str(marked(save, "<- outer")),
                    "other_committed_at": str(marked(save, "<- first")),
                },
            ),
        )

    twin.run(story)


# Writes in sessions that one helper opens and another one commits.


async def create(session: Any, one: Any) -> None:
    session.add(one)
    await session.commit()  # <- commits


@asynccontextmanager
async def committing(twin: Twin) -> AsyncIterator[Any]:
    async with twin.session() as session:
        yield session
        await session.commit()


async def create_a_book(twin: Twin) -> None:
    async with committing(twin) as session:
        await create(session, Book(title="Notes", author_id=1))


async def add_a_book(twin: Twin) -> None:
    async with OwnSession(twin) as session:
        session.add(Book(title="Notes", author_id=1))
        await session.commit()


async def create_before(twin: Twin) -> None:
    async with committing(twin) as session:
        await create(session, Author(name="Ada"))  # <- outer
        await create_a_book(twin)  # <- inner


async def create_after(twin: Twin) -> None:
    async with committing(twin) as session:
        await read(session)
        await session.commit()
        await create_a_book(twin)  # <- inner
        await create(session, Author(name="Ada"))  # <- outer


async def add_after(twin: Twin) -> None:
    """The context manager commits: the line of the block is the finding's own."""
    async with committing(twin) as session:
        await session.execute(text("SELECT 1"))
        await session.commit()
        await create_a_book(twin)  # <- inner
        session.add(Author(name="Ada"))


async def create_in_own_blocks(twin: Twin) -> None:
    async with OwnSession(twin) as session:
        await create(session, Author(name="Ada"))  # <- outer
        await add_a_book(twin)  # <- inner


@given_a_session
async def create_decorated(twin: Twin, session: Any) -> None:
    await create(session, Author(name="Ada"))  # <- outer
    await create_a_book(twin)  # <- inner


@given_a_session
async def create_decorated_after(twin: Twin, session: Any) -> None:
    await read(session)
    await session.commit()
    await create_a_book(twin)  # <- inner
    await create(session, Author(name="Ada"))  # <- outer


@logged
async def save_logged(session: Any) -> None:
    await create(session, Author(name="Ada"))


async def create_far_away(twin: Twin) -> None:
    """More functions are between its line and the first use than the ledger knows of."""
    async with committing(twin) as session:
        await logged(save_logged)(session)
        await create_a_book(twin)  # <- inner


# The calls of the second commit and of the first one.
CALLS: dict[Any, tuple[str, str]] = {
    create_before: ("<- inner", "<- outer"),
    create_after: ("<- outer", "<- inner"),
    add_after: ("", "<- inner"),
    create_in_own_blocks: ("<- inner", "<- outer"),
    create_decorated: ("<- inner", "<- outer"),
    create_decorated_after: ("<- outer", "<- inner"),
    create_far_away: ("<- inner", ""),
}


@pytest.mark.parametrize("save", CALLS, ids=lambda story: story.__name__)
def test_the_calls_that_led_to_two_commits_are_named(twin: Twin, save: Any) -> None:
    second, first = (str(marked(unwrap(save), mark)) if mark else None for mark in CALLS[save])
    inner = str(marked(unwrap(save), "<- inner"))

    async def story() -> None:
        with capture(twin.factory) as captured:
            await save(twin)
        (found,) = [one for one in captured.findings if one.id == "split-writes"]
        evidence = found.evidence
        assert (evidence.get("called_at"), evidence.get("other_called_at")) == (second, first)
        assert found.remedy.endswith(f"{ONE_FOR_ALL}, also for the call at {inner}")

    twin.run(story)


async def create_two(twin: Twin) -> None:
    async with committing(twin) as session:
        await read(session)
        await session.commit()
        await create_a_book(twin)  # <- inner
        await create_a_book(twin)  # <- another
        await create(session, Author(name="Ada"))


def test_each_call_of_a_helper_is_a_finding(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await create_two(twin)
        calls = [
            one.evidence["other_called_at"] for one in captured.findings if one.id == "split-writes"
        ]
        assert calls == [str(marked(create_two, mark)) for mark in ("<- inner", "<- another")]

    twin.run(story)


async def share_one(twin: Twin) -> None:
    async with committing(twin) as session:
        await create(session, Author(name="Ada"))
        await create(session, Book(title="Notes", author_id=1))


def test_one_session_for_both_calls_is_the_remedy(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await share_one(twin)
        assert_found(captured)

    twin.run(story)


async def save_one_after_the_other(twin: Twin) -> None:
    async with twin.session() as session:
        session.add_all(authors(2))
        await session.commit()
    await save_a_book(twin)


async def save_in_one_and_read_in_the_other(twin: Twin) -> None:
    async with twin.session() as session, twin.session() as another:
        session.add_all(authors(2))
        await session.commit()
        await read(another)
        await another.commit()
        await session.commit()


async def save_in_one_and_roll_back_the_other(twin: Twin) -> None:
    async with twin.session() as session, twin.session() as another:
        session.add_all(authors(2))
        await session.commit()
        another.add(Book(title="Notes", author_id=1))
        await another.flush()
        await another.rollback()


async def save_in_one_and_write_nothing_in_the_other(twin: Twin) -> None:
    async with twin.session() as session, twin.session() as another:
        session.add_all(authors(2))
        await session.commit()
        await another.execute(delete(Book).where(Book.title == "Notes"))
        await another.execute(update(Book).values(copies=2))
        await another.commit()


async def save_in_two_factories(twin: Twin) -> None:
    other = Twin(twin.url, twin.is_async)
    async with twin.session() as session, other.session() as another:
        session.add_all(authors(2))
        await session.commit()
        another.add(Book(title="Notes", author_id=1))
        await another.commit()
    await other.dispose()


async def save_for_two_requests(twin: Twin) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("requests")
    with tracer.start_as_current_span("first"):
        session = twin.session()
    with tracer.start_as_current_span("second"):
        await save_a_book(twin)
    session.add_all(authors(2))
    await session.commit()
    await session.close()


NOT_SPLIT = (
    save_one_after_the_other,
    save_in_one_and_read_in_the_other,
    save_in_one_and_roll_back_the_other,
    save_in_one_and_write_nothing_in_the_other,
    save_in_two_factories,
    save_for_two_requests,
)


@pytest.mark.parametrize("save", NOT_SPLIT, ids=lambda story: story.__name__)
def test_sessions_that_write_on_their_own(twin: Twin, save: Callable[[Twin], Any]) -> None:
    async def story() -> None:
        with capture() as captured:
            await save(twin)
        assert_found(captured)

    twin.run(story)


@only_async
def test_what_another_task_writes_is_its_own(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all(authors(2))
                await session.commit()
                await asyncio.create_task(save_a_book(twin))
        assert_found(captured)

    twin.run(story)


async def save_while_reading(twin: Twin) -> None:
    async with twin.session() as session:
        await read(session)
        await save_a_book(twin)
        session.add(Author(name="Ada"))
        await session.commit()  # <- last


def test_both_harms_are_reported(twin: Twin) -> None:
    """The second connection as it is taken, the second commit as it is made."""

    async def story() -> None:
        with capture(twin.factory) as captured:
            await save_while_reading(twin)
        assert [(finding.id, finding.site) for finding in captured.findings] == [
            ("nested-sessions", marked(save_a_book, "<- second")),
            ("split-writes", marked(save_while_reading, "<- last")),
        ]

    twin.run(story)

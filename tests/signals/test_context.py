"""Tests whose children the query spans of others are, and that the caller's context stays its own.

The instrumentations are the real ones, the context is OpenTelemetry's own.
"""

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as context_api
from opentelemetry.context import Context
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.dependencies import get_dependency_conflicts
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.utils import is_instrumentation_enabled, suppress_instrumentation
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import instrument
from session_tracer.exporter import Exporter
from tests.library import Author, Book, authors
from tests.signals.telling import Traces, context, left_by
from tests.stories.findings.gates import expire, gate
from tests.twins import Twin, on_each_database, on_postgresql

# Only what is awaited is cancelled or gathered; threads are the other twin's tasks.
awaited_only = pytest.mark.parametrize("is_async", [True], ids=["async"], indirect=True)
called_only = pytest.mark.parametrize("is_async", [False], ids=["sync"], indirect=True)


@pytest.fixture(autouse=True)
def _opentelemetry_complains_of_nothing(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "context" in line or "span" in line] == []


@pytest.fixture(params=["live", "recorded"])
def traces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Traces:
    """The one tracer provider, as the application has one and as session_tracer's exporters do."""
    monkeypatch.setattr(Traces, "records", request.param == "recorded")
    return Traces()


@pytest.fixture
def traced_driver(twin: Twin, traces: Traces) -> Iterator[None]:
    """The driver's own instrumentation is at work."""
    driver: Any = (AsyncPGInstrumentor if twin.is_async else PsycopgInstrumentor)()
    driver.instrument(tracer_provider=traces.provider)
    try:
        yield
    finally:
        driver.uninstrument()


@pytest.fixture
def traced_engine(twin: Twin, traces: Traces) -> Iterator[None]:
    """OpenTelemetry's instrumentation of SQLAlchemy is at work on the twin's engine."""
    module = pytest.importorskip(
        "opentelemetry.instrumentation.sqlalchemy",
        reason="opentelemetry-instrumentation-sqlalchemy is not installed",
    )
    instrumentor = module.SQLAlchemyInstrumentor()
    conflict = get_dependency_conflicts(instrumentor.instrumentation_dependencies())
    if conflict is not None:
        pytest.skip(f"opentelemetry-instrumentation-sqlalchemy refuses: {conflict}")
    instrumentor.instrument(engine=sync_engine(twin), tracer_provider=traces.provider)
    try:
        yield
    finally:
        instrumentor.uninstrument()


def sync_engine(twin: Twin) -> Any:
    """The engine that has the events."""
    return twin.engine.sync_engine if isinstance(twin.engine, AsyncEngine) else twin.engine


@pytest.mark.usefixtures("traced_driver")
@on_postgresql
def test_the_drivers_spans_are_below_the_innermost_span(twin: Twin, traces: Traces) -> None:
    twin.run(lambda: reading_and_writing(twin, traces))
    in_sync = [
        "caller",
        "  session default",
        "    transaction",
        "      SELECT",
        "      savepoint",
        "        SAVEPOINT",
        "        SELECT",
        "        flush",
        "          INSERT",
        "        RELEASE",
        "      flush",
        "        UPDATE",
    ]
    # asyncpg begins and commits with statements, psycopg without.
    in_async = [*in_sync[:3], "      BEGIN;", *in_sync[3:], "  COMMIT;"]
    assert traces.tree() == (in_async if twin.is_async else in_sync)


@on_each_database
@pytest.mark.usefixtures("traced_engine")
def test_the_spans_of_sqlalchemys_instrumentation_are_below_the_innermost_span(
    twin: Twin, traces: Traces
) -> None:
    twin.run(lambda: reading_and_writing(twin, traces))
    named = "" if twin.is_async and twin.database == "postgresql" else f" {twin.url.database}"
    assert [line for line in traces.tree() if "connect" not in line] == [
        "caller",
        "  session default",
        "    transaction",
        f"      SELECT{named}",
        "      savepoint",
        f"        SAVEPOINT{named}",
        f"        SELECT{named}",
        "        flush",
        f"          INSERT{named}",
        f"        RELEASE{named}",
        "      flush",
        f"        UPDATE{named}",
    ]


@pytest.mark.usefixtures("traced_engine", "traced_driver")
@on_postgresql
def test_the_drivers_spans_are_where_they_were_beside_another_instrumentation(
    twin: Twin, traces: Traces
) -> None:
    async def story() -> None:
        with traces.of(twin), traces.caller():
            async with twin.session() as session:
                await session.scalars(select(Author))

    twin.run(story)
    by_id = {context(span).span_id: span.name for span in traces.spans}
    below = {
        by_id[span.parent.span_id]
        for span in traces.spans
        if span.parent is not None and span.name.startswith("SELECT")
    }
    assert below == {"transaction"}


def test_a_driver_of_the_applications_own_sees_the_innermost_span(traces: Traces) -> None:
    seen = []

    class Cursor(sqlite3.Cursor):
        def execute(self, sql: str, parameters: Any = (), /) -> Any:
            seen.append(trace.get_current_span().get_span_context())
            return super().execute(sql, parameters)

    class Connection(sqlite3.Connection):
        def cursor(self, *_: Any) -> Any:
            return super().cursor(Cursor)

    engine = create_engine("sqlite://", connect_args={"factory": Connection})
    factory = sessionmaker(engine)
    exporter = Exporter(tracer_provider=traces.provider, span_recorder=traces.recorder)
    with instrument(factory, exporter=exporter), factory() as session:
        session.execute(text("SELECT 1"))
    engine.dispose()
    assert seen[-1] == context(traces.named("transaction"))


async def reading_and_writing(twin: Twin, traces: Traces) -> None:
    """A transaction with a savepoint in it."""
    with traces.of(twin), traces.caller():
        async with twin.session() as session:
            await session.scalars(select(Author))
            async with session.begin_nested():
                found = (await session.scalars(select(Author))).all()
                assert found == []
                author = Author(name="one")
                session.add(author)
            author.name = "two"
            await session.commit()


@pytest.mark.usefixtures("traced_driver")
@on_postgresql
def test_a_suppressed_instrumentation_stays_suppressed(twin: Twin, traces: Traces) -> None:
    async def story() -> None:
        with traces.of(twin), traces.caller(), suppress_instrumentation():
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()
                assert not is_instrumentation_enabled()
            assert not is_instrumentation_enabled()

    twin.run(story)
    names = {span.name for span in traces.spans}
    assert names.isdisjoint({"INSERT", "BEGIN;", "COMMIT;"})


@pytest.mark.usefixtures("traced_driver")
@on_postgresql
def test_an_unsampled_trace_stays_one(twin: Twin, traces: Traces) -> None:
    async def story() -> None:
        unsampled = trace.NonRecordingSpan(
            trace.SpanContext(7, 11, is_remote=True, trace_flags=trace.TraceFlags(0))
        )
        with traces.of(twin), trace.use_span(unsampled):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()

    twin.run(story)
    assert traces.spans == []


@contextmanager
def surroundings() -> Iterator[Context]:
    """A context of the caller's with something of everything in it; it must come back unchanged."""
    token = context_api.attach(baggage.set_baggage("tenant", "7"))
    try:
        with suppress_instrumentation():
            standing = context_api.get_current()
            yield standing
            assert context_api.get_current() is standing
    finally:
        context_api.detach(token)


Work = Callable[[Any], Awaitable[None]]


async def select_all(session: Any) -> None:
    (await session.scalars(select(Author))).all()


async def write(session: Any) -> None:
    session.add_all(authors(2, books_each=1))
    await session.flush()


async def write_in_a_savepoint(session: Any) -> None:
    async with session.begin_nested():
        session.add_all(authors(1))


async def commit(session: Any) -> None:
    session.add_all(authors(1))
    await session.commit()


async def roll_back(session: Any) -> None:
    session.add_all(authors(1))
    await session.flush()
    await session.rollback()


async def load_lazily(session: Any) -> None:
    session.add_all(authors(1, books_each=1))
    await session.commit()
    author = (await session.scalars(select(Author))).one()
    await session.run_sync(lambda _: author.books)


async def execute_many(session: Any) -> None:
    rows = [{"name": "one"}, {"name": "two"}]
    await session.execute(text("INSERT INTO authors (name, biography) VALUES (:name, '')"), rows)


async def violate_a_constraint(session: Any) -> None:
    session.add_all([*authors(1), *authors(1)])
    with pytest.raises(IntegrityError):
        await session.flush()


async def fail_to_commit(session: Any) -> None:
    session.add_all([*authors(1), *authors(1)])
    with pytest.raises(IntegrityError):
        await session.commit()


async def fail_in_a_statement(session: Any) -> None:
    with pytest.raises(DBAPIError):
        await session.execute(text("SELECT nothing FROM nowhere"))


async def leave_a_stream(session: Any) -> None:
    session.add_all(authors(3))
    await session.flush()

    def read_one(sync_session: Session) -> None:
        rows = sync_session.scalars(select(Author.name), execution_options={"yield_per": 1})
        assert next(rows).startswith("author")

    await session.run_sync(read_one)
    gc.collect()


async def read_after_closing(session: Any) -> None:
    session.add_all(authors(1))
    await session.commit()
    author = (await session.scalars(select(Author))).one()
    await session.close()
    with pytest.raises(DetachedInstanceError):
        author.books  # noqa: B018 - reading it is the point


@pytest.mark.parametrize(
    "work",
    [
        select_all,
        write,
        write_in_a_savepoint,
        commit,
        roll_back,
        load_lazily,
        execute_many,
        violate_a_constraint,
        fail_to_commit,
        fail_in_a_statement,
        pytest.param(
            leave_a_stream,
            # psycopg asks for more tidiness than SQLAlchemy has.
            marks=pytest.mark.filterwarnings("ignore:<psycopg.ServerCursor:ResourceWarning"),
        ),
        read_after_closing,
    ],
)
@pytest.mark.parametrize("statement_spans", [False, True], ids=["", "with statement spans"])
def test_the_callers_context_is_as_before(
    twin: Twin, traces: Traces, work: Work, statement_spans: bool
) -> None:
    async def story() -> None:
        with (
            traces.of(twin, statement_spans=statement_spans),
            traces.caller(),
            surroundings() as standing,
        ):
            async with twin.session() as session:
                assert context_api.get_current() is standing
                await work(session)
                assert context_api.get_current() is standing
            assert context_api.get_current() is standing

    twin.run(story)


def test_a_statement_sees_the_callers_context_with_our_span_in_it(
    twin: Twin, traces: Traces
) -> None:
    async def story() -> None:
        with traces.of(twin), traces.caller(), surroundings():
            async with twin.session() as session:
                await session.scalars(select(Author))

    seen: list[tuple[object, object, bool]] = []

    @event.listens_for(sync_engine(twin), "before_cursor_execute")
    def see(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM authors" in statement and "SELECT" in statement:
            current = trace.get_current_span().get_span_context()
            seen.append((current, baggage.get_baggage("tenant"), is_instrumentation_enabled()))

    twin.run(story)
    assert seen == [(context(traces.named("transaction")), "7", False)]


def test_without_a_provider_a_statement_sees_the_callers_context_itself(twin: Twin) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter()), surroundings() as standing:
            expected.append(standing)
            async with twin.session() as session:
                await session.scalars(select(Author))
                session.add_all(authors(1))
                await session.flush()

    seen: list[Context] = []
    expected: list[Context] = []
    engine = sync_engine(twin)
    twin.run(lambda: seeing(story, engine, seen))
    assert len(seen) >= 2
    assert all(context is expected[0] for context in seen)


async def seeing(story: Callable[[], Awaitable[None]], engine: Any, seen: list[Context]) -> None:
    """The story, with the context of each statement noted."""

    def see(*_: Any) -> None:
        seen.append(context_api.get_current())

    event.listen(engine, "before_cursor_execute", see)
    try:
        await story()
    finally:
        event.remove(engine, "before_cursor_execute", see)


@on_postgresql
@awaited_only
def test_the_callers_context_is_as_before_when_a_statement_is_cancelled(
    twin: Twin, traces: Traces
) -> None:
    async def story() -> None:
        async with gate(twin) as waits:
            with traces.of(twin), traces.caller(), surroundings() as standing:
                async with twin.session() as session:
                    with left_by(TimeoutError):
                        async with asyncio.timeout(None) as timeout:
                            expiring = asyncio.create_task(expire(timeout, waits.reached))
                            await session.execute(waits.statement)
                    await expiring
                    assert context_api.get_current() is standing
                    await session.rollback()
                    await session.scalars(select(Author))
                    assert context_api.get_current() is standing

    twin.run(story)
    assert traces.tree() == ["caller", "  session default", "    transaction", "    transaction"]


@on_postgresql
@awaited_only
def test_a_task_that_is_cancelled_within_a_statement_leaves_nothing_behind(
    twin: Twin, traces: Traces
) -> None:
    async def wait(statement: Any) -> None:
        with traces.caller("task"):
            standing = context_api.get_current()
            try:
                async with twin.session() as session:
                    await session.execute(statement)
            finally:
                assert context_api.get_current() is standing

    async def story() -> None:
        async with gate(twin) as waits:
            with traces.of(twin), traces.caller(), surroundings() as standing:
                task = asyncio.create_task(wait(waits.statement))
                await waits.reached()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert context_api.get_current() is standing

    twin.run(story)
    assert traces.tree() == ["caller", "  task", "    session default", "      transaction"]
    assert traces.named("session default").status.status_code.name == "ERROR"


def test_a_generator_that_is_closed_elsewhere_takes_no_context_along(
    twin: Twin, traces: Traces
) -> None:
    async def dependency() -> AsyncIterator[Any]:
        async with twin.session() as session:
            await session.scalars(select(Author))
            yield session

    async def story() -> None:
        with traces.of(twin), traces.caller(), surroundings() as standing:
            provided = dependency()
            session = await anext(provided)
            await session.scalars(select(Book))
            assert context_api.get_current() is standing
            if twin.is_async:
                closing = provided.aclose()  # type: ignore[attr-defined] # it is a generator
                await asyncio.get_running_loop().create_task(awaited(closing))
            else:
                await provided.aclose()  # type: ignore[attr-defined] # it is a generator
            assert context_api.get_current() is standing

    twin.run(story)
    assert traces.tree() == ["caller", "  session default", "    transaction"]


async def awaited(one: Awaitable[None]) -> None:
    """What a task can be made of."""
    await one


@pytest.mark.usefixtures("traced_driver")
@on_postgresql
@awaited_only
def test_concurrent_tasks_keep_to_their_own_spans(twin: Twin, traces: Traces) -> None:
    async def task(number: int) -> None:
        with traces.caller(f"task {number}"), baggage_of(number):
            standing = context_api.get_current()
            async with twin.session() as session:
                for _ in range(3):
                    await session.scalars(select(Author))
                    await asyncio.sleep(0)
                    assert context_api.get_current() is standing
                    assert baggage.get_baggage("number") == number

    async def story() -> None:
        with traces.of(twin), surroundings_of_nothing():
            await asyncio.gather(*(task(number) for number in range(5)))

    twin.run(story)
    assert sorted(per_root(traces)) == sorted(
        [
            f"task {number}",
            "  session default",
            "    transaction",
            "      BEGIN;",
            *["      SELECT"] * 3,
            "  ROLLBACK;",
        ]
        for number in range(5)
    )


@pytest.mark.usefixtures("traced_driver")
@on_postgresql
@called_only
def test_concurrent_threads_keep_to_their_own_spans(twin: Twin, traces: Traces) -> None:
    def work(number: int) -> None:
        with traces.caller(f"thread {number}"), baggage_of(number), twin.factory() as session:
            standing = context_api.get_current()
            for _ in range(3):
                session.scalars(select(Author))
                together.wait(10)
                assert context_api.get_current() is standing
                assert baggage.get_baggage("number") == number

    async def story() -> None:
        with traces.of(twin), ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))

    together = threading.Barrier(4)
    twin.run(story)
    assert sorted(per_root(traces)) == sorted(
        [f"thread {number}", "  session default", "    transaction", *["      SELECT"] * 3]
        for number in range(4)
    )


@contextmanager
def baggage_of(number: int) -> Iterator[None]:
    """What is in the baggage of one task."""
    token = context_api.attach(baggage.set_baggage("number", number))
    try:
        yield
    finally:
        context_api.detach(token)


@contextmanager
def surroundings_of_nothing() -> Iterator[None]:
    """An empty context comes back as the empty one it was."""
    standing = context_api.get_current()
    yield
    assert context_api.get_current() is standing


def per_root(traces: Traces) -> list[list[str]]:
    """The tree, cut at its roots."""
    trees: list[list[str]] = []
    for line in traces.tree():
        if line.startswith(" "):
            trees[-1].append(line)
        else:
            trees.append([line])
    return trees


class Refusal(Exception):
    """What somebody else's listener raises."""


def test_a_session_used_in_another_context_gives_that_one_back(twin: Twin, traces: Traces) -> None:
    async def story() -> None:
        with traces.of(twin):
            with traces.caller("opening"):
                session = twin.session()
                await session.scalars(select(Author))
            with traces.caller("using"), surroundings() as standing:
                await session.scalars(select(Author))
                assert context_api.get_current() is standing
                await session.close()
                assert context_api.get_current() is standing
            assert trace.get_current_span() is trace.INVALID_SPAN

    twin.run(story)
    assert traces.tree() == ["opening", "  session default", "    transaction", "using"]


@pytest.mark.parametrize("hook", ["before_cursor_execute", "after_cursor_execute"])
def test_the_callers_context_is_as_before_when_a_listener_of_somebody_elses_raises(
    twin: Twin, traces: Traces, hook: str
) -> None:
    async def story() -> None:
        with traces.of(twin), traces.caller(), surroundings() as standing:
            async with twin.session() as session:
                await session.scalars(select(Author))
                event.listen(sync_engine(twin), hook, refuse)
                try:
                    with pytest.raises(Refusal):
                        await session.scalars(select(Book))
                finally:
                    event.remove(sync_engine(twin), hook, refuse)
                assert context_api.get_current() is standing

    def refuse(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        raise Refusal

    twin.run(story)


def test_a_listener_that_refuses_the_very_first_statement_leaves_no_context(
    twin: Twin, traces: Traces
) -> None:
    async def story() -> None:
        event.listen(sync_engine(twin), "before_cursor_execute", refuse)
        with traces.of(twin), traces.caller(), surroundings() as standing:
            async with twin.session() as session:
                with pytest.raises(Refusal):
                    await session.execute(text("SELECT 1"))
                assert context_api.get_current() is standing
            assert context_api.get_current() is standing
        event.remove(sync_engine(twin), "before_cursor_execute", refuse)

    def refuse(_connection: Any, _cursor: Any, _statement: str, *_: Any) -> None:
        raise Refusal

    twin.run(story)


def test_a_listener_with_a_context_of_its_own_around_the_statement_is_within_ours(
    twin: Twin, traces: Traces
) -> None:
    tokens: list[Any] = []
    seen: list[object] = []

    def enter(*_: Any) -> None:
        seen.append(trace.get_current_span().get_span_context())
        tokens.append(context_api.attach(context_api.set_value("theirs", 1)))

    def leave(*_: Any) -> None:
        context_api.detach(tokens.pop())

    async def story() -> None:
        engine = sync_engine(twin)
        with traces.of(twin), traces.caller(), surroundings() as standing:
            async with twin.session() as session:
                await session.execute(text("SELECT 1"))
                event.listen(engine, "before_cursor_execute", enter)
                event.listen(engine, "after_cursor_execute", leave)
                await session.commit()
                await session.execute(text("SELECT 1"))
                assert context_api.get_current() is standing
            assert context_api.get_current() is standing
        event.remove(engine, "before_cursor_execute", enter)
        event.remove(engine, "after_cursor_execute", leave)

    twin.run(story)
    transactions = [context(span) for span in traces.spans if span.name == "transaction"]
    assert seen == transactions[1:]

"""Tests what can be instrumented, and that no combination of targets reports anything twice."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, create_engine, delete, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from session_tracer import Exporter, Instrumentation, facts, instrument, uninstrument
from session_tracer.testing import capture
from tests.library import Author, Base
from tests.outline import outline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from session_tracer import SessionSummary
    from session_tracer.exporter import LogEvent
    from session_tracer.facts import Fact
    from tests.twins import Twin

READ = [
    "session opened",
    "transaction began",
    "connection acquired",
    "SELECT Author",
    "connection released",
    "transaction closed",
    "session close: closed",
]
WRITTEN = [
    "session opened",
    "transaction began",
    "commit flush began",
    "connection acquired",
    "INSERT authors",
    "flushed +1 Author",
    "connection released",
    "transaction committed",
    "session close: committed",
]


@dataclass
class Reported:
    """Everything that went out, each thing as often as it did."""

    facts: list[str] = field(default_factory=list)
    spans: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    metrics: dict[str, int] = field(default_factory=dict)

    def times(self, number: int) -> Reported:
        """The same facts this number of times."""
        return Reported(
            self.facts * number,
            self.spans * number,
            self.logs * number,
            self.sessions * number,
            {name: count * number for name, count in self.metrics.items()},
        )


WRITTEN_ONCE = Reported(
    facts=WRITTEN,
    spans=["flush", "transaction", "session default"],
    logs=["session.opened", "flush.completed", "transaction.ended", "session.closed"],
    sessions=["default"],
    metrics={
        "sqlalchemy.connection.busy.duration": 1,
        "sqlalchemy.connection.held.duration": 1,
        "sqlalchemy.flush.duration": 1,
        "sqlalchemy.session.duration": 1,
        "sqlalchemy.session.identity_map.size": 1,
        "sqlalchemy.session.objects": 2,  # one new, which was detached in the end
        "sqlalchemy.session.statements": 1,
        "sqlalchemy.transaction.duration": 1,
    },
)


class Sink:
    """An exporter that several instrumentations share, so that a double report is visible."""

    def __init__(self) -> None:
        self._facts: list[Fact] = []
        self._logs: list[LogEvent] = []
        self._names: list[str] = []
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.exporter = Exporter(
            tracer_provider=tracers,
            meter_provider=MeterProvider([self._reader], shutdown_on_exit=False),
            on_log=self._logs.append,
            on_session=lambda summary: self._names.append(summary.name),
            on_fact=self._facts.append,
        )

    def reported(self) -> Reported:
        """What was reported until now."""
        return Reported(
            outline(self._facts),
            [span.name for span in self._spans.get_finished_spans()],
            [event["event"] for event in self._logs],
            self._names,
            self._counted(),
        )

    def names(self) -> set[str]:
        """The factories' names that the log events bear."""
        return {event["session_name"] for event in self._logs}

    def _counted(self) -> dict[str, int]:
        """The histograms' and counters' totals; gauges, and what is the pool's, are left out."""
        data = self._reader.get_metrics_data()
        totals: Counter[str] = Counter()
        for of_resource in () if data is None else data.resource_metrics:
            for of_scope in of_resource.scope_metrics:
                for metric in of_scope.metrics:
                    if _is_gauge(metric.name) or metric.name.startswith("db.client.connection."):
                        continue
                    for point in metric.data.data_points:
                        if isinstance(point, HistogramDataPoint):
                            totals[metric.name] += point.count
                        elif isinstance(point, NumberDataPoint) and point.value:
                            totals[metric.name] += int(point.value)  # counters start at 0
        return dict(totals)


def _is_gauge(name: str) -> bool:
    return name.endswith((".open", ".oldest.age"))


def permuted(names: Sequence[str], most: int | None = None) -> list[tuple[str, ...]]:
    """Every order of this number of names."""
    return list(itertools.permutations(names, most))


def trace(sink: Sink, target: Any, name: str = "default") -> Instrumentation:
    return instrument(target, name=name, exporter=sink.exporter, log_level="debug")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'library.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()


def read(session: Session) -> None:
    with session:
        session.scalars(select(Author)).all()


async def async_read(session: AsyncSession) -> None:
    async with session:
        (await session.scalars(select(Author))).all()


class Own(Session):
    """A subclass with nothing of its own."""


class WithInit(Session):
    """A subclass that is made in its own way."""

    def __init__(self, engine: Engine, *, tenant: str) -> None:
        super().__init__(engine)
        self.tenant = tenant


class WithClose(Session):
    """A subclass that is closed in its own way."""

    closed = 0

    def close(self) -> None:
        type(self).closed += 1
        super().close()


class WithSlots(Session):
    """A subclass with slots."""

    __slots__ = ("tenant",)


class AsyncOwn(AsyncSession):
    """A subclass with a subclass below."""

    sync_session_class = Own


# Each target, and a session of it.
TARGETS: dict[str, Callable[[Engine], tuple[Any, Callable[[], Session]]]] = {
    "sessionmaker": lambda engine: ((maker := sessionmaker(engine)), maker),
    "sessionmaker of a subclass": lambda engine: (
        (maker := sessionmaker(engine, class_=WithClose)),
        maker,
    ),
    "scoped_session": lambda engine: ((scoped := scoped_session(sessionmaker(engine))), scoped),
    "Session": lambda engine: (Session, lambda: Session(engine)),
    "subclass": lambda engine: (Own, lambda: Own(engine)),
    "subclass with its own __init__": lambda engine: (
        WithInit,
        lambda: WithInit(engine, tenant="a"),
    ),
    "subclass with its own close": lambda engine: (WithClose, lambda: WithClose(engine)),
    "subclass with slots": lambda engine: (WithSlots, lambda: WithSlots(engine)),
    "one session": lambda engine: ((session := Session(engine)), lambda: session),
    "everything, by a factory": lambda engine: (None, sessionmaker(engine)),
    "everything, by the class": lambda engine: (None, lambda: Session(engine)),
    "everything, by a subclass": lambda engine: (None, lambda: WithClose(engine)),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_session_of_the_target_is_reported(engine: Engine, target: str) -> None:
    meant, open_session = TARGETS[target](engine)
    sink = Sink()
    with trace(sink, meant):
        read(open_session())
    assert sink.reported().facts == READ


@pytest.mark.parametrize(
    "target", [name for name in TARGETS if name != "Session" and "everything" not in name]
)
def test_a_session_of_another_class_or_factory_is_not_reported(engine: Engine, target: str) -> None:
    meant, _ = TARGETS[target](engine)
    sink = Sink()
    with trace(sink, meant):
        read(sessionmaker(engine)())
    assert sink.reported() == Reported()


@pytest.mark.parametrize("target", TARGETS)
def test_a_session_after_uninstrument_is_not_reported(engine: Engine, target: str) -> None:
    meant, open_session = TARGETS[target](engine)
    sink = Sink()
    trace(sink, meant)
    uninstrument(meant)
    read(open_session())
    assert sink.reported() == Reported()


def test_a_subclass_keeps_its_own_way_of_being_made_and_closed(engine: Engine) -> None:
    closed = WithClose.closed
    with capture(WithClose), capture(WithInit):
        made = WithInit(engine, tenant="a")
        read(made)
        read(WithClose(engine))
    assert (made.tenant, WithClose.closed) == ("a", closed + 1)


ASYNC_TARGETS: dict[str, Callable[[AsyncEngine], tuple[Any, Callable[[], AsyncSession]]]] = {
    "async_sessionmaker": lambda engine: ((maker := async_sessionmaker(engine)), maker),
    "async_sessionmaker with a sync_session_class": lambda engine: (
        (maker := async_sessionmaker(engine, sync_session_class=WithClose)),
        maker,
    ),
    "async_sessionmaker of a subclass": lambda engine: (
        (maker := async_sessionmaker(engine, class_=AsyncOwn)),
        maker,
    ),
    "async_scoped_session": lambda engine: (
        (scoped := async_scoped_session(async_sessionmaker(engine), asyncio.current_task)),
        scoped,
    ),
    "AsyncSession": lambda engine: (AsyncSession, lambda: AsyncSession(engine)),
    "subclass": lambda engine: (AsyncOwn, lambda: AsyncOwn(engine)),
    "the Session class below": lambda engine: (Own, lambda: AsyncOwn(engine)),
    "one session": lambda engine: ((session := AsyncSession(engine)), lambda: session),
    "everything, by a factory": lambda engine: (None, async_sessionmaker(engine)),
    "everything, by the class": lambda engine: (None, lambda: AsyncSession(engine)),
}


@pytest.mark.parametrize("target", ASYNC_TARGETS)
async def test_an_async_session_of_the_target_is_reported(
    async_engine: AsyncEngine, target: str
) -> None:
    meant, open_session = ASYNC_TARGETS[target](async_engine)
    sink = Sink()
    with trace(sink, meant):
        await async_read(open_session())
    assert sink.reported().facts == READ


@pytest.mark.parametrize(
    "target",
    [name for name in ASYNC_TARGETS if name != "AsyncSession" and "everything" not in name],
)
async def test_an_async_session_of_another_class_or_factory_is_not_reported(
    async_engine: AsyncEngine, target: str
) -> None:
    meant, _ = ASYNC_TARGETS[target](async_engine)
    sink = Sink()
    with trace(sink, meant):
        await async_read(async_sessionmaker(async_engine)())
    assert sink.reported() == Reported()


@pytest.mark.parametrize("target", ASYNC_TARGETS)
async def test_an_async_session_that_an_error_leaves_has_failed(
    async_engine: AsyncEngine, target: str
) -> None:
    meant, open_session = ASYNC_TARGETS[target](async_engine)
    sink = Sink()

    async def fail() -> None:
        async with open_session() as session:
            await session.scalars(select(Author))
            raise LookupError

    with trace(sink, meant), pytest.raises(LookupError):
        await fail()
    assert sink.reported().facts == [*READ[:-1], "session close: failed with LookupError"]


async def test_a_plain_session_is_not_an_async_factorys(
    async_engine: AsyncEngine, engine: Engine
) -> None:
    sink = Sink()
    with trace(sink, async_sessionmaker(async_engine)), trace(sink, AsyncSession):
        read(Session(engine))
    assert sink.reported() == Reported()


def test_every_signal_bears_the_factorys_name(engine: Engine) -> None:
    orders = sessionmaker(engine)
    with capture(orders, name="orders-db") as captured, orders() as session:
        session.add(Author(name="Ada"))
        session.commit()
    names = {
        point.attributes["sqlalchemy.session.name"]
        for points in captured.metrics.values()
        for point in points
    }
    assert names == {"orders-db"}
    assert {event["session_name"] for event in captured.logs} == {"orders-db"}
    assert [summary.name for summary in captured.sessions] == ["orders-db"]
    assert [span.name for span in captured.spans] == ["flush", "transaction", "session orders-db"]
    assert {
        dict(span.attributes or {})["sqlalchemy.session.name"] for span in captured.spans
    } == names


def test_without_a_name_it_is_the_default(engine: Engine) -> None:
    maker = sessionmaker(engine)
    with instrument(maker, exporter=Exporter()) as instrumentation, capture(maker) as captured:
        read(maker())
    assert instrumentation.name == "default"
    assert {event["session_name"] for event in captured.logs} == {"default"}


# Sessions made before.


def test_a_session_made_before_is_reported_from_its_next_event(twin: Twin) -> None:
    async def story() -> None:
        session = twin.session()
        with capture(twin.factory) as captured:
            async with session:
                session.add(Author(name="Ada"))
                await session.commit()
        assert outline(captured.facts) == WRITTEN

    twin.run(story)


def test_a_session_made_before_and_never_used_again_is_not_reported(twin: Twin) -> None:
    async def story() -> None:
        session = twin.session()
        with capture(twin.factory) as captured:
            await session.close()
        assert outline(captured.facts) == []

    twin.run(story)


def test_a_session_made_before_by_another_factory_stays_untold(twin: Twin) -> None:
    async def story() -> None:
        session = twin.session()
        with capture(type(twin.factory)()) as captured:
            async with session:
                (await session.scalars(select(Author))).all()
        assert outline(captured.facts) == []

    twin.run(story)


# Nothing twice.

Targets = dict[str, Any]


def targets(twin: Twin) -> Targets:
    """Things that all make the twin's sessions; the twin's own factory gets a class of its own."""
    engine: Any = twin.engine
    if twin.is_async:
        twin.factory = async_sessionmaker(engine, class_=AsyncOwn)
        scoped: Any = async_scoped_session(twin.factory, asyncio.current_task)
        own: type = AsyncOwn
    else:
        twin.factory = sessionmaker(engine, class_=Own)
        scoped = scoped_session(twin.factory)
        own = Own
    return {"factory": twin.factory, "scoped": scoped, "class": own, "everything": None}


async def write_once(session: Any) -> None:
    author = Author(name="Ada")
    async with session:
        session.add(author)
        await session.commit()


@pytest.mark.parametrize(
    "order",
    [*permuted(["factory", "class", "everything"]), ("scoped", "factory", "scoped")],
    ids="+".join,
)
def test_no_order_of_targets_reports_anything_twice(twin: Twin, order: Sequence[str]) -> None:
    meant = targets(twin)

    async def story() -> None:
        sink = Sink()
        for name in order:
            trace(sink, meant[name])
        await write_once(twin.session())
        assert sink.reported() == WRITTEN_ONCE

    twin.run(story)


@pytest.mark.parametrize("again", ["factory", "scoped", "class", "everything"])
def test_the_same_target_again_is_the_first_instrumentation(twin: Twin, again: str) -> None:
    meant = targets(twin)

    async def story() -> None:
        sink = Sink()
        first = trace(sink, meant[again])
        assert trace(sink, meant[again]) is first
        await write_once(twin.session())
        assert sink.reported() == WRITTEN_ONCE

    twin.run(story)


def test_the_same_target_with_other_options_keeps_the_first_and_warns(engine: Engine) -> None:
    maker = sessionmaker(engine)
    first = instrument(maker, name="orders", exporter=Exporter())
    with pytest.warns(UserWarning, match="already instrumented, as 'orders'") as warned:
        second = instrument(scoped_session(maker), name="invoices", exporter=Exporter())
    assert second is first
    assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.parametrize("order", permuted(["factory", "class", "everything"]), ids="+".join)
def test_the_nearest_target_names_the_session(twin: Twin, order: Sequence[str]) -> None:
    meant = targets(twin)

    async def story() -> None:
        sink = Sink()
        for name in order:
            trace(sink, meant[name], name)
        named = []
        for nearest in ("factory", "class", "everything"):
            await write_once(twin.session())
            named.append(sink.reported().sessions[-1])
            await _forget_authors(twin)
            uninstrument(meant[nearest])
        assert named == sink.reported().sessions == ["factory", "class", "everything"]

    twin.run(story)


async def _forget_authors(twin: Twin) -> None:
    await twin.execute(lambda connection: connection.execute(delete(Author)))


@pytest.mark.parametrize("order", permuted(["session", "factory", "everything"]), ids="+".join)
def test_a_live_session_and_its_factory_report_each_scope_once(
    twin: Twin, order: Sequence[str]
) -> None:
    async def story() -> None:
        sink = Sink()
        session = twin.session()
        live = session if twin.is_async else session.sync_session
        meant = {"session": live, "factory": twin.factory, "everything": None}
        for name in order:
            trace(sink, meant[name])
        for _ in range(2):
            await write_once(session)
            await _forget_authors(twin)
        twice = WRITTEN_ONCE.times(2)
        twice.facts = [*WRITTEN, "session reopened", *WRITTEN[1:]]
        assert sink.reported() == twice

    twin.run(story)


@pytest.mark.parametrize(
    "order",
    permuted(["factory", "AsyncSession", "Session below", "everything"], 3),
    ids="+".join,
)
async def test_async_factory_and_classes_report_it_once(
    async_engine: AsyncEngine, order: Sequence[str]
) -> None:
    maker = async_sessionmaker(async_engine, sync_session_class=Own)
    meant = {
        "factory": maker,
        "AsyncSession": AsyncSession,
        "Session below": Own,
        "everything": None,
    }
    sink = Sink()
    for name in order:
        trace(sink, meant[name])
    await write_once(maker())
    assert sink.reported() == WRITTEN_ONCE


def test_a_class_and_its_subclass_report_each_session_once(engine: Engine) -> None:
    class Further(Own):
        """A subclass of the subclass."""

    sink = Sink()
    trace(sink, Further, "further")
    trace(sink, Own, "own")
    trace(sink, Session, "any")
    for cls in (Further, Own, Session):
        read(cls(engine))
    assert sink.reported().facts == READ * 3
    assert sink.reported().sessions == ["further", "own", "any"]


def test_a_class_of_two_instrumented_classes_reports_its_sessions_once(engine: Engine) -> None:
    class Left(Session):
        """One."""

    class Right(Session):
        """Another."""

    class Both(Left, Right):
        """Heir to both."""

    sink = Sink()
    trace(sink, Left)
    trace(sink, Right)
    author = Author(name="Ada")
    with Both(engine) as session:
        session.add(author)
        session.commit()
    assert sink.reported() == WRITTEN_ONCE


def test_two_factories_with_a_name_each_keep_their_sessions_apart(engine: Engine) -> None:
    orders, stock = sessionmaker(engine), sessionmaker(engine)
    sink = Sink()
    trace(sink, orders, "orders")
    trace(sink, stock, "stock")
    for maker in (orders, stock, orders):
        read(maker())
    assert sink.reported().sessions == ["orders", "stock", "orders"]


def test_a_capture_inside_an_instrumentation_collects_as_well(twin: Twin) -> None:
    async def story() -> None:
        sink = Sink()
        trace(sink, twin.factory)
        with capture(twin.factory) as captured:
            await write_once(twin.session())
        assert outline(captured.facts) == WRITTEN
        assert sink.reported() == WRITTEN_ONCE

    twin.run(story)


# Ended in any order.


@pytest.mark.parametrize(
    "order", permuted(["factory", "class", "everything", "capture"]), ids="+".join
)
def test_what_remains_goes_on_when_others_end(twin: Twin, order: Sequence[str]) -> None:
    meant = targets(twin)

    async def story() -> None:
        sink = Sink()
        capturing = capture(twin.factory)
        captured = capturing.__enter__()
        started = {name: trace(sink, meant[name]) for name in ("factory", "class", "everything")}
        for name in order:
            await write_once(twin.session())
            await _forget_authors(twin)
            if name == "capture":
                capturing.__exit__(None, None, None)
            else:
                started[name].uninstrument()
        await write_once(twin.session())
        traced = 1 + max(order.index(name) for name in started)
        assert sink.reported() == WRITTEN_ONCE.times(traced)
        assert outline(captured.facts) == WRITTEN * (1 + order.index("capture"))

    twin.run(story)


def test_a_scope_is_still_reported_if_its_factory_is_uninstrumented(twin: Twin) -> None:
    async def story() -> None:
        sink = Sink()
        factory = trace(sink, twin.factory, "factory")
        captured: list[SessionSummary] = []
        instrument(None, name="everything", exporter=Exporter(on_session=captured.append))
        async with twin.session() as session:
            await session.connection()
            factory.uninstrument()
            session.add(Author(name="Ada"))
            await session.commit()
        (summary,) = captured
        assert (summary.name, summary.outcome) == ("everything", "committed")
        assert summary.new == {"Author": 1}
        assert summary.opened_site is not None
        assert summary.opened_site.function == "story"
        assert sink.reported().sessions == []

    twin.run(story)


def test_a_story_that_failed_is_not_begun_again_by_who_comes_besides(engine: Engine) -> None:
    def fail(fact: Fact) -> None:
        if isinstance(fact, facts.TransactionBegan):
            raise LookupError

    maker = sessionmaker(engine)
    captured: list[str] = []
    exporter = Exporter(on_fact=fail, on_session=lambda summary: captured.append(summary.name))
    with instrument(maker, exporter=exporter), maker() as session:
        session.connection()
        with capture(maker) as besides:
            session.scalars(select(Author)).all()
    assert outline(besides.facts) == [
        "session opened",
        "transaction began",
        "connection acquired",
        "SELECT Author",
    ]
    assert captured == []


def test_a_session_is_still_reported_if_only_its_factory_is_uninstrumented(twin: Twin) -> None:
    async def story() -> None:
        sink = Sink()
        factory = trace(sink, twin.factory, "factory")
        trace(sink, None, "everything")
        session = twin.session()
        await write_once(session)
        await _forget_authors(twin)
        factory.uninstrument()
        await write_once(session)
        assert sink.reported().sessions == ["factory", "everything"]

    twin.run(story)


# Amid something.


def test_a_session_in_a_transaction_is_reported_from_its_next_event(twin: Twin) -> None:
    async def story() -> None:
        with ExitStack() as captures:
            async with twin.session() as session:
                session.add(Author(name="Ada"))
                await session.flush()
                with suppress(LookupError):
                    async with session.begin_nested():
                        await session.connection()
                        captured = captures.enter_context(capture(twin.factory))
                        (await session.scalars(select(Author))).all()
                        session.add(Author(name="Bea"))
                        await session.flush()
                        raise LookupError
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "savepoint began",
            "connection acquired",
            "SELECT Author",
            "loaded 1 Author",
            "explicit flush began",
            "INSERT authors",
            "flushed +1 Author",
            "ROLLBACK",
            "savepoint rolled_back",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]
        (summary,) = captured.sessions
        assert (summary.opened_site, summary.outcome) == (None, "committed")
        assert [span.name for span in captured.spans] == [
            "flush",
            "savepoint",
            "transaction",
            "session default",
        ]

    twin.run(story)


def test_a_capture_during_an_instrumented_session_knows_its_state(twin: Twin) -> None:
    async def story() -> None:
        sink = Sink()
        trace(sink, twin.factory)
        author = Author(name="Ada")
        async with twin.session() as session:
            await session.connection()
            with capture(twin.factory) as captured:
                session.add(author)
                await session.flush()
            await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "explicit flush began",
            "INSERT authors",
            "flushed +1 Author",
        ]
        assert sink.reported().facts == [
            "session opened",
            "transaction began",
            "connection acquired",
            "explicit flush began",
            "INSERT authors",
            "flushed +1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_a_factory_instrumented_during_a_session_has_it_from_its_next_scope(
    twin: Twin,
) -> None:
    async def story() -> None:
        sink = Sink()
        trace(sink, None, "everything")
        session = twin.session()
        async with session:
            (await session.scalars(select(Author))).all()
            trace(sink, twin.factory, "factory")
            (await session.scalars(select(Author))).all()
        async with session:
            (await session.scalars(select(Author))).all()
        assert sink.reported().sessions == ["everything", "factory"]

    twin.run(story)


async def test_two_async_factories_over_one_engine_keep_their_sessions_apart(
    async_engine: AsyncEngine,
) -> None:
    orders, stock = async_sessionmaker(async_engine), async_sessionmaker(async_engine)
    sink = Sink()
    trace(sink, orders, "orders")
    trace(sink, stock, "stock")
    for maker in (orders, stock, orders):
        await async_read(maker())
    assert sink.reported().sessions == ["orders", "stock", "orders"]


# Which exporter.

UNIT = """
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from session_tracer import Exporter, instrument

def run(**options):
    engine = create_engine("sqlite://")
    maker = sessionmaker(engine)
    with instrument(maker, **options) as instrumentation:
        with maker() as session:
            session.execute(text("SELECT 1"))
        instrumentation.flush()
    engine.dispose()
"""


def run_alone(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in its own process, without this environment's variables."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "SESSION_TRACER_", "PYTEST"))
    }
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", UNIT + program],
        env={**inherited, "SESSION_TRACER_LOG_LEVEL": "debug", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def is_console(text: str) -> bool:
    return "session default" in text and "held" in text


def is_jsonl(text: str) -> bool:
    lines = text.splitlines()
    return bool(lines) and all(line.startswith('{"timestamp": ') for line in lines)


PROVIDERS = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
run(**options)
print([span.name for span in spans.get_finished_spans()])
"""


def test_by_default_it_is_the_console_on_a_terminal() -> None:
    ran = run_alone("import sys; sys.stderr.isatty = lambda: True; run()", NO_COLOR="1")
    assert (ran.stdout, is_console(ran.stderr)) == ("", True)


def test_the_environment_names_an_exporter() -> None:
    ran = run_alone("run()", SESSION_TRACER_EXPORTER="jsonl")
    assert (is_jsonl(ran.stdout), ran.stderr) == (True, "")


def test_the_argument_beats_the_environment() -> None:
    ran = run_alone("run(exporter='jsonl')", SESSION_TRACER_EXPORTER="console")
    assert (is_jsonl(ran.stdout), ran.stderr) == (True, "")


def test_an_exporter_of_ones_own_beats_the_environment() -> None:
    ran = run_alone(
        "run(exporter=Exporter(on_session=lambda captured: print(captured.outcome)))",
        SESSION_TRACER_EXPORTER="console",
    )
    assert (ran.stdout, ran.stderr) == ("closed\n", "")


def test_providers_that_are_configured_get_the_signals_and_no_other_does() -> None:
    ran = run_alone("options = {}" + PROVIDERS)
    assert (ran.stdout, ran.stderr) == ("['transaction', 'session default']\n", "")


def test_configured_providers_beat_an_otlp_endpoint() -> None:
    ran = run_alone("options = {}" + PROVIDERS, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert (ran.stdout, ran.stderr) == ("['transaction', 'session default']\n", "")


def test_an_exporter_that_is_named_beats_configured_providers() -> None:
    ran = run_alone("options = {}" + PROVIDERS, SESSION_TRACER_EXPORTER="console")
    assert (ran.stdout, is_console(ran.stderr)) == ("[]\n", True)


@pytest.mark.parametrize(
    "variable",
    [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
    ],
)
def test_an_otlp_endpoint_makes_it_otlp(variable: str) -> None:
    ran = run_alone(
        "import threading\n"
        "maker = sessionmaker(create_engine('sqlite://'))\n"
        "with instrument(maker), maker():\n"
        "    print('session_tracer otlp' in {t.name for t in threading.enumerate()})",
        **{variable: "http://127.0.0.1:9"},
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    assert ran.stdout == "True\n"
    assert not is_console(ran.stderr)


def test_an_empty_variable_names_nothing() -> None:
    ran = run_alone(
        "import sys; sys.stderr.isatty = lambda: True; run()",
        SESSION_TRACER_EXPORTER="",
        OTEL_EXPORTER_OTLP_ENDPOINT="",
        NO_COLOR="1",
    )
    assert (ran.stdout, is_console(ran.stderr)) == ("", True)

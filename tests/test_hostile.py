"""Tests that hostile mapped classes and own failures do not affect the application."""

from __future__ import annotations

import copy
import functools
import gc
import io
import json
import logging
import pickle
import re
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn
from unittest.mock import Mock

import pytest
import structlog
from opentelemetry import context as context_api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import Engine, ForeignKey, create_engine, delete, event, func, select, text
from sqlalchemy.exc import IntegrityError, MissingGreenlet, PendingRollbackError, StatementError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    joinedload,
    make_transient,
    mapped_column,
    raiseload,
    relationship,
    selectinload,
    sessionmaker,
)
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import DEFAULT_DETECTORS, Exporter, Finding, facts, instrument
from session_tracer.hooks.targets import resolve
from session_tracer.instrumentor import Instrumentor
from session_tracer.settings import Settings
from session_tracer.testing import capture
from tests.library import Author, Base, Book, authors
from tests.outline import outline
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report
    from session_tracer.testing import Captured
    from tests.twins import Twin


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    RudeBase.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(authors(3, books_each=2))
        session.commit()
    yield engine
    engine.dispose()


@pytest.fixture
def maker(engine: Engine) -> Any:
    return sessionmaker(engine)


# Mapped classes that will not be asked.


class RudeBase(DeclarativeBase):
    """What the rude ones are mapped with."""


CALLED: list[str] = []


def refuse(name: str) -> Callable[..., Any]:
    def refused(self: Any, *_: Any, **__: Any) -> NoReturn:
        CALLED.append(f"{type(self).__name__}.{name}")
        raise AssertionError(name)

    return refused


class Rude(RudeBase):
    """Every question about it raises."""

    __tablename__ = "rude"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    notes: Mapped[str] = mapped_column(default="", deferred=True)
    others: Mapped[list[Other]] = relationship(back_populates="rude", cascade="all")

    __repr__ = __str__ = __format__ = refuse("__repr__")
    __eq__ = __ne__ = __lt__ = refuse("__eq__")
    __hash__ = refuse("__hash__")
    __bool__ = refuse("__bool__")
    __len__ = refuse("__len__")
    __iter__ = refuse("__iter__")
    __int__ = __index__ = refuse("__int__")
    key = property(refuse("key"))
    instance = property(refuse("instance"))
    state = property(refuse("state"))
    title = property(refuse("title"))


class Other(RudeBase):
    """Is as rude, and belongs to one of them."""

    __tablename__ = "others"

    id: Mapped[int] = mapped_column(primary_key=True)
    rude_id: Mapped[int | None] = mapped_column(ForeignKey("rude.id"))
    rude: Mapped[Rude | None] = relationship(back_populates="others")

    __repr__ = __str__ = __format__ = refuse("__repr__")
    __eq__ = __ne__ = refuse("__eq__")
    __hash__ = refuse("__hash__")
    __bool__ = refuse("__bool__")
    __len__ = refuse("__len__")
    key = property(refuse("key"))


def everything_with_the_rude(maker: Any) -> list[str]:
    """All that can be done to them; as SQLAlchemy itself does."""
    CALLED.clear()
    said: list[str] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            said.append(f"{type(error).__name__}: {re.sub('0x[0-9a-f]+', '0x', str(error))}")

    with maker() as session:
        rude, other = Rude(name="Ada"), Other()
        attempt(lambda: session.add(rude))
        attempt(lambda: rude.others.append(other))
        attempt(session.flush)
        attempt(session.commit)
        attempt(lambda: session.scalars(select(Rude)).all())
        attempt(lambda: session.scalars(select(Rude).options(selectinload(Rude.others))).all())
        attempt(lambda: session.scalars(select(Other).options(joinedload(Other.rude))).all())
        attempt(lambda: session.refresh(rude))
        attempt(lambda: rude.others)
        attempt(lambda: rude.notes)
        attempt(lambda: setattr(rude, "name", "Bea"))
        attempt(session.flush)
        attempt(lambda: session.expire(rude))
        attempt(lambda: rude.name)
        attempt(lambda: session.expire(rude, ["name"]))
        attempt(lambda: session.get(Rude, 1))
        attempt(session.begin_nested().rollback)
        attempt(lambda: session.expunge(rude))
        attempt(lambda: rude.others)
        attempt(lambda: session.merge(rude))
        attempt(lambda: session.merge(Rude(id=1, name="Cyd")))
        attempt(session.commit)
        attempt(lambda: session.scalars(select(Rude)).all())
        attempt(session.expunge_all)
        attempt(lambda: session.expunge(rude))
        attempt(lambda: make_transient(rude))
        doomed = session.get(Rude, 1)
        attempt(lambda: session.delete(doomed))
        attempt(session.commit)
        attempt(lambda: session.add(Rude(name=None)))  # a column that takes no NULL
        attempt(session.flush)
        attempt(session.rollback)
        last = Rude(name="last")
        session.add(last)
        attempt(session.commit)
    attempt(lambda: last.name)
    attempt(lambda: last.others)
    attempt(lambda: last.notes)
    return said + CALLED


def test_a_rude_class_is_asked_nothing_that_sqlalchemy_does_not_ask(engine: Engine) -> None:
    untraced = everything_with_the_rude(sessionmaker(engine))
    with engine.begin() as connection:
        for table in reversed(RudeBase.metadata.sorted_tables):
            connection.execute(table.delete())
    maker = sessionmaker(engine)
    with capture(maker, statement_spans=True, record_identity=True) as captured:
        traced = everything_with_the_rude(maker)
    assert traced == untraced
    assert "session_tracer.errors" not in captured.metrics
    (summary,) = captured.sessions
    assert (summary.outcome, summary.new) == ("committed", {"Rude": 2, "Other": 1})
    assert [finding.entity for finding in captured.findings][-3:] == ["Rude"] * 3


# aiosqlite has made a coroutine by the time SQLAlchemy finds that it cannot await it.
never_awaited = pytest.mark.filterwarnings("ignore:coroutine 'Connection.cursor' was never awaited")


@never_awaited
async def test_a_rude_class_is_asked_no_more_under_asyncio(engine: Engine) -> None:
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
    maker = async_sessionmaker(async_engine, expire_on_commit=True)
    CALLED.clear()
    with capture(maker) as captured:
        async with maker() as session:
            rude = Rude(name="Ada", others=[Other()])
            session.add(rude)
            await session.commit()
            await session.refresh(rude)
            found = (await session.scalars(select(Rude))).one()
            rude_is_found = found is rude
            with pytest.raises((MissingGreenlet, StatementError)):
                _ = rude.notes
    with pytest.raises(DetachedInstanceError):
        _ = rude.others
    await async_engine.dispose()
    gc.collect()
    assert (CALLED, rude_is_found) == ([], True)
    assert "session_tracer.errors" not in captured.metrics


# Failures of session_tracer.


SECRET = "s3cr3t"


class Raising:
    """A detector that raises."""

    facts = (facts.StatementExecuted, facts.TransactionBegan)

    def memory(self) -> None:
        """Remembers nothing."""

    def judge(self, fact: Fact, report: Report, memory: None) -> Iterable[Finding]:
        raise LookupError(SECRET)


class NoMemory(Raising):
    """A detector whose memory cannot be made."""

    def memory(self) -> None:
        raise LookupError


class Nothing(Raising):
    """A detector that returns what cannot be iterated."""

    def judge(self, fact: Fact, report: Report, memory: None) -> Any:
        return None


class Rubbish(Raising):
    """A detector that yields something else than findings."""

    def judge(self, fact: Fact, report: Report, memory: None) -> Any:
        yield "n-plus-one"


class HalfWay(Raising):
    """A detector that raises after it has yielded."""

    def judge(self, fact: Fact, report: Report, memory: None) -> Iterable[Finding]:
        yield finding_of(report)
        raise LookupError


def finding_of(report: Report) -> Finding:
    return Finding(
        id="it-is-so",
        severity="info",
        message="It is so",
        remedy="leave it",
        site=None,
        session_id=report.ledger.id,
        session_name=report.name,
        session_site=None,
    )


class RaisingProcessor(SpanProcessor):
    """A span processor that raises at one end of a span."""

    def __init__(self, at: str) -> None:
        self._at = at

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self._at == "start":
            raise LookupError

    def on_end(self, span: Any) -> None:
        if self._at == "end":
            raise LookupError


def fail(*_: object) -> NoReturn:
    raise LookupError(SECRET)


def program(maker: Any) -> list[Any]:
    """What an application does; all it gets from SQLAlchemy, results and errors alike."""
    got: list[Any] = []
    with maker() as session:
        found = session.scalars(select(Author).order_by(Author.id)).all()
        got += [author.name for author in found]
        got += [len(author.books) for author in found]
        session.add(Author(name="Ada"))
        session.flush()
        with suppress(LookupError), session.begin_nested():
            session.add(Author(name="Bea"))
            session.flush()
            raise LookupError
        got.append(session.scalar(select(func.count()).select_from(Author)))
        session.add(Author(name="Ada"))
        got.append(caught(session.flush))
        got.append(caught(session.connection))
        session.rollback()
        session.add(Author(name="Cyd"))
        session.commit()
        got.append(session.scalar(select(func.count()).select_from(Author)))
        session.delete(session.scalars(select(Author).where(Author.name == "Cyd")).one())
        session.commit()
    got.append(caught(lambda: found[0].books))
    return got


PROGRAMS_FINDINGS = ["failed-flush", "pending-rollback", "detached-lazy-load"]


def caught(work: Callable[[], object]) -> list[Any]:
    """Everything an application can see of the exception that comes out, and of its causes."""
    try:
        work()
    except BaseException as error:
        return described(error)
    return []


def described(error: BaseException | None) -> list[Any]:
    if error is None:
        return []
    own = {name: repr(value) for name, value in vars(error).items()}
    return [
        _without_addresses((type(error), error.args, str(error), own, error.__suppress_context__)),
        described(error.__cause__),
        described(error.__context__),
    ]


def _without_addresses(value: object) -> str:
    return re.sub("0x[0-9a-f]+", "0x", repr(value))


def errors(captured: Captured) -> dict[str, int]:
    """What is counted in `session_tracer.errors`, by where."""
    return {
        point.attributes["where"]: point.value
        for point in captured.metrics.get("session_tracer.errors", [])
    }


DETECTORS = [Raising(), NoMemory(), Nothing(), Rubbish(), HalfWay()]


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda detector: type(detector).__name__)
def test_a_detector_that_fails_is_counted_logged_once_and_left_out(
    maker: Any, caplog: pytest.LogCaptureFixture, detector: Any
) -> None:
    expected = program(maker)
    with capture(maker) as without:
        program(maker)
    with capture(maker, detectors=[detector, *DEFAULT_DETECTORS]) as captured:
        for _ in range(2):
            assert program(maker) == expected
    name = type(detector).__name__
    assert errors(captured) == {name: 2}  # once a session
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("session_tracer", "ERROR")
    ]
    assert f"failed in {name} with" in caplog.text
    assert SECRET not in caplog.text
    assert outline(captured.facts) == outline(without.facts) * 2
    assert [span.name for span in captured.spans] == [span.name for span in without.spans] * 2
    once = [event["event"] for event in without.logs]
    # The second time, each finding is a repeat, which is logged as tracing ends.
    assert [event["event"] for event in captured.logs] == [
        *once,
        *(e for e in once if e != "finding"),
        *(e for e in once if e == "finding"),
    ]
    assert [finding.id for finding in captured.findings] == PROGRAMS_FINDINGS * 2


@pytest.mark.parametrize("hook", ["on_log", "on_session", "on_finding", "on_fact"])
def test_an_exporter_that_raises_is_counted_logged_once_and_the_other_signals_go_on(
    maker: Any, caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    expected = program(maker)
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    captured: dict[str, list[Any]] = {
        "on_log": [],
        "on_session": [],
        "on_finding": [],
        "on_fact": [],
    }
    hooks: dict[str, Any] = {name: into.append for name, into in captured.items()}
    exporter = Exporter(
        tracer_provider=tracers,
        meter_provider=MeterProvider([reader], shutdown_on_exit=False),
        **{**hooks, hook: fail},
    )
    with capture(maker) as without, instrument(maker, exporter=exporter, log_level="debug"):
        assert program(maker) == expected
    where = "LogSignal" if hook == "on_log" else "ReportSignal"
    data = reader.get_metrics_data()
    assert data is not None
    counted = {
        (metric.name, tuple((point.attributes or {}).values())): getattr(point, "value", None)
        for of_resource in data.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        for point in metric.data.data_points
        if metric.name in ("session_tracer.errors", "sqlalchemy.findings")
    }
    # The refused load has its own events, after those of the session.
    assert counted["session_tracer.errors", ("default", where)] in (1, 2)
    assert counted["sqlalchemy.findings", ("default", "detached-lazy-load", "error")] == 1
    assert [span.name for span in spans.get_finished_spans()] == [
        span.name for span in without.spans
    ]
    if hook != "on_log":
        assert [event["event"] for event in captured["on_log"]] == [
            event["event"] for event in without.logs
        ]
    assert [record.name for record in caplog.records] == ["session_tracer"]
    assert SECRET not in caplog.text


# What runs the processor: the session's span, and with it the first failure, begins in SpanSignal.
BEGINS_AND_ENDS = {"start": "SpanSignal", "end": "LiveSpans"}


@pytest.mark.parametrize("at", BEGINS_AND_ENDS)
def test_a_span_processor_that_raises_leaves_the_other_signals_and_the_context_alone(
    maker: Any, caplog: pytest.LogCaptureFixture, at: str
) -> None:
    expected = program(maker)
    reader = InMemoryMetricReader()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(RaisingProcessor(at))
    logs: list[str] = []
    exporter = Exporter(
        tracer_provider=tracers,
        meter_provider=MeterProvider([reader], shutdown_on_exit=False),
        on_log=lambda event: logs.append(event["event"]),
    )
    before = context_api.get_current()
    with capture(maker) as without, instrument(maker, exporter=exporter, log_level="debug"):
        assert program(maker) == expected
    assert context_api.get_current() is before
    assert logs == [event["event"] for event in without.logs]
    assert [record.name for record in caplog.records] == ["session_tracer"]
    assert f"failed in {BEGINS_AND_ENDS[at]} with LookupError" in caplog.text


@pytest.fixture
def _structlog_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("_structlog_as_it_was")
@pytest.mark.parametrize(
    "wrapper_class",
    [structlog.make_filtering_bound_logger(logging.DEBUG), structlog.stdlib.BoundLogger],
    ids=["filtering", "stdlib"],
)
def test_a_structlog_processor_that_raises_leaves_the_other_signals_alone(
    maker: Any, caplog: pytest.LogCaptureFixture, wrapper_class: Any
) -> None:
    expected = program(maker)
    with capture(maker) as without:
        program(maker)
    structlog.configure(processors=[fail], wrapper_class=wrapper_class)
    with capture(maker) as captured:
        assert program(maker) == expected
    assert errors(captured).keys() == {"LogSignal"}
    assert outline(captured.facts) == outline(without.facts)
    assert [span.name for span in captured.spans] == [span.name for span in without.spans]
    assert [record.name for record in caplog.records] == ["session_tracer"]


@contextmanager
def traced_with(clock: Callable[[], int], maker: Any, exporter: Exporter) -> Iterator[None]:
    """Trace the factory by a clock of one's own."""
    instrumentor = Instrumentor(clock)
    instrumentation = instrumentor.add(
        resolve(maker), "default", exporter, Settings(), DEFAULT_DETECTORS
    )
    try:
        yield
    finally:
        instrumentor.remove(instrumentation)


@pytest.mark.parametrize("from_", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
def test_a_clock_that_raises_changes_nothing(
    maker: Any, caplog: pytest.LogCaptureFixture, from_: int
) -> None:
    expected = program(maker)
    asked = 0

    def clock() -> int:
        nonlocal asked
        asked += 1
        if asked > from_:
            raise LookupError
        return time.perf_counter_ns()

    before = context_api.get_current()
    tracers = TracerProvider(shutdown_on_exit=False)
    with traced_with(clock, maker, Exporter(tracer_provider=tracers)):
        assert program(maker) == expected
        assert context_api.get_current() is before
    assert caplog.records
    assert {record.name for record in caplog.records} == {"session_tracer"}


class Curious:
    """A detector that uses sessions of the very factory it watches, and the session it judges."""

    facts = (facts.SessionOpened, facts.StatementExecuted, facts.SessionClosed)

    def __init__(self, maker: Any) -> None:
        self._maker = maker
        self.judged: Session | None = None
        self.asked = 0

    def memory(self) -> None:
        """Remembers nothing."""

    def judge(self, fact: Fact, report: Report, memory: None) -> Iterable[Finding]:
        self.asked += 1
        with self._maker() as session:
            session.execute(text("SELECT 1")).scalar()
        if isinstance(fact, facts.StatementExecuted) and self.judged is not None:
            self.judged.execute(text("SELECT 2")).scalar()
        return ()


def test_sessions_that_a_detector_uses_itself_are_not_reported(maker: Any) -> None:
    curious = Curious(maker)
    with capture(maker, detectors=[curious]) as captured, maker() as session:
        curious.judged = session
        session.scalars(select(Author)).all()
        curious.judged = None
    assert outline(captured.facts) == [
        "session opened",
        "transaction began",
        "connection acquired",
        "SELECT Author",
        "loaded 3 Author",
        "connection released",
        "transaction closed",
        "session close: closed",
    ]
    assert (curious.asked, errors(captured)) == (3, {})


def test_an_exporter_may_write_with_sessions_of_its_own(maker: Any) -> None:
    def write(event: dict[str, Any]) -> None:
        with maker() as session:
            session.add(Author(name=f"{event['event']} {time.perf_counter_ns()}"))
            session.commit()

    captured: list[str] = []
    exporter = Exporter(on_log=write, on_session=lambda summary: captured.append(summary.outcome))
    with instrument(maker, exporter=exporter, log_level="debug"), maker() as session:
        session.connection()
    with maker() as session:
        written = session.scalars(
            select(Author.name).where(Author.name.contains(".")).order_by(Author.id)
        ).all()
    assert [name.partition(" ")[0] for name in written] == [
        "session.opened",
        "transaction.ended",
        "session.closed",
    ]
    assert captured == ["closed"]


# What must not be emitted.


@on_each_database
def test_no_value_and_no_parameter_is_ever_reported(
    twin: Twin, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = SECRET
    number = 918273645

    async def story() -> None:
        caplog.set_level(logging.DEBUG, "session_tracer")
        lines = io.StringIO()
        jsonl = Exporter(on_log=lambda event: print(json.dumps(event), file=lines))
        with capture(twin.factory, statement_spans=True) as captured, ExitStack() as ours:
            ours.enter_context(instrument(None, exporter=jsonl, log_level="debug"))
            async with twin.session() as session:
                author = Author(name=f"{secret} name", biography=f"{secret} text")
                session.add(author)
                await session.flush()
                author_id = author.id
                session.add(Book(id=number, title=f"{secret} title", author_id=author_id))
                await session.commit()
                for bad in (
                    Author(name=f"{secret} name"),
                    Book(title=f"{secret} title", copies=-number, author_id=author_id),
                ):
                    session.add(bad)
                    with pytest.raises(IntegrityError):
                        await session.flush()
                    with pytest.raises(PendingRollbackError):
                        await session.scalars(select(Author))
                    await session.rollback()
                await session.scalars(select(Author).where(Author.name == f"{secret} name"))
                await session.execute(text(f"SELECT '{secret}', {number}"))
                with pytest.raises(Exception, match="no_such_table"):
                    await session.execute(text(f"SELECT '{secret}' FROM no_such_table"))
                await session.rollback()
                found = await session.get(Book, number)
            with pytest.raises(DetachedInstanceError):
                _ = found.author
        said = [
            repr(captured.facts),
            repr([asdict(summary) for summary in captured.sessions]),
            repr([asdict(finding) for finding in captured.findings]),
            repr(captured.logs),
            repr(captured.metrics),
            "".join(span.to_json() for span in captured.spans),
            lines.getvalue(),
            caplog.text,
            *capfd.readouterr(),
        ]
        assert any("flush.failed" in text for text in said)
        for text_ in said:
            assert secret not in text_
            assert str(number) not in text_

    twin.run(story)


# The application's exceptions.


async def _fails(session: Any, how: str) -> None:
    match how:
        case "IntegrityError in a flush":
            session.add_all([Author(name="Ada"), Author(name="Ada")])
            await session.flush()
        case "IntegrityError in a commit":
            session.add_all([Author(name="Ada"), Author(name="Ada")])
            await session.commit()
        case "IntegrityError of a statement":
            await session.execute(text("INSERT INTO books (id) VALUES (1)"))
        case "PendingRollbackError":
            session.add_all([Author(name="Ada"), Author(name="Ada")])
            with suppress(IntegrityError):
                await session.flush()
            await session.scalars(select(Author))
        case "StatementError":
            await session.execute(text("SELECT :missing"), {})
        case "DetachedInstanceError of a relationship":
            author = await _detached(session)
            _ = author.books
        case "DetachedInstanceError of a deferred column":
            author = await _detached(session)
            _ = author.biography
        case "DetachedInstanceError of an expired column":
            author = await _detached(session, expire=True)
            _ = author.name
        case "DetachedInstanceError of a dynamic relationship":
            author = await _detached(session)
            author.letters.all()
        case "raiseload":
            session.add(Author(name="Ada"))
            await session.commit()
            author = (await session.scalars(select(Author).options(raiseload("*")))).one()
            _ = author.books
        case "a mapped class that is none":
            session.add(object())
        case "an expunge of a stranger":
            session.expunge(Author(name="Ada"))
        case "a lazy load in a coroutine":
            author = Author(name="Ada")
            session.add(author)
            await session.commit()
            _ = author.name  # without an await: MissingGreenlet under asyncio


async def _detached(session: Any, *, expire: bool = False) -> Author:
    session.add(Author(name="Ada"))
    await session.commit()
    found = await session.scalars(select(Author))
    author: Author = found.one()
    if expire:
        session.expire(author)
    await session.close()
    return author


FAILURES = [
    "IntegrityError in a flush",
    "IntegrityError in a commit",
    "IntegrityError of a statement",
    "PendingRollbackError",
    "StatementError",
    "DetachedInstanceError of a relationship",
    "DetachedInstanceError of a deferred column",
    "DetachedInstanceError of an expired column",
    "DetachedInstanceError of a dynamic relationship",
    "raiseload",
    "a mapped class that is none",
    "an expunge of a stranger",
    "a lazy load in a coroutine",
]


async def _described_failure(twin: Twin, how: str) -> list[Any]:
    try:
        async with twin.session() as session:
            await _fails(session, how)
    except Exception as error:
        return described(error)
    return []


@never_awaited
@pytest.mark.parametrize("how", FAILURES)
def test_the_applications_exceptions_are_what_they_would_be(twin: Twin, how: str) -> None:
    async def untraced() -> list[Any]:
        return await _described_failure(twin, how)

    async def traced() -> list[Any]:
        with capture(twin.factory, statement_spans=True) as captured:
            failure = await _described_failure(twin, how)
        assert errors(captured) == {}
        return failure

    expected = twin.run(untraced)
    assert twin.run(traced) == expected
    gc.collect()
    if twin.is_async or "coroutine" not in how:
        assert expected != []


@on_each_database
@pytest.mark.parametrize(
    "how", ["IntegrityError in a flush", "IntegrityError of a statement", "PendingRollbackError"]
)
def test_the_drivers_exceptions_are_what_they_would_be(twin: Twin, how: str) -> None:
    async def untraced() -> list[Any]:
        return await _described_failure(twin, how)

    async def traced() -> list[Any]:
        with capture(twin.factory):
            return await _described_failure(twin, how)

    assert _kinds(twin.run(untraced)) == _kinds(twin.run(traced)) != []


def _kinds(failure: list[Any]) -> list[Any]:
    """The exception's type and text, and those of its causes: PostgreSQL's hold ids that differ."""
    if not failure:
        return []
    own, cause, context = failure
    return [re.sub(r"\d+", "0", own), _kinds(cause), _kinds(context)]


# What SQLAlchemy does.


def _statements(engine: Engine, work: Callable[[], object]) -> list[str]:
    """Everything that SQLite itself was asked meanwhile."""
    asked: list[str] = []

    def connected(connection: Any, _: object) -> None:
        connection.set_trace_callback(asked.append)

    engine.dispose()
    event.listen(engine, "connect", connected)
    try:
        work()
    finally:
        event.remove(engine, "connect", connected)
        engine.dispose()
    return asked


def long_program(maker: Any) -> None:
    program(maker)
    with maker() as session:
        for author in session.scalars(select(Author).options(selectinload(Author.books))):
            author.name = str(author.name)
            for book in author.books:
                book.copies += 1
        session.commit()
        for book in session.scalars(select(Book)):
            _ = book.author.biography
            session.expire(book)
            _ = book.title
        session.add_all(Book(title=f"book {n}", author_id=1) for n in range(50))
        session.commit()
        session.expunge_all()
        session.merge(Author(id=1, name="merged"))
        session.reset()
        session.execute(text("SELECT 1"))
        session.invalidate()
    session = maker()
    with session.begin():
        session.get(Author, 1)
    session.close()
    with maker() as session:
        session.execute(delete(Book).where(Book.id > 20))
        session.bulk_save_objects([Book(title="bulk", author_id=1)])
        session.commit()


def test_no_statement_more_and_none_less(tmp_path: Path) -> None:
    asked: list[list[str]] = []
    for traced in (False, True):
        engine = create_engine(f"sqlite:///{tmp_path / f'{traced}.db'}")
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add_all(authors(3, books_each=2))
            session.commit()
        maker = sessionmaker(engine)
        with ExitStack() as stack:
            if traced:
                stack.enter_context(capture(maker, statement_spans=True, record_identity=True))
                stack.enter_context(instrument(None, exporter=Exporter()))
            asked.append(_statements(engine, functools.partial(long_program, maker)))
    assert len(asked[0]) > 50
    assert asked[1] == asked[0]


def test_other_peoples_listeners_see_the_same(engine: Engine) -> None:
    def seen(*, traced: bool) -> list[tuple[Any, ...]]:
        saw: list[tuple[Any, ...]] = []
        maker = sessionmaker(engine)
        with ExitStack() as stack:
            if traced:
                stack.enter_context(capture(maker))

            @event.listens_for(maker, "do_orm_execute")
            def do_orm_execute(state: Any) -> None:
                relationship_load = state.is_select and state.is_relationship_load
                saw.append(("execute", str(state.statement), relationship_load))

            @event.listens_for(maker, "before_flush")
            def before_flush(session: Session, context: Any, instances: Any) -> None:
                saw.append(("flush", len(session.new), len(session.dirty), len(session.deleted)))

            @event.listens_for(maker, "loaded_as_persistent")
            def loaded_as_persistent(session: Session, instance: Any) -> None:
                saw.append(("loaded", type(instance).__name__, len(session.identity_map)))

            @event.listens_for(maker, "persistent_to_detached")
            def persistent_to_detached(session: Session, instance: Any) -> None:
                saw.append(("detached", type(instance).__name__))

            @event.listens_for(maker, "after_soft_rollback")
            def after_soft_rollback(session: Session, previous: Any) -> None:
                saw.append(("rolled back", type(previous).__name__, sys.exc_info()[0]))

            program(maker)
        return saw

    untraced = seen(traced=False)
    assert len(untraced) > 20
    assert seen(traced=True) == untraced


# Objects that are carried about.


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
def test_objects_are_pickled_and_copied_as_they_would_be(maker: Any, traced: bool) -> None:
    with ExitStack() as stack:
        if traced:
            stack.enter_context(capture(maker))
        with maker() as session:
            author = session.scalars(select(Author).options(selectinload(Author.books))).first()
            inside = pickle.dumps(author)
            copied = copy.copy(author)
            expunged = session.scalars(select(Book)).first()
            session.expunge(expunged)
        detached = [pickle.dumps(author), pickle.dumps(expunged)]
    assert b"session_tracer" not in b"".join([inside, *detached])
    for dumped in (inside, detached[0]):
        loaded = pickle.loads(dumped)
        assert (loaded.name, [book.title for book in loaded.books]) == (
            "author 0",
            ["book 0.0", "book 0.1"],
        )
    assert pickle.loads(detached[1]).title == "book 0.0"
    assert copied.name == "author 0"
    with maker() as session:
        session.add(pickle.loads(detached[1]))
        assert session.merge(pickle.loads(inside)).name == "author 0"


def test_a_pickle_is_byte_for_byte_what_it_would_be(engine: Engine) -> None:
    def dumped(*, traced: bool) -> list[bytes]:
        maker = sessionmaker(engine)
        with ExitStack() as stack:
            if traced:
                stack.enter_context(capture(maker))
            with maker() as session:
                found = session.scalars(select(Author).order_by(Author.id)).all()
                inside = pickle.dumps(found[0])
                session.expunge(found[1])
            return [inside, *(pickle.dumps(author) for author in found)]

    assert dumped(traced=True) == dumped(traced=False)


def test_a_refused_load_of_a_pickled_object_is_reported(maker: Any) -> None:
    with capture(maker) as captured:
        with maker() as session:
            author = session.scalars(select(Author)).first()
        carried = pickle.loads(pickle.dumps(author))
        with pytest.raises(DetachedInstanceError):
            _ = carried.books
    assert errors(captured) == {}


def test_the_error_itself_can_be_pickled_copied_and_made_by_hand(maker: Any) -> None:
    with capture(maker) as captured:
        state = self = "an application's own names"
        error = DetachedInstanceError(f"raised by hand with {state} {self}")
        assert pickle.loads(pickle.dumps(error)).args == error.args
        assert copy.copy(error).args == error.args
        assert DetachedInstanceError("with a code", code="bhk3").code == "bhk3"
    assert (captured.findings, errors(captured)) == ([], {})


def test_an_applications_stand_in_for_an_engine_is_passed_over() -> None:
    # Some applications test their own code with one.
    with capture() as captured:
        engine = Mock()
        engine.connect.return_value.in_transaction.return_value = False
        session = Session(bind=engine)
        session.connection()
        session.close()
    assert captured.metrics.get("session_tracer.errors", []) == []


def test_an_event_fired_by_hand_without_its_arguments_is_passed_over(maker: Any) -> None:
    with capture(maker) as captured, maker() as session:
        session.dispatch.before_flush()
        session.execute(text("SELECT 1"))
    assert captured.metrics.get("session_tracer.errors", []) == []
    assert [summary.statements for summary in captured.sessions] == [1]

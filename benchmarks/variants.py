"""The variants of a work: untraced, with listeners that do nothing, with session_tracer."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import SpanKind, set_span_in_context
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from session_tracer import DEFAULT_DETECTORS, Detector, Exporter, instrument
from session_tracer.exporters.recorded_spans import recorder
from session_tracer.signals.histograms import Histograms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

Factory = sessionmaker[Session] | async_sessionmaker[AsyncSession]


def nothing_more() -> None:
    pass


class InForce(NamedTuple):
    """A variant that has been applied."""

    # Called once, after W1 ran and before anything is timed; fails unless the variant is active.
    prove: Callable[[], None]
    # Called at the end of each block and timed with it.
    settle: Callable[[], object] = nothing_more


class BenchmarkSession(Session):
    """The session class of every factory, sync or async: one target for listeners."""


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    title: str
    applied: Callable[[Factory], AbstractContextManager[InForce]]
    # Entered around what is timed; not timed itself.
    around: Callable[[], AbstractContextManager[object]] = nullcontext


# Without do_orm_execute, which makes SQLAlchemy prepare each statement twice.
SESSION_EVENTS = (
    "after_transaction_create",
    "after_transaction_end",
    "after_begin",
    "before_commit",
    "after_commit",
    "after_rollback",
    "after_soft_rollback",
    "before_flush",
    "after_flush",
    "after_flush_postexec",
)
OBJECT_EVENTS = (
    "transient_to_pending",
    "pending_to_transient",
    "persistent_to_transient",
    "pending_to_persistent",
    "detached_to_persistent",
    "loaded_as_persistent",
    "persistent_to_deleted",
    "deleted_to_persistent",
    "deleted_to_detached",
    "persistent_to_detached",
)


@contextmanager
def nothing(_factory: Factory) -> Iterator[InForce]:
    yield InForce(nothing_more)


@dataclass(frozen=True, slots=True)
class ListenersThatDoNothing:
    """Listens to session events, and to events of objects with `raw=True`."""

    of_objects: bool

    @contextmanager
    def __call__(self, _factory: Factory) -> Iterator[InForce]:
        def listen(*_arguments: object) -> None:
            pass

        names = (*SESSION_EVENTS, *(OBJECT_EVENTS if self.of_objects else ()))

        def prove() -> None:
            assert all(event.contains(BenchmarkSession, name, listen) for name in names)

        for name in names:
            event.listen(BenchmarkSession, name, listen, raw=name in OBJECT_EVENTS)
        try:
            yield InForce(prove)
        finally:
            for name in names:
                event.remove(BenchmarkSession, name, listen)


class NowhereProcessor(SpanProcessor):
    """A free exporter: counts the spans that end and drops them."""

    def __init__(self) -> None:
        self.kinds = dict.fromkeys(SpanKind, 0)

    def on_end(self, span: ReadableSpan) -> None:
        self.kinds[span.kind] += 1


class JSONToNowhere:
    """A log sink that costs no more than the rendering."""

    def __init__(self) -> None:
        self.lines = 0
        self._file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 -- closed by close()

    def __call__(self, event_dict: Mapping[str, object]) -> None:
        self._file.write(json.dumps(event_dict) + "\n")
        self.lines += 1

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Level:
    recorded: bool
    statement_spans: bool
    detectors: tuple[Detector, ...] = DEFAULT_DETECTORS

    @contextmanager
    def __call__(self, factory: Factory) -> Iterator[InForce]:
        spans = NowhereProcessor()
        lines = JSONToNowhere()
        histograms = Histograms()
        tracer_provider = TracerProvider(
            sampler=ALWAYS_ON if self.recorded else ALWAYS_OFF, shutdown_on_exit=False
        )
        tracer_provider.add_span_processor(spans)
        exporter = Exporter(
            tracer_provider=tracer_provider,
            span_recorder=recorder(tracer_provider, [spans]),
            # As in session_tracer's own exporters. The proof collects them; nothing does while the
            # work is timed.
            meter_provider=MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False),
            histograms=histograms,
        )
        if self.recorded:
            exporter = replace(exporter, on_log=lines)

        def prove() -> None:
            assert exporter.span_recorder is not None, "spans are not recorded as by an exporter"
            collected = {metric.name for metric in histograms.collect(delta=False)}
            assert "sqlalchemy.session.duration" in collected, "no metric was emitted"
            assert bool(spans.kinds[SpanKind.INTERNAL]) is self.recorded, "spans against the level"
            assert bool(spans.kinds[SpanKind.CLIENT]) is self.statement_spans
            assert bool(lines.lines) is self.recorded, "log lines against the level"

        instrumentation = instrument(
            factory,
            exporter=exporter,
            statement_spans=self.statement_spans,
            detectors=self.detectors,
        )
        try:
            yield InForce(prove)
        finally:
            instrumentation.uninstrument()
            lines.close()


def engine_of(factory: Factory) -> Engine:
    # Instrumenting create_engine would come too late: the engine exists already.
    bind = factory.kw["bind"]
    engine = bind.sync_engine if isinstance(bind, AsyncEngine) else bind
    assert isinstance(engine, Engine)
    return engine


@contextmanager
def span_for_each_statement(factory: Factory) -> Iterator[InForce]:
    """What OpenTelemetry's SDK costs for a span with the attributes of a statement span."""
    spans = NowhereProcessor()
    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(spans)
    tracer = provider.get_tracer("benchmarks")
    # Statement spans have a parent; a root span would cost another trace id.
    parent = set_span_in_context(tracer.start_span("session"))

    def after_cursor_execute(*_arguments: object) -> None:
        attributes = {
            "db.system.name": "sqlite",
            "db.namespace": "shop",
            "db.query.text": "SELECT 1",
            "db.query.summary": "SELECT orders",
            "db.operation.name": "SELECT",
            "db.collection.name": "orders",
        }
        tracer.start_span("SELECT orders", parent, SpanKind.CLIENT, attributes).end()

    def prove() -> None:
        assert spans.kinds[SpanKind.CLIENT], "no statement had a span"

    engine = engine_of(factory)
    event.listen(engine, "after_cursor_execute", after_cursor_execute)
    try:
        yield InForce(prove)
    finally:
        event.remove(engine, "after_cursor_execute", after_cursor_execute)


BARE = Variant("bare", "no tracing", nothing)
CONTROL = Variant("control", "no tracing, a second time", nothing)
FLOORS = (
    Variant("events", "session events, listeners that do nothing", ListenersThatDoNothing(False)),
    Variant("object events", "also the events of objects, raw=True", ListenersThatDoNothing(True)),
)
# The price that level C is compared with.
SPANS = Variant(
    "spans", "a span of OpenTelemetry's SDK for each statement", span_for_each_statement
)
LEVELS = {
    "A": Variant("A", "metrics, all detectors, not sampled", Level(False, False)),
    "B": Variant("B", "A, spans recorded, session.closed as JSON", Level(True, False)),
    "C": Variant("C", "B, statement spans", Level(True, True)),
}

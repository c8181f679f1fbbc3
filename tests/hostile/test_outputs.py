"""That whatever carries our signals away may raise, hang, dawdle or use sessions itself."""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import structlog
from opentelemetry.metrics import MeterProvider as AnyMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import TracerProvider as AnyTracerProvider
from sqlalchemy import Engine, text
from sqlalchemy.orm import sessionmaker

from session_tracer import DEFAULT_DETECTORS, Exporter, instrument, live_sessions
from session_tracer.facts import StatementExecuted
from session_tracer.hooks.targets import resolve
from session_tracer.instrumentor import Instrumentor
from session_tracer.settings import Settings
from session_tracer.testing import capture
from tests.hostile.worlds import GOT, errors, library, unit_of_work
from tests.outline import outline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from session_tracer import Finding
    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report

# Errors of ours are said here, and nowhere else.
OURS = "session_tracer"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = library(tmp_path / "library.db")
    yield engine
    engine.dispose()


@pytest.fixture
def maker(engine: Engine) -> Any:
    return sessionmaker(engine)


@pytest.fixture
def _structlog_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def fail(*_: object, **__: object) -> NoReturn:
    raise LookupError


# What raises.


class RaisingSampler(Sampler):
    """Cannot decide."""

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        raise LookupError

    def get_description(self) -> str:
        raise LookupError


class RaisingSpan:
    """A span of somebody's own making, whose every method raises."""

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


class RaisingTracers(AnyTracerProvider):
    """Makes such spans."""

    def get_tracer(self, *_: Any, **__: Any) -> Any:
        class Tracer:
            def start_span(self, *_: Any, **__: Any) -> RaisingSpan:
                return RaisingSpan()

        return Tracer()


class RaisingMeters(AnyMeterProvider):
    """Makes instruments that take no measurement."""

    def get_meter(self, *_: Any, **__: Any) -> Any:
        class Instrument:
            add = record = staticmethod(fail)

        class Meter:
            def __getattr__(self, name: str) -> Callable[..., Instrument]:
                return lambda *_, **__: Instrument()

        return Meter()


def _sampled_by(sampler: Sampler) -> TracerProvider:
    return TracerProvider(sampler=sampler, shutdown_on_exit=False)


RAISING: dict[str, Callable[[], Exporter]] = {
    "sampler": lambda: Exporter(tracer_provider=_sampled_by(RaisingSampler())),
    "span": lambda: Exporter(tracer_provider=RaisingTracers()),
    "instruments": lambda: Exporter(meter_provider=RaisingMeters()),
    "on_retraction": lambda: Exporter(on_retraction=fail),
    "all of them": lambda: Exporter(
        tracer_provider=RaisingTracers(),
        meter_provider=RaisingMeters(),
        on_log=fail,
        on_session=fail,
        on_finding=fail,
        on_retraction=fail,
        on_fact=fail,
    ),
    "close": lambda: Exporter(close=fail),
}


@pytest.mark.parametrize("what", RAISING)
def test_what_raises_is_not_noticed_by_the_application(
    maker: Any, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    with instrument(maker, exporter=RAISING[what](), statement_spans=True, log_level="debug"):
        for _ in range(3):
            assert unit_of_work(maker) == GOT
    assert live_sessions() == []
    assert {record.name for record in caplog.records} <= {OURS}
    # Nothing was retracted, and no reader has collected.
    assert "LookupError" in caplog.text or what in ("on_retraction", "instruments")


class RaisingHandler(logging.Handler):
    """Raises where a handler should call `handleError`."""

    def handle(self, record: logging.LogRecord) -> bool:
        raise LookupError

    emit = fail


def _refuses(record: logging.LogRecord) -> bool:
    raise LookupError


@pytest.mark.parametrize("how", ["handler", "filter", "level"])
def test_a_logging_that_raises_hides_a_failure_and_nothing_else(maker: Any, how: str) -> None:
    logger = logging.getLogger(OURS)
    handler = RaisingHandler()
    with _restored(logger):
        if how == "handler":
            logger.addHandler(handler)
        elif how == "filter":
            logger.addFilter(_refuses)
        else:
            logger.isEnabledFor = fail  # type: ignore[method-assign] # as a bad shim does
        with capture(maker) as alone:
            unit_of_work(maker)
        with capture(maker) as told, instrument(maker, exporter=RAISING["all of them"]()):
            assert unit_of_work(maker) == GOT
    assert outline(told.facts) == outline(alone.facts)


@contextmanager
def _restored(logger: logging.Logger) -> Iterator[None]:
    handlers, filters = list(logger.handlers), list(logger.filters)
    try:
        yield
    finally:
        logger.handlers[:], logger.filters[:] = handlers, filters
        logger.__dict__.pop("isEnabledFor", None)


class Exits:
    """A detector that would end the process."""

    facts = (StatementExecuted,)

    def memory(self) -> None:
        """Remembers nothing."""

    def judge(self, fact: Fact, report: Report, memory: None) -> list[Finding]:
        raise SystemExit(3)


def test_what_ends_the_process_is_let_through(maker: Any, engine: Engine) -> None:
    # It is no error of ours: a signal's handler raises it wherever the process is at the time.
    with capture(maker, detectors=[Exits()]), pytest.raises(SystemExit):
        unit_of_work(maker)
    gc.collect()  # the session that it passed hangs on its traceback
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # a QueuePool
    assert live_sessions() == []
    with capture(maker) as told:
        assert unit_of_work(maker) == GOT
    assert errors(told) == {}


# What hangs, or dawdles.


class Stuck(SpanExporter, MetricExporter):
    """Waits for a collector that does not answer."""

    def __init__(self) -> None:
        MetricExporter.__init__(self)
        self.asked = threading.Event()
        self.answered = threading.Event()

    def export(self, *_: Any, **__: Any) -> Any:
        self.asked.set()
        self.answered.wait(60)
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10) -> bool:
        return True

    def shutdown(self, *_: Any, **__: Any) -> None:
        """Has nothing to give back."""


class StuckMetrics(Stuck):
    """The same for metrics."""

    def export(self, *_: Any, **__: Any) -> Any:
        super().export()
        return MetricExportResult.SUCCESS


def test_an_exporter_of_the_sdk_that_hangs_holds_nobody_up(maker: Any) -> None:
    spans, metrics = Stuck(), StuckMetrics()
    tracers = TracerProvider(shutdown_on_exit=False)
    # At once, so that it hangs while the application works.
    tracers.add_span_processor(BatchSpanProcessor(spans, schedule_delay_millis=1))
    reader = PeriodicExportingMetricReader(metrics, export_interval_millis=1)
    meters = MeterProvider([reader], shutdown_on_exit=False)
    exporter = Exporter(tracer_provider=tracers, meter_provider=meters)
    try:
        with instrument(maker, exporter=exporter):
            unit_of_work(maker)
            assert spans.asked.wait(20)
            assert metrics.asked.wait(20)
            for _ in range(20):
                assert unit_of_work(maker) == GOT
            assert not spans.answered.is_set()
    finally:
        spans.answered.set()
        metrics.answered.set()
        tracers.shutdown()
        meters.shutdown()


class Slow(SpanProcessor):
    """Takes its time in the application's own thread."""

    def __init__(self) -> None:
        self.spent = 0.0

    def on_end(self, span: Any) -> None:
        began = time.perf_counter()
        time.sleep(0.002)
        self.spent += time.perf_counter() - began


def test_a_processor_that_is_slow_costs_its_own_time_and_is_not_the_sessions(maker: Any) -> None:
    # OpenTelemetry calls a span processor in the thread that ends the span; a slow one is slow for
    # the application whoever ends it. A BatchSpanProcessor is what such an exporter is put behind.
    slow = Slow()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(slow)
    with instrument(maker, exporter=Exporter(tracer_provider=tracers), statement_spans=True):
        assert unit_of_work(maker) == GOT
    assert slow.spent > 0.02


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_log_file_that_nobody_reads_holds_nobody_up(maker: Any, tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    instrumentation = instrument(
        maker, exporter="jsonl", jsonl_path=str(path), log_level="debug", leak_after_seconds=3600
    )
    try:
        with instrumentation:
            for _ in range(30):  # more than a pipe takes
                assert unit_of_work(maker) == GOT
            os.set_blocking(reading, True)
            threading.Thread(target=_read_on, args=(reading,), daemon=True).start()
    finally:
        pass


def _read_on(reading: int) -> None:
    with os.fdopen(reading) as file:
        for line in file:
            json.loads(line)


# What uses sessions itself.


class Meddler(SpanProcessor, Sampler, logging.Handler):
    """Uses the database at every opportunity, by the factory that is traced."""

    def __init__(self, maker: Any) -> None:
        logging.Handler.__init__(self)
        self._maker = maker
        self.used = 0
        self._amid = False

    def use(self, *_: Any, **__: Any) -> None:
        self.used += 1
        with self._maker() as session:
            session.execute(text("SELECT 'meddled'"))
            session.commit()

    on_start = on_end = use

    def emit(self, record: logging.LogRecord) -> None:
        self.use()

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        self.use()
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "meddles"

    def process(self, logger: Any, name: str, event: Any) -> Any:
        """As a structlog processor."""
        self.use()
        raise structlog.DropEvent


def _processor(meddler: Meddler) -> Exporter:
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(meddler)
    return Exporter(tracer_provider=tracers)


def _structlog(meddler: Meddler) -> Exporter:
    structlog.configure(processors=[meddler.process])
    return Exporter()


def _handler(meddler: Meddler) -> Exporter:
    logging.getLogger(OURS).addHandler(meddler)
    return Exporter(on_fact=fail)


MEDDLING: dict[str, Callable[[Meddler], Exporter]] = {
    "span processor": _processor,
    "sampler": lambda meddler: Exporter(tracer_provider=_sampled_by(meddler)),
    "logging handler": _handler,
    "structlog processor": _structlog,
    "on_log": lambda meddler: Exporter(on_log=meddler.use),
    "on_session": lambda meddler: Exporter(on_session=meddler.use),
    "on_finding": lambda meddler: Exporter(on_finding=meddler.use),
    "on_fact": lambda meddler: Exporter(on_fact=meddler.use),
}


@pytest.mark.usefixtures("_structlog_as_it_was")
@pytest.mark.parametrize("how", MEDDLING)
def test_what_uses_sessions_itself_is_not_told_of(maker: Any, how: str) -> None:
    with capture(maker) as alone:
        unit_of_work(maker)
    meddler = Meddler(maker)
    with _restored(logging.getLogger(OURS)):
        exporter = MEDDLING[how](meddler)
        with capture(maker) as told, instrument(maker, exporter=exporter, log_level="debug"):
            assert unit_of_work(maker) == GOT
    assert meddler.used > 0
    assert outline(told.facts) == outline(alone.facts)
    assert live_sessions() == []


class Clinging:
    """Uses the very session that it is told of, also as that ends."""

    def __init__(self) -> None:
        self.session: Any = None
        self.used = 0

    def use(self, *_: object) -> None:
        if self.session is not None:
            self.used += 1
            with suppress(Exception):
                self.session.execute(text("SELECT 'clung'"))


@pytest.mark.parametrize("hook", ["on_session", "on_finding", "on_log"])
def test_a_session_that_is_used_by_who_is_told_of_it_goes_on(maker: Any, hook: str) -> None:
    clinging = Clinging()
    hooks: dict[str, Any] = {hook: clinging.use}
    got = []
    with instrument(maker, exporter=Exporter(**hooks), log_level="debug"):
        for _ in range(2):
            with maker() as session:
                clinging.session = session
                got.append(session.execute(text("SELECT 1")).scalar())
                with suppress(Exception):
                    session.execute(text("SELECT nothing"))
                session.rollback()
                for _ in range(12):
                    session.execute(text("SELECT 2"))
                    session.commit()
            clinging.session = None
            session.close()
        assert unit_of_work(maker) == GOT
    assert got == [1, 1]
    assert clinging.used > 0 or hook == "on_finding"
    assert live_sessions() == []


# What tells the time.


@contextmanager
def _traced_by(clock: Callable[[], int], maker: Any, exporter: Exporter) -> Iterator[None]:
    instrumentor = Instrumentor(clock)
    instrumentation = instrumentor.add(
        resolve(maker), "default", exporter, Settings(), DEFAULT_DETECTORS
    )
    try:
        yield
    finally:
        instrumentor.remove(instrumentation)


def _ticking(step: int) -> Callable[[], int]:
    now = time.perf_counter_ns()

    def clock() -> int:
        nonlocal now
        now += step
        return now

    return clock


CLOCKS: dict[str, Callable[[], int]] = {
    "stands still": lambda: 1,
    "goes backwards": _ticking(-1_000_000),
    "leaps": _ticking(3_600_000_000_000),
    "has begun below zero": lambda: -5,
}


@pytest.mark.parametrize("how", CLOCKS)
def test_a_clock_that_is_wrong_makes_nothing_else_wrong(
    maker: Any, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    tracers = TracerProvider(shutdown_on_exit=False)
    told: list[Fact] = []
    with capture(maker) as alone:
        unit_of_work(maker)
    exporter = Exporter(tracer_provider=tracers, on_fact=told.append, on_finding=lambda _: None)
    with _traced_by(CLOCKS[how], maker, exporter):
        assert unit_of_work(maker) == GOT
    assert outline(told) == outline(alone.facts)
    assert caplog.records == []

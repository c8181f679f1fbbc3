"""Tests that histograms are exported as the SDK would export what was recorded with it."""

import gc
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, NoOpMeterProvider
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, AlwaysOnExemplarFilter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    SumAggregation,
    View,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import text

from session_tracer import __version__, instrument
from session_tracer.exporter import Exporter
from session_tracer.exporters.prometheus import prometheus_exporter
from session_tracer.exporters.sdk_histograms import (
    AddsHistograms,
    new_histograms,
    reserve_place,
)
from session_tracer.signals import histograms as module
from session_tracer.signals import names
from session_tracer.signals.histograms import Histograms, RecordedHistograms, Series
from session_tracer.testing import capture
from tests.library import authors
from tests.servers.collector import Collector
from tests.signals.telling import put
from tests.twins import Twin

METRIC = names.SESSION_STATEMENTS  # its boundaries are whole numbers: sums are exact in any order
ONE, TWO = {"a": "1"}, {"a": "1", "b": 2}
# What is added between one collection and the next: on boundaries, between them, below and above;
# nothing; more than may wait; negative ones.
ROUNDS: Sequence[tuple[float, ...]] = (
    (5, 1, 0.25, 10_000, 10_001, 0),
    (),
    (2, 0.125, -1),
    (0.75, 16) * 600,
    (),
    (64, -1),
)
SPAN = (7, 3)

Add = Callable[[float, Any, tuple[int, int] | None], None]


def recorded_with(provider: MeterProvider) -> Add:
    """Records values with the provider's own histogram."""
    histogram = provider.get_meter(names.SCOPE, __version__).create_histogram(
        METRIC.name,
        METRIC.unit,
        METRIC.description,
        explicit_bucket_boundaries_advisory=METRIC.boundaries,
    )

    def add(value: float, attributes: Any, span: tuple[int, int] | None) -> None:
        context = None
        if span is not None:
            sampled = SpanContext(*span, is_remote=False, trace_flags=TraceFlags(1))
            context = trace.set_span_in_context(NonRecordingSpan(sampled))
        if value >= 0:  # else the SDK logs a warning
            histogram.record(value, attributes, context)

    return add


def added_to(histograms: Histograms | RecordedHistograms) -> Add:
    """Adds values to the series of the histograms."""

    def add(value: float, attributes: Any, span: tuple[int, int] | None) -> None:
        put(histograms, histograms.series(METRIC, attributes), value, span)

    return add


class Kept(MetricExporter):
    """Keeps what is exported."""

    def __init__(self, temporality: AggregationTemporality) -> None:
        super().__init__({sdk.Histogram: temporality})
        self.exported: list[MetricsData] = []

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Keep it."""
        self.exported.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing waits here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Nothing is held."""


class KeptWithHistograms(AddsHistograms, Kept):
    """Keeps what is exported with session_tracer's histograms."""


TEMPORALITIES = [AggregationTemporality.CUMULATIVE, AggregationTemporality.DELTA]


def exporting(
    temporality: AggregationTemporality, *, own: bool
) -> tuple[sdk.MeterProvider, Kept, Add]:
    """A provider with a periodic reader, its exporter, and what adds values; by either way."""
    if not own:
        kept = Kept(temporality)
        provider = sdk.MeterProvider(
            [PeriodicExportingMetricReader(kept, inf)], shutdown_on_exit=False
        )
        return provider, kept, recorded_with(provider)
    with_histograms = KeptWithHistograms(temporality)
    with_histograms.histograms = Histograms()
    provider = sdk.MeterProvider(
        [PeriodicExportingMetricReader(with_histograms, inf)], shutdown_on_exit=False
    )
    reserve_place(provider)
    return provider, with_histograms, added_to(with_histograms.histograms)


def story(
    provider: sdk.MeterProvider, add: Add, collect: Callable[[], Any] | None = None
) -> list[Any]:
    """What is collected after each round of values."""
    collected = []
    for number, values in enumerate(ROUNDS):
        for attributes in (ONE, TWO):
            for value in values:
                add(value, attributes, (number + 1, int(value) + 2) if value > 1 else None)
        if collect is None:
            provider.force_flush()
        else:
            collected.append(collect())
    return collected


def timeless(data: MetricsData | None) -> list[Any]:
    """What was collected, but for the times."""
    return [
        (
            of_resource.resource,
            of_scope.scope,
            of_scope.schema_url,
            metric.name,
            metric.unit,
            metric.description,
            type(metric.data),
            getattr(metric.data, "aggregation_temporality", None),
            [
                replace(
                    point,
                    start_time_unix_nano=0,
                    time_unix_nano=0,
                    # Those of other points are chosen at random.
                    exemplars=[
                        replace(one, time_unix_nano=0)
                        for one in point.exemplars
                        if isinstance(point, HistogramDataPoint)
                    ],
                )
                for point in metric.data.data_points
            ],
        )
        for of_resource in (data.resource_metrics if data is not None else ())
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
    ]


def data_points(data: MetricsData) -> list[HistogramDataPoint]:
    """The data points of all histograms."""
    return [
        point
        for of_resource in data.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        for point in metric.data.data_points
        if isinstance(point, HistogramDataPoint)
    ]


@pytest.mark.parametrize("temporality", TEMPORALITIES)
def test_an_exporter_gets_what_the_sdk_would_have_collected(
    temporality: AggregationTemporality,
) -> None:
    provider, kept, add = exporting(temporality, own=False)
    story(provider, add)
    expected = [found for found in map(timeless, kept.exported) if found]
    provider, kept, add = exporting(temporality, own=True)
    story(provider, add)
    assert [found for found in map(timeless, kept.exported) if found] == expected
    assert len(expected) >= 4


@pytest.mark.parametrize("temporality", TEMPORALITIES)
def test_the_data_points_cover_the_time_without_a_gap(temporality: AggregationTemporality) -> None:
    before = time.time_ns()
    provider, kept, add = exporting(temporality, own=True)
    for _ in range(3):
        add(1, ONE, SPAN)
        provider.force_flush()
    points = [point for data in kept.exported for point in data_points(data)]
    starts = [point.start_time_unix_nano for point in points]
    ends = [point.time_unix_nano for point in points]
    assert before <= starts[0] < ends[0] < ends[1] < ends[2] <= time.time_ns()
    if temporality is AggregationTemporality.DELTA:
        assert starts[1:] == ends[:2]
    else:
        assert len(set(starts)) == 1
    taken = [one.time_unix_nano for point in points for one in point.exemplars]
    assert all(
        start <= at <= end for start, at, end in zip([before, *ends], taken, ends, strict=False)
    )
    assert len(taken) == 3


def test_what_was_added_last_is_exported_when_the_provider_is_shut_down() -> None:
    provider, kept, add = exporting(AggregationTemporality.DELTA, own=True)
    reader_thread_exports = [len(kept.exported)]
    add(1, ONE, None)
    provider.force_flush()
    add(2, ONE, None)
    provider.force_flush()
    provider.shutdown()
    assert reader_thread_exports == [0]
    assert [point.sum for data in kept.exported for point in data_points(data)] == [1, 2]


def test_prometheus_scrapes_what_the_sdk_would_have_collected() -> None:
    def scraped(registry: CollectorRegistry) -> list[str]:
        return sorted(generate_latest(registry).decode().splitlines())

    ours, theirs = CollectorRegistry(), CollectorRegistry()
    exporter, reference = prometheus_exporter(ours), prometheus_exporter(theirs)
    assert exporter.histograms is not None
    record = recorded_with(reference.meter_provider)
    add = added_to(exporter.histograms)
    for one in (exporter, reference):
        counter = one.meter_provider.get_meter(names.SCOPE, __version__).create_counter("c")
        counter.add(1, ONE)
    for values in ROUNDS:
        for attributes in (ONE, TWO, {"server.port": 5432, "database": 'a"b\\c\nd'}):
            for value in values:
                add(value, attributes, SPAN)
                record(value, attributes, SPAN)
        assert scraped(ours) == scraped(theirs)
    assert len(scraped(ours)) > 40


@pytest.mark.parametrize("metric", [one for one in names.METRICS if one.boundaries])
def test_prometheus_names_each_histogram_as_the_sdk_does(metric: names.Metric) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    exporter, reference = prometheus_exporter(ours), prometheus_exporter(theirs)
    assert exporter.histograms is not None
    put(exporter.histograms, exporter.histograms.series(metric, ONE), 0.5)
    reference.meter_provider.get_meter(names.SCOPE, __version__).create_histogram(
        metric.name,
        metric.unit,
        metric.description,
        explicit_bucket_boundaries_advisory=metric.boundaries,
    ).record(0.5, ONE)
    lines = generate_latest(theirs).decode().splitlines()
    expected = [line for line in lines if "target" not in line]
    assert generate_latest(ours).decode().splitlines() == expected


# The road of session_tracer's own exporters


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the histograms of the SDK's own that a value is recorded with."""
    found: list[str] = []
    record = sdk.Histogram.record

    def recording(self: Any, *args: Any, **kwargs: Any) -> None:
        found.append(self.name)
        record(self, *args, **kwargs)

    for kind in [sdk.Histogram, *sdk.Histogram.__subclasses__()]:
        if "record" in vars(kind):
            monkeypatch.setattr(kind, "record", recording)
    return found


def test_the_fixture_sees_what_is_recorded(recorded: list[str]) -> None:
    provider = sdk.MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    recorded_with(provider)(1, ONE, None)
    assert recorded == [METRIC.name]


def scraped_after_a_session(twin: Twin) -> str:
    """What Prometheus scrapes of an exporter that one session was reported to."""

    async def story() -> None:
        async with twin.session() as session:
            session.add_all(authors(1))
            await session.commit()

    registry = CollectorRegistry()
    with instrument(twin.factory, exporter=prometheus_exporter(registry)):
        twin.run(story)
        return generate_latest(registry).decode()


def test_prometheus_takes_histograms_without_recording(twin: Twin, recorded: list[str]) -> None:
    assert "sqlalchemy_session_duration_seconds_count{" in scraped_after_a_session(twin)
    assert recorded == []


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_otlp_takes_histograms_without_recording(
    protocol: str,
    twin: Twin,
    recorded: list[str],
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with twin.session() as session:
            session.add_all(authors(1))
            await session.commit()

    name = f"shop-{uuid.uuid4()}"
    endpoint = collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    with instrument(twin.factory, name=name, exporter="otlp") as instrumentation:
        twin.run(story)
        instrumentation.flush()
        output = collector.wait_for("-> Name: sqlalchemy.session.duration\n")
    assert f"-> sqlalchemy.session.name: Str({name})\n" in output
    assert set(recorded) == {"session_tracer.histograms"}  # what it stands for takes its place
    assert "session_tracer.histograms" not in output


def test_capture_takes_histograms_without_recording(twin: Twin, recorded: list[str]) -> None:
    async def story() -> None:
        async with twin.session() as session:
            session.add_all(authors(1))
            await session.commit()

    with capture(twin.factory) as captured:
        twin.run(story)
    (point,) = captured.metrics["sqlalchemy.session.duration"]
    assert isinstance(point, HistogramDataPoint)
    assert (point.count, recorded) == (1, [])


def test_an_environment_that_asks_for_all_exemplars_gets_the_sdks_histograms(
    twin: Twin, recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", "always_on")
    assert "sqlalchemy_session_duration_seconds_count{" in scraped_after_a_session(twin)
    assert "sqlalchemy.session.duration" in recorded


def test_an_environment_that_asks_for_no_exemplars_gets_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", "always_off")
    histograms = new_histograms()
    assert histograms is not None
    put(histograms, histograms.series(METRIC, ONE), 1, SPAN)
    ((point,),) = histograms.collect(delta=False).values()
    assert point.exemplars == ()


# The road of every other meter provider


def delta() -> InMemoryMetricReader:
    """A reader of what happened since it last read."""
    return InMemoryMetricReader(preferred_temporality={sdk.Histogram: AggregationTemporality.DELTA})


def of(aggregation: Any) -> InMemoryMetricReader:
    """A reader that prefers its histograms aggregated like this."""
    return InMemoryMetricReader(preferred_aggregation={sdk.Histogram: aggregation})


class Tenth(AlwaysOnExemplarFilter):
    """A filter of the application's own."""


class Wrapped(sdk.MeterProvider):
    """A provider of the application's own."""


Make = Callable[[], tuple[sdk.MeterProvider, list[Any]]]


def made(
    *readers: Callable[[], Any], kind: type[sdk.MeterProvider] = sdk.MeterProvider, **options: Any
) -> Make:
    """How to make a provider with these readers."""

    def make() -> tuple[sdk.MeterProvider, list[Any]]:
        instances = [reader() for reader in readers]
        return kind(instances, shutdown_on_exit=False, **options), instances

    return make


def viewed(**options: Any) -> Make:
    """How to make a provider that views the histogram like this."""
    return made(InMemoryMetricReader, delta, views=[View(instrument_name=METRIC.name, **options)])


PROVIDERS: dict[str, Make] = {
    "cumulative": made(InMemoryMetricReader),
    "delta": made(delta),
    "two readers": made(InMemoryMetricReader, delta),
    "no exemplars": made(InMemoryMetricReader, exemplar_filter=AlwaysOffExemplarFilter()),
    "other boundaries": viewed(aggregation=ExplicitBucketHistogramAggregation((1, 2, 100))),
    "one bucket": viewed(aggregation=ExplicitBucketHistogramAggregation(())),
    "no extremes": viewed(aggregation=ExplicitBucketHistogramAggregation((1,), False)),
    "another name": viewed(name="known_as", description="Measured."),
    "attributes left out": viewed(attribute_keys={"b"}),
    "two views": made(
        InMemoryMetricReader,
        views=[View(instrument_name=METRIC.name), View(instrument_name=METRIC.name, name="too")],
    ),
    "exponential": viewed(aggregation=ExponentialBucketHistogramAggregation()),
    "a reader's exponential": made(lambda: of(ExponentialBucketHistogramAggregation())),
    "sum": viewed(aggregation=SumAggregation()),
    "dropped": viewed(aggregation=DropAggregation()),
    "two boundaries": made(
        InMemoryMetricReader, lambda: of(ExplicitBucketHistogramAggregation((1, 2)))
    ),
    "exemplars of all": made(InMemoryMetricReader, exemplar_filter=AlwaysOnExemplarFilter()),
    "exemplars of some": made(InMemoryMetricReader, exemplar_filter=Tenth()),
    "a provider of another class": made(InMemoryMetricReader, kind=Wrapped),
}


def applications(provider: MeterProvider) -> RecordedHistograms:
    """The histograms of a provider of the application's."""
    meter = provider.get_meter(names.SCOPE, __version__)
    recorded = RecordedHistograms(meter)
    meter.create_observable_gauge("observed", [recorded.take_waiting])
    return recorded


@pytest.mark.parametrize("make", PROVIDERS.values(), ids=PROVIDERS)
def test_a_provider_of_the_applications_collects_what_was_recorded(make: Make) -> None:
    provider, readers = make()
    expected = story(
        provider,
        recorded_with(provider),
        lambda: [timeless(reader.get_metrics_data()) for reader in readers],
    )
    provider, others = make()
    found = story(
        provider,
        added_to(applications(provider)),
        lambda: [timeless(reader.get_metrics_data()) for reader in others],
    )
    assert found == expected


def test_a_value_of_no_sampled_span_takes_no_exemplar_from_the_collecting_thread() -> None:
    reader = InMemoryMetricReader()
    provider = sdk.MeterProvider([reader], shutdown_on_exit=False)
    histograms = applications(provider)
    put(histograms, histograms.series(METRIC, ONE), 2)
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("a"):
        ((*_, (point,)),) = timeless(reader.get_metrics_data())
    assert (point.count, point.exemplars) == (1, [])


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "not sampled"])
def test_an_exemplar_leads_to_the_span_of_the_caller_if_it_is_sampled(
    twin: Twin, sampler: Sampler
) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=exporter), tracer.start_as_current_span("a") as span:
            async with twin.session() as session:
                await session.execute(text("SELECT 1"))
            callers.append(span.get_span_context())

    histograms, callers = Histograms(), list[SpanContext]()
    exporter = Exporter(
        meter_provider=sdk.MeterProvider(shutdown_on_exit=False), histograms=histograms
    )
    tracer = TracerProvider(sampler=sampler, shutdown_on_exit=False).get_tracer("test")
    twin.run(story)
    collected = histograms.collect(delta=False)
    collected.pop(names.POOL_WAIT)  # a checkout is of its pool, whose ever it was
    points = [point for points in collected.values() for point in points]
    assert len(points) == 6
    exemplars = [one for point in points for one in point.exemplars]
    (caller,) = callers
    expected = [(caller.trace_id, caller.span_id)] * (6 if sampler is ALWAYS_ON else 0)
    assert [(one.trace_id, one.span_id) for one in exemplars] == expected


class Refusing(Histogram):
    """A histogram that takes one value only."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def record(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        """Take the 3."""
        if amount != 3:
            raise LookupError
        self.taken.append(amount)


def test_a_histogram_that_raises_is_logged_once_and_gets_the_next_value(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = Refusing()
    meter = NoOpMeterProvider().get_meter("test")
    monkeypatch.setattr(meter, "create_histogram", lambda *_, **__: refusing)
    histograms = RecordedHistograms(meter)
    for value in (1, 2, 3):
        put(histograms, histograms.series(METRIC, ONE), value)
    histograms.take_waiting(CallbackOptions())
    assert refusing.taken == [3]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Refusing.record() raised LookupError()" in caplog.text


# What waits


def sums(histograms: Histograms, reader: Any, *, own: bool) -> list[tuple[int, float]]:
    """The count and sum of the only series, if it has values."""
    if own:
        return [
            (sum(point.counts), point.sum)
            for points in histograms.collect(delta=True).values()
            for point in points
        ]
    return [
        (point.count, point.sum)
        for *_, points in timeless(reader.get_metrics_data())
        for point in points
    ]


class Road:
    """One series, and how its values are collected, by either way."""

    def __init__(self, own: bool) -> None:
        self.own = own
        self.reader = delta()
        provider = sdk.MeterProvider([self.reader], shutdown_on_exit=False)
        self.histograms: Any = Histograms() if own else applications(provider)
        self.series: Series = self.histograms.series(METRIC, ONE)

    @property
    def waiting(self) -> int:
        """How many values wait."""
        return len(self.histograms.waiting)

    def collected(self) -> list[tuple[int, float]]:
        """Count and sum since the last collection, if there were values."""
        return sums(self.histograms, self.reader, own=self.own)

    def total(self, *so_far: tuple[int, float]) -> tuple[int, float]:
        """Count and sum of these and what is collected now."""
        found = [*so_far, *self.collected()]
        return sum(count for count, _ in found), sum(total for _, total in found)


@pytest.fixture(params=[True, False], ids=["own", "application"])
def road(request: pytest.FixtureRequest) -> Road:
    """Either way."""
    return Road(request.param)


def test_a_value_waits_until_it_is_collected(road: Road, recorded: list[str]) -> None:
    for _ in range(100):
        put(road.histograms, road.series, 2)
    assert (road.waiting, recorded) == (100, [])
    assert road.collected() == [(100, 200)]
    assert (road.waiting, road.collected()) == (0, [])


def test_a_bounded_number_of_values_waits(road: Road) -> None:
    most = 0
    for number in range(20_000):
        put(road.histograms, road.series, number % 8, None if number % 100 else SPAN)
        most = max(most, road.waiting)
    assert most <= (512 if road.own else 8192)
    assert road.total() == (20_000, 70_000)


def test_a_provider_that_takes_no_measurements_lets_a_bounded_number_wait() -> None:
    histograms = applications(NoOpMeterProvider())
    for _ in range(20_000):
        put(histograms, histograms.series(METRIC, ONE), 1)
    assert len(histograms.waiting) <= 8192


@contextmanager
def hurried() -> Iterator[None]:
    """Have threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def test_no_value_is_lost_or_counted_twice_between_threads(road: Road) -> None:
    def work() -> None:
        series = road.histograms.series(METRIC, ONE)
        for number in range(20_000):
            put(road.histograms, series, number % 8, None if number % 1_000 else (1, 1))

    between: list[tuple[int, float]] = []
    most = 0
    with hurried():
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            between.extend(road.collected())
            most = max(most, road.waiting)
    assert road.total(*between) == (80_000, 280_000)
    assert most < 20_000


@contextmanager
def collecting_garbage(then: Callable[[], None]) -> Iterator[None]:
    """Have the garbage collector run as often as it can, and do this each time."""

    def on_collection(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            then()

    threshold = gc.get_threshold()
    gc.callbacks.append(on_collection)
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(on_collection)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("own", [True, False])
def test_the_garbage_collector_may_add_values_at_any_time(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few may wait that both adding and collecting are in the middle of it all the time.
    monkeypatch.setattr(module, "_FOLD_AT", 3)
    monkeypatch.setattr(module, "_MOST_WAITING", 5)
    monkeypatch.setattr(module, "_APPLICATION_PATIENCE", 0.001)
    road = Road(own)
    added = [0]
    number = 0

    def then() -> None:
        # Recording a value allocates too: without a limit, each would bring the next ones.
        if added[0] <= number:
            added[0] += 1
            put(road.histograms, road.series, 4, SPAN)

    between: list[tuple[int, float]] = []
    with collecting_garbage(then):
        for number in range(1_000):
            put(road.histograms, road.series, 2)
            if number % 10 == 0:
                between.extend(road.collected())
    assert added[0] > 100
    assert road.total(*between) == (1_000 + added[0], 2_000 + 4 * added[0])


def test_a_collection_that_comes_in_the_middle_of_another_leaves_all_to_it() -> None:
    road = Road(own=True)
    inner: list[Any] = []
    put(road.histograms, road.series, 2)
    with collecting_garbage(lambda: inner.extend(road.collected())):
        outer = road.collected()
    assert [*inner, *outer, *road.collected()] == [(1, 2)]


@pytest.mark.timeout(60)
def test_adding_goes_on_while_another_thread_takes_long_to_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_COLLECTION_PATIENCE", 0.01)
    monkeypatch.setattr(module, "_APPLICATION_PATIENCE", 0.001)
    road = Road(own=True)
    with road.histograms._lock.value:
        for _ in range(8_300):
            put(road.histograms, road.series, 2)
        assert road.collected() == []
    assert road.collected() == [(8_300, 16_600)]


# Whole programs


class Counts(Kept):
    """Keeps how many sessions' durations were exported."""

    @property
    def counts(self) -> list[int]:
        """The numbers."""
        return [
            point.count
            for data in self.exported
            for *_, name, _, _, _, _, points in timeless(data)
            if name == names.SESSION_DURATION.name
            for point in points
        ]


def test_what_waits_is_exported_when_the_provider_is_flushed_or_shut_down(twin: Twin) -> None:
    async def story() -> None:
        for _ in range(3):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.flush()

    kept = Counts(AggregationTemporality.CUMULATIVE)
    reader = PeriodicExportingMetricReader(kept, export_interval_millis=3_600_000)
    provider = sdk.MeterProvider([reader], shutdown_on_exit=False)
    with instrument(twin.factory, exporter=Exporter(meter_provider=provider)):
        twin.run(story)
        provider.force_flush()
        twin.run(story)
    provider.shutdown()
    assert kept.counts == [3, 6]


LATER = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tests.signals.telling import put
from tests.signals.test_histograms import METRIC, ONE, applications, timeless

histograms = applications(metrics.get_meter_provider())
series = histograms.series(METRIC, ONE)
put(histograms, series, 1)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
for value in (2, 4, 8):
    put(histograms, series, value)
((*_, (point,)),) = timeless(reader.get_metrics_data())
print(point.sum)
"""

FORK = """
import os
from tests.signals.telling import put
from tests.signals.test_histograms import Road

road = Road(own=OWN)
put(road.histograms, road.series, 1)
if OWN:
    road.histograms._fold()  # what is counted already is the parent's as well
    put(road.histograms, road.series, 1)
lock = getattr(road.histograms, "_lock", None)
if lock is not None:
    lock.value.acquire()  # as another thread would that counts just now
child = os.fork()
if not child:
    for _ in range(1_000):
        put(road.histograms, road.series, 2)
    print(road.waiting < 600 or not OWN, road.collected(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
if lock is not None:
    lock.value.release()
print(road.collected())
"""


def printed_by(program: str) -> str:
    """What the program prints, run by itself."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


def test_a_provider_that_is_set_later_gets_what_waits() -> None:
    assert printed_by(LATER) == "15\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(("own", "parents"), [(True, "[(2, 2)]"), (False, "[(1, 1)]")])
def test_a_forked_child_begins_at_zero(own: bool, parents: str) -> None:
    printed = printed_by(FORK.replace("OWN", str(own)))
    assert printed == f"True [(1000, 2000)]\n{parents}\n"

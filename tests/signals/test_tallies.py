"""Tests that values which are added up by us come to what the SDK would have recorded of them."""

import gc
import importlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.metrics import Histogram, MeterProvider, NoOpMeterProvider
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
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from session_tracer import instrument
from session_tracer.exporter import Exporter
from session_tracer.signals import names, tallies
from session_tracer.signals.tallies import Tallies, Tally
from tests.library import authors
from tests.twins import Twin

BOUNDARIES = (0.5, 1, 8)
ONE, TWO = {"a": "1"}, {"a": "1", "b": "2"}
# What is recorded between one collection and the next, exact in any order: on boundaries, between
# them, below and above; nothing; more than may wait.
ROUNDS: Sequence[tuple[float, ...]] = (
    (0.5, 1, 0.25, 8, 8.5, 0),
    (),
    (2, 0.125),
    (0.75, 16) * 600,
    (),
    (64,),
)


def delta() -> InMemoryMetricReader:
    """A reader of what happened since it last read."""
    return InMemoryMetricReader(preferred_temporality={sdk.Histogram: AggregationTemporality.DELTA})


def of(aggregation: Any) -> InMemoryMetricReader:
    """A reader that prefers its histograms added up like this."""
    return InMemoryMetricReader(preferred_aggregation={sdk.Histogram: aggregation})


def histogram(provider: MeterProvider, of: Tallies) -> Histogram:
    """A histogram of a meter that asks those tallies when it is collected."""
    meter = provider.get_meter("test")
    meter.create_observable_counter("observed", [of.hand_over])
    return meter.create_histogram("measured", explicit_bucket_boundaries_advisory=BOUNDARIES)


def points(reader: Any) -> list[Any]:
    """What the reader collects of a histogram, but for the times."""
    data = reader.get_metrics_data()
    return [
        (
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
                    exemplars=[replace(one, time_unix_nano=0) for one in point.exemplars],
                )
                for point in metric.data.data_points
            ],
        )
        for of_resource in (data.resource_metrics if data is not None else ())
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
    ]


def story(
    provider: MeterProvider,
    readers: Sequence[Any],
    rounds: Sequence[Sequence[float]] = ROUNDS,
    *,
    by_tally: bool,
) -> tuple[list[Any], int]:
    """What the readers collect after each round, and how many values waited for them in all."""
    all_tallies = Tallies(provider)
    measured = histogram(provider, all_tallies)
    collected: list[Any] = []
    waited = 0
    for values in rounds:
        for attributes in (ONE, TWO):
            tally = all_tallies.tally(measured, attributes)
            for value in values:
                if by_tally:
                    tally.add(value, None, False)
                else:
                    measured.record(value, attributes)
            waited += len(tally.waiting)
        collected.append([points(reader) for reader in readers])
    return collected, waited


class Tenth(AlwaysOnExemplarFilter):
    """A filter of the application's own."""


class Wrapped(sdk.MeterProvider):
    """A provider of the application's own."""


Make = Callable[[], tuple[MeterProvider, list[Any]]]


def made(
    *readers: Callable[[], Any], kind: type[sdk.MeterProvider] = sdk.MeterProvider, **options: Any
) -> Make:
    """How to make a provider with these readers."""

    def make() -> tuple[MeterProvider, list[Any]]:
        instances = [reader() for reader in readers]
        return kind(instances, shutdown_on_exit=False, **options), instances

    return make


def viewed(**options: Any) -> Make:
    """How to make a provider that views our histogram like this."""
    return made(InMemoryMetricReader, delta, views=[View(instrument_name="measured", **options)])


ADDED_UP: dict[str, Make] = {
    "cumulative": made(InMemoryMetricReader),
    "delta": made(delta),
    "two readers": made(InMemoryMetricReader, delta),
    "no exemplars": made(InMemoryMetricReader, exemplar_filter=AlwaysOffExemplarFilter()),
    "other boundaries": viewed(aggregation=ExplicitBucketHistogramAggregation((1, 2, 100))),
    "one bucket": viewed(aggregation=ExplicitBucketHistogramAggregation(())),
    "no extremes": viewed(aggregation=ExplicitBucketHistogramAggregation((1,), False)),
    "another name": viewed(name="known_as", description="Measured."),
    "a reader's boundaries": made(lambda: of(ExplicitBucketHistogramAggregation((1, 2)))),
    "attributes of one left out": viewed(attribute_keys={"a"}),
    "two views": made(
        InMemoryMetricReader,
        views=[View(instrument_name="measured"), View(instrument_name="measured", name="too")],
    ),
}
RECORDED: dict[str, Make] = {
    "exponential": viewed(aggregation=ExponentialBucketHistogramAggregation()),
    "a reader's exponential": made(lambda: of(ExponentialBucketHistogramAggregation())),
    "sum": viewed(aggregation=SumAggregation()),
    "dropped": viewed(aggregation=DropAggregation()),
    "attributes left out": viewed(attribute_keys={"b"}),
    "one of two readers exponential": made(
        InMemoryMetricReader, lambda: of(ExponentialBucketHistogramAggregation())
    ),
    "two boundaries": made(
        InMemoryMetricReader, lambda: of(ExplicitBucketHistogramAggregation((1, 2)))
    ),
    "exemplars of all": made(InMemoryMetricReader, exemplar_filter=AlwaysOnExemplarFilter()),
    "exemplars of some": made(InMemoryMetricReader, exemplar_filter=Tenth()),
    "a provider of another class": made(InMemoryMetricReader, kind=Wrapped),
}


@pytest.mark.parametrize("make", ADDED_UP.values(), ids=ADDED_UP)
def test_added_up_values_are_collected_as_recorded_ones(make: Make) -> None:
    recorded, nothing = story(*make(), by_tally=False)
    added_up, waited = story(*make(), by_tally=True)
    assert added_up == recorded
    assert (nothing, waited > 0) == (0, True)


@pytest.mark.parametrize("make", RECORDED.values(), ids=RECORDED)
def test_whoever_asks_for_more_than_buckets_gets_each_value(make: Make) -> None:
    recorded, _ = story(*make(), by_tally=False)
    added_up, waited = story(*make(), by_tally=True)
    assert added_up == recorded
    assert waited == 0


def test_a_provider_that_takes_no_measurements_gets_each_value() -> None:
    assert story(NoOpMeterProvider(), [], by_tally=True) == ([[]] * len(ROUNDS), 0)


def test_a_negative_value_is_left_out() -> None:
    provider, (reader,) = made(InMemoryMetricReader)()
    added_up, _ = story(provider, [reader], [(1,), (2, -1), (-1,)], by_tally=True)
    provider, (reader,) = made(InMemoryMetricReader)()
    recorded, _ = story(provider, [reader], [(1,), (2,), ()], by_tally=False)
    assert added_up == recorded


def test_no_more_than_some_values_wait() -> None:
    _, _, tally = one_tally()
    most = 0
    for _ in range(2_000):
        tally.add(1, None, False)
        most = max(most, len(tally.waiting))
    assert 0 < most < 1_000


def one_tally() -> tuple[sdk.MeterProvider, InMemoryMetricReader, Tally]:
    """A tally that already knows where its values go."""
    reader = InMemoryMetricReader()
    provider = sdk.MeterProvider([reader], shutdown_on_exit=False)
    all_tallies = Tallies(provider)
    tally = all_tallies.tally(histogram(provider, all_tallies), ONE)
    tally.add(1, None, False)
    # The tally is the meter's only by its callback, which the provider keeps.
    assert not tally.waiting
    return provider, reader, tally


def of_the_only(reader: Any) -> Any:
    """The only data point that the reader collects."""
    ((*_, (point,)),) = points(reader)
    return point


@pytest.mark.skipif(
    not hasattr(sdk.MeterProvider, "add_metric_reader"), reason="readers are fixed in this SDK"
)
def test_a_reader_that_is_added_later_hears_what_comes_later() -> None:
    def tell(*, by_tally: bool) -> list[Any]:
        early, late = InMemoryMetricReader(), delta()
        provider = sdk.MeterProvider([early], shutdown_on_exit=False)
        all_tallies = Tallies(provider)
        measured = histogram(provider, all_tallies)

        def add(*values: float) -> None:
            for value in values:
                if by_tally:
                    all_tallies.tally(measured, ONE).add(value, None, False)
                else:
                    measured.record(value, ONE)

        add(1, 2, 4)
        provider.add_metric_reader(late)
        add(8, 16)
        said = [points(early), points(late)]
        provider.remove_metric_reader(early)
        add(32)
        return [*said, points(late)]

    assert tell(by_tally=True) == tell(by_tally=False)


def test_a_reader_may_be_added_after_the_first_value() -> None:
    provider = sdk.MeterProvider(shutdown_on_exit=False)
    if not hasattr(provider, "add_metric_reader"):
        pytest.skip("readers are fixed in this SDK")
    all_tallies = Tallies(provider)
    tally = all_tallies.tally(histogram(provider, all_tallies), ONE)
    tally.add(1, None, False)
    reader = InMemoryMetricReader()
    provider.add_metric_reader(reader)
    for _ in range(3):
        tally.add(2, None, False)
    assert len(tally.waiting) == 2
    assert of_the_only(reader).sum == 6


def test_each_bucket_has_an_exemplar_in_each_collection() -> None:
    _, reader, tally = one_tally()
    points(reader)
    said = []
    for _ in range(2):
        for span_id, value in enumerate((2, 2, 0.25, 9, 2, 0.25), 1):
            tally.add(value, (7, span_id), True)
        said.append(
            [(one.value, one.trace_id, one.span_id) for one in of_the_only(reader).exemplars]
        )
    assert said == [[(0.25, 7, 3), (2, 7, 1), (9, 7, 4)]] * 2
    assert of_the_only(reader).count == 13


def test_an_exemplar_may_lead_to_the_callers_span() -> None:
    _, reader, tally = one_tally()
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("a"):
        tally.add(2, None, True)
        here = trace.get_current_span().get_span_context()
    (exemplar,) = of_the_only(reader).exemplars
    assert (exemplar.trace_id, exemplar.span_id) == (here.trace_id, here.span_id)


def test_what_is_not_sampled_has_no_exemplar() -> None:
    _, reader, tally = one_tally()
    tracer = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("a"):
        tally.add(2, None, False)
    assert (of_the_only(reader).count, of_the_only(reader).exemplars) == (2, [])


@contextmanager
def hurried() -> Iterator[None]:
    """Have threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def test_no_value_is_lost_or_counted_twice_between_threads() -> None:
    def work() -> None:
        tally = all_tallies.tally(measured, ONE)
        for number in range(20_000):
            tally.add(number % 8, (1, 1), number % 1_000 == 0)

    cumulative, since = InMemoryMetricReader(), delta()
    provider = sdk.MeterProvider([cumulative, since], shutdown_on_exit=False)
    all_tallies = Tallies(provider)
    measured = histogram(provider, all_tallies)
    between: list[int] = []
    with hurried():
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            points(cumulative)
            between.extend(count(points(since)))
    point = of_the_only(cumulative)
    assert (point.count, sum(point.bucket_counts), point.sum) == (80_000, 80_000, 280_000)
    assert (point.min, point.max) == (0, 7)
    assert sum(between) + sum(count(points(since))) == 80_000


def count(collected: list[Any]) -> list[int]:
    """How many values each data point is of."""
    return [point.count for *_, of_metric in collected for point in of_metric]


def test_the_garbage_collector_may_add_values_while_others_are_handed_over() -> None:
    def on_collection(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            told.append(1)
            tally.add(4, None, False)

    _, reader, tally = one_tally()
    told: list[int] = []
    threshold = gc.get_threshold()
    gc.callbacks.append(on_collection)
    gc.set_threshold(1)
    try:
        for _ in range(2_000):
            tally.add(2, None, False)
        point = of_the_only(reader)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(on_collection)
    assert told
    tally.add(2, None, False)
    point = of_the_only(reader)
    assert (point.count, point.sum) == (2_002 + len(told), 1 + 2 * 2_001 + 4 * len(told))


def test_values_are_kept_while_the_sdk_is_at_work_on_their_aggregation() -> None:
    # A session that the garbage collector closes may interrupt the SDK in this very thread.
    _, reader, tally = one_tally()
    with tally._aggregations[0]._lock:
        for _ in range(1_500):
            tally.add(2, None, False)
    point = of_the_only(reader)
    assert (point.count, point.sum) == (1_501, 3_001)


# What the tallies use of the SDK without its having promised it.
READ = {
    "_attributes", "_attributes_aggregation", "_async_instruments", "_boundaries",
    "_callbacks", "_instrument_class_aggregation", "_instrument_class_temporality",
    "_instrument_view_instrument_matches", "_lock", "_max", "_measurement_consumer", "_min",
    "_reader_storages", "_record_min_max", "_reservoir", "_sdk_config", "_sum", "_value",
}  # fmt: skip
CLASSES = {
    "AlignedHistogramBucketExemplarReservoir", "TraceBasedExemplarFilter", "_Histogram",
    "_ExplicitBucketHistogramAggregation",
}  # fmt: skip


def test_all_that_is_read_of_the_sdk_is_tried_without() -> None:
    source = Path(str(tallies.__file__)).read_text()
    assert set(re.findall(r"(?<!self)\.(_[a-z][a-z_]+)", source)) == READ
    assert all(f'"{name}"' in source for name in CLASSES)


class Rewriting(MetaPathFinder):
    """Imports the SDK's metrics as another release may have written them."""

    def __init__(self, pattern: str, replacement: str) -> None:
        self.pattern = re.compile(pattern, re.DOTALL)
        self.replacement = replacement

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module, rewritten."""
        if not fullname.startswith("opentelemetry.sdk.metrics"):
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = Rewritten(fullname, spec.origin, self)
        return spec


class Rewritten(SourceFileLoader):
    """Loads a module of which something is replaced."""

    def __init__(self, fullname: str, path: str, by: Rewriting) -> None:
        super().__init__(fullname, path)
        self.by = by

    def get_code(self, fullname: str) -> Any:
        """The code of what is written, never of what was compiled before."""
        source = self.by.pattern.sub(self.by.replacement, Path(self.path).read_text())
        return compile(source, self.path, "exec")


@contextmanager
def another_sdk(pattern: str, replacement: str) -> Iterator[Make]:
    """How to make a provider of an SDK of which that is replaced; for the length of the block."""

    def theirs() -> dict[str, ModuleType]:
        return {
            key: module
            for key, module in sys.modules.items()
            if key.startswith("opentelemetry.sdk.metrics")
        }

    def make() -> tuple[MeterProvider, list[Any]]:
        reader = sys.modules["opentelemetry.sdk.metrics.export"].InMemoryMetricReader()
        metrics = sys.modules["opentelemetry.sdk.metrics"]
        return metrics.MeterProvider([reader], shutdown_on_exit=False), [reader]

    finder = Rewriting(pattern, replacement)
    kept = theirs()
    package: Any = sys.modules["opentelemetry.sdk"]
    for key in kept:
        del sys.modules[key]
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("opentelemetry.sdk.metrics")
        yield make
    finally:
        sys.meta_path.remove(finder)
        for key in theirs():
            del sys.modules[key]
        sys.modules.update(kept)
        package.metrics = kept["opentelemetry.sdk.metrics"]  # importing has replaced it there too


def test_the_sdk_as_it_is_gets_sums() -> None:
    with another_sdk("never written", "") as make:
        recorded, _ = story(*make(), by_tally=False)
        added_up, waited = story(*make(), by_tally=True)
    assert repr(added_up) == repr(recorded)
    assert waited > 0


@pytest.mark.parametrize("name", sorted(READ | CLASSES | {"_set_collect_callback"}))
def test_an_sdk_that_lacks_a_name_gets_each_value(name: str) -> None:
    with another_sdk(rf"\b{name}\b", "_renamed") as make:
        recorded, _ = story(*make(), by_tally=False)
        added_up, waited = story(*make(), by_tally=True)
    assert repr(added_up) == repr(recorded)
    assert waited == 0


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("bisect_left", "bisect_right"),
        (r"_sum \+= measurement_value", "_sum += measurement_value / 2"),
        ("in self._async_instruments:", "in ():"),
        (r"(            for async_instrument .*?)(            result = [^\n]*\n)", r"\2\1"),
    ],
    ids=["other buckets", "another sum", "callbacks not called", "callbacks called too late"],
)
def test_an_sdk_that_works_in_another_way_gets_each_value(pattern: str, replacement: str) -> None:
    with another_sdk(pattern, replacement) as make:
        recorded, _ = story(*make(), by_tally=False)
        added_up, waited = story(*make(), by_tally=True)
    assert repr(added_up) == repr(recorded)
    assert waited == 0


class Kept(MetricExporter):
    """Keeps what is exported of the sessions' duration: how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Keep it."""
        self.counts += [
            point.count
            for of_resource in metrics_data.resource_metrics
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
            if metric.name == names.SESSION_DURATION.name
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint)
        ]
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing waits here."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Nothing is held."""


def test_what_waits_goes_out_when_the_provider_is_flushed_or_shut_down(twin: Twin) -> None:
    async def story() -> None:
        for _ in range(3):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.flush()

    kept = Kept()
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
from tests.signals.test_tallies import ONE, Tallies, histogram, of_the_only

proxy = metrics.get_meter_provider()
tallies = Tallies(proxy)
tally = tallies.tally(histogram(proxy, tallies), ONE)
tally.add(1, None, False)
tally.add(1, None, False)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
for value in (2, 4, 8):
    tally.add(value, None, False)
print(len(tally.waiting), of_the_only(reader).sum)
"""

FORK = """
import os
from tests.signals.test_tallies import of_the_only, one_tally, tallies

provider, reader, tally = one_tally()
with tallies._HANDING_OVER.value:  # as another thread would that hands over just now
    child = os.fork()
    if not child:
        for _ in range(1_000):
            tally.add(2, None, False)
        print(len(tally.waiting) < 600, of_the_only(reader).sum, flush=True)
        os._exit(0)
os.waitpid(child, 0)
print(len(tally.waiting), of_the_only(reader).sum)
"""


def said_by(program: str) -> str:
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


def test_a_provider_that_is_set_later_gets_sums_from_then_on() -> None:
    assert said_by(LATER) == "2 14\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_while_values_are_handed_over_holds_nobody_up() -> None:
    assert said_by(FORK) == "True 2001\n0 1\n"

"""Adds up the values of histograms, and hands them over when OpenTelemetry's SDK collects.

`Histogram.record` costs 7 µs a value, keeping the value until the next collection a twentieth of
that. The API has no way to hand over what was added up, so it goes into the SDK's aggregations
themselves, which are private: they are reached from the instruments that the API gave us (the SDK
is not imported), and every name of its that is used stands in this module. A value goes by
`record` after all unless

- everybody who reads the instrument keeps it in the same explicit buckets, with exemplars of
  sampled spans or none (`_aggregations`), and
- a trial with a private provider of the same class shows that both ways lead to the same data
  points (`_come_to_the_same`).

The first value of an attribute set goes by `record` too, so that the SDK makes its aggregations;
and so does, where a sampled span is current, the first value in each bucket since the last
collection: it brings the bucket's exemplar.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import replace
from operator import add
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.metrics import get_meter_provider

from session_tracer.runtime import process, threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation

    Attributes = Mapping[str, str | int]

__all__ = ["Tallies", "Tally", "reference_to"]

# How many values wait for a collection before they are handed over without one.
_MOST_WAITING: Final = 512

# Held while values are handed over, so that a collection waits for what is under way. Not
# reentrant: whoever comes in between, from a signal handler or the garbage collector, goes on.
_HANDING_OVER: Final = process.PerProcess(threads.Lock)

# How long a collection waits, in seconds; it may have interrupted the one that it waits for.
_PATIENCE: Final = 1.0


class Tallies:
    """All the tallies of one meter provider.

    `hand_over` has to be a callback of an observable instrument: the SDK asks those first.
    """

    def __init__(self, provider: MeterProvider, *, on_trial: bool = False) -> None:
        self._provider = reference_to(provider)
        self._on_trial = on_trial
        self._tallies: dict[tuple[Histogram, tuple[tuple[str, str | int], ...]], Tally] = {}

    def tally(self, histogram: Histogram, attributes: Attributes) -> Tally:
        """The one tally of that histogram with those attributes."""
        key = (histogram, tuple(attributes.items()))
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies.setdefault(key, Tally(self, histogram, attributes))
        return tally

    def hand_over(self, _: CallbackOptions) -> tuple[Observation, ...]:
        """Give the SDK what was added up; there is nothing to observe beside it."""
        lock = _HANDING_OVER.value
        if lock.acquire(timeout=_PATIENCE):
            try:
                for tally in list(self._tallies.values()):
                    tally.collected()
            finally:
                lock.release()
        return ()

    def trusts(self, consumer: Any) -> bool:
        """Whether what is handed over for this consumer of measurements arrives."""
        if self._on_trial:
            return True
        # What the application called its provider may be a proxy of the one it set later.
        provider: Any = next(
            provider
            for provider in (self._provider(), get_meter_provider())
            if getattr(provider, "_measurement_consumer", None) is consumer
        )
        return (
            _is_of_the_sdk(provider, "MeterProvider")
            and any(self.hand_over in one._callbacks for one in consumer._async_instruments)
            and _come_to_the_same(provider)
        )


def reference_to(provider: MeterProvider) -> Callable[[], MeterProvider | None]:
    """A weak reference; one that keeps it alive, where its class allows no other."""
    try:
        return weakref.ref(provider)
    except TypeError:
        return lambda: provider


class _Nobody:
    """The consumer of a tally that knows none, or must not reach into it."""

    _reader_storages: object = None


class Tally:
    """The values of one histogram with one set of attributes; some are `waiting`."""

    __slots__ = (
        "_aggregations",
        "_attributes",
        "_boundaries",
        "_consumer",
        "_exemplars",
        "_histogram",
        "_refused",
        "_storages",
        "_tallies",
        "_wait",
        "waiting",
    )

    def __init__(self, tallies: Tallies, histogram: Histogram, attributes: Attributes) -> None:
        self._tallies = tallies
        self._histogram = histogram
        self._attributes = dict(attributes)
        # To append to a deque and to take from it is atomic: threads need not wait for each other,
        # and no value is lost or counted twice.
        self.waiting: deque[float] = deque()
        self._wait = self.waiting.append
        self._refused = False
        self._consumer: Any = _Nobody
        self._storages: object = ()
        self._aggregations: list[Any] = []
        self._boundaries: tuple[float, ...] = ()
        # The buckets that have their exemplar.
        self._exemplars: set[int] = set()

    def add(self, value: float, span: tuple[int, int] | None, sampled: bool) -> None:
        """Add a value; `sampled` says whether `span`, or else the current one, is."""
        if self._consumer._reader_storages is not self._storages:
            if self.waiting:
                self._relieve()  # a reader was added, which came too late for what waits
            self._record(value, span)
            if not self._refused:
                self._bind()
            return
        if sampled:
            bucket = bisect_left(self._boundaries, value)
            if bucket not in self._exemplars:
                self._exemplars.add(bucket)
                self._record(value, span)
                return
        self._wait(value)
        if len(self.waiting) >= _MOST_WAITING:
            self._relieve()

    def collected(self) -> None:
        """Hand over all that waits, and let each bucket have a new exemplar."""
        self._exemplars.clear()
        if self.waiting:
            self._hand_over(_PATIENCE)

    def _relieve(self) -> None:
        lock = _HANDING_OVER.value
        if lock.acquire(blocking=False):
            try:
                self._hand_over(0)
            finally:
                lock.release()

    def _hand_over(self, patience: float) -> None:
        values: list[float] = []
        with suppress(IndexError):
            while True:
                values.append(self.waiting.popleft())
        if not _hand_over(self._aggregations, self._boundaries, values, patience):
            self.waiting.extendleft(reversed(values))

    def _record(self, value: float, span: tuple[int, int] | None) -> None:
        self._histogram.record(value, self._attributes, context=_exemplar(span))

    def _bind(self) -> None:
        try:
            # Until a provider is set there is a proxy's proxy.
            histogram: Any = getattr(self._histogram, "_real_instrument", self._histogram)
            if histogram is None:
                return
            consumer = histogram._measurement_consumer
            # The SDK puts a new mapping there for each reader that is added later.
            storages = consumer._reader_storages
            if not storages:
                return
            aggregations = _aggregations(histogram, consumer, storages, self._attributes)
            self._refused = not self._tallies.trusts(consumer)
        except Exception:
            self._refused = True
        if self._refused:
            self._consumer = _Nobody
            return
        self._aggregations, self._boundaries = aggregations, aggregations[0]._boundaries
        self._consumer, self._storages = consumer, storages


def _aggregations(
    histogram: Any, consumer: Any, storages: Mapping[Any, Any], attributes: Attributes
) -> list[Any]:
    """Where the SDK adds up these values, for all its readers and views.

    Raises an exception where one of them asks for more than the same explicit buckets.
    """
    exemplars = consumer._sdk_config.exemplar_filter
    found = [
        _aggregation(match, attributes)
        for storage in storages.values()
        for match in storage._instrument_view_instrument_matches[histogram]
    ]
    if not (
        _is_of_the_sdk(histogram, "_Histogram")
        and _is_of_the_sdk(exemplars, "TraceBasedExemplarFilter", "AlwaysOffExemplarFilter")
        and all(_is_of_the_sdk(one, "_ExplicitBucketHistogramAggregation") for one in found)
        and all(
            _is_of_the_sdk(one._reservoir, "AlignedHistogramBucketExemplarReservoir")
            for one in found
        )
        and len({one._boundaries for one in found}) == 1
    ):
        raise _NotPlain
    return found


def _aggregation(match: Any, attributes: Attributes) -> Any:
    # One that was made just now is the last.
    aggregations = reversed(list(match._attributes_aggregation.values()))
    return next(one for one in aggregations if one._attributes == attributes)


class _NotPlain(Exception):
    """Somebody wants to know more of an instrument than its buckets."""


def _is_of_the_sdk(thing: object, *names: str) -> bool:
    kind = type(thing)
    return kind.__module__.startswith("opentelemetry.sdk.") and kind.__name__ in names


def _hand_over(
    aggregations: list[Any], boundaries: tuple[float, ...], values: list[float], patience: float
) -> bool:
    """Add the values to all aggregations; whether that was possible within `patience` seconds.

    It is not where the garbage collector closes a session amid the SDK's own work on one of them.
    """
    if min(values, default=0) < 0:  # a clock went backwards; `record` leaves those out as well
        values = [value for value in values if value >= 0]
    if not values:
        return True
    counts = [0] * (len(boundaries) + 1)
    for value in values:
        counts[bisect_left(boundaries, value)] += 1
    least, most = min(values), max(values)
    with ExitStack() as held:
        for aggregation in aggregations:
            if not aggregation._lock.acquire(timeout=patience):
                return False
            held.callback(aggregation._lock.release)
        for aggregation in aggregations:
            before = aggregation._value
            aggregation._value = counts[:] if before is None else list(map(add, before, counts))
            aggregation._sum = sum(values, aggregation._sum)
            if aggregation._record_min_max:
                aggregation._min = min(aggregation._min, least)
                aggregation._max = max(aggregation._max, most)
    return True


# What the trial said of each class of meter provider.
_TRIALS: Final[dict[type, bool]] = {}


def _come_to_the_same(provider: Any) -> bool:
    """Whether a provider of that class collects the same of values that were handed over."""
    kind = type(provider)
    if kind not in _TRIALS:
        try:
            _TRIALS[kind] = _trial(provider)
        except Exception:
            _TRIALS[kind] = False
    return _TRIALS[kind]


class _Reader:
    """A reader of one temporality, and as like to another one as a provider wants it."""

    def __init__(self, like: Any, temporality: Any) -> None:
        self._instrument_class_temporality = dict.fromkeys(
            like._instrument_class_temporality, temporality
        )
        self._instrument_class_aggregation = like._instrument_class_aggregation

    def _set_collect_callback(self, collect: Any) -> None:
        self._collect = collect

    def _set_meter_provider(self, _: object) -> None:
        """It measures nothing of its own."""

    def points(self) -> dict[str, list[Any]]:
        """What has been collected for this reader, by the instrument's name, but for its start."""
        data = self._collect(self)
        return {
            metric.name: [
                metric.data.aggregation_temporality,
                *(replace(point, start_time_unix_nano=0) for point in metric.data.data_points),
            ]
            for of_resource in (data.resource_metrics if data is not None else ())
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
        }


# Sums of them are exact, in any order; they fall on boundaries, between, below and above.
_ROUNDS: Final = ((0.5, 1, 0.25, 8, 8.5), (), (2, 0), (0.75, 0.75), (), (64,))
_BOUNDARIES: Final = (0.5, 1, 8)


def _trial(provider: Any) -> bool:
    """Whether the same values, once recorded and once handed over, are the same to all readers."""
    consumer = provider._measurement_consumer
    like = next(iter(consumer._reader_storages))
    temporality = type(next(iter(like._instrument_class_temporality.values())))
    readers = [_Reader(like, temporality.DELTA), _Reader(like, temporality.CUMULATIVE)]
    twin = type(provider)(readers, resource=consumer._sdk_config.resource, shutdown_on_exit=False)
    tallies = Tallies(twin, on_trial=True)
    meter = twin.get_meter(__name__)
    meter.create_observable_counter("observed", [tallies.hand_over])
    recorded, added_up = (
        meter.create_histogram(name, explicit_bucket_boundaries_advisory=_BOUNDARIES)
        for name in ("recorded", "added_up")
    )
    kept = 0
    for attributes in ({"a": "1"}, {"a": "1", "b": "2"}):
        tally = tallies.tally(added_up, attributes)
        for values in _ROUNDS:
            for value in values:
                recorded.record(value, attributes)
                tally.add(value, None, False)
            kept += len(tally.waiting)
            for reader in readers:
                points = reader.points()
                if points.get("recorded") != points.get("added_up"):
                    return False
    return kept > 0


def _exemplar(span: tuple[int, int] | None) -> Context | None:
    """A context by which an exemplar finds the session's span; None for the caller's own."""
    if span is None:
        return None
    trace_id, span_id = span
    return trace.set_span_in_context(
        trace.NonRecordingSpan(
            trace.SpanContext(trace_id, span_id, is_remote=False, trace_flags=trace.TraceFlags(1))
        )
    )

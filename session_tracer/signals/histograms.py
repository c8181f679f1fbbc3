"""Keeps the values of histograms until they are collected, so that adding one costs little.

`Histogram.record` of OpenTelemetry's SDK takes 7 µs for each value. Here the application's own path
appends one row for each transaction, flush or session that ended. The rest happens when a reader
collects:

- `Histograms` counts the values in buckets. The exporters of session_tracer collect them from
  there, in place of the SDK's histograms.
- `RecordedHistograms` passes each value on to `Histogram.record`. It is for every other meter
  provider: that of the application may have views, readers and filters of its own.

Only public names of OpenTelemetry's API are used. The garbage collector may close a session, and
thereby add a row, between any two instructions, also in a thread that is counting or recording.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict, deque
from itertools import repeat
from operator import itemgetter
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar, cast

from opentelemetry import trace
from opentelemetry.context import Context

from session_tracer.runtime import process, threads
from session_tracer.runtime.degraded import warn_once
from session_tracer.signals import names
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

    from session_tracer.signals.names import Metric

__all__ = ["Exemplar", "Histograms", "Point", "RecordedHistograms", "Row", "Series", "Waiting"]

T = TypeVar("T")
Attributes: TypeAlias = "Mapping[str, str | int]"
# The trace id and the span id come first.
Span: TypeAlias = "tuple[Any, ...]"
# What takes the row; the sampled span in which it was measured, if there was one; when it was
# measured, if there was one; and its values.
Row: TypeAlias = "tuple[Any, ...]"
_SPAN: Final = itemgetter(1)

# The number of rows that `Histograms` lets wait before it counts them.
_FOLD_AT: Final = 128
# The number of rows that wait in all. At more, `RecordedHistograms` records some of them in the
# thread that adds one, and `Histograms` lets that thread wait for the one that is counting.
_MOST_WAITING: Final = 8192
# The number of rows that the thread which adds one then records: less than half a millisecond.
_RECORDED_AT_ONCE: Final = 16
# The seconds that a collection waits for another thread, and those that the application does.
_COLLECTION_PATIENCE: Final = 1.0
_APPLICATION_PATIENCE: Final = 0.1

# Where the SDK holds locks which are not reentrant.
_SDK_METRICS: Final = "opentelemetry.sdk.metrics"


class Exemplar(NamedTuple):
    """A value, and the sampled span in which it was measured."""

    value: float
    time_unix_ns: int
    trace_id: int
    span_id: int


class Point(NamedTuple):
    """What one series has counted, from `start_unix_ns` to `time_unix_ns`.

    `counts` has one more item than the metric has boundaries. `exemplars` are those since the last
    collection, at most one for each bucket and in the order of the buckets.
    """

    attributes: Attributes
    start_unix_ns: int
    time_unix_ns: int
    counts: tuple[int, ...]
    sum: float
    min: float
    max: float
    exemplars: tuple[Exemplar, ...]


class Taker(Protocol):
    """Takes all waiting rows of one kind at once; never raises."""

    def take(self, rows: Sequence[Row]) -> None: ...


class Series(Taker, Protocol):
    """One histogram with one set of attributes. A row that it takes has one value."""

    def add(self, values: Sequence[float], rows: Sequence[Row]) -> None:
        """Add values; negative ones are ignored, as by `Histogram.record`.

        Args:
            values: In the metric's unit.
            rows: For each of the values the row from which it is.
        """


if TYPE_CHECKING:
    Rows = deque[Row]
else:
    Rows = deque


class Waiting(Rows):
    """The rows that wait. The code that appends one calls `relieve()` if `limit` is reached.

    To append to a deque and to take from it is atomic: threads need not wait for each other, and no
    row is lost or counted twice.
    """

    __slots__ = ("limit", "relieve")

    def __init__(self, limit: int, relieve: Callable[[], None]) -> None:
        super().__init__()
        self.limit = limit
        self.relieve = relieve

    def take(self, most: int) -> None:
        """Have rows taken, those of each kind together.

        No more than wait now: other threads may append rows as fast as these are taken.
        """
        groups: defaultdict[Taker, list[Row]] = defaultdict(list)
        try:
            for _ in range(min(most, len(self))):
                row = self.popleft()
                groups[row[0]].append(row)
        except IndexError:  # another thread has taken the rest
            pass
        try:
            while groups:
                taker = next(iter(groups))
                taker.take(groups.pop(taker))
        finally:
            for rows in groups.values():  # after an interrupt
                self.extend(rows)


def _last(rows: Sequence[Row]) -> list[float]:
    return [cast("float", row[-1]) for row in rows]


class _Buckets:
    """The values of one series, counted in the buckets of its metric."""

    __slots__ = (
        "_boundaries",
        "_counts",
        "_exemplars",
        "_max",
        "_min",
        "_start",
        "_sum",
        "_with_exemplars",
        "attributes",
        "metric",
    )

    def __init__(self, metric: Metric, attributes: Attributes, with_exemplars: bool) -> None:
        self.metric = metric
        self.attributes = dict(attributes)
        self._boundaries = metric.boundaries
        self._with_exemplars = with_exemplars
        self._exemplars: dict[int, Exemplar] = {}
        self.clear(time_ns())

    def clear(self, now: int) -> None:
        """Begin again at zero."""
        self._start = now
        self._counts = [0] * (len(self._boundaries) + 1)
        self._sum: float = 0
        self._min = math.inf
        self._max = -math.inf
        self._exemplars.clear()

    def take(self, rows: Sequence[Row]) -> None:
        self.add(_last(rows), rows)

    def add(self, values: Sequence[float], rows: Sequence[Row]) -> None:
        if not values:
            return
        least = min(values)
        if least < 0:  # a clock was set back
            kept = [(value, row) for value, row in zip(values, rows, strict=True) if value >= 0]
            self.add([value for value, _ in kept], [row for _, row in kept])
            return
        counts = self._counts
        # The upper boundary of a bucket belongs to it, the lower one does not.
        for bucket in map(bisect_left, repeat(self._boundaries), values):
            counts[bucket] += 1
        self._sum += sum(values)
        self._min = min(self._min, least)
        self._max = max(self._max, *values)
        if self._with_exemplars and any(map(_SPAN, rows)):
            for value, (_, span, at, *_) in zip(values, rows, strict=True):
                if span is not None:
                    bucket = bisect_left(self._boundaries, value)
                    self._exemplars[bucket] = Exemplar(value, at, span[0], span[1])

    def collect(self, now: int, *, delta: bool) -> Point | None:
        """What was counted; None where there is nothing."""
        counts = tuple(self._counts)
        exemplars = tuple(exemplar for _, exemplar in sorted(self._exemplars.items()))
        self._exemplars.clear()
        point = (
            Point(
                self.attributes,
                self._start,
                now,
                counts,
                self._sum,
                self._min,
                self._max,
                exemplars,
            )
            if any(counts)
            else None
        )
        if delta:
            self.clear(now)
        return point


class Histograms:
    """The histograms that one reader of session_tracer's own collects.

    Args:
        exemplars: Whether values that were measured in sampled spans are kept as exemplars.
    """

    def __init__(self, *, exemplars: bool = True) -> None:
        self._exemplars = exemplars
        self.waiting = Waiting(_FOLD_AT, self._relieve)
        self._buckets: dict[tuple[object, ...], _Buckets] = {}
        # The thread that holds the lock, which the garbage collector may have add a value.
        self._holder = 0
        self._lock = process.PerProcess(self._start_process)

    def series(self, metric: Metric, attributes: Attributes) -> Series:
        """The series of that metric with these attributes."""
        key = (metric.name, *attributes.items())
        buckets = self._buckets.get(key)
        if buckets is None:
            buckets = self._buckets.setdefault(key, _Buckets(metric, attributes, self._exemplars))
        return buckets

    def take_waiting(self, _: CallbackOptions) -> tuple[Observation, ...]:
        """Count what waits, as a collection begins; there is nothing to observe."""
        self._exclusively(self._fold, _COLLECTION_PATIENCE)
        return ()

    def collect(self, *, delta: bool) -> dict[Metric, list[Point]]:
        """The points of each metric that has values.

        Args:
            delta: Whether to count from the last collection on, or else from the beginning.
        """

        def work() -> dict[Metric, list[Point]]:
            self._fold()
            now = time_ns()
            found: dict[Metric, list[Point]] = {}
            for buckets in list(self._buckets.values()):
                point = buckets.collect(now, delta=delta)
                if point is not None:
                    found.setdefault(buckets.metric, []).append(point)
            return found

        # Where another thread takes too long, the next collection has what this one has not.
        return self._exclusively(work, _COLLECTION_PATIENCE) or {}

    def _relieve(self) -> None:
        is_full = len(self.waiting) >= _MOST_WAITING
        self._exclusively(self._fold, _APPLICATION_PATIENCE if is_full else 0)

    def _fold(self) -> None:
        self.waiting.take(len(self.waiting))

    def _exclusively(self, work: Callable[[], T], patience: float) -> T | None:
        """Do the work under the lock.

        No thread waits longer than `patience` seconds. A thread that adds values may hold a lock of
        the application, and the thread that is counting may wait for that lock: the garbage
        collector may have it close a session.

        Returns:
            What `work` returns; None if the lock was not free, and nothing was done.
        """
        lock = self._lock.value
        this_thread = threads.current_ident()
        if self._holder == this_thread:
            return None
        is_held = False
        try:
            is_held = lock.acquire(timeout=patience)
            if not is_held:
                return None
            self._holder = this_thread
            return work()
        finally:
            if is_held:
                self._holder = 0
                lock.release()

    def _start_process(self) -> threading.Lock:
        """Count from zero: what was added before a fork, the parent process reports."""
        self.waiting.clear()
        now = time_ns()
        for buckets in list(self._buckets.values()):
            buckets.clear(now)
        self._holder = 0
        return threads.Lock()


class RecordedHistograms:
    """The histograms of a meter provider that is not session_tracer's own.

    `take_waiting` has to be a callback of an observable instrument of that provider: it is called
    as a collection begins. Each value is recorded without the lock of anything else in this module.
    """

    def __init__(self, meter: Meter) -> None:
        self.waiting = Waiting(_MOST_WAITING, self._relieve)
        self._instruments = {
            metric.name: meter.create_histogram(
                metric.name,
                metric.unit,
                metric.description,
                explicit_bucket_boundaries_advisory=metric.boundaries,
            )
            for metric in names.METRICS
            if metric.instrument == "histogram"
        }
        # The threads that are recording, in which the garbage collector may add a value.
        self._recording = process.PerProcess(self._start_process)

    def series(self, metric: Metric, attributes: Attributes) -> Series:
        """A series of that metric with these attributes."""
        return _Instrument(self._instruments[metric.name], attributes)

    def take_waiting(self, _: CallbackOptions) -> tuple[Observation, ...]:
        """Record what waits; there is nothing to observe."""
        self._record(len(self.waiting))
        return ()

    def _relieve(self) -> None:
        # The garbage collector may have closed a session while the SDK holds a lock in this thread.
        if not _is_in_sdk():
            self._record(_RECORDED_AT_ONCE)

    def _record(self, most: int) -> None:
        recording = self._recording.value
        this_thread = threads.current_ident()
        if this_thread in recording:
            return
        recording.add(this_thread)
        try:
            self.waiting.take(most)
        finally:
            recording.discard(this_thread)

    def _start_process(self) -> set[int]:
        """Begin without values: what was added before a fork, the parent process reports."""
        self.waiting.clear()
        return set()


class _Instrument:
    """A histogram of OpenTelemetry's with one set of attributes."""

    __slots__ = ("_attributes", "_histogram")

    def __init__(self, histogram: Histogram, attributes: Attributes) -> None:
        self._histogram = histogram
        self._attributes = dict(attributes)

    def take(self, rows: Sequence[Row]) -> None:
        self.add(_last(rows), rows)

    def add(self, values: Sequence[float], rows: Sequence[Row]) -> None:
        for value, row in zip(values, rows, strict=True):
            if value >= 0:  # else a clock was set back; the SDK would log a warning
                self._record(value, row[1])

    def _record(self, value: float, span: Span | None) -> None:
        # The span that is current in the collecting thread is not the one of this value.
        context = _NO_SPAN if span is None else _context(span)
        try:
            self._histogram.record(value, self._attributes, context=context)
        except Exception as error:  # the other values are recorded all the same
            warn_once(
                "session_tracer cannot record the values of histograms: "
                f"{type(self._histogram).__qualname__}.record() raised {error!r}. Check the "
                "MeterProvider that the application has configured."
            )


# The SDK takes an empty context for none.
_NO_SPAN: Final = trace.set_span_in_context(trace.INVALID_SPAN, Context())


def _context(span: Span) -> Context:
    """A context in which the SDK finds this span, for the exemplar."""
    sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    context = trace.SpanContext(span[0], span[1], is_remote=False, trace_flags=sampled)
    return trace.set_span_in_context(trace.NonRecordingSpan(context), Context())


def _is_in_sdk() -> bool:
    """Whether this thread is executing the metrics code of OpenTelemetry's SDK."""
    frame = running_frame(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_SDK_METRICS):
            return True
        frame = frame.f_back
    return False

"""Keeps what the OpenTelemetry SDK is told, and says it so that whole values can be compared."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Sum
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from session_tracer import instrument
from session_tracer.exporter import Exporter
from session_tracer.exporters.recorded_spans import recorder
from session_tracer.signals import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.sdk.metrics.export import Metric
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Span, SpanContext

    from session_tracer.signals.histograms import Histograms, RecordedHistograms, Series
    from session_tracer.signals.span_recorder import SpanRecorder
    from tests.twins import Twin

    Attributes = dict[str, Any]
    # The values of a data point's attributes: the session's name, then the rest by their keys.
    Labels = tuple[str, ...]


def put(
    histograms: Histograms | RecordedHistograms,
    series: Series,
    value: float,
    span: tuple[int, int] | None = None,
) -> None:
    """Add a value that was measured in that span, if in any, as the metrics of a session do."""
    waiting = histograms.waiting
    waiting.append((series, span, time_ns() if span else 0, value))
    if len(waiting) >= waiting.limit:
        waiting.relieve()


def left_by(error: type[BaseException]) -> AbstractContextManager[object, bool]:
    """The block, of however many lines, is left by that exception."""
    return pytest.raises(error)


class Traces:
    """A tracer provider as an application has one, and the spans that ended in it.

    Where it `records`, it is as session_tracer's own exporters have one.
    """

    records = False

    def __init__(self, **options: Any) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self._ended = InMemorySpanExporter()
        processor = SimpleSpanProcessor(self._ended)
        self.provider.add_span_processor(processor)
        self.recorder: SpanRecorder | None = None
        if self.records and "span_limits" not in options:
            self.recorder = recorder(self.provider, [processor])
        self._story: tuple[ReadableSpan, ...] | None = None

    @contextmanager
    def caller(self, name: str = "caller") -> Iterator[Span]:
        """A span of the application's own, current for the length of the block."""
        with self.provider.get_tracer("application").start_as_current_span(name) as span:
            yield span

    @contextmanager
    def of(self, twin: Twin, **overrides: Any) -> Iterator[None]:
        """Trace the twin's sessions with this provider for the length of the block.

        What ends before it and after it is not of the story.
        """
        self._ended.clear()
        exporter = Exporter(tracer_provider=self.provider, span_recorder=self.recorder)
        with instrument(twin.factory, exporter=exporter, **overrides):
            yield
        self._story = self._ended.get_finished_spans()

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans of the story that have ended, in the order in which they began."""
        ended = self._ended.get_finished_spans() if self._story is None else self._story
        return sorted(ended, key=began)

    def named(self, name: str) -> ReadableSpan:
        """The only span of that name."""
        (span,) = (span for span in self.spans if span.name == name)
        return span

    def tree(self) -> list[str]:
        """The names of the spans, each below its parent and in the order of their beginning."""
        return tree(self.spans)


def context(span: ReadableSpan) -> SpanContext:
    """The span's own context."""
    found = span.get_span_context()
    assert found is not None
    return found


class Measurements:
    """A meter provider as an application has one, and what it collects."""

    def __init__(self, **options: Any) -> None:
        self.reader = InMemoryMetricReader(**options)
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def collect(self) -> dict[str, Metric]:
        """The metrics of ours that have measurements, by name."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: metric
            for of_resource in (data.resource_metrics if data is not None else ())
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
            if of_scope.scope.name == names.SCOPE
        }

    def points(self, name: str) -> dict[Labels, Any]:
        """What was measured by that name: its data points by their attributes."""
        collected = self.collect()
        return points(collected[name]) if name in collected else {}

    def totals(self, name: str) -> dict[Labels, Any]:
        """The values of a sum or a gauge, or the counts of a histogram, by their attributes."""
        return {labels: total(point) for labels, point in self.points(name).items()}


def points(metric: Metric) -> dict[Labels, Any]:
    """The data points of a metric by their attributes, in short; no counter that is still 0."""
    counts = isinstance(metric.data, Sum) and metric.data.is_monotonic
    return {
        _labels(point): point for point in metric.data.data_points if not counts or total(point)
    }


def total(point: Any) -> Any:
    """The value of a sum or a gauge, the count of a histogram."""
    return point.count if isinstance(point, HistogramDataPoint) else point.value


def _labels(point: Any) -> Labels:
    return tuple(str(value) for _, value in sorted(point.attributes.items(), key=_name_first))


def _name_first(attribute: tuple[str, Any]) -> tuple[bool, str]:
    # The session's name comes first, the rest by the alphabet.
    return attribute[0] != names.SESSION_NAME, attribute[0]


def began(span: ReadableSpan) -> int:
    """When the span began."""
    assert span.start_time is not None
    return span.start_time


def ended(span: ReadableSpan) -> int:
    """When the span ended."""
    assert span.end_time is not None
    return span.end_time


def tree(spans: Iterable[ReadableSpan]) -> list[str]:
    """The names of the spans, each below its parent and in the order of their beginning."""
    ordered = sorted(spans, key=began)
    known = {context(span).span_id for span in ordered}
    lines: list[str] = []

    def add(parent: int | None, depth: int) -> None:
        for span in ordered:
            above = None if span.parent is None else span.parent.span_id
            if (above if above in known else None) == parent:
                lines.append("  " * depth + span.name)
                add(context(span).span_id, depth + 1)

    add(None, 0)
    assert len(lines) == len(ordered)
    return lines


def told(span: ReadableSpan) -> dict[str, Any]:
    """All that a span says, with ids, times and line numbers masked."""
    said: dict[str, Any] = {
        "kind": span.kind.name,
        "status": (span.status.status_code.name, span.status.description),
        "attributes": masked(span.attributes),
        "events": [(event.name, masked(event.attributes)) for event in span.events],
    }
    return said


def masked(attributes: Mapping[str, Any] | None) -> Attributes:
    """The attributes, where what differs from run to run is right but not said."""
    return {key: _mask(key, value) for key, value in (attributes or {}).items()}


def _mask(key: str, value: Any) -> Any:
    is_right, mask = _MASKS.get(key, (None, ""))
    if key == names.CODE_FILE_PATH:
        return Path(value).name
    return mask if is_right is not None and is_right(value) else value


def _is_id(value: Any) -> bool:
    return re.fullmatch("[0-9a-f]{16}", value) is not None


def _is_line(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _is_duration(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < 60


_MASKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    names.SESSION_ID: (_is_id, "<id>"),
    names.CODE_LINE_NUMBER: (_is_line, "<line>"),
    names.STATEMENT_DURATION: (_is_duration, "<seconds>"),
    names.CONNECTION_HELD: (_is_duration, "<seconds>"),
}


def of_database(twin: Twin) -> Attributes:
    """The attributes by which a span says where its connection leads."""
    if twin.database == "sqlite":
        return {"db.system.name": "sqlite", "db.namespace": twin.url.database}
    return {
        "db.system.name": "postgresql",
        "db.namespace": twin.url.database,
        "server.address": twin.url.host,
        "server.port": twin.url.port,
    }

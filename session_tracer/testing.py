"""Collects what the tracer reports in memory, for tests."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from session_tracer.detectors import DEFAULT_DETECTORS
from session_tracer.exporter import Exporter
from session_tracer.hooks.targets import resolve
from session_tracer.instrumentor import capture as _instrument
from session_tracer.ledger import watchdog
from session_tracer.settings import Settings
from session_tracer.where.application import own_packages

try:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, Sum
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from session_tracer.exporters import sdk_histograms
    from session_tracer.exporters.recorded_spans import recorder
except ImportError as error:
    raise ImportError(
        'session_tracer.testing needs the OpenTelemetry SDK: pip install "session-tracer[testing]"'
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Unpack

    from opentelemetry.sdk.metrics.export import Metric
    from opentelemetry.sdk.trace import ReadableSpan

    from session_tracer.detectors import Detector
    from session_tracer.exporter import LogEvent
    from session_tracer.facts import Fact
    from session_tracer.instrumentor import Instrumentable
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.model.summary import SessionSummary
    from session_tracer.settings import Overrides

__all__ = ["Captured", "capture"]


class Captured:
    """What was reported since the capture began. It can be read during the capture and afterwards.

    Attributes:
        findings: The findings, in the order in which they were reported.
        retractions: The retractions, in that order.
        logs: The log events as dictionaries, in that order.
        facts: Every fact, in the order in which it was published.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.retractions: list[Retraction] = []
        self.logs: list[LogEvent] = []
        self.facts: list[Fact] = []
        self._sessions: list[SessionSummary] = []
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        resource = Resource.create()  # once for both: it starts threads to detect what runs here
        self._meters = MeterProvider([self._reader], resource, shutdown_on_exit=False)
        self._histograms = sdk_histograms.new_histograms()
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        processor = SimpleSpanProcessor(self._spans)
        self._tracers.add_span_processor(processor)
        self._recorder = recorder(self._tracers, [processor])
        self._metrics: dict[str, list[Any]] = {}

    @property
    def sessions(self) -> list[SessionSummary]:
        """The summary of each scope that has ended, in the order in which they were opened."""
        watchdog.settle()
        return sorted(self._sessions, key=lambda summary: summary.opened_unix_ns)

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in the order in which they ended."""
        watchdog.settle()
        return list(self._spans.get_finished_spans())

    @property
    def metrics(self) -> dict[str, list[Any]]:
        """The data points of each metric by its name, as the SDK's reader returns them.

        Counters start at 0, and are left out until they have counted something.
        """
        watchdog.settle()
        metrics: list[Metric] = []
        data = self._reader.get_metrics_data()
        for of_resource in () if data is None else data.resource_metrics:
            for of_scope in of_resource.scope_metrics:
                metrics += of_scope.metrics
        if self._histograms is not None:
            cumulative = AggregationTemporality.CUMULATIVE
            metrics += sdk_histograms.collect(self._histograms, cumulative)
        self._metrics |= {metric.name: points for metric in metrics if (points := _points(metric))}
        return self._metrics

    def _exporter(self) -> Exporter:
        return Exporter(
            tracer_provider=self._tracers,
            span_recorder=self._recorder,
            meter_provider=self._meters,
            histograms=self._histograms,
            on_log=self.logs.append,
            on_session=self._sessions.append,
            on_finding=self.findings.append,
            on_retraction=self.retractions.append,
            on_fact=self.facts.append,
            close=self._close,
        )

    def _close(self) -> None:
        self.metrics  # noqa: B018 - the reader returns nothing after its shutdown
        self._meters.shutdown()
        self._tracers.shutdown()


def _points(metric: Metric) -> list[Any]:
    """The data points of a metric without a counter's that are zero."""
    points: list[Any] = list(metric.data.data_points)
    if isinstance(metric.data, Sum) and metric.data.is_monotonic:
        return [point for point in points if point.value]
    return points


@contextmanager
def capture(
    target: Instrumentable | None = None,
    *,
    name: str = "default",
    detectors: Iterable[Detector] = DEFAULT_DETECTORS,
    **overrides: Unpack[Overrides],
) -> Iterator[Captured]:
    """Trace `target` in a block of code, and collect what is reported in memory.

    No OpenTelemetry configuration is needed. An existing one is neither used nor changed, and none
    is left behind. Captures can be nested: each collects for its own block.

    Args:
        target: As for `instrument()`; None for every session of the process.
        name: The factory's name in what is collected.
        detectors: The detectors to use.
        **overrides: Fields of `Settings`. `log_level` is `debug` unless it is given.

    Yields:
        What is collected.

    Raises:
        TypeError: the target is not supported.
        ValueError: a setting is invalid.
    """
    settings = Settings.from_env().override({"log_level": "debug", **overrides})
    meant = resolve(target)  # before anything has to be shut down
    is_own = own_packages(target)
    captured = Captured()
    try:
        instrumentation = _instrument(
            meant, name, captured._exporter(), settings, detectors, is_own
        )
    except BaseException:
        captured._close()
        raise
    del meant, target  # a captured session may be lost during the block
    try:
        yield captured
    finally:
        captured.metrics  # noqa: B018 - observed values exist until the tracer is closed
        instrumentation.uninstrument()

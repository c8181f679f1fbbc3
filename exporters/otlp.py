"""Sends traces, metrics and logs to an OpenTelemetry collector by OTLP."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from session_tracer import __version__
from session_tracer.exporter import Exporter
from session_tracer.exporters.log_records import emit_to, has_logs
from session_tracer.runtime import process, threads
from session_tracer.runtime.background_queue import BackgroundQueue
from session_tracer.runtime.degraded import without

try:
    import opentelemetry.exporter.otlp.proto.http  # noqa: F401 - else it is missed only below
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from session_tracer.exporters.recorded_spans import recorder
    from session_tracer.exporters.sdk_histograms import (
        AddsHistograms,
        new_histograms,
        reserve_place,
    )
except ImportError as missing:
    raise ImportError(
        "The otlp exporter needs OpenTelemetry's SDK and its OTLP exporters "
        f"({missing}): pip install 'session-tracer[otlp]'",
        name=missing.name,
    ) from missing

if TYPE_CHECKING:
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

    from session_tracer.settings import Settings
    from session_tracer.signals.histograms import Histograms

__all__ = ["open_exporter"]

Signal: TypeAlias = Literal["TRACES", "METRICS", "LOGS"]
_SIGNALS: Final[tuple[Signal, ...]] = ("TRACES", "METRICS", "LOGS")

_DISTRIBUTION: Final = "session-tracer"
_GRPC: Final = "grpc"
_HTTP: Final = "http/protobuf"

_HISTOGRAM_AGGREGATION: Final = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
_EXPLICIT_BUCKETS: Final = "explicit_bucket_histogram"

_FLUSH_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 3.0
_GIVE_UP_SECONDS: Final = 1.0


def open_exporter(_settings: Settings) -> Exporter:
    """Create the exporter; the standard `OTEL_*` variables configure it.

    The providers are private: none is made global, the application's own are left alone. A signal
    whose `OTEL_<SIGNAL>_EXPORTER` is `none` goes nowhere. They start threads, so they are made when
    the first session is reported. Raises `ValueError` for an unknown protocol.
    """
    for signal in _SIGNALS:
        _speaks_grpc(signal)
    return Exporter(open_later=_open)


def _open() -> Exporter:
    exporter = Exporter()
    spans = _span_exporter() if _is_wanted("TRACES") else None
    histograms = _histograms()
    metrics = _metric_exporter(histograms) if _is_wanted("METRICS") else None
    resource = _resource()
    roads: list[_Road] = []
    if spans is not None:
        tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        processor = BatchSpanProcessor(spans)
        tracers.add_span_processor(processor)
        roads.append(_Road(tracers.force_flush, tracers.shutdown, spans.shutdown))
        exporter = replace(
            exporter, tracer_provider=tracers, span_recorder=recorder(tracers, [processor])
        )
    if _is_wanted("LOGS"):
        exporter = _with_logs(exporter, resource, roads)
    if metrics is not None:
        reader = PeriodicExportingMetricReader(metrics)
        meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        roads.append(_Road(meters.force_flush, meters.shutdown, metrics.shutdown))
        if histograms is not None:
            reserve_place(meters)
        exporter = replace(exporter, meter_provider=meters, histograms=histograms)
    traffic = _Traffic(roads)
    return replace(exporter, flush=traffic.flush, close=traffic.close)


def _with_logs(exporter: Exporter, resource: Resource, roads: list[_Road]) -> Exporter:
    """The exporter, and with it the way of log records, whose SDK has no public name yet."""
    if not has_logs():
        without("opentelemetry._logs", "log events are not sent by OTLP")
        return exporter
    try:
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

        records = _log_record_exporter()
    except ImportError as missing:
        if "_log" not in str(missing.name):
            raise
        without("opentelemetry.sdk._logs", "log events are not sent by OTLP")
        return exporter
    loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
    loggers.add_log_record_processor(BatchLogRecordProcessor(records))
    roads.append(_Road(loggers.force_flush, loggers.shutdown, records.shutdown))
    return replace(exporter, on_log=emit_to(loggers))


@dataclass(frozen=True, slots=True)
class _Road:
    """One signal's way out; `give_up` makes its exporter stop trying."""

    flush: Callable[[], object]
    shutdown: Callable[[], object]
    give_up: Callable[[], object]


class _Traffic:
    """All the ways out together, closed in bounded time though the collector be dead.

    The SDK's own flush and shutdown may take half a minute for each signal: they run in a thread
    that is waited for only so long. It runs from the start, because at interpreter exit Python
    starts no new one. Where threads are greenlets, so are the SDK's, and their locks are not for
    threads of the system: there a greenlet does it.
    """

    def __init__(self, roads: list[_Road]) -> None:
        self._roads = roads
        self._queue = BackgroundQueue[Callable[[], object]](
            _run, name="session_tracer otlp", stage=None
        )
        if not threads.is_patched():
            self._queue.start()
        process.at_end(self.close, process.EXPORTERS)

    def flush(self) -> None:
        self._do([road.flush for road in self._roads], _FLUSH_SECONDS)

    def close(self) -> None:
        process.not_at_end(self.close)
        if not self._do([road.shutdown for road in self._roads], _CLOSE_SECONDS):
            for road in self._roads:
                road.give_up()
        self._queue.close(_GIVE_UP_SECONDS)
        self._roads = []

    def _do(self, calls: list[Callable[[], object]], seconds: float) -> bool:
        """Whether all was done in time."""
        if threads.is_patched():
            greenlet = threading.Thread(target=_run_all, args=(calls,), daemon=True)
            greenlet.start()
            greenlet.join(seconds)
            return not greenlet.is_alive()
        for call in calls:
            self._queue.put(call)
        return self._queue.flush(seconds)


def _run_all(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        with suppress(Exception):  # of the SDK's; the other signals are flushed all the same
            call()


def _run(call: Callable[[], object]) -> None:
    call()


def _resource() -> Resource:
    # Service name, instance and the rest are the environment's; these name what emitted it.
    return Resource.create(
        {
            "telemetry.distro.name": _DISTRIBUTION,
            "telemetry.distro.version": __version__,
        }
    )


def _is_wanted(signal: Signal) -> bool:
    return os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() != "none"


def _speaks_grpc(signal: Signal) -> bool:
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(variable, "").strip()
        if protocol and protocol not in (_GRPC, _HTTP):
            raise ValueError(f"Invalid {variable}={protocol!r}: expected {_GRPC} or {_HTTP}.")
        if protocol:
            return protocol == _GRPC
    return False


# The exporters are imported one by one: loading gRPC takes a tenth of a second and a few threads.


def _span_exporter() -> SpanExporter:
    if _speaks_grpc("TRACES"):
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as by_grpc

        return by_grpc.OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as by_http

    return by_http.OTLPSpanExporter()


def _metric_exporter(histograms: Histograms | None) -> MetricExporter:
    """The exporter that the environment asks for; it adds the histograms to what it exports.

    It is a subclass rather than a wrapper: the temporality that it prefers has no public name.
    """
    if _speaks_grpc("METRICS"):
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as by_grpc

        if histograms is None:
            return by_grpc.OTLPMetricExporter()

        class GRPCExporter(AddsHistograms, by_grpc.OTLPMetricExporter):
            pass

        exporter: AddsHistograms = GRPCExporter()
    else:
        from opentelemetry.exporter.otlp.proto.http import metric_exporter as by_http

        if histograms is None:
            return by_http.OTLPMetricExporter()

        class HTTPExporter(AddsHistograms, by_http.OTLPMetricExporter):
            pass

        exporter = HTTPExporter()
    exporter.histograms = histograms
    return exporter


def _histograms() -> Histograms | None:
    """Ours; None where the environment asks for another aggregation than ours."""
    aggregation = os.environ.get(_HISTOGRAM_AGGREGATION, "").strip().lower()
    return new_histograms() if aggregation in ("", _EXPLICIT_BUCKETS) else None


def _log_record_exporter() -> LogRecordExporter:
    if _speaks_grpc("LOGS"):
        from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as by_grpc

        return by_grpc.OTLPLogExporter()
    from opentelemetry.exporter.otlp.proto.http import _log_exporter as by_http

    return by_http.OTLPLogExporter()

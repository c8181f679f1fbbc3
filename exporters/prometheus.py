"""Lets Prometheus scrape the metrics, from our endpoint or from the application's own."""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from session_tracer import __version__
from session_tracer.exporter import Exporter
from session_tracer.runtime import process
from session_tracer.runtime.degraded import warn_once
from session_tracer.signals import names

try:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import HistogramMetricFamily

    from session_tracer.exporters.sdk_histograms import new_histograms
except ImportError as missing:
    raise ImportError(
        "The prometheus exporter needs OpenTelemetry's SDK and its Prometheus exporter "
        f"({missing}): pip install 'session-tracer[prometheus]'",
        name=missing.name,
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.settings import Settings
    from session_tracer.signals.histograms import Histograms, Point
    from session_tracer.signals.names import Metric

__all__ = ["open_exporter", "prometheus_exporter"]

# What OpenTelemetry's exporter makes of the units that histograms have; it leaves out annotations.
_UNITS: Final = {"s": "seconds"}
_NOT_IN_A_NAME: Final = re.compile("[^a-zA-Z0-9]+")


def open_exporter(settings: Settings) -> Exporter:
    """Serves the metrics on `http://prometheus_host:prometheus_port/metrics` from its own thread.

    Raises `OSError` with a remedy where it cannot listen there. A forked child does not
    inherit the thread: with its first session it listens for itself, and logs a warning where it
    cannot.
    """
    registry = CollectorRegistry()
    endpoint = _Endpoint(settings.prometheus_host, settings.prometheus_port, registry)
    metrics = prometheus_exporter(registry)

    def close() -> None:
        endpoint.close()
        metrics.close()

    return replace(metrics, close=close)


class _Endpoint:
    """The address at which this process serves its metrics."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self._host = host
        self._port = port
        self._registry = registry
        self._is_open = True
        self._listen()
        process.at_first_session(self._listen_in_child)

    def close(self) -> None:
        self._is_open = False
        process.not_at_first_session(self._listen_in_child)
        if self._pid == process.pid():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def _listen(self) -> None:
        host, port = self._host, self._port
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=self._registry)
        except OSError as error:
            raise OSError(
                error.errno,
                f"The prometheus exporter cannot listen on {host}:{port}: {error.strerror}. Choose "
                "another port (prometheus_port=..., or SESSION_TRACER_PROMETHEUS_PORT; 0 takes a "
                "free one), one for each process, or put the metrics into the application's own "
                "registry with session_tracer.exporters.prometheus.prometheus_exporter(registry).",
            ) from error
        self._pid = process.pid()
        logging.getLogger(names.SCOPE).info(
            "metrics are served on http://%s:%d/metrics", host, self._server.server_port
        )

    def _listen_in_child(self) -> None:
        if not self._is_open or self._pid == process.pid():
            return
        self._is_open = False  # until it listens
        self._server.server_close()  # the socket that came with the fork; the parent keeps its own
        try:
            self._listen()
        except OSError as error:
            warn_once(
                f"The metrics of process {process.pid()} are not served: it was forked after "
                "instrument(), and its parent listens on the same port. Call instrument() in each "
                "worker after the fork (gunicorn: post_fork; Celery: worker_process_init) with a "
                f"port of its own, or use the exporter otlp. {error.strerror}"
            )
        else:
            self._is_open = True


def prometheus_exporter(registry: CollectorRegistry) -> Exporter:
    """Puts the metrics into a registry, e.g. `prometheus_client.REGISTRY`, until it is closed."""
    try:
        reader = PrometheusMetricReader(registry=registry)
    except TypeError as refused:
        raise ImportError(
            "The prometheus exporter needs a newer opentelemetry-exporter-prometheus, which can "
            f"use a registry ({refused}): pip install --upgrade 'session-tracer[prometheus]'"
        ) from refused
    provider = MeterProvider([reader], shutdown_on_exit=False)
    histograms = new_histograms()
    if histograms is None:
        return Exporter(meter_provider=provider, close=provider.shutdown)
    collector = _HistogramCollector(histograms)
    registry.register(collector)

    def close() -> None:
        provider.shutdown()
        with suppress(KeyError):  # it has been closed before
            registry.unregister(collector)

    return Exporter(meter_provider=provider, histograms=histograms, close=close)


class _HistogramCollector:
    """Gives Prometheus the histograms, named and labelled as by OpenTelemetry's exporter."""

    def __init__(self, histograms: Histograms) -> None:
        self._histograms = histograms

    def describe(self) -> list[HistogramMetricFamily]:
        """Nothing: two exporters may put the same metrics into one registry."""
        return []

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histograms that have values."""
        for metric, points in self._histograms.collect(delta=False).items():
            yield _family(metric, points)


def _family(metric: Metric, points: list[Point]) -> HistogramMetricFamily:
    labels_of_points = [_labels(point) for point in points]
    labels = sorted(set().union(*labels_of_points))
    family = HistogramMetricFamily(
        name=_NOT_IN_A_NAME.sub("_", metric.name),
        documentation=metric.description,
        labels=labels,
        unit=_UNITS.get(metric.unit, ""),
    )
    limits = [*map(str, metric.boundaries), "+Inf"]
    for point, of_point in zip(points, labels_of_points, strict=True):
        family.add_metric(
            labels=[of_point.get(label, "") for label in labels],
            buckets=list(zip(limits, accumulate(point.counts), strict=True)),
            sum_value=point.sum,
        )
    return family


def _labels(point: Point) -> dict[str, str]:
    labels: dict[str, Any] = {
        "otel_scope_name": names.SCOPE,
        "otel_scope_version": __version__,
        "otel_scope_schema_url": "",
        **{_NOT_IN_A_NAME.sub("_", key): value for key, value in point.attributes.items()},
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in labels.items()
    }

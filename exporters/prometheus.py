"""Lets Prometheus scrape the metrics, from our endpoint or from the application's own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from session_tracer.exporter import Exporter
from session_tracer.signals import names

try:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import CollectorRegistry, start_http_server
except ImportError as missing:
    raise ImportError(
        "The prometheus exporter needs OpenTelemetry's SDK and its Prometheus exporter "
        f"({missing}): pip install 'session-tracer[prometheus]'",
        name=missing.name,
    ) from missing

if TYPE_CHECKING:
    from session_tracer.settings import Settings

__all__ = ["open_exporter", "prometheus_exporter"]


def open_exporter(settings: Settings) -> Exporter:
    """Serves the metrics on `http://prometheus_host:prometheus_port/metrics` from its own thread.

    Raises `OSError`, saying what to do, where it cannot listen there. The thread does not survive
    a fork: where a server forks its workers, instrument in each worker, on a port of its own.
    """
    host, port = settings.prometheus_host, settings.prometheus_port
    registry = CollectorRegistry()
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise OSError(
            error.errno,
            f"The prometheus exporter cannot listen on {host}:{port}: {error.strerror}. Choose "
            "another port (prometheus_port=..., or SESSION_TRACER_PROMETHEUS_PORT; 0 takes a free "
            "one), one for each process, or put the metrics into the application's own registry "
            "with session_tracer.exporters.prometheus.prometheus_exporter(registry).",
        ) from error
    metrics = prometheus_exporter(registry)
    logging.getLogger(names.SCOPE).info(
        "metrics are served on http://%s:%d/metrics", host, server.server_port
    )

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()
        metrics.close()

    return Exporter(meter_provider=metrics.meter_provider, close=close)


def prometheus_exporter(registry: CollectorRegistry) -> Exporter:
    """Puts the metrics into `registry` (`prometheus_client.REGISTRY`, say) until it is closed."""
    provider = MeterProvider([PrometheusMetricReader(registry=registry)], shutdown_on_exit=False)
    return Exporter(meter_provider=provider, close=provider.shutdown)

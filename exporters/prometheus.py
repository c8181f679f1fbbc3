"""Lets Prometheus scrape the metrics, from our endpoint or from the application's own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from session_tracer.exporter import Exporter
from session_tracer.runtime import process
from session_tracer.runtime.degraded import warn_once
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

    Raises `OSError`, saying what to do, where it cannot listen there. A forked child does not
    inherit the thread: with its first session it listens for itself, and logs a warning where it
    cannot.
    """
    registry = CollectorRegistry()
    endpoint = _Endpoint(settings.prometheus_host, settings.prometheus_port, registry)
    metrics = prometheus_exporter(registry)

    def close() -> None:
        endpoint.close()
        metrics.close()

    return Exporter(meter_provider=metrics.meter_provider, close=close)


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
    """Puts the metrics into `registry` (`prometheus_client.REGISTRY`, say) until it is closed."""
    provider = MeterProvider([PrometheusMetricReader(registry=registry)], shutdown_on_exit=False)
    return Exporter(meter_provider=provider, close=provider.shutdown)

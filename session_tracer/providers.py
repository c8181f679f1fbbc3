"""Whether the application has configured OpenTelemetry itself."""

from __future__ import annotations

from opentelemetry import metrics, trace

__all__ = ["configured_providers"]


def configured_providers() -> bool:
    """Whether a tracer or meter provider of the application's is in place."""
    # Until one is set, the API hands out proxies of its own; that of metrics has no public name.
    tracers = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    meters = metrics.get_meter_provider()
    is_apis_own = type(meters).__module__.startswith(metrics.__name__)
    return tracers or not is_apis_own or isinstance(meters, metrics.NoOpMeterProvider)

"""What the application and its environment have configured."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote
from uuid import UUID

from opentelemetry import metrics, trace

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "bound_context",
    "has_providers",
    "has_structlog",
    "is_sdk_disabled",
    "is_terminal",
    "otlp_endpoint",
    "service",
]

_OTLP_ENDPOINTS: Final = tuple(
    f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT" for signal in ("", "TRACES_", "METRICS_", "LOGS_")
)
_KEPT: Final = frozenset({str, int, float, bool, UUID})
_NOTHING: Final[dict[str, Any]] = {}
# What the SDK calls a service without a name.
_UNNAMED: Final = "unknown_service"


def has_providers() -> bool:
    """Return whether the application has set an OpenTelemetry tracer or meter provider."""
    # Until one is set, the API hands out proxies of its own; that of metrics has no public name.
    tracers = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    meters = metrics.get_meter_provider()
    is_apis_own = type(meters).__module__.startswith(metrics.__name__)
    return tracers or not is_apis_own or isinstance(meters, metrics.NoOpMeterProvider)


def has_structlog() -> bool:
    """Return whether the application has imported and configured structlog.

    structlog is not imported here: if rich is installed, that takes longer than importing
    session_tracer.
    """
    structlog = sys.modules.get("structlog")
    return structlog is not None and structlog.is_configured()


def bound_context() -> dict[str, Any]:
    """Return what is bound to structlog's context variables now, such as a request's id.

    Only values that cannot change and hold nothing else are returned, because they are kept for as
    long as a session is open.
    """
    if not has_structlog():
        return _NOTHING
    bound = sys.modules["structlog.contextvars"].get_contextvars()
    return {key: value for key, value in bound.items() if type(value) in _KEPT}


def is_sdk_disabled() -> bool:
    """Return whether `OTEL_SDK_DISABLED` switches OpenTelemetry off."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def otlp_endpoint() -> str:
    """Return the name of the variable that sets an OTLP endpoint, or an empty string."""
    return next((name for name in _OTLP_ENDPOINTS if os.environ.get(name)), "")


def is_terminal() -> bool:
    """Return whether standard error is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


def service(provider: trace.TracerProvider) -> dict[str, str]:
    """Return the log fields `service` and `service_version`, as far as they are known.

    They are read from the provider's resource, or from the variables `OTEL_SERVICE_NAME` and
    `OTEL_RESOURCE_ATTRIBUTES` as OpenTelemetry's specification defines them.

    Args:
        provider: The tracer provider in use. The SDK's provider has a resource.

    Returns:
        The fields that have a value.
    """
    resource: Any = getattr(provider, "resource", None)
    known: Mapping[str, Any] = {**_resource_variables(), **getattr(resource, "attributes", {})}
    name, version = str(known.get("service.name", "")), str(known.get("service.version", ""))
    fields = {"service": "" if name.startswith(_UNNAMED) else name, "service_version": version}
    return {key: value for key, value in fields.items() if value}


def _resource_variables() -> dict[str, str]:
    pairs = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")
    parted = [pair.partition("=") for pair in pairs if "=" in pair]
    known = {key.strip(): unquote(value.strip()) for key, _, value in parted}
    name = os.environ.get("OTEL_SERVICE_NAME", "").strip()
    return {**known, "service.name": name} if name else known

"""What the application and its environment have configured, for session_tracer to fit in."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from opentelemetry import metrics, trace

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
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
# What the SDK calls a service without a name.
_UNNAMED: Final = "unknown_service"


def has_providers() -> bool:
    """Whether the application has set a tracer or meter provider of OpenTelemetry's."""
    # Until one is set, the API hands out proxies of its own; that of metrics has no public name.
    tracers = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    meters = metrics.get_meter_provider()
    is_apis_own = type(meters).__module__.startswith(metrics.__name__)
    return tracers or not is_apis_own or isinstance(meters, metrics.NoOpMeterProvider)


def has_structlog() -> bool:
    """Whether the application has configured structlog: it must have imported it to do so.

    Importing it takes longer than all of session_tracer's modules where rich is installed.
    """
    structlog = sys.modules.get("structlog")
    return structlog is not None and structlog.is_configured()


def is_sdk_disabled() -> bool:
    """Whether OpenTelemetry is switched off for this process."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def otlp_endpoint() -> str:
    """The environment variable that names an OTLP endpoint, or an empty string."""
    return next((name for name in _OTLP_ENDPOINTS if os.environ.get(name)), "")


def is_terminal() -> bool:
    """Whether standard error is a terminal, where a person reads."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


def service(provider: trace.TracerProvider) -> dict[str, str]:
    """The log fields `service` and `service_version`, as far as they are known.

    They are those of the provider's resource (the SDK's has one), else those of the variables
    `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, as OpenTelemetry's specification reads them.
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

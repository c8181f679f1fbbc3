"""Emits to the OpenTelemetry providers that the application has configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.metrics import get_meter_provider
from opentelemetry.trace import get_tracer_provider

from session_tracer.exporter import Exporter
from session_tracer.exporters.log_records import application_logger_provider, emit_to
from session_tracer.exporters.logging import log
from session_tracer.runtime.environment import has_structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.exporter import LogEvent
    from session_tracer.settings import Settings

__all__ = ["open_exporter"]


def open_exporter(_settings: Settings) -> Exporter:
    """Return an exporter for the global providers, which it does not close.

    Log events go to the global logger provider if there is one. Otherwise they go to the logger
    `session_tracer` of Python's logging, unless the application has configured structlog.
    """
    return Exporter(
        tracer_provider=get_tracer_provider(),
        meter_provider=get_meter_provider(),
        on_log=_log_events(),
    )


def _log_events() -> Callable[[LogEvent], None]:
    emit: Callable[[LogEvent], None] | None = None

    def on_log(event: LogEvent) -> None:
        nonlocal emit
        if emit is None:  # the application may set its provider later
            provider = application_logger_provider()
            if provider is not None:
                emit = emit_to(provider)
        if emit is not None:
            emit(event)
        elif not has_structlog():
            log(event)

    return on_log

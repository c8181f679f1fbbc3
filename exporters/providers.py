"""Gives the signals to the OpenTelemetry providers that the application has configured."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from opentelemetry.metrics import get_meter_provider
from opentelemetry.trace import get_tracer_provider

from session_tracer.exporter import Exporter
from session_tracer.exporters.log_records import application_logger_provider, emit_to, sentence
from session_tracer.signals import names

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.exporter import LogEvent
    from session_tracer.settings import Settings

__all__ = ["open_exporter"]

# Keeps the fields of an event apart from logging's own: `name` and `message` are taken there.
_PREFIX: Final = "session_tracer_"

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


def open_exporter(_settings: Settings) -> Exporter:
    """Spans and metrics go to the global providers, and nothing of theirs is owned or closed.

    Log events go to the global logger provider where there is one, else to the logger
    `session_tracer` of Python's logging, whose records carry each field as `session_tracer_<key>`.
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
        if emit is None:  # the application may set its provider after we are opened
            provider = application_logger_provider()
            if provider is not None:
                emit = emit_to(provider)
        if emit is not None:
            emit(event)
        else:
            _to_logging(event)

    return on_log


def _to_logging(event: LogEvent) -> None:
    logger = logging.getLogger(names.SCOPE)
    level = _LEVELS.get(str(event.get("level", "")), logging.INFO)
    if logger.isEnabledFor(level):
        fields = {_PREFIX + key: value for key, value in event.items()}
        logger.log(level, "%s", sentence(event), extra=fields)

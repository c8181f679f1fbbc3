"""Converts log events to OpenTelemetry log records: the only module that uses its logs API."""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    set_span_in_context,
)

from session_tracer.exporters.logging import message
from session_tracer.runtime.degraded import without
from session_tracer.signals import names

logs: Any
try:
    from opentelemetry import _logs as logs

    if "event_name" not in inspect.signature(logs.Logger.emit).parameters:
        logs = None  # a release that does not take the fields of a record yet
except ImportError:  # it has no public name yet
    logs = None

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.exporter import LogEvent

__all__ = ["application_logger_provider", "emit_to", "has_logs"]

# The numbers are those of the data model: opentelemetry.io/docs/specs/otel/logs/data-model/
_SEVERITIES: Final = {
    "debug": (5, "DEBUG"),
    "info": (9, "INFO"),
    "warning": (13, "WARN"),
    "error": (17, "ERROR"),
    "critical": (21, "FATAL"),
}
_UNKNOWN_LEVEL: Final = (0, "")

# The fields for which a log record has attributes of its own.
_PLACED: Final = frozenset({"event", "level", "logger", "timestamp", "trace_id", "span_id"})
# The fields that logs share with the other signals, and their names there.
_ALSO_KNOWN_AS: Final = {
    "session_id": names.SESSION_ID,
    "session_name": names.SESSION_NAME,
    "work": names.SESSION_WORK,
}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# The logs API replaces an empty context with the current one.
_NO_SPAN: Final = set_span_in_context(INVALID_SPAN, Context())


def has_logs() -> bool:
    """Return whether the logs API is there, in a form that takes our events."""
    return logs is not None


def emit_to(provider: logs.LoggerProvider) -> Callable[[LogEvent], None]:
    """Return a function that emits log events as log records of `provider`."""
    logger = provider.get_logger(names.SCOPE)

    def emit(event: LogEvent) -> None:
        number, text = _SEVERITIES.get(str(event.get("level", "")), _UNKNOWN_LEVEL)
        logger.emit(
            timestamp=_nanoseconds(str(event.get("timestamp", ""))),
            context=_context(event),
            severity_number=logs.SeverityNumber(number),
            severity_text=text,
            body=message(event),
            attributes=_attributes(event),
            event_name=str(event.get("event", "")),
        )

    return emit


def application_logger_provider() -> logs.LoggerProvider | None:
    """Return the logger provider that the application has set, or None."""
    if not has_logs():
        without("opentelemetry._logs", "log events go only to the logger of Python's logging")
        return None
    provider = logs.get_logger_provider()
    # The API's own providers do nothing: a no-op, or a proxy, which has no public name.
    return None if type(provider).__module__.startswith(logs.__name__) else provider


def _attributes(event: LogEvent) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for key, value in event.items():
        if key in _PLACED or value is None:
            continue
        attributes[key] = _attribute(value)
        if key in _ALSO_KNOWN_AS:
            attributes[_ALSO_KNOWN_AS[key]] = attributes[key]
    return attributes


def _attribute(value: object) -> Any:
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    return json.dumps(value, default=str, ensure_ascii=False)


def _context(event: LogEvent) -> Context:
    try:
        trace_id, span_id = int(event["trace_id"], 16), int(event["span_id"], 16)
    except (KeyError, TypeError, ValueError):
        return _NO_SPAN
    sampled = TraceFlags(TraceFlags.SAMPLED)
    span_context = SpanContext(trace_id, span_id, is_remote=False, trace_flags=sampled)
    return set_span_in_context(NonRecordingSpan(span_context), Context())


def _nanoseconds(timestamp: str) -> int | None:
    try:
        return (datetime.fromisoformat(timestamp) - _EPOCH) // _MICROSECOND * 1000
    except (TypeError, ValueError):  # a naive time, or none
        return None

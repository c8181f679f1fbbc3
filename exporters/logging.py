"""Logs every log event to the logger `session_tracer` of Python's logging."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from session_tracer.exporter import Exporter
from session_tracer.signals import names

if TYPE_CHECKING:
    from session_tracer.exporter import LogEvent
    from session_tracer.settings import Settings

__all__ = ["log", "message", "open_exporter"]

# Separates the fields of an event from those of a log record, which has `name` and `message`.
_PREFIX: Final = "session_tracer_"

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

# The fields that the message of an event without an explanation contains, if they have a value.
_IN_MESSAGE: Final = (
    *("suppressed_event", "suppressed", "outcome", "trigger", "error_type", "duration_ms"),
    *("statements", "site"),
)


def open_exporter(_settings: Settings) -> Exporter:
    """Return an exporter that logs to the logger `session_tracer`.

    The application's logging configuration decides what is shown, where and how. Without one,
    Python writes warnings and errors to standard error. The message of a finding contains its site
    and its remedy. A log record has each field of the event as `session_tracer_<key>`.
    """
    return Exporter(on_log=log)


def log(event: LogEvent) -> None:
    """Log an event at its level."""
    logger = logging.getLogger(names.SCOPE)
    level = _LEVELS.get(str(event.get("level", "")), logging.INFO)
    if logger.isEnabledFor(level):
        fields = {_PREFIX + key: value for key, value in event.items()}
        logger.log(level, message(event), extra=fields)


def message(event: LogEvent) -> str:
    """Return an event as one line, because a reader may see nothing else of it.

    That of a finding contains what happened, where, and what to do.
    """
    explanation = event.get("explanation")
    if explanation:
        subject = str(event.get("finding_id", event.get("event")))
        retracted = " retracted" if event.get("event") == names.FINDING_RETRACTED else ""
        site = f" at {event['site']}" if event.get("site") else ""
        remedy = " ".join(str(event.get("remedy", "")).split())
        if remedy:
            explanation = f"{str(explanation).removesuffix('.')}. Remedy: {remedy}"
        held_back = event.get("suppressed")
        more = f" ({held_back} more since the last such line)" if held_back else ""
        return f"{subject}{retracted}{site}: {explanation}{more}"
    fields = [f"{key}={event[key]}" for key in _IN_MESSAGE if event.get(key) not in (None, "")]
    return " ".join([str(event.get("event", "")), str(event.get("session_name", "")), *fields])

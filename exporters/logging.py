"""Hands every log event to the logger `session_tracer` of Python's logging."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from session_tracer.exporter import Exporter
from session_tracer.exporters.sentences import sentence
from session_tracer.signals import names

if TYPE_CHECKING:
    from session_tracer.exporter import LogEvent
    from session_tracer.settings import Settings

__all__ = ["log", "open_exporter"]

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
    """The application's logging configuration decides what is shown, where and how.

    Without one Python writes warnings and errors to standard error. A finding's message has its
    site and its remedy; a record carries each field of the event as `session_tracer_<key>`.
    """
    return Exporter(on_log=log)


def log(event: LogEvent) -> None:
    """Log an event at its level."""
    logger = logging.getLogger(names.SCOPE)
    level = _LEVELS.get(str(event.get("level", "")), logging.INFO)
    if logger.isEnabledFor(level):
        fields = {_PREFIX + key: value for key, value in event.items()}
        logger.log(level, "%s", sentence(event), extra=fields)

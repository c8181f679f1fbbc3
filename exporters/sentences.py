"""Puts a log event into one line that a person reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.signals import names

if TYPE_CHECKING:
    from session_tracer.exporter import LogEvent

__all__ = ["sentence"]

# What the sentence for a log event without an explanation names, where it has them.
_NAMED: Final = ("outcome", "trigger", "error_type", "duration_ms", "statements")


def sentence(event: LogEvent) -> str:
    """What a person reads of an event: it may be all that a reader gets.

    Of a finding it has what, where and what to do, on one line; of another event what matters most.
    """
    explanation = event.get("explanation")
    if explanation:
        about = str(event.get("finding_id", event.get("event")))
        retracted = " retracted" if event.get("event") == names.FINDING_RETRACTED else ""
        site = f" at {event['site']}" if event.get("site") else ""
        remedy = " ".join(str(event.get("remedy", "")).split())
        if remedy:
            explanation = f"{str(explanation).removesuffix('.')}. Remedy: {remedy}"
        return f"{about}{retracted}{site}: {explanation}"
    named = [f"{key}={event[key]}" for key in _NAMED if event.get(key) not in (None, "")]
    return " ".join([str(event.get("event", "")), str(event.get("session_name", "")), *named])

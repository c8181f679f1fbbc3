"""Switches tracing off: `instrument(exporter="none")` returns and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_tracer.exporter import Exporter

if TYPE_CHECKING:
    from session_tracer.settings import Settings

__all__ = ["open_exporter"]


def open_exporter(_settings: Settings) -> Exporter:
    """Return an exporter without destinations. `instrument()` does not open it."""
    return Exporter()

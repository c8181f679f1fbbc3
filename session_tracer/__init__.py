"""Runtime observability and debugging for SQLAlchemy sessions.

PYTEST_DONT_REWRITE
"""
# That word is pytest's: it rewrites the packages of its plugins as they are imported, and warns
# where an application has imported one before. There is no assertion here.

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from session_tracer.detectors import DEFAULT_DETECTORS, Detector
    from session_tracer.exporter import Exporter
    from session_tracer.instrumentor import Instrumentation, instrument, uninstrument
    from session_tracer.ledger.dumping import dump
    from session_tracer.ledger.registry import live_sessions
    from session_tracer.model.findings import Finding, Lasting, Retraction
    from session_tracer.model.live_session import LiveSession
    from session_tracer.model.summary import SessionSummary
    from session_tracer.page.live import live_app, live_wsgi_app
    from session_tracer.settings import Settings
    from session_tracer.verdicts.misuse import SessionMisuse
    from session_tracer.verdicts.silencing import silence
    from session_tracer.version import VERSION as __version__
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.work import work

__all__ = [
    "DEFAULT_DETECTORS",
    "CallSite",
    "Detector",
    "Exporter",
    "Finding",
    "Instrumentation",
    "Lasting",
    "LiveSession",
    "Retraction",
    "SessionMisuse",
    "SessionSummary",
    "Settings",
    "__version__",
    "dump",
    "instrument",
    "live_app",
    "live_sessions",
    "live_wsgi_app",
    "silence",
    "uninstrument",
    "work",
]

# pytest imports this package in every environment that has it, for the plugin's sake: nothing more
# is imported, and SQLAlchemy least of all, until one of the names is asked for.
_HOMES: Final = {
    "CallSite": "where.callsite",
    "DEFAULT_DETECTORS": "detectors",
    "Detector": "detectors",
    "Exporter": "exporter",
    "Finding": "model.findings",
    "Instrumentation": "instrumentor",
    "Lasting": "model.findings",
    "LiveSession": "model.live_session",
    "Retraction": "model.findings",
    "SessionMisuse": "verdicts.misuse",
    "SessionSummary": "model.summary",
    "Settings": "settings",
    "dump": "ledger.dumping",
    "instrument": "instrumentor",
    "live_app": "page.live",
    "live_sessions": "ledger.registry",
    "live_wsgi_app": "page.live",
    "silence": "verdicts.silencing",
    "uninstrument": "instrumentor",
    "work": "where.work",
}

if not TYPE_CHECKING:  # or every other name would be taken for one of these

    def __getattr__(name: str) -> Any:
        """Import a public name from where it lives."""
        if name == "__version__":
            return import_module("session_tracer.version").VERSION
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

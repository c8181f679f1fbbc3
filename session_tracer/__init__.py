"""Runtime observability and debugging for SQLAlchemy sessions."""

from session_tracer.callsite import CallSite
from session_tracer.detectors import DEFAULT_DETECTORS, Detector
from session_tracer.exporter import Exporter
from session_tracer.findings import Finding
from session_tracer.instrumentor import Instrumentation, instrument, uninstrument
from session_tracer.record import SessionSummary
from session_tracer.settings import Settings
from session_tracer.version import VERSION as __version__

__all__ = [
    "DEFAULT_DETECTORS",
    "CallSite",
    "Detector",
    "Exporter",
    "Finding",
    "Instrumentation",
    "SessionSummary",
    "Settings",
    "__version__",
    "instrument",
    "uninstrument",
]

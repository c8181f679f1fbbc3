"""Traces every session where OpenTelemetry instruments an application, without a change to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined] # untyped

from session_tracer.exporter import Exporter
from session_tracer.instrumentor import Instrumentation, instrument

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["SessionTracerInstrumentor"]

# As pyproject.toml has it: a test compares them.
_SUPPORTED: Final = ("sqlalchemy >= 2.0.37, < 2.2",)
_PROVIDERS: Final = ("tracer_provider", "meter_provider")


class SessionTracerInstrumentor(BaseInstrumentor):  # type: ignore[misc] # it has no types
    """What `opentelemetry-instrument` and declarative configuration call.

    Both find it by the name `session_tracer` of the entry-point group `opentelemetry_instrumentor`.
    The section of that name in a configuration file has the arguments of `instrument()`.
    """

    _instrumentation: Instrumentation | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the releases of SQLAlchemy whose sessions can be traced."""
        return _SUPPORTED

    def _instrument(self, **options: Any) -> None:
        """Trace every session.

        Args:
            **options: The arguments of `instrument()`, and `tracer_provider` and `meter_provider`
                as other instrumentations have them.
        """
        given = {name: options.pop(name, None) for name in _PROVIDERS}
        providers = {name: one for name, one in given.items() if one is not None}
        if providers:
            options["exporter"] = Exporter(**providers)
        self._instrumentation = instrument(**options)

    def _uninstrument(self, **_options: Any) -> None:
        if self._instrumentation is not None:
            self._instrumentation.uninstrument()
            self._instrumentation = None

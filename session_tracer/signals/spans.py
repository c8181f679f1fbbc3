"""Reports sessions as OpenTelemetry spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import NoOpTracerProvider

from session_tracer.signals import names
from session_tracer.signals.attached import Attached
from session_tracer.signals.live_spans import LiveSpans
from session_tracer.signals.recorded_spans import DatabaseAttributes, RecordedSpans

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

    from session_tracer.ledger.report import Report
    from session_tracer.signals.span_recorder import SpanRecorder

__all__ = ["Attached", "SessionSpans", "SpanSignal", "caller"]

SessionSpans: TypeAlias = LiveSpans | RecordedSpans

_NOWHERE: Final = (0, 0)


def caller(current: Context | None = None) -> tuple[int, int]:
    """The trace and the span that the caller is in; zeros where it is in none."""
    if current is None:
        current = context_api.get_current()
    if not current:
        return _NOWHERE
    context = trace.get_current_span(current).get_span_context()
    return context.trace_id, context.span_id


class SpanSignal:
    """Makes the spans of sessions for one provider.

    With a recorder, spans are built when they end. Without one, they are started and ended by
    OpenTelemetry's API as things happen.
    """

    __slots__ = ("_databases", "_recorder", "_tracer", "is_idle")

    def __init__(
        self,
        provider: TracerProvider,
        version: str,
        recorder: SpanRecorder | None = None,
    ) -> None:
        # Where no provider makes spans, none are begun.
        self.is_idle = isinstance(provider, NoOpTracerProvider)
        self._tracer = provider.get_tracer(names.SCOPE, version)
        self._recorder = recorder
        self._databases = DatabaseAttributes()

    def begin(self, report: Report) -> SessionSpans:
        """The spans of one session scope."""
        if self._recorder is not None:
            return RecordedSpans(self._recorder, self._databases, report)
        return LiveSpans(self._tracer, report)

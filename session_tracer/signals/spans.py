"""Begins the spans of each session whose first transaction begins, if it is sampled."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind

from session_tracer.signals import names
from session_tracer.signals.attached import Attaching
from session_tracer.signals.live_spans import LiveSpans
from session_tracer.signals.names import DETACHED_LOAD_SPAN, SESSION_ASYNC, SESSION_NAME
from session_tracer.signals.recorded_spans import DatabaseAttributes, RecordedSpans
from session_tracer.signals.span_recorder import RecordedSpan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.trace import TracerProvider

    from session_tracer.ledger.origin import Scope
    from session_tracer.ledger.report import Report
    from session_tracer.signals.attached import Attached
    from session_tracer.signals.span_attributes import Attributes
    from session_tracer.signals.span_recorder import SpanRecorder

__all__ = ["NOT_DRAWN", "SpanSignal", "caller", "server_span_name"]

_NOWHERE: Final = (0, 0)
_HANDLING: Final = (SpanKind.SERVER, SpanKind.CONSUMER)
# In place of the context of a session's span that was never begun, because it is not sampled. Only
# a link to it shows its ids.
NOT_DRAWN: Final = SpanContext(0, 0, is_remote=False)
# Every instrumentation of OpenTelemetry's imports it.
_INSTRUMENTATIONS: Final = "opentelemetry.instrumentation.instrumentor"


def caller(current: Context | None = None) -> tuple[int, int]:
    """The trace and the span that the caller is in; zeros where it is in none."""
    if current is None:
        current = context_api.get_current()
    if not current:
        return _NOWHERE
    context = trace.get_current_span(current).get_span_context()
    return context.trace_id, context.span_id


def server_span_name(current: Context | None) -> str:
    """The name of the current span if it is that of a request or a message that is handled.

    Of an inner span only the ids of its parent can be read, and not the parent's name.
    """
    if not current:
        return ""
    span = trace.get_current_span(current)
    # A span of the API alone has neither.
    if getattr(span, "kind", None) not in _HANDLING:
        return ""
    name = getattr(span, "name", "")
    return name if isinstance(name, str) else ""


class SpanSignal:
    """Begins the spans of sessions for one provider.

    With a recorder, spans are built when they end. Without one, they are started and ended by
    OpenTelemetry's API as things happen.
    """

    def __init__(
        self,
        provider: TracerProvider,
        version: str,
        recorder: SpanRecorder | None = None,
    ) -> None:
        self._tracer = provider.get_tracer(names.SCOPE, version)
        self._recorder = recorder
        self._never_samples_roots = recorder is not None and recorder.samples_roots is False
        self._databases = DatabaseAttributes()

    @property
    def begins_none(self) -> bool:
        """Whether spans without a parent are not sampled, and no other code can see their ids."""
        return self._never_samples_roots and _INSTRUMENTATIONS not in sys.modules

    def begin(self, report: Report) -> None:
        """Begin the span of a session, dated back to the opening of the scope."""
        ledger = report.ledger
        within = ledger.context
        if within is None:
            within = context_api.get_current()
        recorder, name = self._recorder, f"session {report.name}"
        # The sampler needs no more to decide: the rest is set where the span is sampled.
        attributes: Attributes = {SESSION_NAME: report.name, SESSION_ASYNC: ledger.is_async}
        if recorder is None:
            self._start(report, name, within, attributes, ledger.opened_at)
            return
        context, parent, is_sampled = recorder.begin(name, within, attributes)
        if is_sampled:
            one = RecordedSpan(
                name,
                context,
                parent,
                recorder.provider.resource,
                ledger.opened_at,
                SESSION_ASYNC,
                ledger.is_async,
                ledger.opened_site,
            )
            spans = RecordedSpans(recorder, self._databases, report, one)
            report.spans = report.attaching = spans
        else:
            _is_unsampled(report, context)

    def refused(self, report: Report, origin: SpanContext | None) -> None:
        """Begin the span of a refused load; the fact that follows describes and ends it."""
        if origin is NOT_DRAWN:
            origin = self._draw(report.ledger.scope)
        links = [] if origin is None else [Link(origin)]
        within, now = context_api.get_current(), time.time_ns() - report.ledger.epoch
        recorder = self._recorder
        if recorder is None:
            self._start(report, DETACHED_LOAD_SPAN, within, {}, now, links)
            return
        context, parent, is_sampled = recorder.begin(DETACHED_LOAD_SPAN, within, {})
        if is_sampled:
            one = RecordedSpan(DETACHED_LOAD_SPAN, context, parent, recorder.provider.resource, now)
            one.links = links
            report.spans = RecordedSpans(recorder, self._databases, report, one)

    def _draw(self, scope: Scope) -> SpanContext | None:
        """Draw the ids of an unsampled session's span, once for all links to it."""
        if self._recorder is None:
            return None
        context, _, _ = self._recorder.begin("", Context(), {})
        for report in scope.reports:
            if report.session_context is NOT_DRAWN:
                report.session_context = context
        scope.tracers = tuple(
            [(one, context if known is NOT_DRAWN else known) for one, known in scope.tracers]
        )
        return context

    def _start(
        self,
        report: Report,
        name: str,
        within: Context,
        attributes: Attributes,
        at: int,
        links: Sequence[Link] = (),
    ) -> None:
        """Start the outermost span of a scope."""
        span = self._tracer.start_span(
            name,
            within,
            attributes=attributes,
            links=links,
            start_time=at + report.ledger.epoch,
        )
        if span.is_recording():
            live = LiveSpans(self._tracer, report, within, name, span)
            report.spans = report.attaching = live
        else:
            span.end()
            _is_unsampled(report, span.get_span_context())


def _is_unsampled(report: Report, context: SpanContext) -> None:
    report.session_context = context
    if _INSTRUMENTATIONS in sys.modules:
        report.attaching = Unsampled(context)


class Unsampled(Attaching):
    """The span of a session, if it is not sampled: nothing is computed for it.

    Where an instrumentation of OpenTelemetry's may be in use, the context of statements has it, so
    that the spans of that instrumentation are not sampled either.
    """

    def __init__(self, context: SpanContext) -> None:
        self._context = context

    def attach(self) -> Attached | None:
        """The caller's context with the session's span, to attach; None to leave it be."""
        return self.attached(self._context)

"""Puts a context in force while a statement runs, and the caller's back after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext

__all__ = ["Attached", "Attaching"]


class Attached:
    """A context that can be put in force, and the caller's, which is put back after it.

    The code that attaches it has to keep it first, and to detach it whatever happens: an interrupt
    may come after the context is in force and before its token is kept.
    """

    __slots__ = ("_before", "_context", "_token")

    def __init__(self, context: Context, before: Context) -> None:
        self._context = context
        self._before = before
        self._token: Token[Context] | None = None

    def attach(self) -> None:
        """Put it in force."""
        self._token = context_api.attach(self._context)

    def detach(self) -> None:
        """Put the caller's context back, if this one is in force. Calling it again does nothing."""
        # A coroutine that was thrown away during a statement may be unwound in another context.
        if context_api.get_current() is self._context:
            if self._token is None:
                context_api.attach(self._before)
            else:
                context_api.detach(self._token)


class Attaching:
    """Has the caller's context with a span of the session in it, made again when either changes."""

    # The context that a caller was in last, and the one that takes its place for a span.
    _base: Context | None = None
    _derived: Context | None = None
    _derived_of: SpanContext | None = None

    def attached(self, context: SpanContext, span: Span | None = None) -> Attached | None:
        """The caller's context with that span, to attach; None to leave it be."""
        base = context_api.get_current()
        if base is not self._base or context is not self._derived_of:
            self._base, self._derived_of = base, context
            if not context.is_valid or (
                # It is current already, or nothing is recorded and the caller's span is the same.
                base and context == trace.get_current_span(base).get_span_context()
            ):
                self._derived = None
            else:
                self._derived = trace.set_span_in_context(span or NonRecordingSpan(context), base)
        return None if self._derived is None else Attached(self._derived, base)

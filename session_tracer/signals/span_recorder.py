"""What is kept of a span that is built when it ends, and what builds it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from opentelemetry.trace import SpanKind

from session_tracer.signals import names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanContext

    from session_tracer.signals.span_attributes import Attributes
    from session_tracer.where.callsite import CallSite

__all__ = ["MOST_EVENTS", "RecordedEvent", "RecordedSpan", "SpanRecorder"]

# The number of events that the SDK keeps of a span where no limits are set.
MOST_EVENTS: Final = 128


class RecordedEvent(NamedTuple):
    """An event of a span; `at` is in nanoseconds since 1970."""

    name: str
    attributes: Attributes
    at: int


class RecordedSpan:
    """What is kept of a span until it ends; `key` and `value` are an attribute of its own.

    `began` is in nanoseconds of the ledger's clock.
    """

    # An attribute keeps the class's value, which costs nothing, until something changes it.
    kind = SpanKind.INTERNAL
    links: Sequence[Link] = ()
    # Put together when it ends.
    attributes: Attributes
    failed = False
    dropped_events = 0

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        resource: Any,
        began: int,
        key: str = "",
        value: str | bool = "",
        site: CallSite | None = None,
    ) -> None:
        self.name = name
        self.context = context
        self.parent = parent
        self.resource = resource
        self.began = began
        self.key = key
        self.value = value
        self.site = site
        # The watchdog's thread adds some while the session's own thread may be ending the span.
        self.events: list[RecordedEvent] = []

    def add_event(self, event: RecordedEvent) -> None:
        """Add an event. As in a live span, the first ones make room for it."""
        events = self.events
        events.append(event)
        if len(events) > MOST_EVENTS:
            # A span that is open for days must not fill the memory.
            del events[0]
            self.dropped_events += 1

    def fail(self, error: str) -> None:
        """Report that what the span stands for has failed."""
        # The message stays out: a database's error text quotes column values.
        self.failed = True
        self.attributes[names.ERROR_TYPE] = error
        of_exception: Attributes = {names.EXCEPTION_TYPE: error}
        self.add_event(RecordedEvent(names.EXCEPTION_EVENT, of_exception, time.time_ns()))


class SpanRecorder(Protocol):
    """Makes spans that are equal to those of one tracer provider.

    It relies on a SpanContext being a tuple that begins with the trace's and the span's id.
    """

    # A span has the `resource` that this has as it begins: it is another one after a fork.
    provider: Any

    @property
    def samples_roots(self) -> bool | None:
        """Whether spans without a parent are sampled; None where the sampler has to be asked."""

    def begin(
        self,
        name: str,
        context: Context,
        attributes: Attributes,
    ) -> tuple[SpanContext, SpanContext | None, bool]:
        """Begin a tree of spans in a context: sample it, and draw its ids.

        Returns:
            The contexts of the first span and of its parent, and whether it is sampled.
        """
        ...

    def child(self, parent: SpanContext) -> SpanContext:
        """The context of a new span below a recorded one, which has its sampling decision."""
        ...

    def end(self, span: RecordedSpan, at: int, epoch: int) -> None:
        """Build a span that ended at that time, and export it.

        Args:
            span: What was kept of it.
            at: When it ended, by the same clock as it began.
            epoch: What to add to a time of that clock to get nanoseconds since 1970.
        """
        ...

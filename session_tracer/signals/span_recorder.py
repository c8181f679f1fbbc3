"""What spans read of a session scope, and what records them where they are built at their end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from opentelemetry.trace import SpanKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanContext

    from session_tracer.facts import Database
    from session_tracer.signals.span_attributes import Attributes
    from session_tracer.where.callsite import CallSite

__all__ = [
    "MOST_EVENTS",
    "Beginning",
    "Ledger",
    "RecordedEvent",
    "RecordedSpan",
    "Report",
    "SpanRecorder",
]

# The number of events that the SDK keeps of a span where no limits are set.
MOST_EVENTS: Final = 128


class Ledger(Protocol):
    """The account of one session scope; times are nanoseconds of a monotonic clock."""

    id: str
    is_async: bool
    # The context in which the session was opened; None for the current one.
    context: Any
    opened_at: int
    opened_site: CallSite | None
    # What to add to a time to get nanoseconds since 1970.
    epoch: int
    database: Database | None
    # The rest is complete when the scope has ended.
    error: str
    statements: int
    sql: int
    held: int
    identity_map_size: int
    identity_map_peak: int

    @property
    def outcome(self) -> str | None: ...


class Report(Protocol):
    """What is reported of one session scope by one tracer."""

    # The name of the factory.
    name: str
    # The trace and the span id of the innermost span that records.
    span_context: tuple[int, int] | None

    @property
    def ledger(self) -> Ledger: ...


class Beginning(NamedTuple):
    """What is decided when the first span of a tree begins.

    `attributes` are the ones that the sampler leaves or adds; None where the span is not recorded.
    """

    context: SpanContext
    parent: SpanContext | None
    attributes: Attributes | None


class RecordedEvent(NamedTuple):
    """An event of a span; `at` is in nanoseconds since 1970."""

    name: str
    attributes: Attributes
    at: int


class RecordedSpan:
    """What is kept of a span until it ends. `began` is in nanoseconds since 1970."""

    # An attribute keeps the class's value, which costs nothing, until something changes it.
    kind = SpanKind.INTERNAL
    links: Sequence[Link] = ()
    failed = False
    dropped_events = 0

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: Attributes,
        began: int,
    ) -> None:
        self.name = name
        self.context = context
        self.parent = parent
        self.attributes = attributes
        self.began = began
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


class SpanRecorder(Protocol):
    """Makes spans that nothing can tell from those of one tracer provider.

    It relies on a SpanContext being a tuple that begins with the trace's and the span's id.
    """

    def begin(
        self,
        name: str,
        context: Context | None,
        attributes: Attributes,
        links: Sequence[Link] = (),
    ) -> Beginning:
        """Begin a tree of spans in a context: sample it, and draw its ids."""
        ...

    def child(self, parent: SpanContext) -> SpanContext:
        """The context of a new span below a recorded one, which has its sampling decision."""
        ...

    def end(self, span: RecordedSpan, at: int) -> None:
        """Build a span that ended at that time since 1970, and export it."""
        ...

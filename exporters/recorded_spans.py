"""Builds spans of the SDK when they end, where they are equal to live ones."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import (
    Event,
    ReadableSpan,
    SpanLimits,
    SpanProcessor,
    Tracer,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import (
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from session_tracer import __version__
from session_tracer.signals import names
from session_tracer.signals.span_recorder import MOST_EVENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.sampling import Sampler

    from session_tracer.signals.span_attributes import Attributes
    from session_tracer.signals.span_recorder import RecordedSpan, SpanRecorder

__all__ = ["recorder"]

# What the SDK does where neither code nor the environment sets limits.
_COUNT_LIMIT: Final = MOST_EVENTS
_NOTHING_ON_START: Final = (
    SpanProcessor.on_start,
    BatchSpanProcessor.on_start,
    SimpleSpanProcessor.on_start,
)
# Children of a sampled span are sampled, and those of another are not.
_PARENT_BASED: Final = re.compile(
    r"ParentBased\{root:(AlwaysOnSampler|AlwaysOffSampler|TraceIdRatioBased\{[^{}]*\}),"
    r"remoteParentSampled:AlwaysOnSampler,remoteParentNotSampled:AlwaysOffSampler,"
    r"localParentSampled:AlwaysOnSampler,localParentNotSampled:AlwaysOffSampler\}"
)
_INTERNAL_METRICS: Final = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
_UNSET: Final = Status(StatusCode.UNSET)
_ERROR: Final = Status(StatusCode.ERROR)
_PROBE: Final = (5, 6, False, TraceFlags(TraceFlags.SAMPLED), trace.DEFAULT_TRACE_STATE)
_INTERNAL: Final = SpanKind.INTERNAL
_SAMPLED: Final = Decision.RECORD_AND_SAMPLE
# By whether the span is sampled.
_FLAGS: Final = (TraceFlags(TraceFlags.DEFAULT), TraceFlags(TraceFlags.SAMPLED))
# Where a release does not have this flag, spans are live.
_RANDOM: Final[int] = getattr(TraceFlags, "RANDOM_TRACE_ID", 0)
_RANDOM_FLAGS: Final = tuple(TraceFlags(one | _RANDOM) for one in _FLAGS)

_new = tuple.__new__


def recorder(provider: TracerProvider, processors: Sequence[SpanProcessor]) -> SpanRecorder | None:
    """The recorder of a provider; None where its spans have to be live.

    `provider` has to be made by the caller, without limits of its own, and `processors` have to be
    all that it has: a provider shows neither. A live span differs from a recorded one by a
    processor that is called when it starts, and by a sampler that decides about each span on its
    own.
    """
    tracer = provider.get_tracer(names.SCOPE, __version__)
    if (
        type(tracer) is Tracer  # else the SDK is disabled
        and all(type(one).on_start in _NOTHING_ON_START for one in processors)
        and _decides_by_trace(provider.sampler)
        and _are_default(SpanLimits())
        and not os.environ.get(_INTERNAL_METRICS, "").strip()
        and _is_known_layout()
    ):
        return _SpanRecorder(provider, tracer, processors)
    return None


def _decides_by_trace(sampler: Sampler) -> bool:
    """Whether children of a recorded span are always sampled as it is, and nothing is added."""
    if type(sampler) in (ParentBased, ParentBasedTraceIdRatio):
        described: Sampler = sampler  # the class's own method has no types
        if not _PARENT_BASED.fullmatch(described.get_description()):
            return False
    elif type(sampler) not in (StaticSampler, TraceIdRatioBased):
        return False
    # A sampler that records what it does not sample describes itself like one that samples.
    parents = [
        NonRecordingSpan(SpanContext(1, 1, is_remote=remote, trace_flags=TraceFlags(sampled)))
        for remote in (False, True)
        for sampled in (TraceFlags.DEFAULT, TraceFlags.SAMPLED)
    ]
    contexts = [trace.set_span_in_context(one) for one in (*parents, trace.INVALID_SPAN)]
    decisions = {sampler.should_sample(one, 1, "session").decision for one in contexts}
    return Decision.RECORD_ONLY not in decisions


def _are_default(limits: SpanLimits) -> bool:
    counts = {
        limits.max_span_attributes,
        limits.max_events,
        limits.max_links,
        limits.max_event_attributes,
        limits.max_link_attributes,
    }
    lengths = {limits.max_attribute_length, limits.max_span_attribute_length}
    return counts == {_COUNT_LIMIT} and lengths == {None}


def _is_known_layout() -> bool:
    """Whether a SpanContext is the tuple that `child()` makes without the checks of its class."""
    try:
        made = SpanContext(*_PROBE)
        return tuple(made) == (*_PROBE, True) and _RANDOM != 0 and vars(made) == {}
    except TypeError:
        return False


class _SpanRecorder:
    """Samples, numbers and builds spans as the SDK's tracer does."""

    def __init__(
        self, provider: TracerProvider, tracer: Tracer, processors: Sequence[SpanProcessor]
    ) -> None:
        self.provider = provider
        self._sampler = provider.sampler
        self._ids = provider.id_generator
        self._new_span_id = provider.id_generator.generate_span_id
        self._processors = tuple(processors)
        self._on_end = processors[0].on_end if len(processors) == 1 else self._to_all
        self._info = tracer.instrumentation_info
        self._scope = InstrumentationScope(names.SCOPE, __version__)
        # Whether spans without a parent are sampled; None where it has to be asked each time.
        self.samples_roots: bool | None = None
        root = provider.sampler.get_description().removeprefix("ParentBased{root:")
        if root.startswith(("AlwaysOnSampler", "AlwaysOffSampler")):
            self.samples_roots = root.startswith("AlwaysOnSampler")
        self._follows_parent = isinstance(provider.sampler, ParentBased)

    def _to_all(self, span: ReadableSpan) -> None:
        for one in self._processors:
            one.on_end(span)

    def begin(
        self,
        name: str,
        context: Context,
        attributes: Attributes,
    ) -> tuple[SpanContext, SpanContext | None, bool]:
        """Begin a tree of spans in a context: sample it, and draw its ids."""
        above: SpanContext | None = None
        if context and (parent := trace.get_current_span(context).get_span_context()).is_valid:
            above = parent
            trace_id, _, _, flags, state, _ = parent
            is_random = flags & _RANDOM
            is_sampled = flags & TraceFlags.SAMPLED if self._follows_parent else self.samples_roots
        else:
            trace_id, state = self._ids.generate_trace_id(), trace.DEFAULT_TRACE_STATE
            is_random = self._ids.is_trace_id_random()
            is_sampled = self.samples_roots
        if is_sampled is None:
            result = self._sampler.should_sample(context, trace_id, name, _INTERNAL, attributes)
            is_sampled = result.decision is _SAMPLED
        own_flags = (_RANDOM_FLAGS if is_random else _FLAGS)[1 if is_sampled else 0]
        # What the class would check is known: `_is_known_layout()`.
        own = _new(SpanContext, (trace_id, self._new_span_id(), False, own_flags, state, True))
        return own, above, bool(is_sampled)

    def child(self, parent: SpanContext) -> SpanContext:
        """The context of a new span below a recorded one, which has its sampling decision."""
        trace_id, _, _, flags, state, _ = parent
        return _new(SpanContext, (trace_id, self._new_span_id(), False, flags, state, True))

    def end(self, span: RecordedSpan, at: int, epoch: int) -> None:
        """Build a span that ended at that time, and export it."""
        self._on_end(
            ReadableSpan(
                span.name,
                span.context,
                span.parent,
                span.resource,
                span.attributes,
                _events(span) if span.events else (),
                _links(span.links) if span.links else (),
                span.kind,
                self._info,
                _ERROR if span.failed else _UNSET,
                span.began + epoch,
                at + epoch,
                self._scope,
            )
        )


def _events(span: RecordedSpan) -> Sequence[Event]:
    built = [Event(name, _bounded(attributes), at) for name, attributes, at in span.events]
    kept = BoundedList.from_seq(_COUNT_LIMIT, built)
    kept.dropped += span.dropped_events
    events: Sequence[Event] = kept
    return events


def _links(links: Sequence[Link]) -> Sequence[Link]:
    return [
        Link(one.context, BoundedAttributes(_COUNT_LIMIT, one.attributes))
        for one in links
        if one.context.is_valid or one.attributes or one.context.trace_state
    ]


def _bounded(attributes: Attributes) -> BoundedAttributes:
    return BoundedAttributes(_COUNT_LIMIT, attributes)

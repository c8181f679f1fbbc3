"""Tests that spans built when they end are equal to live ones, and where they are built."""

import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from sqlalchemy import create_engine, event, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError
from sqlalchemy.pool import StaticPool

from examples.misuse.db import close_shop, open_shop
from examples.misuse.scenes import SCENES, Scene
from session_tracer import Exporter, Settings, instrument, testing
from session_tracer.exporter import find_exporter
from session_tracer.exporters.recorded_spans import recorder
from session_tracer.facts import FlushCompleted
from session_tracer.model.findings import Finding
from session_tracer.signals.recorded_spans import RecordedSpans
from session_tracer.signals.span_recorder import MOST_EVENTS, RecordedEvent, RecordedSpan
from session_tracer.testing import Captured, capture
from tests.library import Author, authors
from tests.signals.telling import Traces, began, context, ended
from tests.twins import Twin

pytestmark = [
    # SQLAlchemy 2.1 drops a coroutine of aiosqlite where it raises MissingGreenlet.
    pytest.mark.filterwarnings("ignore:coroutine 'Connection.cursor' was never awaited"),
    # The scene of lost-link is about this warning.
    pytest.mark.filterwarnings("default:Object of type <Author> not in session"),
]

NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?( (ms|s|min|h)\b)?")
# Ids, times and durations, of which a short one has an exponent: 9.5e-05.
_CHANCE = re.compile("[0-9a-f]{4,}|[0-9.]+(e-[0-9]+)?")


@pytest.fixture
def shop() -> Iterator[None]:
    open_shop()
    yield
    gc.collect()  # here, where the coroutine that is dropped may be
    close_shop()


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("statements", [False, True], ids=["", "statements"])
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.finding)
def test_both_kinds_of_spans_are_equal(
    scene: Scene, statements: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {**scene.settings, "statement_spans": statements}
    with monkeypatch.context() as patched:
        patched.setattr(testing, "recorder", lambda *_: None)
        live = capture(**settings)
        told_live = live.__enter__()
    try:
        with capture(**settings) as told:
            scene.play()
            gc.collect()
    finally:
        live.__exit__(None, None, None)
    assert is_recorded(told)
    assert not is_recorded(told_live)
    assert comparable(told.spans) == comparable(told_live.spans)
    assert told.spans


def is_recorded(captured: Captured) -> bool:
    return captured._exporter().span_recorder is not None


def comparable(spans: list[ReadableSpan]) -> list[object]:
    """All that can be read of spans, in the order of their ends, without their ids."""
    by_id = {context(span).span_id: span for span in spans}
    traces: dict[int, int] = {}

    def path(span: ReadableSpan) -> list[tuple[str, int]]:
        above = by_id.get(span.parent.span_id) if span.parent else None
        return [*(path(above) if above else []), (span.name, began(span))]

    found: list[object] = []
    # Two captures hear of an end one after the other, and other threads in between.
    for span in sorted(spans, key=lambda one: (ended(one), one.name)):
        own = context(span)
        is_dated = span.name not in ("detached_load",)
        found.append(
            (
                path(span) if is_dated else span.name,
                traces.setdefault(own.trace_id, len(traces)),
                (own.is_remote, own.trace_flags, own.trace_state, own.is_valid),
                span.parent is None,
                (began(span), ended(span)) if is_dated else None,
                plain(span.attributes),
                [(one.name, plain(one.attributes)) for one in span.events],
                [began(span) <= one.timestamp for one in span.events],
                len(span.links),
                (span.kind, span.status.status_code, span.status.description),
                (span.resource.attributes.get("service.name"), span.instrumentation_scope),
                (span.dropped_attributes, span.dropped_events, span.dropped_links),
            )
        )
    return found


def plain(attributes: Any) -> dict[str, object]:
    """Attributes, with the numbers left out of texts that say how long something took."""
    return {
        key: NUMBER.sub("#", value) if key.startswith("sqlalchemy.finding") else value
        for key, value in attributes.items()
    }


def test_a_recorded_span_has_the_same_json_as_a_live_one(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for records in (False, True):
        monkeypatch.setattr(Traces, "records", records)
        traces = Traces()

        async def story(traces: Traces = traces) -> None:
            with traces.of(twin):
                async with twin.session() as session:
                    session.add_all(authors(1))
                    await session.commit()

        twin.run(story)
        said.append([re.sub(_CHANCE, "#", span.to_json()) for span in traces.spans])
    live, recorded = said
    assert recorded == live
    assert len(live) == 3


def test_while_a_statement_runs_the_innermost_span_is_current_and_after_it_the_callers(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Traces, "records", True)
    traces = Traces()
    inner: list[SpanContext] = []
    engine = twin.engine.sync_engine if isinstance(twin.engine, AsyncEngine) else twin.engine

    def note(*_: Any) -> None:
        inner.append(trace.get_current_span().get_span_context())

    async def story() -> None:
        with traces.of(twin), traces.caller() as caller:
            before = context_api.get_current()
            async with twin.session() as session:
                event.listen(engine, "before_cursor_execute", note)
                await session.scalars(select(Author))
                event.remove(engine, "before_cursor_execute", note)
                assert context_api.get_current() is before
                assert trace.get_current_span() is caller

    twin.run(story)
    assert inner == [context(traces.named("transaction"))]


def test_what_was_not_sampled_is_not_computed(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Traces, "records", True)
    monkeypatch.setattr(RecordedSpans, "_began", None)
    traces = Traces(sampler=ALWAYS_OFF)
    assert traces.recorder is not None

    async def story() -> None:
        with traces.of(twin, statement_spans=True):
            async with twin.session() as session:
                session.add_all(authors(1, books_each=1))
                await session.commit()
                found = (await session.scalars(select(Author))).one()
            with pytest.raises(DetachedInstanceError):
                found.books  # noqa: B018 - reading it is the point

    twin.run(story)
    assert traces.spans == []


@pytest.mark.parametrize("records", [False, True], ids=["live", "recorded"])
@pytest.mark.parametrize("is_instrumented", [False, True])
def test_what_is_not_sampled_is_in_the_context_only_for_other_instrumentations(
    twin: Twin, records: bool, is_instrumented: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Traces, "records", records)
    instrumentor = "opentelemetry.instrumentation.instrumentor"
    if is_instrumented:
        monkeypatch.setitem(sys.modules, instrumentor, sys)
    else:
        monkeypatch.delitem(sys.modules, instrumentor, raising=False)
    seen: list[tuple[bool, bool]] = []
    engine = twin.engine.sync_engine if isinstance(twin.engine, AsyncEngine) else twin.engine

    def note(*_: Any) -> None:
        current = trace.get_current_span().get_span_context()
        seen.append((current.is_valid, current.trace_flags.sampled))

    async def story() -> None:
        with Traces(sampler=ALWAYS_OFF).of(twin):
            async with twin.session() as session:
                event.listen(engine, "before_cursor_execute", note)
                await session.scalars(select(Author))
                event.remove(engine, "before_cursor_execute", note)

    twin.run(story)
    assert seen == [(is_instrumented, False)]


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    "sampler",
    [
        ALWAYS_ON,
        ALWAYS_OFF,
        ParentBased(ALWAYS_ON),
        ParentBased(ALWAYS_OFF),
        TraceIdRatioBased(0.5),
        ParentBased(TraceIdRatioBased(0.5)),
    ],
    ids=lambda sampler: sampler.get_description().partition(",")[0],
)
@pytest.mark.parametrize("trace_id", [0, 1, 2**128 - 1])
def test_a_sampler_decides_as_it_does_of_live_spans(
    sampler: Sampler, trace_id: int, remote: bool, flags: int
) -> None:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    made = recorder(provider, [])
    assert made is not None
    parent = SpanContext(trace_id, 7, is_remote=remote, trace_flags=TraceFlags(flags))
    within = trace.set_span_in_context(NonRecordingSpan(parent))
    if trace_id == 0 and "TraceIdRatioBased" in sampler.get_description():
        pytest.skip("a trace that begins here has another id for each")
    live = provider.get_tracer("live").start_span("one", within, attributes={"a": 1})
    own, above, is_sampled = made.begin("one", within, {"a": 1})
    expected = live.get_span_context()
    assert own.trace_id == expected.trace_id or trace_id == 0
    assert own.span_id != 7
    assert (own.trace_flags, own.is_remote, own.trace_state) == (
        expected.trace_flags,
        expected.is_remote,
        expected.trace_state,
    )
    assert above == getattr(live, "parent", above)
    assert is_sampled == live.is_recording()
    if live.is_recording():
        below = provider.get_tracer("live").start_span("two", trace.set_span_in_context(live))
        child, expected = made.child(own), below.get_span_context()
        assert below.is_recording()
        assert type(child) is SpanContext
        assert child == SpanContext(
            own.trace_id, child.span_id, False, expected.trace_flags, expected.trace_state
        )


class Custom(Sampler):
    def should_sample(self, *arguments: Any, **keywords: Any) -> Any:
        return ALWAYS_ON.should_sample(*arguments, **keywords)

    def get_description(self) -> str:
        return "AlwaysOnSampler"


class Noting(SpanProcessor):
    def on_start(self, span: object, parent_context: object = None) -> None:
        """Notes it."""


def test_links_to_a_session_that_is_never_sampled_have_the_same_ids() -> None:
    exported = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exported)
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    provider.add_span_processor(processor)
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Author.metadata.create_all(engine)
    maker = sessionmaker(engine)
    with maker() as session:
        session.add(Author(name="Le Guin"))
        session.commit()
    sends = Exporter(tracer_provider=provider, span_recorder=recorder(provider, [processor]))
    with instrument(maker, exporter=sends):
        with maker() as session:
            author = session.scalars(select(Author)).one()
            session.expire(author)
        caller = NonRecordingSpan(SpanContext(7, 8, True, TraceFlags(TraceFlags.SAMPLED)))
        with trace.use_span(caller):
            for _ in range(2):
                with pytest.raises(DetachedInstanceError):
                    author.name  # noqa: B018 - refused
    spans = exported.get_finished_spans()
    assert [span.name for span in spans] == ["detached_load", "detached_load"]
    (first,), (second,) = (span.links for span in spans)
    assert first.context.is_valid
    assert first.context == second.context
    engine.dispose()


@pytest.mark.parametrize(
    "sampler",
    [
        Custom(),
        ParentBased(ALWAYS_ON, local_parent_sampled=ALWAYS_OFF),
        ParentBased(ALWAYS_ON, local_parent_sampled=TraceIdRatioBased(0.5)),
        StaticSampler(Decision.RECORD_ONLY),
        ParentBased(StaticSampler(Decision.RECORD_ONLY)),
        ParentBased(ALWAYS_ON, remote_parent_sampled=StaticSampler(Decision.RECORD_ONLY)),
    ],
)
def test_with_another_sampler_spans_are_live(sampler: Sampler) -> None:
    assert recorder(TracerProvider(sampler=sampler, shutdown_on_exit=False), []) is None


def test_with_a_processor_that_hears_of_the_start_spans_are_live() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    simple = SimpleSpanProcessor(InMemorySpanExporter())
    assert recorder(provider, [simple]) is not None
    assert recorder(provider, [simple, Noting()]) is None


@pytest.mark.parametrize(
    "variable",
    [
        "OTEL_ATTRIBUTE_COUNT_LIMIT",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
        "OTEL_SPAN_EVENT_COUNT_LIMIT",
        "OTEL_SPAN_LINK_COUNT_LIMIT",
        "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
        "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED",
        "OTEL_SDK_DISABLED",
    ],
)
def test_where_the_environment_sets_limits_spans_are_live(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "3" if "LIMIT" in variable else "true")
    assert recorder(TracerProvider(shutdown_on_exit=False), []) is None


def test_limits_of_the_environment_hold(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2")

    async def story() -> None:
        with capture(twin.factory) as told:
            async with twin.session() as session:
                await session.scalars(select(Author))
        assert [len(span.attributes or {}) for span in told.spans] == [2, 2]

    twin.run(story)


@pytest.mark.parametrize("records", [False, True], ids=["live", "recorded"])
def test_more_events_than_a_span_may_have_drop_the_first(
    twin: Twin, records: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Traces, "records", records)
    traces = Traces()

    async def story() -> None:
        with traces.of(twin, detectors=(Many(),)):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.flush()

    twin.run(story)
    flush = traces.named("flush")
    assert (len(flush.events), flush.dropped_events) == (SpanLimits().max_events, 300 - 128)
    assert (flush.events[-1].attributes or {})["sqlalchemy.finding.message"] == "299"


class Many:
    """A detector that finds more in each flush than a span may have events."""

    facts = (FlushCompleted,)

    def memory(self) -> None:
        """It remembers nothing."""

    def judge(self, fact: FlushCompleted, record: Any, memory: None) -> Iterator[Finding]:
        """Numbered findings."""
        for number in range(300):
            yield Finding(
                id="many",
                severity="info",
                message=str(number),
                remedy="",
                site=fact.site,
                session_id="",
                session_name="",
                session_site=None,
            )


# Where it is done.


def test_the_otlp_exporter_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    exporter = find_exporter("otlp")(Settings()).opened()
    try:
        assert exporter.wants_spans
        assert exporter.span_recorder is not None
    finally:
        exporter.close()


def test_the_providers_of_the_application_get_live_spans() -> None:
    assert find_exporter("providers")(Settings()).opened().span_recorder is None


def test_a_batch_processor_is_known() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    processor = BatchSpanProcessor(ConsoleSpanExporter())
    provider.add_span_processor(processor)
    try:
        assert recorder(provider, [processor]) is not None
    finally:
        provider.shutdown()


def test_capture_records() -> None:
    assert is_recorded(Captured())


@pytest.mark.parametrize(
    "name",
    [
        "always_on",
        "always_off",
        "parentbased_always_on",
        "parentbased_always_off",
        "traceidratio",
        "parentbased_traceidratio",
    ],
)
def test_each_sampler_that_the_environment_can_name_is_known(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    assert is_recorded(Captured())


def test_an_open_span_keeps_no_more_events_than_are_exported() -> None:
    one = RecordedSpan("session", SpanContext(1, 1, is_remote=False), None, None, 0)
    for number in range(MOST_EVENTS + 3):
        one.add_event(RecordedEvent("event", {"number": number}, number))
    assert len(one.events) == MOST_EVENTS
    assert one.events[0].at == 3
    assert one.dropped_events == 3


FORK = """
import os
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from session_tracer import instrument
from session_tracer.exporter import Exporter
from session_tracer.exporters.recorded_spans import recorder

provider, ended = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
processor = SimpleSpanProcessor(ended)
provider.add_span_processor(processor)
made = recorder(provider, [processor])
assert made is not None
maker = sessionmaker(create_engine("sqlite://"))
with instrument(
    maker, exporter=Exporter(tracer_provider=provider, span_recorder=made if RECORDED else None)
):
    session = maker()
    session.execute(text("SELECT 1"))
    parents = provider.resource
    if child := os.fork():
        os.waitpid(child, 0)
    else:
        session.commit()
        session.execute(text("SELECT 1"))
        session.close()
        assert provider.resource != parents
        print([(span.name, span.resource == parents) for span in ended.get_finished_spans()])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("is_recorded", [False, True], ids=["live", "recorded"])
def test_a_span_has_the_resource_of_the_process_in_which_it_began(is_recorded: bool) -> None:
    done = subprocess.run(
        [
            # From Python 3.13 on, sqlite3 warns of the connections that the child leaves open.
            *(sys.executable, "-W", "error", "-W", "ignore::ResourceWarning"),
            *("-c", FORK.replace("RECORDED", str(is_recorded))),
        ],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (
        "[('transaction', True), ('transaction', False), ('session default', True)]\n",
        "",
    )

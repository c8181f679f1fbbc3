"""Other tracers of SQLAlchemy. Each exports nothing and has to prove that it traces.

Each is imported in the process in which it is timed, because some change the process on import.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler, SamplingResult

from benchmarks.variants import Factory, InForce, Variant, engine_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class Seen:
    """Counts the UPDATE statements that a tracer traced."""

    def __init__(self) -> None:
        self.statements = 0

    def take(self, text: object) -> None:
        self.statements += "UPDATE" in str(text)

    def prove(self) -> None:
        assert self.statements, "it is active, and the UPDATE of W1 was not traced"


class SeenSpans(SpanProcessor):
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def on_end(self, span: ReadableSpan) -> None:
        self._seen.take(span.name)


class NeverSampled(Sampler):
    """Decides as ALWAYS_OFF does, and counts the spans that it is called for."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def should_sample(self, *arguments: Any, **named: Any) -> SamplingResult:
        self._seen.take(arguments[2] if len(arguments) > 2 else named["name"])
        return ALWAYS_OFF.should_sample(*arguments, **named)

    def get_description(self) -> str:
        return "never sampled, and counted"


@contextmanager
def opentelemetry_sampled(factory: Factory) -> Iterator[InForce]:
    seen = Seen()
    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(SeenSpans(seen))
    with opentelemetry_on(factory, provider):
        yield InForce(seen.prove)


@contextmanager
def opentelemetry_not_sampled(factory: Factory) -> Iterator[InForce]:
    seen = Seen()
    with opentelemetry_on(
        factory, TracerProvider(sampler=NeverSampled(seen), shutdown_on_exit=False)
    ):
        yield InForce(seen.prove)


@contextmanager
def opentelemetry_on(factory: Factory, provider: TracerProvider) -> Iterator[None]:
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

    instrumentor = SQLAlchemyInstrumentor()
    # Without skip_dep_check it rejects SQLAlchemy 2.1 with a warning and does nothing.
    instrumentor.instrument(
        engine=engine_of(factory), tracer_provider=provider, skip_dep_check=True
    )
    try:
        yield
    finally:
        instrumentor.uninstrument()


@contextmanager
def logfire(factory: Factory) -> Iterator[InForce]:
    import logfire

    seen = Seen()
    logfire.configure(
        send_to_logfire=False,
        console=False,
        metrics=False,
        inspect_arguments=False,
        additional_span_processors=[SeenSpans(seen)],
    )
    logfire.instrument_sqlalchemy(engine=engine_of(factory), skip_dep_check=True)
    yield InForce(seen.prove)


@contextmanager
def sentry(_factory: Factory) -> Iterator[InForce]:
    import sentry_sdk
    from sentry_sdk.integrations.sqlalchemy import SqlalchemyIntegration

    seen = Seen()

    def drop(event: Any, _hint: object) -> None:
        for span in event["spans"]:
            seen.take(span["description"])

    sentry_sdk.init(
        dsn="http://public@127.0.0.1:9/1",
        traces_sample_rate=1.0,
        integrations=[SqlalchemyIntegration()],
        default_integrations=False,
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        send_client_reports=False,
        # A block can have more spans than the thousand that are kept by default.
        _experiments={"max_spans": 1_000_000},
        before_send_transaction=drop,
    )
    yield InForce(seen.prove)


@contextmanager
def sentry_transaction() -> Iterator[None]:
    """A transaction; without one, a statement has no span."""
    import sentry_sdk

    with sentry_sdk.start_transaction(op="benchmark", name="block"):
        yield


@contextmanager
def ddtrace(factory: Factory) -> Iterator[InForce]:
    for name in ("INSTRUMENTATION_TELEMETRY", "REMOTE_CONFIGURATION", "CRASHTRACKING"):
        os.environ[f"DD_{name}_ENABLED"] = "false"
    from ddtrace.contrib.sqlalchemy import trace_engine
    from ddtrace.trace import tracer

    seen = Seen()

    class Nowhere:
        """Receives ddtrace's finished traces and drops them."""

        def recreate(self, **_settings: object) -> Nowhere:
            return self

        def stop(self, timeout: float | None = None) -> None:
            pass

        def write(self, spans: Any = None) -> None:
            for span in spans or ():
                seen.take(span.resource)

        def flush_queue(self) -> None:
            pass

    tracer._span_aggregator.writer = Nowhere()
    trace_engine(engine_of(factory))
    yield InForce(seen.prove)


@contextmanager
def ddtrace_request() -> Iterator[None]:
    """A span; without one, each statement would be a trace that is sampled and finished."""
    from ddtrace.trace import tracer

    with tracer.trace("block"):
        yield


PEERS = (
    Variant(
        "OpenTelemetry", "opentelemetry-instrumentation-sqlalchemy, sampled", opentelemetry_sampled
    ),
    Variant("OpenTelemetry off", "the same, not sampled", opentelemetry_not_sampled),
    Variant("ddtrace", "in a span that is not timed", ddtrace, ddtrace_request),
    Variant("Sentry", "sentry-sdk, in a transaction that is not timed", sentry, sentry_transaction),
    Variant("Logfire", "logfire, sampled", logfire),
)

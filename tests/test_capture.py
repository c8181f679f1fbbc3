"""That a capture collects everything, nests, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import Exporter, Retraction, instrument
from session_tracer.testing import Captured, capture
from tests.fickle import Fickle
from tests.library import Author, Base
from tests.outline import outline
from tests.test_uninstrument import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.twins import Twin


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def maker(engine: Engine) -> Any:
    return sessionmaker(engine)


def read(maker: Any) -> None:
    with maker() as session:
        session.scalars(select(Author)).all()


def write_and_lose(maker: Any) -> None:
    """One unit of work, and a load that the object is refused afterwards."""
    author = Author(name=f"Ada {uuid4()}")
    with maker() as session:
        session.add(author)
        session.commit()
    with pytest.raises(DetachedInstanceError):
        _ = author.books


def parents(spans: list[ReadableSpan]) -> dict[str, str | None]:
    """Each span's parent, by name."""
    by_id = {span.context.span_id: span.name for span in spans if span.context}
    return {span.name: by_id[span.parent.span_id] if span.parent else None for span in spans}


def test_it_collects_every_signal(maker: Any) -> None:
    with capture(maker, name="library") as captured:
        write_and_lose(maker)
    assert outline(captured.facts) == [
        "session opened",
        "transaction began",
        "commit flush began",
        "connection acquired",
        "INSERT authors",
        "flushed +1 Author",
        "connection released",
        "transaction committed",
        "session close: committed",
        "detached relationship Author.books after close",
    ]
    assert [summary.outcome for summary in captured.sessions] == ["committed"]
    assert [finding.id for finding in captured.findings] == ["detached-lazy-load"]
    assert parents(captured.spans) == {
        "flush": "transaction",
        "transaction": "session library",
        "session library": None,
        "detached_load": None,
    }
    assert [(event["level"], event["event"]) for event in captured.logs] == [
        ("debug", "session.opened"),
        ("debug", "flush.completed"),
        ("debug", "transaction.ended"),
        ("info", "session.closed"),
        ("error", "finding"),
    ]
    values = {
        name: [point.value for point in points if hasattr(point, "value")]
        for name, points in captured.metrics.items()
    }
    assert values["sqlalchemy.findings"] == values["sqlalchemy.lazy_loads"] == [1]
    assert {event["session_id"] for event in captured.logs} == {captured.sessions[0].id}


def test_it_collects_retractions(maker: Any) -> None:
    with capture(maker, detectors=[Fickle()]) as captured:
        read(maker)
    (finding,) = captured.findings
    assert captured.retractions == [
        Retraction(
            finding=finding,
            message="the transaction ended after all",
            evidence={"lasted_ms": 1.5, "written": {"Author": 2}},
        )
    ]
    # It was true when it was reported.
    (summary,) = captured.sessions
    assert summary.findings == (finding,)
    (counted,) = captured.metrics["sqlalchemy.findings"]
    assert counted.value == 1


def test_nothing_happened_and_nothing_is_told(maker: Any) -> None:
    with capture(maker) as captured:
        pass
    assert (
        captured.facts,
        captured.logs,
        captured.findings,
        captured.sessions,
        captured.spans,
    ) == ([],) * 5
    assert captured.retractions == []


def test_it_can_be_read_while_it_runs_and_afterwards(maker: Any) -> None:
    def sizes(captured: Captured) -> tuple[int, ...]:
        points = captured.metrics.get("sqlalchemy.session.duration", [])
        return (
            len(captured.facts),
            len(captured.logs),
            len(captured.sessions),
            len(captured.spans),
            len(captured.findings),
            sum(point.count for point in points),
        )

    seen = []
    with capture(maker) as captured:
        seen.append(sizes(captured))
        write_and_lose(maker)
        seen.append(sizes(captured))
    seen.append(sizes(captured))
    assert seen == [(0, 0, 0, 0, 0, 0), (10, 5, 1, 4, 1, 1), (10, 5, 1, 4, 1, 1)]


def test_summaries_come_in_the_order_in_which_the_sessions_were_opened(maker: Any) -> None:
    with capture(maker) as captured:
        outer, inner = maker(), maker()
        for number, session in enumerate((inner, outer)):
            session.info["number"] = number
            session.add(Author(name=str(number)))
            session.flush() if session is outer else session.scalars(select(Author)).all()
            session.close()
    assert [summary.flushes for summary in captured.sessions] == [1, 1]
    assert [summary.statements for summary in captured.sessions] == [1, 2]


def test_captures_nest_and_each_has_all_of_its_own_block(twin: Twin) -> None:
    async def unit() -> None:
        async with twin.session() as session:
            (await session.scalars(select(Author))).all()

    async def story() -> None:
        with capture(twin.factory) as outer:
            await unit()
            with capture(twin.factory) as inner:
                await unit()
            await unit()
        for captured, times in ((outer, 3), (inner, 1)):
            assert [summary.statements for summary in captured.sessions] == [1] * times
            assert [span.name for span in captured.spans] == [
                "transaction",
                "session default",
            ] * times
            assert [event["event"] for event in captured.logs] == [
                "session.opened",
                "transaction.ended",
                "session.closed",
            ] * times
            (held,) = captured.metrics["sqlalchemy.connection.held.duration"]
            assert held.count == times

    twin.run(story)


def test_captures_of_different_targets_nest(engine: Engine) -> None:
    orders, stock = sessionmaker(engine), sessionmaker(engine)
    with capture() as everything, capture(orders, name="orders") as of_orders:
        for maker in (orders, stock):
            read(maker)
    assert [summary.name for summary in everything.sessions] == ["default", "default"]
    assert [summary.name for summary in of_orders.sessions] == ["orders"]


def test_captures_may_end_in_any_order(maker: Any) -> None:
    first, second = capture(maker), capture(maker)
    captured = [first.__enter__(), second.__enter__()]
    first.__exit__(None, None, None)
    with maker() as session:
        session.connection()
    second.__exit__(None, None, None)
    assert [len(one.sessions) for one in captured] == [0, 1]


def test_it_collects_from_debug_up_unless_asked_for_less(maker: Any) -> None:
    with capture(maker) as all_of_it, capture(maker, log_level="info") as less:
        write_and_lose(maker)
    assert [event["event"] for event in less.logs] == ["session.closed", "finding"]
    assert len(all_of_it.logs) == 5


def test_it_takes_the_settings_as_instrument_does(
    maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSION_TRACER_STATEMENT_SPANS", "true")
    with capture(maker) as captured, capture(maker, statement_spans=False) as overridden:
        read(maker)
    assert [span.name for span in captured.spans] == [
        "SELECT authors",
        "transaction",
        "session default",
    ]
    assert [span.name for span in overridden.spans] == ["transaction", "session default"]


def test_an_error_in_the_block_ends_it_and_goes_on(maker: Any, engine: Engine) -> None:
    read(maker)
    before = snapshot(maker, engine)
    captures: list[Captured] = []

    def fail() -> None:
        with capture(maker) as captured:
            captures.append(captured)
            read(maker)
            raise LookupError("other")

    with pytest.raises(LookupError, match="other"):
        fail()
    (captured,) = captures
    assert [summary.outcome for summary in captured.sessions] == ["closed"]
    assert snapshot(maker, engine) == before


def test_it_leaves_nothing_behind(maker: Any, engine: Engine) -> None:
    write_and_lose(maker)
    before = snapshot(maker, engine)
    with capture(maker), capture():
        write_and_lose(maker)
    assert snapshot(maker, engine) == before


def test_what_is_observed_is_collected_too(maker: Any) -> None:
    observed = {
        "sqlalchemy.session.open",
        "sqlalchemy.session.oldest.age",
        "sqlalchemy.transaction.open",
        "sqlalchemy.transaction.oldest.age",
    }
    with capture(maker, name="shop") as captured, maker() as session:
        session.scalars(select(Author)).all()
        for name in observed:
            (point,) = captured.metrics[name]
            assert point.value > 0
            assert dict(point.attributes) == {"sqlalchemy.session.name": "shop"}
    # As it was when the block ended: nothing was open any more.
    assert {name: [point.value for point in captured.metrics[name]] for name in observed} == {
        name: [0] for name in observed
    }
    assert "sqlalchemy.session.duration" in captured.metrics


@pytest.mark.parametrize(
    ("target", "options", "error"),
    [("orders", {}, TypeError), (None, {"ignore": {"n-plus-on"}}, ValueError)],
)
def test_what_is_refused_leaves_no_provider_and_no_thread(
    target: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    def providers() -> int:
        gc.collect()
        return sum(isinstance(one, (MeterProvider, TracerProvider)) for one in gc.get_objects())

    before, threads, patched = providers(), set(threading.enumerate()), snapshot()
    with pytest.raises(error), capture(target, **options):
        pass
    assert providers() == before
    assert set(threading.enumerate()) <= threads
    assert snapshot() == patched


def test_it_sets_no_global_provider_and_uses_none(maker: Any) -> None:
    before = (
        trace.get_tracer_provider(),
        metrics.get_meter_provider(),
        _logs.get_logger_provider(),
        trace.get_current_span(),
    )
    with capture(maker):
        write_and_lose(maker)
    after = (
        trace.get_tracer_provider(),
        metrics.get_meter_provider(),
        _logs.get_logger_provider(),
        trace.get_current_span(),
    )
    assert all(one is other for one, other in zip(before, after, strict=True))


CONFIGURED = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from session_tracer.testing import capture

spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
provider, meters = TracerProvider(), MeterProvider([reader])
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(meters)
engine = create_engine("sqlite://")
maker = sessionmaker(engine)
with trace.get_tracer("other").start_as_current_span("request"):
    with capture(maker) as captured:
        with maker() as session:
            session.execute(text("SELECT 1"))
print([span.name for span in captured.spans], [span.name for span in spans.get_finished_spans()])
print("sqlalchemy.session.duration" in captured.metrics, reader.get_metrics_data())
print(trace.get_tracer_provider() is provider, metrics.get_meter_provider() is meters)
(request,) = spans.get_finished_spans()
print({span.context.trace_id == request.context.trace_id for span in captured.spans})
engine.dispose()
"""


def test_it_leaves_configured_providers_alone_and_joins_the_callers_trace() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", CONFIGURED],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.splitlines() == [
        "['transaction', 'session default'] ['request']",
        "True None",
        "True True",
        "{True}",
    ]
    assert ran.stderr == ""


def test_an_instrumented_factory_still_reports_to_its_own_exporter(maker: Any) -> None:
    names: list[str] = []
    exporter = Exporter(on_session=lambda summary: names.append(summary.name))
    with instrument(maker, name="other", exporter=exporter), capture(maker, name="own") as captured:
        read(maker)
    assert (names, [summary.name for summary in captured.sessions]) == (["other"], ["own"])


def test_a_session_lost_to_the_garbage_collector_is_among_the_summaries(maker: Any) -> None:
    with capture(maker) as captured:
        maker().connection()
        gc.collect()
        outcomes = [summary.outcome for summary in captured.sessions]
    assert outcomes == ["abandoned"]


def test_sessions_of_many_tasks_are_kept_apart(twin: Twin) -> None:
    async def unit(number: int) -> None:
        async with twin.session() as session:
            for _ in range(number):
                (await session.scalars(select(Author))).all()

    async def story() -> None:
        with capture(twin.factory) as captured:
            if twin.is_async:
                await asyncio.gather(*(unit(number) for number in range(1, 5)))
            else:
                for number in range(1, 5):
                    await unit(number)
        assert sorted(summary.statements for summary in captured.sessions) == [1, 2, 3, 4]

    twin.run(story)

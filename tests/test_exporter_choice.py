"""Tests which exporter is used where none is named, several together, and none at all."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from session_tracer import Exporter, instrument
from session_tracer.runtime import degraded
from tests.shop import SHOP
from tests.test_uninstrument import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A program of its own: which exporter fits is a matter of the whole process. Each session of
# `work()` has one finding, `large-result` at the line of the SELECT.
WORK = """
with SessionLocal.begin() as session:
    session.execute(insert(Book), [{} for _ in range(5)])

def work(times=1):
    for _ in range(times):
        with SessionLocal() as session:
            session.scalars(select(Book)).all()

def traced(**options):
    options = {"large_result_objects": 2, "severities": {"large-result": "warning"}} | options
    return instrument(SessionLocal, name="shop", **options)

def providers():
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider(resource=Resource.create({"service.name": "till"}))
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([reader]))
    return spans, reader

def sessions(spans):
    return sum(span.name == "session shop" for span in spans.get_finished_spans())

def counted(reader):
    data = reader.get_metrics_data()
    return sum(
        point.count
        for of_resource in (data.resource_metrics if data else ())
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        if metric.name == "sqlalchemy.session.duration"
        for point in metric.data.data_points
    )
"""
# What Python's logging shows of a finding where nothing configures it.
FINDING = "large-result at <string>:"


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that begins with SHOP and WORK, with nothing of this environment that decides."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "SESSION_TRACER_"))
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHOP + WORK + program],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


# Where none is named.


def test_without_a_terminal_findings_go_to_pythons_logging() -> None:
    done = run("traced(); work()")
    (line,) = done.stderr.splitlines()
    assert line.startswith(FINDING)
    assert "Remedy: " in line


def test_on_a_terminal_sessions_are_shown() -> None:
    done = run("sys.stderr.isatty = lambda: True; traced().flush(); work()", NO_COLOR="1")
    assert "session shop" in done.stderr
    assert "◆" in done.stderr or "▲" in done.stderr
    assert FINDING not in done.stderr


def test_a_configured_structlog_is_all_there_is_even_on_a_terminal() -> None:
    program = """
import structlog
structlog.configure(processors=[structlog.processors.JSONRenderer()])
sys.stderr.isatty = lambda: True
traced(); work()
"""
    done = run(program)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (event,) = [event for event in events if event["event"] == "finding"]
    assert event["finding_id"] == "large-result"
    assert event["site"].startswith("<string>:")
    assert event["remedy"]
    assert done.stderr == ""


def test_structlog_that_is_configured_later_takes_over() -> None:
    program = """
traced(repeat_finding_seconds=1e-9); work()
import structlog
structlog.configure(processors=[structlog.processors.JSONRenderer()])
work()
"""
    done = run(program)
    assert done.stderr.count(FINDING) == 1
    events = [json.loads(line) for line in done.stdout.splitlines()]
    found = [event["finding_id"] for event in events if event["event"] == "finding"]
    assert found == ["large-result"]


def test_an_endpoint_without_the_extra_logs_what_to_install_and_degrades() -> None:
    program = """
sys.modules["opentelemetry.exporter.otlp.proto.http"] = None
traced(); work(3)
"""
    done = run(program, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    warning, *findings = done.stderr.splitlines()
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in warning
    assert "pip install 'session-tracer[otlp]'" in warning
    # The first, and as the program ends, what was held back.
    assert [line[: len(FINDING)] for line in findings] == [FINDING, FINDING]


def test_an_endpoint_with_a_protocol_that_is_not_known_degrades() -> None:
    done = run(
        "traced(); work()",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/json",
    )
    assert "Invalid OTEL_EXPORTER_OTLP_PROTOCOL='http/json'" in done.stderr
    assert FINDING in done.stderr


def test_an_endpoint_without_logs_still_has_a_place_for_findings() -> None:
    done = run(
        "traced(); work()",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    assert FINDING in done.stderr


@pytest.mark.parametrize("when", ["before", "after"])
def test_providers_that_are_there_before_the_first_session_have_everything(when: str) -> None:
    before, after = ("spans, reader = providers()", "") if when == "before" else ("", "")
    after = after or ("" if when == "before" else "spans, reader = providers()")
    program = f"""
{before}
traced()
{after}
work(2)
print(sessions(spans), counted(reader))
"""
    done = run(program, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert done.stdout == "2 2\n"
    # There is no logger provider, so findings go to logging; and nothing else is sent anywhere.
    assert done.stderr.count(FINDING) == 2
    assert len(done.stderr.splitlines()) == 2


def test_later_still_spans_and_metrics_move_and_a_line_reports_it() -> None:
    program = """
import threading
traced(repeat_finding_seconds=1e-9); work(3)
Other = sessionmaker(engine)
instrument(Other, name="other")
Other().close()  # the only session of its factory
before = {thread.name for thread in threading.enumerate()}
spans, reader = providers()
work(2)
print(sessions(spans), counted(reader))
for _ in range(100):
    after = {thread.name for thread in threading.enumerate()}
    if "OtelBatchSpanRecordProcessor" not in after:
        break
    time.sleep(0.05)
print("OtelBatchSpanRecordProcessor" in before, "OtelBatchSpanRecordProcessor" in after)
"""
    done = run(program, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert done.stdout == "2 2\nTrue False\n"
    assert done.stderr.count("configured OpenTelemetry after its first sessions") == 1


def test_a_session_that_is_open_when_the_exporters_change_ends_well() -> None:
    program = """
traced()
session = SessionLocal()
session.scalars(select(Book)).all()
spans, reader = providers()
work()
session.close()
from session_tracer import live_sessions
print(sessions(spans), live_sessions())
"""
    assert run(program).stdout == "1 []\n"


@pytest.mark.parametrize("options", ["", 'exporter="providers"'])
def test_what_is_open_at_the_end_is_reported_before_the_providers_are_shut_down(
    options: str,
) -> None:
    program = f"""
traced({options})
spans, reader = providers()
left_open = SessionLocal()
left_open.scalars(select(Book)).all()
atexit._run_exitfuncs()
print(sessions(spans))
"""
    assert run(program).stdout == "1\n"


# Providers of any class.


def test_a_provider_that_does_not_follow_the_api_is_named_once() -> None:
    program = """
from opentelemetry import metrics, trace
class Meters(metrics.MeterProvider):
    __slots__ = ()
    __hash__ = None
    def get_meter(self, name):
        raise RuntimeError("closed")
class Tracers(trace.TracerProvider):
    __slots__ = ()
    __hash__ = None
    def get_tracer(self, name):
        raise RuntimeError("closed")
metrics.set_meter_provider(Meters())
trace.set_tracer_provider(Tracers())
traced(); work(3)
"""
    done = run(program)
    meters, tracers, finding, held_back = done.stderr.splitlines()
    assert "metrics are not reported" in meters
    assert "__main__.Meters" in meters
    assert "spans are not reported" in tracers
    assert finding.startswith(FINDING)
    assert held_back.startswith(FINDING)
    assert held_back.endswith("(1 more since the last such line)")


def test_a_providers_class_need_not_be_hashable() -> None:
    program = """
from dataclasses import dataclass
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
@dataclass
class Meters(metrics.MeterProvider):
    real: MeterProvider
    def get_meter(self, *args, **kw):
        return self.real.get_meter(*args, **kw)
reader = InMemoryMetricReader()
metrics.set_meter_provider(Meters(MeterProvider([reader])))
tracing = traced(); work(); tracing.uninstrument()
traced(); work(); print(counted(reader))
"""
    assert run(program).stdout == "2\n"


# Several at once, and what carries no findings.


@pytest.fixture
def factory() -> Iterator[sessionmaker[Session]]:
    engine = create_engine("sqlite://")
    yield sessionmaker(engine)
    engine.dispose()


@pytest.fixture(autouse=True)
def _warned_of_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degraded, "_WARNED", set())
    for name in list(os.environ):
        if name.startswith(("OTEL_", "SESSION_TRACER_")):
            monkeypatch.delenv(name)


def lose_changes(factory: sessionmaker[Session]) -> None:
    """A session with one finding, `reused-after-close` apart: a connection held for too long."""
    with factory() as session:
        for _ in range(5):
            session.execute(text("SELECT name FROM sqlite_master"))


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "session_tracer" and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_several_exporters_each_get_what_they_carry(
    factory: sessionmaker[Session],
    tmp_path: Path,
    given: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "events.jsonl"
    names = "logging, jsonl,prometheus"
    chosen: dict[str, Any] = {"exporter": names} if given == "argument" else {}
    if given == "environment":
        monkeypatch.setenv("SESSION_TRACER_EXPORTER", names)
    with instrument(factory, jsonl_path=str(path), prometheus_port=0, **chosen):
        lose_changes(factory)
    (finding,) = [
        event
        for event in map(json.loads, path.read_text().splitlines())
        if event["event"] == "finding"
    ]
    (message,) = logged(caplog)
    assert message.startswith(f"{finding['finding_id']} at {finding['site']}: ")
    assert message.endswith(f" Remedy: {finding['remedy']}")


@pytest.mark.parametrize("exporter", ["prometheus", Exporter(), Exporter(on_fact=lambda _: None)])
def test_findings_without_another_place_go_to_logging_alone(
    factory: sessionmaker[Session], exporter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "session_tracer")
    with instrument(factory, exporter=exporter, prometheus_port=0, log_level="debug"):
        lose_changes(factory)
    (message,) = logged(caplog)
    assert message.startswith("repeated-select at ")
    assert "session.closed" not in caplog.text


def test_findings_that_another_exporter_carries_are_not_logged(
    factory: sessionmaker[Session], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with instrument(
        factory,
        exporter="prometheus,jsonl",
        prometheus_port=0,
        jsonl_path=str(tmp_path / "events.jsonl"),
    ):
        lose_changes(factory)
    assert logged(caplog) == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("jsonl,none", "'none' cannot be combined"),
        ("otlp,providers", "both send the spans"),
        (" , ", "expected the name of an exporter"),
        ("jsonl,consol", "Unknown exporter 'consol'"),
    ],
)
def test_names_that_do_not_go_together_are_refused(
    factory: sessionmaker[Session], names: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        instrument(factory, exporter=names)


# What the environment cannot give.


def test_a_port_in_use_is_logged_once_and_findings_go_to_logging(
    factory: sessionmaker[Session], caplog: pytest.LogCaptureFixture
) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for _ in range(2):
            with instrument(factory, exporter="prometheus", prometheus_port=port):
                lose_changes(factory)
    warning, *findings = logged(caplog)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in warning
    assert [message.partition(" ")[0] for message in findings] == ["repeated-select"] * 2


def test_a_path_of_the_environment_that_cannot_be_written_is_logged_once(
    factory: sessionmaker[Session],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SESSION_TRACER_JSONL_PATH", "/no/such/folder/events.jsonl")
    with instrument(factory, exporter="jsonl"):
        lose_changes(factory)
    warning, finding = logged(caplog)
    assert "cannot write to '/no/such/folder/events.jsonl': No such file or directory" in warning
    assert finding.startswith("repeated-select at ")


def test_a_path_in_code_that_cannot_be_written_raises(factory: sessionmaker[Session]) -> None:
    before = snapshot()
    with pytest.raises(FileNotFoundError, match="cannot write to '/no/such"):
        instrument(factory, exporter="jsonl", jsonl_path="/no/such/folder/events.jsonl")
    assert snapshot() == before


# Off.


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ({"exporter": "none"}, {}),
        ({"disabled": True}, {}),
        ({}, {"SESSION_TRACER_DISABLED": "true"}),
        ({}, {"SESSION_TRACER_EXPORTER": "none"}),
        ({}, {"OTEL_SDK_DISABLED": "true"}),
        ({"exporter": "jsonl", "jsonl_path": "/no/such/file"}, {"OTEL_SDK_DISABLED": "True"}),
    ],
)
def test_off_nothing_is_changed(
    factory: sessionmaker[Session],
    options: dict[str, Any],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = snapshot()
    with instrument(factory, name="shop", **options) as instrumentation:
        assert snapshot() == before
        lose_changes(factory)
        instrumentation.flush()
    assert instrumentation.name == "shop"
    assert logged(caplog) == []


def test_a_bad_target_is_refused_even_where_tracing_is_off() -> None:
    with pytest.raises(TypeError, match="sessionmaker"):
        instrument(object(), exporter="none")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

"""Tests of what a real collector receives, and of what happens where there is none."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import _logs, metrics, trace
from opentelemetry.trace import NoOpTracerProvider

from session_tracer.exporter import Exporter
from session_tracer.exporters.otlp import open_exporter
from session_tracer.settings import Settings
from session_tracer.signals import names
from tests.servers.collector import Collector
from tests.signals.telling import put

EVENT: dict[str, Any] = {
    "timestamp": "2026-11-20T12:00:00.000001+00:00",
    "level": "warning",
    "event": "finding",
    "logger": "session_tracer",
    "session_id": "4f1c9a",
    "session_name": "orders-db",
    "finding_id": "n-plus-one",
    "explanation": "Author.books was lazily loaded for 12 authors",
    "count": 12,
    "entity": None,
}


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A service name that no other test's signals bear; the environment configures no more."""
    for variable in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(variable)
    name = f"shop-{uuid.uuid4()}"
    monkeypatch.setenv("OTEL_SERVICE_NAME", name)
    return name


@pytest.fixture(params=["grpc", "http/protobuf"])
def exporter(
    request: pytest.FixtureRequest,
    collector: Collector,
    mark: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Exporter]:
    """Sends to the collector, by either protocol."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
    grpc = request.param == "grpc"
    endpoint = collector.grpc_endpoint if grpc else collector.http_endpoint
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    opened = open_exporter(Settings()).opened()
    yield opened
    opened.close()


def received(collector: Collector, mark: str, last: str) -> str:
    """What the collector wrote down since the test's service name, once it has said `last`."""
    return collector.wait_for(last).partition(f"service.name: Str({mark})")[2]


def test_a_span_arrives(exporter: Exporter, collector: Collector, mark: str) -> None:
    tracer = exporter.tracer_provider.get_tracer("session_tracer")
    with tracer.start_as_current_span(
        f"session {mark}", attributes={"sqlalchemy.session.id": mark}
    ):
        pass
    exporter.flush()
    span = received(collector, mark, f"-> sqlalchemy.session.id: Str({mark})\n")
    assert "telemetry.distro.name: Str(session-tracer)\n" in span
    assert "InstrumentationScope session_tracer" in span
    assert f"    Name           : session {mark}\n" in span


def test_a_metric_arrives(exporter: Exporter, collector: Collector, mark: str) -> None:
    meter = exporter.meter_provider.get_meter("session_tracer")
    meter.create_counter("sqlalchemy.findings", "{finding}").add(3, {"mark": mark})
    exporter.flush()
    metric = received(collector, mark, f"-> mark: Str({mark})\n")
    assert "-> Name: sqlalchemy.findings\n" in metric
    assert "-> Unit: {finding}\n" in metric
    assert "-> IsMonotonic: true\n" in metric


@pytest.mark.parametrize("temporality", ["CUMULATIVE", "DELTA"])
def test_histograms_arrive(
    temporality: str, collector: Collector, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", temporality)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.http_endpoint)
    exporter = open_exporter(Settings()).opened()
    assert exporter.histograms is not None
    series = exporter.histograms.series(names.SESSION_DURATION, {"mark": mark})
    for value in (0.003, 0.004, 40):
        put(exporter.histograms, series, value, (0xABCDEF, 0x1234))
    exporter.close()
    metric = received(collector, mark, f"-> mark: Str({mark})\n")
    assert "InstrumentationScope session_tracer" in metric
    assert "-> Name: sqlalchemy.session.duration\n" in metric
    assert "-> Unit: s\n" in metric
    assert "Count: 3\nSum: 40.007\nMin: 0.003\nMax: 40\n" in metric
    assert "-> Trace ID: 00000000000000000000000000abcdef\n" in metric
    assert f"AGGREGATION_TEMPORALITY_{temporality}" in metric
    assert "session_tracer.histograms" not in metric


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        (
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            "base2_exponential_bucket_histogram",
        ),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "always_on"),
    ],
)
def test_what_buckets_cannot_hold_is_left_to_the_sdk(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    exporter = open_exporter(Settings()).opened()
    try:
        assert exporter.histograms is None
    finally:
        exporter.close()


def test_a_log_event_arrives_as_a_record(
    exporter: Exporter, collector: Collector, mark: str
) -> None:
    exporter.on_log(
        {**EVENT, "mark": mark, "trace_id": "0123456789abcdef" * 2, "span_id": "fedcba9876543210"}
    )
    exporter.flush()
    end = "    Span ID        : fedcba9876543210\nFlags: 1\n"
    trace_id = "    Trace ID       : 0123456789abcdef0123456789abcdef\n"
    output = received(collector, mark, f"-> mark: Str({mark})\n{trace_id}{end}")
    record = output.partition("LogRecord #0\n")[2].partition("Flags: 1\n")[0]
    assert (
        re.sub(r"^ObservedTimestamp: \d+\n", "", record)
        == f"""\
Timestamp: 1795176000000001000
SeverityText: WARN
SeverityNumber: SEVERITY_NUMBER_WARN(13)
EventName: finding
Body: Str(n-plus-one: Author.books was lazily loaded for 12 authors)
Attributes:
     -> session_id: Str(4f1c9a)
     -> sqlalchemy.session.id: Str(4f1c9a)
     -> session_name: Str(orders-db)
     -> sqlalchemy.session.name: Str(orders-db)
     -> finding_id: Str(n-plus-one)
     -> explanation: Str(Author.books was lazily loaded for 12 authors)
     -> count: Int(12)
     -> mark: Str({mark})
    Trace ID       : 0123456789abcdef0123456789abcdef
    Span ID        : fedcba9876543210
"""
    )


def test_a_log_event_without_a_span_takes_nobody_elses(
    exporter: Exporter, collector: Collector, mark: str
) -> None:
    tracer = exporter.tracer_provider.get_tracer("application")
    with tracer.start_as_current_span("request"):
        exporter.on_log({**EVENT, "mark": mark})
    exporter.close()
    output = collector.wait_for(f"-> mark: Str({mark})\n    Trace ID")
    after = output.partition(f"-> mark: Str({mark})\n")[2].splitlines()
    assert [line.partition(":")[2].strip() for line in after[:2]] == ["", ""]


def test_the_globals_are_left_alone(exporter: Exporter) -> None:
    assert trace.get_tracer_provider() is not exporter.tracer_provider
    assert metrics.get_meter_provider() is not exporter.meter_provider
    assert type(_logs.get_logger_provider()).__module__.startswith("opentelemetry._logs")


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "Otel" in thread.name} | {
        thread.name for thread in threading.enumerate() if "otlp" in thread.name
    }


def test_closing_ends_every_thread(exporter: Exporter) -> None:
    assert threads() == {
        "OtelBatchSpanRecordProcessor",
        "OtelBatchLogRecordProcessor",
        "OtelPeriodicExportingMetricReader",
        "session_tracer otlp",
    }
    exporter.close()
    exporter.close()
    assert threads() == set()


@pytest.mark.parametrize("signal", ["TRACES", "METRICS", "LOGS"])
def test_a_signal_may_be_left_out(signal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in {"TRACES", "METRICS", "LOGS"} - {signal}:
        monkeypatch.setenv(f"OTEL_{other}_EXPORTER", "none")
    exporter = open_exporter(Settings()).opened()
    try:
        recording = not isinstance(exporter.tracer_provider, NoOpTracerProvider)
        measuring = "NoOp" not in type(exporter.meter_provider).__name__
        there = {"TRACES": recording, "METRICS": measuring, "LOGS": exporter.wants_logs}
        assert there == {name: name == signal for name in there}
    finally:
        exporter.close()


def test_nothing_is_opened_before_it_is_needed() -> None:
    exporter = open_exporter(Settings())
    assert threads() == set()
    exporter.opened().close()


@pytest.mark.parametrize(
    "variable", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"]
)
def test_an_unknown_protocol_is_refused_by_name(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http/json")
    message = f"Invalid {variable}='http/json': expected grpc or http/protobuf."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        open_exporter(Settings())
    assert threads() == set()


def test_the_sampler_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    exporter = open_exporter(Settings()).opened()
    try:
        span = exporter.tracer_provider.get_tracer("session_tracer").start_span("session")
        assert not span.is_recording()
    finally:
        exporter.close()


@pytest.fixture(params=["grpc", "http/protobuf"])
def silent_collector(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Something listens, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}"
        )
        yield


USE = """
import os, time
from session_tracer.exporters.otlp import open_exporter
from session_tracer.settings import Settings
exporter = open_exporter(Settings()).opened()
exporter.tracer_provider.get_tracer("session_tracer").start_span(os.environ["OTEL_SERVICE_NAME"]).end()
exporter.on_log({"event": "finding"})
"""


@pytest.mark.usefixtures("silent_collector")
def test_closing_takes_bounded_time_though_the_collector_is_silent() -> None:
    script = f"{USE}\nbegan = time.monotonic(); exporter.close(); print(time.monotonic() - began)"
    assert float(run(script).stdout) < 8


@pytest.mark.usefixtures("silent_collector")
def test_a_process_ends_in_bounded_time_though_the_collector_is_silent() -> None:
    began = time.monotonic()
    run(USE)
    assert time.monotonic() - began < 15


def run(script: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, which has to end well."""
    return subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True
    )


def test_what_was_told_is_sent_before_the_process_ends(
    exporter: Exporter, collector: Collector, mark: str
) -> None:
    assert run(USE).stderr == ""
    collector.wait_for(f"    Name           : {mark}\n")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("otlp", "opentelemetry.sdk", "otlp"),
        ("otlp", "opentelemetry.exporter.otlp.proto.http", "otlp"),
        ("prometheus", "opentelemetry.sdk", "prometheus"),
        ("prometheus", "prometheus_client", "prometheus"),
    ],
)
def test_a_missing_extra_says_what_to_install(name: str, module: str, extra: str) -> None:
    script = (
        "import sys\n"
        f"sys.modules[{module!r}] = None\n"
        "from session_tracer.exporter import find_exporter\n"
        "try:\n"
        f"    find_exporter({name!r})\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    output = run(script).stdout
    assert output.endswith(f": pip install 'session-tracer[{extra}]'\n")
    assert module in output

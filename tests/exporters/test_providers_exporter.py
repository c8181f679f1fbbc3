"""Tests of the exporter that uses what the application has configured."""

import json
import logging
import subprocess
import sys

import pytest
from opentelemetry import metrics, trace

from session_tracer.exporters.providers import open_exporter
from session_tracer.settings import Settings

EVENT = {
    "timestamp": "2026-11-20T12:00:00+00:00",
    "level": "warning",
    "event": "finding",
    "name": "clashes with logging's own",
    "session_name": "orders-db",
    "finding_id": "n-plus-one",
    "explanation": "Author.books was lazily loaded for 100 % of the authors",
}


def test_spans_and_metrics_go_to_the_global_providers() -> None:
    exporter = open_exporter(Settings())
    assert exporter.tracer_provider is trace.get_tracer_provider()
    assert exporter.meter_provider is metrics.get_meter_provider()


def test_log_events_go_to_logging_where_there_is_no_logger_provider(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="session_tracer"):
        exporter = open_exporter(Settings())
        exporter.on_log(EVENT)
        exporter.on_log({**EVENT, "level": "info"})
    (record,) = caplog.records
    assert record.name == "session_tracer"
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "n-plus-one: Author.books was lazily loaded for 100 % of the authors"
    )
    fields = {k: v for k, v in vars(record).items() if k.startswith("session_tracer_")}
    assert fields == {f"session_tracer_{key}": value for key, value in EVENT.items()}


def test_a_finding_that_is_retracted_is_logged_as_that(caplog: pytest.LogCaptureFixture) -> None:
    event = {**EVENT, "event": "finding.retracted", "explanation": "it closed after 4 min 31 s"}
    open_exporter(Settings()).on_log(event)
    assert caplog.messages == ["n-plus-one retracted: it closed after 4 min 31 s"]


def test_an_event_without_an_explanation_contains_its_main_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, logger="session_tracer"):
        open_exporter(Settings()).on_log(
            {
                "event": "session.closed",
                "level": "debug",
                "session_name": "orders-db",
                "statements": 15,
                "duration_ms": 48.2,
                "outcome": "committed",
                "error_type": None,
            }
        )
    assert caplog.messages == [
        "session.closed orders-db outcome=committed duration_ms=48.2 statements=15"
    ]


def test_nothing_is_added_to_logging() -> None:
    open_exporter(Settings()).on_log({**EVENT, "level": "debug"})
    assert logging.getLogger("session_tracer").handlers == []


SCRIPT = """
import json
from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from session_tracer.exporters.providers import open_exporter
from session_tracer.settings import Settings

exporter = open_exporter(Settings())  # before the application sets its providers
records, spans = InMemoryLogRecordExporter(), InMemorySpanExporter()
loggers, tracers = LoggerProvider(), TracerProvider()
loggers.add_log_record_processor(SimpleLogRecordProcessor(records))
tracers.add_span_processor(SimpleSpanProcessor(spans))
_logs.set_logger_provider(loggers)
trace.set_tracer_provider(tracers)

exporter.on_log({"event": "finding", "level": "error", "explanation": "why", "finding_id": "id"})
exporter.tracer_provider.get_tracer("session_tracer").start_span("session").end()
exporter.flush()
exporter.close()
trace.get_tracer("application").start_span("afterwards").end()
(record,) = [data.log_record for data in records.get_finished_logs()]
print(json.dumps({
    "record": [record.event_name, record.severity_text, record.body],
    "spans": [span.name for span in spans.get_finished_spans()],
}))
"""


def test_the_applications_providers_get_everything_and_outlive_us() -> None:
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert json.loads(process.stdout) == {
        "record": ["finding", "ERROR", "id: why"],
        "spans": ["session", "afterwards"],
    }
    assert process.stderr == ""

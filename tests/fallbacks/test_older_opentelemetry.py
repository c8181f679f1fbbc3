"""Tests what is reported with the releases of OpenTelemetry that applications have, such as 1.30.

Their logs API takes a whole record, and their trace ids have no flag that says how they are made.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

# In a process of its own: the modules look at OpenTelemetry when they are imported.
OLDER: Final = """
import logging

from opentelemetry import _logs, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

def emit(self, record): raise AssertionError("not called")

_logs.Logger.emit = emit

from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from session_tracer import instrument

logging.basicConfig(level="WARNING", format="%(message)s")
factory = sessionmaker(create_engine("sqlite://"))

def work():
    with factory() as session:
        session.execute(text("SELECT 1"))
        session.commit()
"""
WITH_PROVIDERS: Final = f"""{OLDER}
spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
_logs.set_logger_provider(LoggerProvider())
with instrument(factory, name="shop", exporter="providers", log_level="debug"):
    work()
print([span.name for span in spans.get_finished_spans()])
"""
# The SDK of this release needs the flag to make a span.
BY_OTLP: Final = f"""{OLDER}
if hasattr(trace.TraceFlags, "RANDOM_TRACE_ID"):
    del trace.TraceFlags.RANDOM_TRACE_ID
from session_tracer.exporters import otlp, recorded_spans
from session_tracer.settings import Settings

exporter = otlp.open_exporter(Settings()).opened()
print(exporter.wants_logs, exporter.span_recorder, type(exporter.meter_provider).__name__)
exporter.close()
"""


def run(program: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip(), done.stderr.strip()


def test_the_applications_providers_get_spans_and_logging_the_events() -> None:
    printed, logged = run(WITH_PROVIDERS)
    assert printed == "['transaction', 'session shop']"
    assert "opentelemetry._logs is missing or has changed" in logged


def test_otlp_sends_spans_that_are_live_and_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    printed, logged = run(BY_OTLP)
    assert printed == "False None MeterProvider"
    assert "therefore log events are not sent by OTLP" in logged

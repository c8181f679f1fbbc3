"""Tests that other tools work as ever beside session_tracer, and get what they should.

They reach into the process that imports them, so they are installed apart: `tasks.py test` names
the Python of that environment in `SESSION_TRACER_TEST_NEIGHBOURS`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.shop import SHOP

PYTHON = os.environ.get("SESSION_TRACER_TEST_NEIGHBOURS", "")
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="SESSION_TRACER_TEST_NEIGHBOURS names no Python; tasks.py test sets it"
)

WORK = """
def work():
    with SessionLocal() as session:
        session.merge(Book(id=1))
        session.commit()
"""


def run(program: str, folder: Path, start: str = "") -> Any:
    """What a program prints as JSON, in a folder of its own: `start`, SHOP, WORK and `program`."""
    file = folder / "program.py"
    file.write_text(start + SHOP + WORK + program)
    done = subprocess.run(
        [PYTHON, str(file)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOGFIRE = """
import logfire
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
def configure():
    logfire.configure(
        send_to_logfire=False,
        console=False,
        scrubbing=False,
        additional_span_processors=[SimpleSpanProcessor(spans)],
        metrics=logfire.MetricsOptions(additional_readers=[reader]),
    )
"""


@pytest.mark.parametrize(
    "order",
    ["configure(); instrument(SessionLocal)", "instrument(SessionLocal); configure()"],
    ids=["before", "after"],
)
def test_logfires_providers_get_spans_and_metrics(tmp_path: Path, order: str) -> None:
    program = f"""{LOGFIRE}
{order}
with logfire.span("request"):
    work()
names = [span.name for span in spans.get_finished_spans()]
data = reader.get_metrics_data()
metrics = [m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
print(json.dumps([names, metrics]))
"""
    names, metrics = run(program, tmp_path)
    assert "session default" in names
    assert {"sqlalchemy.session.duration", "sqlalchemy.session.open"} <= set(metrics)


def test_logfire_replaces_nothing_of_session_tracers_with_the_code_of_the_page(
    tmp_path: Path,
) -> None:
    page = (ROOT / "docs" / "deployment.md").read_text().partition("**Logfire.**")[2]
    code = page.partition("```python\n")[2].partition("```")[0]
    kept = code.replace("logfire.configure(", "configure(")
    program = f"""
import gc
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import logfire
spans, logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
def configure(scrubbing):
    logfire.configure(
        send_to_logfire=False,
        console=False,
        scrubbing=scrubbing,
        additional_span_processors=[SimpleSpanProcessor(spans)],
        advanced=logfire.AdvancedOptions(log_record_processors=[SimpleLogRecordProcessor(logs)]),
    )
{kept}
tracing = instrument(SessionLocal)
work()
lost = SessionLocal()
lost.connection()
del lost
gc.collect()
logfire.info("of the application", note="the session of a user")
tracing.flush()
records = [one.log_record for one in logs.get_finished_logs()]
texts = [[one.body, *(one.attributes or {{}}).values()] for one in records]
for span in spans.get_finished_spans():
    texts += [list((one.attributes or {{}}).values()) for one in (span, *span.events)]
texts = [str(text) for every in texts for text in every]
print(json.dumps([text for text in texts if "Scrubbed" in text or "abandoned-session" in text]))
"""
    texts = run(program, tmp_path)
    assert any(text.startswith("abandoned-session at program.py") for text in texts)
    assert [text for text in texts if "Scrubbed" in text] == ["[Scrubbed due to 'session']"]


def test_no_frame_of_session_tracers_is_the_applications_in_sentry(tmp_path: Path) -> None:
    program = """
import sentry_sdk
seen = []
sentry_sdk.init(dsn="http://a@127.0.0.1:9/1", before_send=lambda event, _: seen.append(event))
instrument(SessionLocal, exporter="logging")
work()
try:
    with SessionLocal() as session:
        session.add(Book(id=1))
        session.commit()
except IntegrityError as error:
    sentry_sdk.capture_exception(error)
print(json.dumps([
    [
        value["type"],
        [[one["abs_path"], bool(one.get("in_app"))] for one in value["stacktrace"]["frames"]],
    ]
    for event in seen if "exception" in event
    for value in event["exception"]["values"]
]))
"""
    errors = run(program, tmp_path)
    assert [kind for kind, _ in errors] == ["IntegrityError", "IntegrityError"]
    for _, frames in errors:
        ours = [
            (path, in_app)
            for path, in_app in frames
            if "session_tracer" in path.removeprefix(str(ROOT))
        ]
        assert ours
        assert not any(in_app for _, in_app in ours)
        # Sentry groups issues by the innermost frames.
        assert "sqlalchemy" in frames[-1][0]


def test_a_spy_names_the_line_of_the_application(tmp_path: Path) -> None:
    program = """
from sqlalchemy_spy import Profiler
instrument(SessionLocal, exporter="logging")
with Profiler(engine, capture_stack=True) as profiler:
    work()
print(json.dumps([query.stack[-1].name for query in profiler.queries]))
"""
    assert run(program, tmp_path) == ["work", "work"]


@pytest.mark.parametrize(
    ("ignored", "events"),
    [("", ["pending-rollback"]), ('ignore_logger("session_tracer")', [])],
    ids=["recorded", "ignored"],
)
def test_sentry_records_a_finding_of_severity_error(
    tmp_path: Path, ignored: str, events: list[str]
) -> None:
    program = f"""
import sentry_sdk
from sentry_sdk.integrations.logging import ignore_logger
from sqlalchemy.exc import PendingRollbackError
seen = []
sentry_sdk.init(dsn="http://a@127.0.0.1:9/1", before_send=lambda event, _: seen.append(event))
{ignored}
instrumentation = instrument(SessionLocal, exporter="logging")
work()
with SessionLocal() as session:
    session.add(Book(id=1))
    try:
        session.commit()
    except IntegrityError:
        pass
    try:
        session.connection()
    except PendingRollbackError:
        pass
instrumentation.flush()
print(json.dumps([
    event["logentry"]["message"].partition(" ")[0] for event in seen if "logentry" in event
]))
"""
    assert run(program, tmp_path) == events


def test_datadogs_spans_of_statements_are_children_of_session_tracers(tmp_path: Path) -> None:
    program = """
from ddtrace.trace import TraceFilter, tracer
seen = []
class Keep(TraceFilter):
    def process_trace(self, trace):
        seen.extend(trace)
tracer.configure(trace_processors=[Keep()])
instrument(SessionLocal)
work()
names = {span.span_id: span.resource for span in seen}
print(json.dumps([
    names.get(span.parent_id, "") for span in seen if span.resource.startswith("SELECT")
]))
"""
    start = """
import os
os.environ.update(
    DD_TRACE_OTEL_ENABLED="true",
    DD_TRACE_AGENT_URL="http://127.0.0.1:9",
    DD_INSTRUMENTATION_TELEMETRY_ENABLED="false",
)
import ddtrace.auto
"""
    parents = run(program, tmp_path, start)
    assert parents
    assert set(parents) == {"transaction"}

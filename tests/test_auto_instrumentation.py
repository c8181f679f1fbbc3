"""Tests tracing without a change to the application, by OpenTelemetry's own commands."""

import json
import logging
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from session_tracer import instrument
from session_tracer.auto_instrumentation import SessionTracerInstrumentor

APPLICATION = """
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

SessionLocal = sessionmaker(create_engine("sqlite://"))

def main():
    for _ in range(3):
        with SessionLocal() as session:
            session.execute(text("SELECT 1"))
            session.commit()

OF_ITS_OWN
main()
"""
PAGE = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text()
# The options of the page.
(TO_THE_CONSOLE,) = re.findall(
    r"^opentelemetry-instrument (-.*) python app.py$", PAGE, re.MULTILINE
)
ITSELF = 'import session_tracer\nsession_tracer.instrument(SessionLocal, name="orders-db")'
CONFIGURATION = """
file_format: "1.0"
tracer_provider:
  processors:
    - simple:
        exporter:
          console:
instrumentation/development:
  python:
    session_tracer:
"""


def run(folder: Path, own: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the application by `opentelemetry-instrument`, with spans on standard output."""
    (folder / "app.py").write_text(APPLICATION.replace("OF_ITS_OWN", own))
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SESSION_TRACER_", "OTEL_"))
    }
    return subprocess.run(
        [
            str(Path(sys.executable).parent / "opentelemetry-instrument"),
            *(*TO_THE_CONSOLE.split(), sys.executable, "app.py"),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        timeout=120,
        env={
            **environment,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            # It makes a span for each statement where it accepts SQLAlchemy's release.
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "sqlalchemy",
            **variables,
        },
    )


def sessions(ran: subprocess.CompletedProcess[str]) -> list[str]:
    """The names of the session spans that were printed."""
    spans = re.findall(r"^\{\n.*?^\}\n", ran.stdout, re.MULTILINE | re.DOTALL)
    return [name for span in spans if (name := json.loads(span)["name"]).startswith("session ")]


def test_every_session_is_traced_with_the_providers_that_opentelemetry_sets_up(
    tmp_path: Path,
) -> None:
    ran = run(tmp_path)
    assert sessions(ran) == ["session default"] * 3
    assert "session_tracer" not in ran.stderr


def test_an_application_that_instruments_its_sessions_itself_reports_them_once(
    tmp_path: Path,
) -> None:
    assert sessions(run(tmp_path, ITSELF)) == ["session orders-db"] * 3


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "session_tracer,sqlalchemy"},
        {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"},
        {"OTEL_SDK_DISABLED": "true"},
        {"SESSION_TRACER_DISABLED": "true"},
    ],
    ids=str,
)
def test_what_switches_an_instrumentation_off_switches_tracing_off(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    ran = run(tmp_path, **variables)
    assert ran.stdout == ""


def test_a_configuration_file_has_the_arguments_of_instrument(tmp_path: Path) -> None:
    file = tmp_path / "otel.yaml"
    file.write_text(f"{CONFIGURATION}      name: orders-db\n      max_works: 7\n")
    assert sessions(run(tmp_path, OTEL_CONFIG_FILE=str(file))) == ["session orders-db"] * 3


def test_a_configuration_file_can_switch_tracing_off(tmp_path: Path) -> None:
    file = tmp_path / "otel.yaml"
    file.write_text(f"{CONFIGURATION}      enabled: false\n")
    switched_off = {
        "OTEL_CONFIG_FILE": str(file),
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "session_tracer,sqlalchemy",
    }
    assert sessions(run(tmp_path, **switched_off)) == []


def test_a_misspelt_option_in_a_configuration_file_is_named_and_the_application_runs(
    tmp_path: Path,
) -> None:
    file = tmp_path / "otel.yaml"
    file.write_text(f"{CONFIGURATION}      max_workz: 7\n")
    by_file_only = {
        "OTEL_CONFIG_FILE": str(file),
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "session_tracer,sqlalchemy",
    }
    ran = run(tmp_path, **by_file_only)
    assert "Unknown setting 'max_workz'. Did you mean 'max_works'?" in ran.stderr


def test_the_instrumentor_takes_providers_as_others_do() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = SessionTracerInstrumentor()
    instrumentor.instrument(tracer_provider=provider, meter_provider=None, name="orders-db")
    try:
        with Session(create_engine("sqlite://")) as session:
            session.connection()
    finally:
        instrumentor.uninstrument()
    with Session(create_engine("sqlite://")) as session:
        session.connection()
    assert [span.name for span in exporter.get_finished_spans()] == [
        "transaction",
        "session orders-db",
    ]


def test_the_instrumentor_does_nothing_the_second_time(caplog: pytest.LogCaptureFixture) -> None:
    instrumentor = SessionTracerInstrumentor()
    instrumentor.instrument(exporter="none")
    try:
        with caplog.at_level(logging.WARNING):
            SessionTracerInstrumentor().instrument(exporter="none")
        assert "already instrumented" in caplog.text
        with instrument(exporter="none") as again:
            assert again.name == "default"
    finally:
        instrumentor.uninstrument()


def test_the_releases_of_sqlalchemy_are_those_of_the_package() -> None:
    (needed,) = (one for one in requires("session-tracer") or () if re.match(r"sqlalchemy\W", one))
    (supported,) = SessionTracerInstrumentor().instrumentation_dependencies()
    assert set(supported.removeprefix("sqlalchemy").replace(" ", "").split(",")) == set(
        needed.removeprefix("sqlalchemy").split(",")
    )

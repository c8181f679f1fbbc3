"""Tests that each log event says which process it is from."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from session_tracer import Exporter, instrument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.exporter import LogEvent

NAMED = "service.name=till,service.version=1%2E5,deployment.environment=test"


@pytest.fixture
def factory() -> sessionmaker[Session]:
    return sessionmaker(create_engine("sqlite://"))


def events(factory: sessionmaker[Session], **options: Any) -> list[LogEvent]:
    """Every log event of a session that has a finding, or rolls a savepoint back."""
    logged: list[LogEvent] = []
    exporter = Exporter(on_log=logged.append, **options)
    with instrument(factory, exporter=exporter, log_level="debug"), factory() as session:
        for _ in range(5):
            session.execute(text("SELECT name FROM sqlite_master"))
        session.commit()
    return logged


@pytest.mark.parametrize(
    ("environment", "service"),
    [
        ({}, {}),
        ({"OTEL_SERVICE_NAME": "shop"}, {"service": "shop"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": NAMED}, {"service": "till", "service_version": "1.5"}),
        (
            {"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": NAMED},
            {"service": "shop", "service_version": "1.5"},
        ),
        ({"OTEL_RESOURCE_ATTRIBUTES": "nonsense,=,a"}, {}),
    ],
)
def test_the_process_is_named_by_the_environment(
    factory: sessionmaker[Session],
    environment: dict[str, str],
    service: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    logged = events(factory)
    assert {event["event"] for event in logged} >= {"session.opened", "session.closed", "finding"}
    for event in logged:
        named = {"process_pid", "host", "service", "service_version"} & event.keys()
        assert {key: event[key] for key in named} == {
            "process_pid": os.getpid(),
            "host": os.uname().nodename,
            **service,
        }


def test_the_providers_resource_comes_first(
    factory: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    resource = Resource({"service.name": "orders", "service.version": "2.0"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    logged = events(factory, tracer_provider=provider)
    assert {(event["service"], event["service_version"]) for event in logged} == {("orders", "2.0")}


def test_a_service_without_a_name_is_left_out(
    factory: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    logged = events(factory, tracer_provider=TracerProvider(shutdown_on_exit=False))
    assert [event for event in logged if "service" in event] == []


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a configured structlog renders."""
    stream = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    yield stream
    structlog.reset_defaults()


def test_structlog_gets_it_too(factory: sessionmaker[Session], lines: io.StringIO) -> None:
    events(factory)
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert {event["process_pid"] for event in logged} == {os.getpid()}


def test_an_exporter_that_yields_to_structlog_gets_nothing_beside_it(
    factory: sessionmaker[Session], lines: io.StringIO
) -> None:
    assert events(factory, yields_to_structlog=True) == []
    assert len(lines.getvalue().splitlines()) > 2

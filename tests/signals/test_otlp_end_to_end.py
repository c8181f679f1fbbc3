"""Tests that a program's session arrives at a real collector, told by all three signals."""

import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from session_tracer.model.findings import FINDING_IDS
from session_tracer.version import VERSION
from tests.servers.collector import Collector

CHECKOUT = Path(__file__).parents[2]
PATIENCE_SECONDS = 10.0

T = TypeVar("T")


@pytest.fixture(scope="module", params=["grpc", "http/protobuf"])
def received(request: pytest.FixtureRequest, collector: Collector) -> Callable[[str], str]:
    """What the collector has of the program's signals: `Spans`, `Log` or `Metrics`."""
    endpoints = {"grpc": collector.grpc_endpoint, "http/protobuf": collector.http_endpoint}
    service = f"service-{uuid.uuid4().hex}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    environment |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoints[request.param],
        "OTEL_EXPORTER_OTLP_PROTOCOL": request.param,
        "OTEL_SERVICE_NAME": service,
    }
    program = subprocess.run(
        [sys.executable, "-m", "tests.signals.program", "library"],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (program.stdout, program.stderr) == ("detached\n", "")

    def of(signal: str) -> str:
        parts = re.split(
            r"^(?=Resource(?:Spans|Log|Metrics) #\d+$)", collector.output(), flags=re.M
        )
        return "".join(
            part
            for part in parts
            if part.startswith(f"Resource{signal} #") and f"service.name: Str({service})" in part
        )

    return of


def eventually(read: Callable[[], T], expected: T) -> T:
    """What is read once it is as expected, or at last."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def parts(text: str, title: str) -> list[str]:
    """The numbered parts of what the collector wrote."""
    return re.split(rf"^{title} #\d+\n", text, flags=re.M)[1:]


def value(part: str, label: str) -> str:
    """What follows the label."""
    found = re.search(rf"^ *(?:-> )?{label} *: ?(.*)$", part, re.M)
    return "" if found is None else found.group(1)


def attributes(part: str, title: str = "Attributes:") -> dict[str, str]:
    """The attributes as the collector writes them, ids, times and line numbers masked."""
    lines = part.partition(f"{title}\n")[2].splitlines()
    found: dict[str, str] = {}
    for line in lines:
        match = re.fullmatch(r" {5}-> ([a-z_.]+): (.*)", line)
        if match is None:
            break
        found[match.group(1)] = _masked(match.group(2))
    return found


def _masked(text: str) -> str:
    for pattern, mask in (
        (r"Str\([0-9a-f]{16}\)", "<id>"),
        (r"Double\([\d.e-]+\)", "<number>"),
        (r"Str\(/.*/tests/signals/program\.py\)", "<file>"),
    ):
        if re.fullmatch(pattern, text):
            return mask
    text = re.sub(r"read (less than 1 ms|[\d.]+ m?s) after", "read <time> after", text)
    return re.sub(r"program\.py:\d+", "program.py", re.sub(r"^Int\(\d\d\)$", "<line>", text))


SITE = {
    "code.function.name": "Str(main)",
    "code.file.path": "<file>",
    "code.line.number": "<line>",
}
OURS = {"sqlalchemy.session.id": "<id>", "sqlalchemy.session.name": "Str(library)"}
SQLITE = {"db.system.name": "Str(sqlite)"}


def test_the_spans_arrive(received: Callable[[str], str]) -> None:
    expected = [
        (
            "flush",
            "STATUS_CODE_UNSET",
            {
                **OURS,
                **SITE,
                **SQLITE,
                "sqlalchemy.flush.trigger": "Str(commit)",
                "sqlalchemy.flush.new": "Int(3)",
                "sqlalchemy.flush.dirty": "Int(0)",
                "sqlalchemy.flush.deleted": "Int(0)",
                "sqlalchemy.flush.unchanged": "Int(0)",
            },
        ),
        *(
            (
                "transaction",
                "STATUS_CODE_UNSET",
                {
                    **OURS,
                    **SITE,
                    **SQLITE,
                    "sqlalchemy.transaction.nested": "Bool(false)",
                    "sqlalchemy.transaction.outcome": f"Str({outcome})",
                },
            )
            for outcome in ("committed", "closed")
        ),
        (
            "session library",
            "STATUS_CODE_UNSET",
            {
                **OURS,
                **SITE,
                **SQLITE,
                "sqlalchemy.session.async": "Bool(false)",
                "sqlalchemy.session.outcome": "Str(committed)",
                "sqlalchemy.statements": "Int(4)",
                "sqlalchemy.statement.duration": "<number>",
                "sqlalchemy.connection.held": "<number>",
                "sqlalchemy.identity_map.size": "Int(1)",
                "sqlalchemy.identity_map.peak": "Int(3)",
            },
        ),
        (
            "detached_load",
            "STATUS_CODE_ERROR",
            {
                **OURS,
                **SITE,
                "sqlalchemy.session.async": "Bool(false)",
                "sqlalchemy.entity": "Str(Author)",
                "sqlalchemy.attribute": "Str(books)",
                "error.type": "Str(sqlalchemy.orm.exc.DetachedInstanceError)",
            },
        ),
    ]

    def spans() -> list[tuple[str, str, dict[str, str]]]:
        return [
            (value(part, "Name"), value(part, "Status code"), attributes(part))
            for part in parts(received("Spans"), "Span")
        ]

    assert eventually(spans, expected) == expected
    text = received("Spans")
    *_, session, refused = parts(text, "Span")
    assert f"InstrumentationScope session_tracer {VERSION}\n" in text
    assert value(refused.partition("Links:")[2], "ID") == value(session, "ID")
    assert [value(event, "Name") for event in parts(refused, "SpanEvent")] == [
        "sqlalchemy.finding",
        "exception",
    ]
    assert "sqlalchemy.finding.id: Str(detached-lazy-load)\n" in refused


def test_the_log_records_arrive(received: Callable[[str], str]) -> None:
    expected = [
        ("session.closed", "INFO", "Str(session.closed library outcome=committed ...)"),
        (
            "finding",
            "ERROR",
            (
                "Str(detached-lazy-load at tests/signals/program.py in main(): Author.books was "
                "read <time> after its session was closed. Remedy: select(Author)"
                ".options(selectinload(Author.books)) at tests/signals/program.py in main())"
            ),
        ),
    ]

    def records() -> list[tuple[str, str, str]]:
        return [
            (
                value(part, "EventName"),
                value(part, "SeverityText"),
                re.sub(r" duration_ms=.*\)", " ...)", _masked(value(part, "Body"))),
            )
            for part in parts(received("Log"), "LogRecord")
        ]

    assert eventually(records, expected) == expected
    closed, finding = parts(received("Log"), "LogRecord")
    spans = parts(received("Spans"), "Span")
    led = {value(span, "ID"): value(span, "Name") for span in spans}
    assert led[value(closed, "Span ID")] == "session library"
    assert led[value(finding, "Span ID")] == "detached_load"
    assert value(closed, "Trace ID") == value(spans[0], "Trace ID")
    told = attributes(finding)
    assert re.fullmatch(r"Int\(\d+\)", told.pop("process_pid"))
    assert told.pop("host") == f"Str({os.uname().nodename})"
    assert told.pop("service").startswith("Str(service-")
    assert told.pop("thread") == "Str(MainThread)"
    assert told == {
        **OURS,
        "suppressed": "Int(0)",
        "session_id": "<id>",
        "session_name": "Str(library)",
        "finding_id": "Str(detached-lazy-load)",
        "severity": "Str(error)",
        "explanation": "Str(Author.books was read <time> after its session was closed)",
        "remedy": "Str(select(Author).options(selectinload(Author.books)) "
        "at tests/signals/program.py in main())",
        "site": "Str(tests/signals/program.py in main())",
        "session_site": "Str(tests/signals/program.py in main())",
        "entity": "Str(Author)",
        "attribute": "Str(books)",
        "count": "Int(1)",
        "why": "Str(the relationship was never loaded)",
        "departure": "Str(close)",
        "departed_ago_ms": "<number>",
        "loaded_at": "Str(tests/signals/program.py in main())",
        "opened_at": "Str(tests/signals/program.py in main())",
        "departed_at": "Str(tests/signals/program.py in main())",
        "help": "Str(session-tracer findings detached-lazy-load)",
    }


def test_the_metrics_arrive(received: Callable[[str], str]) -> None:
    expected = {
        "sqlalchemy.session.duration": ("s", "Histogram", "", 1),
        "sqlalchemy.session.open": ("{session}", "Sum", "false", 1),
        "sqlalchemy.session.oldest.age": ("s", "Gauge", "", 1),
        "sqlalchemy.session.suspects": ("{session}", "Gauge", "", 3),
        "sqlalchemy.session.identity_map.size": ("{object}", "Histogram", "", 1),
        "sqlalchemy.session.objects": ("{object}", "Sum", "true", 4),
        "sqlalchemy.session.statements": ("{statement}", "Histogram", "", 1),
        "sqlalchemy.transaction.duration": ("s", "Histogram", "", 2),
        "sqlalchemy.transaction.open": ("{transaction}", "Sum", "false", 1),
        "sqlalchemy.transaction.oldest.age": ("s", "Gauge", "", 1),
        "sqlalchemy.connection.held.duration": ("s", "Histogram", "", 1),
        "sqlalchemy.connection.busy.duration": ("s", "Histogram", "", 1),
        "sqlalchemy.flush.duration": ("s", "Histogram", "", 1),
        "sqlalchemy.lazy_loads": ("{load}", "Sum", "true", 1),
        # Each finding id, at 0, and the one that was found.
        "sqlalchemy.findings": ("{finding}", "Sum", "true", len(FINDING_IDS) + 1),
        "session_tracer.errors": ("{error}", "Sum", "true", 1),
        "db.client.connection.count": ("{connection}", "Gauge", "", 1),
        "db.client.connection.timeouts": ("{timeout}", "Sum", "true", 1),
        "db.client.connection.wait_time": ("s", "Histogram", "", 1),
    }

    def metrics() -> dict[str, tuple[str, str, str, int]]:
        return {
            value(part, "Name"): (
                value(part, "Unit"),
                value(part, "DataType"),
                value(part, "IsMonotonic"),
                part.count("Data point attributes:\n"),
            )
            for part in parts(received("Metrics"), "Metric")
        }

    assert eventually(metrics, expected) == expected
    text = received("Metrics")
    (findings,) = [
        part for part in parts(text, "Metric") if value(part, "Name") == "sqlalchemy.findings"
    ]
    title = "Data point attributes:\n"
    found = title + findings.rpartition(title)[2]
    assert attributes(found, title.strip()) == {
        "sqlalchemy.session.name": "Str(library)",
        "sqlalchemy.finding.id": "Str(detached-lazy-load)",
        "sqlalchemy.finding.severity": "Str(error)",
    }
    assert value(found, "Value") == "1"

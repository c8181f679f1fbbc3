"""The pytest plugin that has every session of a run traced, with spans, logs and all detectors."""

import json
import logging
import os
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import pytest
from opentelemetry import context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

import session_tracer
from session_tracer import Exporter

__all__ = ["Account"]

_OUTPUT: Final = "session_tracer_account"


@dataclass(slots=True)
class Account:
    """What was reported about a run's sessions, and what went wrong.

    `errors` is `session_tracer.errors` by `where`, `said` what the logger session_tracer logged and
    in which test, `left` the tests after which the context was another than before.
    """

    scopes: int = 0
    spans: int = 0
    findings: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> Self:
        """The account that a run has written."""
        return cls(**json.loads(file.read_text()))

    def write(self, file: Path) -> None:
        """Save it for the process that started the run."""
        file.write_text(json.dumps(asdict(self)))

    def add(self, other: "Account") -> None:
        """Add what another worker has counted."""
        self.scopes += other.scopes
        self.spans += other.spans
        self.findings += other.findings
        for where, number in other.errors.items():
            self.errors[where] = self.errors.get(where, 0) + number
        self.said += other.said
        self.left += other.left


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--account-to", type=Path, help="the file to write the account to")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Run(config))


class _Run:
    """Traces what this process runs; xdist's controller runs nothing, and adds its workers up."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._account = Account()
        self._tracing: _Tracing | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        if not self._config.pluginmanager.has_plugin("dsession"):
            self._tracing = _Tracing(self._account)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        if self._tracing is None:
            return (yield)
        self._tracing.listen_again()
        before = context.get_current()
        result = yield
        if context.get_current() is not before:
            self._account.left.append(item.nodeid)
        return result

    # Innermost: after every fixture has gone, before xdist's worker sends its output.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        result = yield
        if self._tracing is not None:
            self._tracing.stop()
        output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[_OUTPUT] = asdict(self._account)
        else:
            self._account.write(self._config.getoption("--account-to"))
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A worker that crashed has put nothing out; the test it ran is reported as failed.
        output = getattr(node, "workeroutput", {}).get(_OUTPUT)
        if output is not None:
            self._account.add(Account(**output))


class _Tracing:
    """Every session of the process traced, and the totals of what is reported."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._reader = InMemoryMetricReader()
        tracers = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(_Counting(account)))
        logging.getLogger("session_tracer").addHandler(_Noting(account))
        self._instrumentation = session_tracer.instrument(
            exporter=Exporter(
                tracer_provider=tracers,
                meter_provider=MeterProvider([self._reader], shutdown_on_exit=False),
                on_log=self._logged,
            ),
            log_level="debug",  # or sessions that only read are not logged
        )

    def _logged(self, event: dict[str, Any]) -> None:
        json.dumps(event)
        self._account.scopes += event["event"] == "session.closed"
        self._account.findings += event["event"] == "finding"

    def listen_again(self) -> None:
        """Listen as at the start: after some tests SQLAlchemy's fixtures clear all ORM events."""
        # Its modules of tests are collected first: it wants to be imported late.
        from sqlalchemy.orm import Session

        from session_tracer.hooks import session_events

        session_events.remove(Session)
        session_events.listen(Session)

    def stop(self) -> None:
        """Hear the rest, and trace no longer."""
        self._instrumentation.flush()
        self._account.errors.update(_errors(self._reader))
        self._instrumentation.uninstrument()


def _errors(reader: InMemoryMetricReader) -> dict[str, int]:
    """`session_tracer.errors` by `where`."""
    found: dict[str, int] = {}
    data = reader.get_metrics_data()
    for of_resource in data.resource_metrics if data is not None else ():
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                if metric.name == "session_tracer.errors":
                    for point in metric.data.data_points:
                        if isinstance(point, NumberDataPoint) and point.attributes and point.value:
                            found[str(point.attributes["where"])] = int(point.value)
    return found


class _Counting(SpanExporter):
    """Takes spans, and keeps none."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._account.spans += len(spans)
        return SpanExportResult.SUCCESS


class _Noting(logging.Handler):
    """Notes what the logger session_tracer logs, and in which test."""

    def __init__(self, account: Account) -> None:
        super().__init__()
        self._account = account

    def emit(self, record: logging.LogRecord) -> None:
        test = os.environ.get("PYTEST_CURRENT_TEST", "between tests")
        self._account.said.append(f"{test}: {record.getMessage()}")

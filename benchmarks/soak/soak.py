"""The soak: a load, a collector that stops and starts, and the checks at the end."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import NullPool, create_engine, make_url

from benchmarks.soak import checks
from benchmarks.soak.account import Account
from benchmarks.soak.checks import Check, Received
from benchmarks.soak.collector import FickleCollector
from benchmarks.soak.crew import TASKS, THREADS, Crew
from benchmarks.soak.latency import Latency
from benchmarks.soak.model import populate
from benchmarks.soak.pulse import Pulse, feel
from benchmarks.soak.report import HEADING, row, verdict
from session_tracer import instrument, live_sessions
from tests.servers.lifeline import lifeline
from tests.servers.postgres import postgres_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from session_tracer import Instrumentation

# Shares of a cycle: running, frozen, running, stopped.
CYCLE = (("well", 0.3), ("frozen", 0.2), ("thawed", 0.15), ("stopped", 0.2), ("started", 0.15))
EXPORT_SECONDS = 5.0
# gRPC tries a lost collector again after up to two minutes.
RECOVERY_SECONDS = 150.0
LEFT_OPEN = 3


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: float
    control_seconds: float
    cycle_seconds: float
    protocol: str = "grpc"

    @property
    def idle_seconds(self) -> float:
        """Seconds for which some sessions keep a transaction open."""
        return min(7.0, self.seconds / 20)


class Heard(logging.Handler):
    """Collects what is logged, without printing it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.messages) < 10_000:
            self.messages.append(record.getMessage())


def soak(plan: Plan) -> bool:
    """Runs the soak and prints the report; returns whether all checks passed."""
    with ExitStack() as stack:
        own = stack.enter_context(logged("session_tracer"))
        theirs = stack.enter_context(logged("opentelemetry"))
        # asyncpg logs these if a connection ends during something that was cancelled.
        stack.enter_context(logged("asyncio"))
        url = stack.enter_context(stack.enter_context(postgres_server()).database())
        collector = FickleCollector(stack.enter_context(lifeline()))
        stack.enter_context(exporting(plan, collector))
        psycopg = make_url(url).set(drivername="postgresql+psycopg")
        engine = create_engine(psycopg, poolclass=NullPool)
        with engine.begin() as connection:
            populate(connection, THREADS + TASKS)
        before = control(plan, url) if plan.control_seconds else Account()
        run = Run(plan, url, engine, collector, before)
        run.load()
        found = [*run.check_open(), *run.check_all()]
        failures = [message for message in own.messages if "session_tracer failed" in message]
        found.append(Check("session_tracer failed", failures, []))
        found.append(Check("what the application did not expect", run.account.surprises, []))
        print(verdict(found, run.latency, theirs.messages), flush=True)
        return all(check.holds for check in found)


def control(plan: Plan, url: str) -> Account:
    """The same load without tracing, for comparison: the machine may be busy."""
    latency = Latency()
    crew = Crew(url, Account(), latency, plan.idle_seconds)
    crew.start()
    latency.begin("untraced")
    time.sleep(plan.control_seconds)
    latency.begin("")
    crew.stop()
    crew.close()
    for window in latency.windows:
        print(
            f"untraced, {window.count} steady works: "
            f"p50 {window.p50 * 1e3:.1f} ms, p99 {window.p99 * 1e3:.1f} ms\n",
            flush=True,
        )
    return crew.account


class Run:
    """The traced load and its counts."""

    def __init__(
        self,
        plan: Plan,
        url: str,
        engine: Engine,
        collector: FickleCollector,
        before: Account,
    ) -> None:
        self.account = Account()
        self.latency = Latency()
        self._before = before
        self._plan = plan
        self._engine = engine
        self._collector = collector
        self._pulses: list[Pulse] = []
        self._threads = threading.active_count()
        self._crew = Crew(url, self.account, self.latency, plan.idle_seconds)
        self._writes_before = checks.settled_writes(engine)
        self._traced: tuple[Instrumentation, ...] = (
            instrument(self._crew.factory, name="threads", exporter="otlp"),
            instrument(self._crew.async_factory, name="tasks", exporter="otlp"),
        )

    def load(self) -> None:
        """Runs the crew, while the collector goes through its cycles."""
        print(HEADING, flush=True)
        self._crew.start()
        begun = time.monotonic()
        for _ in range(round(self._plan.seconds / self._plan.cycle_seconds)):
            self._cycle(begun)
        self._crew.stop()

    def _cycle(self, begun: float) -> None:
        doing = {
            "frozen": self._collector.freeze,
            "thawed": self._collector.thaw,
            "stopped": self._collector.stop,
            "started": self._collector.start,
        }
        for state, share in CYCLE:
            until = time.monotonic() + share * self._plan.cycle_seconds
            if state in doing:
                doing[state]()
            self.latency.begin(state)
            if state == "started":
                # It takes a moment, which must not count in the measured windows.
                minutes = (time.monotonic() - begun) / 60
                pulse = feel(minutes, self.account.total("sessions"))
            time.sleep(max(0.0, until - time.monotonic()))
        self.latency.begin("")
        print(row(pulse, self._pulses, self.latency, self._collector.exports()), flush=True)
        self._pulses.append(pulse)

    def check_open(self) -> Iterator[Check]:
        """Leaves three sessions open and checks that the metrics and the process have them."""
        left_open = [self._crew.open_session() for _ in range(LEFT_OPEN)]
        opened = self.account.total("opened")
        received = self._received(ended=opened - LEFT_OPEN)
        ended = received.total("sqlalchemy.session.duration")
        live = received.total("sqlalchemy.session.open")
        yield Check("sessions ended and open, of those opened", ended + live, opened)
        yield Check("sessions left open", (live, len(live_sessions())), (LEFT_OPEN, LEFT_OPEN))
        transactions = received.total("sqlalchemy.transaction.open")
        yield Check("transactions left open", transactions, LEFT_OPEN)
        for session in left_open:
            session.close()
        self.account.add("sessions", "closed", LEFT_OPEN)

    def check_all(self) -> Iterator[Check]:
        """Closes everything and runs the checks."""
        received = self._received(ended=self.account.total("opened"))
        yield from checks.steadiness(self._pulses, self.latency)
        yield Check("connections not given back", self._crew.close(), 0)
        for instrumentation in self._traced:
            instrumentation.uninstrument()
        yield Check("threads afterwards", threading.active_count(), self._threads)
        yield from checks.counters(self.account, received)
        writes = checks.settled_writes(self._engine)
        yield from checks.written(self._writes_before, writes, self.account, received)
        with self._engine.connect() as connection:
            yield from checks.rows(connection, (self._before, self.account), THREADS + TASKS)

    def _received(self, ended: int) -> Received:
        """The collector's last export; waits until it has this number of sessions."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while True:
            for instrumentation in self._traced:
                instrumentation.flush()
            received = Received(self._collector.received())
            known = received.total("sqlalchemy.session.duration")
            if known == ended or time.monotonic() > deadline:
                return received
            time.sleep(1)


@contextmanager
def logged(name: str) -> Iterator[Heard]:
    """Collects what a logger logs in the block."""
    heard, logger = Heard(), logging.getLogger(name)
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(heard)
    try:
        yield heard
    finally:
        logger.removeHandler(heard)
        logger.propagate = propagated


@contextmanager
def exporting(plan: Plan, collector: FickleCollector) -> Iterator[None]:
    """Environment variables that make all signals go to the collector, and nowhere else."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("OTEL_", "SESSION_TRACER_")):
            del os.environ[name]
    os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = plan.protocol
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.endpoint(plan.protocol)
    os.environ["OTEL_METRIC_EXPORT_INTERVAL"] = str(int(EXPORT_SECONDS * 1000))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

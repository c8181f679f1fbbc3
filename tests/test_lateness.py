"""How late what lasts is found: with busy threads, a slow log, and ten thousand open sessions."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Self

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer import Exporter, instrument, live_sessions
from session_tracer.detectors.lasting import IdleOrLongTransaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from session_tracer.exporter import LogEvent

Factory = sessionmaker[Session]
ONE = text("SELECT 1")
IDLE = 1.0
# Seconds after the threshold: of 100 findings, 99 are not later.
LATEST = 1.0
NEVER = {"leak_after_seconds": 9999, "long_transaction_seconds": 9999}


@pytest.fixture
def factory() -> Iterator[Factory]:
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    yield sessionmaker(engine)
    engine.dispose()


def become_idle(factory: Factory, number: int, every: float) -> list[tuple[Session, float]]:
    """Sessions that are idle from then on, one after the other."""
    opened = []
    for _ in range(number):
        session = factory()
        session.execute(ONE)
        opened.append((session, time.time()))
        time.sleep(every)
    return opened


def comes(happened: Callable[[], bool]) -> bool:
    """Whether it happens in the end, which is waited for."""
    until = time.monotonic() + 30
    while not happened() and time.monotonic() < until:
        time.sleep(0.05)
    return happened()


class Control(threading.Thread):
    """A thread that only wakes: how late it is, the machine is to blame for."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.latest = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            time.sleep(0.05)
            self.latest = max(self.latest, time.monotonic() - began - 0.05)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    @property
    def allowed(self) -> float:
        """A finding takes several turns of its threads."""
        return LATEST + 4 * self.latest


def lateness(
    sessions: list[tuple[Session, float]], at: list[float], idle: float = IDLE
) -> list[float]:
    """Seconds after each threshold at which the findings came; the greatest last."""
    assert len(at) == len(sessions)
    late = sorted(
        moment - since - idle for moment, (_, since) in zip(sorted(at), sessions, strict=True)
    )
    print(f"p50 {late[len(late) // 2]:.3f} s, p99 {late[int(len(late) * 0.99)]:.3f} s")
    return late


def in_the_log(logged: list[LogEvent]) -> list[float]:
    """When findings were found, as the log has it."""
    found = [event["timestamp"] for event in logged if event["event"] == "finding"]
    return [datetime.fromisoformat(timestamp).timestamp() for timestamp in found]


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Threads that run Python code all the time."""
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(1_000))

    threads = [threading.Thread(target=burn, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


def test_eight_busy_threads_make_no_finding_late(factory: Factory) -> None:
    came: list[float] = []
    exporter = Exporter(on_finding=lambda _: came.append(time.time()))
    tracing = instrument(
        factory,
        exporter=exporter,
        detectors=[IdleOrLongTransaction()],
        idle_in_transaction_seconds=IDLE,
        **NEVER,  # type: ignore[arg-type] # each is a number of seconds
    )
    with tracing, busy(8), Control() as control:
        sessions = become_idle(factory, 40, 0.02)
        assert comes(lambda: len(came) == len(sessions))
    late = lateness(sessions, came)
    assert late[int(len(late) * 0.99)] < control.allowed
    for session, _ in sessions:
        session.close()


def test_a_log_that_takes_half_a_second_makes_no_finding_late(factory: Factory) -> None:
    logged: list[LogEvent] = []
    threads: set[str] = set()

    def log_slowly(event: LogEvent) -> None:
        threads.add(threading.current_thread().name)
        time.sleep(0.5)
        logged.append(event)

    with instrument(
        factory,
        exporter=Exporter(on_log=log_slowly),
        detectors=[IdleOrLongTransaction()],
        idle_in_transaction_seconds=IDLE,
        repeat_finding_seconds=0.001,
        **NEVER,  # type: ignore[arg-type] # each is a number of seconds
    ):
        sessions = become_idle(factory, 12, 0.1)
        assert comes(lambda: sum(bool(one.findings) for one in live_sessions()) == len(sessions))
        # Most of the log is still to come, and each line has the time at which it was found.
        assert len(logged) < len(sessions)
        assert comes(lambda: len(logged) == len(sessions))
        late = lateness(sessions, in_the_log(logged))
        assert late[int(len(late) * 0.99)] < LATEST
        assert threads == {"session_tracer-reports"}
    for session, _ in sessions:
        session.close()


def test_a_retraction_is_logged_after_its_finding_also_where_the_log_is_slow(
    factory: Factory,
) -> None:
    logged: list[LogEvent] = []

    def log_slowly(event: LogEvent) -> None:
        time.sleep(0.3)
        logged.append(event)

    exporter = Exporter(on_log=log_slowly)
    with instrument(
        factory, exporter=exporter, idle_in_transaction_seconds=0.1, log_level="info"
    ) as instrumentation:
        session = factory()
        session.execute(ONE)
        assert comes(lambda: bool(live_sessions()[0].findings))
        session.rollback()  # while its finding is being logged
        instrumentation.flush()
        events = [event["event"] for event in logged]
        assert events[:2] == ["finding", "finding.retracted"]
        session.close()


def test_ten_thousand_open_sessions_make_no_finding_late(factory: Factory) -> None:
    came: list[float] = []
    with instrument(
        factory,
        exporter=Exporter(on_finding=lambda _: came.append(time.time())),
        detectors=[IdleOrLongTransaction()],
        **NEVER,  # type: ignore[arg-type] # each is a number of seconds
    ):
        waiting = [factory() for _ in range(10_000)]
        for session in waiting:
            session.begin()
            session.commit()  # open, and with nothing to find
        assert len(live_sessions()) == len(waiting)
        (watch,) = (one for one in threading.enumerate() if one.name == "session_tracer")
        assert watch.ident is not None
        cpu = time.pthread_getcpuclockid(watch.ident)
        began, used = time.monotonic(), time.clock_gettime(cpu)
        time.sleep(10)
        share = (time.clock_gettime(cpu) - used) / (time.monotonic() - began)
        print(f"{share:.2%} of a core")
        # A hundredth, and what was saved before. Where the machine is busy, CPU time is longer.
        assert share < 0.02
        with Control() as control:
            sessions = become_idle(factory, 40, 0.05)
            assert comes(lambda: len(came) == len(sessions))
        late = lateness(sessions, came, idle=5.0)
        assert late[int(len(late) * 0.99)] < control.allowed
        for session in [*waiting, *(one for one, _ in sessions)]:
            session.close()

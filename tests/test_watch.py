"""Tests when the watch reports that time has passed; the clock is passed in."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer import Exporter, Settings, facts
from session_tracer.hooks.targets import resolve
from session_tracer.instrumentor import Instrumentor
from session_tracer.ledger import watchdog
from session_tracer.ledger.registry import LIVE
from session_tracer.ledger.watchdog import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from session_tracer import Detector, Finding
    from session_tracer.facts import TimePassed
    from session_tracer.ledger.report import Report

Factory = sessionmaker[Session]
ONE = text("SELECT 1")
SECOND = 1_000_000_000
# A little more than a moment.
BIT = 1e-9


class Clock:
    """Stands still until it is advanced."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def go_on(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


@dataclass
class Told:
    """Notes each report of time: the scope, and seconds after it was opened."""

    moments: list[float] = field(default_factory=list)
    of: list[str] = field(default_factory=list)
    running: list[bool] = field(default_factory=list)
    facts = (facts.TimePassed,)

    def memory(self) -> None:
        """Needs none."""

    def judge(self, fact: TimePassed, report: Report, memory: None) -> Iterable[Finding]:
        self.moments.append((fact.at - report.ledger.opened_at) / SECOND)
        self.of.append(report.ledger.id)
        self.running.append(fact.running)
        return ()


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    yield engine
    engine.dispose()


@pytest.fixture
def factory(engine: Engine) -> Factory:
    return sessionmaker(engine)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextmanager
def watching(
    factory: Factory,
    clock: Callable[[], int],
    *detectors: Detector,
    besides: Instrumentor | None = None,
    **overrides: Any,
) -> Iterator[Watch]:
    """A watch over the factory's sessions, with no thread of its own to look on it."""
    instrumentor = besides or Instrumentor(clock)
    settings = Settings().override(overrides)
    instrumentation = instrumentor.add(
        resolve(factory), "default", Exporter(), settings, detectors, capture=True
    )
    watchdog.stop()
    try:
        yield Watch(clock)
    finally:
        instrumentor.remove(instrumentation)


# When.


def test_a_scope_is_reported_as_each_threshold_passes(factory: Factory, clock: Clock) -> None:
    told = Told()
    with watching(factory, clock, told) as a_watch, factory() as session:
        session.execute(ONE)
        passed = 0.0
        for moment in (4.9, 5, 5 + BIT, 6, 30, 30 + BIT, 31, 60, 60 + BIT, 119, 120 + BIT, 181):
            clock.go_on(moment - passed)
            passed = moment
            a_watch.look()
    assert told.moments == [5 + BIT, 30 + BIT, 60 + BIT, 120 + BIT, 181]


def test_what_passes_between_two_looks_is_reported_at_once(factory: Factory, clock: Clock) -> None:
    told = Told()
    with watching(factory, clock, told) as a_watch, factory() as session:
        session.execute(ONE)
        for _ in range(3):
            clock.go_on(500)
            a_watch.look()
            a_watch.look()
    assert told.moments == [500, 1_000, 1_500]


def test_each_statement_begins_the_wait_anew(factory: Factory, clock: Clock) -> None:
    told = Told()
    with watching(factory, clock, told) as a_watch, factory() as session:
        for _ in range(3):
            session.execute(ONE)
            clock.go_on(4)
            a_watch.look()
        clock.go_on(1 + BIT)
        a_watch.look()
    assert told.moments == [13 + BIT]


def test_a_transaction_that_has_ended_neither_waits_nor_lasts(
    factory: Factory, clock: Clock
) -> None:
    told = Told()
    with watching(factory, clock, told) as a_watch, factory() as session:
        session.execute(ONE)
        session.commit()
        for _ in range(6):
            clock.go_on(10)
            a_watch.look()
        assert told.moments == []
        clock.go_on(BIT)
        a_watch.look()
    assert told.moments == [60 + BIT]


def test_a_transaction_without_a_connection_may_only_last(factory: Factory, clock: Clock) -> None:
    told = Told()
    with watching(factory, clock, told) as a_watch, factory() as session:
        session.begin()
        for _ in range(7):
            clock.go_on(6)
            a_watch.look()
    assert told.moments == [36]


def test_a_transaction_that_begins_late_is_counted_from_its_beginning(
    factory: Factory, clock: Clock
) -> None:
    told = Told()
    with watching(factory, clock, told) as a_watch, factory() as session:
        clock.go_on(50)
        session.execute(ONE)
        for _ in range(6):
            clock.go_on(2)
            a_watch.look()
    assert told.moments == [56, 62]


def test_settings_have_the_thresholds(factory: Factory, clock: Clock) -> None:
    told = Told()
    thresholds: dict[str, Any] = {
        "idle_in_transaction_seconds": 0.25,
        "long_transaction_seconds": 0.5,
        "leak_after_seconds": 1.5,
    }
    with watching(factory, clock, told, **thresholds) as a_watch, factory() as session:
        session.execute(ONE)
        for _ in range(16):
            clock.go_on(0.1)
            a_watch.look()
    assert told.moments == [0.3, 0.6, 1.6]


# For whom.


def test_a_session_that_was_never_used_is_not_reported(factory: Factory, clock: Clock) -> None:
    told = Told()
    with watching(factory, clock, told) as a_watch, factory():
        clock.go_on(3_600)
        assert a_watch.look() == 5.0
    assert told.moments == []


def test_a_session_that_was_closed_is_not_reported(factory: Factory, clock: Clock) -> None:
    told = Told()
    with watching(factory, clock, told) as a_watch:
        with factory() as session:
            session.execute(ONE)
        clock.go_on(3_600)
        assert a_watch.look() is None
    assert told.moments == []


def test_each_open_session_is_reported(factory: Factory, clock: Clock) -> None:
    told = Told()
    with watching(factory, clock, told) as a_watch:
        sessions = []
        for _ in range(3):
            session = factory()
            session.execute(ONE)
            session.commit()
            sessions.append(session)
            clock.go_on(1)
        clock.go_on(58)
        a_watch.look()
        assert told.moments == [61]
        clock.go_on(1)
        a_watch.look()
        assert told.moments == [61, 61]
        assert len(set(told.of)) == 2
        for session in sessions:
            session.close()


def test_each_tracer_has_its_own_patience(factory: Factory, clock: Clock) -> None:
    told, other = Told(), Told()
    both = Instrumentor(clock)
    patient = watching(factory, clock, other, besides=both, idle_in_transaction_seconds=20)
    with (
        watching(factory, clock, told, besides=both) as a_watch,
        patient,
        factory() as session,
    ):
        session.execute(ONE)
        for _ in range(4):
            clock.go_on(6)
            a_watch.look()
    assert (told.moments, other.moments) == ([6], [24])


def test_a_session_that_ends_while_the_watch_looks_is_not_reported(
    factory: Factory, clock: Clock
) -> None:
    sessions: list[Session] = []
    told = Told()

    class Closes(Told):
        def judge(self, fact: TimePassed, report: Report, memory: None) -> Iterable[Finding]:
            sessions.pop().close()
            return ()

    with watching(factory, clock, Closes(), told) as a_watch:
        sessions += [factory() for _ in range(2)]
        for session in sessions:
            session.execute(ONE)
        del session
        clock.go_on(61)
        a_watch.look()
        assert len(told.moments) == 1
        assert len(LIVE) == 1
        sessions.pop().close()


def test_a_running_statement_is_reported_as_running(
    engine: Engine, factory: Factory, clock: Clock
) -> None:
    told = Told()
    looking: list[Watch] = []

    def look() -> int:
        clock.go_on(6)
        looking[0].look()
        return 1

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.create_function("look", 0, look)

    with watching(factory, clock, told) as a_watch, factory() as session:
        looking.append(a_watch)
        session.execute(ONE)
        session.execute(text("SELECT look()"))
        look()
    assert told.running == [True, False]


# The next look.


def test_nothing_is_looked_at_where_no_session_is_open(factory: Factory, clock: Clock) -> None:
    with watching(factory, clock, Told()) as a_watch:
        assert a_watch.look() is None
        with factory() as session:
            session.execute(ONE)
            assert a_watch.look() == 5.0
        assert a_watch.look() is None


def test_nothing_is_looked_at_if_no_detector_needs_time(factory: Factory, clock: Clock) -> None:
    with watching(factory, clock) as a_watch, factory() as session:
        session.execute(ONE)
        assert a_watch.look() is None


def test_the_next_look_is_when_the_next_threshold_passes(factory: Factory, clock: Clock) -> None:
    thresholds: dict[str, Any] = {
        "idle_in_transaction_seconds": 20,
        "long_transaction_seconds": 30,
        "leak_after_seconds": 45,
    }
    with watching(factory, clock, Told(), **thresholds) as a_watch, factory() as session:
        session.execute(ONE)
        waits = []
        for go_on in (0, 15, 5.5, 5, 5, 10, 10):
            clock.go_on(go_on)
            waits.append(a_watch.look())
    # At 0, 15, 20.5, 25.5, 30.5, 40.5 and 50.5: idle at 20, long at 30, leaked at 45.
    assert waits == [20.0, 5.0, 9.5, 4.5, 14.5, 4.5, 20.0]


def test_a_transaction_that_may_begin_meanwhile_is_not_overlooked(
    factory: Factory, clock: Clock
) -> None:
    told = Told()
    with watching(factory, clock, told) as a_watch, factory() as session:
        assert a_watch.look() == 5.0
        clock.go_on(BIT)
        session.execute(ONE)
        clock.go_on(5.0 - BIT)
        assert (a_watch.look(), told.moments) == (0.05, [])
        clock.go_on(0.05)
        a_watch.look()
    assert told.moments == [5.05]


def test_two_looks_are_never_close_to_each_other(factory: Factory, clock: Clock) -> None:
    with watching(factory, clock, Told()) as a_watch, factory() as session:
        session.execute(ONE)
        clock.go_on(5 - BIT)
        assert a_watch.look() == 0.05
        clock.go_on(BIT)
        assert a_watch.look() == 0.05
        clock.go_on(BIT)
        assert a_watch.look() == 5.0


def test_looks_that_use_more_than_a_hundredth_of_a_core_are_rarer(
    factory: Factory, clock: Clock
) -> None:
    used = Clock()

    def cpu() -> int:
        used.go_on(0.02)  # between the beginning and the end of each look
        return used.now

    with watching(factory, clock, Told()), factory() as session:
        session.execute(ONE)
        a_watch = Watch(clock, cpu)
        gaps = []
        for _ in range(4):
            a_watch.look()
            gaps.append(a_watch.gap)
            clock.go_on(0.05)
        # What five seconds leave unused may be used at once.
        assert gaps == [0.05, 0.05, 0.5, 0.5]
        clock.go_on(100)
        a_watch.look()
        assert a_watch.gap == 0.05


def test_what_is_reported_does_not_delay_the_next_look(factory: Factory, clock: Clock) -> None:
    class Slow(Told):
        def judge(self, fact: TimePassed, report: Report, memory: None) -> Iterable[Finding]:
            clock.go_on(0.2)
            return ()

    with watching(factory, clock, Slow()), factory() as session:
        session.execute(ONE)
        clock.go_on(6)
        a_watch = Watch(clock, clock)
        assert a_watch.look() == 5.0
        assert a_watch.gap == 0.05


def test_ten_thousand_open_sessions_take_a_hundredth_of_a_core(factory: Factory) -> None:
    with watching(factory, time.perf_counter_ns, Told()) as a_watch:
        sessions = [factory() for _ in range(10_000)]
        for session in sessions[:100]:
            session.execute(ONE)
        shares = []
        for _ in range(5):
            began = time.perf_counter()
            wait = a_watch.look()
            assert wait is not None
            shares.append((time.perf_counter() - began) / wait)
        # What is measured here is a little more than what the watch can measure.
        assert min(shares) < 1.5 / 100
        for session in sessions:
            session.close()


@pytest.mark.parametrize("is_committed", [True, False], ids=["between", "in a transaction"])
def test_one_look_at_ten_thousand_sessions_takes_a_hundredth_of_the_shortest_threshold(
    factory: Factory, is_committed: bool
) -> None:
    """Of 5 seconds, 50 ms of CPU time: so often each session is looked at."""
    later = 0
    seldom: dict[str, Any] = {"leak_after_seconds": 9999, "long_transaction_seconds": 9999}
    with watching(factory, time.perf_counter_ns, Told(), **seldom):
        sessions = [factory() for _ in range(10_000)]
        for session in sessions:
            session.begin()
            if is_committed:
                session.commit()
        a_watch = Watch(lambda: time.perf_counter_ns() + later)
        a_watch.look()
        took = []
        for _ in range(5):
            later += 6_000_000_000  # each is due again
            began = time.thread_time()
            a_watch.look()
            took.append(time.thread_time() - began)
        print(f"{min(took) * 1e3:.0f} ms")
        assert min(took) < 0.05
        for session in sessions:
            session.close()


# What fails.


def test_a_scope_that_cannot_be_looked_at_does_not_hide_the_others(
    factory: Factory, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    due = watchdog._due
    failed: list[str] = []

    def fail_once(*of: Any) -> int:
        if not failed:
            failed.append("once")
            raise LookupError
        return due(*of)

    with watching(factory, clock, told) as a_watch:
        sessions = [factory() for _ in range(2)]
        for session in sessions:
            session.execute(ONE)
        clock.go_on(6)
        monkeypatch.setattr(watchdog, "_due", fail_once)
        assert a_watch.look() == 5.0
        assert told.moments == [6]
        for session in sessions:
            session.close()

"""Repeated log events are held back, and what was held back is always logged in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer import instrument
from session_tracer.exporter import Exporter, LogEvent
from session_tracer.signals import logs
from session_tracer.signals.limiter import Held, Limiter
from session_tracer.testing import capture
from tests.library import Author, Base, authors
from tests.shop import SHOP

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Log:
    """What a limiter logs of what it held back."""

    def __init__(self, clock: Clock) -> None:
        self.entries: list[tuple[Any, int, dict[str, float]]] = []
        self.limiter = Limiter(60.0, self._add, clock)

    def _add(self, held: Held) -> None:
        self.entries.append((held.latest, held.count, dict(held.sums)))

    def hold(self, key: str, latest: Any = None) -> bool:
        return self.limiter.hold(key, latest, ("rows", "none"), (2, 0))


def test_the_first_event_of_a_period_is_logged_and_its_repeats_are_summed_up() -> None:
    clock = Clock()
    log = Log(clock)
    assert [log.hold("a", 1), log.hold("a", 2), log.hold("b", 3), log.hold("a", 4)] == [
        *(False, True, False, True)
    ]
    assert log.entries == []
    clock.now = 60
    assert log.limiter.settle() is None
    assert log.entries == [(4, 2, {"rows": 4})]
    log.limiter.close()


def test_what_is_logged_of_a_period_begins_the_next_one() -> None:
    clock = Clock()
    log = Log(clock)
    log.hold("a"), log.hold("a", "first")
    clock.now = 60
    assert log.hold("a", "second")
    assert log.entries == [("first", 1, {"rows": 2})]
    clock.now = 119
    assert log.limiter.settle() == 1
    assert len(log.entries) == 1
    clock.now = 120
    log.limiter.settle()
    assert [latest for latest, *_ in log.entries] == ["first", "second"]
    log.limiter.close()


def test_a_period_in_which_nothing_was_held_back_is_forgotten() -> None:
    clock = Clock()
    log = Log(clock)
    assert not log.hold("a")
    clock.now = 60
    assert not log.hold("a")
    log.limiter.close()
    assert log.entries == []


def test_a_flush_logs_what_is_held_back_and_the_period_goes_on() -> None:
    log = Log(Clock())
    log.hold("a"), log.hold("a", "x")
    log.limiter.flush()
    log.limiter.flush()
    assert log.entries == [("x", 1, {"rows": 2})]
    assert log.hold("a")
    log.limiter.close()
    assert len(log.entries) == 2
    assert not log.hold("a"), "one that is closed holds nothing back"


def test_the_keys_that_are_known_are_bounded_and_the_oldest_is_logged() -> None:
    log = Log(Clock())
    log.hold("0"), log.hold("0", "oldest")
    for number in range(1, 5_000):
        assert not log.hold(str(number))
    assert log.entries == [("oldest", 1, {"rows": 2})]
    assert not log.hold("0")
    assert log.hold("4999")
    log.limiter.close()


def test_no_event_is_lost_between_threads() -> None:
    def repeat() -> None:
        answers.extend(log.hold("a") for _ in range(5_000))

    log = Log(Clock())
    answers: list[bool] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=repeat) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    log.limiter.close()
    assert (answers.count(False), sum(count for _, count, _ in log.entries)) == (1, 19_999)


# As the log shows it.


@pytest.fixture
def factory() -> Iterator[sessionmaker[Session]]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    maker = sessionmaker(engine)
    with maker.begin() as session:
        session.add_all(authors(2))
    yield maker
    engine.dispose()


def traced(factory: sessionmaker[Session], log: list[LogEvent], **overrides: Any) -> Any:
    return instrument(factory, exporter=Exporter(on_log=log.append), **overrides)


def read(factory: sessionmaker[Session], times: int) -> None:
    for _ in range(times):
        with factory() as session:
            session.scalars(select(Author)).all()


LARGE: dict[str, Any] = {"large_result_objects": 1}


def test_what_was_held_back_is_logged_at_the_periods_end_though_nothing_follows(
    factory: sessionmaker[Session],
) -> None:
    log: list[LogEvent] = []
    with traced(factory, log, repeat_finding_seconds=0.2, log_level="info", **LARGE):
        read(factory, 5)
        until = time.monotonic() + 10
        while time.monotonic() < until and counted(log) < 5:
            time.sleep(0.02)
        assert counted(log) == 5
    assert "session_tracer-repeats" not in {thread.name for thread in threading.enumerate()}


def found(log: list[LogEvent]) -> list[LogEvent]:
    return [event for event in log if event["event"] == "finding"]


def counted(log: list[LogEvent]) -> int:
    return sum(1 + event["suppressed"] for event in found(log))


@pytest.mark.parametrize("end", ["flush", "uninstrument"])
def test_what_was_held_back_is_logged_when_it_is_flushed(
    factory: sessionmaker[Session], end: str
) -> None:
    log: list[LogEvent] = []
    with traced(factory, log, log_level="info", **LARGE) as tracing:
        read(factory, 5)
        assert len(found(log)) == 1
        getattr(tracing, end)()
        assert counted(log) == 5


def test_the_exit_of_a_process_logs_what_was_held_back(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    program = f"""{SHOP}
instrument(
    SessionLocal, exporter="jsonl", jsonl_path={str(path)!r}, large_result_objects=1,
    log_level="info",
)
with SessionLocal.begin() as session:
    session.add_all([Book(), Book()])
for _ in range(4):
    with SessionLocal() as session:
        session.scalars(select(Book)).all()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=os.environ | {})
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["suppressed"] for event in found(events)] == [0, 2]


def err(factory: sessionmaker[Session], times: int) -> None:
    for _ in range(times):
        with suppress(IntegrityError), factory() as session:
            session.add(Author(name="author 0"))
            session.commit()


def test_failed_flushes_and_closed_sessions_of_one_line_are_summed_up(
    factory: sessionmaker[Session],
) -> None:
    log: list[LogEvent] = []
    with traced(factory, log, log_level="info"):
        err(factory, 10)
    closed, failed = (
        [event for event in log if event["event"] == name]
        for name in ("session.closed", "flush.failed")
    )
    assert (len(closed), len(failed)) == (1, 1)
    sums = {one["suppressed_event"]: one for one in log if one["event"] == "suppressed"}
    assert sums.keys() == {"session.closed", "flush.failed"}
    assert (sums["session.closed"]["suppressed"], sums["flush.failed"]["suppressed"]) == (9, 9)
    of_sessions = sums["session.closed"]
    assert (of_sessions["failed_flushes"], of_sessions["transactions"]) == (9, 9)
    assert of_sessions["session_site"] == closed[0]["session_site"]
    assert of_sessions["error_type"] == closed[0]["error_type"]
    assert of_sessions["duration_ms"] > 0
    assert {type(of_sessions[key]) for key in ("duration_ms", "failed_flushes")} == {float, int}
    assert "session_id" not in of_sessions
    assert sums["flush.failed"]["new"] == 9


def test_sessions_that_end_in_different_ways_are_not_summed_up_together(
    factory: sessionmaker[Session],
) -> None:
    log: list[LogEvent] = []
    with traced(factory, log, log_level="info"):
        for number in range(4):
            with suppress(ZeroDivisionError), factory() as session:
                session.add(Author(name=f"new {number}"))
                session.flush()
                if number == 2:
                    1 / 0  # noqa: B018 - it raises
                session.commit()
    assert [event["outcome"] for event in log if event["event"] == "session.closed"] == [
        *("committed", "failed")
    ]
    (held,) = [event for event in log if event["event"] == "suppressed"]
    assert (held["outcome"], held["suppressed"], held["commits"]) == ("committed", 2, 2)


def test_code_that_asks_for_every_step_gets_every_session(factory: sessionmaker[Session]) -> None:
    log: list[LogEvent] = []
    with traced(factory, log, log_level="debug"):
        err(factory, 10)
    assert [event["event"] for event in log].count("session.closed") == 10
    assert [event["event"] for event in log].count("flush.failed") == 10


def test_a_failure_to_log_what_was_held_back_is_counted(
    factory: sessionmaker[Session], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[LogEvent] = []

    def once(event: LogEvent) -> None:
        if seen:
            raise RuntimeError("disk full")
        seen.append(event)

    with instrument(factory, exporter=Exporter(on_log=once), log_level="info", **LARGE):
        read(factory, 3)
    assert "session_tracer failed in LogSignal with RuntimeError" in caplog.text


def test_a_forked_child_logs_nothing_of_what_its_parent_holds_back() -> None:
    program = f"""{SHOP}
import os
from session_tracer.exporter import Exporter
log = []
traced = instrument(
    SessionLocal, exporter=Exporter(on_log=log.append), large_result_objects=1, log_level="info"
)
with SessionLocal.begin() as session:
    session.add_all([Book(), Book()])
for _ in range(4):
    with SessionLocal() as session:
        session.scalars(select(Book)).all()
log.clear()
if os.fork() == 0:
    traced.flush()
    os._exit(len(log))
_, status = os.wait()
traced.flush()
print(os.waitstatus_to_exitcode(status), [one["suppressed"] for one in log if "finding_id" in one])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == "0 [2]\n"


def test_a_finding_in_two_captures_is_limited_in_each(
    factory: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "Limiter", partial(Limiter, clock=Clock()))
    with capture(factory, **LARGE) as outer:
        read(factory, 2)
        with capture(factory, **LARGE) as inner:
            read(factory, 2)
    assert [event["suppressed"] for event in found(outer.logs)] == [0, 2]
    assert [event["suppressed"] for event in found(inner.logs)] == [0, 0]

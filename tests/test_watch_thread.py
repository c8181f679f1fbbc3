"""The watch's thread: when it wakes, whom it watches after a fork, and how the process ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer import Exporter, instrument, uninstrument
from session_tracer.ledger.watchdog import Watch
from session_tracer.testing import capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Factory = sessionmaker[Session]
ONE = text("SELECT 1")


@pytest.fixture
def factory() -> Iterator[Factory]:
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    yield sessionmaker(engine)
    engine.dispose()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """What each look of the thread has returned."""
    returned: list[float | None] = []
    look = Watch.look

    def noted(self: Watch) -> float | None:
        seconds = look(self)
        returned.append(seconds)
        return seconds

    monkeypatch.setattr(Watch, "look", noted)
    return returned


def comes(happened: Callable[[], object]) -> bool:
    """Whether it happens in the end, which is waited for."""
    until = time.monotonic() + 20
    while not happened() and time.monotonic() < until:
        time.sleep(0.005)
    return bool(happened())


def threads() -> list[str]:
    """The threads of ours that run."""
    return [one.name for one in threading.enumerate() if one.name.startswith("session_tracer")]


# When it wakes.


def test_it_sleeps_until_a_session_is_opened_and_again_when_all_are_closed(
    factory: Factory, looks: list[float | None]
) -> None:
    with instrument(factory, exporter=Exporter(), idle_in_transaction_seconds=0.01):
        time.sleep(0.2)
        assert looks == []
        with factory() as session:
            session.execute(ONE)
            assert comes(lambda: len(looks) > 2)
        assert comes(lambda: looks[-1] is None)
        before = len(looks)
        time.sleep(0.2)
        assert len(looks) == before
        with factory() as session:
            session.execute(ONE)
            assert comes(lambda: len(looks) > before)


def test_sessions_that_come_and_go_do_not_wake_it_each_time(
    factory: Factory, looks: list[float | None]
) -> None:
    with instrument(factory, exporter=Exporter()):
        began = time.monotonic()
        for _ in range(500):
            with factory() as session:
                session.execute(ONE)
        took = time.monotonic() - began
        assert len(looks) <= took / 0.05 + 1


def test_it_sleeps_where_nobody_waits_for_time_to_pass(
    factory: Factory, looks: list[float | None]
) -> None:
    with instrument(factory, exporter=Exporter(), detectors=[]), factory() as session:
        session.execute(ONE)
        assert comes(lambda: looks)
        time.sleep(0.2)
        assert looks == [None]


def test_it_looks_no_oftener_than_it_needs(factory: Factory, looks: list[float | None]) -> None:
    with instrument(factory, exporter=Exporter()), factory() as session:
        session.execute(ONE)
        assert comes(lambda: looks)
        for _ in range(20):
            factory().close()
        time.sleep(0.2)
        (seconds,) = looks
        assert seconds is not None
        assert 4 < seconds <= 5


def test_it_says_what_is_due_by_itself(factory: Factory) -> None:
    with capture(factory, idle_in_transaction_seconds=0.02) as told, factory() as session:
        session.execute(ONE)
        assert comes(lambda: told.findings)
        assert [finding.id for finding in told.findings] == ["idle-in-transaction"]


def test_uninstrument_ends_it_amid_its_sleep(factory: Factory) -> None:
    instrument(factory, exporter=Exporter())
    session = factory()
    session.execute(ONE)
    assert sorted(threads()) == ["session_tracer", "session_tracer-reports"]
    began = time.monotonic()
    uninstrument()
    assert threads() == []
    assert time.monotonic() - began < 1
    session.close()


def test_uninstrument_does_not_wait_for_an_exporter_that_hangs(factory: Factory) -> None:
    hangs, free = threading.Event(), threading.Event()

    def on_finding(_: object) -> None:
        hangs.set()
        free.wait(30)

    instrument(factory, exporter=Exporter(on_finding=on_finding), idle_in_transaction_seconds=0.02)
    with factory() as session:
        session.execute(ONE)
        assert hangs.wait(20)
        (hanging,) = (one for one in threading.enumerate() if one.name == "session_tracer-reports")
        began = time.monotonic()
        uninstrument()
        assert time.monotonic() - began < 10
    free.set()
    hanging.join(20)
    assert threads() == []


# Other processes.

PROGRAM = """
import gc, json, os, sys, threading, time
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool
from session_tracer import DEFAULT_DETECTORS, Exporter, instrument, live_sessions
factory = sessionmaker(create_engine(
    "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
))
ONE = text("SELECT 1")

def open_one():
    session = factory()
    session.execute(ONE)
    return session

"""


def run(program: str, **environment: str) -> tuple[list[str], str, float]:
    """The lines a program writes, what it complains of, and how long it takes."""
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, **environment},
    )
    return ran.stdout.splitlines(), ran.stderr, time.monotonic() - began


FORK = """
import warnings
warnings.simplefilter("ignore")  # that a process with threads forks
said = []
instrument(factory, exporter=Exporter(on_finding=said.append), idle_in_transaction_seconds=0.02)

def wait_for_one():
    while not said:
        time.sleep(0.005)

mine = open_one()
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    said.clear()
    inherited = [live.id for live in live_sessions()]
    time.sleep(0.2)
    before = len(said)
    yours = open_one()
    wait_for_one()
    time.sleep(0.1)
    with os.fdopen(writing, "w") as file:
        json.dump({
            "inherited": inherited,
            "before": before,
            "said": [finding.session_id for finding in said],
            "opened": [live.id for live in live_sessions()],
        }, file)
    os._exit(0)
os.close(writing)
with os.fdopen(reading) as file:
    print(file.read())
os.waitpid(child, 0)
wait_for_one()
print(json.dumps({
    "said": [finding.session_id for finding in said],
    "opened": [live.id for live in live_sessions()],
}))
mine.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_watches_its_own_sessions_only() -> None:
    lines, complaints, _ = run(FORK)
    child, parent = map(json.loads, lines)
    assert child["inherited"] == []
    assert child["before"] == 0
    assert len(child["opened"]) == 1
    assert child["said"] == child["opened"]
    assert len(parent["opened"]) == 1
    assert parent["said"] == parent["opened"]
    assert child["opened"] != parent["opened"]
    assert complaints == ""


# The end of the process.

LEFT_OPEN = """
instrument(factory, name="shop-db")
unused = factory()
committed = open_one()
committed.commit()
left_open = open_one()
"""


def test_what_is_still_open_at_exit_is_on_the_console() -> None:
    _, complaints, took = run(LEFT_OPEN, SESSION_TRACER_EXPORTER="console")
    assert complaints.count("abandoned-session") == 1
    assert "was still open when the process ended" in " ".join(complaints.split())
    assert "Traceback" not in complaints
    assert took < 30


def test_what_is_still_open_at_exit_is_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    _, complaints, _ = run(
        LEFT_OPEN, SESSION_TRACER_EXPORTER="jsonl", SESSION_TRACER_JSONL_PATH=str(path)
    )
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [
        (event["finding_id"], event["level"]) for event in events if event["event"] == "finding"
    ] == [("abandoned-session", "error")]
    ended = [event for event in events if event["event"] == "session.closed"]
    assert [event["outcome"] for event in ended] == ["abandoned", "abandoned"]
    assert complaints == ""


def test_what_was_lost_just_before_exit_is_told() -> None:
    lines, complaints, _ = run(
        """
def report(found):
    # The loop is a finding too where Python keeps the source of -c: from 3.13 on.
    if found.id == "abandoned-session":
        print(found.id, found.evidence["ending"], flush=True)

instrument(factory, exporter=Exporter(on_finding=report))
gc.disable()
for _ in range(20):
    session = open_one()
    session.commit()
    session.begin()
del session
gc.collect()
"""
    )
    assert lines == ["abandoned-session collected"] * 20
    assert complaints == ""


def test_what_is_still_open_at_exit_is_told_once_by_its_own_tracer() -> None:
    lines, complaints, _ = run(
        """
def tell(of):
    return Exporter(on_finding=lambda found: print(of, found.id, flush=True))

orders = sessionmaker(create_engine("sqlite://"))
instrument(factory, exporter=tell("shop"))
instrument(orders, exporter=tell("orders"))
left_open, another = open_one(), orders()
another.execute(ONE)
"""
    )
    assert sorted(lines) == ["orders abandoned-session", "shop abandoned-session"]
    assert complaints == ""


def test_the_process_ends_while_the_watch_is_amid_a_look() -> None:
    lines, complaints, took = run(
        """
from session_tracer.facts import TimePassed

hangs = threading.Event()

class Hangs:
    facts = ()
    candidates = (TimePassed,)

    def memory(self):
        pass

    def judge(self, fact, record, memory):
        hangs.set()
        time.sleep(60)
        return ()

instrument(
    factory,
    exporter=Exporter(on_finding=lambda found: print(found.id, flush=True)),
    detectors=[*DEFAULT_DETECTORS, Hangs()],
    idle_in_transaction_seconds=0.02,
)
left_open = open_one()
hangs.wait(20)
"""
    )
    assert lines == ["idle-in-transaction", "abandoned-session"]
    assert complaints == ""
    assert took < 30


def test_the_process_ends_while_the_console_is_written_to() -> None:
    """The thread is killed where it stands: nothing it holds then may be waited for."""
    _, complaints, _ = run(
        """
instrument(factory, idle_in_transaction_seconds=0.001, leak_after_seconds=0.002)
sessions = [open_one() for _ in range(40)]
time.sleep(0.06)
""",
        SESSION_TRACER_EXPORTER="console",
    )
    assert "abandoned-session" in complaints
    assert "Fatal" not in complaints
    assert "Traceback" not in complaints


def test_the_process_ends_at_once_where_nothing_is_left() -> None:
    lines, complaints, _ = run(
        """
import atexit
began = []
atexit.register(lambda: print(time.monotonic() - began[0], flush=True))
instrument(factory, exporter=Exporter())
open_one().close()
unused = factory()
began.append(time.monotonic())
"""
    )
    assert complaints == ""
    (took,) = map(float, lines)
    assert took < 0.5

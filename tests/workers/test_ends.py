"""Tests what the log has of a process after a signal, its server or the system has ended it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from tests.workers.test_workers import GUNICORN, Shop, get

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 60.0
UVICORN = ["uvicorn", "tests.workers.application:named_asgi", "--lifespan=on"]
OF_UVICORN = ["gunicorn", "tests.workers.application:named_asgi", "--workers=2"]
# What it returns: uvicorn ends by the signal that it has received.
SERVERS: dict[str, tuple[list[str], str, int]] = {
    "uvicorn": (UVICORN, "--uds={}", -signal.SIGTERM),
    "uvicorn with two workers": ([*UVICORN, "--workers=2"], "--uds={}", 0),
    "gunicorn": (GUNICORN, "--bind=unix:{}", 0),
    "gunicorn, preloaded": ([*GUNICORN, "--preload"], "--bind=unix:{}", 0),
    "gunicorn with threads": ([*GUNICORN, "--worker-class=gthread"], "--bind=unix:{}", 0),
    "gunicorn with uvicorn's workers": (
        [*OF_UVICORN, "--worker-class=uvicorn.workers.UvicornWorker"],
        "--bind=unix:{}",
        0,
    ),
}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def findings(events: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """The findings in the log, each with the number that was held back before it."""
    return [
        (event["finding_id"], event.get("suppressed", 0))
        for event in events
        if event["event"] == "finding"
    ]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_that_is_terminated_reports_what_its_requests_have_left_open(
    shop: Shop, kind: str
) -> None:
    command, bind, code = SERVERS[kind]
    path = shop.folder / "socket"
    with shop.running(*command, bind.format(path)) as server:
        by = {get(path, "/leak") for _ in range(3)}
        get(path)
        shop.wait_for(1)
        assert findings(shop.events()) == []
    assert server.returncode == code
    found = [event for event in shop.events() if event["event"] == "finding"]
    # What was held back is logged as well.
    assert sum(1 + event.get("suppressed", 0) for event in found) == 3
    assert {event["finding_id"] for event in found} == {"abandoned-session"}
    assert {str(event["process_pid"]) for event in found} == by
    assert all("leave_open()" in event["site"] for event in found)
    assert [event["outcome"] for event in shop.closed()].count("abandoned") == 3
    if "uvicorn" in kind:
        assert {event["work"] for event in found} == {"GET /leak"}
        assert {event["ending"] for event in found} == {"shutdown"}


# Scripts.

BEGINNING = """\
import atexit, multiprocessing, os, signal, sys, threading, time
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from session_tracer import instrument

# A run of the tests in the background may ignore it, and its children then do so, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
LOG = sys.argv[1]
factory = sessionmaker(create_engine("sqlite://"))
tracing = instrument(factory, exporter="jsonl", jsonl_path=LOG, log_level="debug")

def use():
    with factory() as session:
        session.execute(text("SELECT 1"))

def leave_open():
    session = factory()
    session.execute(text("SELECT 1"))
    return session

def ready():
    print("ready", flush=True)
    time.sleep(60)

use()
kept = leave_open()
"""

# How a script ends, and what is reported of the session that it has left open.
REPORTED = [("abandoned-session", 0)]
ENDS: dict[str, tuple[str, int, int, list[tuple[str, int]]]] = {
    "SIGTERM and a handler that exits": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\nready()",
        signal.SIGTERM,
        3,
        REPORTED,
    ),
    "SIGTERM and a handler that raises KeyboardInterrupt": (
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\nready()",
        signal.SIGTERM,
        -signal.SIGINT,
        REPORTED,
    ),
    "SIGTERM and no handler": ("tracing.flush()\nready()", signal.SIGTERM, -signal.SIGTERM, []),
    "SIGHUP and no handler": ("tracing.flush()\nready()", signal.SIGHUP, -signal.SIGHUP, []),
    "SIGKILL": ("tracing.flush()\nready()", signal.SIGKILL, -signal.SIGKILL, []),
    "os._exit()": ("tracing.flush()\nprint(flush=True)\nos._exit(5)", 0, 5, []),
    "uninstrument() and os._exit()": (
        "print(flush=True)\ntracing.uninstrument()\nos._exit(5)",
        0,
        5,
        [],
    ),
    "an error": ("print(flush=True)\nraise LookupError", 0, 1, REPORTED),
    "a thread that exits": (
        """
        def work():
            ready()
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.5)
        sys.exit(4)
        """,
        0,
        4,
        REPORTED,
    ),
}


def ended(tmp_path: Path, program: str, number: int) -> tuple[int, list[dict[str, Any]], str]:
    """The code of a script that was ended by the signal, its log, and its errors."""
    log = tmp_path / "events.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", BEGINNING + textwrap.dedent(program), log],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        assert script.stdout is not None
        script.stdout.readline()
        if number:
            script.send_signal(number)
        _, errors = script.communicate(timeout=SECONDS)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return script.returncode, events, errors


@pytest.mark.parametrize("how", ENDS)
def test_what_was_reported_before_the_end_is_in_the_log(tmp_path: Path, how: str) -> None:
    program, number, code, expected = ENDS[how]
    returned, events, errors = ended(tmp_path, program, number)
    assert returned == code, errors
    closed = [event["outcome"] for event in events if event["event"] == "session.closed"]
    assert closed == ["closed", *(["abandoned"] if expected else [])]
    assert findings(events) == expected
    assert "session_tracer failed" not in errors


def test_a_process_that_is_killed_leaves_whole_lines(tmp_path: Path) -> None:
    program = """
        def work():
            while True:
                use()
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        while os.path.getsize(LOG) < 100_000:
            time.sleep(0.01)
        ready()
        """
    log = tmp_path / "events.jsonl"
    returned, events, _ = ended(tmp_path, program, signal.SIGKILL)
    assert returned == -signal.SIGKILL
    assert log.read_bytes().endswith(b"}\n")
    assert {event["event"] for event in events} >= {"session.opened", "session.closed"}
    # In the order in which they were reported, without a gap.
    opened = {event["session_id"] for event in events if event["event"] == "session.opened"}
    closed = {event["session_id"] for event in events if event["event"] == "session.closed"}
    assert closed <= opened
    assert len(opened - closed) < 10


def test_the_stop_of_a_child_by_multiprocessing_leaves_whole_lines(tmp_path: Path) -> None:
    program = """
        def child():
            engine = create_engine("sqlite://")
            factory.configure(bind=engine)
            kept = leave_open()
            use()
            tracing.flush()
            ready()
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        time.sleep(1)
        process.terminate()
        process.join()
        print(process.exitcode, file=sys.stderr)
        """
    _, events, errors = ended(tmp_path, program, 0)
    assert str(-signal.SIGTERM) in errors
    pids = {event["process_pid"] for event in events}
    assert len(pids) == 2
    parent = events[0]["process_pid"]
    assert [event["event"] for event in events if event["process_pid"] != parent].count(
        "session.closed"
    ) == 1
    assert findings(events) == REPORTED

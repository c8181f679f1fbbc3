"""Tests that with gevent and eventlet nothing hangs and all is reported, whenever they patch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("green.py")
SECONDS = 60.0
# How often four sessions have run while they were traced, in the process and in its child.
ORDERS = {
    "patched before the import": (1, 0),
    "patched before instrument()": (1, 0),
    "patched later": (2, 0),
    "patched later, then forked": (2, 1),
}
# On Python 3.13, gevent itself fails so in a child that is forked while a thread runs that was
# started before gevent patched threads.
GEVENTS_OWN = "TypeError: _ThreadHandle._set_done() takes no keyword arguments"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_sessions_are_reported_and_the_process_ends(
    tmp_path: Path, library: str, order: str
) -> None:
    log = tmp_path / "events.jsonl"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, library, order, "jsonl,logging,console", log],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    assert done.stderr.count("Traceback") == done.stderr.count(GEVENTS_OWN)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    closed = Counter(event["process_pid"] for event in events if event["event"] == "session.closed")
    assert sorted(closed.values()) == [4 * times for times in sorted(ORDERS[order]) if times]
    # The watch concludes on a thread of the system, whatever is patched.
    assert {event["finding_id"] for event in events if event["event"] == "finding"} == {
        "idle-in-transaction"
    }


SPAWNED = """
import eventlet

eventlet.monkey_patch()
IMPORTS

import threading

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer.testing import capture
from session_tracer.where import owner
from tests.library import Author, Base

engine = create_engine("sqlite://", poolclass=StaticPool)
Base.metadata.create_all(engine)
factory = sessionmaker(engine)


def work(name):
    assert owner.current() == owner.current()
    assert owner.current().is_current()
    with factory() as session:
        session.add(Author(name=name))
        session.flush()
        session.commit()


with capture(factory) as captured:
    for name in ("Ada", "Grace", "Mary"):
        eventlet.spawn_n(work, name)
    eventlet.sleep(0.1)
print(len(captured.sessions), captured.findings)
"""
# OpenStack's services do this, so that the threads of both modules are the same.
SHARED = """
import __original_module_threading
import threading

__original_module_threading.current_thread.__globals__["_active"] = threading._active
"""


@pytest.mark.parametrize("imports", ["", SHARED], ids=["plain", "as OpenStack does"])
def test_a_greenlet_that_takes_itself_for_another_thread_uses_a_session_alone(
    imports: str,
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SPAWNED.replace("IMPORTS", imports)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.stdout, done.stderr) == ("3 []\n", "")

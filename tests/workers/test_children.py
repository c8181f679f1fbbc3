"""Tests that children of every kind report what is open when they end, and whose it is."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Each child leaves one session open.
PROGRAM = """
import json, multiprocessing, os, sys
import billiard
from concurrent.futures import ProcessPoolExecutor
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool
from session_tracer import instrument

LOG = sys.argv[1]
SessionLocal = sessionmaker(create_engine("sqlite://", poolclass=NullPool))
instrument(SessionLocal, exporter="jsonl", jsonl_path=LOG)
LEFT_OPEN = []

def work(_=None):
    session = SessionLocal()
    session.execute(text("SELECT 1"))
    LEFT_OPEN.append(session)
    return os.getpid()

def process_of(library, kind):
    child = library.get_context(kind).Process(target=work)
    child.start()
    child.join()
    return child.pid

def pooled(kind):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(kind)) as pool:
        return pool.submit(work).result()

def forked():
    child = os.fork()
    if child == 0:
        work()
        sys.exit()
    os.waitpid(child, 0)
    return child

if __name__ == "__main__":
    kinds = ("fork", "spawn", "forkserver")
    pids = {f"multiprocessing {kind}": process_of(multiprocessing, kind) for kind in kinds}
    pids["billiard fork"] = process_of(billiard, "fork")
    pids["process pool fork"] = pooled("fork")
    pids["process pool spawn"] = pooled("spawn")
    pids["os.fork"] = forked()
    print(json.dumps(pids))
"""


def test_what_a_child_leaves_open_is_in_the_log_with_the_childs_pid(tmp_path: Path) -> None:
    # Children that are spawned import the program again, by its name.
    program, log = tmp_path / "program.py", tmp_path / "events.jsonl"
    program.write_text(PROGRAM)
    # From Python 3.12 on, Python warns of a fork where threads run.
    python = [sys.executable, "-Wignore:This process:DeprecationWarning"]
    done = subprocess.run(
        [*python, program, log], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    kinds: dict[str, int] = json.loads(done.stdout)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    told = {
        kind: [
            (event["event"], event.get("finding_id") or event.get("outcome"))
            for event in events
            if event["process_pid"] == pid
        ]
        for kind, pid in kinds.items()
    }
    expected = [("finding", "abandoned-session"), ("session.closed", "abandoned")]
    assert told == dict.fromkeys(kinds, expected)

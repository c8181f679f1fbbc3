"""That processes end, fork and are interrupted as they would without us, and say as little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

BEGINNING = """\
import atexit, faulthandler, gc, json, os, signal, sys, threading, time, warnings
faulthandler.dump_traceback_later(40)
from contextlib import suppress
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.orm import Session, sessionmaker
from session_tracer import Exporter, instrument, live_sessions, uninstrument
from tests.hostile.worlds import GOT, library, unit_of_work
from tests.library import Author

engine = library(os.environ["TEST_DATABASE"])
factory = sessionmaker(engine)
ONE = text("SELECT 1")

def open_one():
    session = factory()
    session.execute(ONE)
    return session
"""

# With every exporter the process is to end in the same way; OTLP finds nobody to talk to.
EXPORTERS = {
    "none": {},
    "console": {"SESSION_TRACER_EXPORTER": "console"},
    "jsonl": {"SESSION_TRACER_EXPORTER": "jsonl"},
    "otlp": {
        "SESSION_TRACER_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    },
}
INSTRUMENT = {
    "none": "instrumentation = None\n",
    **dict.fromkeys(("console", "jsonl", "otlp"), "instrumentation = instrument(factory)\n"),
}


def run(
    tmp_path: Path, program: str, exporter: str = "none", code: int = 0
) -> tuple[list[str], str]:
    """The lines that a program writes, and what it complains of."""
    environment = {
        **os.environ,
        **EXPORTERS[exporter],
        "SESSION_TRACER_JSONL_PATH": str(tmp_path / "log.jsonl"),
        "SESSION_TRACER_LOG_LEVEL": "debug",
        "TEST_DATABASE": str(tmp_path / "library.db"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    ran = subprocess.run(
        [sys.executable, "-c", BEGINNING + INSTRUMENT[exporter] + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert ran.returncode == code, ran.stderr
    return ran.stdout.splitlines(), ran.stderr


def complaints(stderr: str) -> list[str]:
    """Lines that say that something went wrong."""
    wrong = ("Traceback", "Exception ignored", "Fatal", "session_tracer failed", "RuntimeError")
    return [line for line in stderr.splitlines() if any(one in line for one in wrong)]


# The end.

ENDINGS = {
    "open sessions": """
        kept = [open_one() for _ in range(3)]
        kept[0].add(Author(name="unsaved"))
        kept[1].add(Author(name="flushed")); kept[1].flush()
        print("done")
        """,
    "a session in atexit": """
        def last_words():
            print(unit_of_work(factory) == GOT, flush=True)
        atexit.register(last_words)
        """,
    "a session in atexit after us": """
        uninstrument()
        def last_words():
            if os.environ.get("SESSION_TRACER_EXPORTER"):
                instrument(factory)
            print(unit_of_work(factory) == GOT, flush=True)
        atexit.register(last_words)
        """,
    "a session in __del__": """
        class Keeper:
            def __init__(self):
                self.session = open_one()
            def __del__(self):
                self.session.execute(ONE)
                self.session.close()
        keeper = Keeper()
        sys.modules["keeper"] = keeper
        print("done", flush=True)
        """,
    "a session kept by a module to the very end": """
        import sqlalchemy.orm.session as module
        module.kept = open_one()
        print("done")
        """,
    "daemon threads": """
        began = threading.Semaphore(0)
        def work():
            while True:
                with suppress(Exception):
                    with factory() as session:
                        session.scalars(select(Author)).all()
                began.release()
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        for _ in range(12):
            began.acquire()
        print("done", flush=True)
        """,
    "a daemon thread that waits amid a transaction": """
        ready = threading.Event()
        def wait():
            with factory() as session:
                session.execute(ONE)
                ready.set()
                time.sleep(60)
        threading.Thread(target=wait, daemon=True).start()
        ready.wait()
        print("done", flush=True)
        """,
    "sessions collected as all ends": """
        gc.disable()
        for _ in range(10):
            session = open_one()
            session.myself = session
        del session
        print("done", flush=True)
        """,
    "uninstrumented as all ends": """
        kept = open_one()
        atexit.register(uninstrument)
        atexit.register(kept.close)
        print("done", flush=True)
        """,
}


@pytest.mark.parametrize(
    ("how", "exporter"),
    [(how, "console") for how in ENDINGS] + [("open sessions", "otlp"), ("daemon threads", "otlp")],
)
def test_a_process_ends_without_a_complaint_of_ours(
    tmp_path: Path, how: str, exporter: str
) -> None:
    lines, stderr = run(tmp_path, ENDINGS[how], exporter)
    told = [line for line in lines if line in ("done", "True", "False")]
    assert told == (["True"] if "atexit" in how else ["done"])
    assert complaints(stderr) == []


def test_an_exception_that_ends_the_process_is_all_that_is_said(tmp_path: Path) -> None:
    said = []
    for exporter in ("none", "jsonl"):
        path = tmp_path / exporter
        path.mkdir()
        _, stderr = run(
            path,
            """
            with factory() as session:
                session.add(Author(name="Ada"))
                session.flush()
                raise LookupError("the application's own")
            """,
            exporter,
            code=1,
        )
        said.append([line for line in stderr.splitlines() if "session_tracer" not in line])
    assert said[1] == said[0]


# Interrupts, as they come.


def test_real_signals_interrupt_the_application_and_harm_no_other_session(tmp_path: Path) -> None:
    lines, stderr = run(
        tmp_path,
        """
        from opentelemetry import context
        from opentelemetry.sdk.trace import TracerProvider
        import random
        from session_tracer.ledger import watchdog

        told = []
        exporter = Exporter(
            tracer_provider=TracerProvider(shutdown_on_exit=False), on_session=told.append
        )
        instrument(factory, exporter=exporter, statement_spans=True, leak_after_seconds=3600)

        def interrupt(number, frame):
            while frame is not None:  # the loop below is not to be interrupted itself
                if frame.f_code is unit_of_work.__code__:
                    raise KeyboardInterrupt
                frame = frame.f_back

        signal.signal(signal.SIGVTALRM, interrupt)
        chance = random.Random(5)
        unit_of_work(factory)
        began = time.process_time()
        unit_of_work(factory)
        lasts = time.process_time() - began
        interrupted = wrong = untold = 0
        before = context.get_current()
        for _ in range(50):
            try:
                signal.setitimer(signal.ITIMER_VIRTUAL, max(1e-6, chance.random() * lasts))
                unit_of_work(factory)
            except BaseException as error:
                while error is not None and not isinstance(error, KeyboardInterrupt):
                    error = error.__context__
                interrupted += error is not None
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            error = None
            gc.collect()
            context.attach(before)
            with engine.begin() as connection:
                connection.exec_driver_sql("DELETE FROM authors WHERE name IN ('Ada', 'Bea')")
            watchdog.settle()  # its thread reports what was collected
            told.clear()
            wrong += unit_of_work(factory) != GOT
            untold += [summary.outcome for summary in told][:1] != ["committed"]
        print(interrupted > 5, wrong, untold)
        """,
    )
    assert lines == ["True 0 0"], stderr
    # What strikes in a finalizer is said by the interpreter, with or without us.
    assert "session_tracer failed" not in stderr


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_process_at_work(tmp_path: Path, number: str) -> None:
    _, stderr = run(
        tmp_path,
        f"""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        # A process that a shell started in the background has inherited that SIGINT is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.{number})).start()
        try:
            while True:
                unit_of_work(factory)
        except KeyboardInterrupt:
            sys.exit(7)
        except Exception as error:  # what SQLAlchemy makes of one that strikes as a flush ends
            assert isinstance(error.__context__, KeyboardInterrupt | SystemExit), error
            sys.exit(7)
        """,
        "jsonl",
        code=7,
    )
    assert "session_tracer failed" not in stderr


# Forks.

FORKS = {
    "amid a transaction": """
        session = open_one()
        session.add(Author(name="Ada"))
        child = os.fork()
        """,
    "amid a flush": """
        session = open_one()
        forked = []
        @event.listens_for(session, "after_flush")
        def fork(*_):
            forked.append(os.fork())
            if forked == [0]:
                raise LookupError  # the connection is the parent's
        session.add(Author(name="Ada"))
        with suppress(LookupError), session.no_autoflush:
            session.connection().rollback = lambda: None
            session.flush()
        (child,) = forked
        """,
    "as a lock is held by another thread": """
        session = open_one()
        stop = threading.Event()
        def come_and_go():
            while not stop.is_set():
                instrument(Session, exporter=Exporter()).uninstrument()
                live_sessions()
        busy = threading.Thread(target=come_and_go, daemon=True)
        if instrumentation is not None:
            busy.start()
        time.sleep(0.05)
        child = os.fork()
        stop.set()
        if child and instrumentation is not None:
            busy.join()
        """,
    "by multiprocessing": """
        import multiprocessing
        session = open_one()
        def work():
            factory.configure(bind=library(os.environ["TEST_DATABASE"] + ".child"))
            print(json.dumps(["child", unit_of_work(factory) == GOT]), flush=True)
        process = multiprocessing.get_context("fork").Process(target=work)
        session.close()
        process.start(); process.join()
        child = -1
        """,
}

AFTER_A_FORK = """
if child == 0:
    # SQLite allows no child to touch what its parent has open; nor does any other database.
    inherited = [session, engine]
    factory.configure(bind=library(os.environ["TEST_DATABASE"] + ".child"))
else:
    with suppress(Exception):
        session.rollback()
    session.close()
got = ["child" if child == 0 else "parent", unit_of_work(factory) == GOT]
if child == 0:
    if instrumentation is not None:
        instrumentation.uninstrument()
        got[1] = got[1] and unit_of_work(factory) == GOT
    print(json.dumps(got), flush=True)
    os._exit(0)
if child > 0:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
print(json.dumps(got), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("how", "exporter"), [(how, "jsonl") for how in FORKS] + [("amid a transaction", "otlp")]
)
def test_a_fork_leaves_both_processes_to_go_on(tmp_path: Path, how: str, exporter: str) -> None:
    program = 'warnings.simplefilter("ignore")\n' + textwrap.dedent(FORKS[how]) + AFTER_A_FORK
    lines, stderr = run(tmp_path, program, exporter)
    assert sorted(json.loads(line) for line in lines) == [["child", True], ["parent", True]]
    assert complaints(stderr) == []

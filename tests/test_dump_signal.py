"""Tests that a signal makes a process write `dump()`, whatever its threads do at that moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.orm import sessionmaker

from session_tracer import Settings, instrument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECONDS = 30.0
BEGINNING = """\
import asyncio, ctypes, faulthandler, io, os, signal, sqlite3, sys, threading, time
from functools import partial
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from session_tracer import Exporter, dump, instrument, uninstrument

URL = sys.argv[1]
engine = create_engine(URL)
factory = sessionmaker(engine)
ONE = text("SELECT 1")
KEPT = []

def open_one():
    session = factory()
    session.execute(ONE)
    KEPT.append(session)
    return session

def say(*words):
    # At once: a parent and its child have the same pipe.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

take = partial(instrument, factory, exporter=Exporter(), dump_signal="SIGUSR1")
"""


class Child:
    """A process that runs a program, and what it writes."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self.errors = errors

    def hear(self) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.errors.read_text()
        return line

    def send(self, number: int = signal.SIGUSR1, pid: int | None = None) -> None:
        os.kill(pid or self.process.pid, number)

    def dumps(self) -> list[str]:
        """The first line of each dump."""
        lines = self.errors.read_text().splitlines()
        return [line for line in lines if line.startswith("process ")]

    def wait_for(self, dumps: int) -> list[str]:
        wait_until(lambda: len(self.dumps()) >= dumps, self.errors)
        return self.dumps()


def wait_until(happened: Callable[[], object], errors: Path) -> None:
    until = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < until, errors.read_text()
        time.sleep(0.01)


@contextmanager
def running(tmp_path: Path, program: str, url: str = "") -> Iterator[Child]:
    """A child that runs the program, for the length of the block."""
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", BEGINNING + textwrap.dedent(program)),
                url or f"sqlite:///{tmp_path / 'shop.db'}",
            ],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,
        )
    with process:
        try:
            yield Child(process, errors)
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)


# A process that hangs.

HANGS = {
    "waits for a lock": """
        lock = threading.Lock()
        lock.acquire()
        say("ready")
        lock.acquire()
        """,
    "sleeps": """
        say("ready")
        time.sleep(60)
        """,
    "calculates": """
        say("ready")
        while True:
            pass
        """,
    "never returns from C": """
        mutex = ctypes.create_string_buffer(128)
        library = ctypes.CDLL(None)
        library.pthread_mutex_lock(mutex)
        say("ready")
        library.pthread_mutex_lock(mutex)
        """,
    "waits for SQLite's lock": """
        locking = sqlite3.connect(engine.url.database, isolation_level=None)
        locking.execute("BEGIN EXCLUSIVE")
        waiting = sqlite3.connect(engine.url.database, timeout=60)
        say("ready")
        waiting.execute("BEGIN IMMEDIATE")
        """,
    "blocks its event loop": """
        async def main():
            say("ready")
            time.sleep(60)
        asyncio.run(main())
        """,
    "waits in its event loop": """
        async def main():
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, print)
            say("ready")
            await asyncio.sleep(60)
        asyncio.run(main())
        """,
}


@pytest.mark.parametrize("how", HANGS)
def test_a_process_that_hangs_writes_its_open_sessions(tmp_path: Path, how: str) -> None:
    if how == "waits for SQLite's lock":
        (tmp_path / "shop.db").touch()
    program = "take()\nopen_one()\n" + textwrap.dedent(HANGS[how])
    with running(tmp_path, program) as child:
        assert child.hear() == "ready"
        time.sleep(0.1)  # hangs since then
        for times in (1, 2):
            child.send()
            first = child.wait_for(times)[-1]
            assert first.startswith(f"process {child.process.pid} on ")
            assert " 1 open; 0 left behind; 0 waiting for a connection; pool " in first
            time.sleep(0.15)
        assert child.process.poll() is None
        assert "in open_one()" in child.errors.read_text()


def test_a_process_that_waits_for_a_row_of_postgresql_writes_its_open_sessions(
    tmp_path: Path, postgres_url: str
) -> None:
    program = """
        take()
        with factory() as first:
            first.execute(text("CREATE TABLE stock AS SELECT 1 AS id"))
            first.commit()
            first.execute(text("SELECT id FROM stock FOR UPDATE"))
            with factory() as second:
                second.execute(text("SET application_name = 'the one that waits'"))
                say("ready")
                second.execute(text("SELECT id FROM stock FOR UPDATE"))
        """
    url = postgres_url.replace("postgresql:", "postgresql+psycopg:")
    with running(tmp_path, program, url) as child:
        assert child.hear() == "ready"
        time.sleep(0.3)
        child.send()
        assert " 2 open; " in child.wait_for(1)[0]
        wait_until(lambda: child.errors.read_text().count("server process ") == 2, child.errors)


def test_signals_come_at_any_moment_while_sessions_are_opened_and_closed(tmp_path: Path) -> None:
    program = """
        # What the application's own handler does, it does in the middle of any of its code.
        handled = []
        signal.signal(signal.SIGUSR1, lambda *_: handled.append(dump(io.StringIO())))
        take()
        stop = threading.Event()
        def work():
            while not stop.is_set():
                with factory() as session:
                    session.execute(ONE)
        other = threading.Thread(target=work)
        other.start()
        say("ready")
        until = time.monotonic() + 60
        while not os.path.exists(sys.argv[1][10:] + ".stop") and time.monotonic() < until:
            with factory() as session:
                session.execute(ONE)
        stop.set()
        other.join()
        say("done", len(handled) > 30)
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "ready"
        for _ in range(300):
            child.send()
            time.sleep(0.005)
        (tmp_path / "shop.db.stop").touch()
        assert child.hear() == "done True"
        assert child.process.wait(SECONDS) == 0
        assert child.dumps()
        assert "Traceback" not in child.errors.read_text()


# The handler that exists.


def test_the_applications_handler_is_called_as_well_and_restored(tmp_path: Path) -> None:
    program = """
        class Reload:
            def handle(self, number, frame):
                say("reloads", number == signal.SIGUSR1)
        handler = Reload().handle
        signal.signal(signal.SIGUSR1, handler)
        tracing = take()
        open_one()
        say("ready")
        time.sleep(1)
        tracing.uninstrument()
        say(signal.getsignal(signal.SIGUSR1) == handler)
        os.kill(os.getpid(), signal.SIGUSR1)
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "ready"
        child.send()
        assert child.hear() == "reloads True"
        child.wait_for(1)
        assert [child.hear() for _ in range(2)] == ["True", "reloads True"]
        assert child.process.wait(SECONDS) == 0
        assert len(child.dumps()) == 1


def test_asyncios_handler_is_called_as_well(tmp_path: Path) -> None:
    program = """
        async def main():
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, say, "reloads")
            take()
            open_one()
            say("ready")
            await asyncio.sleep(60)
        asyncio.run(main())
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "ready"
        child.send()
        assert child.hear() == "reloads"
        child.wait_for(1)


ENDS = {
    "the default action": ("", -signal.SIGUSR1),
    "no action": ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n", 0),
}


@pytest.mark.parametrize("before", ENDS)
def test_uninstrumenting_restores_what_was_there(tmp_path: Path, before: str) -> None:
    first, code = ENDS[before]
    program = """
        known = signal.getsignal(signal.SIGUSR1)
        tracing = take()
        open_one()
        say(sum(one.name == "session_tracer-dump" for one in threading.enumerate()))
        tracing.uninstrument()
        say(any("session_tracer" in one.name for one in threading.enumerate()))
        again = take()
        again.uninstrument()
        say(signal.getsignal(signal.SIGUSR1) == known, signal.set_wakeup_fd(-1))
        os.kill(os.getpid(), signal.SIGUSR1)
        """
    with running(tmp_path, first + textwrap.dedent(program)) as child:
        assert [child.hear() for _ in range(3)] == ["1", "False", "True -1"]
        assert child.process.wait(SECONDS) == code
        assert child.errors.read_text() == ""


def test_a_handler_that_was_set_later_is_not_replaced(tmp_path: Path) -> None:
    program = """
        tracing = take()
        signal.signal(signal.SIGUSR1, lambda *_: say("the later one"))
        open_one().close()
        os.kill(os.getpid(), signal.SIGUSR1)
        tracing.uninstrument()
        os.kill(os.getpid(), signal.SIGUSR1)
        say("taken again")
        take()
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1)
        """
    with running(tmp_path, program) as child:
        heard = [child.hear() for _ in range(4)]
        assert heard == ["the later one"] * 2 + ["taken again", "the later one"]
        child.wait_for(1)
        assert child.process.wait(SECONDS) == 0
        said, *_ = child.errors.read_text().splitlines()
        assert "at SIGUSR1, because another handler of it was set after instrument(). " in said
        assert "Free: SIGUSR2, " in said
        assert len(child.dumps()) == 1


def test_a_handler_of_a_library_is_left_alone_and_the_message_has_free_signals(
    tmp_path: Path,
) -> None:
    program = """
        import structlog
        # As a server's handler would be.
        def handler(number, frame):
            say("the server's")
        handler.__module__ = "structlog"
        signal.signal(signal.SIGUSR1, partial(handler))
        signal.signal(signal.SIGUSR2, say)
        take()
        take()
        open_one().close()
        os.kill(os.getpid(), signal.SIGUSR1)
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "the server's"
        assert child.process.wait(SECONDS) == 0
        (said,) = child.errors.read_text().splitlines()
        assert said.startswith(
            "session_tracer: no dump is written at SIGUSR1: structlog handles SIGUSR1. Free: SIG"
        )
        assert "SIGUSR2" not in said


def test_faulthandlers_own_use_of_the_signal_is_left_alone(tmp_path: Path) -> None:
    program = """
        faulthandler.register(signal.SIGUSR1, all_threads=False)
        tracing = take()
        open_one()
        os.kill(os.getpid(), signal.SIGUSR1)
        tracing.uninstrument()
        os.kill(os.getpid(), signal.SIGUSR1)
        say("done")
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "done"
        assert child.process.wait(SECONDS) == 0
        said = child.errors.read_text()
        assert "a C extension handles SIGUSR1, perhaps faulthandler. Free: SIGUSR2" in said
        assert said.count("(most recent call first)") == 2
        assert child.dumps() == []


# Threads, children and descriptors.


def test_another_thread_cannot_take_it_which_is_logged_once(tmp_path: Path) -> None:
    program = """
        for _ in range(2):
            other = threading.Thread(target=take)
            other.start()
            other.join()
        open_one().close()
        say("done", signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL)
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "done True"
        assert child.process.wait(SECONDS) == 0
        (said,) = child.errors.read_text().splitlines()
        assert "at SIGUSR1: Python allows only the main thread to change its handler. The" in said


def test_another_thread_leaves_a_handler_that_does_nothing_and_restores_the_rest(
    tmp_path: Path,
) -> None:
    program = """
        tracing = take()
        open_one()
        other = threading.Thread(target=tracing.uninstrument)
        other.start()
        other.join()
        os.kill(os.getpid(), signal.SIGUSR1)
        say("goes on", any("session_tracer" in one.name for one in threading.enumerate()))
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "goes on False"
        assert child.process.wait(SECONDS) == 0
        (said,) = child.errors.read_text().splitlines()
        assert said.startswith("session_tracer: its handler of SIGUSR1 stays, and does nothing: ")


@pytest.mark.parametrize("first", ["the main thread", "another thread"])
def test_any_thread_may_open_the_first_session(tmp_path: Path, first: str) -> None:
    program = """
        take()
        opening = threading.Thread(target=open_one)
        opening.run() if FIRST == "the main thread" else opening.start()
        say("ready", len(KEPT) or opening.join() or len(KEPT))
        time.sleep(60)
        """
    program = f"FIRST = {first!r}\n" + textwrap.dedent(program)
    with running(tmp_path, program) as child:
        assert child.hear() == "ready 1"
        for times in (1, 2):
            child.send()
            child.wait_for(times)
            time.sleep(0.3)
        assert len(child.dumps()) == 2


def test_the_wake_up_descriptor_of_another_library_stays(tmp_path: Path) -> None:
    program = """
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        tracing = take()
        open_one()
        say("ready")
        say(*os.read(read_end, 9))
        tracing.uninstrument()
        say(signal.set_wakeup_fd(-1) == write_end)
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "ready"
        child.send()
        assert child.hear() == str(int(signal.SIGUSR1))
        child.wait_for(1)
        assert child.hear() == "True"
        assert len(child.dumps()) == 1


def test_a_library_that_warns_of_another_wake_up_descriptor_finds_none(tmp_path: Path) -> None:
    program = """
        sys.modules["trio"] = type(sys)("trio")
        take()
        open_one()
        say("ready", signal.set_wakeup_fd(-1))
        time.sleep(60)
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "ready -1"
        child.send()
        child.wait_for(1)


def test_a_signal_can_be_named_by_its_number(tmp_path: Path) -> None:
    program = """
        take(dump_signal=int(signal.SIGUSR2))
        open_one()
        say("ready")
        time.sleep(60)
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "ready"
        child.send(signal.SIGUSR2)
        child.wait_for(1)


def test_two_instrumentations_write_one_dump(tmp_path: Path) -> None:
    program = """
        take()
        other = instrument(sessionmaker(engine), exporter=Exporter(), dump_signal=signal.SIGUSR1)
        open_one()
        other.uninstrument()
        say("ready")
        time.sleep(60)
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "ready"
        child.send()
        child.wait_for(1)
        time.sleep(0.3)
        assert child.errors.read_text().count("process ") == 1


@pytest.mark.parametrize("when", ["before the first session", "after it"])
def test_a_forked_child_writes_its_own_sessions(tmp_path: Path, when: str) -> None:
    program = """
        take()
        open_one() if "after" in WHEN else None
        child = os.fork()
        if child == 0:
            engine.dispose(close=False)
            open_one()
            open_one()
            say("ready")
            time.sleep(60)
        open_one() if "before" in WHEN else None
        say(child)
        time.sleep(60)
        """
    with running(tmp_path, f"WHEN = {when!r}\n" + textwrap.dedent(program)) as child:
        said = {child.hear(), child.hear()} - {"ready"}
        forked = int(said.pop())
        child.send(pid=forked)
        assert f"process {forked} on " in child.wait_for(1)[0]
        assert " 2 open; " in child.dumps()[0]
        child.send()
        assert f"process {child.process.pid} on " in child.wait_for(2)[1]
        assert " 1 open; " in child.dumps()[1]


def test_no_thread_runs_before_the_first_session_which_answers_an_earlier_signal(
    tmp_path: Path,
) -> None:
    program = """
        take()
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.1)  # a thread would have answered
        say(threading.active_count(), open("errors").read())
        open_one()
        time.sleep(60)
        """
    with running(tmp_path, f"os.chdir({str(tmp_path)!r})\n" + textwrap.dedent(program)) as child:
        assert child.hear() == "1"
        assert child.wait_for(1)[0].startswith(f"process {child.process.pid} on ")


def test_a_process_that_closes_every_descriptor_loses_none_of_its_own(tmp_path: Path) -> None:
    # As daemons do, after their modules have been imported.
    program = """
        tracing = take()
        os.closerange(3, 100)
        ends = [os.pipe() for _ in range(8)]
        open_one()
        say("ready")
        time.sleep(0.5)
        say("goes on")
        tracing.uninstrument()
        for read_end, write_end in ends:
            os.write(write_end, b"x")
            assert os.read(read_end, 9) == b"x"
        say("done")
        """
    with running(tmp_path, program) as child:
        assert child.hear() == "ready"
        child.send()
        child.wait_for(1)
        assert [child.hear(), child.hear()] == ["goes on", "done"]
        assert child.process.wait(SECONDS) == 0


# Values.

WRONG = ["SIGUSR9", "USR1", "SIGKILL", "SIGSTOP", "SIGSEGV", "SIGTERM", 9, 15, 0, 200, True, None]


@pytest.mark.parametrize("value", WRONG)
def test_a_wrong_value_is_refused_before_anything_is_changed(value: object) -> None:
    with pytest.raises(ValueError, match=r"Invalid dump_signal=.*: expected the name or the num"):
        instrument(sessionmaker(), dump_signal=value)  # type: ignore[arg-type] # the point


def test_a_misspelt_name_has_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"Did you mean 'SIGUSR2'\?"):
        Settings(dump_signal="SIGUS2")
    with pytest.raises(
        ValueError, match=r"Invalid SESSION_TRACER_DUMP_SIGNAL='USR1': .*Did you mean 'SIGUSR1'\?"
    ):
        Settings.from_env({"SESSION_TRACER_DUMP_SIGNAL": "USR1"})


def test_the_environment_has_a_name_or_a_number() -> None:
    for text, value in (("SIGUSR2", "SIGUSR2"), (str(int(signal.SIGUSR2)), signal.SIGUSR2)):
        settings = Settings.from_env({"SESSION_TRACER_DUMP_SIGNAL": text})
        assert settings == Settings(dump_signal=value)


def test_a_system_without_signals_says_so_once_and_traces(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from session_tracer.runtime import degraded

    monkeypatch.setattr(degraded, "_WARNED", set())
    monkeypatch.delattr(signal, "siginterrupt")
    for _ in range(2):
        instrument(sessionmaker(), dump_signal="SIGUSR1").uninstrument()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "session_tracer: no dump is written at SIGUSR1: this system has no such signals. "
        "The application is not affected."
    )

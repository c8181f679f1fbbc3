"""Tests that a session that is not closed is reported, by a thread that ends with the last one."""

from __future__ import annotations

import gc
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

from session_tracer import CallSite, SessionSummary, facts, instrument, uninstrument
from session_tracer.exporter import Exporter
from session_tracer.ledger import registry, watchdog
from session_tracer.testing import capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Factory = sessionmaker[Session]

ONE = text("SELECT 1")


@pytest.fixture
def factory() -> Iterator[Factory]:
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    yield sessionmaker(engine)
    gc.collect()
    engine.dispose()


def abandon(factory: Factory) -> None:
    session = factory()
    session.execute(ONE)


def forget(factory: Factory) -> None:
    factory()


def line(function: Callable[..., object], offset: int) -> CallSite:
    """A line of a function, counted from the one that begins with `def`."""
    code = function.__code__
    return CallSite(code.co_filename, code.co_firstlineno + offset, code.co_name)


def threads() -> list[str]:
    """The running threads of session_tracer."""
    return [one.name for one in threading.enumerate() if one.name.startswith("session_tracer")]


def within(seconds: float, work: Callable[[], None]) -> bool:
    """Whether work that might hang comes to its end."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


# What was collected.


def test_a_session_that_is_collected_is_reported(factory: Factory) -> None:
    with capture(factory) as captured:
        abandon(factory)
        gc.collect()
        (summary,) = captured.sessions
    assert (summary.outcome, summary.ending) == ("abandoned", "collected")
    assert summary.opened_site == line(abandon, 1)
    assert summary.closed_site == line(abandon, 2)
    ended = [fact for fact in captured.facts if isinstance(fact, facts.TransactionEnded)]
    assert [fact.outcome for fact in ended] == ["abandoned"]


def test_a_session_that_was_never_used_is_collected_unused(factory: Factory) -> None:
    with capture(factory) as captured:
        forget(factory)
        gc.collect()
        (summary,) = captured.sessions
    assert (summary.outcome, summary.ending) == ("unused", "collected")


def test_a_session_that_was_closed_is_reported_once(factory: Factory) -> None:
    with capture(factory) as captured:
        factory().close()
        with factory() as session:
            session.execute(ONE)
        del session
        gc.collect()
        assert [summary.ending for summary in captured.sessions] == ["close", "close"]


def test_a_session_that_is_used_again_is_collected_in_its_second_scope(factory: Factory) -> None:
    with capture(factory) as captured:
        session = factory()
        session.execute(ONE)
        session.close()
        session.execute(ONE)
        del session
        gc.collect()
        assert [summary.outcome for summary in captured.sessions] == ["closed", "abandoned"]


def test_what_is_collected_later_is_nobodys_business(factory: Factory) -> None:
    with capture(factory) as captured:
        session = factory()
        session.execute(ONE)
    del session
    gc.collect()
    assert captured.sessions == []


def test_only_open_sessions_are_live(factory: Factory) -> None:
    with capture(factory):
        session = factory()
        assert len(registry.LIVE) == 1
        session.close()
        assert len(registry.LIVE) == 0
        session.execute(ONE)
        assert len(registry.LIVE) == 1
    assert len(registry.LIVE) == 0
    session.close()


def test_a_collection_while_a_lock_is_held_waits_for_no_lock(factory: Factory) -> None:
    lock = threading.Lock()
    captured: list[SessionSummary] = []

    def on_session(summary: SessionSummary) -> None:
        with lock:  # as a handler of log records has one
            captured.append(summary)

    instrumentation = instrument(factory, exporter=Exporter(on_session=on_session))

    def work() -> None:
        abandon(factory)
        with lock:
            gc.collect()
        instrumentation.flush()

    assert within(20, work), "the collection waits for a lock that is held around it"
    instrumentation.uninstrument()
    assert [summary.outcome for summary in captured] == ["abandoned"]


def test_a_collection_while_instrumenting_does_not_wait(factory: Factory) -> None:
    def on_session(_: SessionSummary) -> None:
        gc.collect()

    def work() -> None:
        for _ in range(20):
            with instrument(factory, exporter=Exporter(on_session=on_session)):
                abandon(factory)
                forget(factory)

    assert within(60, work), "instrumenting waits for a collection that waits for it"


def test_many_threads_may_lose_their_sessions_at_once(factory: Factory) -> None:
    def work() -> None:
        for _ in range(25):
            forget(factory)

    with capture(factory) as captured:
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        gc.collect()
        assert [summary.ending for summary in captured.sessions] == ["collected"] * 100


def test_an_exporter_that_fails_is_no_end_to_the_thread(factory: Factory) -> None:
    captured: list[SessionSummary] = []

    def on_session(summary: SessionSummary) -> None:
        captured.append(summary)
        raise ValueError("no")

    with instrument(factory, exporter=Exporter(on_session=on_session)) as instrumentation:
        forget(factory)
        forget(factory)
        gc.collect()
        instrumentation.flush()
    assert len(captured) == 2


def test_an_exporter_that_asks_to_flush_does_not_wait_for_itself(factory: Factory) -> None:
    took: list[float] = []

    def on_session(_: SessionSummary) -> None:
        began = time.perf_counter()
        instrumentation.flush()
        took.append(time.perf_counter() - began)

    with instrument(factory, exporter=Exporter(on_session=on_session)) as instrumentation:
        forget(factory)
        gc.collect()
        watchdog.settle()
    assert len(took) == 1
    assert took[0] < 1


def test_an_exporter_that_hangs_does_not_stop_what_is_instrumented_next(factory: Factory) -> None:
    free = threading.Event()

    def on_session(_: SessionSummary) -> None:
        free.wait(30)

    with instrument(factory, exporter=Exporter(on_session=on_session)):
        forget(factory)
        gc.collect()
    (hanging,) = [one for one in threading.enumerate() if one.name == "session_tracer-reports"]
    with capture(factory) as captured:
        free.set()
        hanging.join()
        forget(factory)
        gc.collect()
        assert [summary.outcome for summary in captured.sessions] == ["unused"]
    assert threads() == []


# The threads.

BOTH = ["session_tracer", "session_tracer-reports"]


def test_the_threads_run_from_the_first_session_while_something_is_instrumented(
    factory: Factory,
) -> None:
    another = sessionmaker()
    assert threads() == []
    first = instrument(factory, exporter=Exporter())
    factory().close()
    assert threads() == []  # a session that is never used is nothing to watch
    with factory() as session:
        session.begin()
    assert sorted(threads()) == BOTH
    second = instrument(another, exporter=Exporter())
    assert sorted(threads()) == BOTH
    first.uninstrument()
    assert sorted(threads()) == BOTH
    second.uninstrument()
    assert threads() == []


def test_the_thread_starts_again(factory: Factory) -> None:
    for _ in range(3):
        with capture(factory) as captured:
            forget(factory)
            gc.collect()
            assert [summary.outcome for summary in captured.sessions] == ["unused"]
        assert threads() == []


def test_uninstrumenting_everything_ends_the_thread(factory: Factory) -> None:
    instrument(factory, exporter=Exporter())
    instrument(exporter=Exporter())
    uninstrument()
    assert threads() == []


def test_an_instrumentation_that_is_refused_starts_no_thread() -> None:
    with pytest.raises(TypeError):
        instrument("orders", exporter=Exporter())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unknown exporter"):
        instrument(sessionmaker(), exporter="carrier-pigeon")
    assert threads() == []


def test_there_is_nothing_to_wait_for_where_nothing_is_instrumented() -> None:
    assert within(5, watchdog.settle)


FORK = """
import gc, json, os, sys, threading
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool
from session_tracer import instrument
from session_tracer.ledger import registry as live
from session_tracer.exporter import Exporter

told = []
factory = sessionmaker(create_engine("sqlite://", poolclass=StaticPool))
instrumentation = instrument(
    factory, exporter=Exporter(on_session=lambda summary: told.append(summary.id))
)

def open_one():
    session = factory()
    session.execute(text("SELECT 1"))
    return session

def threads():
    return [one.name for one in threading.enumerate() if one.name == "session_tracer"]

def say(file, **what):
    gc.collect()
    instrumentation.flush()
    file.write(json.dumps({**what, "told": len(told), "threads": threads()}))
    file.flush()

mine = open_one()
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    inherited = len(live.LIVE)
    del mine
    gc.collect()
    yours = open_one()
    opened = len(live.LIVE)
    del yours
    with os.fdopen(writing, "w") as file:
        say(file, inherited=inherited, opened=opened)
    os._exit(0)
os.close(writing)
with os.fdopen(reading) as file:
    of_child = json.load(file)
os.waitpid(child, 0)
kept = len(live.LIVE)
del mine
print(json.dumps(of_child))
say(sys.stdout, inherited=kept, opened=kept)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_watches_its_own_sessions_with_a_thread_of_its_own() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True
    )
    child, parent = map(json.loads, ran.stdout.splitlines())
    assert child == {"inherited": 0, "opened": 1, "told": 1, "threads": ["session_tracer"]}
    assert parent == {"inherited": 1, "opened": 1, "told": 1, "threads": ["session_tracer"]}

"""Tests of the queue between the application's threads and a consumer."""

import os
import subprocess
import sys
import threading
import time

import pytest

from session_tracer.runtime.background_queue import BackgroundQueue

SECONDS = 10.0


class Gate:
    """A consumer that takes nothing until it is opened."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.entered = threading.Event()
        self.opened = threading.Event()

    def consume(self, value: int) -> None:
        self.entered.set()
        self.opened.wait(SECONDS)
        self.taken.append(value)


def test_values_arrive_in_order_on_a_thread_of_their_own() -> None:
    seen: list[tuple[int, str]] = []
    queue = BackgroundQueue[int](
        lambda value: seen.append((value, threading.current_thread().name)), name="the queue"
    )
    for value in range(3):
        queue.put(value)
    assert queue.flush(SECONDS)
    assert seen == [(0, "the queue"), (1, "the queue"), (2, "the queue")]
    assert queue.close()


def test_closing_consumes_what_waits_and_ends_the_thread() -> None:
    seen: list[int] = []
    queue = BackgroundQueue[int](seen.append, name="closed")
    queue.put(1)
    assert queue.close()
    assert queue.close()
    queue.put(2)
    assert seen == [1]
    assert queue.dropped == 1
    assert [t for t in threading.enumerate() if t.name == "closed"] == []


def test_a_full_queue_drops_and_counts_and_reports_it_once() -> None:
    gate, lost = Gate(), list[int]()
    queue = BackgroundQueue[int](gate.consume, name="full", most=3, lost=lost.append)
    queue.put(0)
    assert gate.entered.wait(SECONDS)
    for value in range(1, 10):
        queue.put(value)
    assert queue.dropped == 6
    gate.opened.set()
    assert queue.flush(SECONDS)
    assert gate.taken == [0, 1, 2, 3]
    assert lost == [6]
    queue.put(10)
    assert queue.close()
    assert lost == [6]


def test_a_consumer_that_raises_is_called_again() -> None:
    seen: list[int] = []

    def consume(value: int) -> None:
        seen.append(value)
        raise SystemExit if value == 1 else ValueError(value)

    queue = BackgroundQueue[int](consume, name="raising")
    for value in range(3):
        queue.put(value)
    assert queue.close()
    assert seen == [0, 1, 2]
    assert queue.failed == 3


def test_a_consumer_that_hangs_delays_others_only_briefly() -> None:
    gate = Gate()
    queue = BackgroundQueue[int](gate.consume, name="hanging")
    queue.put(1)
    queue.put(2)
    began = time.monotonic()
    assert not queue.flush(0.1)
    assert not queue.close(0.1)
    assert time.monotonic() - began < SECONDS / 2
    gate.opened.set()
    assert queue.close(SECONDS)
    assert gate.taken == [1, 2]


def test_a_consumer_may_flush_without_waiting_for_itself() -> None:
    answers: list[bool] = []
    queue: BackgroundQueue[int] = BackgroundQueue(
        lambda _: answers.append(queue.flush()), name="itself"
    )
    queue.put(1)
    assert queue.close()
    assert answers == [False]


def test_what_is_held_back_is_settled_when_its_time_has_come_and_at_a_flush() -> None:
    asked: list[bool] = []
    settled = threading.Event()

    def settle(everything: bool) -> float | None:
        asked.append(everything)
        if len(asked) >= 3:
            settled.set()
            return None
        return 0.01

    queue = BackgroundQueue[int](lambda _: None, name="settling", settle=settle)
    queue.put(1)
    assert settled.wait(SECONDS)
    assert asked == [False, False, False]
    assert queue.flush(SECONDS)
    assert asked[3] is True
    assert queue.close()


def test_many_threads_may_put_at_once() -> None:
    seen: list[int] = []
    queue = BackgroundQueue[int](seen.append, name="many", most=10_000)

    def work() -> None:
        for value in range(1000):
            queue.put(value)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.close()
    assert sorted(seen) == sorted(list(range(1000)) * 8)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_a_fork_the_child_begins_with_an_empty_queue() -> None:
    gate = Gate()
    queue = BackgroundQueue[int](gate.consume, name="forked")
    queue.put(1)
    assert gate.entered.wait(SECONDS)
    queue.put(2)
    child = os.fork()
    if child == 0:
        gate.opened = threading.Event()
        gate.opened.set()
        queue.put(3)
        flushed = queue.flush(SECONDS)
        os._exit(0 if flushed and gate.taken == [3] else 1)
    assert os.waitpid(child, 0)[1] == 0
    gate.opened.set()
    assert queue.close()
    assert gate.taken == [1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_closed_outbox_stays_closed_in_the_child() -> None:
    queue = BackgroundQueue[int](lambda _: None, name="closed before")
    queue.close()
    child = os.fork()
    if child == 0:
        os._exit(len([t for t in threading.enumerate() if t.name == "closed before"]))
    assert os.waitpid(child, 0)[1] == 0


def run(script: str) -> tuple[str, float]:
    """What a process of its own prints, and how long it takes to end."""
    began = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert process.stderr == ""
    return process.stdout, time.monotonic() - began


def test_what_waits_is_consumed_before_the_process_ends() -> None:
    output, _ = run(
        "import time; from session_tracer.runtime.background_queue import BackgroundQueue\n"
        "def consume(value): time.sleep(0.1); print(value, flush=True)\n"
        "queue = BackgroundQueue(consume, name='exiting'); queue.put(1); queue.put(2)"
    )
    assert output == "1\n2\n"


def test_a_consumer_that_hangs_does_not_keep_the_process_from_ending() -> None:
    _, seconds = run(
        "import time; from session_tracer.runtime.background_queue import BackgroundQueue\n"
        "queue = BackgroundQueue(lambda value: time.sleep(1000), name='exiting'); queue.put(1)"
    )
    assert seconds < SECONDS

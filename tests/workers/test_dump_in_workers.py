"""Tests that workers of real servers write `dump()` at a signal that the server does not use."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.workers.test_workers import CELERY, GUNICORN, QUIET, UVICORN, Shop, get

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 60.0
SERVERS: dict[str, tuple[list[str], str]] = {
    "gunicorn": (GUNICORN, "--bind=unix:{}"),
    "gunicorn, preloaded": ([*GUNICORN, "--preload"], "--bind=unix:{}"),
    "uvicorn": (UVICORN, "--uds={}"),
}
# A signal that the server uses, and the beginning of what is logged instead.
TAKEN: dict[str, tuple[list[str], str, str]] = {
    "gunicorn": (
        [*GUNICORN, "--preload", "--bind=unix:{}"],
        "SIGUSR2",
        "gunicorn handles SIGUSR2. Free: SIG",
    ),
    "uvicorn": (
        [*UVICORN, "--uds={}"],
        "SIGHUP",
        "uvicorn handles SIGHUP. Free: SIGUSR1, SIGUSR2",
    ),
    "Celery": (
        [*CELERY, "--pool=solo", *QUIET],
        "SIGUSR1",
        "Celery handles SIGUSR1. Free: SIGUSR2",
    ),
}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def wait_for(shop: Shop, text: str) -> None:
    until = time.monotonic() + SECONDS
    while text not in shop.output.read_text():
        assert time.monotonic() < until, shop.output.read_text()
        time.sleep(0.05)


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="this system has no such signals")
@pytest.mark.parametrize("kind", SERVERS)
def test_a_worker_writes_what_it_has_open(shop: Shop, kind: str) -> None:
    command, bind = SERVERS[kind]
    path = shop.folder / "socket"
    shop.environment["SESSION_TRACER_DUMP_SIGNAL"] = str(int(signal.SIGRTMIN))
    with shop.running(*command, bind.format(path)) as server:
        worker = int(get(path, "/leak"))
        assert worker != server.pid
        os.kill(worker, signal.SIGRTMIN)
        wait_for(shop, f"process {worker} on ")
        assert "in leave_open()" in shop.output.read_text()
        get(path)
    assert server.returncode == 0
    assert "session_tracer:" not in shop.output.read_text()


@pytest.mark.parametrize("kind", TAKEN)
def test_a_signal_that_the_server_uses_is_left_to_it(shop: Shop, kind: str) -> None:
    command, name, why = TAKEN[kind]
    path = shop.folder / "socket"
    shop.environment["SESSION_TRACER_DUMP_SIGNAL"] = name
    with shop.running(*[part.format(path) for part in command]):
        wait_for(shop, f"no dump is written at {name}: {why}")
        time.sleep(1)  # Celery has no handler for SIGTERM yet
    assert " left behind; " not in shop.output.read_text()

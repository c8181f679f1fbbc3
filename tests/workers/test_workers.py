"""Tests that sessions are reported by the workers of real servers, and that each server ends."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.running import SECONDS, running

if TYPE_CHECKING:
    import subprocess
    from contextlib import AbstractContextManager

    from tests.servers.collector import Collector

ROOT = Path(__file__).parents[2]
REQUESTS = 24
GUNICORN = ["gunicorn", "tests.workers.application:wsgi", "--workers=2", "--graceful-timeout=10"]
UVICORN = ["uvicorn", "tests.workers.application:asgi", "--workers=2", "--lifespan=on"]
CELERY = ["celery", "--app=tests.workers.application:celery", "worker", "--concurrency=2"]
QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]


class Shop:
    """The application's folder, and what it has logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "queue").mkdir()
        self.environment = {**os.environ, "SHOP": str(folder), "HOME": str(folder)}
        self.output = folder / "output"

    def running(self, *command: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """A server, asked to end after the block; it has to end by itself."""
        return running(command, folder=ROOT, environment=self.environment, output=self.output)

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def closed(self) -> list[dict[str, Any]]:
        """The sessions that have ended."""
        return [event for event in self.events() if event["event"] == "session.closed"]

    def wait_for(self, sessions: int) -> None:
        until = time.monotonic() + SECONDS
        while len(self.closed()) < sessions:
            assert time.monotonic() < until, f"only {len(self.closed())} of {sessions} sessions"
            time.sleep(0.05)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


class Connection(http.client.HTTPConnection):
    """An HTTP connection over a socket in the file system, whose name no other test can take."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


def get(path: Path, page: str = "/") -> str:
    """What the server answers: which of its processes has served the page."""
    until = time.monotonic() + SECONDS
    while True:
        connection = Connection(path)
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            body = answer.read().decode()
        except OSError:  # it is still starting
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.05)
            continue
        finally:
            connection.close()
        assert answer.status == 200, body
        return body


def served(path: Path) -> Counter[int]:
    """How many of many requests at a time each process has served."""
    with ThreadPoolExecutor(8) as pool:
        return Counter(map(int, pool.map(lambda _: get(path), range(REQUESTS))))


def assert_reported(shop: Shop, by: Counter[int]) -> None:
    closed = shop.closed()
    assert Counter(event["process_pid"] for event in closed) == by
    assert {event["outcome"] for event in closed} == {"committed"}
    assert [event for event in shop.events() if event["event"] == "finding"] == []
    assert "Traceback" not in shop.output.read_text()
    assert "session_tracer" not in shop.output.read_text()


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
@pytest.mark.parametrize("kind", ["gevent", "gthread"])
def test_gunicorns_workers_report_each_session(shop: Shop, kind: str, preload: list[str]) -> None:
    path = shop.folder / "socket"
    command = [*GUNICORN, f"--worker-class={kind}", f"--bind=unix:{path}", *preload]
    with shop.running(*command, *(["--threads=4"] if kind == "gthread" else [])) as server:
        by = served(path)
        assert server.pid not in by
    assert server.returncode == 0
    assert_reported(shop, by)


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3),
    reason="an ending process cannot start a thread there, and gevent resolves names on one: "
    "https://github.com/python/cpython/issues/113964",
)
def test_a_preloaded_application_sends_by_otlp_from_gevents_workers(
    shop: Shop, collector: Collector
) -> None:
    path = shop.folder / "socket"
    name = f"shop-{shop.folder.name}"
    shop.environment |= {
        "SHOP_EXPORTER": "otlp,jsonl",
        "OTEL_SERVICE_NAME": name,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint,
    }
    command = [*GUNICORN, "--worker-class=gevent", "--preload", f"--bind=unix:{path}"]
    with shop.running(*command) as server:
        by = served(path)
    assert server.returncode == 0
    assert_reported(shop, by)
    assert {event["service"] for event in shop.closed()} == {name}
    ids = {event["session_id"] for event in shop.closed()}
    until = time.monotonic() + SECONDS
    while not all(id_ in collector.output() for id_ in ids):
        assert time.monotonic() < until, "the collector has not received every session"
        time.sleep(0.1)


def test_uvicorns_workers_report_each_session(shop: Shop) -> None:
    path = shop.folder / "socket"
    with shop.running(*UVICORN, f"--uds={path}") as server:
        by = served(path)
        assert server.pid not in by
    assert server.returncode == 0
    assert_reported(shop, by)


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_celerys_pools_report_each_task_and_what_is_left_open(shop: Shop, pool: str) -> None:
    from celery import Celery

    folder, control = str(shop.folder / "queue"), str(shop.folder / "control")
    queue = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": control}
    client = Celery("client", broker="filesystem://")
    client.conf.broker_transport_options = queue
    for _ in range(6):
        client.send_task("sell")
    with shop.running(*CELERY, f"--pool={pool}", *QUIET):
        shop.wait_for(6)
        client.send_task("forget")
        time.sleep(1)
        opened = len(shop.closed())
    assert opened == 6
    ended = shop.closed()
    assert Counter(event["outcome"] for event in ended) == {"committed": 6, "abandoned": 1}
    assert Counter(event["work"] for event in ended) == {"task sell": 6, "task forget": 1}
    findings = [event for event in shop.events() if event["event"] == "finding"]
    assert findings[0]["work"] == "task forget"
    assert [event["finding_id"] for event in findings] == ["abandoned-session"]
    assert findings[0]["process_pid"] == ended[-1]["process_pid"]
    assert "Traceback" not in shop.output.read_text()

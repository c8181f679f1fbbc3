"""Tests that the servers of the tests are real ones, and that none of them stays behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import asyncpg
import psycopg
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from tests.servers.collector import Collector
from tests.servers.lifeline import Server, ServerFailed, lifeline
from tests.servers.postgres import ENVIRONMENT_VARIABLE, PostgresServer, shared_postgres

CHECKOUT = Path(__file__).parents[2]


def test_psycopg_connects(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


async def test_asyncpg_connects(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        assert await connection.fetchval("SELECT 1") == 1
    finally:
        await connection.close()


def test_a_prepared_transaction_outlives_its_connection(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as url:
        _prepare(url, "committed later")
        with closing(psycopg.connect(url)) as connection:
            connection.tpc_commit("committed later")
            assert connection.execute("SELECT id FROM two_phase").fetchall() == [(7,)]


def test_a_database_is_gone_after_its_block(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as url:
        still_connected = psycopg.connect(url)
        _prepare(url, "never committed")
    still_connected.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def _prepare(url: str, transaction: str) -> None:
    with closing(psycopg.connect(url)) as connection:
        connection.execute("CREATE TABLE two_phase (id int)")
        connection.commit()
        connection.tpc_begin(transaction)
        connection.execute("INSERT INTO two_phase VALUES (7)")
        connection.tpc_prepare()


def test_a_server_of_the_machine_is_used_by_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "postgresql+psycopg://me@db/tests")
    with lifeline() as line:
        assert shared_postgres(line) == PostgresServer("postgresql://me@db/tests")


def test_a_url_of_another_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "mysql://me@db/tests")
    with lifeline() as line, pytest.raises(ServerFailed, match=ENVIRONMENT_VARIABLE):
        shared_postgres(line)


def test_the_collector_receives_a_span_by_http(collector: Collector) -> None:
    _send_span(HttpExporter(endpoint=f"{collector.http_endpoint}/v1/traces"), "sent by HTTP")
    assert "sent by HTTP" in collector.wait_for("sent by HTTP")


def test_the_collector_receives_a_span_by_grpc(collector: Collector) -> None:
    _send_span(GrpcExporter(endpoint=collector.grpc_endpoint, insecure=True), "sent by gRPC")
    assert "sent by gRPC" in collector.wait_for("sent by gRPC")


def _send_span(exporter: SpanExporter, name: str) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer(__name__).start_span(name).end()
    provider.shutdown()


def test_a_span_that_was_not_sent_is_not_received(collector: Collector) -> None:
    with pytest.raises(ServerFailed, match="the collector to receive 'never sent': not within"):
        collector.wait_for("never sent", timeout=0.05)


def test_a_server_that_fails_is_quoted() -> None:
    script = "import sys; sys.exit('no such luck')"
    with lifeline() as line:
        server = Server(line, line.server_folder("failing"), [sys.executable, "-c", script])
        with pytest.raises(ServerFailed, match=r"the server ended[^$]*no such luck"):
            server.wait_until(lambda: None, "a good start", 10)
        server.stop()


def test_a_server_does_not_outlive_a_killed_run() -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", _A_RUN_THAT_IS_KILLED],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with run:
        assert run.stdout is not None
        server, folder = run.stdout.readline().split()
        os.kill(int(server), 0)
        run.send_signal(signal.SIGKILL)
    of_the_run = Path(folder).parents[1]
    deadline = time.monotonic() + 10
    while of_the_run.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not of_the_run.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(server), 0)


_A_RUN_THAT_IS_KILLED = """
import sys, time
from tests.servers.lifeline import Server, lifeline
with lifeline() as line:
    script = "import os, time; print(os.getpid(), os.getcwd(), flush=True); time.sleep(60)"
    server = Server(line, line.server_folder("sleeper"), [sys.executable, "-c", script])
    print(server.wait_until(lambda: server.output() or None, "to begin", 10), flush=True)
    time.sleep(60)
"""

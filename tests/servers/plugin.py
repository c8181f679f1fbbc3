"""Gives the tests their servers: one PostgreSQL and one MariaDB a run, a collector per worker."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.servers.collector import Collector
from tests.servers.collector import collector as start_collector
from tests.servers.lifeline import Lifeline, lifeline
from tests.servers.mariadb import program, shared_mariadb
from tests.servers.postgres import PostgresServer, shared_postgres

_LINE = pytest.StashKey[Lifeline]()
_WORKER_INPUT = "session_tracer_servers"


class Worker(Protocol):
    """One of xdist's workers, as its controller sees it."""

    config: pytest.Config
    workerinput: dict[str, str]


def pytest_configure(config: pytest.Config) -> None:
    """The process that was started holds the lifeline; xdist's workers receive it."""
    worker_input: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker_input is not None:
        config.stash[_LINE] = Lifeline(Path(worker_input[_WORKER_INPUT]))
        return
    run = ExitStack()
    config.stash[_LINE] = run.enter_context(lifeline())
    config.add_cleanup(run.close)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Worker) -> None:
    """Runs in the controller, before a worker starts."""
    node.workerinput[_WORKER_INPUT] = str(node.config.stash[_LINE].folder)


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> PostgresServer:
    """The PostgreSQL of the run, started when the first test asks for it."""
    return shared_postgres(pytestconfig.stash[_LINE])


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A plain `postgresql://` URL of a database that no other worker uses."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="session")
def mariadb_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """A plain `mysql://` URL of a database that no other worker uses, on a real MariaDB."""
    if program() is None:
        pytest.skip("mariadbd is not installed")
    with shared_mariadb(pytestconfig.stash[_LINE]).database() as url:
        yield url


@pytest.fixture(scope="session")
def collector(pytestconfig: pytest.Config) -> Iterator[Collector]:
    """A collector that takes OTLP by gRPC and HTTP; no other worker sends to it."""
    worker_input: dict[str, str] = getattr(pytestconfig, "workerinput", {})
    worker = worker_input.get("workerid", "main")
    with start_collector(pytestconfig.stash[_LINE], worker) as started:
        yield started

"""Starts a real MariaDB for the tests, where the machine has one to start."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pymysql

from tests.servers.lifeline import Account, Lifeline, Server, ServerFailed, free_port
from tests.servers.postgres import START_SECONDS, TRIES, account_of_servers, initialise

# Where Debian has the server, which not every account's PATH includes.
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
_READY = "ready for connections"
_SETTINGS = (
    "--no-defaults",
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--innodb-buffer-pool-size=16M",
    # The data die with the run: nothing has to survive a power cut.
    "--innodb-flush-log-at-trx-commit=0",
)


@dataclass(frozen=True)
class MariaDBServer:
    """A MariaDB that listens, by the URL of an account that may create databases."""

    url: str

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty database, dropped afterwards."""
        name = f"session_tracer_{uuid.uuid4().hex[:12]}"
        self._execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        try:
            yield f"{self.url}/{name}"
        finally:
            self._execute(f"DROP DATABASE {name}")

    def _execute(self, statement: str) -> None:
        at = urlsplit(self.url)
        connection = pymysql.connect(host=at.hostname, port=at.port or 0, user="root")
        with closing(connection), connection.cursor() as cursor:
            cursor.execute(statement)


def program() -> str | None:
    """The server's program, None if the machine has none."""
    return shutil.which("mariadbd", path=_PATH)


def shared_mariadb(line: Lifeline) -> MariaDBServer:
    """The one MariaDB of a lifeline, started by the first of its processes that asks.

    Raises ServerFailed where it does not start.
    """
    with line.alone("mariadb"):
        known = line.folder / "mariadb.url"
        if not known.exists():
            known.write_text(_start(line))
        return MariaDBServer(known.read_text())


def _start(line: Lifeline) -> str:
    account = account_of_servers()
    for attempt in range(1, TRIES + 1):
        folder = line.server_folder(f"mariadb-{attempt}")
        port = free_port()
        data = _initialised(folder, account)
        places = [f"--datadir={data}", f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
        command = [program() or "", *_SETTINGS, *places, f"--port={port}"]
        server = Server(line, folder, command, account=account)
        try:
            server.wait_until(
                partial(_says_it_is_ready, server), f"MariaDB on port {port}", START_SECONDS
            )
        except ServerFailed:
            server.stop()
            if attempt == TRIES:
                raise
        else:
            server.let_go()
            return f"mysql://root@127.0.0.1:{port}"
    raise AssertionError("the last attempt returns or raises")


def _says_it_is_ready(server: Server) -> bool | None:
    return _READY in server.output() or None


def _initialised(folder: Path, account: Account | None) -> Path:
    data = folder / "data"
    install = shutil.which("mariadb-install-db", path=_PATH) or "mariadb-install-db"
    command = [
        *(install, "--no-defaults", f"--datadir={data}", "--skip-test-db"),
        "--auth-root-authentication-method=normal",
    ]
    initialise(folder, command, account)
    return data

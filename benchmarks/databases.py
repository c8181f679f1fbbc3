"""The databases of the works: SQLite in memory, PostgreSQL over a local connection."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, StaticPool, create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.works import Model, populate
from tests.servers.postgres import postgres_server

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = "session_tracer_benchmarks"
# One for each thread of the largest work.
CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class SQLite:
    """In memory, one database and one connection for each process."""

    @contextmanager
    def prepared(self) -> Iterator[None]:
        yield

    def engine(self) -> Engine:
        engine = create_engine("sqlite://", poolclass=StaticPool)
        with engine.begin() as connection:
            populate(connection)
        return engine

    async def async_engine(self) -> AsyncEngine:
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with engine.begin() as connection:
            await connection.run_sync(populate)
        return engine

    def version(self) -> str:
        with create_engine("sqlite://").connect() as connection:
            return f"SQLite {connection.scalar(text('SELECT sqlite_version()'))}"


@dataclass(frozen=True, slots=True)
class PostgreSQL:
    """One schema for all processes, so that all variants have the same tables."""

    url: str

    @contextmanager
    def prepared(self) -> Iterator[None]:
        engine = self.engine()
        with engine.begin() as connection:
            self._drop(connection)
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
            populate(connection)
        with engine.connect() as connection:
            # Otherwise autovacuum would do it in the middle of a round.
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(
                text(f"ANALYZE {', '.join(Model.metadata.tables)}")
            )
        # The processes that are forked next must not inherit an open connection.
        engine.dispose()
        try:
            yield
        finally:
            with engine.begin() as connection:
                self._drop(connection)
            engine.dispose()

    def engine(self) -> Engine:
        return create_engine(
            self._psycopg_url(), pool_size=CONNECTIONS, connect_args=self._connect_args()
        )

    async def async_engine(self) -> AsyncEngine:
        # A thousand tasks wait for their turn, longer than the pool's default timeout.
        return create_async_engine(
            self._psycopg_url(),
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=120,
            connect_args=self._connect_args(),
        )

    def version(self) -> str:
        engine = self.engine()
        with engine.connect() as connection:
            version = str(connection.scalar(text("SHOW server_version")))
        engine.dispose()
        return f"PostgreSQL {version.split()[0]}"

    def _psycopg_url(self) -> str:
        url = make_url(self.url).set(drivername="postgresql+psycopg")
        return url.render_as_string(hide_password=False)

    def _connect_args(self) -> dict[str, str]:
        # A commit that waits for a disk would hide the cost of tracing.
        return {"options": f"-csearch_path={SCHEMA} -csynchronous_commit=off"}

    def _drop(self, connection: Connection) -> None:
        connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))


Database = SQLite | PostgreSQL


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """The server at SESSION_TRACER_BENCH_POSTGRES, or one that is started as in the tests.

    Raises:
        ServerFailed: There is no server.
    """
    if url := os.environ.get("SESSION_TRACER_BENCH_POSTGRES"):
        yield PostgreSQL(url)
    else:
        with postgres_server() as server:
            yield PostgreSQL(server.url)

"""The shop's database: one SQLite file in a temporary directory, a sync and an async engine."""

import atexit
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

DIRECTORY = Path(tempfile.mkdtemp(prefix="bookshop-"))
atexit.register(shutil.rmtree, DIRECTORY, ignore_errors=True)

engine = create_engine(f"sqlite:///{DIRECTORY / 'bookshop.sqlite'}")
async_engine = create_async_engine(f"sqlite+aiosqlite:///{DIRECTORY / 'bookshop.sqlite'}")

SessionLocal = sessionmaker(engine)
AsyncSessionLocal = async_sessionmaker(async_engine)

# SQLAlchemy 2.1 drops a coroutine of aiosqlite where it raises MissingGreenlet.
warnings.filterwarnings("ignore", "coroutine 'Connection.cursor' was never awaited", RuntimeWarning)


def get_db() -> Iterator[Session]:
    """Give one request its session, as a FastAPI dependency would."""
    with SessionLocal() as session:
        yield session


request_session = contextmanager(get_db)


def _set_pragmas(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _begin_before_savepoint(connection: Connection, _: str | None) -> None:
    # The sqlite3 module begins at the first write; an earlier savepoint would commit on release.
    driver_connection: Any = connection.connection.driver_connection  # sqlite3's, or aiosqlite's
    if not driver_connection.in_transaction:
        cursor = connection.connection.cursor()
        cursor.execute("BEGIN")
        cursor.close()


def _prepare(engine: Engine) -> None:
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "savepoint", _begin_before_savepoint)


_prepare(engine)
_prepare(async_engine.sync_engine)

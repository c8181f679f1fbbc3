"""A SQLite driver that writes down what it is asked for, below everything that SQLAlchemy does."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from tests.differential.diary import DIARY, plain

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AsyncDialect", "AwaitedConnection", "Connection", "Cursor", "Dialect", "arguments"]


class Cursor(sqlite3.Cursor):
    """Says what is executed, with its parameters, and how much is fetched."""

    connection: Connection

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        DIARY.write("execute", self.connection.number, sql, plain(parameters))
        super().execute(sql, parameters)
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Cursor:
        DIARY.write("executemany", self.connection.number, sql, plain(list(parameters)))
        super().executemany(sql, parameters)
        return self

    def fetchone(self) -> Any:
        DIARY.write("fetchone", self.connection.number)
        return super().fetchone()

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        DIARY.write("fetchmany", self.connection.number, size)
        return super().fetchmany(size)

    def fetchall(self) -> list[Any]:
        DIARY.write("fetchall", self.connection.number)
        return super().fetchall()

    def close(self) -> None:
        DIARY.write("close cursor", self.connection.number)
        super().close()


class Connection(sqlite3.Connection):
    """Says when it commits, rolls back and is closed, as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.number = f"connection {DIARY.number()}"
        DIARY.write("connect", self.number)
        for pragma in ("foreign_keys=ON", "synchronous=OFF", "journal_mode=MEMORY"):
            sqlite3.Cursor(self).execute(f"PRAGMA {pragma}")

    def cursor(self, factory: Any = Cursor) -> Any:
        return super().cursor(factory)

    def commit(self) -> None:
        DIARY.write("commit", self.number)
        super().commit()

    def rollback(self) -> None:
        DIARY.write("rollback", self.number)
        super().rollback()

    def close(self) -> None:
        DIARY.write("close", self.number)
        super().close()


class AwaitedConnection(Connection):
    """Does not say that it is closed: aiosqlite's thread does that at a time of its own."""

    def close(self) -> None:
        sqlite3.Connection.close(self)


def arguments(*, is_async: bool) -> dict[str, Any]:
    """What to connect with: who finds the database locked is told at once."""
    factory = AwaitedConnection if is_async else Connection
    # Without an isolation level, the driver begins no transaction by itself.
    return {"factory": factory, "timeout": 0, "isolation_level": None}


class _Phases:
    """Real transactions on SQLite, and in two phases if asked for, of which the first does nothing.

    Together with it stands a dialect of the application's own.
    """

    def do_begin(self, dbapi_connection: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute("BEGIN")
        cursor.close()

    def create_xid(self) -> str:
        return "two phases"

    def do_begin_twophase(self, connection: Any, xid: Any) -> None:
        self.do_begin(connection.connection)

    def do_prepare_twophase(self, connection: Any, xid: Any) -> None:
        DIARY.write("prepare", xid)

    def do_rollback_twophase(
        self, connection: Any, xid: Any, is_prepared: bool = True, recover: bool = False
    ) -> None:
        connection.connection.rollback()

    def do_commit_twophase(
        self, connection: Any, xid: Any, is_prepared: bool = True, recover: bool = False
    ) -> None:
        connection.connection.commit()


class Dialect(_Phases, SQLiteDialect_pysqlite):
    """For `sqlite+written://`."""

    supports_statement_cache = True


class AsyncDialect(_Phases, SQLiteDialect_aiosqlite):
    """For `sqlite+aiowritten://`."""

    supports_statement_cache = True


registry.register("sqlite.written", __name__, "Dialect")
registry.register("sqlite.aiowritten", __name__, "AsyncDialect")

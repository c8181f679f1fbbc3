"""Runs one story as two: synchronously, and awaited under asyncio.

A story is written once, with `await` before what AsyncSession makes awaitable. Its synchronous twin
runs on a plain Session, without an event loop: there the awaits return at once.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import aiosqlite
import pytest
from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from tests.library import Base

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from types import TracebackType

# These frames are not whom a call site is about; a story's own are.
__session_tracer_hide__ = True

T = TypeVar("T")

# For stories whose course the database decides: how it locks, refuses, returns rows and names
# itself. What a line, a count, an outcome or a wording depends on is the same on every database.
on_each_database = pytest.mark.parametrize("database", ["sqlite", "postgresql"])
on_postgresql = pytest.mark.parametrize("database", ["postgresql"])


class Done:
    """An awaitable that is done."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Generator[None, None, Any]:
        yield from ()
        return self._value


class Block:
    """A context manager as an asynchronous one."""

    def __init__(self, block: Any) -> None:
        self._block = block

    async def __aenter__(self) -> Any:
        return self._block.__enter__()

    async def __aexit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return bool(self._block.__exit__(type_, value, traceback))

    def __getattr__(self, name: str) -> Callable[..., Done]:
        method = getattr(self._block, name)
        return lambda *args, **kwargs: Done(method(*args, **kwargs))


# What AsyncSession leaves synchronous.
_PLAIN = frozenset(
    {"add", "add_all", "expire", "expire_all", "expunge", "expunge_all", "in_transaction"}
)


class SyncSession:
    """A Session with AsyncSession's way of speaking."""

    def __init__(self, session: Session) -> None:
        self.sync_session = session

    async def __aenter__(self) -> Self:
        self.sync_session.__enter__()
        return self

    async def __aexit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.sync_session.__exit__(type_, value, traceback)

    def begin(self) -> Block:
        return Block(self.sync_session.begin())

    def begin_nested(self) -> Block:
        return Block(self.sync_session.begin_nested())

    async def run_sync(self, work: Callable[[Session], T]) -> T:
        return work(self.sync_session)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.sync_session, name)
        if name in _PLAIN or not callable(method):
            return method

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return awaited


@functools.cache
def _file_of_empty_tables(_tables: frozenset[str]) -> bytes:
    """A database file, made once for all stories."""
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
    made: bytes = engine.raw_connection().serialize()
    engine.dispose()
    return made


@dataclass
class Twin:
    """One database and one way of speaking to it.

    `factory` is what is instrumented: a sessionmaker or an async_sessionmaker.
    """

    url: URL
    is_async: bool
    engine: Engine | AsyncEngine = field(init=False)
    factory: Any = field(init=False)

    def __post_init__(self) -> None:
        if self.is_async:
            self.engine = create_async_engine(self.url, connect_args=self._arguments)
            self.factory = async_sessionmaker(self.engine)
        else:
            self.engine = create_engine(self.url, connect_args=self._arguments)
            self.factory = sessionmaker(self.engine)

    @property
    def _arguments(self) -> dict[str, Any]:
        """What makes a test that leaves a transaction open fail, instead of hang."""
        if self.database != "postgresql":
            return {}
        if self.is_async:
            return {"server_settings": {"lock_timeout": "10000"}}
        return {"options": "-c lock_timeout=10000"}

    @property
    def database(self) -> str:
        """`sqlite`, `postgresql` or `mysql`."""
        return self.url.get_backend_name()

    def session(self, **options: Any) -> Any:
        """A new session of the factory, to be used as an AsyncSession is."""
        made = self.factory(**options)
        return made if self.is_async else SyncSession(made)

    def registry(self, scope: Callable[[], Any] | None = None) -> Any:
        """A `scoped_session` of the factory, to be used as an `async_scoped_session` is."""
        if self.is_async:
            return async_scoped_session(self.factory, scope or asyncio.current_task)
        registry: Any = scoped_session(self.factory, scope)
        return SyncSession(registry)

    async def execute(self, work: Callable[[Any], Any]) -> None:
        """Run something on a connection of its own, untraced."""
        if isinstance(self.engine, AsyncEngine):
            async with self.engine.begin() as connection:
                await connection.run_sync(work)
        else:
            with self.engine.begin() as connection:
                work(connection)

    async def dispose(self) -> None:
        """Close every connection."""
        if isinstance(self.engine, AsyncEngine):
            await self.engine.dispose()
        else:
            self.engine.dispose()

    def run(self, story: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a story on empty tables, and leave none behind."""
        return self.drive(self._on_empty_tables(story))

    async def _on_empty_tables(self, story: Callable[[], Awaitable[T]]) -> T:
        if self.database == "sqlite":
            return await self._in_a_file(Path(str(self.url.database)), story)
        await self.execute(Base.metadata.create_all)
        try:
            return await story()
        finally:
            await self.execute(Base.metadata.drop_all)
            await self.dispose()

    async def _in_a_file(self, file: Path, story: Callable[[], Awaitable[T]]) -> T:
        file.write_bytes(_file_of_empty_tables(frozenset(Base.metadata.tables)))
        try:
            return await story()
        finally:
            if isinstance(self.engine, AsyncEngine) and not self.engine.dialect.has_terminate:
                await close_collected_connections()
            # As dropping the tables would, this fails where a transaction is left open.
            with closing(sqlite3.connect(file)) as connection:
                connection.execute("BEGIN EXCLUSIVE")
            await self.dispose()

    def drive(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine comes to."""
        if self.is_async:
            return asyncio.run(coroutine)
        try:
            coroutine.send(None)
        except StopIteration as stopped:
            value: T = stopped.value
            return value
        raise RuntimeError("a synchronous twin must never have to wait")


async def close_collected_connections() -> None:
    """Close what SQLAlchemy before 2.0.46 cannot, nor with aiosqlite before 0.22.1.

    It drops an asynchronous connection that nothing refers to any longer, and the connection's
    thread goes on, with the transaction. Newer releases of aiosqlite have no such threads.
    """
    for thread in threading.enumerate():
        if isinstance(thread, aiosqlite.Connection):
            await thread.close()


def url_of(database: str, sqlite_file: object, postgres_url: str, *, is_async: bool) -> URL:
    """The URL by which a twin reaches its database."""
    if database == "sqlite":
        driver = "sqlite+aiosqlite" if is_async else "sqlite"
        return make_url(f"{driver}:///{sqlite_file}")
    driver = "postgresql+asyncpg" if is_async else "postgresql+psycopg"
    return make_url(postgres_url).set(drivername=driver)

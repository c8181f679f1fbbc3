"""Statements that do not end before somebody lets them, and commits that take long."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, text

from tests.stories.findings.due import look_ahead, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from sqlalchemy import Engine

    from tests.twins import Twin

# These frames are not whom a call site is about; a story's own are.
__session_tracer_hide__ = True


class SQLiteGate:
    """A function of the database's that waits."""

    statement = text("SELECT wait_at_the_gate()")

    def __init__(self, twin: Twin) -> None:
        self._twin = twin
        self._is_reached = threading.Event()
        self._is_open = threading.Event()

    def wait(self) -> int:
        self._is_reached.set()
        assert self._is_open.wait(20)
        return 1

    async def reached(self) -> None:
        """Wait until the statement waits."""
        await until(self._is_reached.is_set, is_async=self._twin.is_async)

    async def open(self) -> None:
        """Let the statement end."""
        self._is_open.set()

    def connected(self, connection: Any, _: object) -> None:
        if self._twin.is_async:
            connection.run_async(lambda its: its.create_function("wait_at_the_gate", 0, self.wait))
        else:
            connection.create_function("wait_at_the_gate", 0, self.wait)


class PostgreSQLGate:
    """A lock of the database's that another connection holds."""

    statement = text("SELECT pg_advisory_lock(20)")
    # Other databases of the server have gates of their own.
    _waiting = text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )

    def __init__(self, twin: Twin, connection: Any) -> None:
        self._twin = twin
        self._connection = connection

    async def ask(self, statement: Any) -> Any:
        if self._twin.is_async:
            return await self._connection.scalar(statement)
        return self._connection.scalar(statement)

    async def reached(self) -> None:
        """Wait until the statement waits."""
        end = time.monotonic() + 20
        while not await self.ask(self._waiting):
            assert time.monotonic() < end
            if self._twin.is_async:
                await asyncio.sleep(0.01)
            else:
                time.sleep(0.01)

    async def open(self) -> None:
        """Let the statement end."""
        await self.ask(text("SELECT pg_advisory_unlock(20)"))


async def expire(timeout: asyncio.Timeout, reached: Callable[[], Awaitable[object]]) -> None:
    """Have the time be over as soon as that is reached."""
    await reached()
    timeout.reschedule(0)


@contextmanager
def commits_slowly(engine: Engine) -> Iterator[None]:
    """Have the watch look while the engine commits, as if that took half a minute."""

    def commit(_: object) -> None:
        look_ahead(29)

    event.listen(engine, "commit", commit)
    try:
        yield
    finally:
        event.remove(engine, "commit", commit)


@asynccontextmanager
async def gate(twin: Twin) -> AsyncIterator[Any]:
    """A gate for this twin's database."""
    engine: Any = twin.engine
    if twin.database == "postgresql":
        connection = await engine.connect() if twin.is_async else engine.connect()
        its_gate = PostgreSQLGate(twin, connection)
        await its_gate.ask(its_gate.statement)
        try:
            yield its_gate
        finally:
            closed = connection.close()
            if twin.is_async:
                await closed
        return
    of_sqlite = SQLiteGate(twin)
    await twin.dispose()
    engine = getattr(engine, "sync_engine", engine)
    event.listen(engine, "connect", of_sqlite.connected)
    try:
        yield of_sqlite
    finally:
        event.remove(engine, "connect", of_sqlite.connected)

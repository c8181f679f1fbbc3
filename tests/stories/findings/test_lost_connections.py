"""Stories of connections that the server has ended while they were in the pool."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, delete, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from session_tracer.testing import Captured, capture
from tests.library import Author, authors, keep
from tests.stories.findings.due import assert_found
from tests.stories.lines import marked
from tests.twins import Twin, on_postgresql

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

END_ALL = text(
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
PING = "create_engine(..., pool_pre_ping=True), if the connection was lost in the pool"


async def traced(twin: Twin, work: Callable[[Any], Awaitable[object]]) -> Captured:
    """What is found of work on a connection that was lost since the pool has it."""
    await keep(twin, *authors(1))
    other = Twin(twin.url, twin.is_async)
    async with other.session() as session:
        await session.execute(END_ALL)
    await other.dispose()
    with capture(twin.factory) as captured, suppress(Exception):
        async with twin.session() as session:
            await work(session)
    assert captured.metrics.get("session_tracer.errors", []) == []
    return captured


async def ping(twin: Twin) -> None:
    """Have the twin's pool test each connection, as the remedy says."""
    await twin.dispose()
    make: Any = create_async_engine if twin.is_async else create_engine
    twin.engine = make(twin.url, pool_pre_ping=True)
    twin.factory.configure(bind=twin.engine)


async def count(twin: Twin) -> int:
    async with twin.session() as session:
        found: int = await session.scalar(select(func.count()).select_from(Author))
    return found


async def add(session: Any) -> None:
    session.add(Author(name="new"))
    await session.commit()  # <- failed


async def add_and_go_on(session: Any) -> None:
    session.add(Author(name="new"))
    with suppress(DBAPIError):
        await session.commit()  # <- failed
    await session.scalars(select(Author))  # <- used


@on_postgresql
def test_with_a_ping_a_flush_does_not_meet_a_lost_connection(twin: Twin) -> None:
    async def story() -> None:
        captured = await traced(twin, add)
        (finding,) = captured.findings
        assert (finding.id, finding.site) == ("failed-flush", marked(add, "<- failed"))
        assert finding.message.endswith(": the connection was lost")
        assert finding.evidence["alternatives"] == [PING]
        assert await count(twin) == 1
        await ping(twin)
        await twin.execute(lambda it: it.execute(delete(Author)))
        assert_found(await traced(twin, add))
        assert await count(twin) == 2

    twin.run(story)


@on_postgresql
def test_with_a_ping_no_rollback_is_pending_after_a_lost_connection(twin: Twin) -> None:
    async def story() -> None:
        captured = await traced(twin, add_and_go_on)
        ids = [one.id for one in captured.findings]
        assert "pending-rollback" in ids
        pending = captured.findings[ids.index("pending-rollback")]
        assert pending.site == marked(add_and_go_on, "<- used")
        assert pending.evidence["failed_at"] == str(marked(add_and_go_on, "<- failed"))
        await ping(twin)
        await twin.execute(lambda it: it.execute(delete(Author)))
        assert_found(await traced(twin, add_and_go_on))
        assert await count(twin) == 2

    twin.run(story)

"""Tests that a comment does not keep drivers from using a statement that they have prepared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import event, literal, select, text

from session_tracer import Exporter, instrument, work
from tests.database_views.drivers import run
from tests.twins import Twin, url_of

if TYPE_CHECKING:
    from pathlib import Path

SELECTS = [select(literal(number).label(f"number_{number}")) for number in range(3)]
PREPARED = text(
    "SELECT count(*) FROM pg_prepared_statements"
    " WHERE statement LIKE '%AS number_%' AND statement NOT LIKE '%pg_prepared_statements%'"
)
TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("application")
COMMENT: dict[str, Any] = {"statement_comment": True}
WITH_TRACE: dict[str, Any] = {"statement_comment": True, "statement_comment_trace": True}
# psycopg prepares a statement that it has run five times.
USES = 8


async def use(twin: Twin, endpoints: int) -> None:
    for number in range(USES * endpoints):
        name = f"GET /{number % endpoints}"
        with TRACER.start_as_current_span(name), work(name):
            async with twin.session() as session:
                for one in SELECTS:
                    await session.execute(one)
                await session.commit()  # psycopg forgets what it has prepared at a ROLLBACK


async def prepared(twin: Twin, endpoints: int, settings: dict[str, Any]) -> int:
    """How many statements are prepared on the connection, after endpoints have used it."""
    with instrument(twin.factory, exporter=Exporter(), **settings):
        await use(twin, endpoints)
    found: list[int] = []
    await twin.execute(lambda connection: found.append(connection.scalar(PREPARED) or 0))
    await twin.dispose()
    return found[0]


def test_postgresql_prepares_as_many_statements_as_without(
    is_async: bool, postgres_url: str
) -> None:
    twin = Twin(url_of("postgresql", "", postgres_url, is_async=is_async), is_async)

    async def story() -> None:
        assert await prepared(twin, 1, {}) == 3
        assert await prepared(twin, 1, COMMENT) == 3
        assert await prepared(twin, 2, {}) == 3
        assert await prepared(twin, 2, COMMENT) == 6
        # Every request has a text of its own.
        assert await prepared(twin, 1, WITH_TRACE) == (3 * USES if is_async else 0)

    run(twin, story)


def test_sqlite_prepares_each_statement_once(tmp_path: Path) -> None:
    twin = Twin(url_of("sqlite", tmp_path / "shop.db", "", is_async=False), is_async=False)
    select_is_prepared = 21  # SQLite's code for an authorizer
    prepared: list[int] = []

    def authorize(action: int, *_: Any) -> int:
        prepared.append(action)
        return 0

    def count(connection: Any, _: Any) -> None:
        connection.set_authorizer(authorize)

    event.listen(twin.engine, "connect", count)

    async def story() -> None:
        for settings, expected in (({}, 3), (COMMENT, 3), (WITH_TRACE, 3 * USES)):
            with instrument(twin.factory, exporter=Exporter(), **settings):
                await use(twin, 1)
            assert prepared.count(select_is_prepared) == expected
            prepared.clear()
            await twin.dispose()

    run(twin, story)

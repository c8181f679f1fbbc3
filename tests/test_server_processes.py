"""Tests that a session's connection is named by the database server's own number for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url, text

from session_tracer import live_sessions
from session_tracer.testing import capture
from tests.stories.findings.due import look_ahead
from tests.twins import Twin

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy import URL

# By driver: what the server says about the connection, and its name in messages.
POSTGRESQL = ("postgresql", "SELECT pg_backend_pid()", "PostgreSQL")
MARIADB = ("mysql", "SELECT connection_id()", "MariaDB")
DRIVERS = {
    "psycopg": POSTGRESQL,
    "asyncpg": POSTGRESQL,
    "pymysql": MARIADB,
    "mysqldb": MARIADB,
    "asyncmy": MARIADB,
}
MODULES = {"mysqldb": "MySQLdb"}


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """A driver that is installed: mysqlclient (`mysqldb`) has to be compiled."""
    name: str = request.param
    pytest.importorskip(MODULES.get(name, name), reason=f"{name} is not installed")
    return name


@pytest.fixture
def url(driver: str, request: pytest.FixtureRequest) -> URL:
    backend = DRIVERS[driver][0]
    fixture = "postgres_url" if backend == "postgresql" else "mariadb_url"
    url = make_url(request.getfixturevalue(fixture))
    return url.set(drivername=f"{backend}+{driver}")


@pytest.fixture
def twin(url: URL, driver: str) -> Twin:
    return Twin(url, driver.startswith("async"))


def run(twin: Twin, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a story that needs no tables."""

    async def and_dispose() -> None:
        await story()
        await twin.dispose()

    twin.drive(and_dispose())


def test_it_is_the_servers_own_number(twin: Twin, driver: str) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                assert live_sessions()[0].process_id is None
                own = await session.scalar(text(DRIVERS[driver][1]))
                assert live_sessions()[0].process_id == own
                assert live_sessions()[0].statements == 1
                await session.commit()
                assert live_sessions()[0].process_id is None
        assert captured.sessions[0].statements == 1

    run(twin, story)


def test_a_finding_names_the_server_and_the_number(twin: Twin, driver: str) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                own = await session.scalar(text(DRIVERS[driver][1]))
                look_ahead(61)
        (leak,) = [one for one in captured.findings if one.id == "leaked-session"]
        assert leak.evidence["process_id"] == own
        assert f"({DRIVERS[driver][2]} process {own})" in leak.message

    run(twin, story)


def test_a_connection_that_was_given_back_has_none(twin: Twin, driver: str) -> None:
    """A driver that is asked for a closed connection's number may raise."""

    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.scalar(text(DRIVERS[driver][1]))
                await session.invalidate()
                assert [live.process_id for live in live_sessions()] in ([], [None])
        assert captured.findings == []

    run(twin, story)

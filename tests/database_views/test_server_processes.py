"""Tests that a session's connection is named by the database server's own number for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from session_tracer import live_sessions
from session_tracer.testing import capture
from tests.database_views.drivers import run
from tests.stories.findings.due import look_ahead

if TYPE_CHECKING:
    from tests.database_views.drivers import Driver
    from tests.twins import Twin


def test_it_is_the_servers_own_number(twin: Twin, driver: Driver) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                assert live_sessions()[0].process_id is None
                own = await session.scalar(text(driver.own_number))
                assert live_sessions()[0].process_id == own
                assert live_sessions()[0].statements == 1
                await session.commit()
                assert live_sessions()[0].process_id is None
        assert captured.sessions[0].statements == 1

    run(twin, story)


def test_a_finding_names_the_server_and_the_number(twin: Twin, driver: Driver) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                own = await session.scalar(text(driver.own_number))
                look_ahead(61)
        (leak,) = [one for one in captured.findings if one.id == "leaked-session"]
        assert leak.evidence["process_id"] == own
        assert f"({driver.database} process {own})" in leak.message

    run(twin, story)


def test_a_connection_that_was_given_back_has_none(twin: Twin, driver: Driver) -> None:
    """A driver that is asked for a closed connection's number may raise."""

    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.scalar(text(driver.own_number))
                await session.invalidate()
                assert [live.process_id for live in live_sessions()] in ([], [None])
        assert captured.findings == []

    run(twin, story)

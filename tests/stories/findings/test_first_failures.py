"""Stories of sessions that are used after a statement has failed, without a rollback."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from session_tracer.testing import Captured, capture
from tests.library import Author
from tests.stories.findings.remedies import pasted
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from session_tracer import Finding
    from tests.twins import Twin


async def tell(twin: Twin, work: Callable[[Any], Awaitable[object]]) -> Captured:
    with capture(twin.factory) as captured, suppress(DBAPIError):
        async with twin.session() as session:
            await work(session)
    assert captured.metrics.get("session_tracer.errors", []) == []
    return captured


async def insert_twice(session: Any) -> None:
    for _ in range(2):
        try:
            await session.execute(insert(Author).values(name="same"))  # <- failed
        except IntegrityError as error:  # <- caught
            del error
    await session.scalars(select(Author))  # <- used


async def read_nonsense(session: Any) -> None:
    with suppress(Exception):  # <- caught
        await session.execute(text("SELECT nonsense"))  # <- failed
    session.add(Author(name="never saved"))
    await session.commit()  # <- used


@on_each_database
@pytest.mark.parametrize("work", [insert_twice, read_nonsense])
def test_a_statement_that_fails_is_named_where_the_transaction_is_aborted(
    twin: Twin, work: Any
) -> None:
    async def story() -> None:
        captured = await tell(twin, work)
        if twin.database != "postgresql":
            assert captured.findings == []  # the transaction goes on without that statement
            return
        (pending,) = captured.findings
        assert (pending.id, pending.site) == ("pending-rollback", marked(work, "<- used"))
        assert "after a statement failed with " in pending.message
        assert _failed(pending) == str(marked(work, "<- failed"))
        awaited = "await " if twin.is_async else ""
        assert pending.remedy == f"{awaited}session.rollback() at {marked(work, '<- caught')}"

    twin.run(story)


def _failed(pending: Finding) -> object:
    return pending.evidence["failed_at"]


async def roll_back(session: Any) -> None:
    for _ in range(2):
        try:
            await session.execute(insert(Author).values(name="same"))
        except IntegrityError:
            await pasted("session.rollback()", session=session)
    await session.scalars(select(Author))


async def skip_by_savepoints(session: Any) -> None:
    for _ in range(2):
        try:
            async with session.begin_nested():
                await session.execute(insert(Author).values(name="same"))
        except IntegrityError:
            continue
    await session.commit()


@on_each_database
@pytest.mark.parametrize("work", [roll_back, skip_by_savepoints])
def test_a_statement_that_fails_and_is_rolled_back_is_no_finding(twin: Twin, work: Any) -> None:
    async def story() -> None:
        assert (await tell(twin, work)).findings == []

    twin.run(story)


async def use_it_often(session: Any) -> None:
    for statement in ("SELECT nonsense", "SELECT 1", "SELECT 2"):
        try:
            await session.execute(text(statement))
        except DBAPIError:
            continue


@on_each_database
def test_a_failed_statement_is_reported_once_however_often_the_session_is_used(twin: Twin) -> None:
    async def story() -> None:
        captured = await tell(twin, use_it_often)
        expected = ["pending-rollback"] if twin.database == "postgresql" else []
        assert [finding.id for finding in captured.findings] == expected

    twin.run(story)

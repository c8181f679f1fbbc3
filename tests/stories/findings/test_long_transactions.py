"""Stories of transactions that last, and of which suspicion is said of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from session_tracer.testing import capture
from tests.library import Author
from tests.stories.findings.due import Above, Due, assert_found, look_ahead
from tests.stories.lines import marked

if TYPE_CHECKING:
    from tests.twins import Twin


async def read_and_wait(twin: Twin, *seconds: float) -> None:
    async with twin.session() as session:  # <- opened, begins
        (await session.scalars(select(Author))).all()  # <- reads
        for later in seconds:
            look_ahead(later)  # <- waits
        await session.commit()  # <- ends


async def wait_after_commit(twin: Twin) -> None:
    async with twin.session() as session:
        (await session.scalars(select(Author))).all()
        await session.commit()
        look_ahead(50)


async def wait_after_rollback(twin: Twin) -> None:
    async with twin.session() as session:
        (await session.scalars(select(Author))).all()
        await session.rollback()
        look_ahead(50)


def test_a_transaction_that_lasts(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, idle_in_transaction_seconds=9999) as captured:
            await read_and_wait(twin, 29, 31, 32, 50)
        wait = marked(read_and_wait, "<- waits")
        assert_found(
            captured,
            Due(
                id="long-transaction",
                site=marked(read_and_wait, "<- reads"),
                opened=marked(read_and_wait, "<- opened"),
                remedy=f"commit before the work at {wait}, or begin after it",
                evidence={
                    "transaction": "open",
                    "statements": 1,
                    "sql_ms": Above(0),
                    "held_ms": Above(0),
                },
            ),
            retracted=("long-transaction",),
        )
        (retraction,) = captured.retractions
        assert retraction.evidence["outcome"] == "committed"
        assert retraction.evidence["ended_at"] == str(marked(read_and_wait, "<- ends"))

    twin.run(story)


def test_a_transaction_is_not_long_until_the_time_is_over(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, idle_in_transaction_seconds=9999) as captured:
            await read_and_wait(twin, 1, 28, 29)
            await wait_after_commit(twin)
            await wait_after_rollback(twin)
        assert_found(captured)

    twin.run(story)


def test_a_transaction_that_lasts_without_a_connection(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add(Author(name="Ada"))
                look_ahead(31)
                await session.rollback()
        (found,) = captured.findings
        assert found.id == "long-transaction"
        assert "held_ms" not in found.evidence
        assert [one.evidence["outcome"] for one in captured.retractions] == ["rolled_back"]

    twin.run(story)


# Which one speaks.


@pytest.mark.parametrize(
    ("idle", "long", "said"),
    [(5, 30, "idle-in-transaction"), (30, 5, "long-transaction"), (5, 5, "idle-in-transaction")],
)
def test_one_transaction_is_idle_or_long_but_not_both(
    twin: Twin, idle: int, long: int, said: str
) -> None:
    async def story() -> None:
        with capture(
            twin.factory, idle_in_transaction_seconds=idle, long_transaction_seconds=long
        ) as captured:
            await read_and_wait(twin, 4, 6, 29, 31, 59)
        assert [finding.id for finding in captured.findings] == [said]

    twin.run(story)


def test_each_transaction_of_a_session_is_reported(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                for _ in range(2):
                    (await session.scalars(select(Author))).all()
                    look_ahead(6)
                    await session.commit()
        assert [finding.id for finding in captured.findings] == ["idle-in-transaction"] * 2

    twin.run(story)


def test_a_wait_inside_a_savepoint(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session, session.begin_nested():
                (await session.scalars(select(Author))).all()
                look_ahead(6)
        (found,) = captured.findings
        assert (found.id, found.evidence["transaction"]) == ("idle-in-transaction", "savepoint")

    twin.run(story)

"""Stories of sessions that wait in vain for a connection, and of those that have them all."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool

from session_tracer.hooks import exhausted_pools
from session_tracer.testing import capture
from tests.good_code.silence import only_sync
from tests.library import Author
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from tests.twins import Twin

TIMEOUT = 0.1


async def shrink_pool(twin: Twin, size: int = 1, timeout: float = TIMEOUT) -> None:
    """Let the twin have so many connections from now on."""
    await twin.dispose()
    pool: dict[str, Any] = {"pool_size": size, "max_overflow": 0, "pool_timeout": timeout}
    if twin.is_async:
        # SQLAlchemy 2.0.37 has no pool of this kind for the files of SQLite unless it is named.
        twin.engine = create_async_engine(twin.url, poolclass=AsyncAdaptedQueuePool, **pool)
        twin.factory = async_sessionmaker(twin.engine)
    else:
        twin.engine = create_engine(twin.url, **pool)
        twin.factory = sessionmaker(twin.engine)


async def wait_in_vain(twin: Twin) -> None:
    async with twin.session() as session:  # <- waiter
        (await session.scalars(select(Author))).all()  # <- waits


async def hold(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened
        (await session.scalars(select(Author))).all()  # <- holds
        with pytest.raises(PoolTimeoutError):
            await wait_in_vain(twin)


def test_who_holds_the_connections_is_reported(twin: Twin) -> None:
    async def story() -> None:
        await shrink_pool(twin)
        with capture(twin.factory, name="shop-db") as captured:
            await hold(twin)
        opened = marked(hold, "<- opened")
        assert_found(
            captured,
            Due(
                id="pool-exhausted",
                site=marked(wait_in_vain, "<- waits"),
                opened=marked(wait_in_vain, "<- waiter"),
                remedy=captured.findings[0].remedy,
                evidence={"timeout_ms": 100.0},
            ),
        )
        holder = captured.sessions[0].id[:6]
        (found,) = captured.findings
        assert found.remedy.startswith(
            f"commit or close sooner, first of all session {holder} opened at {opened}: "
        )
        (held,) = found.evidence["holders"]
        assert held["opened_at"] == str(opened)
        assert held["last_statement_at"] == str(marked(hold, "<- holds"))
        numbers = ("pool_size", "pool_overflow", "checked_out")
        assert [found.evidence[name] for name in numbers] == [1, 0, 1]

    twin.run(story)


@pytest.mark.parametrize("error_leaves", [True, False])
def test_a_flush_that_gets_no_connection_is_no_mistake_of_its_own(
    twin: Twin, error_leaves: bool
) -> None:
    async def write() -> None:
        async with twin.session() as session:
            session.add(Author(name="Ada"))
            await session.commit()

    async def write_if_possible() -> None:
        async with twin.session() as session:
            session.add(Author(name="Ada"))
            try:
                await session.commit()
            except PoolTimeoutError:
                await session.rollback()

    async def story() -> None:
        await shrink_pool(twin, timeout=0.01)
        with capture(twin.factory, failed_flushes_from_one_site=2) as captured:
            async with twin.session() as holder:
                (await holder.scalars(select(Author))).all()
                for _ in range(2):
                    if error_leaves:
                        with pytest.raises(PoolTimeoutError):
                            await write()
                    else:
                        await write_if_possible()
        assert {finding.id for finding in captured.findings} == {"pool-exhausted"}

    twin.run(story)


def test_every_holder_is_reported(twin: Twin) -> None:
    async def story() -> None:
        await shrink_pool(twin, 3)
        with capture(twin.factory) as captured:
            sessions = [twin.session() for _ in range(4)]
            for session in sessions[:3]:
                await session.connection()
            with pytest.raises(PoolTimeoutError):
                await sessions[3].connection()
            for session in sessions:
                await session.close()
        found = captured.findings[-1]
        assert (found.id, found.count, len(found.evidence["holders"])) == ("pool-exhausted", 3, 3)
        # One line that opens several sessions may be a function that was called again.
        assert len(captured.findings) == 1

    twin.run(story)


def test_a_holder_that_is_no_session_is_reported_to_be_one(twin: Twin) -> None:
    async def story() -> None:
        await shrink_pool(twin)
        connecting: Any = twin.engine.connect()
        connection = await connecting if twin.is_async else connecting
        with capture(twin.factory) as captured, pytest.raises(PoolTimeoutError):
            await wait_in_vain(twin)
        closing = connection.close()
        if twin.is_async:
            await closing
        assert_found(
            captured,
            Due(
                id="pool-exhausted",
                site=marked(wait_in_vain, "<- waits"),
                opened=marked(wait_in_vain, "<- waiter"),
                remedy="look for connections that are not closed and sessions that are not traced; "
                "if there are none, increase pool_size",
                evidence={"holders": [], "checked_out": 1, "untraced": 1},
            ),
        )

    twin.run(story)


@only_sync
def test_threads_that_time_out_together_open_no_connection(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait() -> None:
        with twin.factory() as session, suppress(PoolTimeoutError):
            session.connection()

    def when_all_have(*arguments: Any) -> Any:
        time.sleep(0.1)
        return timed_out(*arguments)

    # As where the one that looks first takes longer.
    timed_out = exhausted_pools.timed_out
    monkeypatch.setattr(exhausted_pools, "timed_out", when_all_have)

    async def story() -> None:
        await shrink_pool(twin, timeout=0.3)
        connection: Any = twin.engine.connect()
        with capture(twin.factory) as captured, ThreadPoolExecutor(8) as threads:
            for _ in range(8):
                threads.submit(wait)
        connection.close()
        (finding,) = captured.findings
        evidence = finding.evidence
        assert (evidence.get("connecting"), evidence["untraced"]) == (None, 1)

    twin.run(story)


async def wait_elsewhere(twin: Twin) -> None:
    with pytest.raises(PoolTimeoutError):
        async with twin.session() as session:
            await session.connection()


def test_all_that_suffer_within_a_minute_are_one_finding(twin: Twin) -> None:
    async def story() -> None:
        await shrink_pool(twin)
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.connection()
                with pytest.raises(PoolTimeoutError):
                    await wait_in_vain(twin)
                await wait_elsewhere(twin)
        (found,) = captured.findings
        assert found.site == marked(wait_in_vain, "<- waits")

    twin.run(story)


def test_the_next_minute_has_a_finding_of_its_own(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await shrink_pool(twin)
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.connection()
                await wait_elsewhere(twin)
                monkeypatch.setattr(exhausted_pools, "_ONE_MINUTE", 0)
                await wait_elsewhere(twin)
        assert [found.id for found in captured.findings] == ["pool-exhausted"] * 2

    twin.run(story)


def test_another_pool_and_another_tracer_have_findings_of_their_own(twin: Twin) -> None:
    async def story() -> None:
        for is_new in (True, False, True):
            if is_new:
                await shrink_pool(twin)
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    await session.connection()
                    await wait_elsewhere(twin)
            assert [found.id for found in captured.findings] == ["pool-exhausted"]

    twin.run(story)


def sync_engine(twin: Twin) -> Engine:
    return twin.engine.sync_engine if isinstance(twin.engine, AsyncEngine) else twin.engine


def test_two_connections_of_one_session_are_both_held_by_it(twin: Twin) -> None:
    async def story() -> None:
        await shrink_pool(twin, 2)
        autocommit = sync_engine(twin).execution_options(isolation_level="AUTOCOMMIT")
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.connection()
                await session.connection(bind_arguments={"bind": autocommit})
                await wait_elsewhere(twin)
        (found,) = captured.findings
        assert (len(found.evidence["holders"]), found.evidence["checked_out"]) == (1, 2)
        assert "untraced" not in found.evidence

    twin.run(story)


def test_a_session_that_was_given_its_connection_holds_none(twin: Twin) -> None:
    async def story() -> None:
        await shrink_pool(twin)
        connecting: Any = twin.engine.connect()
        connection = await connecting if twin.is_async else connecting
        with capture(twin.factory) as captured:
            async with twin.session(bind=connection) as session:
                await session.execute(select(1))
                await wait_elsewhere(twin)
        closing = connection.close()
        if twin.is_async:
            await closing
        (found,) = captured.findings
        assert (found.evidence["holders"], found.evidence["untraced"]) == ([], 1)

    twin.run(story)


@only_sync
def test_a_session_that_was_left_open_is_to_be_closed_first(twin: Twin) -> None:
    kept: list[Any] = []

    def leak(factory: Any) -> None:
        kept.append(factory())
        kept[0].connection()  # <- leaks

    async def story() -> None:
        await shrink_pool(twin, 2)
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.connection()  # has held one for longer
                other = threading.Thread(target=leak, args=(twin.factory,))
                other.start()
                other.join()
                await wait_elsewhere(twin)
                kept[0].close()
                await wait_in_vain(twin)  # what the remedy advises is enough
        (found,) = [one for one in captured.findings if one.id == "pool-exhausted"]
        first, left = found.evidence["holders"]
        assert (first["owner_state"], left["owner_state"]) == ("running", "ended")
        assert left["first_used_at"] == str(marked(leak, "<- leaks"))
        assert found.remedy.startswith(
            f"a session is left open: close session {left['session_id'][:6]} "
        )

    twin.run(story)


@only_sync
def test_a_connection_that_comes_free_in_time_is_no_exhaustion(twin: Twin) -> None:
    ready = threading.Event()

    def hold_a_little(factory: Any) -> None:
        with factory() as session:
            session.connection()
            ready.set()

    async def story() -> None:
        await shrink_pool(twin, timeout=20)
        with capture(twin.factory) as captured:
            other = threading.Thread(target=hold_a_little, args=(twin.factory,))
            other.start()
            ready.wait(10)
            await wait_in_vain(twin)
            other.join()
        assert_found(captured)

    twin.run(story)


def test_a_timeout_of_something_else_is_none_of_the_pools(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.connection()
                with pytest.raises(PoolTimeoutError):
                    raise PoolTimeoutError("somebody else's")
        assert_found(captured)

    twin.run(story)

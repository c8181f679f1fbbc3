"""Tests the metrics of connection pools: of each pool that a traced session uses, once."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics.export import HistogramDataPoint, NumberDataPoint
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import (
    AssertionPool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from session_tracer import Exporter, instrument
from session_tracer.ledger import pools
from session_tracer.ledger.in_progress import SLOT
from session_tracer.testing import capture
from tests.library import Author, Base, Book
from tests.signals.telling import Measurements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

ONE = text("SELECT 1")
MOST_POOLS = 100
Pools = dict[str, dict[str, int]]


@pytest.fixture
def measured() -> Measurements:
    return Measurements()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def made(name: str = "shop.db", **options: Any) -> Engine:
        engine = create_engine(f"sqlite:///{tmp_path / name}", **options)
        engines.append(engine)
        return engine

    yield made
    for engine in engines:
        engine.dispose()


def read(measured: Measurements) -> Pools:
    """What is measured of each pool, by the last part of its name."""
    pools: Pools = {}
    collected = measured.collect()
    for kind in ("count", "max", "pending_requests", "timeouts"):
        metric = collected.get(f"db.client.connection.{kind}")
        for point in [] if metric is None else metric.data.data_points:
            assert isinstance(point, NumberDataPoint)
            attributes = {key: str(value) for key, value in (point.attributes or {}).items()}
            assert attributes.pop("sqlalchemy.session.name")
            name = attributes.pop("db.client.connection.pool.name").rpartition("/")[2]
            key = attributes.pop("db.client.connection.state", kind)
            assert attributes == {}
            pool = pools.setdefault(name, {})
            assert key not in pool
            pool[key] = int(point.value)
    return pools


def waits(measured: Measurements) -> dict[str, tuple[int, float]]:
    """The number of checkouts of each pool, and the seconds that they took."""
    metric = measured.collect().get("db.client.connection.wait_time")
    found = {}
    for point in [] if metric is None else metric.data.data_points:
        assert isinstance(point, HistogramDataPoint)
        attributes = {key: str(value) for key, value in (point.attributes or {}).items()}
        name = attributes.pop("db.client.connection.pool.name").rpartition("/")[2]
        assert list(attributes) == ["sqlalchemy.session.name"]
        assert name not in found
        found[name] = (point.count, point.sum)
    return found


def number(measured: Measurements) -> dict[str, int]:
    """The number of checkouts of each pool."""
    return {name: count for name, (count, _) in waits(measured).items()}


def comes(happened: Callable[[], object]) -> bool:
    until = time.monotonic() + 20
    while not happened() and time.monotonic() < until:
        time.sleep(0.01)
    return bool(happened())


def test_connections_that_no_session_holds_are_counted_too(
    make: Callable[..., Engine], measured: Measurements
) -> None:
    engine = make(poolclass=QueuePool, pool_size=2, max_overflow=1)
    factory = sessionmaker(engine)
    with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
        assert read(measured) == {}  # no session has used it
        with factory() as session, engine.connect():
            session.execute(ONE)
            assert read(measured)["shop.db"] == {
                "used": 2, "idle": 0, "max": 3, "pending_requests": 0, "timeouts": 0,
            }  # fmt: skip
        assert read(measured)["shop.db"]["used"] == 0
        assert read(measured)["shop.db"]["idle"] == 2
    assert read(measured) == {}


def test_threads_that_wait_and_those_that_waited_in_vain(
    make: Callable[..., Engine], measured: Measurements
) -> None:
    engine = make(poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.5)
    factory = sessionmaker(engine)

    def use(connect: Callable[[], Any]) -> None:
        with suppress(PoolTimeoutError), connect() as used:
            used.execute(ONE)

    with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
        with factory() as session:
            session.execute(ONE)
            waiting = [
                threading.Thread(target=use, args=(one,)) for one in (factory, engine.connect)
            ]
            for thread in waiting:
                thread.start()
            assert comes(lambda: read(measured)["shop.db"]["pending_requests"] == 2)
            for thread in waiting:
                thread.join()
        assert read(measured)["shop.db"] == {
            "used": 0, "idle": 1, "max": 1, "pending_requests": 0, "timeouts": 2,
        }  # fmt: skip


def test_tasks_that_wait(tmp_path: Path, measured: Measurements) -> None:
    async def main() -> None:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}",
            pool_size=1, max_overflow=0, pool_timeout=0.5,
        )  # fmt: skip
        factory = async_sessionmaker(engine)

        async def use() -> None:
            with suppress(PoolTimeoutError):
                async with factory() as session:
                    await session.execute(ONE)

        with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
            async with factory() as session, asyncio.TaskGroup() as tasks:
                await session.execute(ONE)
                for _ in range(3):
                    tasks.create_task(use())
                await asyncio.sleep(0.1)
                assert read(measured)["shop.db"] == {
                    "used": 1, "idle": 0, "max": 1, "pending_requests": 3, "timeouts": 0,
                }  # fmt: skip
            assert read(measured)["shop.db"]["timeouts"] == 3
            await engine.dispose()
            # The new pool has not been used: to ask it would make its queue.
            assert read(measured)["shop.db"]["used"] == 0
            assert "_queue" not in vars(engine.pool._pool)  # type: ignore[attr-defined] # the point

    asyncio.run(main())


def test_a_pool_without_numbers_has_what_sessions_hold_and_says_so_once(
    make: Callable[..., Engine], measured: Measurements, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make("none.db", poolclass=NullPool)
    factory = sessionmaker(engine)
    with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
        with factory() as session:
            session.execute(ONE)
            assert read(measured)["none.db"] == {"used": 1, "timeouts": 0}
        assert read(measured)["none.db"] == {"used": 0, "timeouts": 0}
    (message,) = [one for one in caplog.messages if "NullPool" in one]
    assert "does not count its connections" in message


def test_a_pool_of_one_connection_is_nothing_to_complain_of(
    measured: Measurements, caplog: pytest.LogCaptureFixture
) -> None:
    factory = sessionmaker(create_engine("sqlite://", pool_logging_name="memory"))
    tracing = instrument(factory, exporter=Exporter(meter_provider=measured.provider))
    with tracing, factory() as session:
        session.execute(ONE)
        assert read(measured)["memory"] == {"used": 1, "timeouts": 0}
    assert caplog.messages == []


def test_two_engines_of_one_database_have_names_of_their_own(
    make: Callable[..., Engine], measured: Measurements
) -> None:
    first, second = make(pool_logging_name="orders"), make(pool_logging_name="orders")
    factory, another = sessionmaker(first), sessionmaker(second)
    with instrument(exporter=Exporter(meter_provider=measured.provider)):
        with factory() as one, another() as two:
            one.execute(ONE)
            two.execute(ONE)
            assert {name: pool["used"] for name, pool in read(measured).items()} == {
                "orders": 1,
                "orders (2)": 1,
            }
        with factory() as one:
            one.connection(execution_options={"isolation_level": "SERIALIZABLE"})
            assert len(read(measured)) == 2


def test_factories_that_share_an_engine_share_its_pool(
    make: Callable[..., Engine], measured: Measurements
) -> None:
    engine = make()
    exporter = Exporter(meter_provider=measured.provider)
    factory, another = sessionmaker(engine), sessionmaker(engine)
    with instrument(factory, name="a", exporter=exporter):
        also = instrument(another, name="b", exporter=exporter)
        with also, factory() as one, another() as two:
            one.execute(ONE)
            two.execute(ONE)
            assert read(measured)["shop.db"]["used"] == 2
        with factory() as one, capture(factory) as captured:
            one.execute(ONE)
            assert "db.client.connection.count" in captured.metrics


def test_engines_that_are_no_longer_traced_do_not_count_towards_the_most(
    measured: Measurements,
) -> None:
    kept = []
    for number in range(MOST_POOLS + 20):
        engine = create_engine("sqlite://", pool_logging_name=f"pool {number}")
        factory = sessionmaker(engine)
        kept.append(engine)
        exporter = Exporter(meter_provider=measured.provider)
        with instrument(factory, exporter=exporter), factory() as session:
            session.execute(ONE)
            if number == MOST_POOLS + 19:
                assert list(read(measured)) == [f"pool {number}"]
    for engine in kept:
        engine.dispose()


def test_an_engine_that_is_gone_is_measured_no_longer(measured: Measurements) -> None:
    def use() -> None:
        factory = sessionmaker(create_engine("sqlite://", pool_logging_name="short"))
        with factory() as session:
            session.execute(ONE)

    with instrument(exporter=Exporter(meter_provider=measured.provider)):
        use()
        gc.collect()
        assert "short" not in read(measured)


# Checkouts.


def test_every_checkout_is_counted_also_the_first_and_those_of_other_code(
    make: Callable[..., Engine], measured: Measurements
) -> None:
    engine = make()
    factory = sessionmaker(engine)
    with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
        with factory() as session:
            session.execute(ONE)
            session.commit()
            session.execute(ONE)
        assert number(measured) == {"shop.db": 2}
        with engine.connect() as connection:
            connection.execute(ONE)
        assert number(measured) == {"shop.db": 3}
        engine.dispose()  # which makes a new pool
        with factory() as session:
            session.execute(ONE)
        assert number(measured) == {"shop.db": 4}
    with factory() as session:
        session.execute(ONE)
    assert number(measured) == {"shop.db": 4}


def test_a_pool_that_no_traced_session_uses_is_not_timed(
    make: Callable[..., Engine], measured: Measurements
) -> None:
    traced, other = make("traced.db"), make("other.db")
    factory, another = sessionmaker(traced), sessionmaker(other)
    with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
        for one in (factory, another, factory):
            with one() as session:
                session.execute(ONE)
        assert number(measured) == {"traced.db": 2}


def test_the_time_that_a_checkout_waited_is_measured_also_in_vain(
    make: Callable[..., Engine], measured: Measurements
) -> None:
    engine = make(poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.3)
    factory = sessionmaker(engine)
    with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
        with factory() as holder, factory() as waiting:
            holder.execute(ONE)
            (_, before) = waits(measured)["shop.db"]
            with pytest.raises(PoolTimeoutError):
                waiting.execute(ONE)
        (count, seconds) = waits(measured)["shop.db"]
        assert (count, seconds - before >= 0.3) == (2, True)


def test_tasks_wait_for_as_long_as_it_takes(tmp_path: Path, measured: Measurements) -> None:
    async def main() -> None:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}", pool_size=1, max_overflow=0
        )
        factory = async_sessionmaker(engine)

        async def use(seconds: float) -> None:
            async with factory() as session:
                await session.execute(ONE)
                await asyncio.sleep(seconds)

        with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(3):
                    tasks.create_task(use(0.2))
            (count, seconds) = waits(measured)["shop.db"]
            # The second has waited for the first one, and the third one for both.
            assert (count, seconds >= 0.55) == (3, True)
        await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize(
    "kind", [QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool]
)
def test_checkouts_of_every_kind_of_pool_are_counted(
    make: Callable[..., Engine], measured: Measurements, kind: type[Pool]
) -> None:
    factory = sessionmaker(make(poolclass=kind))
    with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
        for _ in range(3):
            with factory() as session:
                session.execute(ONE)
        assert number(measured) == {"shop.db": 3}


class OwnPool(QueuePool):
    def connect(self, untimed: Any = Pool.connect) -> Any:
        return untimed(self)


def test_a_pool_with_a_method_of_its_own_is_not_timed(
    make: Callable[..., Engine], measured: Measurements
) -> None:
    factory = sessionmaker(make(poolclass=OwnPool))
    with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
        with factory() as session:
            session.execute(ONE)
            assert read(measured)["shop.db"]["used"] == 1
        assert number(measured) == {}


def test_a_checkout_is_not_of_a_pool_that_got_the_address_of_a_former_one(
    make: Callable[..., Engine], measured: Measurements, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python gives addresses again when it likes.
    monkeypatch.setattr(pools, "id", lambda _: 1, raising=False)
    factory = sessionmaker(make(poolclass=OwnPool))
    with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
        make("former.db").connect().close()
        with factory() as session:
            session.execute(ONE)
        assert number(measured) == {}


def test_checkouts_are_counted_once_for_each_provider(make: Callable[..., Engine]) -> None:
    engine = make()
    factory, another = sessionmaker(engine), sessionmaker(engine)
    first = Measurements()
    exporter = Exporter(meter_provider=first.provider)
    with (
        instrument(factory, name="a", exporter=exporter),
        instrument(another, name="b", exporter=exporter),
    ):
        for one in (factory, another):
            with one() as session:
                session.execute(ONE)
        with capture(factory) as captured:
            for _ in range(3):
                with factory() as session:
                    session.execute(ONE)
        assert number(first) == {"shop.db": 5}
        # Which pool the first of its sessions uses is known when that has its connection.
        (point,) = captured.metrics["db.client.connection.wait_time"]
        assert point.count == 2


def test_a_session_with_a_bind_for_each_mapper_uses_several_pools(
    make: Callable[..., Engine], measured: Measurements
) -> None:
    orders, stock = make("orders.db"), make("stock.db")
    for engine in (orders, stock):
        Base.metadata.create_all(engine)
    factory = sessionmaker(binds={Author: orders, Book: stock})
    with instrument(factory, exporter=Exporter(meter_provider=measured.provider)):
        with factory() as session:
            session.scalars(select(Author)).all()
            session.scalars(select(Book)).all()
            assert {name: pool["used"] for name, pool in read(measured).items()} == {
                "orders.db": 1,
                "stock.db": 1,
            }
        assert number(measured) == {"orders.db": 1, "stock.db": 1}


def test_pools_are_left_as_they_were_found(make: Callable[..., Engine]) -> None:
    found = [dict(vars(Pool)), dict(vars(SingletonThreadPool))]
    engine = make()
    factory = sessionmaker(engine)
    with instrument(factory, exporter=Exporter()), factory() as session:
        session.execute(ONE)
        assert SLOT in vars(engine.dialect)
        assert inspect.signature(Pool.connect) == inspect.signature(found[0]["connect"])
    assert [dict(vars(Pool)), dict(vars(SingletonThreadPool))] == found
    assert SLOT not in vars(engine.dialect)


def test_a_wrapper_of_another_library_stays(make: Callable[..., Engine]) -> None:
    calls = []
    found = Pool.connect
    factory = sessionmaker(make())
    try:
        with instrument(factory, exporter=Exporter()):
            traced = Pool.connect

            def connect(self: Pool) -> Any:
                calls.append(self)
                return traced(self)

            Pool.connect = connect  # type: ignore[method-assign] # as another library does
        assert Pool.connect is connect
        with factory() as session:
            session.execute(ONE)
        assert len(calls) == 1
    finally:
        Pool.connect = found  # type: ignore[method-assign] # as it was


def test_a_pool_of_another_release_is_not_timed_and_works() -> None:
    class Otherwise:
        def connect(self) -> str:
            return "a connection"

    before = Pool.connect
    try:
        Pool.connect = Otherwise.connect  # type: ignore[assignment,method-assign] # the point
        with instrument(sessionmaker(), exporter=Exporter()):
            otherwise: Any = Otherwise()
            assert str(Pool.connect(otherwise)) == "a connection"
    finally:
        Pool.connect = before  # type: ignore[method-assign] # as it was

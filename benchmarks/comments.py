"""Measures how often a driver uses a statement that it has prepared, with `statement_comment`.

    python -m benchmarks.comments

A session runs 10 of 40 SELECTs for one of the endpoints, on the only connection of its pool.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
from opentelemetry.sdk.trace import TracerProvider
from psycopg._preparing import Prepare, PrepareManager
from sqlalchemy import StaticPool, create_engine, event, literal, make_url, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from session_tracer import Exporter, instrument, work
from tests.servers.postgres import postgres_server

if TYPE_CHECKING:
    from collections.abc import Iterator

SELECTS = [select(literal(0).label(f"number_{number}")) for number in range(40)]
SELECTS_OF_A_SESSION = 10
SESSIONS = 400
ENDPOINTS = (1, 3, 20)
SETTINGS: dict[str, dict[str, Any]] = {
    "without": {},
    "comment": {"statement_comment": True},
    "comment and trace": {"statement_comment": True, "statement_comment_trace": True},
}
SELECT_IS_PREPARED = 21  # SQLite's code for an authorizer
TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("application")


class Preparing:
    """How often a statement was prepared, or, by psycopg, run without that."""

    count = 0


@contextmanager
def preparing(engine: Any) -> Iterator[Preparing]:
    """Count the statements that the driver of an engine prepares."""
    counted = Preparing()

    def authorize(action: int, *_: Any) -> int:
        counted.count += action == SELECT_IS_PREPARED
        return 0

    def connect(connection: Any, _: Any) -> None:
        connection.set_authorizer(authorize)

    prepare, get = asyncpg.Connection.prepare, PrepareManager.get

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        counted.count += 1
        return prepare(self, *args, **kwargs)

    def getting(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = get(self, *args, **kwargs)
        counted.count += found[0] is not Prepare.YES
        return found

    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", connect)
    asyncpg.Connection.prepare, PrepareManager.get = counting, getting  # type: ignore[method-assign]
    try:
        yield counted
    finally:
        asyncpg.Connection.prepare, PrepareManager.get = prepare, get  # type: ignore[method-assign]


def plan(endpoints: int) -> list[tuple[str, list[Any]]]:
    """What each session works for, and its SELECTs: the same in each run."""
    choose = random.Random(endpoints)
    return [
        (f"GET /{number % endpoints}", choose.sample(SELECTS, SELECTS_OF_A_SESSION))
        for number in range(SESSIONS)
    ]


def reused(url: str, endpoints: int, settings: dict[str, Any]) -> float:
    """The share of the statements that were prepared already, on a new connection."""
    is_async = "asyncpg" in url
    make = create_async_engine if is_async else create_engine
    engine: Any = make(url, poolclass=StaticPool)
    factory: Any = (async_sessionmaker if is_async else sessionmaker)(engine)
    with preparing(engine) as counted, instrument(factory, exporter=Exporter(), **settings):
        if is_async:
            asyncio.run(_run_async(engine, factory, endpoints))
        else:
            for name, selects in plan(endpoints):
                with TRACER.start_as_current_span(name), work(name), factory() as session:
                    for one in selects:
                        session.execute(one)
                    session.commit()  # psycopg forgets what it has prepared at a ROLLBACK
            engine.dispose()
    return max(0.0, 1 - counted.count / (SESSIONS * SELECTS_OF_A_SESSION))


async def _run_async(engine: Any, factory: Any, endpoints: int) -> None:
    for name, selects in plan(endpoints):
        with TRACER.start_as_current_span(name), work(name):
            async with factory() as session:
                for one in selects:
                    await session.execute(one)
                await session.commit()
    await engine.dispose()


def main() -> None:
    """Print the table of docs/performance.md."""
    print("| driver | endpoints |", " | ".join(SETTINGS), "|")
    print("| --- | ---: |" + " ---: |" * len(SETTINGS))
    with postgres_server() as server:
        plain = make_url(server.url)
        urls = {"sqlite3": "sqlite://"}
        for name in ("psycopg", "asyncpg"):
            of_driver = plain.set(drivername=f"postgresql+{name}")
            urls[name] = of_driver.render_as_string(hide_password=False)
        for name, url in urls.items():
            for endpoints in ENDPOINTS:
                cells = [f"{reused(url, endpoints, one):.0%}" for one in SETTINGS.values()]
                print(f"| {name} | {endpoints} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Gives every test its twins and its servers, and checks that none leaves a trace."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from session_tracer import uninstrument
from tests.twins import Twin, url_of

pytest_plugins = ["pytester", "tests.servers.plugin"]


def pytest_collection_finish() -> None:
    _collect_garbage()


def _collect_garbage() -> None:
    """Whatever is alive then is never looked at again: a test's garbage is its own, and little."""
    gc.collect()
    gc.freeze()


@event.listens_for(Pool, "connect")
def _wait_for_no_disk(connection: Any, record: Any) -> None:
    """The files of SQLite go with their test: nothing of them has to survive a power cut."""
    driver = type(record.driver_connection).__module__.partition(".")[0]
    if driver in ("sqlite3", "aiosqlite"):
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = OFF")
        cursor.close()


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    """Whether the story is awaited."""
    return bool(request.param)


@pytest.fixture
def database() -> str:
    """What a story runs on, unless it is marked `on_each_database` or `on_postgresql`."""
    return "sqlite"


@pytest.fixture
def twin(request: pytest.FixtureRequest, database: str, is_async: bool, tmp_path: Path) -> Twin:
    """The same story sync and async."""
    postgres_url = request.getfixturevalue("postgres_url") if database == "postgresql" else ""
    return Twin(
        url_of(database, tmp_path / "stories.db", postgres_url, is_async=is_async), is_async
    )


@pytest.fixture
def sqlite_twin(is_async: bool, tmp_path: Path) -> Twin:
    """The same story sync and async, where the database makes no difference."""
    return Twin(url_of("sqlite", tmp_path / "stories.db", "", is_async=is_async), is_async)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Nothing stays instrumented, and what a test leaks is complained of in that test."""
    yield
    uninstrument()
    _collect_garbage()

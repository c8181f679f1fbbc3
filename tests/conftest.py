"""Gives every test its twins and its servers, and checks that none leaves a trace."""

import gc
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from session_tracer import uninstrument
from tests.twins import Twin, url_of

TESTS_TO_A_THAW = 50
_ENDED = itertools.count(1)

pytest_plugins = ["pytester", "tests.servers.plugin"]


def pytest_collection_finish() -> None:
    _collect_and_freeze()


def _collect_and_freeze() -> None:
    """Whatever is alive then is not looked at again: a test's garbage is its own, and little."""
    gc.collect()
    gc.freeze()


def _thaw() -> None:
    """Collects what was frozen and has died since; by now no one knows which test it was of."""
    gc.unfreeze()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


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


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing stays instrumented, and what a test leaks is complained of in that test."""
    yield
    uninstrument()
    request.node.funcargs.clear()  # pytest does it only afterwards
    _collect_and_freeze()
    if next(_ENDED) % TESTS_TO_A_THAW == 0:
        _thaw()
        _collect_and_freeze()

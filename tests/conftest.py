"""Gives every test its twins and its servers, and checks that none leaves a trace."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from session_tracer import uninstrument
from tests.twins import Twin, url_of

pytest_plugins = ["pytester", "tests.servers.plugin"]

DATABASES = ("sqlite", "postgresql")


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    """Whether the story is awaited."""
    return bool(request.param)


@pytest.fixture(params=DATABASES)
def twin(request: pytest.FixtureRequest, is_async: bool, tmp_path: Path) -> Twin:
    """The same story sync and async, on SQLite and PostgreSQL."""
    postgres_url = ""
    if request.param == "postgresql":
        postgres_url = request.getfixturevalue("postgres_url")
    url = url_of(request.param, tmp_path / "stories.db", postgres_url, is_async=is_async)
    return Twin(url, is_async)


@pytest.fixture
def sqlite_twin(is_async: bool, tmp_path: Path) -> Twin:
    """The same story sync and async, where the database makes no difference."""
    return Twin(url_of("sqlite", tmp_path / "stories.db", "", is_async=is_async), is_async)


@pytest.fixture(autouse=True)
def _nothing_stays_instrumented() -> Iterator[None]:
    yield
    uninstrument()

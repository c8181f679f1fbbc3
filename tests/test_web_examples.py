"""Tests the FastAPI and the Flask example: right, they report nothing; each mistake is reported."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from examples import load
from examples.database import database_url

README: Final = (Path(__file__).parent.parent / "examples" / "README.md").read_text()


def placeholders(request: str) -> str:
    """A request in the same words for both frameworks."""
    return re.sub(r"[<{].+?[>}]", "ID", request)


# The mistakes of an application, each with the requests in which it is made.
MISTAKES: Final = {
    application: {
        mistake: placeholders(request)
        for mistake, only, request in re.findall(
            r"^\| `([a-z-]+)`(?: \((\w+)\))? \| `([A-Z]+ /.*?)` \|", README, re.MULTILINE
        )
        if only.lower() in ("", application)
    }
    for application in load.APPLICATIONS
}
# What some of these mistakes cause in addition.
CONSEQUENCES: Final = {
    "abandoned-session",
    "failed-flush",
    "idle-in-transaction",
    "leaked-session",
}
IDLE_SECONDS: Final = 0.2
PATIENCE_SECONDS: Final = 10.0
LEFT_OPEN: Final = (
    "SELECT pid FROM pg_stat_activity"
    " WHERE datname = current_database() AND state = 'idle in transaction'"
)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of the applications that are started."""
    path = tmp_path / "log.jsonl"
    monkeypatch.setenv("SESSION_TRACER_EXPORTER", "jsonl")
    monkeypatch.setenv("SESSION_TRACER_JSONL_PATH", str(path))
    return path


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lasts is reported soon after it has begun."""
    monkeypatch.setenv("SESSION_TRACER_IDLE_IN_TRANSACTION_SECONDS", str(IDLE_SECONDS))
    monkeypatch.setenv("SESSION_TRACER_LEAK_AFTER_SECONDS", str(IDLE_SECONDS * 2))
    monkeypatch.setenv("SHOP_PAYMENT_SECONDS", str(IDLE_SECONDS * 4))


def findings(log: Path) -> list[dict[str, Any]]:
    # The last line may not be complete yet.
    lines = log.read_text().splitlines(keepends=True)
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in events if event["event"] == "finding"]


def visit(url: str) -> list[int]:
    """Make each visit; the answers."""
    rng = random.Random(7)
    visits = [one for _, one in load.WITH_THE_CATALOGUE]
    visits += [load.bestsellers, load.bestsellers]
    with load.client_of(url) as client:
        answers = [one(client, rng) for one in visits]
        answers += [client.post("/customers", json={"email": "a@example.org"}) for _ in range(2)]
        answers += [client.get("/authors/3") for _ in range(2)]
    return [answer.status_code for answer in answers]


@pytest.mark.parametrize("application", load.APPLICATIONS)
def test_the_right_application_reports_nothing(application: str, log: Path) -> None:
    with load.running(application, "") as url:
        assert set(visit(url)) == {200, 201, 409}
    assert findings(log) == []


@pytest.mark.parametrize("application", load.APPLICATIONS)
def test_each_mistake_is_reported_of_its_request(application: str, log: Path, soon: None) -> None:
    made = MISTAKES[application]
    # A session that all requests share works for none of them.
    wanted = {(id_, "" if id_ == "shared-session" else request) for id_, request in made.items()}
    with load.running(application, ",".join(made)) as url:
        assert set(visit(url)) == {200, 500}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while wanted - reported(log) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert wanted - reported(log) == set()
    assert {id_ for id_, _ in reported(log)} - set(made) <= CONSEQUENCES
    assert {each["site"].split("/")[1] for each in findings(log)} == {f"{application}_app"}


def reported(log: Path) -> set[tuple[str, str]]:
    """The findings, each with its request."""
    return {(each["finding_id"], placeholders(each.get("work", ""))) for each in findings(log)}


@pytest.mark.parametrize("application", load.APPLICATIONS)
def test_postgresql_is_used_if_the_environment_names_it(
    application: str, log: Path, soon: None, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    before = left_open_in(postgres_url)  # other tests share the database
    with (
        load.running(application, "n-plus-one,leaked-session") as url,
        load.client_of(url) as client,
    ):
        assert client.get("/authors").is_success
        assert client.get("/catalogue").is_success
        (left_open,) = left_open_in(postgres_url) - before
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "leaked-session" not in named(log) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert {"n-plus-one", "leaked-session"} <= named(log)
    (leaked, *_) = (each for each in findings(log) if each["finding_id"] == "leaked-session")
    assert leaked["process_id"] == left_open


def left_open_in(url: str) -> set[int]:
    """The process ids of the server's connections whose transaction was left open."""
    with psycopg.connect(url) as connection:
        return {process_id for (process_id,) in connection.execute(LEFT_OPEN)}


def named(log: Path) -> set[str]:
    return {id_ for id_, _ in reported(log)}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost/shop", "Invalid DATABASE_URL: expected postgresql://"),
        ("postgresql://shop@localhost:port/shop", "Invalid DATABASE_URL: expected postgresql://"),
        ("oracle://shop:secret@localhost/shop", "Invalid DATABASE_URL: expected postgresql://"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(SystemExit, match=message) as refused:
        database_url(sqlite_driver="aiosqlite", postgresql_driver="asyncpg")
    assert "secret" not in str(refused.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://shop@localhost/shop")
    with pytest.raises(SystemExit, match="needs the package nonesuch: pip install nonesuch"):
        database_url(sqlite_driver="aiosqlite", postgresql_driver="nonesuch")


@pytest.mark.parametrize("written", ["postgres", "postgresql", "postgresql+psycopg"])
def test_each_application_uses_its_own_driver(
    written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{written}://shop@localhost/shop")
    url = database_url(sqlite_driver="aiosqlite", postgresql_driver="asyncpg")
    assert str(url) == "postgresql+asyncpg://shop@localhost/shop"

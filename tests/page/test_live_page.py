"""Tests what the live page shows, and what it costs where it is not read."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
)

from session_tracer import (
    Exporter,
    instrument,
    live_app,
    live_sessions,
    live_wsgi_app,
    tracer,
    work,
)
from session_tracer.testing import capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
App = Any
Answer = tuple[str, dict[str, str], bytes]
CLIENT = {
    "REQUEST_METHOD": "GET",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "localhost:8000",
    "HTTP_ACCEPT": "application/json",
}


class Base(DeclarativeBase): ...


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    books: Mapped[list[Book]] = relationship()


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    with factory() as session:
        session.add_all(Author(name="very private", books=[Book()]) for _ in range(6))
        session.commit()
    yield factory
    engine.dispose()


def ask(app: App, **environ: str) -> Answer:
    """One request of WSGI."""
    started: list[Any] = []
    body = b"".join(app(CLIENT | environ, lambda *given: started.append(given)))
    ((status, headers),) = started
    return status, dict(headers), body


def shown(app: App) -> dict[str, Any]:
    status, _, body = ask(app)
    assert status == "200 OK"
    found: dict[str, Any] = json.loads(body)
    return found


def read_author(factory: sessionmaker[Session]) -> None:
    with factory() as session:
        session.get(Author, 1)


def read_books_one_by_one(factory: sessionmaker[Session]) -> None:
    with factory() as session:
        for author in session.scalars(select(Author)):
            len(author.books)  # lazy


def test_an_open_session_is_shown_with_its_owner_and_its_stack(
    factory: sessionmaker[Session],
) -> None:
    app = live_wsgi_app()
    with instrument(factory, name="shop", exporter=Exporter()):
        with work("GET /authors"), factory() as session:
            session.execute(select(1))
            found = shown(app)
        (one,) = found["open"]["sessions"]
        assert (found["version"], found["kind"], found["open"]["count"]) == (1, "live", 1)
        assert (one["name"], one["work"], one["statements"]) == ("shop", "GET /authors", 1)
        assert (one["owner_state"], one["holds_connection"]) == ("running", True)
        assert any("test_an_open_session" in line for line in one["owner_stack"])
        assert found["pools"][0]["used"] == 1
        assert shown(app)["open"]["sessions"] == []


def test_a_session_left_by_its_thread_is_shown_as_left_behind(
    factory: sessionmaker[Session],
) -> None:
    kept: list[Session] = []

    def leave() -> None:
        kept.append(factory())
        kept[0].execute(select(1))

    app = live_wsgi_app()
    with instrument(factory, exporter=Exporter()):
        thread = threading.Thread(target=leave, name="export")
        thread.start()
        thread.join()
        found = shown(app)["open"]
        assert (found["count"], found["left_behind"]) == (1, 1)
        assert found["sessions"][0]["owner_state"] == "ended"
        assert found["by_line"] == [[found["sessions"][0]["first_used_site"], 1]]
        kept.pop().close()


def test_findings_are_grouped_by_line_with_their_work(factory: sessionmaker[Session]) -> None:
    app = live_wsgi_app()
    with instrument(factory, exporter=Exporter()):
        for name in ("GET /a", "GET /b", "GET /a"):
            with work(name):
                read_books_one_by_one(factory)
        (one,) = shown(app)["findings"]
    assert (one["finding_id"], one["severity"], one["count"]) == ("n-plus-one", "warning", 3)
    assert (one["entity"], one["attribute"]) == ("Author", "books")
    assert one["works"] == [["GET /a", 2], ["GET /b", 1]]
    assert "selectinload(Author.books)" in one["remedy"]
    assert (one["total"], one["total_ms"] > 0) == (18, True)


def test_sessions_that_ended_are_shown_and_counted_over_time(
    factory: sessionmaker[Session],
) -> None:
    app = live_wsgi_app()
    with instrument(factory, name="shop", exporter=Exporter()):
        for _ in range(300):
            read_author(factory)
        read_books_one_by_one(factory)
        with factory() as session:
            session.execute(select(1))
            found = shown(app)
    sessions = found["sessions"]
    assert sessions["count"] == 301
    assert sessions["busiest"][0]["statements"] == 7
    assert sessions["busiest"][0]["findings"] == ["n-plus-one"]
    durations = [one["duration_ms"] for one in sessions["slowest"]]
    assert durations == sorted(durations, reverse=True)
    assert sessions["latest"][0]["statements"] == 7
    assert sum(found["over_time"]["closed"]) == 301
    assert sum(found["over_time"]["opened"]) == 302  # one is open


def test_steps_are_kept_once_the_page_is_read(factory: sessionmaker[Session]) -> None:
    app = live_wsgi_app()
    with instrument(factory, exporter=Exporter()):
        read_author(factory)
        assert shown(app)["sessions"]["latest"][0]["steps"] == []
        read_author(factory)
        steps = shown(app)["sessions"]["latest"][0]["steps"]
        with factory() as session:
            session.get(Author, 2)
            (one,) = shown(app)["open"]["sessions"]
    assert [step["verb"] for step in steps] == ["begin", "select", "close"]
    assert [step["verb"] for step in one["steps"]] == ["begin", "select"]


def test_steps_that_another_exporter_has_asked_for_are_shown(
    factory: sessionmaker[Session],
) -> None:
    app = live_wsgi_app()
    with instrument(factory, exporter=Exporter(on_session=lambda _: None)):
        read_author(factory)
        steps = shown(app)["sessions"]["latest"][0]["steps"]
    assert [step["verb"] for step in steps] == ["begin", "select", "close"]


def test_steps_are_kept_no_more_when_the_page_is_not_read(
    factory: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("session_tracer.page.recent._READ_SECONDS", -1)
    monkeypatch.setattr("session_tracer.page.recent._MOST_WAITING", 2)
    app = live_wsgi_app()
    with instrument(factory, exporter=Exporter()):
        shown(app)
        for _ in range(5):
            read_author(factory)
        latest = shown(app)["sessions"]["latest"]
    assert [bool(one["steps"]) for one in latest] == [False, False, True, True, True]


def test_no_value_is_shown(factory: sessionmaker[Session]) -> None:
    app = live_wsgi_app()
    with instrument(factory, exporter=Exporter()):
        ask(app)
        with factory() as session:
            session.scalars(select(Author).where(Author.name == "very private")).all()
            read_books_one_by_one(factory)
            for accept in ("application/json", "text/html"):
                assert b"very private" not in ask(app, HTTP_ACCEPT=accept)[2]


def test_a_session_of_two_tracers_is_shown_once(factory: sessionmaker[Session]) -> None:
    app = live_wsgi_app()
    with instrument(factory, name="shop", exporter=Exporter()), capture(factory):
        read_books_one_by_one(factory)
        found = shown(app)
    assert (found["sessions"]["count"], found["findings"][0]["count"]) == (1, 1)
    assert found["sessions"]["latest"][0]["session_name"] == "shop"


def test_a_factory_that_is_instrumented_before_the_mount_counts_too(
    factory: sessionmaker[Session],
) -> None:
    with instrument(factory, exporter=Exporter()):
        read_author(factory)
        app = live_wsgi_app()
        read_author(factory)
        assert shown(app)["sessions"]["count"] == 1


def test_an_exporter_s_signals_stay_as_they_are(factory: sessionmaker[Session]) -> None:
    events: list[dict[str, Any]] = []
    app = live_wsgi_app()
    with instrument(factory, exporter=Exporter(on_log=events.append), log_level="info"):
        ask(app)
        read_author(factory)  # no event: it wrote nothing
        with factory() as session:
            session.add(Author(name="x"))
            session.commit()
    assert [event["event"] for event in events] == ["session.closed"]


def test_the_page_opens_no_session_and_keeps_none(factory: sessionmaker[Session]) -> None:
    app = live_wsgi_app()
    with instrument(factory, exporter=Exporter()):
        session = factory()
        session.execute(select(1))
        ask(app)
        assert len(live_sessions()) == 1
        session.close()
        author = session.get(Author, 1)
        gone = weakref.ref(session), weakref.ref(author)
        session.close()
        del session, author
        ask(app)
        gc.collect()
        assert [one() for one in gone] == [None, None]


@pytest.mark.parametrize("make", [live_app, live_wsgi_app])
def test_nothing_is_kept_when_the_page_is_gone(make: Callable[[], App]) -> None:
    before = len(tracer._WATCHERS)
    app = make()
    assert len(tracer._WATCHERS) == before + 1
    del app
    gc.collect()
    assert len(tracer._WATCHERS) == before


def test_what_is_kept_is_bounded(
    factory: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("session_tracer.page.recent._MOST_GROUPS", 3)
    app = live_wsgi_app()
    with instrument(factory, exporter=Exporter()):
        for number in range(5):
            namespace = {"select": select, "Author": Author}
            source = "\n" * number + (
                "def run(session):\n"
                "    for author in session.scalars(select(Author)):\n        len(author.books)\n"
            )
            exec(compile(source, __file__, "exec"), namespace)
            with factory() as session:
                namespace["run"](session)  # type: ignore[operator] # exec made it
        found = shown(app)
    assert len(found["findings"]) == 3
    assert found["findings_left_out"] == 2


def test_html_and_json_have_one_address_and_strict_headers() -> None:
    app = live_wsgi_app()
    status, headers, body = ask(app, HTTP_ACCEPT="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (status, headers["Content-Type"]) == ("200 OK", "text/html; charset=utf-8")
    nonce = headers["Content-Security-Policy"].partition("script-src 'nonce-")[2].partition("'")[0]
    assert headers["Content-Security-Policy"] == (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert body.count(f'nonce="{nonce}"'.encode()) == 2
    assert int(headers["Content-Length"]) == len(body)
    assert nonce not in ask(app, HTTP_ACCEPT="text/html")[1]["Content-Security-Policy"]
    _, as_json, _ = ask(app)
    assert as_json["Content-Type"] == "application/json"
    for one in (headers, as_json):
        assert (one["Cache-Control"], one["Vary"]) == ("no-store", "Accept")
        assert (one["X-Content-Type-Options"], one["Referrer-Policy"]) == ("nosniff", "no-referrer")


def test_only_get_and_head_are_answered() -> None:
    app = live_wsgi_app()
    status, headers, body = ask(app, REQUEST_METHOD="HEAD")
    assert (status, body) == ("200 OK", b"")
    assert int(headers["Content-Length"]) > 0
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"):
        status, headers, body = ask(app, REQUEST_METHOD=method)
        assert (status, headers["Allow"], body) == ("405 Method Not Allowed", "GET, HEAD", b"")


def test_a_stranger_reads_nothing() -> None:
    app = live_wsgi_app()
    for environ in ({"REMOTE_ADDR": "10.0.0.7"}, {"HTTP_HOST": "evil.example"}):
        for method in ("GET", "POST"):
            status, headers, body = ask(app, REQUEST_METHOD=method, **environ)
            assert (status, body, headers["Content-Length"]) == ("403 Forbidden", b"", "0")
            assert "Allow" not in headers


FORKED = """
import json, os
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from session_tracer import Exporter, instrument, live_wsgi_app

SessionLocal = sessionmaker(create_engine("sqlite://"))
instrument(SessionLocal, exporter=Exporter())
app = live_wsgi_app()

def shown():
    environ = {"REQUEST_METHOD": "GET", "REMOTE_ADDR": "::1", "HTTP_HOST": "[::1]"}
    environ["HTTP_ACCEPT"] = "application/json"
    return json.loads(app(environ, lambda *_: None)[0])

def use(times):
    for _ in range(times):
        with SessionLocal() as session:
            session.execute(text("SELECT 1"))

use(3)
child = os.fork()
use(2 if child else 1)
document = shown()
if child:
    os.waitpid(child, 0)
is_own = document["process"]["process_pid"] == os.getpid()
print("parent" if child else "child", document["sessions"]["count"], is_own, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_worker_shows_its_own_sessions() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines() == ["child 1 True", "parent 5 True"]


def test_a_page_that_cannot_be_made_is_no_exception(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("very private")

    app = live_wsgi_app()
    monkeypatch.setattr("session_tracer.page.live.document", fail)
    status, _, body = ask(app)
    assert (status, body) == ("500 Internal Server Error", b"")
    assert "RuntimeError" in caplog.text
    assert "very private" not in caplog.text


async def asked(app: App, client: tuple[str, int] | None, **headers: str) -> httpx.Response:
    """One request of ASGI."""
    transport = httpx.ASGITransport(app=app, client=client or ("", 0))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as http:
        return await http.get("/", headers=headers)


async def test_asgi_answers_as_wsgi_does() -> None:
    app, here = live_app(), ("127.0.0.1", 40_000)
    answer = await asked(app, here, accept="application/json")
    assert (answer.status_code, answer.json()["kind"]) == (200, "live")
    assert "nonce-" in (await asked(app, here)).headers["content-security-policy"]
    for client, headers in (
        (("10.0.0.7", 40_000), {"x-forwarded-for": "127.0.0.1"}),
        (here, {"host": "evil.example"}),
        (None, {}),
    ):
        answer = await asked(app, client, **headers)
        assert (answer.status_code, answer.content) == (403, b"")
    app = live_app(token="abc")
    assert (await asked(app, None, authorization="Bearer abc")).status_code == 200
    assert (await asked(app, here, authorization="Bearer abd")).status_code == 403


async def test_an_asynchronous_session_is_shown_with_the_code_that_waits(tmp_path: Path) -> None:
    app = live_app()
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
    factory = async_sessionmaker(engine)
    is_open, may_close = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with factory() as session:
            await session.execute(select(1))
            is_open.set()
            await may_close.wait()

    with instrument(factory, exporter=Exporter()):
        task = asyncio.create_task(hold(), name="holder")
        await is_open.wait()
        answer = await asked(app, ("::1", 1), accept="application/json")
        (one,) = answer.json()["open"]["sessions"]
        assert (one["owner"], one["owner_state"]) == ('task "holder"', "waiting")
        assert any("hold()" in line for line in one["owner_stack"])
        may_close.set()
        await task
        answer = await asked(app, ("::1", 1), accept="application/json")
        assert answer.json()["sessions"]["latest"][0]["async"] is True
    await engine.dispose()


async def test_a_server_may_run_it_alone() -> None:
    sent: list[dict[str, Any]] = []
    received = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> dict[str, str]:
        return next(received)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await live_app()({"type": "lifespan"}, receive, send)
    assert [one["type"] for one in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


async def test_a_websocket_is_refused() -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await live_app()({"type": "websocket", "headers": []}, receive, send)
    assert [one["type"] for one in sent] == ["websocket.close"]


def test_threads_that_end_sessions_at_once_are_all_counted(
    factory: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("session_tracer.page.recent._MOST_WAITING", 5)
    app = live_wsgi_app()

    def run() -> None:
        for _ in range(100):
            read_author(factory)

    with instrument(factory, exporter=Exporter()):
        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        counts = [shown(app)["sessions"]["count"] for _ in range(5)]
        for thread in threads:
            thread.join()
        found = shown(app)
    assert counts == sorted(counts)
    assert found["sessions"]["count"] == sum(found["over_time"]["closed"]) == 600


def test_the_documentation_names_each_key(factory: sessionmaker[Session]) -> None:
    page = (ROOT / "docs" / "live-page.md").read_text()
    table = page.partition("\n## The document\n")[2]
    app = live_wsgi_app()
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    assert set(shown(app)) <= set(re.findall(r"\w+", " ".join(rows)))
    with instrument(factory, exporter=Exporter()), factory() as session:
        ask(app)
        read_books_one_by_one(factory)
        session.execute(select(1))
        found = shown(app)
    named = set(re.findall(r"`(\w+)`", page))
    assert set(found["open"]) | set(found["sessions"]) | set(found["over_time"]) <= named
    assert set(found["sessions"]["latest"][0]["steps"][0]) <= named

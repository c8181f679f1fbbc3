"""Tests the live page under real servers, asked by the machine itself and by strangers."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import httpx
import pytest

from tests.servers.lifeline import Server, ServerFailed, lifeline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FASTAPI: Final = """
import os
from fastapi import FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
import session_tracer

engine = create_engine("sqlite://")
SessionLocal = sessionmaker(engine)
session_tracer.instrument(SessionLocal, name="shop")
app = FastAPI()
app.mount("/debug/sessions", session_tracer.live_app())
app.mount("/debug/secret", session_tracer.live_app(token=os.environ["PAGE_TOKEN"]))

@app.get("/work")
def work():
    with SessionLocal() as session:
        return session.execute(text("SELECT 1")).scalar()
"""
FLASK: Final = """
import os
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from werkzeug.middleware.dispatcher import DispatcherMiddleware
import session_tracer

engine = create_engine("sqlite://")
SessionLocal = sessionmaker(engine)
session_tracer.instrument(SessionLocal, name="shop")
app = Flask(__name__)

@app.get("/work")
def work():
    with SessionLocal() as session:
        return str(session.execute(text("SELECT 1")).scalar())

app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {
    "/debug/sessions": session_tracer.live_wsgi_app(),
    "/debug/secret": session_tracer.live_wsgi_app(token=os.environ["PAGE_TOKEN"]),
})
"""
SERVERS: Final = {
    "uvicorn": (FASTAPI, ["uvicorn", "--host", "0.0.0.0", "--port", "{port}", "application:app"]),
    "gunicorn": (FLASK, ["gunicorn", "--bind", "0.0.0.0:{port}", "application:app"]),
}
TOKEN: Final = "right-token"
AS_JSON: Final = {"accept": "application/json"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def other_address() -> str:
    """An address of this machine that is no loopback one: who asks it is a stranger."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.77", 9))  # sends nothing
        except OSError:
            return ""
        return str(one.getsockname()[0])


@contextmanager
def running(name: str) -> Iterator[int]:
    """The port of an application that has mounted the page."""
    source, arguments = SERVERS[name]
    port = free_port()
    with lifeline() as line:
        folder: Path = line.server_folder(name)
        (folder / "application.py").write_text(source)
        command = [sys.executable, "-m", *(one.format(port=port) for one in arguments)]
        paths = [str(folder), os.getcwd()]
        server = Server(
            line,
            folder,
            command,
            environment={"PAGE_TOKEN": TOKEN, "PYTHONPATH": os.pathsep.join(paths)},
        )

        def ready() -> bool | None:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/work").is_success or None
            except httpx.TransportError:
                return None

        try:
            server.wait_until(ready, f"{name} to answer", 40)
            yield port
        finally:
            server.stop()


@pytest.fixture(scope="module", params=SERVERS)
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    try:
        with running(request.param) as port:
            yield port
    except ServerFailed as error:
        pytest.fail(str(error))


def page(port: int, at: str = "localhost", of: str = "sessions", **headers: str) -> httpx.Response:
    """Ask at that address for the page."""
    return httpx.get(f"http://{at}:{port}/debug/{of}/", headers=AS_JSON | headers, timeout=20)


def test_the_machine_itself_is_answered_and_opens_no_session(port: int) -> None:
    count = page(port).json()["sessions"]["count"]
    assert httpx.get(f"http://localhost:{port}/work").text == "1"
    document = page(port, "127.0.0.1").json()
    assert (document["kind"], document["sessions"]["count"]) == ("live", count + 1)
    assert document["open"]["count"] == 0
    assert "nonce-" in page(port, accept="text/html").headers["content-security-policy"]


def test_a_stranger_is_refused_whatever_its_headers_are(port: int) -> None:
    address = other_address()
    if not address or address.startswith("127."):
        pytest.skip("this machine has no address but the loopback ones")
    for headers in (
        {},
        {"x-forwarded-for": "127.0.0.1"},
        {"x-real-ip": "127.0.0.1", "forwarded": "for=127.0.0.1"},
        {"x-forwarded-for": "127.0.0.1", "x-forwarded-host": "localhost"},
    ):
        for host in (f"{address}:{port}", f"localhost:{port}", "127.0.0.1"):
            answer = page(port, address, host=host, **headers)
            assert (answer.status_code, answer.content) == (403, b"")


def test_a_name_of_another_site_and_a_proxy_are_refused(port: int) -> None:
    for headers in (
        {"host": "evil.example"},
        {"host": f"evil.example:{port}"},
        {"x-forwarded-for": "203.0.113.9"},
        # A stranger may have written it, and uvicorn takes it for the client's address.
        {"x-forwarded-for": "127.0.0.1"},
    ):
        answer = page(port, **headers)
        assert (answer.status_code, answer.content) == (403, b"")


def test_the_token_decides_where_there_is_one(port: int) -> None:
    address = other_address() or "localhost"
    assert page(port, of="secret").status_code == 403
    wrong = page(port, address, "secret", authorization="Bearer wrong-token")
    assert (wrong.status_code, wrong.content) == (403, b"")
    assert page(port, of=f"secret/?token={TOKEN}").status_code == 403
    answer = page(port, address, "secret", authorization=f"Bearer {TOKEN}")
    assert answer.json()["kind"] == "live"
    assert TOKEN not in answer.text

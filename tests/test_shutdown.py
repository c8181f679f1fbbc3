"""Tests what is reported as an ASGI application shuts down, also if its process goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from session_tracer import Exporter, instrument, live_sessions
from session_tracer.asgi import WorkMiddleware
from session_tracer.testing import capture
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from session_tracer.testing import Captured

ONE = text("SELECT 1")
Factory = sessionmaker[Session]
KEPT: list[Any] = []


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[Factory]:
    engine = create_engine(
        f"sqlite:///{tmp_path / 'shop.db'}", connect_args={"check_same_thread": False}
    )
    yield sessionmaker(engine)
    KEPT.clear()
    engine.dispose()


class Client:
    """A server of one application, which starts and shuts down with a `with` block."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.__enter__()
        self.run(self._start())
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self.shut_down()
        finally:
            self._runner.__exit__(*raised)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the coroutine in the server's event loop."""
        self._runner.run(work)

    def shut_down(self) -> None:
        """End the application, and not its event loop."""
        if not self._lifespan.done():
            self.run(self._shut_down())

    async def _start(self) -> None:
        self._messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._started = asyncio.Event()
        scope: Any = {"type": "lifespan"}
        self._lifespan = asyncio.create_task(self._app(scope, self._messages.get, self._send))
        await self._messages.put({"type": "lifespan.startup"})
        await self._started.wait()

    async def _send(self, _message: object) -> None:
        self._started.set()

    async def _shut_down(self) -> None:
        await self._messages.put({"type": "lifespan.shutdown"})
        await self._lifespan

    def get(self) -> None:
        """Ask for the page."""
        self.run(self._get())

    async def _get(self) -> None:
        transport = ASGITransport(self._app)
        async with AsyncClient(transport=transport, base_url="http://shop") as client:
            assert (await client.get("/leak")).status_code == 200
        # The thread that has called the page gets there later than the answer.
        while any(live.owner_state == "running" for live in live_sessions() if live.work):
            await asyncio.sleep(0.01)


def serving(view: Callable[..., Any], lifespan: Any = None) -> Starlette:
    """An application with one page."""
    app = Starlette(routes=[Route("/leak", view)], lifespan=lifespan)
    app.add_middleware(WorkMiddleware)
    return app


def leaking(factory: Factory) -> Starlette:
    def view(_request: Any) -> PlainTextResponse:
        leave_open(factory)
        return PlainTextResponse("")

    return serving(view)


def leave_open(factory: Factory) -> None:
    session = factory()  # <- opened
    session.execute(ONE)
    KEPT.append(session)


def found(captured: Captured) -> list[tuple[str, str]]:
    return [(finding.id, finding.work) for finding in captured.findings]


def test_what_a_request_has_left_open_is_reported_as_the_application_shuts_down(
    factory: Factory,
) -> None:
    with capture(factory) as captured:
        with Client(leaking(factory)) as client:
            client.get()
            assert found(captured) == []
        (finding,) = captured.findings
        assert (finding.id, finding.work) == ("abandoned-session", "GET /leak")
        assert finding.site == marked(leave_open, "<- opened")
        assert "was still open when its application shut down" in finding.message
        assert [one.outcome for one in captured.sessions] == ["abandoned"]
        assert live_sessions() == []


def test_a_session_that_was_reported_can_be_closed_and_used_again(factory: Factory) -> None:
    with capture(factory) as captured:
        with Client(leaking(factory)) as client:
            client.get()
        (session,) = KEPT
        session.close()
        assert len(captured.sessions) == 1
        session.execute(ONE)
        session.commit()
        session.close()
        assert [one.outcome for one in captured.sessions] == ["abandoned", "committed"]
    assert not session.in_transaction()


def test_a_session_that_is_used_on_after_the_shutdown_works(factory: Factory) -> None:
    with capture(factory):
        with Client(leaking(factory)) as client:
            client.get()
        (session,) = KEPT
        assert session.scalar(ONE) == 1
        session.commit()
        session.close()


def test_the_remedy_leaves_nothing_open(factory: Factory) -> None:
    def view(_request: Any) -> PlainTextResponse:
        with factory() as session:
            session.execute(ONE)
        return PlainTextResponse("")

    with capture(factory) as captured, Client(serving(view)) as client:
        client.get()
    assert found(captured) == []


def test_what_other_code_has_open_is_not_the_applications(factory: Factory) -> None:
    """A fixture's session, one that a page of another application has left, and one in use."""
    with capture(factory) as captured:
        leave_open(factory)
        with Client(leaking(factory)) as other:
            other.get()
            with Client(serving(lambda _request: PlainTextResponse(""))) as client:
                client.get()
            with factory() as session:
                session.execute(ONE)
                with Client(serving(lambda _request: PlainTextResponse(""))) as client:
                    client.get()
            assert "abandoned-session" not in [finding.id for finding in captured.findings]
        assert found(captured)[-1] == ("abandoned-session", "GET /leak")


def test_a_task_that_goes_on_after_its_request_closes_its_own_session(tmp_path: Path) -> None:
    """What still works as the application shuts down is not left behind."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
    factory = async_sessionmaker(engine)
    stop: list[asyncio.Event] = []
    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        async with factory() as session:
            await session.execute(ONE)
            stop.append(asyncio.Event())
            await stop[0].wait()

    async def view(_request: Any) -> PlainTextResponse:
        tasks.append(asyncio.create_task(work()))
        while not stop:
            await asyncio.sleep(0.01)
        return PlainTextResponse("")

    async def end() -> None:
        stop[0].set()
        await tasks[0]
        await engine.dispose()

    client = Client(serving(view))
    with capture(factory) as captured, client:
        client.get()
        client.shut_down()
        assert found(captured) == []
        client.run(end())
        assert [one.outcome for one in captured.sessions] == ["closed"]


def test_what_is_held_back_is_logged_as_the_application_shuts_down(factory: Factory) -> None:
    logged: list[Any] = []
    with instrument(factory, exporter=Exporter(on_log=logged.append)):
        with Client(leaking(factory)) as client:
            for _ in range(3):
                client.get()
            assert logged == []
        findings = [one for one in logged if one["event"] == "finding"]
        assert sum(1 + one["suppressed"] for one in findings) == 3


def test_a_shutdown_that_fails_is_passed_on(factory: Factory) -> None:
    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        yield
        raise LookupError("the application's own")

    def view(_request: Any) -> PlainTextResponse:
        leave_open(factory)
        return PlainTextResponse("")

    with capture(factory) as captured:
        with (
            pytest.raises(LookupError, match="the application's own"),
            Client(serving(view, lifespan)) as client,
        ):
            client.get()
        assert found(captured) == [("abandoned-session", "GET /leak")]


def test_an_exporter_that_waits_does_not_hold_the_shutdown_up(factory: Factory) -> None:
    released = threading.Event()

    def flush() -> None:
        released.wait(20)

    tracing = instrument(factory, exporter=Exporter(flush=flush))
    began = time.monotonic()
    with Client(leaking(factory)) as client:
        client.get()
    assert time.monotonic() - began < 10
    released.set()
    tracing.uninstrument()

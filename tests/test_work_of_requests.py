"""For which request or task a session works, in real frameworks and servers."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import pytest
from celery import Celery, signals
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI
from flask import Flask
from httpx import ASGITransport, AsyncClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from uvicorn import Config, Server

from session_tracer import asgi, wsgi
from session_tracer.celery import name_tasks
from session_tracer.testing import capture
from tests.library import Author, Base

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from session_tracer.testing import Captured

Factory = sessionmaker[Session]


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[Factory]:
    engine = create_engine(
        f"sqlite:///{tmp_path / 'library.db'}", connect_args={"check_same_thread": False}
    )
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


def read(session: Session) -> None:
    session.scalars(select(Author)).all()


def works(captured: Captured) -> list[str]:
    return [one.work for one in captured.sessions]


def asked(app: Any, *requests: tuple[str, str]) -> list[int]:
    """The statuses of the application's answers to these requests."""

    async def ask() -> list[int]:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
            return [(await client.request(*one)).status_code for one in requests]

    return asyncio.run(ask())


# ASGI.


def shop(factory: Factory) -> FastAPI:
    """A FastAPI application with a dependency, a router with a prefix, and a mounted one."""

    def get_session() -> Iterator[Session]:
        with factory() as session:
            read(session)
            yield session

    app, router, inner = FastAPI(), APIRouter(prefix="/shop"), FastAPI()
    db = Annotated[Session, Depends(get_session)]

    def use(background: BackgroundTasks) -> None:
        with factory() as session:
            read(session)

    def later(tasks: BackgroundTasks) -> None:
        tasks.add_task(use, tasks)

    def depends(session: Any) -> None: ...

    depends.__annotations__ = {"session": db, "return": None}
    app.get("/orders/{order_id}")(depends)
    app.get("/files/{path:path}")(depends)
    app.post("/later")(later)
    router.delete("/orders/{order_id}/lines/{line}")(depends)
    app.include_router(router)
    inner.get("/orders/{order_id}")(depends)
    app.mount("/v2", inner)
    app.add_middleware(asgi.WorkMiddleware)
    return app


def test_fastapi_names_a_request_by_its_route(factory: Factory) -> None:
    with capture(factory) as captured:
        statuses = asked(
            shop(factory),
            ("GET", "/orders/17?expand=lines"),
            ("GET", "/files/a/b/c"),
            ("POST", "/later"),
            ("DELETE", "/shop/orders/17/lines/3"),
            ("GET", "/v2/orders/17"),
        )
    assert statuses == [200] * 5
    assert works(captured) == [
        "GET /orders/{order_id}",
        "GET /files/{path}",
        "POST /later",
        "DELETE /shop/orders/{order_id}/lines/{line}",
        "GET /v2/orders/{order_id}",
    ]


def test_a_request_that_no_route_matches_has_its_method(factory: Factory) -> None:
    """A scan for paths must not use the names up."""
    app = shop(factory)

    async def with_session(scope: Any, receive: Any, send: Any) -> None:
        with factory() as session:
            await app(scope, receive, send)
            read(session)

    with capture(factory) as captured:
        paths = [("GET", f"/.env{number}") for number in range(3)]
        assert asked(asgi.WorkMiddleware(with_session), *paths) == [404] * 3
    assert works(captured) == ["GET"] * 3


def test_starlette_mounts_and_streams(factory: Factory) -> None:
    async def orders(request: Any) -> StreamingResponse:
        async def lines() -> Any:
            with factory() as session:
                read(session)
                yield "one"

        return StreamingResponse(lines())

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        with factory() as session:
            read(session)
        await PlainTextResponse("raw")(scope, receive, send)

    app = Starlette(
        routes=[
            Mount("/shops/{shop}", routes=[Route("/orders/{id:int}", orders)]),
            Mount("/raw", app=raw),
        ]
    )
    app.add_middleware(asgi.WorkMiddleware)
    with capture(factory) as captured:
        assert asked(app, ("GET", "/shops/7/orders/17"), ("GET", "/raw/any/thing")) == [200, 200]
    assert works(captured) == ["GET /shops/{shop}/orders/{id}", "GET /raw"]


def bare(factory: Factory) -> Any:
    """An ASGI application without routes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with factory() as session:
            read(session)
        await PlainTextResponse("bare")(scope, receive, send)

    return app


def test_paths_of_an_application_without_routes_are_bounded(factory: Factory) -> None:
    app = asgi.WorkMiddleware(bare(factory))
    with capture(factory, max_works=2) as captured:
        asked(app, *(("GET", f"/orders/{number}") for number in range(4)))
    assert works(captured) == ["GET /orders/0", "GET /orders/1", "_other", "_other"]


def test_a_function_names_requests(factory: Factory) -> None:
    app = asgi.WorkMiddleware(bare(factory), name=lambda scope: scope["path"].split("/")[1])
    with capture(factory) as captured:
        asked(app, ("GET", "/orders/17"))
    assert works(captured) == ["orders"]


def test_a_function_that_raises_does_not_disturb_the_request(factory: Factory) -> None:
    app = asgi.WorkMiddleware(bare(factory), name=lambda scope: scope["nothing"])
    with capture(factory) as captured:
        assert asked(app, ("GET", "/orders/17")) == [200]
    assert works(captured) == [""]
    (point,) = captured.metrics["session_tracer.errors"]
    assert dict(point.attributes)["where"] == "work"


def test_it_may_be_mounted_twice_and_inside_of_the_router(factory: Factory) -> None:
    app = shop(factory)
    app.add_middleware(asgi.WorkMiddleware)
    inside = FastAPI()
    inside.mount("/inside", asgi.WorkMiddleware(shop(factory)))
    with capture(factory) as captured:
        assert asked(app, ("GET", "/orders/17")) == [200]
        assert asked(inside, ("GET", "/inside/orders/17")) == [200]
    assert works(captured) == ["GET /orders/{order_id}", "GET /inside/orders/{order_id}"]


def test_what_is_no_request_passes(factory: Factory) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))
        with factory() as session:
            read(session)

    middleware = asgi.WorkMiddleware(app)
    with capture(factory) as captured:
        for scope in ({"type": "lifespan"}, {}):
            asyncio.run(middleware(scope, 1, 2))
    # What a lifespan sends is looked at: see tests/test_shutdown.py.
    assert [one[:2] for one in seen] == [({"type": "lifespan"}, 1), ({}, 1)]
    assert seen[1][2] == 2
    assert works(captured) == ["", ""]


def test_a_session_that_outlives_its_request_keeps_the_name_and_nothing_else(
    factory: Factory,
) -> None:
    sessions: list[Session] = []
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        sessions.append(factory())
        read(sessions[0])
        await PlainTextResponse("left open")(scope, receive, send)

    with capture(factory) as captured:
        asked(asgi.WorkMiddleware(app), ("GET", "/orders"))
        scopes.pop()["path"] = "/changed"
        sessions.pop().close()
    assert works(captured) == ["GET /orders"]


def test_requests_to_a_server_are_named(factory: Factory) -> None:
    config = Config(shop(factory), port=0, log_level="error", lifespan="off")
    server = Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    with capture(factory) as captured:
        thread.start()
        while not server.started:
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            assert client.get("/orders/17").status_code == 200
        server.should_exit = True
        thread.join()
    assert works(captured) == ["GET /orders/{order_id}"]


# Litestar's route, and websockets.


def litestar_shop(factory: Factory) -> Any:
    litestar = pytest.importorskip("litestar")

    @litestar.get("/orders/{order_id:int}", sync_to_thread=True)  # type: ignore[untyped-decorator] # not installed everywhere
    def get_order(order_id: int) -> int:
        with factory() as session:
            read(session)
        return order_id

    @litestar.post("/lines/{line:int}")  # type: ignore[untyped-decorator] # as above
    async def post_line(line: int) -> int:
        with factory() as session:
            read(session)
        return line

    @litestar.websocket("/prices/{book:int}")  # type: ignore[untyped-decorator] # as above
    async def prices(socket: Any, book: int) -> None:
        await socket.accept()
        with factory() as session:
            read(session)
        await socket.close()

    # Litestar finds what annotates these by name.
    prices.fn.__annotations__["socket"] = litestar.WebSocket
    shop = litestar.Router("/shop", route_handlers=[post_line])
    return litestar.Litestar([get_order, shop, prices])


@pytest.mark.filterwarnings("ignore:.*declared using deprecated inferred style")
def test_litestar_names_a_request_by_its_route(factory: Factory) -> None:
    app = asgi.WorkMiddleware(litestar_shop(factory))
    with capture(factory, ignore={"blocked-event-loop"}) as captured:
        statuses = asked(
            app, ("GET", "/orders/17"), ("GET", "/orders/18"), ("POST", "/shop/lines/3")
        )
    assert statuses == [200, 200, 201]
    assert works(captured) == [
        "GET /orders/{order_id}",
        "GET /orders/{order_id}",
        "POST /shop/lines/{line}",
    ]


def starlette_prices(factory: Factory) -> Any:
    async def prices(socket: WebSocket) -> None:
        await socket.accept()
        with factory() as session:
            read(session)
        await socket.close()

    return Starlette(routes=[WebSocketRoute("/prices/{book:int}", prices)])


def fastapi_prices(factory: Factory) -> Any:
    app = FastAPI()

    async def prices(socket: Any, book: int) -> None:
        await socket.accept()
        with factory() as session:
            read(session)
        await socket.close()

    prices.__annotations__ = {"socket": WebSocket, "book": int}
    app.websocket("/prices/{book}")(prices)
    return app


def no_routes(factory: Factory) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        with factory() as session:
            read(session)
        await send({"type": "websocket.close"})

    return app


def opened(app: Any, path: str) -> list[str]:
    """What a websocket's client sees."""
    seen: list[str] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        seen.append(message["type"])

    scope = {"type": "websocket", "path": path, "raw_path": path.encode(), "root_path": ""}
    scope |= {"query_string": b"", "headers": [], "subprotocols": [], "scheme": "ws"}
    asyncio.run(app(scope, receive, send))
    return seen


@pytest.mark.filterwarnings("ignore:.*declared using deprecated inferred style")
@pytest.mark.parametrize(
    ("shop", "work"),
    [
        (starlette_prices, "WEBSOCKET /prices/{book}"),
        (fastapi_prices, "WEBSOCKET /prices/{book}"),
        (litestar_shop, "WEBSOCKET /prices/{book}"),
        (no_routes, "WEBSOCKET /prices/17"),
    ],
)
def test_a_websocket_is_named_by_its_route(factory: Factory, shop: Any, work: str) -> None:
    app = asgi.WorkMiddleware(shop(factory))
    with capture(factory, ignore={"blocked-event-loop"}) as captured:
        assert opened(app, "/prices/17") == ["websocket.accept", "websocket.close"]
    assert works(captured) == [work]


# WSGI.


def test_flask_names_a_request_by_its_rule(factory: Factory) -> None:
    app = Flask("shop")

    @app.get("/orders/<int:order_id>")
    def order(order_id: int) -> str:
        with factory() as session:
            read(session)
        return f"order {order_id}"

    @app.get("/stream")
    def stream() -> Any:
        def parts() -> Iterator[str]:
            with factory() as session:
                read(session)
                yield "part"

        return parts()

    @app.before_request
    def early() -> None:
        with factory() as session:
            read(session)

    app.wsgi_app = wsgi.WorkMiddleware(app.wsgi_app)  # type: ignore[method-assign]
    client = app.test_client()
    with capture(factory) as captured:
        assert client.get("/orders/17").text == "order 17"
        assert client.get("/stream").text == "part"
        assert client.get("/nothing/17").status_code == 404
    assert works(captured) == [
        "GET /orders/<int:order_id>",
        "GET /orders/<int:order_id>",
        "GET /stream",
        "GET /stream",
        "GET",
    ]


def test_a_session_that_flask_leaves_open_keeps_the_name(factory: Factory) -> None:
    app = Flask("shop")
    left: list[Session] = []

    @app.get("/orders/<int:order_id>")
    def order(order_id: int) -> str:
        left.append(factory())
        read(left[0])
        return "left open"

    app.wsgi_app = wsgi.WorkMiddleware(app.wsgi_app)  # type: ignore[method-assign]
    with capture(factory) as captured:
        app.test_client().get("/orders/17")
        left.pop().close()
    assert works(captured) == ["GET /orders/<int:order_id>"]


def test_a_wsgi_application_without_routes_is_named_by_its_path(factory: Factory) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        with factory() as session:
            read(session)
        start_response("200 OK", [])
        return [b"bare"]

    started: list[Any] = []
    middleware = wsgi.WorkMiddleware(app)
    with capture(factory) as captured:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/orders"}
        assert middleware(environ, lambda *all_: started.append(all_)) == [b"bare"]
        assert list(middleware({}, lambda *all_: started.append(all_))) == [b"bare"]
    assert started == [("200 OK", []), ("200 OK", [])]
    assert works(captured) == ["GET /orders", ""]


def test_the_error_of_a_wsgi_application_passes(factory: Factory) -> None:
    error = KeyError("the application's")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        raise error

    with pytest.raises(KeyError) as raised:
        wsgi.WorkMiddleware(app)({}, print)
    assert raised.value is error


# Celery, spans, threads and tasks.


@pytest.fixture
def queue() -> Iterator[Celery]:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    yield app
    for signal in (signals.task_prerun, signals.task_postrun):
        signal.disconnect(dispatch_uid="session_tracer.celery")


@pytest.mark.parametrize("is_named", [False, True])
def test_a_celery_task_is_named(factory: Factory, queue: Celery, is_named: bool) -> None:
    @queue.task(name="shop.pay")  # type: ignore[untyped-decorator] # it has no types
    def pay() -> None:
        with factory() as session:
            read(session)

    @queue.task(name="shop.import_orders")  # type: ignore[untyped-decorator] # it has no types
    def import_orders() -> None:
        pay.delay()
        with factory() as session:
            read(session)

    if is_named:
        name_tasks()
    with capture(factory) as captured:
        import_orders.delay()
        with factory() as session:
            read(session)
    prefix = "task " if is_named else ""
    assert works(captured) == [f"{prefix}shop.pay", f"{prefix}shop.import_orders", ""]


@pytest.mark.parametrize(
    ("kind", "work"),
    [(SpanKind.SERVER, "GET /orders/{id}"), (SpanKind.CONSUMER, "GET /orders/{id}")]
    + [(kind, "") for kind in (SpanKind.INTERNAL, SpanKind.CLIENT, SpanKind.PRODUCER)],
)
def test_the_span_of_a_request_names_it(factory: Factory, kind: SpanKind, work: str) -> None:
    tracer = TracerProvider().get_tracer("framework")
    with capture(factory) as captured:
        with tracer.start_as_current_span("GET", kind=kind) as span, factory() as session:
            read(session)
            span.update_name("GET /orders/{id}")  # a framework learns the route later
        with trace.use_span(trace.INVALID_SPAN), factory() as session:
            read(session)
    assert works(captured) == [work, ""]


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("export-3", "export-3"),
        ("export", "export"),
        ("export_3", "export"),  # an executor with the prefix "export"
        *[
            (name, "")
            for name in (
                "Thread-3", "Thread-3 (run)", "ThreadPoolExecutor-0_0", "asyncio_0", "Dummy-1",
                "AnyIO worker thread", "waitress-0", "CP Server Thread-6", "MainThread",
            )
        ],
    ],
)  # fmt: skip
def test_a_thread_that_a_person_named_names_the_work(
    factory: Factory, name: str, work: str
) -> None:
    def use() -> None:
        with factory() as session:
            read(session)

    thread = threading.Thread(target=use, name=name)
    with capture(factory) as captured:
        thread.start()
        thread.join()
    assert works(captured) == [work]


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("import orders", "import orders"),
        ("Task-12", ""),
        ("starlette.responses.StreamingResponse.__call__.<locals>.wrap", ""),
    ],
)
def test_a_task_that_a_person_named_names_the_work(factory: Factory, name: str, work: str) -> None:
    async def use() -> None:
        with factory() as session:
            read(session)

    async def main() -> None:
        await asyncio.create_task(use(), name=name)

    with capture(factory) as captured:
        asyncio.run(main())
    assert works(captured) == [work]

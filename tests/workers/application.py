"""A small shop that servers start: it serves one page by WSGI and ASGI, and has one Celery task.

`SHOP` in the environment is the folder with its database and its log. It is instrumented as it is
imported, which is before a server forks its workers if it preloads the application.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from session_tracer import instrument
from session_tracer.asgi import WorkMiddleware
from session_tracer.celery import name_tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

SHOP = Path(os.environ["SHOP"])
QUEUE = SHOP / "queue"

engine = create_engine(f"sqlite:///{SHOP / 'shop.db'}", connect_args={"timeout": 30})
SessionLocal = sessionmaker(engine)
instrument(
    SessionLocal,
    name="shop",
    exporter=os.environ.get("SHOP_EXPORTER", "jsonl"),
    jsonl_path=str(SHOP / "events.jsonl"),
    log_level="debug",  # each session is logged
)


def sell() -> str:
    """One unit of work; the process that did it."""
    with SessionLocal() as session:
        session.execute(text("SELECT 1"))
        session.commit()
    return str(os.getpid())


LEFT_OPEN: list[Any] = []


def leave_open() -> str:
    """Leave a session open until the process ends; the process that did it."""
    session = SessionLocal()
    session.execute(text("SELECT 1"))
    LEFT_OPEN.append(session)
    return str(os.getpid())


# The pages.
PAGES = {"/": sell, "/leak": leave_open}


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [PAGES[environ["PATH_INFO"]]().encode()]


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": PAGES[scope["path"]]().encode()})


named_asgi = WorkMiddleware(asgi)


celery = Celery("shop", broker="filesystem://", backend=None)
celery.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "data_folder_in": str(QUEUE),
        "data_folder_out": str(QUEUE),
        "control_folder": str(SHOP / "control"),
    },
)
name_tasks()


@celery.task(name="sell")  # type: ignore[untyped-decorator, unused-ignore] # Celery has no types
def sell_later() -> str:
    return sell()


@celery.task(name="forget")  # type: ignore[untyped-decorator, unused-ignore]
def forget() -> None:
    """Leave a session open until the worker's process ends."""
    leave_open()

"""Failed flushes that code outside of the session's block handles without an `except`."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

import anyio.to_thread
import pytest
import tenacity
from fastapi import Depends, FastAPI
from flask import Blueprint, Flask
from httpx import ASGITransport, AsyncClient
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from session_tracer.testing import Captured, capture
from tests.good_code.silence import only_sync
from tests.library import Author, authors, keep
from tests.stories.findings.due import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.twins import Twin


class Taken(Exception):
    """The application's own error."""


async def create(twin: Twin, name: str = "author 0") -> None:
    async with twin.session() as session, session.begin():
        session.add(Author(name=name))


def found(captured: Captured) -> list[str]:
    """The findings; a failed flush that is handled is logged as information."""
    failures = [log["level"] for log in captured.logs if log["event"] == "flush.failed"]
    ids = [one.id for one in captured.findings]
    assert set(failures) == ({"warning"} if ids else {"info"})
    assert captured.metrics.get("session_tracer.errors", []) == []
    return ids


# The classes of errors that have a handler, and what is found of an IntegrityError.
HANDLERS: Final[dict[str, tuple[type[Exception], list[str]]]] = {
    "its class": (IntegrityError, []),
    "a base class of it": (SQLAlchemyError, []),
    "another class": (Taken, ["failed-flush"]),
    "every class": (Exception, ["failed-flush"]),
}
of_each_class = pytest.mark.parametrize(("handled", "due"), HANDLERS.values(), ids=HANDLERS)


# Flask.


def refuse(_: Exception) -> tuple[str, int]:
    return "there is one", 409


def of_application(app: Flask, shop: Blueprint, handled: type[Exception]) -> None:
    del shop
    app.register_error_handler(handled, refuse)


def of_blueprint(app: Flask, shop: Blueprint, handled: type[Exception]) -> None:
    del app
    shop.register_error_handler(handled, refuse)


def of_another_blueprint(app: Flask, shop: Blueprint, handled: type[Exception]) -> None:
    del shop
    other = Blueprint("other", "other")
    other.register_error_handler(handled, refuse)
    app.register_blueprint(other)


def flask_shop(twin: Twin, register: Any, handled: type[Exception]) -> Flask:
    app, shop = Flask("shop"), Blueprint("shop", "shop")

    @shop.post("/authors")
    def post() -> str:
        twin.drive(create(twin))
        return "created"

    register(app, shop, handled)
    app.register_blueprint(shop)
    return app


@only_sync
@of_each_class
@pytest.mark.parametrize("register", [of_application, of_blueprint])
def test_flasks_error_handler_handles_it(
    twin: Twin, register: Any, handled: type[Exception], due: list[str]
) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        client = flask_shop(twin, register, handled).test_client()
        with capture(twin.factory) as captured:
            status = client.post("/authors").status_code
        assert (status, found(captured)) == (500 if handled is Taken else 409, due)

    twin.run(story)


@only_sync
def test_a_handler_of_another_blueprint_does_not_handle_it(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        client = flask_shop(twin, of_another_blueprint, IntegrityError).test_client()
        with capture(twin.factory) as captured:
            assert client.post("/authors").status_code == 500
        assert found(captured) == ["failed-flush"]

    twin.run(story)


# Starlette and FastAPI.


async def answer(request: Any, error: Exception) -> PlainTextResponse:
    del request, error
    return PlainTextResponse("there is one", 409)


def starlette_shop(twin: Twin, handlers: Any) -> Any:
    if twin.is_async:

        async def post(request: Any) -> PlainTextResponse:
            del request
            await create(twin)
            return PlainTextResponse("created")

    else:

        def post(request: Any) -> PlainTextResponse:  # type: ignore[misc] # its synchronous twin
            del request
            twin.drive(create(twin))
            return PlainTextResponse("created")

    route = Route("/authors", post, methods=["POST"])
    return Starlette(routes=[route], exception_handlers=handlers)


def starlette_mount(twin: Twin, handlers: Any) -> Any:
    inner = Mount("/", routes=starlette_shop(twin, {}).routes)
    return Starlette(routes=[inner], exception_handlers=handlers)


def starlette_mounted(twin: Twin, handlers: Any) -> Any:
    """The handlers are those of the outer application: the inner one answers before them."""
    inner = Mount("/", starlette_shop(twin, {}))
    return Starlette(routes=[inner], exception_handlers=handlers)


def fastapi_shop(twin: Twin, handlers: Any) -> Any:
    app = FastAPI(exception_handlers=handlers)
    if twin.is_async:

        @app.post("/authors")
        async def post() -> str:
            await create(twin)
            return "created"

    else:

        @app.post("/authors")
        def post_in_a_thread() -> str:
            twin.drive(create(twin))
            return "created"

    return app


def fastapi_dependency(twin: Twin, handlers: Any) -> Any:
    """The error leaves the session's block in the dependency, which has begun before."""
    app = FastAPI(exception_handlers=handlers)
    if twin.is_async:

        async def opened() -> AsyncIterator[Any]:
            async with twin.factory() as session:
                yield session

        async def post(session: Any) -> None:
            session.add(Author(name="author 0"))
            await session.commit()

    else:

        def opened() -> Iterator[Any]:  # type: ignore[misc] # its synchronous twin
            with twin.factory() as session:
                yield session

        def post(session: Any) -> None:  # type: ignore[misc] # as above
            session.add(Author(name="author 0"))
            session.commit()

    post.__annotations__ = {"session": Annotated[Any, Depends(opened)], "return": None}
    app.post("/authors")(post)
    return app


async def post_to(app: Any) -> int:
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://shop") as client:
        return (await client.post("/authors")).status_code


@of_each_class
@pytest.mark.parametrize(
    "shop", [starlette_shop, starlette_mount, fastapi_shop, fastapi_dependency]
)
def test_starlettes_error_handler_handles_it(
    twin: Twin, shop: Callable[..., Any], handled: type[Exception], due: list[str]
) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        app = shop(twin, {handled: answer})
        with capture(twin.factory) as captured:
            # The synchronous twin has no event loop of its own.
            status = await post_to(app) if twin.is_async else asyncio.run(post_to(app))
        assert (status, found(captured)) == (500 if handled is Taken else 409, due)

    twin.run(story)


def test_a_handler_of_the_outer_application_does_not_handle_it(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        app = starlette_mounted(twin, {IntegrityError: answer})
        with capture(twin.factory) as captured:
            status = await post_to(app) if twin.is_async else asyncio.run(post_to(app))
        assert (status, found(captured)) == (500, ["failed-flush"])

    twin.run(story)


class Kept:
    """Something of a request, to see that it goes with the request."""


@only_sync
def test_a_thread_that_is_looked_at_keeps_nothing_of_the_request(twin: Twin) -> None:
    known: list[weakref.ref[Kept]] = []

    def work(kept: Kept) -> None:
        known.append(weakref.ref(kept))
        with suppress(IntegrityError):
            twin.drive(create(twin))

    async def request() -> None:
        await anyio.to_thread.run_sync(work, Kept())
        gc.collect()
        # The thread itself lets go of what it has run only after that has returned.
        await until(lambda: known[0]() is None, is_async=True)

    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory):
            asyncio.run(request())

    twin.run(story)


# Decorators that call a function again.


async def create_under_another_name(twin: Twin, names: list[str]) -> None:
    await create(twin, names.pop())


def retry(twin: Twin, work: Any) -> Any:
    """As a decorator of tenacity's has it, which awaits what is awaited."""
    again = tenacity.retry(
        retry=tenacity.retry_if_exception_type(IntegrityError), stop=tenacity.stop_after_attempt(3)
    )
    if twin.is_async:
        return again(work)

    @again
    def driven(*arguments: Any) -> Any:
        return twin.drive(work(*arguments))

    return lambda *arguments: finished(driven, *arguments)


async def finished(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


def test_a_decorator_that_retries_handles_it(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        names = ["new", "author 0"]
        with capture(twin.factory) as captured:
            await retry(twin, create_under_another_name)(twin, names)
        assert (names, found(captured)) == ([], [])

    twin.run(story)


def test_without_the_decorator_it_is_reported(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured, suppress(Exception):
            await create_under_another_name(twin, ["author 0"])
        assert found(captured) == ["failed-flush"]

    twin.run(story)


def test_what_ran_under_a_decorator_before_does_not_handle_it(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured, suppress(Exception):
            await retry(twin, create_under_another_name)(twin, ["new"])
            await create_under_another_name(twin, ["author 0"])
        assert found(captured) == ["failed-flush"]

    twin.run(story)


@only_sync
@pytest.mark.parametrize("package", ["backoff", "retry", "retrying", "stamina", "ours"])
def test_packages_that_retry_are_known_by_name(twin: Twin, package: str) -> None:
    module: dict[str, Any] = {"__name__": f"{package}.api"}
    exec("def call(work):\n    return work()", module)

    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured, suppress(IntegrityError):
            module["call"](lambda: twin.drive(create(twin)))
        assert found(captured) == (["failed-flush"] if package == "ours" else [])

    twin.run(story)


# As oslo.db has it: `self` is known where the function is called that is decorated.
OSLO = """
class wrap_db_retry:
    def __init__(self, errors, exception_checker=lambda error: False):
        self.db_error = errors
        self.exception_checker = exception_checker

    def __call__(self, work):
        def wrapper():
            try:
                return work()
            except Exception as error:
                if not (isinstance(error, self.db_error) or self.exception_checker(error)):
                    raise
        return wrapper
"""
RETRIES: Final[dict[str, tuple[tuple[Any, ...], list[str]]]] = {
    "its class": (((IntegrityError,),), []),
    "a base class of it": (((LookupError, SQLAlchemyError),), []),
    "another class": (((LookupError,),), ["failed-flush"]),
    "what a function knows": (((LookupError,), lambda error: bool(error)), []),
}


@only_sync
@pytest.mark.parametrize(("options", "due"), RETRIES.values(), ids=RETRIES)
def test_a_retry_of_oslo_handles_the_errors_that_it_was_given(
    twin: Twin, options: tuple[Any, ...], due: list[str]
) -> None:
    module: dict[str, Any] = {"__name__": "oslo_db.api"}
    exec(OSLO, module)

    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured, suppress(IntegrityError):
            module["wrap_db_retry"](*options)(lambda: twin.drive(create(twin)))()
        assert found(captured) == due

    twin.run(story)

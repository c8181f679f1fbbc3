"""Names the sessions of an ASGI application by their request, and reports what it leaves open."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from session_tracer.instrumentor import flush_all
from session_tracer.ledger.owner_state import GONE, owner_state
from session_tracer.ledger.registry import end_all
from session_tracer.runtime import threads
from session_tracer.where.request_name import RequestName
from session_tracer.where.work import Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from session_tracer.ledger.ledger import Ledger

    Scope: TypeAlias = MutableMapping[str, Any]
    App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ["WorkMiddleware"]

# The application's last words. A server may end the process by a signal as soon as it has them.
_LAST: Final = ("lifespan.shutdown.complete", "lifespan.shutdown.failed")
_LONGEST_SECONDS: Final = 1.0


class WorkMiddleware:
    """ASGI middleware: sessions work for `GET /orders/{id}`, by the method and the route.

    The route is known to Starlette, FastAPI and Litestar. For a framework without routes, the path
    is used. Add it outermost, for example with `app.add_middleware(WorkMiddleware)`.

    When the application shuts down, the sessions that its requests have left open are reported, and
    what is held back is logged: uvicorn ends its process by the signal that it received, so that no
    exit handler runs.

    Args:
        app: The ASGI application.
        name: Returns a name for a scope, in place of the method and the route. It is called when
            the name is needed, and when the request ends.
    """

    def __init__(self, app: App, name: Callable[[Scope], str] | None = None) -> None:
        self.app = app
        self._name = name or _name

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Handle a request, a websocket, or the application's start and end."""
        if scope.get("type") not in ("http", "websocket"):
            is_lifespan = scope.get("type") == "lifespan"
            await self.app(scope, receive, self._until_shutdown(send) if is_lifespan else send)
            return
        request = RequestName(self._name, scope)
        work = _Request(request.name, id(self))
        try:
            with work:
                await self.app(scope, receive, send)
        finally:
            work.is_over = True
            request.end()

    def _until_shutdown(self, send: Any) -> Any:
        async def send_and_report(message: MutableMapping[str, Any]) -> None:
            if message.get("type") in _LAST:
                self._shut_down()
            await send(message)

        return send_and_report

    def _shut_down(self) -> None:
        """Report what the application's requests have left open, and all that is held back."""

        def is_left(ledger: Ledger) -> bool:
            return (
                any(type(one) is _Request and one.is_left_by(id(self)) for one in ledger.blocks)
                and bool(ledger.transactions_open)
                and owner_state(ledger, stack=False).state in GONE
            )

        with suppress(Exception):
            end_all(ending="shutdown", is_left=is_left)
            # An exporter may wait for its server for longer than the application should.
            threads.start(flush_all, "session_tracer-shutdown")(_LONGEST_SECONDS)


class _Request(Work):
    """A request of one application."""

    __slots__ = ("_middleware", "is_over")

    def __init__(self, name: Callable[[], str], middleware: int) -> None:
        super().__init__(name)
        self._middleware = middleware
        self.is_over = False

    def is_left_by(self, middleware: int) -> bool:
        """Whether the request is over, and was one of this middleware's application."""
        return self.is_over and self._middleware == middleware


def _name(scope: Scope) -> str:
    method = scope.get("method") or str(scope.get("type", "")).upper()
    route = _route(scope)
    return f"{method} {route}" if route else str(method)


def _route(scope: Scope) -> str:
    """Return the route's template; an empty string where a framework knows it not, or not yet."""
    template = scope.get("path_template")  # Litestar's
    if isinstance(template, str):
        return template
    route, params = scope.get("route"), scope.get("path_params") or {}
    if route is not None:
        mounted = _with_parameters(_mounted_at(scope), params)
        if not hasattr(route, "endpoint"):  # a mounted application that has no routes
            return mounted or _text(getattr(route, "path", ""))
        path = _text(getattr(route, "path_format", None) or getattr(route, "path", ""))
        return mounted + path
    if "endpoint" in scope:
        return _with_parameters(_text(scope.get("path")), params)
    # Any path may be asked of a framework with routes: one without a route is no name.
    return "" if "app" in scope else _text(scope.get("path"))


def _mounted_at(scope: Scope) -> str:
    """Return the path below which Starlette has mounted the application with the route."""
    root, outer = _text(scope.get("root_path")), scope.get("app_root_path")
    return root.removeprefix(outer) if isinstance(outer, str) else ""


def _with_parameters(path: str, params: Any) -> str:
    """Return the path with the names of its parameters in place of their values."""
    names = {str(value): f"{{{name}}}" for name, value in params.items()}
    return "/".join(names.get(part, part) for part in path.split("/"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""

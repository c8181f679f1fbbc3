"""Names the sessions of an ASGI application by the request that they work for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from session_tracer.where.request_name import RequestName
from session_tracer.where.work import Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Scope: TypeAlias = MutableMapping[str, Any]
    App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ["WorkMiddleware"]


class WorkMiddleware:
    """ASGI middleware: sessions work for `GET /orders/{id}`, by the method and the route.

    The route is known to Starlette, FastAPI and Litestar. For a framework without routes, the path
    is used. Add it outermost, for example with `app.add_middleware(WorkMiddleware)`.

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
            await self.app(scope, receive, send)
            return
        request = RequestName(self._name, scope)
        try:
            with Work(request.name):
                await self.app(scope, receive, send)
        finally:
            request.end()


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

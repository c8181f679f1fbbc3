"""Names the sessions of a WSGI application by the request that they work for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from session_tracer.where.request_name import RequestName
from session_tracer.where.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Environ: TypeAlias = dict[str, Any]
    App: TypeAlias = Callable[[Environ, Any], Iterable[bytes]]

__all__ = ["WorkMiddleware"]


class WorkMiddleware:
    """WSGI middleware: sessions work for `GET /orders/<id>`, by the method and the route.

    The route is known to Flask and other frameworks with Werkzeug's routing. For a framework
    without it, the path is used. In Flask: `app.wsgi_app = WorkMiddleware(app.wsgi_app)`.

    Args:
        app: The WSGI application.
        name: Returns a name for an environment, in place of the method and the route. It is called
            when the name is needed, and when the response starts.
    """

    def __init__(self, app: App, name: Callable[[Environ], str] | None = None) -> None:
        self.app = app
        self._name = name or _name

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Handle a request."""
        request = RequestName(self._name, environ)

        def start(*arguments: Any, **options: Any) -> Any:
            # Flask forgets the request before it is over.
            request.note()
            return start_response(*arguments, **options)

        work = Work(request.name)
        try:
            with work:
                body = self.app(environ, start)
        except BaseException:
            request.end()
            raise
        if isinstance(body, list | tuple | bytes) or _is_file(body, environ):
            request.end()
            return body
        return _Body(body, work, request)


class _Body:
    """A response that is made while it is sent, as a part of the request."""

    def __init__(self, body: Iterable[bytes], work: Work, request: RequestName) -> None:
        self._body = body
        self._parts: Iterator[bytes] | None = None
        self._work = work
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._work:
            if self._parts is None:
                self._parts = iter(self._body)
            return next(self._parts)

    def close(self) -> None:
        """End the request."""
        try:
            with self._work:
                close = getattr(self._body, "close", None)
                if close is not None:
                    close()
        finally:
            self._request.end()


def _is_file(body: object, environ: Environ) -> bool:
    """Whether the server sends the body as a file, which it recognises by its class."""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


def _name(environ: Environ) -> str:
    method = str(environ.get("REQUEST_METHOD", ""))
    # Werkzeug's, which Flask uses. It has no rule if none matches, and until one does.
    if "werkzeug.request" not in environ:
        return f"{method} {environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    rule = getattr(environ["werkzeug.request"], "url_rule", None)
    return method if rule is None else f"{method} {environ.get('SCRIPT_NAME', '')}{rule.rule}"

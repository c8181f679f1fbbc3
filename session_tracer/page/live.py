"""The live page as an ASGI and as a WSGI application, to be mounted."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from session_tracer.page.access import Access
from session_tracer.page.html import as_json, page
from session_tracer.page.now import document
from session_tracer.page.recent import Recent
from session_tracer.runtime.degraded import warn_once

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    Scope: TypeAlias = MutableMapping[str, Any]
    ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
    WSGIApp: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]

__all__ = ["live_app", "live_wsgi_app"]

_JSON: Final = "application/json"
_STATUSES: Final = {
    200: "200 OK",
    403: "403 Forbidden",
    405: "405 Method Not Allowed",
    500: "500 Internal Server Error",
}
_ALWAYS: Final = (
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


class _Answer(NamedTuple):
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


def live_app(*, token: str | None = None) -> ASGIApp:
    """Return the live page as an ASGI application.

    `app.mount("/debug/sessions", session_tracer.live_app())` in Starlette and FastAPI. It shows the
    open sessions, and what was found and what ended in the last minutes, which are kept from this
    call on. It is HTML, or JSON for `Accept: application/json`.

    Args:
        token: None to answer loopback clients that ask for a loopback `Host`. Otherwise the page
            answers each request that bears it in `Authorization: Bearer`. All other requests get
            the status 403.

    Returns:
        The application.

    Raises:
        TypeError: the token is no string.
        ValueError: the token is empty, or has characters that a header cannot have.
    """
    return _Asgi(Access(token))


def live_wsgi_app(*, token: str | None = None) -> WSGIApp:
    """Return the live page as a WSGI application, for example for Werkzeug's dispatcher.

    Args:
        token: As for `live_app()`.

    Returns:
        The application.

    Raises:
        TypeError: the token is no string.
        ValueError: the token is empty, or has characters that a header cannot have.
    """
    return _Wsgi(Access(token))


class _Live:
    """Answers requests, and watches sessions as long as it exists."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._recent = Recent()
        weakref.finalize(self, self._recent.stop).atexit = False

    def _answer(self, method: str, client: str | None, headers: list[tuple[str, bytes]]) -> _Answer:
        """Answer a request; never raises."""
        try:
            if not self._access.is_granted(client, headers):
                return _Answer(403)
            if method not in ("GET", "HEAD"):
                return _Answer(405, (("Allow", "GET, HEAD"),))
            answer = self._shown(b",".join(value for name, value in headers if name == "accept"))
            return answer._replace(body=b"") if method == "HEAD" else answer
        except Exception as error:
            warn_once(
                f"session_tracer: the live page cannot be made: {type(error).__qualname__}. The "
                "application is not affected."
            )
            return _Answer(500)

    def _shown(self, accept: bytes) -> _Answer:
        shown = document(self._recent)
        if _JSON.encode() in accept and b"text/html" not in accept:
            return _answer(_JSON, as_json(shown))
        html, policy = page(shown)
        return _answer(
            "text/html; charset=utf-8",
            html,
            ("Content-Security-Policy", policy),
            ("X-Frame-Options", "DENY"),
        )


def _answer(kind: str, text: str, *headers: tuple[str, str]) -> _Answer:
    body = text.encode()
    about = (("Content-Type", kind), ("Content-Length", str(len(body))))
    return _Answer(200, (*about, ("Vary", "Accept"), *headers), body)


class _Asgi(_Live):
    """The ASGI application."""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":  # a server runs it alone
            await _live_on(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            client = scope.get("client")
            headers = [(name.decode("latin-1").lower(), value) for name, value in scope["headers"]]
            answer = self._answer(scope["method"], client[0] if client else None, headers)
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status,
                    "headers": [
                        (name.lower().encode(), value.encode()) for name, value in _headers(answer)
                    ],
                }
            )
            await send({"type": "http.response.body", "body": answer.body})


async def _live_on(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class _Wsgi(_Live):
    """The WSGI application."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        headers = [
            (name[5:].replace("_", "-").lower(), str(value).encode("latin-1", "replace"))
            for name, value in environ.items()
            if name.startswith("HTTP_")
        ]
        answer = self._answer(environ["REQUEST_METHOD"], environ.get("REMOTE_ADDR"), headers)
        start_response(_STATUSES[answer.status], _headers(answer))
        return [answer.body]


def _headers(answer: _Answer) -> list[tuple[str, str]]:
    headers = [*_ALWAYS, *answer.headers]
    if answer.status != 200:
        headers.append(("Content-Length", "0"))
    return headers

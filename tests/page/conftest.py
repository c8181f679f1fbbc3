"""The live page under a server, for the tests in a browser."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from session_tracer import live_wsgi_app

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's
        pass


@pytest.fixture
def served() -> Iterator[tuple[str, list[str]]]:
    """The live page's address, and what each request accepts."""
    accepts: list[str] = []
    app = live_wsgi_app()

    def noting(environ: dict[str, Any], start: Any) -> Any:
        accepts.append(environ.get("HTTP_ACCEPT", ""))
        return app(environ, start)

    with make_server("127.0.0.1", 0, noting, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/", accepts
        finally:
            server.shutdown()
            thread.join()

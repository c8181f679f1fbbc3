"""Recognises the frameworks that close a session for the application."""

from __future__ import annotations

import sys
from typing import Final

from session_tracer.where.running import running_frame

__all__ = ["error_of_request", "is_by_transaction_manager"]

# Flask and Quart turn an exception into a response, and then pass it to the teardown function (an
# extension's or the application's) that removes the session.
_TEARDOWNS: Final = frozenset({"do_teardown_appcontext", "do_teardown_request"})
# From a wrapped close() out to one of them it is about eight, through `scoped_session.remove()`.
_MOST_FRAMES: Final = 16


def error_of_request() -> BaseException | None:
    """Return the request's exception if the running code tears down a Flask or Quart context."""
    if "flask" not in sys.modules and "quart" not in sys.modules:
        return None
    frame = running_frame(1)
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return None
        if frame.f_code.co_name in _TEARDOWNS:
            error = frame.f_locals.get("exc")
            return error if isinstance(error, BaseException) else None
        frame = frame.f_back
    return None


def is_by_transaction_manager() -> bool:
    """Return whether zope.sqlalchemy closes the session at the end of a transaction.

    It closes the session after each transaction, and uses it again in the next one.
    """
    if "zope.sqlalchemy.datamanager" not in sys.modules:
        return False
    frame = running_frame(1)
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == "zope.sqlalchemy.datamanager":
            return True
        frame = frame.f_back
    return False

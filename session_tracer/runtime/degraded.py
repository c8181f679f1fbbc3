"""Logs once, as a warning, what is not reported because something is missing or has changed."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

__all__ = ["warn_once", "without"]

_LOGGER: Final = logging.getLogger("session_tracer")
_WARNED: Final[set[str]] = set()


def warn_once(message: str, *arguments: str) -> None:
    """Log a warning to the logger `session_tracer` once in this process; never raise.

    The warning is logged and not issued with `warnings.warn()`: an application that turns warnings
    into errors must not be stopped by a problem of its environment.

    Args:
        message: The text, or a format with `%s` if arguments follow.
        *arguments: The values to insert into the format.
    """
    if not arguments:
        message, arguments = "%s", (message,)
    whole = message % arguments
    if whole in _WARNED:
        return
    _WARNED.add(whole)
    with suppress(Exception):  # a handler of the application may raise
        _LOGGER.warning(message, *arguments)


def without(what: str, loses: str) -> None:
    """Log once that `what` is missing or has changed, and what is not reported because of that.

    Args:
        what: A private interface of another library, which a release of that library may change.
        loses: What is not reported, as a clause without a period.
    """
    warn_once(
        "session_tracer: %s is missing or has changed, therefore %s. The application is not "
        "affected.",
        what,
        loses,
    )

"""Logs once, as a warning, what session_tracer does not do because something is not as it needs."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

__all__ = ["warn_once", "without"]

_LOGGER: Final = logging.getLogger("session_tracer")
_WARNED: Final[set[str]] = set()


def warn_once(message: str, *arguments: str) -> None:
    """Log a warning, unless this process has logged it before; never raises.

    It is logged and not warned of: where warnings are errors, nothing in the environment may stop
    the application.
    """
    if not arguments:
        message, arguments = "%s", (message,)
    whole = message % arguments
    if whole in _WARNED:
        return
    _WARNED.add(whole)
    with suppress(Exception):  # of a handler of the application's
        _LOGGER.warning(message, *arguments)


def without(what: str, loses: str) -> None:
    """Log once that `what` is missing or has changed, and what is not reported because of that.

    `what` is private to another library, so a release of that library may change it.
    """
    warn_once(
        "session_tracer does without %s, which is not as it knows it: %s. The application is not "
        "affected.",
        what,
        loses,
    )

"""Says once what the tracer does without, and what it does not tell because of that."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

__all__ = ["without"]

_LOGGER: Final = logging.getLogger("session_tracer")
_SAID: Final[set[str]] = set()


def without(what: str, loses: str) -> None:
    """Say that `what` is not there, or is not as it is known, and what that `loses`; never raises.

    It is somebody else's and private, so that a release of theirs may change it: the application
    is not affected, and who reads its log is to know that less is told.
    """
    if what in _SAID:
        return
    _SAID.add(what)
    with suppress(Exception):  # of a handler of the application's
        _LOGGER.warning(
            "session_tracer does without %s, which is not as it knows it: %s. The application is "
            "not affected.",
            what,
            loses,
        )

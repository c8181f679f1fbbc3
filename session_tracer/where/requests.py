"""The request and the test to which the running code belongs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from session_tracer.where.callsite import is_asgi, whole_stack, wsgi_application
from session_tracer.where.running import locals_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

__all__ = ["is_of_test", "request_of", "running_request", "thread_request"]

# The ASGI scopes that are requests.
_REQUESTS: Final = frozenset({"http", "websocket"})


def running_request() -> int:
    """Return what the ASGI request that is running has alone while it runs; 0 where there is none.

    A middleware may run the rest of a request in another task: both have the same scope.
    """
    return _request(whole_stack())


def thread_request() -> int:
    """Return what the WSGI request that is running has alone in its thread; 0 if there is none."""
    application = wsgi_application(whole_stack())
    return 0 if application is None else id(application)


def request_of(owner: Owner) -> int:
    """Return what `running_request` returns, for a task that waits."""
    return _request(owner.frames())


def _request(frames: Iterable[FrameType]) -> int:
    found = 0
    for frame in frames:
        if is_asgi(frame.f_code):
            scope = locals_elsewhere(frame).get("scope")
            # A type of the application's own is not asked.
            if type(scope) is dict and scope.get("type") in _REQUESTS:
                found = id(scope)
    return found


def is_of_test(opened_by: Owner, opened_site: CallSite | None) -> bool:
    """Return whether a session was opened by the test that is running, or by a fixture of it.

    pytest-asyncio and unittest run each fixture and the test in tasks of their own: the one that
    opened the session has ended by then, or is none. What a module opens, it opens for everyone.
    """
    if not opened_by.has_ended or (opened_site is not None and opened_site.function == "<module>"):
        return False
    # A process that a test starts has the variable as well.
    is_by_pytest = "_pytest" in sys.modules and "PYTEST_CURRENT_TEST" in os.environ
    return is_by_pytest or any(
        frame.f_globals.get("__name__") == "unittest.case" for frame in whole_stack()
    )

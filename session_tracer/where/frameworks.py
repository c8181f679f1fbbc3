"""Recognises the frameworks, and the tests' fixtures, that close a session."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from session_tracer.where.callsite import whole_stack
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

__all__ = [
    "CLOSING",
    "error_of_request",
    "is_by_transaction_manager",
    "is_shutdown",
    "is_test_setup",
    "is_test_teardown",
]

# Flask and Quart turn an exception into a response, and then pass it to the teardown function (an
# extension's or the application's) that removes the session.
_TEARDOWNS: Final = frozenset({"do_teardown_appcontext", "do_teardown_request"})
_MANAGER: Final = "zope.sqlalchemy.datamanager"
# What cancels the tasks that are left as `asyncio.run()` ends.
_SHUTDOWNS: Final = {"asyncio.runners": frozenset({"_cancel_all_tasks"})}
# The modules without which neither function finds anything.
CLOSING: Final = frozenset({"flask", "quart", _MANAGER})
# What runs the end of a fixture, or what a test has asked for at its end.
_TEARDOWNS_OF_TESTS: Final = {
    "_pytest.fixtures": frozenset({"_teardown_yield_fixture", "finish"}),
    "unittest.case": frozenset({"_callTearDown", "_callCleanup", "doCleanups", "doClassCleanups"}),
    "unittest.async_case": frozenset({"_callTearDown"}),
    "testtools.runtest": frozenset({"_run_cleanups"}),
    "testtools.testcase": frozenset({"_run_teardown"}),
}
# What calls a fixture, also while the test runs, or the test's own setUp().
_SETUPS_OF_TESTS: Final = {
    "_pytest.fixtures": frozenset({"pytest_fixture_setup"}),
    "unittest.case": frozenset({"_callSetUp"}),
    "unittest.async_case": frozenset({"_callSetUp"}),
    "testtools.testcase": frozenset({"_run_setup"}),
}
# What runs a test: a fixture that is further out runs a whole pytest of its own.
_TEST: Final = "pytest_runtest_call"
# From a wrapped close() out to one of them it is about eight, through `scoped_session.remove()`.
_MOST_FRAMES: Final = 20


def error_of_request() -> BaseException | None:
    """Return the request's exception if the running code tears down a Flask or Quart context."""
    if "flask" in sys.modules or "quart" in sys.modules:
        for frame in _frames():
            if frame.f_code.co_name in _TEARDOWNS:
                error = frame.f_locals.get("exc")
                return error if isinstance(error, BaseException) else None
    return None


def is_by_transaction_manager() -> bool:
    """Return whether zope.sqlalchemy closes the session at the end of a transaction.

    It closes the session after each transaction, and uses it again in the next one.
    """
    return _MANAGER in sys.modules and any(
        frame.f_globals.get("__name__") == _MANAGER for frame in _frames()
    )


def is_test_teardown() -> bool:
    """Return whether the running code is the end of a test's fixture."""
    return _is_called_by(_TEARDOWNS_OF_TESTS)


def is_test_setup() -> bool:
    """Return whether the running code is the beginning of a test's fixture, or its setUp()."""
    return _is_called_by(_SETUPS_OF_TESTS)


def is_shutdown() -> bool:
    """Return whether the event loop ends, and cancels the tasks that are left."""
    return _is_called_by(_SHUTDOWNS)


def _is_called_by(functions: Mapping[str, frozenset[str]]) -> bool:
    """Return whether one of these functions, by their modules, is at work."""
    if sys.modules.keys().isdisjoint(functions):
        return False
    # An event loop or a greenlet that the fixture runs is on the same stack, or was begun on it.
    for frame in whole_stack():
        if frame.f_code.co_name in functions.get(frame.f_globals.get("__name__", ""), ()):
            return True
        if frame.f_code.co_name == _TEST:
            return False
    return False


def _frames() -> Iterator[FrameType]:
    frame = running_frame(1)
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return
        yield frame
        frame = frame.f_back

"""Recognises code outside of a session's block that handles an error without an `except`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from session_tracer.where import tasks
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

__all__ = ["asserts", "is_handled"]

_MOST_FRAMES: Final = 200
# Packages whose decorators call a function again if it raises an error.
_RETRYING: Final = frozenset({"backoff", "retry", "retrying", "stamina", "tenacity"})
_STARLETTE: Final = frozenset({"fastapi", "starlette"})
# Functions that call another one, and expect it to raise the error that this argument names.
_EXPECTING: Final = ("assertRaises", "assertRaisesRegex", "raises")
_TESTING: Final = frozenset({"_pytest", "testtools", "twisted", "unittest"})
_EXPECTED: Final = ("expected_exception", "excClass", "exception")
# Below these, an application's handler is for errors that it knows.
_ANY_ERROR: Final = frozenset({Exception, BaseException, object})


def is_handled(error: BaseException) -> bool:
    """Return whether a retry decorator, an error handler or a test's assertion takes the error.

    Starlette's and FastAPI's handlers are found through their frames, on the stack or in the
    error's traceback, those of Flask and Quart through the current application. A handler of
    `Exception` does not count: it reports what was not expected.
    """
    kinds = [kind for kind in type(error).__mro__ if kind not in _ANY_ERROR]
    return _is_flasks(kinds) or any(_handles(frame, kinds) for frame in _frames(error))


def _frames(error: BaseException) -> Iterator[FrameType]:
    passed = error.__traceback__
    while passed is not None:
        yield passed.tb_frame
        passed = passed.tb_next
    frame = running_frame(2)
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return
        yield frame
        # A framework awaits what it runs in a thread, and has its handlers in its own.
        yield from tasks.awaiting_a_thread(frame)
        frame = frame.f_back


def _handles(frame: FrameType, kinds: list[type]) -> bool:
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    if package in _RETRYING:
        return True
    if package in _TESTING:
        return _expects(frame)
    if package == "oslo_db":
        return _tries_again(frame.f_locals.get("self"), kinds)
    if package not in _STARLETTE:
        return False
    values = frame.f_locals
    scope = values.get("scope") or getattr(values.get("request"), "scope", None)
    handlers, *_ = scope.get("starlette.exception_handlers", ({},)) if scope else ({},)
    return any(kind in handlers for kind in kinds)


def _tries_again(retry: Any, kinds: list[type]) -> bool:
    """Return whether `wrap_db_retry` of oslo.db may call the function again after an error.

    It does for the classes in `db_error`, and if `exception_checker` returns true. That is a
    function of the application, which is not called here. The default one always returns False.
    """
    errors: tuple[type, ...] = getattr(retry, "db_error", ())
    checker = getattr(retry, "exception_checker", None)
    defaults = getattr(type(retry).__init__, "__defaults__", None) or ()
    return any(kind in errors for kind in kinds) or checker not in (None, *defaults)


def asserts(frame: FrameType | None) -> bool:
    """Return whether a test's assertion, on the stack from `frame` outwards, expects an error."""
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return False
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package in _TESTING and _expects(frame):
            return True
        frame = frame.f_back
    return False


def _expects(frame: FrameType) -> bool:
    """Return whether a test asserts that what it calls raises an error of some kind.

    It may be another one than this error, in whose place the application raises its own. If it does
    not, the test fails.
    """
    if frame.f_code.co_name not in _EXPECTING:
        return False
    values = frame.f_locals
    expected = next((values[name] for name in _EXPECTED if name in values), None)
    every = expected if isinstance(expected, tuple) else (expected,)
    return all(isinstance(one, type) and one not in _ANY_ERROR for one in every)


def _is_flasks(kinds: list[type]) -> bool:
    return any(_has_handler(name, kinds) for name in ("flask", "quart") if name in sys.modules)


def _has_handler(framework: str, kinds: list[type]) -> bool:
    module: Any = sys.modules[framework]
    if not module.has_request_context():
        return False
    specified: Mapping[Any, Any] = module.current_app.error_handler_spec
    names = (None, *module.request.blueprints)
    registered = [specified.get(name, {}).get(None, {}) for name in names]
    return any(kind in handlers for handlers in registered for kind in kinds)

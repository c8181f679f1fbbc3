"""Recognises the exceptions with which an application answers, and which are no failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["CLIENT_ERRORS", "is_expected"]

# The errors that a framework turns into a response, by the name of their class. FastAPI's is a
# subclass of Starlette's. No framework is imported to recognise them.
CLIENT_ERRORS: Final = (
    "fastapi.exceptions.RequestValidationError",
    "starlette.exceptions.HTTPException",
    "werkzeug.exceptions.HTTPException",
)
# The attribute of such an error that has its status, and the first status of the server's errors.
_STATUS: Final = {
    "starlette.exceptions.HTTPException": "status_code",
    "werkzeug.exceptions.HTTPException": "code",
}
_SERVER_ERROR: Final = 500


def is_expected(error: BaseException, names: Collection[object]) -> bool:
    """Return whether the error is of a class with one of these names, or of a subclass.

    A framework's error with a status of 500 or above is not expected.
    """
    for kind in type(error).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in names:
            status = getattr(error, _STATUS[name], None) if name in _STATUS else None
            return not (isinstance(status, int) and status >= _SERVER_ERROR)
    return False

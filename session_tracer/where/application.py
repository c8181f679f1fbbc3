"""Finds the installed packages that are the application's own."""

from __future__ import annotations

import sys
from itertools import repeat
from operator import is_
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from session_tracer.where.callsite import MACHINERY_PACKAGES, is_installed
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["packages_of"]

# What calls a function of session_tracer for the application.
_CALLERS: Final = MACHINERY_PACKAGES | {"_pytest", "pluggy"}

# Packages that are never the application's own.
_NOT_ITS_OWN: Final = _CALLERS | sys.stdlib_module_names

_COMMAND: Final = "session_tracer.cli"


def packages_of(target: object) -> frozenset[str]:
    """Return the installed packages that a call of `instrument()` shows to be the application's.

    These are the package whose code calls it, and the one that defines the target: a script may
    instrument the sessions of an application that is installed.
    """
    modules = [_caller(), *_homes(target)]
    return frozenset(
        str(module["__name__"]).partition(".")[0]
        for module in modules
        if _is_installed_package(module)
    )


def _caller() -> dict[str, Any]:
    """Return the globals of the code that calls session_tracer."""
    frame: FrameType | None = running_frame(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == _COMMAND:
            break  # it is called by Python, not by the application
        if name.partition(".")[0] not in ("session_tracer", "contextlib"):
            return frame.f_globals
        frame = frame.f_back
    return {}


def _homes(target: object) -> Iterator[dict[str, Any]]:
    """Yield the globals of the modules in which the target is defined."""
    if target is None:
        return
    if isinstance(target, type):
        module = sys.modules.get(target.__module__)
        if type(module) is ModuleType:
            yield vars(module)
        return
    for name, module in list(sys.modules.items()):
        # A module of another type may run code when it is looked into. Thousands of values are
        # compared, without a step of Python for each.
        if (
            type(module) is ModuleType
            and name.partition(".")[0] not in _NOT_ITS_OWN
            and any(map(is_, list(vars(module).values()), repeat(target)))
        ):
            yield vars(module)


def _is_installed_package(module: dict[str, Any]) -> bool:
    name, file = module.get("__name__"), module.get("__file__")
    return (
        isinstance(name, str)
        and isinstance(file, str)
        and name.partition(".")[0] not in _CALLERS
        and is_installed(file)
    )

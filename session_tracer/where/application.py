"""Finds the installed packages that are the application's own."""

from __future__ import annotations

import functools
import sys
import weakref
from itertools import repeat
from operator import is_
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from session_tracer.where.callsite import MACHINERY_PACKAGES, is_installed
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["own_packages"]

# What calls a function of session_tracer for the application.
_CALLERS: Final = MACHINERY_PACKAGES | {"_pytest", "pluggy"}

_COMMAND: Final = "session_tracer.cli"


def own_packages(target: object) -> Callable[[str], bool]:
    """Return a function that returns whether an installed package is the application's own.

    A call of `instrument()` shows two of them: the package whose code calls it, and the one that
    defines the target, because a script may instrument the sessions of an installed application.
    The modules of a package are looked through when it is asked about: all the modules of a large
    application would take longer than `instrument()` itself.
    """
    caller = _caller()
    calling = _root(caller.get("__name__")) if _is_installed_package(caller) else None
    find = _weakly(target)

    @functools.cache
    def is_own(package: str) -> bool:
        return package not in _CALLERS and (package == calling or _defines(package, find()))

    return is_own


def _weakly(target: object) -> Callable[[], object]:
    # It must not be kept alive: a session may be instrumented alone.
    try:
        return weakref.ref(target)
    except TypeError:
        return lambda: None


def _caller() -> dict[str, Any]:
    """Return the globals of the code that calls session_tracer."""
    frame: FrameType | None = running_frame(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == _COMMAND:
            break  # it is called by Python, not by the application
        if _root(name) not in ("session_tracer", "contextlib"):
            return frame.f_globals
        frame = frame.f_back
    return {}


def _defines(package: str, target: object) -> bool:
    """Return whether the target is defined in a module of the package, which is installed."""
    if target is None:
        return False
    if isinstance(target, type):
        module = sys.modules.get(target.__module__)
        return _is_of(package, module) and _is_installed_package(vars(module))
    # Thousands of values are compared, without a step of Python for each.
    return any(
        _is_of(package, module)
        and any(map(is_, list(vars(module).values()), repeat(target)))
        and _is_installed_package(vars(module))
        for name, module in list(sys.modules.items())
        if name.startswith(package)
    )


def _is_of(package: str, module: object) -> bool:
    # A module of another type may run code when it is looked into.
    return type(module) is ModuleType and _root(vars(module).get("__name__")) == package


def _root(name: object) -> str:
    return str(name).partition(".")[0]


def _is_installed_package(module: dict[str, Any]) -> bool:
    file = module.get("__file__")
    return isinstance(file, str) and is_installed(file)

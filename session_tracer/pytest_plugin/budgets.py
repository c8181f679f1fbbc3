"""Reads budgets: the limits of what a test's sessions do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pytest

__all__ = ["BUDGETS", "COUNTS", "MARKER", "OPTION", "TIMES", "read_budgets", "read_default_budgets"]

MARKER: Final = "session_budget"
OPTION: Final = "session_tracer_budget"
COUNTS: Final = ("sessions", "commits", "flushes", "statements", "lazy_loads", "loaded")
TIMES: Final = ("sql_ms", "slowest_statement_ms")
BUDGETS: Final = (*COUNTS, *TIMES)
_CONFIGURED: Final = f"{OPTION} of pytest's configuration file"


def read_budgets(
    marks: Iterable[pytest.Mark], defaults: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the budgets that these marks set. If two set the same one, the first mark counts.

    Args:
        marks: The marks, the nearest first.
        defaults: The budgets that no mark sets.

    Raises:
        ValueError: a budget does not exist, or is not a number of at least 0.
    """
    budgets: dict[str, float] = {}
    for mark in marks:
        if mark.args or not mark.kwargs:
            raise ValueError(
                f"Invalid {MARKER}(): expected keyword arguments. Available: {', '.join(BUDGETS)}."
            )
        for name, most in mark.kwargs.items():
            _check_name(name, f"{MARKER}()")
            if not _is_limit(name, most):
                raise ValueError(f"Invalid {MARKER}({name}={most!r}): expected {_expected(name)}.")
            budgets.setdefault(name, most)
    return {**(defaults or {}), **budgets}


def read_default_budgets(text: str) -> dict[str, float]:
    """Return the budgets of a text such as `statements=60, sql_ms=500`.

    Raises:
        ValueError: a budget does not exist, or is not a number of at least 0.
    """
    budgets: dict[str, float] = {}
    for part in text.replace(",", " ").split():
        name, _, number = part.partition("=")
        _check_name(name, _CONFIGURED)
        most = _number(number)
        if not _is_limit(name, most):
            raise ValueError(f"Invalid {part!r} in {_CONFIGURED}: expected {_expected(name)}.")
        budgets[name] = most
    return budgets


def _check_name(name: str, where: str) -> None:
    if name not in BUDGETS:
        # Not imported before it is needed: every run of pytest imports this module.
        from session_tracer.runtime.nearest import did_you_mean

        raise ValueError(
            f"Unknown budget {name!r} in {where}.{did_you_mean(name, BUDGETS)} Available: "
            f"{', '.join(BUDGETS)}."
        )


def _is_limit(name: str, most: Any) -> bool:
    kinds = int | float if name in TIMES else int
    is_number = isinstance(most, kinds) and not isinstance(most, bool)
    return is_number and 0 <= most < math.inf


def _expected(name: str) -> str:
    return "milliseconds of at least 0" if name in TIMES else "an integer of at least 0"


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

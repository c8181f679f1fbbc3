"""Reads what the marker `session_budget` allows a test's sessions."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

__all__ = ["BUDGETS", "MARKER", "read_budgets"]

MARKER: Final = "session_budget"
BUDGETS: Final = ("sessions", "commits", "flushes", "statements", "lazy_loads", "loaded")


def read_budgets(marks: Iterable[pytest.Mark]) -> dict[str, int]:
    """The budgets that these marks set; where two set the same one, the first mark counts.

    Raises:
        ValueError: a budget does not exist, or is not a whole number from 0 up.
    """
    budgets: dict[str, int] = {}
    for mark in marks:
        if mark.args or not mark.kwargs:
            raise ValueError(f"{MARKER}() takes at least one of {', '.join(BUDGETS)}, by name.")
        for name, most in mark.kwargs.items():
            _check(name, most)
            budgets.setdefault(name, most)
    return budgets


def _check(name: str, most: object) -> None:
    given = f"Invalid {MARKER}({name}={most!r})"
    if name not in BUDGETS:
        near = get_close_matches(name, BUDGETS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"{given}: expected one of {', '.join(BUDGETS)}.{meant}")
    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise ValueError(f"{given}: expected a whole number from 0 up.")

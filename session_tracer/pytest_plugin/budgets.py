"""Reads the marker `session_budget`: the limits of what a test's sessions do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

__all__ = ["BUDGETS", "MARKER", "read_budgets"]

MARKER: Final = "session_budget"
BUDGETS: Final = ("sessions", "commits", "flushes", "statements", "lazy_loads", "loaded")


def read_budgets(marks: Iterable[pytest.Mark]) -> dict[str, int]:
    """Return the budgets that these marks set. If two set the same one, the first mark counts.

    Raises:
        ValueError: a budget does not exist, or is not an integer of at least 0.
    """
    budgets: dict[str, int] = {}
    for mark in marks:
        if mark.args or not mark.kwargs:
            raise ValueError(
                f"Invalid {MARKER}(): expected keyword arguments. Available: {', '.join(BUDGETS)}."
            )
        for name, most in mark.kwargs.items():
            _check(name, most)
            budgets.setdefault(name, most)
    return budgets


def _check(name: str, most: object) -> None:
    if name not in BUDGETS:
        # Not imported before it is needed: every run of pytest imports this module.
        from session_tracer.runtime.nearest import did_you_mean

        raise ValueError(
            f"Unknown budget {name!r} in {MARKER}().{did_you_mean(name, BUDGETS)} Available: "
            f"{', '.join(BUDGETS)}."
        )
    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise ValueError(f"Invalid {MARKER}({name}={most!r}): expected an integer of at least 0.")

"""Reads the markers of a test: its budgets, and the findings that it may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_tracer.pytest_plugin.allowances import ALLOW, Allowance, read_allowances
from session_tracer.pytest_plugin.budgets import MARKER, read_budgets

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

__all__ = ["Limits", "read_limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a test may do.

    Attributes:
        budgets: The most that it may do, by the budget's name.
        allowances: The findings that are not reported.
    """

    budgets: Mapping[str, float]
    allowances: list[Allowance]


def read_limits(item: pytest.Item, defaults: Mapping[str, float]) -> Limits:
    """Return the limits that the test's marks set, and the default budgets.

    Raises:
        ValueError: a mark is invalid.
    """
    budgets = read_budgets(item.iter_markers(MARKER), defaults)
    return Limits(budgets, read_allowances(item.iter_markers(ALLOW)))

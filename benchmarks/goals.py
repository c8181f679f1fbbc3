"""The goals: ratios to the same work untraced, Python instructions, and the price of level C."""

from __future__ import annotations

from typing import NamedTuple


class Goal(NamedTuple):
    """The ratios at levels A and B."""

    sqlite: tuple[float, float]
    postgresql: tuple[float, float]

    def of(self, database: str, level: str) -> float | None:
        """The goal of a level; None for C, which has `STATEMENT_SPANS`."""
        ratios = self.sqlite if database.startswith("SQLite") else self.postgresql
        return dict(zip("AB", ratios, strict=True)).get(level)


def on_both(a: float, b: float) -> Goal:
    return Goal((a, b), (a, b))


# By the work's key.
GOALS = {
    "W1": Goal(sqlite=(1.15, 1.30), postgresql=(1.10, 1.18)),
    "W2": on_both(1.06, 1.07),
    "W3": on_both(1.07, 1.08),
    "W4": on_both(1.10, 1.11),
    "W5": on_both(1.20, 1.20),
    "W6": on_both(1.12, 1.18),
}
# Python instructions for one unit of work, by the work's key and the level.
INSTRUCTIONS = {
    ("W1", "A"): 2_600,
    ("W1", "B"): 4_000,
    ("W3", "A"): 100_000,
    ("W4", "A"): 45_000,
    ("W5", "A"): 100,
    ("W6", "A"): 2_800,
}
# What level C adds to B, to the price of a span of OpenTelemetry's SDK for each statement.
STATEMENT_SPANS = 1.10

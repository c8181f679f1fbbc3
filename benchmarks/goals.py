"""What tracing may cost: the ratio to the same work untraced, by work, database and level."""

from __future__ import annotations

from typing import NamedTuple


class Goal(NamedTuple):
    sqlite: tuple[float, float, float]
    postgresql: tuple[float, float, float]

    def of(self, database: str, level: str) -> float:
        ratios = self.sqlite if database.startswith("SQLite") else self.postgresql
        return ratios["ABC".index(level)]


def alike(*ratios: float) -> Goal:
    a, b, c = ratios
    return Goal((a, b, c), (a, b, c))


# By the work's key.
GOALS = {
    "W1": Goal((1.06, 1.15, 1.20), (1.05, 1.10, 1.14)),
    "W2": alike(1.05, 1.07, 1.07),
    "W3": alike(1.03, 1.04, 1.14),
    "W4": alike(1.03, 1.04, 1.10),
    "W5": alike(1.03, 1.03, 1.03),
    "W6": alike(1.06, 1.10, 1.13),
}

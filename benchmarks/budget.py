"""What a unit of work may execute because of us: the committed budget, and what exceeds it.

Calls are budgeted for every Python: they are all but the same from one to the next. Instructions
are another set in each, and are compared on the Python that the budget was written with. What
OpenTelemetry's SDK executes is its own affair and changes with its version; calling it is ours.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import sqlalchemy

from benchmarks.count import OURS, Profile, added, counted
from benchmarks.variants import BARE, LEVELS, Variant
from benchmarks.works import WORKS, Work

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILE = Path(__file__).with_name("budget.json")
# Counts do not vary from run to run; this is for the libraries' next patch releases.
ALLOWED = 0.02
ALLOWED_ON_ANOTHER_PYTHON = 0.10

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SQLALCHEMY = ".".join(sqlalchemy.__version__.split(".")[:2])


class Spent(NamedTuple):
    # Those of our own functions.
    instructions: int
    # Into, within and out of our functions, and those SQLAlchemy makes more than when untraced.
    calls: int


# By the work's title and the level's name.
Spending: TypeAlias = "dict[tuple[str, str], Spent]"


class Budget(NamedTuple):
    """Of one SQLAlchemy line, as counted on one Python."""

    python: str
    spending: Spending


# Of two works that differ in their number of objects alone, the smaller says as much.
COUNTED = tuple(work for work in WORKS if work.title != "select 10,000")


def spend(works: Sequence[Work] = COUNTED, levels: Mapping[str, Variant] = LEVELS) -> Spending:
    """Counts each work at each level."""
    with ThreadPoolExecutor() as threads:
        profiles = {
            (work.title, name): threads.submit(counted, work, variant, is_ours)
            for work in works
            for name, variant in {"": BARE, **levels}.items()
        }
    return {
        (work.title, name): spent(
            profiles[work.title, name].result(), profiles[work.title, ""].result()
        )
        for work in works
        for name in levels
    }


def is_ours(package: str) -> bool:
    return package == OURS


def spent(traced: Profile, bare: Profile) -> Spent:
    instructions = calls = 0
    for function, counts in added(traced, bare).items():
        if is_ours(function.package):
            instructions += counts.instructions
            calls += counts.calls + counts.c_calls + counts.calls_out
        elif function.package == "sqlalchemy":
            calls += counts.calls + counts.c_calls
    return Spent(instructions, calls)


def excesses(spending: Spending, budget: Budget, python: str = PYTHON) -> list[str]:
    """What is over the budget: what, how far, what to do."""
    found: list[str] = []
    for (title, level), now in spending.items():
        then = budget.spending[title, level]
        kinds = [("calls", now.calls, then.calls)]
        allowed = ALLOWED_ON_ANOTHER_PYTHON
        if python == budget.python:
            kinds.append(("instructions", now.instructions, then.instructions))
            allowed = ALLOWED
        key = next(work.key for work in WORKS if work.title == title)
        found.extend(
            f"{key} {title} at level {level}: {counted:,} {kind} of ours, budgeted are"
            f" {budgeted:,} and {allowed:.0%} more; `python -m benchmarks.count {key} {level}`"
            " shows where, `python3 tasks.py benchmark --write-budget` allows it"
            for kind, counted, budgeted in kinds
            if counted > budgeted * (1 + allowed)
        )
    return found


def read(sqlalchemy: str = SQLALCHEMY) -> Budget:
    of_line = json.loads(FILE.read_text())[sqlalchemy]
    return Budget(
        of_line["python"],
        {
            (title, level): Spent(*numbers)
            for title, levels in of_line["works"].items()
            for level, numbers in levels.items()
        },
    )


def write(spending: Spending) -> None:
    """Sets the budget of this SQLAlchemy line to what is spent now."""
    lines = json.loads(FILE.read_text()) if FILE.exists() else {}
    works: dict[str, dict[str, list[int]]] = {}
    for (title, level), now in spending.items():
        works.setdefault(title, {})[level] = list(now)
    lines[SQLALCHEMY] = {"python": PYTHON, "works": works}
    FILE.write_text(json.dumps(dict(sorted(lines.items())), indent=2) + "\n")

"""The committed budget of instructions and calls for each unit of work, and what exceeds it.

Calls are compared on every Python, because they differ little. Instructions differ more, and are
compared only on the Python that the budget was written with. What OpenTelemetry's SDK executes
changes with its version and is not in the budget; session_tracer's calls to it are.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import sqlalchemy

from benchmarks.count import PACKAGE, Profile, added, counted
from benchmarks.variants import BARE, LEVELS, Variant
from benchmarks.works import WORKS, Work

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILE = Path(__file__).with_name("budget.json")
# Counts do not vary from run to run. This allows for the libraries' next patch releases.
ALLOWED = 0.02
ALLOWED_ON_ANOTHER_PYTHON = 0.10

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SQLALCHEMY = ".".join(sqlalchemy.__version__.split(".")[:2])


class Spent(NamedTuple):
    # Of session_tracer's functions.
    instructions: int
    # Into, between and out of these functions, and the additional calls in SQLAlchemy.
    calls: int


# By the work's title and the level's name.
Spending: TypeAlias = "dict[tuple[str, str], Spent]"


class Budget(NamedTuple):
    """The budget of one SQLAlchemy line, as counted on one Python."""

    python: str
    spending: Spending


# The two selects differ only in the number of objects: the smaller is enough.
COUNTED = tuple(work for work in WORKS if work.title != "select 10,000")


def spend(works: Sequence[Work] = COUNTED, levels: Mapping[str, Variant] = LEVELS) -> Spending:
    """Counts each work at each level."""
    with ThreadPoolExecutor() as threads:
        profiles = {
            (work.title, name): threads.submit(counted, work, variant, is_own)
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


def is_own(package: str) -> bool:
    return package == PACKAGE


def spent(traced: Profile, bare: Profile) -> Spent:
    instructions = calls = 0
    for function, counts in added(traced, bare).items():
        if is_own(function.package):
            instructions += counts.instructions
            calls += counts.calls + counts.c_calls + counts.calls_out
        elif function.package == "sqlalchemy":
            calls += counts.calls + counts.c_calls
    return Spent(instructions, calls)


def excesses(spending: Spending, budget: Budget, python: str = PYTHON) -> list[str]:
    """A message for each number over the budget: what, how far, and what to do."""
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
            f"{key} {title} at level {level}: session_tracer executes {counted:,} {kind}; the"
            f" budget is {budgeted:,} plus {allowed:.0%}. Run `python -m benchmarks.count {key}"
            f" {level}` to see where. To allow it, run `python3 tasks.py benchmark --write-budget`."
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
    """Sets the budget of this SQLAlchemy line to these counts."""
    lines = json.loads(FILE.read_text()) if FILE.exists() else {}
    works: dict[str, dict[str, list[int]]] = {}
    for (title, level), now in spending.items():
        works.setdefault(title, {})[level] = list(now)
    lines[SQLALCHEMY] = {"python": PYTHON, "works": works}
    FILE.write_text(json.dumps(dict(sorted(lines.items())), indent=2) + "\n")

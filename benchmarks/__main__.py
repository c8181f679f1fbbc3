"""The benchmark's command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.databases import Database, SQLite, postgresql
from benchmarks.measure import FULL, QUICK, measure
from benchmarks.table import Table, machine
from benchmarks.variants import BARE, CONTROL, FLOOR, LEVELS
from benchmarks.works import WORKS
from tests.servers.lifeline import ServerFailed

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    options = parser().parse_args()
    plan = QUICK if options.quick else FULL
    works = [work for work in WORKS if work.key in options.works]
    variants = [BARE, CONTROL, FLOOR, *(LEVELS[name] for name in options.levels)]
    pages = []
    with ExitStack() as stack:
        for database in databases(options.database, stack):
            table = Table(
                f"{database.version()}, {machine()}",
                variants,
                measure(database, works, variants, plan),
                plan,
            )
            print(table.text(), end="\n\n", flush=True)
            pages.append(table.markdown())
    if options.markdown:
        options.markdown.write_text("\n\n".join(pages) + "\n", encoding="utf-8")


def databases(asked: str | None, stack: ExitStack) -> list[Database]:
    found: list[Database] = []
    if asked in (None, "sqlite"):
        found.append(SQLite())
    if asked in (None, "postgresql"):
        try:
            found.append(stack.enter_context(postgresql()))
        except ServerFailed as failure:
            if asked:
                sys.exit(str(failure))
            print(f"Without PostgreSQL: {failure}", file=sys.stderr)
    return found


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, about two minutes")
    parser.add_argument(
        "--works",
        type=one_of({work.key for work in WORKS}),
        default=sorted({work.key for work in WORKS}),
        metavar="W1,W2",
    )
    parser.add_argument(
        "--levels",
        type=one_of(set(LEVELS)),
        default=list(LEVELS),
        metavar="A,B",
        help="empty for the control and the floor alone",
    )
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="default: both")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    return parser


def one_of(allowed: set[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := set(names) - allowed:
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: choose from {', '.join(sorted(allowed))}"
            )
        return names

    return parse


if __name__ == "__main__":
    main()

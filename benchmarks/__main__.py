"""The benchmark's command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks import budget, page
from benchmarks.count import by_package
from benchmarks.databases import Database, SQLite, postgresql
from benchmarks.measure import FULL, QUICK, SCALING_FULL, SCALING_QUICK, measure, why_not
from benchmarks.memory import figures
from benchmarks.otlp import FULL as OTLP_FULL
from benchmarks.otlp import QUICK as OTLP_QUICK
from benchmarks.otlp import collected
from benchmarks.peers import PEERS
from benchmarks.results import Ratios, Section, machine, save
from benchmarks.variants import BARE, CONTROL, FLOORS, LEVELS, SPANS, Variant
from benchmarks.works import SCALING, WORKS, Work
from tests.servers.lifeline import ServerFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.measure import Plan

# The works on which a peer has to prove that it traces: sync and async.
PROVEN_ON = [work for work in WORKS if work.key in ("W1", "W6")]


def main() -> None:
    options = parser().parse_args()
    if options.write_budget:
        budget.write(budget.spend())
        return
    asked = [name for name in SECTIONS if getattr(options, name) or options.all]
    for name in asked or DEFAULT:
        section = SECTIONS[name](options)
        print(page.printed(name, section), flush=True)
        if options.write:
            save(name, section)
            page.write_page()


def works(options: argparse.Namespace) -> Section:
    chosen = [work for work in WORKS if work.key in options.only]
    variants = [CONTROL, *FLOORS, SPANS, *(LEVELS[name] for name in options.levels)]
    peers = options.peers if options.peers is not None else not options.quick
    left_out: dict[str, str] = {}
    for peer in PEERS if peers else ():
        reason = why_not(peer, PROVEN_ON)
        if reason is None:
            variants.append(peer)
        else:
            left_out[peer.name] = reason
            print(f"{peer.name} is missing: {reason}", file=sys.stderr)
    with ExitStack() as stack:
        return Section(
            machine(),
            [
                ratios(database, chosen, variants, plan(options), left_out)
                for database in databases(options.database, stack)
            ],
        )


def otlp(options: argparse.Namespace) -> Section:
    chosen = [
        work for work in WORKS if work.key in ("W1", "W3", "W4", "W6") and work.key in options.only
    ]
    otlp_plan = OTLP_QUICK if options.quick else OTLP_FULL
    with ExitStack() as stack:
        exported = stack.enter_context(collected(options.levels))
        return Section(
            machine(),
            [
                ratios(database, chosen, [CONTROL, *exported], otlp_plan, {})
                for database in databases(options.database, stack)
            ],
        )


def counts(options: argparse.Namespace) -> Section:
    chosen = [work for work in budget.COUNTED if work.key in options.only]
    variants = [*(LEVELS[name] for name in options.levels), SPANS]
    return Section(machine(), counts=by_package(chosen, variants))


def memory(options: argparse.Namespace) -> Section:
    return Section(machine(), figures=figures(quick=options.quick, ended=options.scopes))


def scaling(options: argparse.Namespace) -> Section:
    chosen = [work for work in SCALING if work.key in options.only]
    variants = [CONTROL, *(LEVELS[name] for name in options.levels if name != "C")]
    with ExitStack() as stack:
        # SQLite in memory has one connection.
        (database,) = databases("postgresql", stack)
        scaling_plan = SCALING_QUICK if options.quick else SCALING_FULL
        return Section(machine(), [ratios(database, chosen, variants, scaling_plan, {})])


SECTIONS: dict[str, Callable[[argparse.Namespace], Section]] = {
    "works": works,
    "counts": counts,
    "memory": memory,
    "otlp": otlp,
    "scaling": scaling,
}
DEFAULT = ("works", "counts", "memory")


def ratios(
    database: Database,
    works: Sequence[Work],
    variants: Sequence[Variant],
    plan: Plan,
    left_out: dict[str, str],
) -> Ratios:
    return Ratios(
        database.version(),
        plan.launches,
        {variant.name: variant.title for variant in (BARE, *variants)},
        left_out,
        measure(database, works, [BARE, *variants], plan),
    )


def plan(options: argparse.Namespace) -> Plan:
    return QUICK if options.quick else FULL


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
            print(f"PostgreSQL is missing: {failure}", file=sys.stderr)
    return found


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    section = parser.add_argument_group("what is measured; default: --works --counts --memory")
    section.add_argument("--works", action="store_true", help="time of the works, as ratios")
    section.add_argument("--counts", action="store_true", help="instructions of the works")
    section.add_argument("--memory", action="store_true", help="memory and standing costs")
    section.add_argument("--otlp", action="store_true", help="with export to a real collector")
    section.add_argument("--scaling", action="store_true", help="many threads, many tasks")
    section.add_argument("--all", action="store_true", help="all of these, one after the other")
    section.add_argument(
        "--write-budget",
        action="store_true",
        help="count instructions and write the budget that a test checks; nothing is timed",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--quick", action="store_true", help="fewer rounds, five minutes")
    how.add_argument(
        "--write",
        action="store_true",
        help="save the results, write docs/performance.md and the README's table",
    )
    how.add_argument(
        "--only",
        type=one_of(work.key for work in WORKS),
        default=sorted({work.key for work in WORKS}),
        metavar="W1,W2",
    )
    how.add_argument(
        "--levels",
        type=one_of(LEVELS),
        default=list(LEVELS),
        metavar="A,B",
        help="default: all; empty: no session_tracer",
    )
    how.add_argument("--database", choices=("sqlite", "postgresql"), help="default: both")
    how.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        help="other tracers, if they are installed; default: unless --quick",
    )
    how.add_argument(
        "--scopes",
        type=int,
        metavar="N",
        help="number of sessions that end while memory is measured; default: 50,000",
    )
    return parser


def one_of(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    known = set(allowed)

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := set(names) - known:
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: choose from {', '.join(sorted(known))}"
            )
        return names

    return parse


if __name__ == "__main__":
    main()

"""The command line of the comparison: `python -m benchmarks.accuracy --help`."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import filterfalse, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.accuracy import page
from benchmarks.accuracy.programs import GOOD_CODE, MISUSE, corpus_of
from benchmarks.accuracy.results import Results, has_bug, load, save
from benchmarks.accuracy.tools import LOWER, NO_TOOL, OWN, PEERS, RunFailed, outcomes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.accuracy.programs import Programs
    from benchmarks.accuracy.tools import Tool


def main() -> int:
    options = _parser().parse_args()
    corpus = corpus_of(options.corpus)
    try:
        if options.check:
            return check(corpus)
        results = _compare([corpus, GOOD_CODE, MISUSE], [OWN, LOWER, *PEERS])
    except RunFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    if options.write:
        save(results)
        page.write(results)
    print(page.text_of(results))
    return 0


def check(corpus: Programs) -> int:
    """Compare what session_tracer reports with the saved run; the exit code is 0 if it is alike."""
    saved, now = load(), _compare([corpus], [OWN, LOWER])
    missing = sorted(set(saved.programs["corpus"]) - set(now.programs["corpus"]))
    lines: list[str] = []
    for tool in (OWN, LOWER):
        before, after = (set(one.wrong(tool.name)) for one in (saved, now))
        gone, come = after - before, before - after
        lines += [
            *_named(f"{tool.name}: no longer reported, though wrong", filter(has_bug, gone)),
            *_named(f"{tool.name}: reported now, though right", filterfalse(has_bug, gone)),
            *_named(f"{tool.name}: judged as its author does now; run with --write", come),
        ]
    lines += _named("fails without a tool, or is missing", missing)
    print("\n".join(lines) or f"as saved: {len(saved.programs['corpus'])} programs")
    return 1 if lines else 0


def _named(what: str, programs: Iterable[str]) -> list[str]:
    return [f"{program}: {what}" for program in sorted(programs)]


def _compare(origins: Sequence[Programs], tools: Sequence[Tool]) -> Results:
    """Run the programs of each origin without a tool and with each."""
    programs: dict[str, list[str]] = {}
    reported: dict[str, dict[str, list[str]]] = {}
    for origin in origins:
        print(f"{', '.join(tool.name for tool in tools)} on {origin.name}", file=sys.stderr)
        # No program depends on the time that it takes: two run side by side.
        with ThreadPoolExecutor(2) as pool:
            bare, *traced = pool.map(outcomes, (NO_TOOL, *tools), repeat(origin))
        programs[origin.name] = works = [name for name, passed in bare.items() if passed]
        reported[origin.name] = {
            tool.name: [name for name in works if not passed[name]]
            for tool, passed in zip(tools, traced, strict=True)
        }
    named = dict.fromkeys(["sqlalchemy", *(tool.package for tool in tools)])
    return Results({name: version(name) for name in named}, programs, reported)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument(
        "--corpus",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the unpacked source distribution of pytest-queryguard",
    )
    parser.add_argument("--write", action="store_true", help="write docs/accuracy.md")
    parser.add_argument(
        "--check", action="store_true", help="run session_tracer alone, and fail unless it is alike"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Writes docs/accuracy.md: the tables, and why session_tracer judges some programs otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.accuracy.reasons import REASONS
from benchmarks.accuracy.results import has_bug
from benchmarks.accuracy.tools import LOWER, OWN, PEERS
from benchmarks.page import PAGE as PERFORMANCE
from benchmarks.page import between_marks, markdown

if TYPE_CHECKING:
    from benchmarks.accuracy.results import Results

__all__ = ["PAGE", "text_of", "write"]

PAGE: Final = PERFORMANCE.with_name("accuracy.md")
_UNKNOWN: Final = "not looked into"
_TOOLS: Final = (OWN, LOWER, *PEERS)


def write(results: Results) -> None:
    """Write a run into the page."""
    between_marks(PAGE, text_of(results))


def text_of(results: Results) -> str:
    """Return what the page says of a run."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    wrong = results.wrong(OWN.name)
    parts = [f"Measured with {versions}.", _totals(results)]
    if missed := [one for one in wrong if has_bug(one)]:
        parts += ["### Bugs that session_tracer does not report", _reasons(missed)]
    if noisy := [one for one in wrong if not has_bug(one)]:
        parts += ["### Right programs that it reports", _reasons(noisy)]
    parts += ["### Misuse of sessions, by finding", _by_finding(results)]
    return "\n\n".join(parts) + "\n"


def _totals(results: Results) -> str:
    header = ["", "bugs", "right programs", "right programs of this project", "misuses of sessions"]
    rows = [header]
    for tool in _TOOLS:
        counts = [results.bugs(tool.name), results.right(tool.name)]
        counts += [results.of_origin(origin, tool.name) for origin in ("good code", "misuse")]
        rows.append([tool.name, *(f"{reported} of {all_}" for reported, all_ in counts)])
    return markdown(rows)


def _reasons(programs: list[str]) -> str:
    return "\n".join(f"- `{program}`: {REASONS.get(program, _UNKNOWN)}" for program in programs)


def _by_finding(results: Results) -> str:
    rows = [["", *(tool.name for tool in _TOOLS)]]
    reported = results.reported["misuse"]
    for program in results.programs["misuse"]:
        signs = ["✓" if program in reported[tool.name] else "" for tool in _TOOLS]
        rows.append([f"`{program}`", *signs])
    return markdown(rows)

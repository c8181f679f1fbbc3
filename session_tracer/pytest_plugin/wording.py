"""Formats what a test's sessions did, and its findings."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final, NamedTuple

from session_tracer.exporters.finding_block import finding_block, remedy_label
from session_tracer.exporters.session_block import session_head, timeline_lines
from session_tracer.exporters.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.text import Text

    from session_tracer.model.findings import Finding, Severity
    from session_tracer.model.summary import SessionSummary
    from session_tracer.pytest_plugin.case import Case, Phase
    from session_tracer.pytest_plugin.run_findings import Entry

__all__ = [
    "Failure",
    "blocks",
    "failure_of",
    "rows",
    "timelines",
]

_NEVER_SLOW: Final = float("inf")
# Number of sessions of one test that are shown.
_MOST_SESSIONS: Final = 5
# Number of findings of one line that are listed by what they are about.
_MOST_SUBJECTS: Final = 8
_NARROWEST: Final = 50


class Failure(NamedTuple):
    """Why a test fails, in one line and in full, and the findings for which it fails."""

    headline: str
    text: str
    findings: list[Finding]


def failure_of(case: Case, fail_from: Severity | None, phases: tuple[Phase, ...]) -> Failure | None:
    """Return why the test fails in these phases, for its budget or its findings, or None."""
    exceeded = case.exceeded() if "call" in phases else []
    findings = case.findings_to_fail_for(fail_from, phases)
    budget = f"session budget: {', '.join(exceeded)}" if exceeded else ""
    headline = "; ".join(filter(None, [budget, _listed(findings) if findings else ""]))
    if not headline:
        return None
    shown = timelines(case.summaries()) if exceeded else ""
    text = "\n\n".join(filter(None, [headline, shown, blocks(findings)]))
    return Failure(headline, text, findings)


def _listed(findings: Sequence[Finding]) -> str:
    listed = ", ".join(f"{finding.id} ({_subject_and_site(finding)})" for finding in findings)
    return f"session finding{'s' if len(findings) > 1 else ''}: {listed}"


def _subject_and_site(finding: Finding) -> str:
    subject, where = _subject(finding, finding.count), _where(finding)
    return " at ".join(filter(None, [subject, where])) or finding.message


def blocks(findings: Iterable[Finding]) -> str:
    """Return the findings in full."""
    width = _width()
    return "\n\n".join(_plain(finding_block(finding, width, session=True)) for finding in findings)


def timelines(summaries: Sequence[SessionSummary]) -> str:
    """Return the timelines of the sessions, in order."""
    width = _width()
    shown = [
        _plain(
            [
                *session_head(summary, width, slow_ms=_NEVER_SLOW, quiet=False),
                *timeline_lines(summary, width),
            ]
        )
        for summary in summaries[:_MOST_SESSIONS]
    ]
    more = len(summaries) - len(shown)
    if more:
        shown.append(f"… {counted(more, 'more session')}")
    return "\n\n".join(shown)


class Row(NamedTuple):
    """What the summary has of the findings of one id and line: the id is padded."""

    severity: Severity
    id_: str
    rest: str
    remedies: list[str]


def rows(entries: Iterable[Entry]) -> Iterator[Row]:
    """Yield a row for each line's findings of one id, which lists their entities."""
    groups = _of_one_line(entries)
    table = [(group[0].finding.id, _where(group[0].finding), _subjects(group)) for group in groups]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for group, cells in zip(groups, table, strict=True):
        finding = group[0].finding
        id_, where, subject = map(str.ljust, cells, widths)
        columns = [where, subject] if widths[2] else [where]
        tests = {nodeid: phase for entry in group for nodeid, phase in entry.tests.items()}
        rest = "   ".join([*columns, _tests(tests)])
        if not (finding.entity or finding.attribute):
            rest = f"{rest}\n    {finding.message}"
        remedies = dict.fromkeys(entry.finding.remedy for entry in group if entry.finding.remedy)
        shown = [f"{remedy_label(remedy)} {remedy.partition(chr(10))[0]}" for remedy in remedies]
        yield Row(finding.severity, id_, rest, shown)


def _of_one_line(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Return the findings that differ in nothing but what they are about, together."""
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        one = entry.finding
        # Without an entity, what it is about is in its message.
        alone = None if one.entity and one.site else id(entry)
        groups.setdefault((one.id, one.severity, one.site, one.work, alone), []).append(entry)
    return list(groups.values())


def _subjects(group: Sequence[Entry]) -> str:
    shown = [_subject(entry.finding, entry.count) for entry in group[:_MOST_SUBJECTS]]
    more = len(group) - len(shown)
    return ", ".join([*shown, f"… {more} more"] if more else shown)


def _tests(tests: dict[str, str]) -> str:
    if not tests:
        return "outside of tests"
    if len(tests) > 1:
        return counted(len(tests), "test")
    ((nodeid, phase),) = tests.items()
    return f"1 test ({nodeid}{'' if phase == 'call' else f', {phase}'})"


def _subject(finding: Finding, count: int) -> str:
    name = ".".join(filter(None, [finding.entity, finding.attribute]))
    return f"{name} ×{count}".strip() if count > 1 else name


def _where(finding: Finding) -> str:
    return "" if finding.site is None else f"{finding.site.path}:{finding.site.line}"


def _width() -> int:
    # pytest's own function needs a terminal reporter, which xdist's workers do not have.
    return max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST)


def _plain(lines: Iterable[Text]) -> str:
    return "\n".join(line.plain for line in lines)

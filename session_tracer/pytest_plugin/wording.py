"""Formats what a test's sessions did, and its findings."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final, NamedTuple

from session_tracer.exporters.finding_block import finding_block
from session_tracer.exporters.session_block import session_head, timeline_lines
from session_tracer.exporters.wording import counted
from session_tracer.pytest_plugin.cost import Cost

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.text import Text

    from session_tracer.model.findings import Finding, Severity
    from session_tracer.model.summary import SessionSummary
    from session_tracer.pytest_plugin.case import Case, Phase

__all__ = [
    "Failure",
    "blocks",
    "failure_of",
    "place_of",
    "subject_of",
    "timelines",
]

_NEVER_SLOW: Final = float("inf")
# Number of sessions of one test that are shown.
_MOST_SESSIONS: Final = 5
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
    headline = "; ".join(
        filter(None, [budget, _listed(findings, case.took_ms) if findings else ""])
    )
    if not headline:
        return None
    shown = timelines(case.summaries()) if exceeded else ""
    text = "\n\n".join(filter(None, [headline, shown, blocks(findings, case.took_ms)]))
    return Failure(headline, text, findings)


def _listed(findings: Sequence[Finding], took_ms: float) -> str:
    listed = ", ".join(
        f"{finding.id} ({_subject_and_site(finding, took_ms)})" for finding in findings
    )
    return f"session finding{'s' if len(findings) > 1 else ''}: {listed}"


def _subject_and_site(finding: Finding, took_ms: float) -> str:
    cost = Cost.of([finding], took_ms)
    subject, where = subject_of(finding, cost), place_of(finding)
    if cost.noun:
        subject = ": ".join(filter(None, [subject, str(cost)]))
    return " at ".join(filter(None, [subject, where])) or finding.message


def blocks(findings: Iterable[Finding], took_ms: float) -> str:
    """Return the findings in full, of a test that took that long."""
    width = _width()
    return "\n\n".join(
        _plain(finding_block(finding, width, session=True, scope_ms=took_ms))
        for finding in findings
    )


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


def subject_of(finding: Finding, cost: Cost) -> str:
    """Return what it is about: `Author.books`, or `Author ×1001` if it does not repeat."""
    name = ".".join(filter(None, [finding.entity, finding.attribute]))
    if not name:
        name = ", ".join(finding.evidence.get("entities") or ())
    return f"{name} ×{cost.number}".strip() if cost.number > 1 and not cost.noun else name


def place_of(finding: Finding) -> str:
    """Return its line: `app/report.py:8`."""
    return "" if finding.site is None else f"{finding.site.path}:{finding.site.line}"


def _width() -> int:
    # pytest's own function needs a terminal reporter, which xdist's workers do not have.
    return max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST)


def _plain(lines: Iterable[Text]) -> str:
    return "\n".join(line.plain for line in lines)

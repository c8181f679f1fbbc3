"""A detector that finds what a test tells it to find."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from session_tracer.facts import SessionOpened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Severity

_WANTED: Final[list[Severity]] = []


@contextmanager
def saying(severity: Severity) -> Iterator[None]:
    """Have a finding of that severity drawn of each session that is opened in the block."""
    _WANTED.append(severity)
    try:
        yield
    finally:
        _WANTED.remove(severity)


class Says:
    """Draws what is wanted."""

    facts: Final = (SessionOpened,)

    def memory(self) -> None:
        """Nothing is remembered."""

    def judge(self, fact: SessionOpened, report: Report, memory: Any) -> Iterator[Finding]:
        """One finding for each that is wanted."""
        for severity in _WANTED:
            yield report.finding(f"said-{severity}", severity, "it was said", "say less", fact.site)

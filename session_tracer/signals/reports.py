"""Hands exporters whole values: each scope's summary, each finding, each retraction, each fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_tracer.exporter import Exporter
    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Retraction

__all__ = ["ReportSignal"]


class ReportSignal:
    """The whole values of one tracer's sessions, made only where the exporter reads them."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self.wants_sessions = exporter.wants_sessions
        self.wants_facts = exporter.wants_facts

    def session(self, report: Report) -> None:
        """Pass the summary of a scope that ended on."""
        self._exporter.on_session(report.summary())

    def finding(self, finding: Finding, report: Report) -> None:
        """Pass the finding on."""
        self._exporter.on_finding(finding)

    def retracted(self, retraction: Retraction, report: Report) -> None:
        """Pass the retraction on."""
        self._exporter.on_retraction(retraction)

    def fact(self, fact: Fact, report: Report) -> None:
        """Pass a fact on."""
        self._exporter.on_fact(fact)

"""Hands exporters whole values: each scope's summary, each finding, each fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_tracer import facts

if TYPE_CHECKING:
    from session_tracer.exporter import Exporter
    from session_tracer.facts import Fact
    from session_tracer.findings import Finding
    from session_tracer.record import SessionRecord

__all__ = ["ReportSignal"]


class ReportSignal:
    """The reports of one tracer's sessions, made only where the exporter reads them."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def begin(self, record: SessionRecord) -> ReportSignal:
        """Nothing is remembered for one session, so one teller serves all."""
        return self

    def tell(self, fact: Fact, record: SessionRecord) -> None:
        """Pass the fact on, and with the last one the summary."""
        if self._exporter.wants_facts:
            self._exporter.on_fact(fact)
        if type(fact) is facts.SessionClosed and self._exporter.wants_sessions:
            self._exporter.on_session(record.summary())

    def finding(self, finding: Finding, record: SessionRecord) -> None:
        """Pass the finding on."""
        self._exporter.on_finding(finding)

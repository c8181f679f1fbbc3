"""Hands exporters whole values: each scope's summary, each finding, each retraction, each fact."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from session_tracer import facts

if TYPE_CHECKING:
    from session_tracer.exporter import Exporter
    from session_tracer.facts import Fact
    from session_tracer.ledger.record import SessionRecord
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.signals.routes import Routes

__all__ = ["ReportSignal"]


class ReportSignal:
    """The reports of one tracer's sessions, made only where the exporter reads them."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def begin(self, record: SessionRecord) -> ReportSignal:
        """Nothing is remembered for one session, so one teller serves all."""
        return self

    @property
    def routes(self) -> Routes:
        """Who hears of which facts: of all of them, or of the last one, or of none."""
        if self._exporter.wants_facts:
            heard = dict.fromkeys(get_args(facts.Fact), ReportSignal._fact)
            return {**heard, facts.SessionClosed: ReportSignal._last_fact}
        if self._exporter.wants_sessions:
            return {facts.SessionClosed: ReportSignal._closed}
        return {}

    def finding(self, finding: Finding, record: SessionRecord) -> None:
        """Pass the finding on."""
        self._exporter.on_finding(finding)

    def retracted(self, retraction: Retraction, record: SessionRecord) -> None:
        """Pass the retraction on."""
        self._exporter.on_retraction(retraction)

    def _fact(self, fact: Fact, record: SessionRecord) -> None:
        self._exporter.on_fact(fact)

    def _closed(self, fact: facts.SessionClosed, record: SessionRecord) -> None:
        self._exporter.on_session(record.summary())

    def _last_fact(self, fact: facts.SessionClosed, record: SessionRecord) -> None:
        self._fact(fact, record)
        self._closed(fact, record)

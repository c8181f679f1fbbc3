"""Feeds facts to detectors as a tracer does, without a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_tracer import CallSite, Exporter, Finding, Settings
from session_tracer.exporter import Exporters
from session_tracer.exporter_choice import Named
from session_tracer.ledger.record import SessionRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_tracer import Detector
    from session_tracer.facts import Fact
    from session_tracer.model.findings import Retraction

MS = 1_000_000
SECOND = 1_000 * MS


def fixed(exporter: Exporter) -> Named:
    """A tracer's choice of exporters that never changes."""
    return Named(exporter, Settings(), Exporters())


def at(line: int, function: str = "index", file: str = "/srv/shop/views.py") -> CallSite:
    """A line of the application."""
    return CallSite(file, line, function)


def told(detector: Detector, *facts: Fact, **settings: Any) -> list[Finding | Retraction]:
    """What one detector says of a scope in which this happened."""
    return told_by([detector], *facts, **settings)


def told_by(
    detectors: Sequence[Detector], *facts: Fact, is_async: bool = False, **settings: Any
) -> list[Finding | Retraction]:
    """What several detectors say of one scope, in their order."""
    record = SessionRecord(
        "9b21e0456789abcd", "orders-db", is_async=is_async, settings=Settings(**settings)
    )
    memories = [detector.memory() for detector in detectors]
    said: list[Finding | Retraction] = []
    for fact in facts:
        record.add(fact)
        for detector, memory in zip(detectors, memories, strict=True):
            if type(fact) not in detector.facts:
                continue
            for one in detector.judge(fact, record, memory):
                said.append(one)
                if isinstance(one, Finding):
                    record.findings.append(one)
    return said

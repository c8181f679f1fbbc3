"""Adds up what was found in a whole run, over all its tests and workers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from session_tracer.model.findings import Finding
from session_tracer.where.callsite import CallSite

if TYPE_CHECKING:
    from collections.abc import Hashable

    from session_tracer.pytest_plugin.case import Drawn

__all__ = ["Entry", "Ledger"]

_WORST_FIRST: Final = ("error", "warning", "info")


@dataclass(slots=True)
class Entry:
    """One finding at one site, in one or more tests.

    `tests` has the phase of each test by the test's id; `count` is the highest count of them.
    """

    finding: Finding
    known: bool
    count: int = 0
    tests: dict[str, str] = field(default_factory=dict)


class Ledger:
    """What was found so far, and in how many sessions."""

    def __init__(self) -> None:
        self.sessions = 0
        self._entries: dict[Hashable, Entry] = {}

    @property
    def new(self) -> list[Entry]:
        """What the baseline does not know, the worst first."""
        return sorted((entry for entry in self._entries.values() if not entry.known), key=_rank)

    @property
    def known(self) -> int:
        """How many entries the baseline knows."""
        return sum(entry.known for entry in self._entries.values())

    def add(self, drawn: Drawn, nodeid: str) -> None:
        """Enter a finding of a test; the id is empty for one outside of tests."""
        tests = {nodeid: str(drawn.phase)} if nodeid else {}
        self._enter(Entry(drawn.finding, drawn.known, drawn.finding.count, tests))

    def _enter(self, one: Entry) -> None:
        finding = one.finding
        key = (finding.id, finding.site, finding.entity, finding.attribute)
        entry = self._entries.setdefault(key, Entry(finding, one.known))
        entry.count = max(entry.count, one.count)
        entry.tests = {**one.tests, **entry.tests}

    def dump(self) -> str:
        """The ledger as JSON, for the process that reports what all workers found."""
        entries = [asdict(entry) for entry in self._entries.values()]
        return json.dumps({"sessions": self.sessions, "entries": entries}, default=str)

    def merge(self, dumped: str) -> None:
        """Enter what a worker has dumped."""
        values = json.loads(dumped)
        self.sessions += values["sessions"]
        for entry in values["entries"]:
            self._enter(Entry(**{**entry, "finding": _finding(entry["finding"])}))


def _rank(entry: Entry) -> tuple[object, ...]:
    site = entry.finding.site
    where = ("", 0) if site is None else (site.file, site.line)
    severity = _WORST_FIRST.index(entry.finding.severity)
    return severity, -len(entry.tests), entry.finding.id, *where


def _finding(values: dict[str, Any]) -> Finding:
    sites = {name: _site(values[name]) for name in ("site", "session_site")}
    return Finding(**{**values, **sites})


def _site(values: dict[str, Any] | None) -> CallSite | None:
    if values is None:
        return None
    return CallSite(values["file"], values["line"], values["function"])

"""Collects the findings of a whole run, of all its tests and workers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from session_tracer.exporters.wording import with_total
from session_tracer.model.findings import Finding
from session_tracer.pytest_plugin.cost import NOTHING, Cost
from session_tracer.where.callsite import CallSite

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from session_tracer.pytest_plugin.case import Case, Reported, State

__all__ = ["Entry", "RunFindings"]

_MOST_SESSIONS: Final = 1_000
_MOST_SEVERE_FIRST: Final = ("error", "warning", "info")


@dataclass(slots=True)
class Entry:
    """One finding at one site and in one loop, in one or more tests.

    Attributes:
        state: Whether it is new, in the baseline, or allowed by the tests' markers.
        reason: Why it is allowed.
        cost: What it cost in the test in which it took the longest.
        costliest_in: The id of that test.
        tests: The phase of each test by the test's id.
        sessions: The ids of sessions that had it, not more than a thousand.
    """

    finding: Finding
    state: State
    reason: str = ""
    cost: Cost = NOTHING
    costliest_in: str = ""
    tests: dict[str, str] = field(default_factory=dict)
    sessions: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How often it happened in that test."""
        return self.cost.number

    @property
    def message(self) -> str:
        """What happened, and how often."""
        message, cost = self.finding.message, self.cost
        return with_total(message, cost.number, str(cost)) if cost.noun else message

    def has_cost(self, cost: Cost, test: str) -> None:
        """Take into account what it cost in one test."""
        if cost > self.cost:
            self.cost, self.costliest_in = cost, test


class RunFindings:
    """What was found so far, and the number of sessions.

    Attributes:
        exceeded: The budgets that each test has exceeded, by the test's id.
    """

    def __init__(self) -> None:
        self.sessions = 0
        self.exceeded: dict[str, list[str]] = {}
        self._entries: dict[Hashable, Entry] = {}

    @property
    def new(self) -> list[Entry]:
        """The entries that the baseline does not contain, the most severe first."""
        return sorted(self._of("new"), key=_rank)

    @property
    def all(self) -> list[Entry]:
        """Every entry, the most severe first."""
        return sorted(self._entries.values(), key=_rank)

    def not_allowed(self) -> Iterator[tuple[Finding, set[str]]]:
        """The new and the known findings, each with the files of its tests."""
        for entry in self._entries.values():
            if entry.state != "allowed":
                yield entry.finding, {nodeid.partition("::")[0] for nodeid in entry.tests}

    @property
    def known(self) -> int:
        """Number of entries that the baseline contains."""
        return len(self._of("known"))

    @property
    def allowed(self) -> int:
        """Number of entries that the markers of tests allow."""
        return len(self._of("allowed"))

    def _of(self, state: State) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.state == state]

    def add(self, reported: Reported, nodeid: str) -> None:
        """Add a finding of a test. The id is empty if it was reported outside of tests."""
        tests = {nodeid: str(reported.phase)} if nodeid else {}
        finding = reported.finding
        cost = Cost.of([finding])
        sessions = [finding.session_id]
        self._add(Entry(finding, reported.state, reported.reason, cost, nodeid, tests, sessions))

    def ended(self, case: Case) -> None:
        """A test has ended: what its findings cost is known."""
        exceeded = case.exceeded()
        if exceeded:
            self.exceeded[case.nodeid] = exceeded
        found: dict[Hashable, list[Finding]] = {}
        for one in case.reported:
            found.setdefault(_key(one.finding, one.state), []).append(one.finding)
        for key, findings in found.items():
            self._entries[key].has_cost(Cost.of(findings, case.took_ms), case.nodeid)

    def _add(self, one: Entry) -> None:
        finding = one.finding
        new = Entry(finding, one.state, one.reason)
        entry = self._entries.setdefault(_key(finding, one.state), new)
        entry.has_cost(one.cost, one.costliest_in)
        entry.tests = {**one.tests, **entry.tests}
        entry.sessions = [*dict.fromkeys([*entry.sessions, *one.sessions])][:_MOST_SESSIONS]

    def dump(self) -> str:
        """Return everything as JSON, for the process that reports the findings of all workers."""
        entries = [
            asdict(replace(entry, finding=replace(entry.finding, total=None)))
            for entry in self._entries.values()
        ]
        values = {"sessions": self.sessions, "exceeded": self.exceeded, "entries": entries}
        return json.dumps(values, default=str)

    def merge(self, dumped: str) -> None:
        """Add what a worker has dumped."""
        values = json.loads(dumped)
        self.sessions += values["sessions"]
        self.exceeded |= values["exceeded"]
        for entry in values["entries"]:
            read = {"finding": _finding(entry["finding"]), "cost": Cost(*entry["cost"])}
            self._add(Entry(**entry | read))


def _key(finding: Finding, state: State) -> Hashable:
    about = (finding.id, finding.site, finding.entity, finding.attribute, finding.work)
    # What one line does in several loops, or for several calls, has to be changed in each of them.
    return (*about, finding.evidence.get("loop"), finding.evidence.get("called_at"), state)


def _rank(entry: Entry) -> tuple[object, ...]:
    site = entry.finding.site
    where = ("", 0) if site is None else (site.file, site.line)
    severity = _MOST_SEVERE_FIRST.index(entry.finding.severity)
    return severity, -entry.cost.ms, -len(entry.tests), entry.finding.id, *where


def _finding(values: dict[str, Any]) -> Finding:
    sites = {name: _site(values[name]) for name in ("site", "session_site")}
    return Finding(**{**values, **sites})


def _site(values: dict[str, Any] | None) -> CallSite | None:
    if values is None:
        return None
    return CallSite(values["file"], values["line"], values["function"])

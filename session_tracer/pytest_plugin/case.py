"""One test: what its sessions did, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from session_tracer import facts
from session_tracer.ledger.registry import live_sessions
from session_tracer.pytest_plugin.account import Account
from session_tracer.pytest_plugin.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Severity
    from session_tracer.model.live_session import LiveSession
    from session_tracer.model.summary import SessionSummary

__all__ = ["Case", "Drawn", "Phase", "Scope"]

Phase: TypeAlias = Literal["setup", "call", "teardown"]

_SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "error")
# Facts about a session that does nothing itself.
_NOTHING_DONE: Final = (facts.DetachedLoadFailed, facts.TimePassed)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finding, the phase of the test in which it was reported, and whether it is known.

    `known` is whether the baseline has it.
    """

    finding: Finding
    phase: Phase
    known: bool


@dataclass(slots=True)
class Scope:
    """What is remembered of a session scope.

    `case` is the test that it belongs to, or None. `shared` is whether a fixture wider than one
    test opened it, `left_open` whether it was reported that its test left it open.
    """

    case: Case | None
    shared: bool
    left_open: bool = False
    # The test that used it last.
    last: Case | None = None


class Case:
    """One test. Its accounts are of what sessions did in the call, not in setup and teardown."""

    def __init__(self, nodeid: str, budgets: dict[str, int], settle: Callable[[], None]) -> None:
        self.nodeid = nodeid
        self.budgets = budgets
        self.settle = settle
        self.phase: Phase = "setup"
        self.tally = Tally()
        self.drawn: list[Drawn] = []
        self.failed = False
        # The findings that are in no test report yet, and the failure that this plugin raised.
        self.untold: list[Finding] = []
        self.raised: BaseException | None = None
        self.headline = ""
        self._opened: dict[str, tuple[Report, Scope]] = {}
        self._accounts: dict[str, Account] = {}

    def add(self, fact: Fact, report: Report, scope: Scope) -> None:
        """Take into account what happened to a session."""
        if isinstance(fact, facts.SessionOpened) and scope.case is self:
            self._opened[report.ledger.id] = report, scope
        if self.phase == "call" and not isinstance(fact, _NOTHING_DONE):
            id_ = report.ledger.id
            account = self._accounts.get(id_)
            if account is None:
                account = self._accounts[id_] = Account(report, fact.at)
            account.add(fact)
            self.tally.add(fact, id_)

    def draw(self, drawn: Drawn) -> None:
        """Take a finding into account."""
        self.drawn.append(drawn)
        if not drawn.known:
            self.untold.append(drawn.finding)
        account = self._accounts.get(drawn.finding.session_id)
        if account is not None:
            account.findings.append(drawn.finding)

    def summaries(self) -> list[SessionSummary]:
        """What each session did in the call."""
        return [account.summary() for account in list(self._accounts.values())]

    def open_sessions(self) -> list[LiveSession]:
        """The sessions that this test opened and that are still open."""
        return [live for live in live_sessions() if live.id in self._opened]

    def left_open(self) -> Iterator[tuple[Report, Scope]]:
        """The sessions that this test opened and that still have a transaction open."""
        for report, scope in list(self._opened.values()):
            if report.ledger.outcome is None and report.ledger.transaction_began_at:
                yield report, scope

    def blamed(self, fail_from: Severity | None, phases: tuple[Phase, ...]) -> list[Finding]:
        """The findings of these phases for which the test has to fail."""
        if fail_from is None:
            return []
        enough = _SEVERITIES[_SEVERITIES.index(fail_from) :]
        return [
            drawn.finding
            for drawn in self.drawn
            if drawn.phase in phases and not drawn.known and drawn.finding.severity in enough
        ]

    def exceeded(self) -> list[str]:
        """The budgets that were exceeded: `statements 15 > 6 (lazy Author.books ×12 at ...)`."""
        counts = self.tally.counts
        return [
            f"{budget} {counts[budget]} > {most} ({self.tally.cause(budget)})"
            for budget, most in self.budgets.items()
            if counts[budget] > most
        ]

    def properties(self) -> Iterator[tuple[str, object]]:
        """What is written into a JUnit file: counts and findings."""
        if self._accounts:
            for budget, count in self.tally.counts.items():
                yield f"session_tracer.{budget}", count
        for drawn in self.drawn:
            site = drawn.finding.site
            where = "" if site is None else f" {site.path}:{site.line}"
            if not drawn.known:
                yield "session_tracer.finding", drawn.finding.id + where

"""One test: what its sessions did, and which findings were reported."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from session_tracer import facts
from session_tracer.ledger.registry import live_sessions
from session_tracer.model.findings import COSTS
from session_tracer.pytest_plugin.budgets import BUDGETS
from session_tracer.pytest_plugin.cost import Cost
from session_tracer.pytest_plugin.counts import BudgetCounts, SessionCounts
from session_tracer.where.frameworks import is_test_setup, is_test_teardown

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterator, Sequence

    from session_tracer.facts import Fact
    from session_tracer.ledger.loads import Passed
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Severity
    from session_tracer.model.live_session import LiveSession
    from session_tracer.model.summary import SessionSummary
    from session_tracer.pytest_plugin.limits import Limits
    from session_tracer.pytest_plugin.own_files import OwnFiles
    from session_tracer.where.callsite import CallSite

__all__ = ["Call", "Case", "Phase", "Reported", "Scope", "State"]

# The instructions of the test's own functions that lead to what happens.
Call: TypeAlias = tuple[tuple[int, int], ...]
Phase: TypeAlias = Literal["setup", "call", "teardown"]
# Known ones are in the baseline; the test's marker has allowed the allowed ones.
State: TypeAlias = Literal["new", "known", "allowed"]

_SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "error")
# Facts that are not something that the session does.
_NOTHING_DONE: Final = (facts.DetachedLoadFailed, facts.TimePassed)


@dataclass(frozen=True, slots=True)
class Reported:
    """A finding, the test's phase in which it was reported, and whether it is a new one."""

    finding: Finding
    phase: Phase
    state: State
    reason: str = ""


@dataclass(slots=True)
class Scope:
    """A session scope.

    Attributes:
        case: The test that it belongs to, or None.
        shared: Whether it was opened by a fixture with a wider scope than one test.
        left_open: Whether it was reported that its test left it open.
        registry: The `scoped_session` that has made its session.
        opened_for: The line of the tests that led to its first use.
        opened_by: The lines at work when it was opened, the innermost first.
        is_tests: Whether the tests' own code has used it.
        is_of_a_fixture: Whether a fixture made its session.
        last: The test that used it last.
        commits: What was at work at the last commit of each line, by the line's text.
        call: The test's call that used it last.
        origins: Where objects come from: the phase and the call in which each line last ran a
            statement, and in which each mapped class was last new in a flush.
    """

    case: Case | None
    shared: bool
    left_open: bool = False
    registry: weakref.ref[Any] | None = None
    opened_for: CallSite | None = None
    opened_by: Sequence[CallSite] = ()
    is_tests: bool = False
    is_of_a_fixture: bool = False
    last: Case | None = None
    commits: dict[str, Passed] = field(default_factory=dict)
    call: Call = ()
    origins: dict[CallSite | str | None, tuple[Phase, Call]] = field(default_factory=dict)

    def came_with(self, fact: Fact, phase: Phase) -> None:
        """Note in which call of the test objects come."""
        if isinstance(fact, facts.StatementExecuted):
            self.origins[fact.site] = phase, self.call
        elif isinstance(fact, facts.FlushCompleted):
            self.origins.update(dict.fromkeys(fact.new, (phase, self.call)))

    def were_there(self, finding: Finding) -> bool:
        """Return whether another call of the test than the one that locks brought the objects."""
        if finding.id != "stale-lock":
            return False
        loaded = finding.evidence.get("loaded_at")
        brought: CallSite | str | None = finding.entity
        if loaded is not None:
            brought = next((one for one in self.origins if str(one) == loaded), None)
        came = self.origins.get(brought)
        return came is not None and came != self.origins.get(finding.site)

    def is_opened_for_tests(self, opened: CallSite | None, *, is_kept: bool) -> bool:
        """Return whether the application opened it, at this line, and the tests keep or use it."""
        is_theirs = (self.is_tests or is_kept) and self.opened_for is not None
        return is_theirs and self.case is not None and not self.case.has_line(opened)

    @property
    def is_registered(self) -> bool:
        """Whether a `scoped_session` has its session, or may have it."""
        return self.registry is not None and self.registry() is not None

    @property
    def is_in_a_traceback(self) -> bool:
        """Whether its test has ended with an exception, whose traceback may hold the session."""
        return self.case is not None and self.case.has_raised


class Case:
    """One test. What sessions do in its setup and teardown is not counted."""

    def __init__(
        self,
        nodeid: str,
        own_files: OwnFiles,
        limits: Limits,
        settle: Callable[[], None],
    ) -> None:
        self.nodeid = nodeid
        self.own_files = own_files
        self.limits = limits
        self.settle = settle
        self._phase: Phase = "setup"
        # When the test itself began and ended, in seconds; 0 until then.
        self._began = self._ended = 0.0
        self.counts = BudgetCounts()
        self.reported: list[Reported] = []
        self.failed = False
        # Whether an exception of its own has left it or one of its fixtures, as a skip does too.
        self.has_raised = False
        # The findings that are in no test report yet, and the failure that this plugin raised.
        self.unlisted: list[Finding] = []
        self.raised: BaseException | None = None
        self.headline = ""
        self._opened: dict[str, tuple[Report, Scope]] = {}
        self._sessions: dict[str, SessionCounts] = {}

    @property
    def phase(self) -> Phase:
        """What pytest does with the test now."""
        return self._phase

    @phase.setter
    def phase(self, phase: Phase) -> None:
        if phase == "call":
            self._began = time.perf_counter()
        elif self._began and not self._ended:
            self._ended = time.perf_counter()
        self._phase = phase

    @property
    def took_ms(self) -> float:
        """How long the test itself took so far, without its fixtures."""
        return ((self._ended or time.perf_counter()) - self._began) * 1e3 if self._began else 0.0

    def add(self, fact: Fact, report: Report, scope: Scope) -> None:
        """Count what a session did."""
        id_ = report.ledger.id
        if isinstance(fact, facts.SessionOpened) and scope.case is self:
            self._opened[id_] = report, scope
        if self.phase == "call" and not isinstance(fact, _NOTHING_DONE):
            session = self._sessions.get(id_)
            if session is None:
                session = self._sessions[id_] = SessionCounts(report, fact.at)
            session.add(fact)
            self.counts.add(fact, id_)

    def scope_of(self, id_: str) -> Scope | None:
        """Return the scope with this id if the test opened it, also if it is closed."""
        _, scope = self._opened.get(id_, (None, None))
        return scope

    def repeats(self, report: Report, passed: Passed) -> bool:
        """Return whether the test's own code repeats what happens now, or led to both.

        A test, a fixture or a helper may create or check many objects one by one, or read in the
        session in which it has committed what it needs: the application does not.
        """
        return self.own_files.has(report.ledger.locator.repeated_in(passed, self.own_files.begins))

    def call(self, report: Report) -> Call:
        """Return which call of the test leads to what happens now."""
        return report.ledger.locator.called_by_first(self.own_files.begins)

    def prepares(self, finding: Finding, loop: CallSite | None) -> bool:
        """Return whether the finding is about the cost of what only tests do.

        Fixtures prepare, and a test's own loop may do anything many times.
        """
        line = finding.site if loop is None else loop
        return finding.id in COSTS and (self.is_in_a_fixture() or self.has_line(line))

    def is_in_a_fixture(self) -> bool:
        """Return whether a fixture, or the test's own setUp() or tearDown(), is running."""
        return self.phase != "call" or is_test_setup() or is_test_teardown()

    def has_line(self, site: CallSite | None) -> bool:
        """Return whether a line belongs to the tests."""
        return site is not None and self.own_files.has(site.file)

    def allowed(self, finding: Finding) -> str:
        """Return the reason for which the test may have this finding, or an empty string."""
        for allowance in self.limits.allowances:
            if allowance.holds(finding):
                return allowance.reason
        return ""

    def has(self, finding: Finding) -> bool:
        """Return whether a finding was reported of what another call of the test did alike."""
        return any(_about(one.finding) == _about(finding) for one in self.reported)

    def add_finding(self, reported: Reported) -> None:
        """Add a finding."""
        if reported.state == "allowed":
            return
        self.reported.append(reported)
        if reported.state == "new":
            self.unlisted.append(reported.finding)
        session = self._sessions.get(reported.finding.session_id)
        if session is not None:
            session.findings.append(reported.finding)

    def summaries(self) -> list[SessionSummary]:
        """Return what each session did."""
        return [session.summary() for session in list(self._sessions.values())]

    def open_sessions(self) -> list[LiveSession]:
        """Return the sessions that this test opened and that are still open."""
        return [live for live in live_sessions() if live.id in self._opened]

    def left_open(self) -> Iterator[tuple[Report, Scope]]:
        """The sessions that this test opened and that are still in a transaction.

        If an exception has left it, there are none: it could not close them.
        The code that opened a connection gives it back: a session that is bound to one, and has no
        other, holds nothing.
        """
        for report, scope in [] if self.has_raised else list(self._opened.values()):
            ledger = report.ledger
            is_bound = bool(ledger.borrowed) and not ledger.connections
            if ledger.outcome is None and ledger.transaction_began_at and not is_bound:
                yield report, scope

    def findings_to_fail_for(
        self, fail_from: Severity | None, phases: tuple[Phase, ...]
    ) -> list[Finding]:
        """Return the new findings of these phases with that severity or a higher one."""
        if fail_from is None:
            return []
        severe = _SEVERITIES[_SEVERITIES.index(fail_from) :]
        return [
            one.finding
            for one in self.reported
            if one.phase in phases and one.state == "new" and one.finding.severity in severe
        ]

    def exceeded(self) -> list[str]:
        """Return the exceeded budgets: `statements 15 > 6 (lazy Author.books ×12 at ...)`."""
        return [
            f"{budget} {self.counts.shown(budget)} > {most:g} ({self.counts.main_cause(budget)})"
            for budget, most in self.limits.budgets.items()
            if self.counts[budget] > most
        ]

    def properties(self) -> Iterator[tuple[str, object]]:
        """The properties for a JUnit file: counts and findings."""
        if self._sessions:
            for budget in BUDGETS:
                yield f"session_tracer.{budget}", self.counts.shown(budget)
        for reported in self.reported:
            site = reported.finding.site
            where = "" if site is None else f" {site.path}:{site.line}"
            cost = Cost.of([reported.finding], self.took_ms)
            where += f", {cost}" if cost.noun else ""
            if reported.state == "new":
                yield "session_tracer.finding", reported.finding.id + where


def _about(finding: Finding) -> tuple[object, ...]:
    return finding.id, finding.session_id, finding.site, finding.entity, finding.attribute

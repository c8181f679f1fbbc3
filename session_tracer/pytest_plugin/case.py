"""One test, as its sessions are told of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from session_tracer import facts
from session_tracer.ledger.record import SessionRecord
from session_tracer.ledger.registry import live_sessions
from session_tracer.pytest_plugin.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from session_tracer.facts import Fact
    from session_tracer.ledger.record import SessionSummary
    from session_tracer.model.findings import Finding, Severity
    from session_tracer.model.live_session import LiveSession

__all__ = ["Case", "Drawn", "Phase", "Scope"]

Phase: TypeAlias = Literal["setup", "call", "teardown"]

_SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "error")
# These are told of a session that does nothing itself.
_NOTHING_DONE: Final = (facts.DetachedLoadFailed, facts.TimePassed)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finding, when in its test it was drawn, and whether the baseline knows it."""

    finding: Finding
    phase: Phase
    known: bool


@dataclass(slots=True)
class Scope:
    """What is remembered of a session scope: the test that it belongs to, if to one.

    `shared` says that a fixture wider than one test opened it; `left_open` that its test was said
    to have left it open.
    """

    case: Case | None
    shared: bool
    left_open: bool = False


class Case:
    """One test and what its sessions did; its accounts are of what they did in the call alone."""

    def __init__(self, nodeid: str, budgets: dict[str, int], settle: Callable[[], None]) -> None:
        self.nodeid = nodeid
        self.budgets = budgets
        self.settle = settle
        self.phase: Phase = "setup"
        self.tally = Tally()
        self.drawn: list[Drawn] = []
        self.failed = False
        # The findings that no report has told, and the failure of ours that is to be told.
        self.untold: list[Finding] = []
        self.raised: BaseException | None = None
        self.headline = ""
        self._opened: dict[str, tuple[SessionRecord, Scope]] = {}
        self._accounts: dict[str, tuple[SessionRecord, SessionRecord]] = {}

    def hear(self, fact: Fact, record: SessionRecord, scope: Scope) -> None:
        """Take into account what happened to a session."""
        if isinstance(fact, facts.SessionOpened) and scope.case is self:
            self._opened[record.id] = record, scope
        if self.phase == "call" and not isinstance(fact, _NOTHING_DONE):
            account, _ = self._accounts.setdefault(record.id, (_account(record, fact.at), record))
            account.add(fact)
            self.tally.add(fact, record.id)

    def draw(self, drawn: Drawn) -> None:
        """Take a finding into account."""
        self.drawn.append(drawn)
        if not drawn.known:
            self.untold.append(drawn.finding)
        account, _ = self._accounts.get(drawn.finding.session_id, (None, None))
        if account is not None:
            account.findings.append(drawn.finding)

    def summaries(self) -> list[SessionSummary]:
        """What each session did in the call."""
        return [_summary(account, record) for account, record in list(self._accounts.values())]

    def open_sessions(self) -> list[LiveSession]:
        """The sessions that this test has opened, and that are open now."""
        return [live for live in live_sessions() if live.id in self._opened]

    def left_open(self) -> Iterator[tuple[SessionRecord, Scope]]:
        """The sessions that this test has opened, and that have a transaction open now."""
        for record, scope in list(self._opened.values()):
            if record.outcome is None and record.transaction_began_at:
                yield record, scope

    def blamed(self, fail_from: Severity | None, phases: tuple[Phase, ...]) -> list[Finding]:
        """The findings drawn in these phases for which the test is to fail."""
        if fail_from is None:
            return []
        enough = _SEVERITIES[_SEVERITIES.index(fail_from) :]
        return [
            drawn.finding
            for drawn in self.drawn
            if drawn.phase in phases and not drawn.known and drawn.finding.severity in enough
        ]

    def exceeded(self) -> list[str]:
        """The budgets that were not kept: `statements 15 > 6 (lazy Author.books ×12 at ...)`."""
        counts = self.tally.counts
        return [
            f"{budget} {counts[budget]} > {most} ({self.tally.cause(budget)})"
            for budget, most in self.budgets.items()
            if counts[budget] > most
        ]

    def properties(self) -> Iterator[tuple[str, object]]:
        """What is written into a JUnit file, if one is: counts, and findings."""
        if self._accounts:
            for budget, count in self.tally.counts.items():
                yield f"session_tracer.{budget}", count
        for drawn in self.drawn:
            site = drawn.finding.site
            where = "" if site is None else f" {site.path}:{site.line}"
            if not drawn.known:
                yield "session_tracer.finding", drawn.finding.id + where


def _account(record: SessionRecord, at: int) -> SessionRecord:
    """An account of what a session does from now on."""
    account = SessionRecord(
        record.id,
        record.name,
        is_async=record.is_async,
        epoch=record.epoch,
        timeline_steps=record.settings.timeline_steps,
        settings=record.settings,
    )
    account.opened_at = account.last_activity_at = at
    account.opened_site = record.opened_site
    return account


def _summary(account: SessionRecord, record: SessionRecord) -> SessionSummary:
    summary = replace(
        account.summary(),
        identity_map_peak=record.identity_map_peak,
        transitions=dict(record.transitions),
    )
    if account.outcome is None:
        lasted = (account.last_activity_at - account.opened_at) / 1e6
        summary = replace(summary, duration_ms=lasted)
    return summary

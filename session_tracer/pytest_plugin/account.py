"""Adds up what a session does in one test, which may be a part of all that it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer import facts
from session_tracer.model.counts import add_counts
from session_tracer.model.summary import SessionSummary
from session_tracer.model.timeline import Timeline
from session_tracer.publisher.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from session_tracer.facts import Counts, Database, Fact, Outcome
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding

__all__ = ["Account"]


class Account:
    """What one session does from `at`, in nanoseconds of the facts' clock, on.

    The ledger counts over the whole session scope, which several tests may use.
    """

    __slots__ = (
        "_closed",
        "_counts",
        "_database",
        "_nanoseconds",
        "_numbers",
        "_opened_at",
        "_report",
        "_steps",
        "_timeline",
        "findings",
    )

    def __init__(self, report: Report, at: int) -> None:
        self._report = report
        self._opened_at = at
        self._timeline = Timeline(report.settings.timeline_steps)
        self._steps = Steps(self._timeline, at)
        self._closed: facts.SessionClosed | None = None
        self._database: Database | None = None
        self._numbers: Counts = {}
        self._nanoseconds: dict[str, int] = {"held": 0, "sql": 0}
        self._counts: dict[str, Counts] = {}
        self.findings: list[Finding] = []

    def add(self, fact: Fact) -> None:
        """Take a fact into the account."""
        self._steps.add(fact)
        take = _TAKEN.get(type(fact))
        if take is not None:
            take(self, fact)

    def summary(self) -> SessionSummary:
        """The account as a value.

        The state transitions and the peak of the identity map are those of the whole scope. A
        session that is still open lasts until its last step.
        """
        ledger, closed, numbers = self._report.ledger, self._closed, self._numbers
        outcome: Outcome = "closed" if closed is None else closed.outcome
        until = self._steps.last_at if closed is None else closed.at
        return SessionSummary(
            id=ledger.id,
            name=self._report.name,
            is_async=ledger.is_async,
            outcome=outcome,
            opened_unix_ns=self._opened_at + ledger.epoch,
            opened_site=ledger.opened_site,
            closed_site=None if closed is None else closed.site,
            ending="" if closed is None else closed.ending,
            error="" if closed is None else closed.error,
            database=self._database,
            duration_ms=(until - self._opened_at) / 1e6,
            held_ms=self._nanoseconds["held"] / 1e6,
            sql_ms=self._nanoseconds["sql"] / 1e6,
            statements=numbers.get("statements", 0),
            transactions=numbers.get("transactions", 0),
            savepoints=numbers.get("savepoints", 0),
            commits=numbers.get("committed", 0),
            rollbacks=numbers.get("rolled_back", 0),
            flushes=numbers.get("flushes", 0),
            failed_flushes=numbers.get("failed_flushes", 0),
            loaded=self._of("loaded"),
            new=self._of("new"),
            dirty=self._of("dirty"),
            unchanged=self._of("unchanged"),
            deleted=self._of("deleted"),
            lazy_loads=self._of("lazy_loads"),
            expired=numbers.get("expired", 0),
            expunged=numbers.get("expunged", 0),
            merged=numbers.get("merged", 0),
            pending=0 if closed is None else closed.pending,
            transitions=dict(ledger.transitions),
            identity_map_size=0 if closed is None else closed.identity_map_size,
            identity_map_peak=ledger.identity_map_peak,
            timeline=tuple(self._timeline),
            timeline_left_out=self._timeline.left_out,
            findings=tuple(self.findings),
        )

    def _of(self, what: str) -> Counts:
        return dict(self._counts.get(what, {}))

    def _count(self, what: str, number: int = 1) -> None:
        self._numbers[what] = self._numbers.get(what, 0) + number

    def _add(self, what: str, counts: Counts) -> None:
        add_counts(self._counts.setdefault(what, {}), counts)

    def _end(self, fact: facts.SessionClosed) -> None:
        self._closed = fact

    def _began(self, fact: facts.TransactionBegan) -> None:
        self._count("savepoints" if fact.nested else "transactions")

    def _ended(self, fact: facts.TransactionEnded) -> None:
        if not fact.nested:
            self._count(fact.outcome)

    def _acquired(self, fact: facts.ConnectionAcquired) -> None:
        self._database = fact.database

    def _released(self, fact: facts.ConnectionReleased) -> None:
        self._nanoseconds["held"] += fact.held

    def _executed(self, fact: facts.StatementExecuted) -> None:
        self._count("statements")
        self._nanoseconds["sql"] += fact.duration

    def _loads(self, fact: facts.AttributeLoaded) -> None:
        self._add("lazy_loads", {fact.kind: 1})

    def _loaded(self, fact: facts.ObjectsLoaded) -> None:
        self._add("loaded", fact.loaded)

    def _flushed(self, fact: facts.FlushCompleted) -> None:
        self._count("flushes")
        self._add("new", fact.new)
        self._add("dirty", fact.dirty)
        self._add("unchanged", fact.unchanged)
        self._add("deleted", fact.deleted)

    def _flush_failed(self, _: facts.FlushFailed) -> None:
        self._count("failed_flushes")

    def _expired(self, fact: facts.ObjectsExpired) -> None:
        self._count("expired", fact.count)

    def _expunged(self, fact: facts.ObjectsExpunged) -> None:
        self._count("expunged", fact.count)

    def _merged(self, _: facts.ObjectMerged) -> None:
        self._count("merged")


_TAKEN: Final[Mapping[type, Callable[[Account, Any], None]]] = {
    facts.SessionClosed: Account._end,
    facts.TransactionBegan: Account._began,
    facts.TransactionEnded: Account._ended,
    facts.ConnectionAcquired: Account._acquired,
    facts.ConnectionReleased: Account._released,
    facts.StatementExecuted: Account._executed,
    facts.AttributeLoaded: Account._loads,
    facts.ObjectsLoaded: Account._loaded,
    facts.FlushCompleted: Account._flushed,
    facts.FlushFailed: Account._flush_failed,
    facts.ObjectsExpired: Account._expired,
    facts.ObjectsExpunged: Account._expunged,
    facts.ObjectMerged: Account._merged,
}

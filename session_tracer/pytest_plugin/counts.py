"""Counts what sessions do in one test: for each session, and for each budget with its causes."""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING, Final, TypeAlias

from session_tracer import facts
from session_tracer.model.summary import SessionSummary
from session_tracer.model.timeline import Timeline
from session_tracer.publisher.steps import Steps
from session_tracer.pytest_plugin.budgets import COUNTS, TIMES

if TYPE_CHECKING:
    from session_tracer.facts import Database, Fact
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = ["BudgetCounts", "SessionCounts"]

# What was done, and where.
_Cause: TypeAlias = "tuple[str, CallSite | None]"

_FLUSHES: Final = {
    "explicit": "flush",
    "autoflush": "autoflush",
    "commit": "flush at commit",
    "savepoint": "flush at savepoint",
}


class SessionCounts:
    """What one session does in one test, from its first fact in the test on.

    The ledger counts over the whole session scope, which several tests may use.
    """

    def __init__(self, report: Report, at: int) -> None:
        self._report = report
        self._opened_at = at
        self._timeline = Timeline(report.settings.timeline_steps)
        self._steps = Steps(self._timeline, at)
        self._closed: facts.SessionClosed | None = None
        self._database: Database | None = None
        self._numbers: Counter[str] = Counter()
        self._loaded: Counter[str] = Counter()
        self._new: Counter[str] = Counter()
        self._dirty: Counter[str] = Counter()
        self._unchanged: Counter[str] = Counter()
        self._deleted: Counter[str] = Counter()
        self._lazy_loads: Counter[str] = Counter()
        self.findings: list[Finding] = []

    def add(self, fact: Fact) -> None:
        """Count a fact."""
        self._steps.add(fact)
        numbers = self._numbers
        match fact:
            case facts.SessionClosed():
                self._closed = fact
            case facts.TransactionBegan():
                numbers["savepoints" if fact.nested else "transactions"] += 1
            case facts.TransactionEnded(nested=False):
                numbers[fact.outcome] += 1
            case facts.ConnectionAcquired():
                self._database = fact.database
            case facts.ConnectionReleased():
                numbers["held_ns"] += fact.held
            case facts.StatementExecuted():
                numbers["statements"] += 1
                numbers["sql_ns"] += fact.duration
            case facts.AttributeLoaded():
                self._lazy_loads[fact.kind] += 1
            case facts.ObjectsLoaded():
                self._loaded.update(fact.loaded)
            case facts.FlushCompleted():
                numbers["flushes"] += 1
                self._new.update(fact.new)
                self._dirty.update(fact.dirty)
                self._unchanged.update(fact.unchanged)
                self._deleted.update(fact.deleted)
            case facts.FlushFailed():
                numbers["failed_flushes"] += 1
            case facts.ObjectsExpired():
                numbers["expired"] += fact.count
            case facts.ObjectsExpunged():
                numbers["expunged"] += fact.count
            case facts.ObjectMerged():
                numbers["merged"] += 1

    def summary(self) -> SessionSummary:
        """Return the counts as a value.

        The state transitions and the peak of the identity map are those of the whole scope. The
        duration of a session that is still open is the time until its last step.
        """
        ledger, closed, numbers = self._report.ledger, self._closed, self._numbers
        until = self._steps.last_at if closed is None else closed.at
        return SessionSummary(
            id=ledger.id,
            name=self._report.name,
            is_async=ledger.is_async,
            outcome="closed" if closed is None else closed.outcome,
            opened_unix_ns=self._opened_at + ledger.epoch,
            opened_site=ledger.opened_site,
            closed_site=None if closed is None else closed.site,
            ending="" if closed is None else closed.ending,
            error="" if closed is None else closed.error,
            database=self._database,
            duration_ms=(until - self._opened_at) / 1e6,
            held_ms=numbers["held_ns"] / 1e6,
            sql_ms=numbers["sql_ns"] / 1e6,
            statements=numbers["statements"],
            transactions=numbers["transactions"],
            savepoints=numbers["savepoints"],
            commits=numbers["committed"],
            rollbacks=numbers["rolled_back"],
            flushes=numbers["flushes"],
            failed_flushes=numbers["failed_flushes"],
            loaded=dict(self._loaded),
            new=dict(self._new),
            dirty=dict(self._dirty),
            unchanged=dict(self._unchanged),
            deleted=dict(self._deleted),
            lazy_loads=dict(self._lazy_loads),
            expired=numbers["expired"],
            expunged=numbers["expunged"],
            merged=numbers["merged"],
            pending=0 if closed is None else closed.pending,
            transitions=dict(ledger.transitions),
            identity_map_size=0 if closed is None else closed.identity_map_size,
            identity_map_peak=ledger.identity_map_peak,
            timeline=tuple(self._timeline),
            timeline_left_out=self._timeline.left_out,
            findings=tuple(self.findings),
        )


class BudgetCounts:
    """One number for each budget, with what caused it."""

    def __init__(self) -> None:
        self._causes: dict[str, Counter[_Cause]] = {budget: Counter() for budget in COUNTS}
        # Nanoseconds in statements: added up, and of the slowest one.
        self._sql: Counter[_Cause] = Counter()
        self._slowest: tuple[int, _Cause] = (0, ("", None))
        # The load that the next statement of a session makes, by the session's id.
        self._loads: dict[str, str] = {}

    def __getitem__(self, budget: str) -> float:
        """Return a count, or milliseconds."""
        if budget not in TIMES:
            return self._causes[budget].total()
        return (self._sql.total() if budget == "sql_ms" else self._slowest[0]) / 1e6

    def shown(self, budget: str) -> str:
        """Return the number as text: a count, or milliseconds such as `81.2`."""
        return f"{self[budget]:.1f}" if budget in TIMES else f"{self[budget]}"

    def add(self, fact: Fact, session_id: str) -> None:
        """Count a fact of a session."""
        match fact:
            case facts.SessionOpened():
                self._count("sessions", "opened", fact.site)
            case facts.TransactionEnded(nested=False, outcome="committed"):
                self._count("commits", "commit", fact.site)
            case facts.FlushCompleted() | facts.FlushFailed():
                self._count("flushes", _FLUSHES[fact.trigger], fact.site)
            case facts.AttributeLoaded():
                verb = "lazy" if fact.kind == "relationship" else fact.kind
                load = f"{verb} {fact.entity}.{fact.attribute}".removesuffix(".")
                self._loads[session_id] = load
                if fact.kind != "refresh":
                    self._count("lazy_loads", load, fact.site)
            case facts.StatementExecuted():
                cause = self._loads.pop(session_id, "") or _statement(fact)
                self._count("statements", cause, fact.site)
                self._sql[cause, fact.site] += fact.duration
                self._slowest = max(
                    self._slowest, (fact.duration, (cause, fact.site)), key=itemgetter(0)
                )
            case facts.ObjectsLoaded():
                for entity, number in fact.loaded.items():
                    self._count("loaded", entity, fact.site, number)

    def main_cause(self, budget: str) -> str:
        """Return what contributes most to a number: `lazy Author.books ×12 at app/report.py:33`."""
        if budget == "slowest_statement_ms":
            return _at(*self._slowest[1])
        if budget == "sql_ms":
            ((cause, took),) = self._sql.most_common(1)
            times = f"{_times(self._causes['statements'][cause])}, {took / 1e6:.1f} ms"
        else:
            ((cause, number),) = self._causes[budget].most_common(1)
            times = _times(number)
        return _at(cause[0] + times, cause[1])

    def _count(self, budget: str, cause: str, site: CallSite | None, number: int = 1) -> None:
        self._causes[budget][cause, site] += number


def _statement(fact: facts.StatementExecuted) -> str:
    if fact.eager:
        return f"eager {fact.eager}"
    return f"{fact.operation.lower()} {fact.entity or fact.collection}".strip() or "statement"


def _times(number: int) -> str:
    return f" ×{number}" if number > 1 else ""


def _at(cause: str, site: CallSite | None) -> str:
    return cause if site is None else f"{cause} at {site.path}:{site.line}"

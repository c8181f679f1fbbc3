"""The running account of one session scope."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from session_tracer import facts
from session_tracer.ledger.uncommitted import Uncommitted
from session_tracer.model.findings import Finding
from session_tracer.publisher.timeline import (
    NO_TIMELINE,
    NOTHING,
    Timeline,
    add_counts,
    with_counts,
)
from session_tracer.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from session_tracer.facts import Counts, Database, Fact, Outcome
    from session_tracer.model.findings import Severity
    from session_tracer.publisher.timeline import Step
    from session_tracer.where.callsite import CallSite

__all__ = ["SELECTS_KEPT", "SIZES_KEPT", "SessionRecord", "SessionSummary"]

SELECTS_KEPT: Final = 4
# Of the first commits, and of the last.
SIZES_KEPT: Final = 3

_DEFAULTS: Final = Settings()


class SessionRecord:
    """What one session scope did so far. Times are nanoseconds of the tracer's monotonic clock.

    Detectors and signals read it; only the tracer adds to it.
    """

    __slots__ = (
        "_keeps_steps",
        "_load",
        "_step",
        "closed_at",
        "closed_site",
        "commits",
        "database",
        "deleted",
        "dirty",
        "ending",
        "epoch",
        "error",
        "expired",
        "expunged",
        "failed_flushes",
        "findings",
        "first_began",
        "first_flush",
        "first_flush_ended",
        "first_selects",
        "flush_began",
        "flushes",
        "held",
        "held_since",
        "id",
        "identity_map_peak",
        "identity_map_size",
        "is_async",
        "is_joined",
        "last_activity_at",
        "last_activity_site",
        "last_held",
        "last_load",
        "last_select",
        "last_statement",
        "last_statement_at",
        "last_statement_site",
        "last_write",
        "lazy_loads",
        "left_site",
        "loaded",
        "merged",
        "misuses",
        "name",
        "new",
        "open_savepoints",
        "opened_at",
        "opened_site",
        "outcome",
        "pending",
        "refused",
        "rollbacks",
        "savepoints",
        "settings",
        "silenced",
        "sizes",
        "span_context",
        "sql",
        "statements",
        "timeline",
        "transaction_began_at",
        "transaction_began_site",
        "transactions",
        "transitions",
        "unchanged",
        "uncommitted",
    )

    def __init__(
        self,
        id_: str,
        name: str,
        *,
        is_async: bool = False,
        epoch: int = 0,
        timeline_steps: int = 60,
        settings: Settings = _DEFAULTS,
    ) -> None:
        self.id = id_
        self.name = name
        self.settings = settings
        self.is_async = is_async
        # Whether it takes part in a transaction of its connection's, as test fixtures have it.
        self.is_joined = False
        # What to add to a monotonic time to get nanoseconds since 1970.
        self.epoch = epoch
        self._keeps_steps = timeline_steps > 0
        self.timeline = Timeline(timeline_steps) if timeline_steps else NO_TIMELINE
        self.findings: list[Finding] = []
        # What is to be raised as `SessionMisuse`.
        self.misuses: list[Finding] = []
        # What was silenced where the scope was opened.
        self.silenced: frozenset[str] = frozenset()
        # Trace and span id of the innermost open span, where one is recording.
        self.span_context: tuple[int, int] | None = None
        self.opened_at = 0
        self.opened_site: CallSite | None = None
        self.closed_at = 0
        self.closed_site: CallSite | None = None
        self.ending = ""
        self.outcome: Outcome | None = None
        self.error = ""
        self.database: Database | None = None
        self.transactions = 0
        self.savepoints = 0
        self.open_savepoints = 0
        # 0 while no transaction is open, no connection held, nothing was done.
        self.transaction_began_at = 0
        self.transaction_began_site: CallSite | None = None
        self.held_since = 0
        self.last_activity_at = 0
        self.last_activity_site: CallSite | None = None
        # Where it did something last before it ended, if it had begun a transaction.
        self.left_site: CallSite | None = None
        self.last_statement_at = 0
        self.last_statement_site: CallSite | None = None
        # The last statement, the load that it was for if it was for one, and the mapped class of
        # the SELECT that it belongs to: what eager loaders read belongs to the one before.
        self.last_statement: facts.StatementExecuted | None = None
        self.last_load: facts.AttributeLoaded | None = None
        self.last_select = ""
        # The first few SELECTs of the application's own, and the first transaction's beginning.
        self.first_selects: list[facts.StatementExecuted] = []
        self.first_began: facts.TransactionBegan | None = None
        # The first flush with content, and the end of its transaction.
        self.first_flush: facts.FlushCompleted | None = None
        self.first_flush_ended: facts.TransactionEnded | None = None
        # The flush that is writing, or the last one that did.
        self.flush_began: facts.FlushBegan | None = None
        # The last flush or commit, as long as nothing but refreshes has run since.
        self.last_write: facts.FlushCompleted | facts.TransactionEnded | None = None
        self.commits = 0
        self.rollbacks = 0
        self.flushes = 0
        self.failed_flushes = 0
        self.statements = 0
        self.sql = 0
        self.held = 0
        # How long the open transaction, or the last one, held the last connection it gave back.
        self.last_held = 0
        self.expired = 0
        self.expunged = 0
        self.merged = 0
        self.refused = 0
        self.pending = 0
        self.identity_map_size = 0
        self.identity_map_peak = 0
        # How large the identity map was after the first few commits, and the last few.
        self.sizes: list[int] = []
        self.loaded: Counts = NOTHING
        self.new: Counts = NOTHING
        self.dirty: Counts = NOTHING
        self.unchanged: Counts = NOTHING
        self.deleted: Counts = NOTHING
        self.lazy_loads: Counts = NOTHING
        # What was flushed and not committed; None where nothing ever was.
        self.uncommitted: Uncommitted | None = None
        # Object state transitions by SQLAlchemy's event name, counted where they happen.
        self.transitions: Counts = NOTHING
        self._step: Step | None = None
        self._load: facts.AttributeLoaded | None = None

    @property
    def wrote(self) -> bool:
        """Whether a flush wrote anything."""
        return bool(self.new or self.dirty or self.deleted)

    def finding(
        self,
        id_: str,
        severity: Severity,
        message: str,
        remedy: str,
        site: CallSite | None,
        *,
        entity: str | None = None,
        attribute: str | None = None,
        count: int = 1,
        evidence: Mapping[str, Any] | None = None,
    ) -> Finding:
        """A finding about this scope."""
        return Finding(
            id=id_,
            severity=severity,
            message=message,
            remedy=remedy,
            site=site,
            session_id=self.id,
            session_name=self.name,
            session_site=self.opened_site,
            entity=entity,
            attribute=attribute,
            count=count,
            evidence=evidence or {},
        )

    def was_said(self, id_: str) -> bool:
        """Whether a finding of that id was said of this scope."""
        return any(finding.id == id_ for finding in self.findings)

    def add(self, fact: Fact) -> None:
        """Take a fact into the account."""
        adder = ADDERS.get(type(fact))
        if adder is not None:
            adder(self, fact)

    def summary(self) -> SessionSummary:
        """The account as a value that outlives the session."""
        return SessionSummary(
            id=self.id,
            name=self.name,
            is_async=self.is_async,
            outcome=self.outcome or "closed",
            opened_unix_ns=self.opened_at + self.epoch,
            opened_site=self.opened_site,
            closed_site=self.closed_site,
            ending=self.ending,
            error=self.error,
            database=self.database,
            duration_ms=(self.closed_at - self.opened_at) / 1e6,
            held_ms=self.held / 1e6,
            sql_ms=self.sql / 1e6,
            statements=self.statements,
            transactions=self.transactions,
            savepoints=self.savepoints,
            commits=self.commits,
            rollbacks=self.rollbacks,
            flushes=self.flushes,
            failed_flushes=self.failed_flushes,
            loaded=dict(self.loaded),
            new=dict(self.new),
            dirty=dict(self.dirty),
            unchanged=dict(self.unchanged),
            deleted=dict(self.deleted),
            lazy_loads=dict(self.lazy_loads),
            expired=self.expired,
            expunged=self.expunged,
            merged=self.merged,
            pending=self.pending,
            transitions=dict(self.transitions),
            identity_map_size=self.identity_map_size,
            identity_map_peak=self.identity_map_peak,
            timeline=tuple(self.timeline),
            timeline_left_out=self.timeline.left_out,
            findings=tuple(self.findings),
        )

    def _opened(self, fact: facts.SessionOpened) -> None:
        self.opened_at = self.last_activity_at = fact.at
        self.opened_site = self.last_activity_site = fact.site

    def _closed(self, fact: facts.SessionClosed) -> None:
        self.closed_at = fact.at
        self.closed_site = fact.site
        self.ending = fact.ending
        self.outcome = fact.outcome
        self.error = fact.error
        self.identity_map_size = fact.identity_map_size
        self.pending = fact.pending
        if self.transactions:
            self.left_site = self.last_activity_site
        self._did(fact.at, fact.ending, "", fact.site, error=fact.error)

    def _began(self, fact: facts.TransactionBegan) -> None:
        if fact.nested:
            self.savepoints += 1
            self.open_savepoints += 1
            self._take(fact)
            self._did(fact.at, "savepoint", "", fact.site)
        else:
            self.transactions += 1
            self.transaction_began_at = fact.at
            self.transaction_began_site = fact.site
            self.first_began = self.first_began or fact
            self.last_held = 0
            if self.uncommitted is not None:
                self.uncommitted.take(fact)
            self._did(fact.at, "begin", "two-phase" if fact.two_phase else "", fact.site)

    def _ended(self, fact: facts.TransactionEnded) -> None:
        if fact.nested:
            self.open_savepoints = max(0, self.open_savepoints - 1)
            self._take(fact)
            verb = "release" if fact.outcome == "committed" else "rollback to savepoint"
        else:
            self.transaction_began_at = 0
            self.transaction_began_site = None
            if self.uncommitted is not None:
                self.uncommitted.take(fact)
            verb = _ENDINGS.get(fact.outcome, "end")
            self.last_write = None
            if self.first_flush is not None and self.first_flush_ended is None:
                self.first_flush_ended = fact
            if fact.outcome == "committed":
                self.commits += 1
                self.last_write = fact
                if len(self.sizes) == 2 * SIZES_KEPT:
                    del self.sizes[SIZES_KEPT]
                self.sizes.append(fact.size)
            elif fact.outcome == "rolled_back":
                self.rollbacks += 1
        if verb == "end" and not fact.error:
            return  # closing the session says it
        self._did(fact.at - fact.took, verb, "", fact.site, fact.took, fact.error)

    def _acquired(self, fact: facts.ConnectionAcquired) -> None:
        self.database = fact.database
        self.is_joined = self.is_joined or fact.joined
        if not self.held_since:
            self.held_since = fact.at

    def _released(self, fact: facts.ConnectionReleased) -> None:
        self.held += fact.held
        self.last_held = fact.held
        self.held_since = 0

    def _executed(self, fact: facts.StatementExecuted) -> None:
        self.statements += 1
        self.sql += fact.duration
        self.last_activity_at = self.last_statement_at = fact.at
        self.last_activity_site = self.last_statement_site = fact.site
        load, self._load = self._load, None
        self.last_statement = fact
        self.last_load = load
        if load is None and fact.fingerprint and len(self.first_selects) < SELECTS_KEPT:
            self.first_selects.append(fact)
        if not fact.eager:
            self.last_select = fact.entity if load is None else ""
        if fact.in_flush or fact.operation in _SAVEPOINT_OPERATIONS:
            return
        # refresh(author, ["books"]) may have an eager loader read with it.
        if not fact.eager and (load is None or load.kind != "refresh"):
            self.last_write = None
        # What began it, not what ended it, is when the session did something.
        began = self.last_activity_at = fact.at - fact.duration
        if not self._keeps_steps:
            return
        if load is not None:
            verb: str = "lazy" if load.kind == "relationship" else load.kind
            subject = _dotted(load.entity, load.attribute)
        else:
            verb = "eager" if fact.eager else fact.operation.lower() or "execute"
            subject = fact.eager or fact.entity or fact.collection
        self._did(began, verb, subject, fact.site, fact.duration, fact.error)

    def _attribute_loaded(self, fact: facts.AttributeLoaded) -> None:
        self.lazy_loads = with_counts(self.lazy_loads, {fact.kind: 1})
        self._load = fact  # the statement that follows is the one that did it

    def _objects_loaded(self, fact: facts.ObjectsLoaded) -> None:
        self.loaded = with_counts(self.loaded, fact.loaded)
        if self._step is not None:
            add_counts(self._step.loaded, fact.loaded)

    def _flush_began(self, fact: facts.FlushBegan) -> None:
        self.flush_began = fact

    def _flush_completed(self, fact: facts.FlushCompleted) -> None:
        self.flushes += 1
        self._take(fact)
        if fact.new or fact.dirty or fact.deleted:
            self.last_write = fact
            self.first_flush = self.first_flush or fact
        self.new = with_counts(self.new, fact.new)
        self.dirty = with_counts(self.dirty, fact.dirty)
        self.unchanged = with_counts(self.unchanged, fact.unchanged)
        self.deleted = with_counts(self.deleted, fact.deleted)
        step = self._flushed(fact, "")
        if step is not None:
            add_counts(step.unchanged, fact.unchanged)

    def _flush_failed(self, fact: facts.FlushFailed) -> None:
        self.failed_flushes += 1
        self._flushed(fact, fact.error)

    def _flushed(self, fact: facts.FlushCompleted | facts.FlushFailed, error: str) -> Step | None:
        began = fact.at - fact.duration
        step = self._did(began, "flush", fact.trigger, fact.site, fact.duration, error)
        if step is not None:
            add_counts(step.new, fact.new)
            add_counts(step.dirty, fact.dirty)
            add_counts(step.deleted, fact.deleted)
        return step

    def _take(
        self, fact: facts.FlushCompleted | facts.TransactionBegan | facts.TransactionEnded
    ) -> None:
        if self.uncommitted is None:
            self.uncommitted = Uncommitted()
        self.uncommitted.take(fact)

    def _objects_expired(self, fact: facts.ObjectsExpired) -> None:
        self.expired += fact.count
        self._did(fact.at, "expire", "", fact.site)

    def _objects_expunged(self, fact: facts.ObjectsExpunged) -> None:
        self.expunged += fact.count
        self._did(fact.at, "expunge", "", fact.site)

    def _merged_object(self, fact: facts.ObjectMerged) -> None:
        self.merged += 1
        self._did(fact.at, "merge", fact.entity, fact.site)

    def _load_refused(self, fact: facts.LoadRefused) -> None:
        self.refused += 1
        self._did(fact.at, "refused", _dotted(fact.entity, fact.attribute), fact.site)

    def _did(
        self,
        at: int,
        verb: str,
        subject: str,
        site: CallSite | None,
        took: int = 0,
        error: str = "",
    ) -> Step | None:
        """The session did something; its step, where steps are kept."""
        self.last_activity_at = at
        self.last_activity_site = site
        if not self._keeps_steps:
            return None
        step = self._step = self.timeline.add(at - self.opened_at, verb, subject, site)
        step.duration += took
        step.error = error or step.error
        return step


_ENDINGS: Final = {"committed": "commit", "rolled_back": "rollback"}
_SAVEPOINT_OPERATIONS: Final = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK"})

# How each type of fact is taken into the account.
ADDERS: Final[Mapping[type, Callable[[SessionRecord, Any], None]]] = {
    facts.SessionOpened: SessionRecord._opened,
    facts.SessionClosed: SessionRecord._closed,
    facts.TransactionBegan: SessionRecord._began,
    facts.TransactionEnded: SessionRecord._ended,
    facts.ConnectionAcquired: SessionRecord._acquired,
    facts.ConnectionReleased: SessionRecord._released,
    facts.StatementExecuted: SessionRecord._executed,
    facts.AttributeLoaded: SessionRecord._attribute_loaded,
    facts.ObjectsLoaded: SessionRecord._objects_loaded,
    facts.FlushBegan: SessionRecord._flush_began,
    facts.FlushCompleted: SessionRecord._flush_completed,
    facts.FlushFailed: SessionRecord._flush_failed,
    facts.ObjectsExpired: SessionRecord._objects_expired,
    facts.ObjectsExpunged: SessionRecord._objects_expunged,
    facts.ObjectMerged: SessionRecord._merged_object,
    facts.LoadRefused: SessionRecord._load_refused,
}


def _dotted(entity: str, attribute: str) -> str:
    return f"{entity}.{attribute}" if attribute else entity


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSummary:
    """One session scope, told as a whole when it ends.

    Durations are milliseconds, `opened_unix_ns` is nanoseconds since 1970. `held_ms` is how long
    connections were held, `sql_ms` the part of it spent in the driver's execute calls. `loaded`,
    `new`, `dirty`, `unchanged` and `deleted` count objects by mapped class, `lazy_loads` loads by
    kind, `transitions` objects by SQLAlchemy's lifecycle event. `pending` is what was added and
    never flushed. `timeline` holds the first and last steps, `timeline_left_out` counts the others.
    """

    id: str
    name: str
    is_async: bool
    outcome: Outcome
    opened_unix_ns: int
    opened_site: CallSite | None
    closed_site: CallSite | None
    ending: str
    error: str
    database: Database | None
    duration_ms: float
    held_ms: float
    sql_ms: float
    statements: int
    transactions: int
    savepoints: int
    commits: int
    rollbacks: int
    flushes: int
    failed_flushes: int
    loaded: Counts = field(default_factory=dict)
    new: Counts = field(default_factory=dict)
    dirty: Counts = field(default_factory=dict)
    unchanged: Counts = field(default_factory=dict)
    deleted: Counts = field(default_factory=dict)
    lazy_loads: Counts = field(default_factory=dict)
    expired: int = 0
    expunged: int = 0
    merged: int = 0
    pending: int = 0
    transitions: Counts = field(default_factory=dict)
    identity_map_size: int = 0
    identity_map_peak: int = 0
    timeline: tuple[Step, ...] = ()
    timeline_left_out: int = 0
    findings: tuple[Finding, ...] = ()

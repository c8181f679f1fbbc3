"""The account of one session scope, written by the hooks as things happen.

It has three kinds of readers. Signals read its totals. Detectors are called with a fact where one
of its counters crosses a threshold (`judge`), and where something rare happens (`suspect`): on the
quiet path no fact is made. A publisher, which exists only where the code that uses session_tracer
asked for facts, gets every fact. Detectors never depend on a publisher, so that a finding cannot
depend on who listens.
"""

from __future__ import annotations

import random
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from session_tracer import facts
from session_tracer.ledger import object_counter, same_owner
from session_tracer.ledger.gates import Gates
from session_tracer.ledger.guard import reporting
from session_tracer.ledger.in_progress import OpenTransaction
from session_tracer.ledger.loads import Load, Loads
from session_tracer.ledger.origin import Origin, Scope
from session_tracer.ledger.registry import LIVE, LedgerRef
from session_tracer.ledger.single_rows import SingleRows
from session_tracer.ledger.uncommitted import Uncommitted
from session_tracer.ledger.use import Use
from session_tracer.model.counts import NOTHING, by_name, total, with_counts
from session_tracer.runtime import process, threads
from session_tracer.where import owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from session_tracer.facts import Counts, Database, Ending, Expiry, Fact, Outcome
    from session_tracer.ledger.in_progress import Flush, Holding
    from session_tracer.ledger.object_counter import Counter
    from session_tracer.ledger.origin import Route
    from session_tracer.ledger.report import Attached, Publisher, Report, Tracer
    from session_tracer.ledger.single_rows import Run
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.except_finder import Failure
    from session_tracer.where.owner import Owner

__all__ = ["SIZES_KEPT", "Closing", "Ledger", "Opening"]

# Of the first commits, and of the last.
SIZES_KEPT: Final = 3

_IDS = random.Random()
process.in_child(_IDS.seed)

# Held while it changes which tracers report an open scope.
_HANDING: Final = process.PerProcess(threads.RLock)
_TAKEN: Final = ("collected", "exit")
_EXPIRING: Final = frozenset({"expired", "relationship", "deferred"})


class Closing(NamedTuple):
    """How a session was closed that is used again: where, and by which thread or task."""

    ending: Ending | Literal[""]
    site: CallSite | None
    owner: Owner


class Opening:
    """What is known of a session that has not been used yet; times in nanoseconds.

    `handled` recognises the exception that was being handled: it is not one that leaves the block.
    `closing` is how it was closed, if it was. `at` is 0 where the opening was not seen.
    """

    __slots__ = ("at", "closing", "context", "handled", "is_async", "owner", "site", "tracers")

    def __init__(
        self,
        tracers: tuple[Tracer, ...],
        at: int,
        site: CallSite | None,
        *,
        is_async: bool,
        closing: Closing | None = None,
    ) -> None:
        self.tracers = tracers
        self.at = at
        self.closing = closing
        self.site = site
        self.is_async = is_async
        self.owner = owner.current()
        self.context = tracers[0].context()
        error = sys.exc_info()[1]
        self.handled = _never if error is None else _recognising(error)


class Ledger(Use):
    """What one session scope did so far. Times are nanoseconds of the tracers' monotonic clock.

    Hooks write it; detectors and signals read it. An attribute keeps the class's value, which costs
    nothing, until something changes it; a class's dictionary or tuple is never changed in place.
    """

    # The scope, and the tracers that report it.
    tracers: tuple[Tracer, ...] = ()
    reports: tuple[Report, ...] = ()
    publishers: tuple[Publisher, ...] = ()
    gates: Gates
    announces_statements = False
    id = ""
    is_open = True
    # Until its reports are made, other threads only note which tracers shall report it.
    is_beginning = True
    origin: Origin
    # What to add to a monotonic time to get nanoseconds since 1970.
    epoch = 0
    caller: tuple[int, int] = (0, 0)
    context: Any = None
    # What stands for the factory: an async_sessionmaker has no class of its own.
    kind: tuple[type, int] = (object, 0)
    handled: Callable[[BaseException], bool]
    opened_at = 0
    opened_site: CallSite | None = None
    # A scope that begins on a session that was closed before.
    is_reopened = False
    closed_at = 0
    closed_site: CallSite | None = None
    ending: Ending | Literal[""] = ""
    outcome: Outcome | None = None
    error = ""
    # Where the last activity was before the scope ended, if it had begun a transaction.
    left_site: CallSite | None = None
    last_activity_at = 0
    last_activity_site: CallSite | None = None

    # Transactions and connections; a time is 0 while there is none.
    is_used = False
    last_outcome: Outcome = "closed"
    transactions = 0
    savepoints = 0
    open_savepoints = 0
    # How many transactions and savepoints have ended.
    ended = 0
    commits = 0
    rollbacks = 0
    transaction_began_at = 0
    transaction_began_site: CallSite | None = None
    # The first transaction's trace, and the outermost task and the owner that began it.
    first_began: tuple[int, Owner, Owner] | None = None
    # What the scope had run before the open transaction.
    statements_before = 0
    sql_before = 0
    database: Database | None = None
    # Whether a transaction manager ends its transactions.
    is_managed = False
    held_since = 0
    held = 0
    # How long the open transaction, or the last one, held the last connection it gave back.
    last_held = 0

    # Statements.
    statements = 0
    sql = 0
    is_streaming = False
    last_statement_at = 0
    last_statement_site: CallSite | None = None
    # The last statement: its verb, its eager loader, the load that it was for if it was for one.
    last_operation = "SELECT"
    last_eager = ""
    last_load: Load | None = None
    # The mapped class of the last SELECT of the application's own.
    last_select = ""
    # The first few SELECTs of the application's own: rows, then facts once a detector is called.
    first_selects: tuple[Any, ...] = ()
    loads: Loads | None = None
    # Whether the last load was a refresh() of what was just written.
    is_refreshing = False
    single_rows: SingleRows | None = None
    # The last row that was written by a statement of its own, and how many there are of its kind;
    # `single_rows` has the first `row_folded` of them.
    row_run: Run | None = None
    row_count = 0
    row_folded = 0
    # The last statement of the flush of this number, if it may be repeated for other rows, and
    # whether it writes one row each time.
    repeated = ""
    repeated_in = -1
    repeats_rows = False
    # Whether code that runs during a statement could see which context is in force.
    attaches = False

    # Flushes.
    flushes = 0
    failed_flushes = 0
    # Which flush is writing, or was the last one that did.
    flush_number = 0
    failure: Failure | None = None
    # The first flush that failed since a transaction or savepoint ended.
    failed_flush: facts.FlushFailed | None = None
    # What the open transaction has written: objects, rows, and what a commit is compared by.
    written: Counts = NOTHING
    committing_rows = 0
    committing: Counts = NOTHING
    # The first commit of writes: its line, its rows, its objects.
    first_commit: tuple[CallSite | None, int, Counts] | None = None
    # The last flush or commit, and its line, as long as nothing but refreshes has run since.
    last_write: tuple[str, CallSite | None] | None = None
    uncommitted: Uncommitted | None = None

    # Objects.
    counter: Counter = object_counter.NOTHING_LOADED
    load_site: CallSite | None = None
    route: Route | None = None
    size_before = 0
    at_once = 0
    in_portions = False
    sweeps_seen = 0
    identity_map_size = 0
    identity_map_peak = 0
    # How large the identity map was after the first few commits, and the last few.
    sizes: tuple[int, ...] = ()
    loaded: Counts = NOTHING
    new: Counts = NOTHING
    dirty: Counts = NOTHING
    unchanged: Counts = NOTHING
    deleted: Counts = NOTHING
    lazy_loads: Counts = NOTHING
    # Object state transitions by SQLAlchemy's event name.
    transitions: Counts = NOTHING
    # What was added and is not flushed, by mapped class, and where the last of it was.
    pending_by_class: dict[type, int]
    added_site: CallSite | None = None
    expired = 0
    expunged = 0
    merged = 0
    refused = 0
    pending = 0

    def __init__(
        self, tracers: tuple[Tracer, ...], *, is_async: bool, clock: Callable[[], int]
    ) -> None:
        self.tracers = tracers
        self.is_async = is_async
        self.clock = clock
        self.locator = tracers[0].locator
        self.gates = tracers[0].gates
        self.pending_by_class = {}

    @classmethod
    def of_ended(cls, scope: Scope, tracer: Tracer, epoch: int) -> Ledger:
        """The ledger of a scope that has ended, for what its objects are refused after it."""
        ledger = cls((tracer,), is_async=scope.is_async, clock=time.perf_counter_ns)
        ledger.scope = scope
        ledger.id = scope.id
        ledger.opened_site = scope.opened_site
        ledger.epoch = epoch
        ledger.context = tracer.context()
        return ledger

    @property
    def name(self) -> str:
        """The name that the nearest tracer gives the factory."""
        return self.tracers[0].name

    @property
    def wrote(self) -> bool:
        """Whether a flush wrote anything."""
        return bool(self.new or self.dirty or self.deleted)

    # The scope.

    def begin(self, session: Session, opening: Opening) -> None:
        """A scope begins on the session."""
        tracers = self.tracers
        for tracer in tracers:
            if not tracer.is_settled:
                tracer.settle()
        self.id = f"{_IDS.getrandbits(64):016x}"
        site = self.opened_site = self.last_activity_site = self.last_site = opening.site
        self.opened_at = self.last_activity_at = opening.at
        scope = self.scope = Scope(self.id, site, is_async=self.is_async)
        self.origin = Origin(scope)
        self.kind = (type(session), id(session.bind))
        self.opened_by = self.owner = opening.owner
        self.context = opening.context
        self.caller = tracers[0].caller(opening.context)
        self.is_beginning = True
        self.handled = opening.handled
        if not reporting.now:
            # Read one right after the other: what passes between them, spans would be late by.
            self.epoch = time.time_ns() - self.clock()
            self.report_to([tracer for tracer in tracers if not tracer.closed])
        ref = LedgerRef(session, _collected)
        ref.ledger = self
        LIVE[self] = ref
        for wake in _WAKES:
            wake()
        if opening.closing is not None:
            self._reopened(opening.closing)
        elif self.publishers:
            self._publish(facts.SessionOpened(self.opened_at, site))
        self.is_beginning = False
        if self.tracers is not tracers:
            with _HANDING.value:  # another thread has instrumented or uninstrumented meanwhile
                meant, self.tracers = self.tracers, tracers
                self.hand_to(meant)

    def report_to(self, tracers: list[Tracer]) -> tuple[Report, ...]:
        """Have these tracers report the scope, too."""
        more = tuple([tracer.begin(self) for tracer in tracers])
        self.reports = self.scope.reports = self.reports + more
        publishers = [report.publisher for report in more if report.publisher is not None]
        if publishers:
            self.publishers += tuple(publishers)
        if len(self.reports) == 1:
            self.gates = self.reports[0].tracer.gates
        elif self.reports:
            self.gates = Gates.of([report.settings for report in self.reports])
        for report in more:
            self.announces_statements |= report.tracer.tells_statements
        return more

    def closing(self) -> Closing:
        """How the scope ended."""
        # A session whose transactions are managed is meant to be used again.
        ending: Ending | Literal[""] = "reset" if self.is_managed else self.ending
        return Closing(ending, self.closed_site, self.owner)

    def _reopened(self, closing: Closing) -> None:
        self.is_reopened = True
        fact = facts.SessionOpened(
            at=self.opened_at,
            site=self.opened_site,
            reopened=True,
            last_ending=closing.ending,
            last_closed_site=closing.site,
            same_owner=closing.owner == self.owner,
        )
        self.suspect(fact)

    def departing(self, ending: Ending, error: BaseException | None, *, is_managed: bool) -> None:
        """The session is about to let go of everything it holds."""
        now = self.clock()
        self.is_closing = True
        if self.leaving is None:
            self.note_leaving(error)
        site = None if self.leaving is None else self.leaving[0]
        if self.counter.counts:
            self.settle(now)
        self.check_use(site)
        if is_managed:
            self.is_joined = self.is_managed = True
        self.origin.left(ending, now, site)

    def end(
        self,
        ending: Ending,
        *,
        site: CallSite | None = None,
        size: int = 0,
        pending: int = 0,
        detached: Counts = NOTHING,
        error: str = "",
        leaving: bool = False,
        modified: Counts = NOTHING,
        removed: Counts = NOTHING,
    ) -> None:
        """The scope ended; nothing is remembered of it but what its objects carry."""
        # In this order: one that is interrupted in between is still to be ended when it is lost.
        same_owner.leave(self)
        LIVE.pop(self, None)
        now = self.clock()
        if self.counter.counts:
            self.settle(now)
        if self.transactions_open:
            self._give_up_transactions(now, site)
        if not self.is_used:
            outcome: Outcome = "unused"
        elif ending in _TAKEN:
            outcome = "abandoned"
        elif error:
            outcome = "failed"
        else:
            outcome = self.last_outcome
        self.closed_at = now = self.clock()
        self.closed_site = site
        self.ending = ending
        self.outcome = outcome
        self.error = error
        self.identity_map_size = size
        self.pending = pending
        if self.transactions:
            self.left_site = self.last_activity_site
        self.last_activity_at = now
        self.last_activity_site = site
        if self.reports and not reporting.now:
            loses = self.uncommitted or self.pending_by_class or modified or removed
            is_suspect = self.is_suspect or loses or ending in _TAKEN
            if is_suspect or self.publishers:
                closed = facts.SessionClosed(
                    now,
                    site,
                    ending,
                    outcome,
                    size,
                    pending,
                    error,
                    detached or {},
                    leaving,
                    by_name(self.pending_by_class) if self.pending_by_class else {},
                    modified or {},
                    removed or {},
                    self.added_site,
                    self.is_joined,
                )
                self._publish_and_judge(closed, judged=bool(is_suspect))
            for report in self.reports:
                report.session_ended(detached)
        self.scope.end()
        self.is_open = False
        self.reports = ()
        self.publishers = ()
        self.leaving = None
        self.is_closing = False
        self.counter = object_counter.NOTHING_LOADED
        self.flush = None
        self.context = None

    def remain(self, session: Session, site: CallSite | None) -> None:
        """The session let go of its objects, and then it was refused to be closed."""
        self.is_closing = False
        self.leaving = None
        self.pending_by_class.clear()
        self.origin = Origin(self.scope)
        self.watch_loads(session, site)

    def _give_up_transactions(self, now: int, site: CallSite | None) -> None:
        """Report transactions that were never ended as abandoned."""
        while self.transactions_open:
            lost = self.transactions_open[-1]
            self.transactions_open = self.transactions_open[:-1]
            lost.outcome = "abandoned"
            lost.took = 0
            lost.error = ""
            if not lost.nested:
                self.release_connections(now)
            self.transaction_ended(lost, now, site, 0)

    def note_leaving(self, error: BaseException | None) -> None:
        """Note the line, and the exception, that leave: asyncio closes the session elsewhere."""
        self.is_cancellation(error)
        # A generator that is closed early has done what it was asked for.
        is_ordinary = error is None or isinstance(error, GeneratorExit) or self.handled(error)
        name = "" if error is None or is_ordinary else type_name(error)
        self.leaving = (self.site(), name, error is not None)

    def hand_to(self, tracers: tuple[Tracer, ...]) -> None:
        """Be reported by these tracers and by no others from the next scope on.

        The tracers that report the open scope go on to its end; those that come are told how far
        it is.
        """
        if not tracers:
            return
        for tracer in tracers:
            tracer.settle()
        with _HANDING.value:  # several threads may do so, and begin a report once only
            known, self.tracers = self.tracers, tracers
            self.locator = tracers[0].locator
            if self.is_beginning:
                return  # begin() hands it on when its reports are begun
            telling = [report.tracer for report in self.reports]
            coming = [tracer for tracer in tracers if tracer not in telling and not tracer.closed]
            if any(tracer not in tracers for tracer in telling):
                coming = coming[1:]  # the nearest comes first: its turn is the next scope
            coming = [tracer for tracer in coming if tracer not in known]
            if not (self.is_open and coming):
                return
            now = self.clock()
            begun = self.report_to(coming)
        for report in begun:
            report.take_up(now)

    def part(self, tracer: Tracer) -> None:
        """Be reported by this one no longer."""
        with _HANDING.value:
            for report in self.reports:
                if report.tracer is tracer:
                    report.stop()
            self.reports = tuple(one for one in self.reports if one.tracer is not tracer)
            self.publishers = tuple(
                report.publisher for report in self.reports if report.publisher is not None
            )
            self.tracers = tuple(one for one in self.tracers if one is not tracer)
            if self.is_open and not self.is_beginning:
                self.scope.reports = self.reports

    def begin_counting_anew(self) -> None:
        """Forget what counts towards thresholds: another test uses the session now.

        What the ledger has just counted is forgotten, too. Call it before the test does anything.
        """
        self.loads = None
        self.first_selects = ()
        self.single_rows = self.row_run = None
        self.repeated_in = -1
        self.first_commit = None
        self.committing_rows = 0
        self.committing = NOTHING
        self.first_began = None
        self.failed_flush = None

    def failed(self, where: str, error: BaseException) -> None:
        """A failure of session_tracer's own: report it once, and the rest of this scope not."""
        for tracer in self.tracers:
            tracer.failed(where, error)
        for report in self.reports:
            report.stop()
        self.reports = ()
        self.publishers = ()

    # From facts to detectors and publishers.

    def suspect(self, fact: Fact) -> None:
        """Something rare happened from which a detector may conclude something."""
        if not reporting.now:
            self._publish_and_judge(fact, judged=True)

    def publish(self, fact: Fact) -> None:
        """Something happened that only those want to know who asked for facts."""
        if self.publishers and not reporting.now:
            self._publish(fact)

    def _publish(self, fact: Fact) -> None:
        for publisher in self.publishers:
            publisher.publish(fact)

    def _publish_and_judge(self, fact: Fact, *, judged: bool) -> None:
        for publisher in self.publishers:
            publisher.publish(fact)
        if judged:
            for report in self.reports:
                report.judge(fact)

    # Transactions.

    def transaction_began(
        self, now: int, site: CallSite | None, *, nested: bool, two_phase: bool
    ) -> None:
        """The session's transaction, or a savepoint, began."""
        user = self.enter(site)
        self.transactions_open += (
            OpenTransaction(now, nested=nested, two_phase=two_phase, owner=user, site=site),
        )
        if reporting.now:
            return
        self.last_activity_at = now
        self.last_activity_site = site
        if nested:
            self.savepoints += 1
            self.open_savepoints += 1
            self._uncommitted().savepoint_began()
        else:
            self.transactions += 1
            self.transaction_began_at = now
            self.transaction_began_site = site
            self.last_held = 0
            self.statements_before = self.statements
            self.sql_before = self.sql
            self.committing_rows = 0
            self.committing = NOTHING
            if self.uncommitted is not None:
                self.uncommitted.began()
        is_judged = nested or self.transactions > 1 or self.is_reopened
        if is_judged or self.publishers or self.first_began is None:
            # Only a session that is not used by the owner who opened it may be awaited by another.
            root = user if user is self.opened_by else owner.root_of(user)
            trace = self.tracers[0].caller()[0]
            if is_judged or self.publishers:
                fact = facts.TransactionBegan(now, site, nested, two_phase, user, root, trace)
                self._publish_and_judge(fact, judged=is_judged)
            if self.first_began is None and not nested:
                self.first_began = (trace, root, user)
        for report in self.reports:
            report.transaction_began(now, site, nested=nested)

    def transaction_ended(
        self, ended: OpenTransaction, now: int, site: CallSite | None, size: int
    ) -> None:
        """A transaction or savepoint ended, as its `outcome`, `took` and `error` have it."""
        if reporting.now:
            return
        self.ended += 1
        self.failed_flush = None
        outcome, nested = ended.outcome, ended.nested
        if nested:
            self.open_savepoints = max(0, self.open_savepoints - 1)
            self._uncommitted().savepoint_ended(outcome)
        else:
            self.transaction_began_at = 0
            self.transaction_began_site = None
            if self.uncommitted is not None:
                self.uncommitted.ended(outcome, ended.error)
            self.last_write = None
            if outcome == "committed":
                self.commits += 1
                self.last_write = ("commit", site)
                if self.loads is not None:
                    self.loads.committed()
                if len(self.sizes) == 2 * SIZES_KEPT:
                    self.sizes = self.sizes[:SIZES_KEPT] + self.sizes[SIZES_KEPT + 1 :]
                self.sizes += (size,)
            elif outcome == "rolled_back":
                self.rollbacks += 1
        # What the end of the session ends is no activity of the application's.
        if nested or ended.error or outcome in ("committed", "rolled_back"):
            self.last_activity_at = now - ended.took
            self.last_activity_site = site
        duration = now - ended.began_at
        is_judged = self._is_end_judged(ended)
        if is_judged or self.publishers:
            fact = facts.TransactionEnded(
                now,
                site,
                outcome,
                duration,
                ended.took,
                nested,
                ended.two_phase,
                ended.error,
                size,
            )
            self._publish_and_judge(fact, judged=is_judged)
        if not nested and outcome == "committed" and self.committing_rows:
            if self.first_commit is None:
                self.first_commit = (site, self.committing_rows, self.committing)
            self.committing_rows = 0
            self.committing = NOTHING
        for report in self.reports:
            report.transaction_ended(now, outcome, duration, nested=nested, error=ended.error)

    def _is_end_judged(self, ended: OpenTransaction) -> bool:
        if self.is_suspect or ended.outcome == "abandoned":
            return True
        if self.identity_map_peak > self.gates.large_identity_map:
            return True
        wrote_again = self.first_commit is not None and self.committing_rows > 0
        return wrote_again and ended.outcome == "committed" and not ended.nested

    def _uncommitted(self) -> Uncommitted:
        if self.uncommitted is None:
            self.uncommitted = Uncommitted()
        return self.uncommitted

    def connection_acquired(self, holding: Holding, now: int, *, joined: bool) -> None:
        """The transaction used a connection for the first time."""
        self.connections += (holding,)
        if joined:
            self.is_joined = True
        if reporting.now:
            return
        self.database = holding.database
        if not self.held_since:
            self.held_since = now
        if self.publishers:
            self._publish(facts.ConnectionAcquired(now, holding.database, holding.site, joined))
        for report in self.reports:
            report.connection_acquired(holding.database)

    def release_connections(self, now: int) -> None:
        """The transaction let go of its connections."""
        held, self.connections = self.connections, ()
        for holding in held:
            holding.unmark(self)
            if reporting.now:
                continue
            duration = now - holding.since
            self.held += duration
            self.last_held = duration
            self.held_since = 0
            if self.publishers:
                self._publish(
                    facts.ConnectionReleased(now, duration, holding.busy, holding.database)
                )
            for report in self.reports:
                report.connection_released(duration, holding.busy)

    def writes_ended(self, now: int, site: CallSite | None, *, is_committed: bool) -> None:
        """A transaction with writes ended: has a session next to it committed writes, too?"""
        written, self.written = self.written, NOTHING
        if is_committed:
            for split in same_owner.committed(
                self, same_owner.Commit(self.scope, site, written), now
            ):
                self.suspect(split)

    # Flushes.

    def flush_began(self, flush: Flush) -> None:
        """The unit of work started to write."""
        if reporting.now:
            return
        self.flush_number += 1
        if self.publishers:
            self._publish(facts.FlushBegan(flush.began_at, flush.site, flush.trigger))
        for report in self.reports:
            report.flush_began(flush.began_at, flush.site, flush.trigger)

    def flushed(self, flush: Flush, now: int) -> None:
        """The unit of work was written."""
        new, dirty, deleted, unchanged = flush.counts
        for counts in (new, dirty, deleted):
            if counts:
                self.written = with_counts(self.written, counts)
        if reporting.now:
            return
        duration = now - flush.began_at
        self.flushes += 1
        self._uncommitted().flushed(flush.site, new, dirty, deleted)
        size = 0
        if new:
            self.new = with_counts(self.new, new)
            self.committing = with_counts(self.committing, new)
            size += total(new)
        if dirty:
            self.dirty = with_counts(self.dirty, dirty)
            self.committing = with_counts(self.committing, dirty)
            size += total(dirty)
        if deleted:
            self.deleted = with_counts(self.deleted, deleted)
            self.committing = with_counts(self.committing, deleted)
            size += total(deleted)
        if unchanged:
            self.unchanged = with_counts(self.unchanged, unchanged)
        if size:
            self.committing_rows += size
            self.last_write = ("flush", flush.site)
        self.last_activity_at = flush.began_at
        self.last_activity_site = flush.site
        is_judged = (
            (flush.trigger == "autoflush" and size > 0)
            or bool(unchanged)
            or size > self.gates.large_flush
            or self.identity_map_peak > self.gates.large_identity_map
        )
        if is_judged or self.publishers:
            fact = facts.FlushCompleted(
                now,
                flush.site,
                flush.trigger,
                duration,
                new,
                dirty,
                deleted,
                unchanged,
                flush.unchanged_attributes,
            )
            self._publish_and_judge(fact, judged=is_judged)
        sizes = (total(new), total(dirty), total(deleted), total(unchanged))
        for report in self.reports:
            report.flushed(now, flush.trigger, duration, sizes)

    def flush_failed(self, fact: facts.FlushFailed) -> None:
        """The unit of work could not be written."""
        if reporting.now:
            return
        self.failed_flushes += 1
        self.last_activity_at = fact.at - fact.duration
        self.last_activity_site = fact.site
        if self.failed_flush is None:
            self.failed_flush = fact
        self.suspect(fact)
        for report in self.reports:
            report.flush_failed(fact)

    # Statements.

    def executed(
        self,
        at: int,
        site: CallSite | None,
        duration: int,
        operation: str,
        *,
        entity: str,
        eager: str,
        in_flush: bool,
        load: Load | None,
    ) -> None:
        """The driver's execute call returned, or raised an error."""
        if reporting.now:
            return
        self.statements += 1
        self.sql += duration
        self.last_statement_at = at
        self.last_activity_site = self.last_statement_site = site
        self.last_operation = operation
        self.last_eager = eager
        self.last_load = load
        if not eager:
            self.last_select = entity if load is None else ""
        if in_flush or operation in _SAVEPOINT_OPERATIONS:
            self.last_activity_at = at
            return
        # refresh(author, ["books"]) may have an eager loader read with it.
        if not eager and (load is None or load.kind != "refresh"):
            self.last_write = None
        # What began it, not what ended it, is when the session did something.
        self.last_activity_at = at - duration

    def selected(self, select: Any, make: Callable[[Any], facts.StatementExecuted]) -> None:
        """A SELECT of the application's own is one of the first few, or is judged.

        `make` makes the fact of `select`, a tuple.
        """
        if reporting.now:
            return
        first = self.first_selects
        if len(first) + 1 < self.gates.selects:
            self.first_selects = (*first, select)
            return
        if first and type(first[0]) is tuple:
            # The detectors' memories begin with those before.
            first = self.first_selects = tuple(map(make, first))
        fact = make(select)
        self.judge(fact)
        if len(first) < self.gates.selects:
            self.first_selects = (*first, fact)

    def judge(self, fact: Fact) -> None:
        """A counter crossed a threshold: ask the detectors."""
        for report in self.reports:
            report.judge(fact)

    def executed_by_flush(
        self, at: int, site: CallSite | None, duration: int, operation: str
    ) -> None:
        """A statement of the unit of work ran without an error."""
        if reporting.now:
            return
        self.statements += 1
        self.sql += duration
        self.last_statement_at = self.last_activity_at = at
        self.last_activity_site = self.last_statement_site = site
        self.last_operation = operation
        self.last_eager = self.last_select = ""
        self.last_load = None

    def wrote_row(
        self,
        site: CallSite | None,
        operation: str,
        collection: str,
        statement: str,
        flush: Flush | None,
    ) -> bool:
        """Count a row that was written by a statement of its own; whether they are enough now."""
        if reporting.now:
            return False
        if self.row_run is not None:
            self.fold_rows()
        run = self.row_run = (
            (site, flush is not None, operation, collection),
            hash(statement),
            0 if flush is None else self.flush_number,
            flush is None or flush.trigger == "explicit",
        )
        rows = self.single_rows
        before = 0 if rows is None else rows.before(run, self.gates.least_single_rows)
        self.row_folded = before
        count = self.row_count = before + 1
        if count not in self.gates.single_rows:
            return False
        self.fold_rows()
        return True

    def fold_rows(self) -> None:
        """Add the rows of the last kind to the others."""
        run, least = self.row_run, self.gates.least_single_rows
        if run is None or self.row_count == self.row_folded:
            return
        rows = self.single_rows
        if rows is None:
            if not run[3] and run[2] != self.flush_number and self.row_count < least:
                return  # a flush that a commit or a read asked for, and that has ended
            rows = self.single_rows = SingleRows()
        rows.add(run, self.row_count - self.row_folded, least)
        self.row_folded = self.row_count

    def wrote_rows(self, entity: str, collection: str, rows: int) -> None:
        """A statement of the application's own wrote rows, -1 where it is not known how many."""
        self.written = with_counts(self.written, {entity or collection: max(rows, 1)})
        if rows > 0 and not reporting.now:
            self.committing_rows += rows
            if entity:
                self.committing = with_counts(self.committing, {entity: rows})

    def statement_started(self, fact: facts.StatementStarted) -> None:
        """A statement is about to go to the driver."""
        if reporting.now:
            return
        if self.publishers:
            self._publish(fact)
        for report in self.reports:
            report.statement_started(fact)

    def statement_executed(self, fact: facts.StatementExecuted) -> None:
        """Report a statement by itself, where that was asked for."""
        if reporting.now:
            return
        if self.publishers:
            self._publish(fact)
        if self.announces_statements:
            for report in self.reports:
                report.statement_executed(fact)

    def attribute_loaded(
        self, load: Load, *, site: CallSite | None, parent: int, expired_by: Expiry | Literal[""]
    ) -> bool:
        """A statement ran because an attribute of one object was read or refreshed.

        `parent` is equal for two loads for the same object. Return whether it is to be judged.
        """
        if reporting.now:
            return False
        kind = load.kind
        if self.lazy_loads is NOTHING:
            self.lazy_loads = {}
        self.lazy_loads[kind] = self.lazy_loads.get(kind, 0) + 1
        self.is_refreshing = False
        if kind == "refresh":
            self.is_refreshing = self.last_write is not None
            return self.is_refreshing
        if kind == "detached":
            return False
        loads, gates = self.loads, self.gates
        if loads is None:
            loads = self.loads = Loads()
        if expired_by == "commit" and kind in _EXPIRING:
            loads.count = loads.reloaded(load, parent, gates.most_reloads)
            return loads.count in gates.reloads
        if kind == "expired":
            return False
        loads.count = loads.loaded(site, load, parent, gates.most_loads)
        return loads.count in gates.loads

    # What is loaded.

    def first_used(self, session: Session, site: CallSite | None) -> None:
        """The scope's first transaction is about to begin.

        Only now is it next to others: where nothing listens, a session that is open and unused has
        no scope.
        """
        self.is_used = True
        same_owner.join(self)
        self.watch_loads(session, site)

    def watch_loads(self, session: Session, site: CallSite | None) -> None:
        """Count what the session's identity map takes in from now on."""
        self.counter = object_counter.watch(session.identity_map, self.origin, site)
        self.load_site = site
        self.route = None

    def loading(
        self, site: CallSite | None, at_once: int = 0, *, in_portions: bool = False
    ) -> None:
        """A statement is about to run whose rows may become objects.

        `at_once` is how many rows become objects at a time, or 0 where all of them do: no listener
        sees an identity map at its fullest, but that says how full it was. With `in_portions` they
        may come in portions of a size that is not known, as `partitions()` asks for them.
        """
        counter = self.counter
        self.size_before = counter.size()
        self.at_once = at_once
        if in_portions or self.in_portions:
            self.in_portions = in_portions
            counter.follow(on=in_portions)
        if site is not self.load_site or self.sweeps_seen != self.scope.sweeps:
            self.load_site = site
            self.sweeps_seen = self.scope.sweeps
            self.route = None
            counter.come_from(site)

    def come_by(self, route: Route | None) -> None:
        """The rows of the statement that has just run come by a lazy load, or by none."""
        if route != self.route:
            self.route = route
            self.counter.come_from(self.load_site, route)

    def settle(self, now: int) -> None:
        """Take the objects into account that the last statement's rows became.

        It has to run before anything else is reported: the counter still holds what the line before
        has loaded.
        """
        counter = self.counter
        if not counter.counts:
            return
        loaded = by_name(counter.counts)
        counter.counts.clear()
        number = total(loaded)
        at_once = self.at_once
        if self.in_portions and 0 < counter.peak - self.size_before < number:
            at_once = counter.peak - self.size_before
        together = min(number, at_once) if at_once else number
        self.measure(max(self.size_before + together, counter.size()))
        self.count_transition("loaded_as_persistent", number)
        if reporting.now:
            return
        self.loaded = with_counts(self.loaded, loaded)
        is_judged = self.identity_map_peak > self.gates.large_identity_map or (
            not at_once and number > self.gates.large_result
        )
        if is_judged or self.publishers:
            fact = facts.ObjectsLoaded(now, self.load_site, loaded, at_once)
            self._publish_and_judge(fact, judged=is_judged)

    def measure(self, size: int) -> None:
        """The identity map holds this many objects now."""
        if size > self.identity_map_peak:
            self.identity_map_peak = size

    def count_transition(self, name: str, count: int = 1) -> None:
        """Count objects that went from one state to another."""
        if count:
            transitions = self.transitions
            if transitions is NOTHING:
                transitions = self.transitions = {}
            transitions[name] = transitions.get(name, 0) + count

    def swept(self, by: Expiry, site: CallSite | None) -> None:
        """Everything that the session holds was expired."""
        self.scope.swept(by, site)

    # Objects that leave, and what SQLAlchemy has no event for.

    def objects_expired(self, now: int, site: CallSite | None, count: int) -> None:
        """`expire()` or `expire_all()` was called."""
        self._did(now, site)
        self.expired += count
        self.publish(facts.ObjectsExpired(now, site, count))

    def objects_expunged(self, now: int, site: CallSite | None, count: int) -> None:
        """`expunge()` or `expunge_all()` was called."""
        self._did(now, site)
        self.expunged += count
        self.publish(facts.ObjectsExpunged(now, site, count))

    def object_merged(self, now: int, site: CallSite | None, entity: str) -> None:
        """`merge()` was called."""
        self._did(now, site)
        self.merged += 1
        self.publish(facts.ObjectMerged(now, site, entity))

    def load_refused(self, fact: facts.LoadRefused) -> None:
        """`raiseload` refused a load."""
        self._did(fact.at, fact.site)
        self.refused += 1
        self.publish(fact)

    def _did(self, at: int, site: CallSite | None) -> None:
        self.last_activity_at = at
        self.last_activity_site = site

    # The context while a statement runs.

    def attach(self) -> Attached | None:
        """The caller's context with the innermost open span, to attach; None to leave it be."""
        # Where the application is traced and a test captures as well, the application's spans are
        # the ones that its other instrumentations belong to.
        for report in self.reports:
            return None if report.spans is None else report.spans.attach()
        return None


_SAVEPOINT_OPERATIONS: Final = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK"})

# What is called as a session is opened, and as the garbage collector takes one.
_WAKES: Final[list[Callable[[], None]]] = []
_LOSSES: Final[list[Callable[[Ledger], None]]] = []


def on_opened(wake: Callable[[], None]) -> None:
    """Have this called as a session is opened."""
    _WAKES[:] = [wake]


def on_lost(lost: Callable[[Ledger], None]) -> None:
    """Have this called as the garbage collector takes an open session."""
    _LOSSES[:] = [lost]


def _collected(ref: Any) -> None:
    """The garbage collector took a session, perhaps while a lock is held."""
    ledger: Ledger = ref.ledger
    if LIVE.pop(ledger, None) is not None:
        try:
            ledger.origin.left("collected", ledger.clock(), ledger.last_site)
        except Exception as error:
            ledger.failed("live", error)
        for lost in _LOSSES:
            lost(ledger)


def _never(_: BaseException) -> bool:
    """Recognises no exception."""
    return False


def _recognising(error: BaseException) -> Callable[[BaseException], bool]:
    """What recognises this very exception again, without keeping it and its frames alive."""
    try:
        known = weakref.ref(error)
    except TypeError:  # one of the interpreter's own: another may later lie in its place
        address = id(error)
        return lambda other: id(other) == address
    return lambda other: known() is other


def type_name(error: BaseException) -> str:
    """An exception's type as OpenTelemetry's `error.type` wants it."""
    kind = type(error)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"

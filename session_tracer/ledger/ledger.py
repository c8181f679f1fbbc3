"""The account of one session scope, written by the hooks as things happen.

It has three kinds of readers. Signals read its totals. Detectors are called with a fact where one
of its counters crosses a threshold (`judge`), and where something rare happens (`suspect`): on the
quiet path no fact is made. A publisher, which exists only where the code that uses session_tracer
asked for facts, gets every fact. Detectors never depend on a publisher, so that a finding cannot
depend on who listens.
"""

from __future__ import annotations

import random
import time
import weakref
from collections import Counter as Numbers
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from session_tracer import facts
from session_tracer.ledger import blocking, first_use, object_counter, openings, same_owner
from session_tracer.ledger.failures import Failures, First
from session_tracer.ledger.gates import Gates
from session_tracer.ledger.guard import reporting
from session_tracer.ledger.in_progress import OpenTransaction
from session_tracer.ledger.loads import Load, Loads
from session_tracer.ledger.openings import run_of
from session_tracer.ledger.origin import Origin, Scope
from session_tracer.ledger.registry import LIVE, LedgerRef
from session_tracer.ledger.single_rows import SingleRows
from session_tracer.ledger.use import NO_OWNER, Use
from session_tracer.model.counts import NOTHING, by_name, difference, total, with_counts
from session_tracer.runtime import process, threads
from session_tracer.where import owner
from session_tracer.where.expected import is_expected
from session_tracer.where.running import running_frame
from session_tracer.where.work import blocks_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Protocol, TypeVar

    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session

    from session_tracer.facts import Counts, Database, Ending, Expiry, Fact, Outcome
    from session_tracer.ledger.in_progress import Flush, Holding
    from session_tracer.ledger.object_counter import Counter
    from session_tracer.ledger.openings import OpenedInLoop
    from session_tracer.ledger.origin import Route
    from session_tracer.ledger.report import (
        Attached,
        Attaching,
        Comments,
        Report,
        Spans,
        Tracer,
    )
    from session_tracer.ledger.single_rows import Run
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.except_finder import Failure
    from session_tracer.where.owner import Owner
    from session_tracer.where.work import Blocks

    class _Following(Protocol):
        """What follows a transaction to its end."""

        def ended(
            self, ledger: Ledger, session: Session, outcome: Outcome, site: CallSite | None
        ) -> None: ...

    _UntilEnd = TypeVar("_UntilEnd", bound=_Following)

__all__ = [
    "ASLEEP",
    "FLUSHED",
    "SIZES_KEPT",
    "Closing",
    "Ledger",
    "Opening",
    "new_tuple",
    "on_lost",
    "recognising",
]

# Of the first commits, and of the last.
SIZES_KEPT: Final = 3
_MOST_SIZES: Final = 2 * SIZES_KEPT

# `new`, `dirty` and `deleted` of a session that has flushed nothing.
_NOTHING_FLUSHED: Final = (NOTHING, NOTHING, NOTHING)

_IDS = random.Random()
process.in_child(_IDS.seed)

# Held while it changes which tracers report an open scope.
_HANDING: Final = process.PerProcess(threads.RLock)
_TAKEN: Final = ("collected", "exit", "shutdown")
_FIRST: Final = itemgetter(0)
_EXPIRING: Final = frozenset({"expired", "relationship", "deferred"})


class Closing(NamedTuple):
    """How a session was closed that is used again: where, and by which thread or task.

    `dropped_site` is the line that took it from a generator and kept no reference to that.
    """

    ending: Ending | Literal[""]
    site: CallSite | None
    owner: Owner
    dropped_site: CallSite | None


class Opening(NamedTuple):
    """What is known of a session that has not been used yet; times in nanoseconds.

    `at` is 0 if the opening was not seen, or if the session was closed since (`closing`).
    `handled` recognises the exception that was being handled at the opening: it is not one that
    propagates from the session's block. `blocks` are the `work()` blocks it was in,
    `bound` is what was bound to structlog's context variables.
    """

    tracers: tuple[Tracer, ...]
    at: int = 0
    site: CallSite | None = None
    owner: Owner = NO_OWNER
    context: Any = None
    handled: Callable[[BaseException], bool] | None = None
    is_async: bool = False
    closing: Closing | None = None
    blocks: Blocks = ()
    bound: Mapping[str, Any] | None = None


# Makes a named tuple for a third of what its class takes.
new_tuple: Final = tuple.__new__


class Ledger(Use):
    """What one session scope did so far. Times are nanoseconds of the tracers' monotonic clock.

    Hooks write it; detectors and signals read it. What nearly every session changes or reads has a
    slot: CPython reads a default of the class, or a dictionary of this many attributes, far more
    slowly. What most sessions leave as it is, is an attribute of the class until it changes: that
    costs them nothing. The empty dictionaries and tuples are shared: none is changed in place.
    """

    __slots__ = (  # noqa: SIM905 # a list would take a line for each name
        "announces_statements attaches attaching closed_at closed_during closed_site comments "
        "commits committing committing_rows counter database decided deleted detached dirty "
        "ended ending epoch failure failures first_began first_commit first_selects "
        "first_used_site flush_number flushed_site flushes gates handled has_misuses held id "
        "identity_map_peak identity_map_size is_beginning is_open is_streaming is_used "
        "last_activity_at last_activity_site last_eager last_ended last_held last_load "
        "last_operation last_outcome last_select last_statement_at last_statement_site "
        "last_write lazy_loads left_site load_site loaded new opened_site origin outcome "
        "publishers recording released route row_count row_folded row_ns row_run single_rows "
        "size_before sizes sql statements sweeps_seen writes written"
    ).split()

    gates: Gates
    origin: Origin

    # What most sessions leave as it is.
    # The comment of its statements so far: the line of the first use, and the text without and with
    # the trace.
    comment: tuple[object, str, str] | None = None
    # The blocks of `work()` in which it was opened, the innermost last.
    blocks: Blocks = ()
    # What was bound to structlog's context variables as it was opened.
    bound: Mapping[str, Any] = NOTHING
    # The session is lent if what opened it (a dependency's generator, a plugin, a wrapper) was not
    # at work at the first use; it may still be if a generator has only begun it.
    is_lent = False
    may_be_lent = False
    # The loop that has opened this session and others before it.
    opened_in_loop: OpenedInLoop | None = None
    # A scope that begins on a session that was closed before.
    is_reopened = False
    # The line that dropped the generator which closed the session.
    dropped_site: CallSite | None = None
    error = ""
    savepoints = 0
    open_savepoints = 0
    rollbacks = 0
    # What the scope had run before the open transaction.
    statements_before = 0
    sql_before = 0
    # What is called as the open transaction ends, with how and where that was.
    when_ended: tuple[Callable[[Ledger, Session, Outcome, CallSite | None], None], ...] = ()
    # What is called as the scope ends, if it is suspect.
    when_closed: tuple[Callable[[Ledger], None], ...] = ()
    # Whether a transaction manager ends its transactions.
    is_managed = False
    loads: Loads | None = None
    # The lines whose SELECT ... FOR UPDATE brought objects.
    locked_at: frozenset[CallSite | None] = frozenset()
    failed_flushes = 0
    savepoints_began: tuple[tuple[Counts, ...], ...] = ()
    at_once = 0
    in_portions = False
    unchanged: Counts = NOTHING
    # What was added and is not flushed, by mapped class, and where the last of it was.
    added_site: CallSite | None = None
    # How many were added before those; the transitions that no total covers, by name.
    added_before = 0
    other_transitions: Counts = NOTHING
    expired = 0
    expunged = 0
    merged = 0
    refused = 0
    pending = 0
    # Of what the session let go of as it was closed: what had changes that were not flushed, and
    # what was marked as deleted.
    modified: Counts = NOTHING
    modified_attributes: tuple[str, ...] = ()
    removed: Counts = NOTHING

    def __init__(
        self, tracers: tuple[Tracer, ...], *, is_async: bool, clock: Callable[[], int]
    ) -> None:
        super().__init__(tracers, is_async=is_async, clock=clock)
        # The scope, and the tracers that report it.
        # The reports that publish facts.
        self.publishers: tuple[Report, ...] = ()
        # The reports whose spans are sampled, and what sets the context of statements.
        self.recording: tuple[tuple[Report, Spans], ...] = ()
        self.attaching: Attaching | None = None
        self.announces_statements = False
        # What makes the comments of its statements, if a tracer wants them.
        self.comments: Comments | None = None
        # Whether a finding of any report was to be raised as `SessionMisuse`.
        self.has_misuses = False
        self.id = ""
        self.is_open = True
        # Until its reports are made, other threads only note which tracers shall report it.
        self.is_beginning = True
        # What to add to a monotonic time to get nanoseconds since 1970.
        self.epoch = 0
        self.handled: Callable[[BaseException], bool] | None = None
        self.opened_site: CallSite | None = None
        self.first_used_site: CallSite | None = None
        self.closed_at = 0
        self.closed_site: CallSite | None = None
        self.ending: Ending | Literal[""] = ""
        # The exception that is handled while the session is closed.
        self.closed_during: BaseException | None = None
        self.outcome: Outcome | None = None
        # Where the last activity was before the scope ended, if it had begun a transaction.
        self.left_site: CallSite | None = None
        self.last_activity_at = 0
        self.last_activity_site: CallSite | None = None

        # Transactions and connections; a time is 0 while there is none.
        self.is_used = False
        self.last_outcome: Outcome = "closed"
        # How many transactions and savepoints have ended, and the last one of them.
        self.ended = 0
        self.last_ended: OpenTransaction | None = None
        self.commits = 0
        # The first transaction's trace, and the outermost task and the owner that began it.
        self.first_began: tuple[int, Owner, Owner] | None = None
        self.database: Database | None = None
        self.held = 0
        # How long the open transaction, or the last one, held the last connection it gave back.
        self.last_held = 0
        # For how long the transaction that is ending held each connection, and in SQL.
        self.released: tuple[tuple[int, int], ...] = ()

        # Statements.
        self.statements = 0
        self.sql = 0
        self.is_streaming = False
        self.last_statement_at = 0
        self.last_statement_site: CallSite | None = None
        # The last statement: its verb, its eager loader, and the load that it was for, if any.
        self.last_operation = "SELECT"
        self.last_eager = ""
        self.last_load: Load | None = None
        # The mapped class of the last SELECT of the application's own.
        self.last_select = ""
        # The first few SELECTs of the application's own: rows, then facts once they are judged.
        self.first_selects: tuple[Any, ...] = ()
        self.single_rows: SingleRows | None = None
        # The last row that was written by a statement of its own, and how many there are of its
        # kind; `single_rows` has the first `row_folded` of them; the others took `row_ns`.
        self.row_run: Run | None = None
        self.row_count = 0
        self.row_folded = 0
        self.row_ns = 0
        # Whether code that runs during a statement could see which context is in force.
        self.attaches = False
        # The number of the last statement that wrote to each table. The table is empty for a
        # statement of which it is not known, and for expire(): the application expects other values
        # then.
        self.writes: dict[str, int] = NOTHING

        # Flushes.
        self.flushes = 0
        # Which flush is writing, or was the last one that did.
        self.flush_number = 0
        self.failure: Failure | None = None
        self.failures: Failures | None = None
        # What the open transaction has written: objects, rows, and what a commit is compared by.
        self.written: Counts = NOTHING
        self.committing_rows = 0
        self.committing: Counts = NOTHING
        # The first commit of writes: its line, its rows, its objects, when it was done, and how
        # long it took.
        self.first_commit: tuple[CallSite | None, int, Counts, int, int] | None = None
        # The last flush or commit, its line, and `decided` before the commit, as long as nothing
        # but refreshes has run since.
        self.last_write: tuple[str, CallSite | None, tuple[Counts, ...]] | None = None
        self.flushed_site: CallSite | None = None
        # `new`, `dirty` and `deleted` as they were before what is not committed was flushed, and as
        # each open savepoint began.
        self.decided: tuple[Counts, ...] = _NOTHING_FLUSHED

        # Objects.
        self.counter: Counter = object_counter.NOTHING_LOADED
        self.load_site: CallSite | None = None
        self.route: Route | None = None
        self.size_before = 0
        self.sweeps_seen = 0
        self.identity_map_size = 0
        self.identity_map_peak = 0
        # How large the identity map was after the first few commits, and the last few.
        self.sizes: tuple[int, ...] = ()
        self.loaded: Counts = NOTHING
        self.new: Counts = NOTHING
        self.dirty: Counts = NOTHING
        self.deleted: Counts = NOTHING
        self.lazy_loads: Counts = NOTHING
        # What the session let go of as it was closed.
        self.detached: Counts = NOTHING

    @classmethod
    def of_ended(cls, scope: Scope, tracer: Tracer, epoch: int) -> Ledger:
        """The ledger of a scope that has ended, for what its objects are refused after it."""
        ledger = cls((tracer,), is_async=scope.is_async, clock=time.perf_counter_ns)
        ledger.scope = scope
        ledger.id = scope.id
        ledger.opened_site = scope.opened_site
        ledger.epoch = epoch
        ledger.gates = tracer.gates
        # It is reported as the work of the code that is refused the load.
        ledger.context = tracer.context()
        ledger.owner = ledger.opened_by = owner.current()
        ledger.blocks = blocks_now()
        return ledger

    @property
    def name(self) -> str:
        """The name that the nearest tracer gives the factory."""
        return self.tracers[0].name

    @property
    def work(self) -> str:
        """What the session works for, an empty string if it is not known.

        It is not kept: a request's route, for example, may be known only later.
        """
        # In the main thread only these two could name it.
        if not self.blocks and not self.context and self.opened_by.is_plain:
            return ""
        for tracer in self.tracers[:1]:
            return tracer.work_of(self)
        return ""

    @property
    def system(self) -> str:
        """What the database is, by OpenTelemetry's name; empty if it is not known."""
        return "" if self.database is None else self.database.system

    @property
    def wrote(self) -> bool:
        """Whether a flush wrote anything."""
        return bool(self.new or self.dirty or self.deleted)

    # The scope.

    def begin(self, session: Session, opening: Opening) -> None:
        """A scope begins on the session."""
        tracers = self.tracers
        _, at, site, opened_by, self.context, self.handled, is_async, closing, blocks, bound = (
            opening
        )
        if blocks:
            self.blocks = blocks
        if bound:
            self.bound = bound
        id_ = self.id = f"{_IDS.getrandbits(64):016x}"
        self.opened_site = self.last_activity_site = self.last_site = site
        self.opened_at = self.last_activity_at = at
        self.opened_by = self.owner = opened_by
        scope = self.scope = Scope(id_, site, is_async=is_async)
        scope.kind = (type(session), id(session.bind))
        self.origin = Origin(scope)
        if not reporting.now:
            # Read one right after the other: what passes between them, spans would be late by.
            self.epoch = time.time_ns() - self.clock()
            self.report_to(tracers)
        else:
            self.gates = tracers[0].gates
        ref = LedgerRef(session, _collected)
        ref.ledger = self
        LIVE[self] = ref
        for wake in ASLEEP:
            wake()
        if closing is not None:
            self._reopened(closing)
        elif self.publishers:
            self._publish(facts.SessionOpened(at, site))
        self.is_beginning = False
        if self.tracers is not tracers:
            with _HANDING.value:  # another thread has instrumented or uninstrumented meanwhile
                meant, self.tracers = self.tracers, tracers
                self.hand_to(meant)

    def report_to(self, tracers: Iterable[Tracer]) -> tuple[Report, ...]:
        """Have these tracers report the scope, too."""
        more: tuple[Report, ...] = ()
        for tracer in tracers:
            if not tracer.is_settled:
                tracer.settle()
            if not tracer.closed:
                report = tracer.begin(self)
                more += (report,)
                if report.publisher is not None:
                    self.publishers += (report,)
                if tracer.tells_statements:
                    self.announces_statements = True
                if tracer.comments is not None:
                    self.comments = self.comments or tracer.comments
        reports = self.reports = self.scope.reports = self.reports + more
        if len(reports) == 1:
            self.gates = reports[0].tracer.gates
        else:
            every = [report.settings for report in reports]
            self.gates = Gates.of(every or [self.tracers[0].settings])
        return more

    def closing(self) -> Closing:
        """How the scope ended."""
        # A session whose transactions are managed is meant to be used again.
        ending: Ending | Literal[""] = "reset" if self.is_managed else self.ending
        return Closing(ending, self.closed_site, self.owner, self.dropped_site)

    def _reopened(self, closing: Closing) -> None:
        self.is_reopened = True
        fact = facts.SessionOpened(
            at=self.opened_at,
            site=self.opened_site,
            reopened=True,
            last_ending=closing.ending,
            last_closed_site=closing.site,
            same_owner=closing.owner == self.owner,
            last_dropped_site=closing.dropped_site,
        )
        self.suspect(fact)

    def departing(self, session: Session, ending: Ending, error: BaseException | None) -> None:
        """The session is about to let go of everything it holds, during an exception or not."""
        now = self.clock()
        self.is_closing = True
        self.ending = ending
        if self.leaving is not None:
            site = self.leaving[0]
        elif error is not None:
            site = self.note_leaving(error)
        else:
            site = self.site()
            self.leaving = (site, "", False)
        if self.counter.counts:
            self.settle(now)
        if self.at_work is not None or self.flush is not None or self.is_async:
            self.check_use(site)
        origin = self.origin
        origin.departure = ending
        origin.departed_at = now
        origin.departed_site = site
        if not self.is_used:
            return
        # As a list: the garbage collector may change the map during a slower iteration.
        keys = list(session.identity_map.keys())
        if keys:
            size = self.identity_map_size = len(keys)
            if size > self.identity_map_peak:
                self.identity_map_peak = size
            # The first part of an identity key is the mapped class, or its hierarchy's base.
            if size == 1 or self._has_only_loaded(size):
                self.detached = {keys[0][0].__name__: size}
            else:
                self.detached = by_name(Numbers(map(_FIRST, keys)))
        # `new` and `deleted` build a set on each call. The private dictionaries behind them show
        # whether it would be empty; where these are missing, the set is built.
        if getattr(session, "_new", True):
            self.pending = len(session.new)
        if getattr(session, "_deleted", True):
            self.removed = by_name(Numbers(map(type, session.deleted)))

    def _has_only_loaded(self, size: int) -> bool:
        """Whether the identity map's objects are known to be of one class, without counting them.

        They are if nothing was loaded but they, and nothing came in that was not loaded.
        """
        loaded = self.loaded
        return (
            len(loaded) == 1
            and size in loaded.values()
            and not (self.new or self.other_transitions)
        )

    def end(self, ending: Ending, leaving: tuple[CallSite | None, str, bool]) -> None:
        """The scope ended; nothing is remembered of it but what its objects carry.

        `leaving` is the line, the error that is leaving, and whether anything is.
        """
        site, error, is_leaving = leaving
        # In this order: one that is interrupted in between is still to be ended when it is lost.
        same_owner.leave(self)
        LIVE.pop(self, None)
        if self.counter.counts:
            self.settle(self.clock())
        if self.transactions_open:
            self._give_up_transactions(self.clock(), site)
        if self.single_rows is not None:
            self.fold_rows()
        if self.blocking is not None:
            blocking.ended(self, self.blocking)
        is_taken = ending in _TAKEN
        if self.failures is not None:
            self.failures.scope_ended(self)
        if not self.is_used:
            self.outcome = "unused"
        elif is_taken:
            self.outcome = "abandoned"
        elif error:
            self.outcome = "failed"
        else:
            self.outcome = self.last_outcome
        self.ending = ending
        if error:
            self.error = error
        if self.transactions:
            self.left_site = self.last_activity_site
        self.closed_at = self.last_activity_at = self.clock()
        self.closed_site = self.last_activity_site = site
        if not reporting.now:
            if (
                is_taken
                or self.is_suspect
                or self.publishers
                or self.pending_by_class
                or self.modified
                or self.removed
                or self.has_uncommitted
            ):
                self._judge_end(leaving=is_leaving)
            for report in self.reports:
                for metrics in report.metrics:
                    metrics.session_ended(report)
                if report.spans is not None or report.reports_end:
                    report.session_ended()
        scope = self.scope
        traced: tuple[Any, ...] = ()
        for report in scope.reports:
            traced += ((report.tracer, report.session_context),)
        if traced:
            scope.tracers = traced
        # A detached object must not keep the reports alive.
        scope.reports = self.reports = self.publishers = self.recording = ()
        self.attaching = None
        self.is_open = False
        self.leaving = None
        self.is_closing = False
        self.counter = object_counter.NOTHING_LOADED
        self.flush = None
        self.context = self.closed_during = None

    def _judge_end(self, *, leaving: bool) -> None:
        for ask in self.when_closed:
            ask(self)
        pending = by_name(self.pending_by_class)
        loses = self.has_uncommitted or pending or self.modified or self.removed
        fact = facts.SessionClosed(
            at=self.closed_at,
            site=self.closed_site,
            ending=self.ending or "close",
            outcome=self.outcome or "closed",
            identity_map_size=self.identity_map_size,
            pending=self.pending,
            error=self.error,
            detached=self.detached or {},
            leaving=leaving,
            added=pending,
            modified=self.modified or {},
            modified_attributes=self.modified_attributes,
            removed=self.removed or {},
            added_site=self.added_site,
            joined=self.is_joined,
            changed_by_another=bool(loses) and self.is_changed_by_another(),
        )
        is_judged = self.is_suspect or loses or self.ending in _TAKEN
        self._publish_and_judge(fact, judged=bool(is_judged))

    def remain(self, site: CallSite | None) -> None:
        """The session let go of its objects, and then it was refused to be closed."""
        self.is_closing = False
        self.ending = ""
        self.leaving = self.closed_during = None
        self.count_transition("persistent_to_detached", total(self.detached))
        self.identity_map_size = self.pending = 0
        self.detached = self.modified = self.removed = NOTHING
        self.modified_attributes = ()
        self.nothing_pending()
        self.origin = Origin(self.scope)
        session = LIVE[self]()
        if session is not None:
            self.watch_loads(session, site)

    def note_leaving(self, error: BaseException | None) -> CallSite | None:
        """Note the line, and the exception, that leave: asyncio closes the session elsewhere."""
        name = ""
        if error is not None:
            self.is_cancellation(error)
            # A generator that is closed early has done what it was asked for.
            is_ordinary = (
                isinstance(error, GeneratorExit)
                or (self.handled is not None and self.handled(error))
                or is_expected(error, self.tracers[0].settings.expected_exceptions)
            )
            name = "" if is_ordinary else type_name(error)
        site = self.site()
        if self.failures is not None and error is not None:
            self.failures.leaves(self, error, self.locator.frames(running_frame(1)))
        self.leaving = (site, name, error is not None)
        return site

    def hand_to(self, tracers: tuple[Tracer, ...]) -> None:
        """Be reported by these tracers and by no others from the next scope on.

        A tracer that reports the open scope does so until its end. A new one begins to report it as
        it is now.
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
            self.publishers = tuple([one for one in self.reports if one.publisher is not None])
            self.tracers = tuple(one for one in self.tracers if one is not tracer)
            if self.is_open and not self.is_beginning:
                self.scope.reports = self.reports

    def reset_counts(self, report: Report) -> None:
        """Reset what counts towards thresholds, because another test uses the session now.

        The other reports of the scope do not repeat a finding. Call it before the test's first
        statement, which would be reset as well.
        """
        self.begin_turn(report)
        self.committing_rows = 0
        self.committing = NOTHING
        self.first_began = None
        if self.failures is not None:
            self.failures.first = None
        self.nested_lines = frozenset()

    def begin_turn(
        self, report: Report | None = None, *, with_load: bool = False, with_row: bool = False
    ) -> None:
        """Count from zero what repeats, because other code uses the session now.

        It is another request, or another call of a test: no loop leads to both. The last load, or
        the last row that was written, may be its first. If the turn is for one report only, the
        others do not repeat a finding.
        """
        self.end_repeats()
        for one in self.reports:
            one.repeats = one.repeats if report is None else one is report
            one.forget_repeats()
        self.loads = self.loads.begin_turn() if self.loads is not None and with_load else None
        self.first_selects = ()
        self.single_rows = self.first_commit = None
        if with_row:
            self.row_count, self.row_folded = 1, 0
        else:
            self.row_run = None

    def failed(self, where: str, error: BaseException) -> None:
        """A failure of session_tracer's own: report it once, and the rest of this scope not."""
        for tracer in self.tracers:
            tracer.failed(where, error)
        for report in self.reports:
            report.stop()
        self.reports = self.publishers = self.recording = ()

    def until_end(self, kind: type[_UntilEnd]) -> _UntilEnd:
        """Return what follows the open transaction to its end, one of each kind."""
        for ask in self.when_ended:
            known = getattr(ask, "__self__", None)
            if type(known) is kind:
                return known
        new = kind()
        self.when_ended += (new.ended,)
        return new

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
        for report in self.publishers:
            report.publish(fact)

    def _publish_and_judge(self, fact: Fact, *, judged: bool) -> None:
        for report in self.publishers:
            report.publish(fact)
        if judged:
            for report in self.reports:
                report.judge(fact)

    # Transactions.

    @property
    def _outermost(self) -> OpenTransaction | None:
        # A listener of the application may begin the next one before the last one's end is seen.
        for one in reversed(self.transactions_open):
            if not one.nested:
                return one
        return None

    @property
    def transaction_began_at(self) -> int:
        """When the open transaction began; 0 if there is none."""
        outermost = self._outermost
        return 0 if outermost is None else outermost.began_at

    @property
    def transaction_began_site(self) -> CallSite | None:
        """Where the open transaction began."""
        outermost = self._outermost
        return None if outermost is None else outermost.site

    def transaction_began(
        self, now: int, site: CallSite | None, *, nested: bool, two_phase: bool
    ) -> None:
        """The session's transaction, or a savepoint, began."""
        user = self.enter(site)
        began = OpenTransaction(now, site, user)
        if nested:
            began.nested = True
        elif two_phase:  # its savepoints are not
            began.two_phase = True
        self.transactions_open += (began,)
        if reporting.now:
            return
        if self.failures is not None:
            self.failures.went_on(self)
        self.last_activity_at = now
        self.last_activity_site = site
        if nested:
            self.savepoints += 1
            self.open_savepoints += 1
            self.savepoints_began += ((self.new, self.dirty, self.deleted),)
            self._publish_began(began)
        else:
            if self.transactions:
                self._begin_anew()
            else:
                self.transactions = 1
            if self.first_began is None:
                # Only a session that is not used by the owner who opened it may be awaited by
                # another.
                root = user if user is self.opened_by else owner.root_of(user)
                self.first_began = (self.tracers[0].caller()[0], root, user)
            is_rare = self.is_reopened or self.opened_in_loop
            if self.publishers or is_rare or self.transactions > 1:
                self._publish_began(began)
        for report in self.reports:
            source = report.span_source
            if source is not None:
                report.begin_spans(source)
        for report, spans in self.recording:
            report.emit(spans.transaction_began, now, site, nested)

    def _begin_anew(self) -> None:
        """A transaction that is not the first begins: what is counted for each is 0 again."""
        self.transactions += 1
        self.last_held = 0
        self.statements_before = self.statements
        self.sql_before = self.sql
        self.committing_rows = 0
        self.committing = NOTHING
        self._decide()

    def _publish_began(self, began: OpenTransaction) -> None:
        user = began.owner
        fact = facts.TransactionBegan(
            at=began.began_at,
            site=began.site,
            nested=began.nested,
            two_phase=began.two_phase,
            owner=user,
            root=user if user is self.opened_by else owner.root_of(user),
            trace=self.tracers[0].caller()[0],
        )
        is_judged = began.nested or self.is_reopened or self.transactions > 1
        is_judged = is_judged or self.opened_in_loop is not None
        self._publish_and_judge(fact, judged=is_judged)

    def transaction_ended(
        self, ended: OpenTransaction, now: int, site: CallSite | None, size: int
    ) -> None:
        """A transaction or savepoint ended, as its `outcome`, `took` and `error` have it."""
        if reporting.now:
            return
        self.ended += 1
        self.last_ended = ended
        ended.ended_site = site
        outcome, nested = ended.outcome, ended.nested
        if self.failures is not None:
            self.failures.transaction_ended(self, committed=outcome == "committed")
        if outcome == "committed" and not nested:
            commits = self.commits = self.commits + 1
            self.last_write = ("commit", site, self.decided)
            self.last_activity_at = now - ended.took
            self.last_activity_site = site
            if self.loads is not None:
                self.loads.committed()
            if commits > _MOST_SIZES:
                self.sizes = self.sizes[:SIZES_KEPT] + self.sizes[SIZES_KEPT + 1 :]
            self.sizes += (size,)
            self.decided = (self.new, self.dirty, self.deleted)
            rows = self.committing_rows
            if (
                self.publishers
                or self.is_suspect
                or (rows and self.first_commit is not None)
                or self.identity_map_peak > self.gates.large_identity_map
            ):
                self._publish_ended(ended, now, site, size)
            if rows:
                if self.first_commit is None:
                    self.first_commit = (site, rows, self.committing, now, ended.took)
                self.committing_rows = 0
                self.committing = NOTHING
        else:
            self._ended_otherwise(ended, now, site, size)
        if not nested:
            released = self.released
            if released:
                self.released = ()
            for report in self.reports:
                for metrics in report.metrics:
                    metrics.transaction_ended(report, outcome, now - ended.began_at, released)
        for report, spans in self.recording:
            report.emit(spans.transaction_ended, now, outcome, nested, ended.error)

    def _ended_otherwise(
        self, ended: OpenTransaction, now: int, site: CallSite | None, size: int
    ) -> None:
        """Account for the end of a savepoint, or of a transaction without a commit; publish it."""
        is_rolled_back = ended.outcome == "rolled_back"
        # What the end of the session ends is no activity of the application's.
        if ended.nested or ended.error or is_rolled_back:
            self.last_activity_at = now - ended.took
            self.last_activity_site = site
        if ended.nested:
            self._savepoint_ended(ended.outcome)
            if self.transactions_open:
                self.transactions_open[-1].inner = ended
        else:
            self.last_write = None
            if is_rolled_back:
                self.rollbacks += 1
            if is_rolled_back or ended.error:
                self._decide()
        self._publish_ended(ended, now, site, size)

    def _commits_again(self, ended: OpenTransaction) -> bool:
        """Whether this is a commit of writes, and not the scope's first one."""
        return (
            self.first_commit is not None
            and self.committing_rows > 0
            and ended.outcome == "committed"
            and not ended.nested
        )

    def _publish_ended(
        self, ended: OpenTransaction, now: int, site: CallSite | None, size: int
    ) -> None:
        is_judged = (
            self.is_suspect
            or ended.outcome == "abandoned"
            or self.identity_map_peak > self.gates.large_identity_map
            or self._commits_again(ended)
        )
        if not (is_judged or self.publishers):
            return
        fact = facts.TransactionEnded(
            at=now,
            site=site,
            outcome=ended.outcome,
            duration=now - ended.began_at,
            took=ended.took,
            nested=ended.nested,
            two_phase=ended.two_phase,
            error=ended.error,
            size=size,
        )
        self._publish_and_judge(fact, judged=is_judged)

    def _decide(self) -> None:
        """All that was flushed is committed, or gone."""
        self.decided = (self.new, self.dirty, self.deleted)
        self.savepoints_began = ()

    def _savepoint_ended(self, outcome: Outcome) -> None:
        """What the savepoint has flushed is the outer transaction's, or is gone."""
        self.open_savepoints = max(0, self.open_savepoints - 1)
        *outer, began = self.savepoints_began or ((),)
        if began and outcome not in _KEPT:
            gone = list(map(difference, (self.new, self.dirty, self.deleted), began))
            self.decided = tuple(map(with_counts, self.decided, gone))
            # What is gone already is not in what an outer savepoint takes with it.
            outer = [tuple(map(with_counts, one, gone)) for one in outer]
        self.savepoints_began = tuple(outer)

    @property
    def has_uncommitted(self) -> bool:
        """Whether anything was flushed whose transaction was not committed or rolled back."""
        return (self.new, self.dirty, self.deleted) != self.decided

    def uncommitted(self) -> dict[str, Counts]:
        """What was flushed and neither committed nor rolled back, by the keys of evidence."""
        now = (self.new, self.dirty, self.deleted)
        pairs = zip(FLUSHED, map(difference, now, self.decided), strict=True)
        return {key: counts for key, counts in pairs if counts}

    @property
    def held_since(self) -> int:
        """Since when the open transaction holds a connection; 0 if it holds none."""
        for holding in self.connections:
            if not holding.is_given_back:
                return holding.since
        return 0

    def connection_acquired(
        self, holding: Holding, now: int, *, joined: bool, borrowed: bool = False
    ) -> None:
        """The transaction used a connection for the first time; it may be `borrowed`."""
        if borrowed:
            self.borrowed += (holding,)
        else:
            self.end_repeats()
            holding.sql_before = self.sql
            self.connections += (holding,)
        if joined:
            self.is_joined = True
        if reporting.now:
            return
        self.database = holding.database
        if self.publishers:
            self._publish(facts.ConnectionAcquired(now, holding.database, holding.site, joined))

    def uses(self, connection: Connection) -> bool:
        """Whether the open transaction runs on this connection."""
        return any(one.holds(connection) for one in self.connections + self.borrowed)

    def release_connections(self, now: int) -> None:
        """The transaction let go of its connections."""
        if self.borrowed:
            self._give_back(now)
        held, self.connections = self.connections, ()
        for holding in held:
            holding.unmark(self)
            if reporting.now:
                continue
            duration = self.last_held = now - holding.since
            self.held += duration
            if self.publishers:
                busy = holding.busy(self.sql)
                self._publish(facts.ConnectionReleased(now, duration, busy, holding.database))
            self.released += ((duration, holding.busy(self.sql)),)

    def _give_back(self, now: int) -> None:
        borrowed, self.borrowed = self.borrowed, ()
        for holding in borrowed:
            holding.unmark(self)
            duration = now - holding.since
            self.publish(facts.ConnectionReleased(now, duration, 0, holding.database))

    def writes_committed(self, now: int, site: CallSite | None) -> None:
        """A transaction with writes was committed: has a session next to it done so, too?"""
        commit = new_tuple(same_owner.Commit, (self.scope, site, self.written))
        self.written = NOTHING
        if len(self.together) > 1 or self.beside:
            for split in same_owner.committed(self, commit, now):
                self.suspect(split)
        else:
            self.commit = commit

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

    # Flushes.

    def flush_began(self, flush: Flush) -> None:
        """The unit of work started to write."""
        if self.publishers:
            self._publish(facts.FlushBegan(flush.began_at, flush.site, flush.trigger))
        for report, spans in self.recording:
            report.emit(spans.flush_began, flush.began_at, flush.site, flush.trigger)

    def flushed(self, flush: Flush, now: int) -> None:
        """The unit of work was written."""
        if reporting.now:
            return
        new, dirty, deleted, unchanged = flush.counts
        site = flush.site
        size = 0
        written = NOTHING
        if new:
            self.new = with_counts(self.new, new) if self.new else new
            written = new
        if dirty:
            self.dirty = with_counts(self.dirty, dirty) if self.dirty else dirty
            written = with_counts(written, dirty) if written else dirty
        if deleted:
            self.deleted = with_counts(self.deleted, deleted) if self.deleted else deleted
            written = with_counts(written, deleted) if written else deleted
        if unchanged:
            self.unchanged = with_counts(self.unchanged, unchanged)
        if written:
            size = sum(written.values())
            self.written = with_counts(self.written, written) if self.written else written
            self.committing = with_counts(self.committing, written) if self.committing else written
            self.committing_rows += size
            self.last_write = ("flush", site, ())
        self.flushed_site = self.last_activity_site = site
        self.last_activity_at = flush.began_at
        self.flushes += 1
        if (
            self.publishers
            or unchanged
            or (size and flush.trigger == "autoflush")
            or size > self.gates.large_flush
            or self.identity_map_peak > self.gates.large_identity_map
        ):
            self._publish_flushed(flush, now, size)
        for report in self.reports:
            for metrics in report.metrics:
                metrics.flushed(report, flush.trigger, "", now - flush.began_at)
        for report, spans in self.recording:
            sizes = (total(new), total(dirty), total(deleted), total(unchanged))
            report.emit(spans.flush_ended, now, *sizes, "")

    def _publish_flushed(self, flush: Flush, now: int, size: int) -> None:
        new, dirty, deleted, unchanged = flush.counts
        is_judged = (
            bool(unchanged)
            or (flush.trigger == "autoflush" and size > 0)
            or size > self.gates.large_flush
            or self.identity_map_peak > self.gates.large_identity_map
        )
        fact = facts.FlushCompleted(
            at=now,
            site=flush.site,
            trigger=flush.trigger,
            duration=now - flush.began_at,
            new=dict(new),
            dirty=dict(dirty),
            deleted=dict(deleted),
            unchanged=dict(unchanged),
            unchanged_attributes=flush.unchanged_attributes,
        )
        self._publish_and_judge(fact, judged=is_judged)

    def flush_failed(self, fact: facts.FlushFailed, error: BaseException | None = None) -> None:
        """The unit of work could not be written."""
        if reporting.now:
            return
        self.failed_flushes += 1
        self.last_activity_at = fact.at - fact.duration
        self.last_activity_site = fact.site
        if self.failures is None:
            self.failures = Failures()
        is_same = _is_any if error is None else recognising(error)
        self.failures.flush_failed(self, fact, self.failure, is_same)
        self.publish(fact)
        for report in self.reports:
            for metrics in report.metrics:
                metrics.flushed(report, fact.trigger, fact.error, fact.duration)
        for report, spans in self.recording:
            sizes = (total(fact.new), total(fact.dirty), total(fact.deleted))
            report.emit(spans.flush_ended, fact.at, *sizes, None, fact.error)

    def note_failure(self, first: First) -> None:
        """A statement failed: what follows may be refused because of it."""
        if reporting.now:
            return
        if self.failures is None:
            self.failures = Failures()
        if self.failures.first is None:
            self.failures.first = first

    def lock_refused(self, fact: facts.FlushFailed, passes: Failure, error: BaseException) -> None:
        """A statement outside of a flush, or a COMMIT, failed because of another transaction."""
        if reporting.now:
            return
        if self.failures is None:
            self.failures = Failures()
        if not self.failures.is_known(error):
            self.failures.flush_failed(self, fact, passes, recognising(error))

    def flush_failure_decided(self, fact: facts.FlushFailureDecided) -> None:
        """It is known whether the application has handled a failed flush."""
        self.suspect(fact)
        if fact.failed.operation:
            return  # no flush, whose log event this would be
        for report in self.reports:
            if report.logs is not None:
                report.emit(report.logs.flush_failed, report, fact)

    def on_loop(self, user: Owner) -> None:
        """Code that an event loop runs uses a session which is no AsyncSession, or has used it."""
        blocking.used(self, user)

    def rollback_pending(self, fact: facts.RollbackPending) -> None:
        """The session was used after a failure, without a rollback."""
        if self.failures is not None and not reporting.now:
            self.failures.used_again(self)
        self.suspect(fact)

    # Statements.

    def executed(
        self,
        at: int,
        site: CallSite | None,
        duration: int,
        operation: str,
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

    def selected(
        self, select: Any, make: Callable[..., facts.StatementExecuted], parameters: Any
    ) -> None:
        """A SELECT of the application's own is one of the first few, or is judged.

        `make` makes the fact of `select`, a tuple, and of the parameters, which are not kept.
        """
        if reporting.now:
            return
        first = self.first_selects
        if len(first) + 1 < self.gates.selects:
            self.first_selects = (*first, select)
            return
        if first and type(first[0]) is tuple:
            # The detectors' memories begin with those before.
            first = self.first_selects = tuple([make(one, self) for one in first])
        fact = make(select, self, parameters)
        self.judge(fact)
        if len(first) < self.gates.selects:
            self.first_selects = (*first, fact)

    def judge(self, fact: Fact) -> None:
        """A counter crossed a threshold: ask the detectors."""
        for report in self.reports:
            report.judge(fact)

    def executed_by_flush(
        self, at: int, site: CallSite | None, duration: int, operation: str, collection: str
    ) -> None:
        """A statement of the unit of work ran without an error."""
        number = self.statements = self.statements + 1
        writes = self.writes
        if not writes:
            writes = self.writes = {}
        writes[collection] = number
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
        duration: int,
    ) -> bool:
        """Count a row that was written by a statement of its own; whether they are enough now."""
        if self.row_run is not None:
            self.fold_rows()
        run: Run
        if flush is None:
            run = ((site, False, operation, collection), hash(statement), 0, True)
        else:
            by_line = flush.trigger == "explicit"
            run = ((site, True, operation, collection), hash(statement), self.flush_number, by_line)
        self.row_run = run
        rows = self.single_rows
        before = 0 if rows is None else rows.before(run, self.gates.least_single_rows)
        self.row_folded = before
        count = self.row_count = before + 1
        self.row_ns = duration
        if count not in self.gates.single_rows:
            return False
        self.fold_rows()
        return True

    def may_repeat(self, flush: Flush, statement: str, *, rows: bool) -> None:
        """The flush has run a statement that it may repeat, for one row each time or for several.

        The repeats are only timed and counted. The first of them finds out after which number of
        statements the rows are to be judged.
        """
        if self.attaches or len(self.connections) > 1:
            return  # more is to be done for each
        flush.repeated = statement
        flush.repeats_rows = rows
        flush.counted = self.statements
        flush.counted_sql = self.sql
        flush.counts_at = self.statements + 1 if rows else 0

    def count_repeats(self, flush: Flush) -> bool:
        """Count the rows that repeats have written. Return whether they are to be judged."""
        number = self.statements
        self.row_count += number - flush.counted
        self.row_ns += self.sql - flush.counted_sql
        flush.counted, flush.counted_sql = number, self.sql
        count, thresholds = self.row_count, self.gates.single_rows
        flush.counts_at = number + min([at - count for at in thresholds if at > count], default=0)
        if count not in thresholds:
            return False
        self.fold_rows()
        return True

    def end_repeats(self) -> None:
        """Count the rows that repeats have written, because another statement follows."""
        flush = self.flush
        if flush is not None and flush.repeated is not None:
            flush.repeated = None
            if flush.repeats_rows:
                self.count_repeats(flush)

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
        rows.add(run, self.row_count - self.row_folded, self.row_ns, least)
        self.row_folded = self.row_count
        self.row_ns = 0

    def wrote_rows(self, entity: str, collection: str, rows: int) -> None:
        """A statement of the application's own wrote rows, -1 where it is not known how many."""
        self.written = with_counts(self.written, {entity or collection: max(rows, 1)})
        if rows > 0 and not reporting.now:
            self.committing_rows += rows
            if entity:
                self.committing = with_counts(self.committing, {entity: rows})

    def wrote_to(self, collection: str) -> None:
        """A statement of the application's own wrote to the table, empty where it is not known."""
        if len(self.writes) >= _MOST_TABLES:  # names can be made as the application runs
            self.writes, collection = NOTHING, ""
        if not self.writes:
            self.writes = {}
        self.writes[collection] = self.statements

    def reads_the_same(self, tables: frozenset[str], number: int) -> bool:
        """Whether the open transaction ran that statement, and has not written to these since."""
        if number <= self.statements_before:
            return False
        since = {table_name(name) for name, last in self.writes.items() if last >= number}
        return "" not in since and since.isdisjoint(tables)

    def has_written(self, tables: frozenset[str]) -> bool:
        """Whether the scope has written to one of these tables."""
        return not tables.isdisjoint(map(table_name, self.writes))

    def statement_started(self, fact: facts.StatementStarted) -> None:
        """A statement is about to go to the driver."""
        if reporting.now:
            return
        if self.publishers:
            self._publish(fact)
        for report, spans in self.recording:
            if report.tracer.tells_statements:
                report.emit(spans.statement_started, fact)

    def statement_executed(self, fact: facts.StatementExecuted) -> None:
        """Report a statement by itself, where that was asked for."""
        if reporting.now:
            return
        if self.publishers:
            self._publish(fact)
        for report in self.reports:
            if report.tracer.tells_statements:
                for metrics in report.metrics:
                    metrics.statement_executed(report, fact)
        for report, spans in self.recording:
            if report.tracer.tells_statements:
                report.emit(spans.statement_executed, fact)

    def attribute_loaded(
        self,
        load: Load,
        *,
        site: CallSite | None,
        parent: int,
        select: int | None,
        expired_by: Expiry | Literal[""],
        duration: int,
    ) -> bool:
        """A statement ran because an attribute of one object was read or refreshed.

        `parent` is equal for two loads for the same object, `select` for objects that one SELECT
        has brought. Return whether it is to be judged.
        """
        if reporting.now:
            return False
        kind = load.kind
        if self.lazy_loads is NOTHING:
            self.lazy_loads = {}
        self.lazy_loads[kind] = self.lazy_loads.get(kind, 0) + 1
        if kind == "detached":
            return False
        loads, gates = self.loads, self.gates
        if loads is None:
            loads = self.loads = Loads()
        if kind == "refresh":
            loads.refreshes += 1
            loads.refreshed_site = site
            return True
        if expired_by == "commit" and kind in _EXPIRING:
            count = loads.count = loads.reloaded(load, parent, duration, gates.most_reloads)
            key: object = load.entity
            nearly, reached = gates.nearly_reloads, gates.reloads
        elif kind == "expired":
            return False
        else:
            count = loads.loaded(site, load, parent, select, duration, gates.most_loads)
            loads.count = count
            key = (site, load)
            nearly, reached = gates.nearly_loads, gates.loads
        if not count:
            return False
        is_reached = count in reached
        if is_reached:
            loads.recall(key)
        if count in nearly:
            loads.note(key, self.locator.passed())
        return is_reached

    # What is loaded.

    def first_used(self, session: Session, site: CallSite | None) -> None:
        """The scope's first transaction is about to begin.

        Only now is it next to others: where nothing listens, a session that is open and unused has
        no scope.
        """
        self.is_used = True
        same_owner.join(self)
        self.load_site = self.first_used_site = site
        opened = self.opened_site
        # CallSite is hashed by Python code, its id is not.
        run = run_of((id(opened), self.opened_by.ident))
        if run is None:
            openings.begin(self, opened)
        else:
            left = run.left = run.left - 1
            if not left:
                openings.reached(self, run)
        if site is None:
            pass
        elif opened is None or site.function != opened.function or site.file != opened.file:
            first_use.elsewhere(self, site)
        elif (opened.file, opened.function) in self.locator.generators:
            self.may_be_lent = True
        if object_counter.IS_KNOWN:
            self.counter = object_counter.MapCounter(session.identity_map, self.origin, site)

    def watch_loads(self, session: Session, site: CallSite | None) -> None:
        """Count what the session's new identity map takes in from now on."""
        self.load_site = site
        self.route = None
        if object_counter.IS_KNOWN:
            self.counter = object_counter.MapCounter(session.identity_map, self.origin, site)

    def executing(self, site: CallSite | None, *, brings: bool) -> Owner | None:
        """A statement is about to run here; return what runs it, None inside of another statement.

        All its rows may become objects at once, unless `streaming()` follows. It `brings` none that
        are new to the session if it is a flush's UPDATE or DELETE.
        """
        counter = self.counter
        if counter.counts:
            self.settle(self.clock())
        worker = None
        if self.at_work is None:
            worker = self.enter(site)
            self.at_work_site = site
        else:
            self.check_use(site)
        if self.is_streaming:
            self._not_streaming()
        self.size_before = counter.size()
        if site is not self.load_site or self.sweeps_seen != self.scope.sweeps:
            if brings:
                self.load_site = site
                self.sweeps_seen = self.scope.sweeps
                self.route = None
                counter.come_from(site)
            if self.may_be_lent and site is not None:
                first_use.elsewhere(self, site)
        return worker

    def streaming(self, at_once: int) -> None:
        """The rows become objects `at_once` at a time, or a number that is not known if it is 0.

        No listener sees an identity map at its fullest, but it can be computed from `at_once`. For
        `partitions()`, whose size is not known, each object is followed.
        """
        self.is_streaming = True
        self.at_once = at_once
        if not at_once:
            self.in_portions = True
            self.counter.follow(on=True)

    def _not_streaming(self) -> None:
        self.is_streaming = False
        self.at_once = 0
        if self.in_portions:
            self.in_portions = False
            self.counter.follow(on=False)

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
        counts = counter.counts
        if len(counts) == 1:
            ((kind, number),) = counts.items()
            came = {kind.__name__: number}
        else:
            came = by_name(counts)
            number = sum(came.values())
        counts.clear()
        if not number:
            return
        at_once = self.at_once
        size = self.size_before + number
        if at_once or self.in_portions:
            if self.in_portions and 0 < counter.peak - self.size_before < number:
                at_once = counter.peak - self.size_before
            if 0 < at_once < number:
                size = self.size_before + at_once
        peak = self.identity_map_peak
        if size > peak:
            self.identity_map_peak = peak = size
        if (size := counter.size()) > peak:
            self.identity_map_peak = peak = size
        if reporting.now:
            return
        self.loaded = with_counts(self.loaded, came) if self.loaded else came
        gates = self.gates
        is_judged = peak > gates.large_identity_map or (number > gates.large_result and not at_once)
        if is_judged or self.publishers:
            fact = facts.ObjectsLoaded(now, self.load_site, came, at_once)
            self._publish_and_judge(fact, judged=is_judged)

    @property
    def transitions(self) -> Counts:
        """The objects that went from one state to another, by SQLAlchemy's event name."""
        counts: Counts = {}
        added = self.added_before
        if self.pending_by_class:
            added += sum(self.pending_by_class.values())
        if added:
            counts["transient_to_pending"] = added
        if self.new and (number := sum(self.new.values())):
            counts["pending_to_persistent"] = number
        if self.deleted and (number := sum(self.deleted.values())):
            counts["persistent_to_deleted"] = number
        if self.loaded and (number := sum(self.loaded.values())):
            counts["loaded_as_persistent"] = number
        if self.other_transitions:
            counts |= self.other_transitions
        if self.detached:
            # Objects that `expunge()` detached are counted as well.
            expunged = counts.get("persistent_to_detached", 0)
            counts["persistent_to_detached"] = expunged + sum(self.detached.values())
        return counts

    def count_transition(self, name: str, count: int = 1) -> None:
        """Count objects that went from one state to another, where no total covers that."""
        if count:
            self.other_transitions = with_counts(self.other_transitions, {name: count})

    def nothing_pending(self) -> None:
        """What was added is flushed, or gone."""
        self.added_before += sum(self.pending_by_class.values())
        self.pending_by_class.clear()

    # Objects that leave, and what SQLAlchemy has no event for.

    def objects_expired(self, now: int, site: CallSite | None, count: int) -> None:
        """`expire()` or `expire_all()` was called."""
        self._did(now, site)
        self.expired += count
        self.wrote_to("")
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
        return None if self.attaching is None else self.attaching.attach()


_SAVEPOINT_OPERATIONS: Final = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK"})
_MOST_TABLES: Final = 1_000
# What a savepoint has flushed is the outer transaction's after these.
_KEPT: Final = frozenset({"committed", "closed", "abandoned"})
FLUSHED: Final = ("flushed_new", "flushed_dirty", "flushed_deleted")

# What wakes the watchdog as a session is opened; empty unless it waits for one.
ASLEEP: Final[list[Callable[[], None]]] = []
# What is called as the garbage collector takes an open session.
_LOSSES: Final[list[Callable[[Ledger], None]]] = []


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


def _is_any(_: BaseException) -> bool:
    """What a flush raises that had no error when its transaction ended, is its error."""
    return True


def recognising(error: BaseException) -> Callable[[BaseException], bool]:
    """What recognises this very exception again, without keeping it and its frames alive."""
    try:
        known = weakref.ref(error)
    except TypeError:  # one of the interpreter's own: another may later lie in its place
        address = id(error)
        return lambda other: id(other) == address
    return lambda other: known() is other


def table_name(collection: str) -> str:
    """A table's name in lower case, without its quotes and its schema."""
    return collection.rpartition(".")[2].strip('"`[]').lower()


def type_name(error: BaseException) -> str:
    """An exception's type as OpenTelemetry's `error.type` wants it."""
    kind = type(error)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"

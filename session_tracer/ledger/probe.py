"""What hangs on a traced Session: its stories, and what the listeners need between two events."""

from __future__ import annotations

import random
import sys
import threading
import time
import weakref
from asyncio import CancelledError
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from session_tracer import facts
from session_tracer.ledger import object_counter, same_owner
from session_tracer.ledger.in_progress import SLOT, Flush, Holding, OpenTransaction
from session_tracer.ledger.origin import Origin, Scope
from session_tracer.ledger.registry import LIVE
from session_tracer.ledger.watchdog import collected, nudge
from session_tracer.publisher.timeline import NOTHING
from session_tracer.runtime import process, threads
from session_tracer.signals.spans import caller
from session_tracer.tracer import is_telling, tell
from session_tracer.where import owner
from session_tracer.where.frameworks import error_of_request, is_by_transaction_manager
from session_tracer.where.tasks import running_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.orm import Session

    from session_tracer.facts import Counts, Ending, Expiry, Fact, Outcome
    from session_tracer.ledger.origin import Route
    from session_tracer.ledger.same_owner import Commit
    from session_tracer.signals.spans import Attached
    from session_tracer.tracer import Story, Tracer
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.except_finder import Failure
    from session_tracer.where.owner import Owner

__all__ = ["Probe", "add_transition", "by_name", "probe_of", "type_name"]

# Where a scope is left, the error that leaves, and whether anything does.
Leaving: TypeAlias = "tuple[CallSite | None, str, bool]"

_IDS = random.Random()
process.in_child(_IDS.seed)

# Held while it changes who reports an open scope.
_HANDING: Final = process.PerProcess(threads.RLock)


def probe_of(owner: object) -> Probe | None:
    """The probe of a traced Session or of a Connection that one holds."""
    probe: Probe | None = owner.__dict__.get(SLOT)
    return probe


class ProbeRef(weakref.ref["Session"]):
    """A weak reference to a session that still knows its probe when the session is gone."""

    __slots__ = ("probe",)

    probe: Probe


class Probe:
    """One for each traced Session, for all its scopes in turn."""

    __slots__ = (
        "_at_once",
        "_handled",
        "_in_portions",
        "_is_beginning",
        "_last_ending",
        "_load_site",
        "_locate",
        "_route",
        "_size_before",
        "_sweeps",
        "added_site",
        "at_work",
        "at_work_site",
        "beside",
        "caller",
        "cancelled",
        "clock",
        "closing",
        "commit",
        "connections",
        "counter",
        "failure",
        "flush",
        "is_async",
        "is_joined",
        "is_managed",
        "is_streaming",
        "kind",
        "last_outcome",
        "last_site",
        "leaving",
        "loop_changed",
        "loop_owner",
        "loop_site",
        "open",
        "opened_by",
        "origin",
        "owner",
        "pending",
        "scope",
        "stories",
        "tells_statements",
        "tracers",
        "transactions",
        "transitions",
        "used",
        "was_handed_on",
        "written",
    )

    def __init__(
        self, tracers: tuple[Tracer, ...], *, is_async: bool, clock: Callable[[], int]
    ) -> None:
        self.tracers = tracers
        self.is_async = is_async
        self.stories: tuple[Story, ...] = ()
        # Nanoseconds of the monotonic clock.
        self.clock = clock
        self._locate = tracers[0].locator.locate
        self.open = False
        # Until its first scope's stories are begun, others only leave word who shall tell of it.
        self._is_beginning = True
        self._handled: Callable[[BaseException], bool] = _never
        self.scope = _NO_SCOPE
        self.origin = _NO_ORIGIN
        self.leaving: Leaving | None = None
        self.closing = False
        self.tells_statements = False
        self.opened_by = self.owner = _NOBODY
        self.kind: tuple[type, int] = (object, 0)
        self._last_ending: tuple[Ending | Literal[""], CallSite | None, Owner] = ("", None, _NOBODY)
        self._forget()

    def _forget(self) -> None:
        self.used = False
        self.last_outcome: Outcome = "closed"
        self.last_site: CallSite | None = None
        self.transactions: list[OpenTransaction] = []
        self.connections: list[Holding] = []
        self.flush: Flush | None = None
        self.counter = object_counter.NOTHING_LOADED
        self._load_site: CallSite | None = None
        self._route: Route | None = None
        self._size_before = 0
        self._at_once = 0
        self._in_portions = False
        self._sweeps = 0
        self.transitions: Counts = {}
        # What was added and is not flushed, by mapped class, and where the last of it was.
        self.pending: dict[type, int] = {}
        self.added_site: CallSite | None = None
        # Who is inside an operation of the session, and where.
        self.at_work: Owner | None = None
        self.at_work_site: CallSite | None = None
        self.is_streaming = False
        # Who used it first under asyncio, where, and whether it was used on another loop since.
        self.loop_owner: Owner | None = None
        self.loop_site: CallSite | None = None
        self.loop_changed = False
        self.cancelled = False
        # The last flush that failed.
        self.failure: Failure | None = None
        self.was_handed_on = False
        self.is_joined = False
        self.is_managed = False
        # What this transaction has written, what the scope and those beside it have committed.
        self.written: Counts = NOTHING
        self.commit: Commit | None = None
        self.beside: tuple[Commit, ...] = ()

    # The scope.

    def begin_scope(self, session: Session, site: CallSite | None, *, reopened: bool) -> None:
        """A scope begins on the session."""
        tracers = self.tracers
        for tracer in tracers:
            if not tracer.is_settled:
                tracer.settle()
        now = self.clock()
        scope = Scope(f"{_IDS.getrandbits(64):016x}", site, is_async=self.is_async)
        if reopened:
            self._forget()
        # What stands for its factory: an async_sessionmaker has no class of its own.
        self.kind = (type(session), id(session.bind))
        self.opened_by = self.owner = owner.current()
        self.caller = caller()
        self.scope = scope
        self.origin = Origin(scope)
        self.open = self._is_beginning = True
        # An exception that is being handled already is not one that leaves the session's block.
        self._handled = _recognising(sys.exc_info()[1])
        if not is_telling():
            # Read one right after the other: what passes between them, spans would be late by.
            epoch = time.time_ns() - self.clock()
            self.stories = tuple(
                [tracer.begin(scope, epoch) for tracer in tracers if not tracer.closed]
            )
            for story in self.stories:
                story.record.transitions = self.transitions
                self.tells_statements = self.tells_statements or story.tracer.tells_statements
        scope.stories = self.stories
        ref = ProbeRef(session, collected)
        ref.probe = self
        LIVE[self] = ref
        nudge()
        same_owner.join(self)
        ending, closed_site, closed_by = self._last_ending
        self.tell(
            facts.SessionOpened(
                now, site, reopened, ending, closed_site, reopened and closed_by == self.owner
            )
        )
        self._is_beginning = False
        if self.tracers is not tracers:
            with _HANDING.value:  # another thread has instrumented or uninstrumented meanwhile
                meant, self.tracers = self.tracers, tracers
                self.hand_to(meant)

    def resume(self, session: Session) -> None:
        """Begin a scope if none is open: the session is used again, or for the first time."""
        if not self.open:
            reopened = self.scope is not _NO_SCOPE
            self.begin_scope(session, self.site(), reopened=reopened)

    def departing(self, ending: Ending) -> None:
        """The session is about to let go of everything it holds."""
        now = self.clock()
        self.closing = True
        if self.leaving is None:
            self.note_leaving(sys.exc_info()[1] or error_of_request())
        site = self.leaving[0] if self.leaving is not None else None
        if self.counter.counts:
            self.settle(now)
        self.check_use(site)
        if is_by_transaction_manager():
            self.is_joined = self.is_managed = True
        self.origin.left(ending, now, site)

    def end_scope(
        self,
        ending: Ending,
        *,
        site: CallSite | None = None,
        size: int = 0,
        pending: int = 0,
        detached: Counts | None = None,
        error: str = "",
        leaving: bool = False,
        modified: Counts | None = None,
        removed: Counts | None = None,
    ) -> None:
        """The scope ended; nothing is remembered of it but what its objects carry."""
        # In this order: one that is interrupted in between is still to be ended when it is lost.
        same_owner.leave(self)
        LIVE.pop(self, None)
        now = self.clock()
        if self.counter.counts:
            self.settle(now)
        if self.transactions:
            self._give_up_transactions(now, site)
        if not self.used:
            outcome: Outcome = "unused"
        elif ending in ("collected", "exit"):
            outcome = "abandoned"
        elif error:
            outcome = "failed"
        else:
            outcome = self.last_outcome
        closed = facts.SessionClosed(
            self.clock(),
            site,
            ending,
            outcome,
            size,
            pending,
            error,
            detached or {},
            leaving,
            by_name(self.pending) if self.pending else {},
            modified or {},
            removed or {},
            self.added_site,
            self.is_joined,
        )
        self.tell(closed)
        # Whose transactions are managed, is meant to be used again.
        self._last_ending = ("reset" if self.is_managed else ending, site, self.owner)
        self.scope.end()
        self.open = False
        self.stories = ()
        self.leaving = None
        self.closing = False
        # The rest is forgotten as another scope begins: most sessions have one.
        self.counter = object_counter.NOTHING_LOADED
        self.flush = None

    def remain(self, session: Session, site: CallSite | None) -> None:
        """The session let go of its objects, and then it was refused to be closed."""
        self.closing = False
        self.leaving = None
        self.pending.clear()
        self.origin = Origin(self.scope)
        self.watch_loads(session, site)

    def release_connections(self, now: int) -> None:
        """The transaction let go of its connections."""
        held, self.connections = self.connections, []
        for holding in held:
            holding.unmark(self)
            self.tell(
                facts.ConnectionReleased(now, now - holding.since, holding.busy, holding.database)
            )

    def _give_up_transactions(self, now: int, site: CallSite | None) -> None:
        """Say of transactions that were never ended that they were abandoned."""
        while self.transactions:
            lost = self.transactions.pop()
            if not lost.nested:
                self.release_connections(now)
            duration = now - lost.began_at
            self.tell(
                facts.TransactionEnded(
                    now, site, "abandoned", duration, 0, lost.nested, lost.two_phase
                )
            )

    def note_leaving(self, error: BaseException | None) -> Leaving:
        """Note the line, and the exception, that leave: asyncio closes the session elsewhere."""
        if isinstance(error, CancelledError):
            self.note_cancelled(error)
        noted = self.leaving = (self.site(), self._name_leaving(error), error is not None)
        return noted

    def _name_leaving(self, error: BaseException | None) -> str:
        # A generator that is closed early has done what it was asked for.
        if error is None or isinstance(error, GeneratorExit) or self._handled(error):
            return ""
        return type_name(error)

    def hand_to(self, tracers: tuple[Tracer, ...]) -> None:
        """Be told of by these and by no others from the next scope on.

        Who tells of the open scope goes on to its end; who comes besides is told how far it is.
        """
        if not tracers:
            return
        for tracer in tracers:
            tracer.settle()
        with _HANDING.value:  # several threads may do so, and begin a story once only
            known, self.tracers = self.tracers, tracers
            self._locate = tracers[0].locator.locate
            if self._is_beginning:
                return  # begin_scope() hands it on when its stories are begun
            telling = [story.tracer for story in self.stories]
            coming = [tracer for tracer in tracers if tracer not in telling and not tracer.closed]
            if any(tracer not in tracers for tracer in telling):
                coming = coming[1:]  # the nearest comes first: its turn is the next scope
            coming = [tracer for tracer in coming if tracer not in known]
            if not (self.open and coming):
                return
            self.tells_statements = any(tracer.tells_statements for tracer in tracers)
            now = self.clock()
            begun = tuple(tracer.begin(self.scope, time.time_ns() - now) for tracer in coming)
            self.stories = self.scope.stories = self.stories + begun
        for story in begun:
            story.record.transitions = self.transitions
            story.tell(facts.SessionOpened(now, self.scope.opened_site))
            for open_ in self.transactions:
                story.tell(
                    facts.TransactionBegan(now, None, open_.nested, open_.two_phase, open_.owner)
                )
            for holding in self.connections:
                story.tell(facts.ConnectionAcquired(now, holding.database))

    def part(self, tracer: Tracer) -> None:
        """Be told of by this one no longer."""
        with _HANDING.value:
            for story in self.stories:
                if story.tracer is tracer:
                    story.stop()
            self.stories = tuple(story for story in self.stories if story.tracer is not tracer)
            self.tracers = tuple(one for one in self.tracers if one is not tracer)

    # Who uses it.

    def enter(self, site: CallSite | None) -> Owner:
        """Who uses it now, which is remembered; said so if another one is inside an operation."""
        user = self.owner
        if not user.is_current():
            before, user = user, owner.current()
            self._check_worker(site, user)
            self.owner = user
            self.was_handed_on = True
            same_owner.hand_on(self, before)
        elif self.at_work is not None or (self.flush is not None and self.flush.owner is not user):
            self._check_worker(site, user)
        if self.is_async and not self.loop_changed:
            self._check_loop(site)
        return user

    def check_use(self, site: CallSite | None) -> None:
        """Say so if another one is inside an operation, or if this is another event loop."""
        if self.at_work is not None or self.flush is not None:
            self._check_worker(site, self.owner if self.owner.is_current() else owner.current())
        if self.is_async and not self.loop_changed:
            self._check_loop(site)

    def _check_worker(self, site: CallSite | None, user: Owner) -> None:
        worker, other_site = self.at_work, self.at_work_site
        if worker is None and self.flush is not None and self.flush.began:
            worker, other_site = self.flush.owner, self.flush.site
        if worker is not None and worker is not user and not worker.is_current():
            self.tell(facts.SessionUsedConcurrently(self.clock(), site, user, other_site, worker))

    def _check_loop(self, site: CallSite | None) -> None:
        loop = running_loop()
        if loop is None:
            return
        first = self.loop_owner
        if first is None:
            self.loop_owner, self.loop_site = owner.current(), site
        elif first.loop() is not loop:
            self.loop_changed = True
            now_in = owner.current()
            self.tell(
                facts.EventLoopChanged(
                    self.clock(),
                    site,
                    now_in.thread_name,
                    first.thread_name,
                    self.loop_site,
                )
            )

    def note_cancelled(self, error: BaseException) -> None:
        """A task is being cancelled: say so if that leaves a transaction open."""
        if self.cancelled or not self.transactions:
            return
        self.cancelled = True
        site = self.tracers[0].locator.raised_at(error) or self.site()
        # SQLAlchemy may be leaving the block in a task of its own.
        self.tell(facts.TransactionCancelled(self.clock(), site, self.owner))

    # Telling.

    def tell(self, fact: Fact) -> None:
        """Tell a fact to every story of this scope."""
        tell(self.stories, fact)

    def site(self) -> CallSite | None:
        """The application's line that is at work.

        Where the stack does not say, it is the line that is leaving the session (it runs in a task
        of its own), else the last one known.
        """
        if self.closing and self.leaving is not None:
            return self.leaving[0]
        site = self._locate(2)
        if site is None:
            if self.leaving is not None:
                return self.leaving[0]
            return self.last_site or self.scope.opened_site
        self.last_site = site
        return site

    def failed(self, where: str, error: BaseException) -> None:
        """A failure of ours: say it once, and tell this scope's story no further."""
        for tracer in self.tracers:
            tracer.failed(where, error)
        for story in self.stories:
            story.stop()
        self.stories = ()

    # What is loaded.

    def watch_loads(self, session: Session, site: CallSite | None) -> None:
        """Count what the session's identity map takes in from now on."""
        self.counter = object_counter.watch(session.identity_map, self.origin, site)
        self._load_site = site
        self._route = None

    def swept(self, by: Expiry, site: CallSite | None) -> None:
        """Everything that the session holds was expired."""
        self.scope.swept(by, site)

    def loading(
        self, site: CallSite | None, at_once: int = 0, *, in_portions: bool = False
    ) -> None:
        """A statement is about to run whose rows may become objects.

        `at_once` is how many rows become objects at a time, or 0 where all of them do: no listener
        sees an identity map at its fullest, but that says how full it was. With `in_portions` they
        may come in some that nobody has said the size of, as `partitions()` asks for them.
        """
        counter = self.counter
        self._size_before = counter.size()
        self._at_once = at_once
        if in_portions or self._in_portions:
            self._in_portions = in_portions
            counter.follow(on=in_portions)
        if site is not self._load_site or self._sweeps != self.scope.sweeps:
            self._load_site = site
            self._sweeps = self.scope.sweeps
            self._route = None
            counter.come_from(site)

    def come_by(self, route: Route | None) -> None:
        """The rows of the statement that has just run come by a lazy load, or by none."""
        if route != self._route:
            self._route = route
            self.counter.come_from(self._load_site, route)

    def settle(self, now: int) -> None:
        """Tell what the last statement's rows became."""
        counter = self.counter
        if counter.counts:
            loaded = by_name(counter.counts)
            counter.counts.clear()
            number = sum(loaded.values())
            at_once = self._at_once
            if self._in_portions and 0 < counter.peak - self._size_before < number:
                at_once = counter.peak - self._size_before
            together = min(number, at_once) if at_once else number
            self.measure(max(self._size_before + together, counter.size()))
            add_transition(self.transitions, "loaded_as_persistent", number)
            self.tell(facts.ObjectsLoaded(now, self._load_site, loaded, at_once))

    def measure(self, size: int) -> None:
        """The identity map holds so many objects now."""
        for story in self.stories:
            if size > story.record.identity_map_peak:
                story.record.identity_map_peak = size

    # The context while a statement runs.

    def attach(self) -> Attached | None:
        """The caller's context with the innermost open span, to attach; None to leave it be."""
        # Where the application is traced and a test captures as well, the application's spans are
        # the ones that its other instrumentations belong to.
        return self.stories[0].spans.attach() if self.stories else None


def by_name(counts: Mapping[type, int]) -> Counts:
    """Counts by mapped class as counts by its name; two classes may have the same."""
    named: Counts = {}
    for entity, count in counts.items():
        named[entity.__name__] = named.get(entity.__name__, 0) + count
    return named


def add_transition(transitions: Counts, name: str, count: int = 1) -> None:
    """Count objects that went from one state to another."""
    if count:
        transitions[name] = transitions.get(name, 0) + count


def _never(_: BaseException) -> bool:
    """Recognises no exception."""
    return False


def _recognising(error: BaseException | None) -> Callable[[BaseException], bool]:
    """What recognises this very exception again, without keeping it and its frames alive."""
    if error is None:
        return _never
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


_NO_SCOPE: Final = Scope("", None, is_async=False)
_NO_ORIGIN: Final = Origin(_NO_SCOPE)
_NOBODY: Final = owner.Owner(threading.main_thread(), None, None, object())

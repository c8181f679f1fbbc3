"""What hangs on a traced Session: its stories, and what the listeners need between two events."""

from __future__ import annotations

import os
import random
import sys
import time
import weakref
from typing import TYPE_CHECKING, Final

from session_tracer import facts, loads
from session_tracer.live import LIVE, collected
from session_tracer.origin import Origin, Scope
from session_tracer.tracer import is_telling
from session_tracer.underway import SLOT, Flush, Holding, OpenTransaction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.orm import Session

    from session_tracer.callsite import CallSite
    from session_tracer.facts import Counts, Ending, Fact, Outcome
    from session_tracer.signals.spans import Attached
    from session_tracer.tracer import Story, Tracer

__all__ = ["Probe", "add_transition", "by_name", "probe_of", "type_name"]

_IDS = random.Random()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_IDS.seed)


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
        "_clock",
        "_handled",
        "_load_site",
        "_locate",
        "_size_before",
        "closing",
        "connections",
        "counter",
        "flush",
        "is_async",
        "last_outcome",
        "last_site",
        "leaving",
        "open",
        "origin",
        "scope",
        "stories",
        "tells_statements",
        "tracers",
        "transactions",
        "transitions",
        "used",
    )

    def __init__(
        self, tracers: tuple[Tracer, ...], *, is_async: bool, clock: Callable[[], int]
    ) -> None:
        self.tracers = tracers
        self.is_async = is_async
        self.stories: tuple[Story, ...] = ()
        self._clock = clock
        self._locate = tracers[0].locator.locate
        self.open = False
        self._handled: Callable[[BaseException], bool] = _never
        self.scope = _NO_SCOPE
        self.origin = Origin(_NO_SCOPE)
        self.leaving: tuple[CallSite | None, str] | None = None
        self.closing = False
        self.tells_statements = False
        self._forget()

    def _forget(self) -> None:
        self.used = False
        self.last_outcome: Outcome = "closed"
        self.last_site: CallSite | None = None
        self.transactions: list[OpenTransaction] = []
        self.connections: list[Holding] = []
        self.flush: Flush | None = None
        self.counter = loads.NOTHING_LOADED
        self._load_site: CallSite | None = None
        self._size_before = 0
        self._at_once = 0
        self.transitions: Counts = {}

    # The scope.

    def begin_scope(self, session: Session, site: CallSite | None, *, reopened: bool) -> None:
        """A scope begins on the session."""
        now = self._clock()
        scope = Scope(f"{_IDS.getrandbits(64):016x}", site, is_async=self.is_async)
        self._forget()
        self.scope = scope
        self.origin = Origin(scope)
        self.open = True
        # An exception that is being handled already is not one that leaves the session's block.
        self._handled = _recognising(sys.exc_info()[1])
        # Read one right after the other: what passes between them, spans would be late by.
        epoch = time.time_ns() - self._clock()
        self.stories = tuple(
            tracer.begin(scope, epoch)
            for tracer in self.tracers
            if not (tracer.closed or is_telling())
        )
        self.tells_statements = any(tracer.settings.statement_spans for tracer in self.tracers)
        scope.stories = self.stories
        for story in self.stories:
            story.record.transitions = self.transitions
        ref = ProbeRef(session, collected)
        ref.probe = self
        LIVE[self] = ref
        self.tell(facts.SessionOpened(now, site, reopened))

    def resume(self, session: Session) -> None:
        """Begin a scope if none is open: the session is used again, or for the first time."""
        if not self.open:
            reopened = self.scope is not _NO_SCOPE
            self.begin_scope(session, self.site(), reopened=reopened)

    def departing(self, session: Session, ending: Ending) -> None:
        """The session is about to let go of everything it holds."""
        now = self._clock()
        self.closing = True
        site, _ = self._leave()
        self.settle(now)
        self.measure(len(session.identity_map))
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
    ) -> None:
        """The scope ended; nothing is remembered of it but what its objects carry."""
        LIVE.pop(self, None)
        now = self._clock()
        self.settle(now)
        self._give_up_transactions(now, site)
        if not self.used:
            outcome: Outcome = "unused"
        elif ending == "collected":
            outcome = "abandoned"
        elif error:
            outcome = "failed"
        else:
            outcome = self.last_outcome
        closed = facts.SessionClosed(
            self._clock(), site, ending, outcome, size, pending, error, detached or {}
        )
        self.tell(closed)
        self.scope.end()
        self.open = False
        self.stories = ()
        self.leaving = None
        self.closing = False
        self._forget()

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

    def note_leaving(self, error: BaseException | None) -> tuple[CallSite | None, str]:
        """Note the line, and the exception, that leave: asyncio closes the session elsewhere."""
        noted = self.leaving = (self.site(), self._name_leaving(error))
        return noted

    def _name_leaving(self, error: BaseException | None) -> str:
        # A generator that is closed early has done what it was asked for.
        if error is None or isinstance(error, GeneratorExit) or self._handled(error):
            return ""
        return type_name(error)

    def _leave(self) -> tuple[CallSite | None, str]:
        return self.leaving or self.note_leaving(sys.exc_info()[1])

    def hand_to(self, tracers: tuple[Tracer, ...]) -> None:
        """Be told of by these and by no others from the next scope on.

        Who tells of the open scope goes on to its end; who comes besides is told how far it is.
        """
        if not tracers:
            return
        known, self.tracers = self.tracers, tracers
        self._locate = tracers[0].locator.locate
        telling = [story.tracer for story in self.stories]
        coming = [tracer for tracer in tracers if tracer not in telling and not tracer.closed]
        if any(tracer not in tracers for tracer in telling):
            coming = coming[1:]  # the nearest comes first: its turn is the next scope
        coming = [tracer for tracer in coming if tracer not in known]
        if not (self.open and coming):
            return
        self.tells_statements = any(tracer.settings.statement_spans for tracer in tracers)
        now = self._clock()
        begun = tuple(tracer.begin(self.scope, time.time_ns() - now) for tracer in coming)
        self.stories = self.scope.stories = self.stories + begun
        for story in begun:
            story.record.transitions = self.transitions
            story.tell(facts.SessionOpened(now, self.scope.opened_site))
            for open_ in self.transactions:
                story.tell(facts.TransactionBegan(now, None, open_.nested, open_.two_phase))
            for holding in self.connections:
                story.tell(facts.ConnectionAcquired(now, holding.database))

    def part(self, tracer: Tracer) -> None:
        """Be told of by this one no longer."""
        for story in self.stories:
            if story.tracer is tracer:
                story.stop()
        self.stories = tuple(story for story in self.stories if story.tracer is not tracer)
        self.tracers = tuple(one for one in self.tracers if one is not tracer)

    # Telling.

    def now(self) -> int:
        """Nanoseconds of the monotonic clock."""
        return self._clock()

    def tell(self, fact: Fact) -> None:
        """Tell a fact to every story of this scope."""
        for story in self.stories:
            story.tell(fact)

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
        self.counter = loads.watch(session.identity_map, self.origin, site)
        self._load_site = site

    def loading(self, site: CallSite | None, at_once: int = 0) -> None:
        """A statement is about to run whose rows may become objects.

        `at_once` is how many rows become objects at a time, or 0 where all of them do: no listener
        sees an identity map at its fullest, but that says how full it was.
        """
        self._size_before = self.counter.size()
        self._at_once = at_once
        if site is not self._load_site:
            self._load_site = site
            self.counter.come_from(site)

    def settle(self, now: int) -> None:
        """Tell what the last statement's rows became."""
        counter = self.counter
        if counter.counts:
            loaded = by_name(counter.counts)
            counter.counts.clear()
            number = sum(loaded.values())
            together = min(number, self._at_once) if self._at_once else number
            self.measure(max(self._size_before + together, counter.size()))
            add_transition(self.transitions, "loaded_as_persistent", number)
            self.tell(facts.ObjectsLoaded(now, self._load_site, loaded))

    def measure(self, size: int) -> None:
        """The identity map holds so many objects now."""
        for story in self.stories:
            if size > story.record.identity_map_peak:
                story.record.identity_map_peak = size

    # The context while a statement runs.

    def attach(self) -> Attached | None:
        """Make the innermost span current; None where it is, or where nothing is to be set."""
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

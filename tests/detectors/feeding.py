"""Plays facts into a real ledger, by the methods that the hooks call, without a database."""

from __future__ import annotations

import collections
import functools
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from session_tracer import CallSite, Exporter, Finding, Settings, facts
from session_tracer.exporter import Exporters
from session_tracer.exporter_choice import Named
from session_tracer.ledger.in_progress import Flush, Holding, OpenTransaction
from session_tracer.ledger.ledger import Ledger
from session_tracer.ledger.loads import Load
from session_tracer.ledger.object_counter import NOTHING_LOADED, Counter
from session_tracer.ledger.origin import Origin, Scope
from session_tracer.ledger.registry import OpenNow
from session_tracer.model.timeline import NO_TIMELINE
from session_tracer.tracer import Tracer
from session_tracer.where import owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from session_tracer import Detector
    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Retraction
    from session_tracer.model.timeline import Timeline
    from session_tracer.where.owner import Owner

# What plays the facts is no line of the application's.
__session_tracer_hide__ = True

MS = 1_000_000
SECOND = 1_000 * MS


def fixed(exporter: Exporter) -> Named:
    """A tracer's choice of exporters that never changes."""
    return Named(exporter, Settings(), Exporters())


def bare_finding(id_: str, message: str = "") -> Finding:
    """A finding with nothing but its id, and perhaps a message."""
    return Finding(
        id=id_,
        severity="info",
        message=message,
        remedy="",
        site=None,
        session_id="",
        session_name="",
        session_site=None,
    )


def at(line: int, function: str = "index", file: str = "/srv/shop/views.py") -> CallSite:
    """A line of the application."""
    return CallSite(file, line, function)


def reported(detector: Detector, *facts: Fact, **settings: Any) -> list[Finding | Retraction]:
    """What one detector reports of a scope in which this happened."""
    return reported_by([detector], *facts, **settings)


def reported_by(
    detectors: Sequence[Detector], *facts: Fact, is_async: bool = False, **settings: Any
) -> list[Finding | Retraction]:
    """What several detectors report of one scope, in their order."""
    scope = PlayedScope(detectors, is_async=is_async, **settings)
    scope.play(*facts)
    return scope.reported


class PlayedScope:
    """A session scope whose ledger is written by facts, and what is reported of it.

    With `listens`, an exporter asks for everything: facts, findings, and the whole session.
    """

    def __init__(
        self,
        detectors: Iterable[Detector],
        *,
        is_async: bool = False,
        listens: bool = False,
        **settings: Any,
    ) -> None:
        self.reported: list[Finding | Retraction] = []
        self.facts: list[Fact] = []
        if listens:
            exporter = Exporter(
                on_finding=self.reported.append,
                on_retraction=self.reported.append,
                on_fact=self.facts.append,
                on_session=lambda _: None,
            )
        else:
            exporter = Exporter(on_finding=self.reported.append, on_retraction=self.reported.append)
        self.tracer = _Tracer(settings, exporter, detectors)
        self.ledger = _Ledger(self.tracer, is_async=is_async)
        # What the next statement loads of one object.
        self._load: Load | None = None

    @functools.cached_property
    def report(self) -> Report:
        """What is reported of the scope; it begins when it is known when the session was opened."""
        return self.ledger.report_to([self.tracer])[0]

    @property
    def memories(self) -> list[Any]:
        """What the detectors that were asked remember."""
        return list((self.report._memories or {}).values())

    @property
    def timeline(self) -> Timeline:
        """What the session did, step by step; empty where nothing listens."""
        publisher = self.report.publisher
        return NO_TIMELINE if publisher is None else publisher.timeline

    def play(self, *happened: Fact) -> None:
        """Have this happen."""
        for fact in happened:
            self.ledger.now = fact.at
            if isinstance(fact, facts.SessionOpened):
                self.ledger.opened_at = fact.at
            self.report  # noqa: B018 - it begins with the first fact
            _PLAYERS.get(type(fact), _suspect)(self, fact)

    # One method for each type of fact, as the hooks do it.

    def _session_opened(self, fact: facts.SessionOpened) -> None:
        ledger = self.ledger
        ledger.opened_at = ledger.last_activity_at = fact.at
        ledger.opened_site = ledger.last_activity_site = ledger.scope.opened_site = fact.site
        if fact.reopened:
            ledger.is_reopened = True
            ledger.suspect(fact)
        else:
            ledger.publish(fact)

    def _session_closed(self, fact: facts.SessionClosed) -> None:
        ledger = self.ledger
        ledger.pending_by_class = {_mapped(name): count for name, count in fact.added.items()}
        ledger.added_site = fact.added_site
        ledger.is_joined = ledger.is_joined or fact.joined
        ledger.identity_map_size, ledger.pending = fact.identity_map_size, fact.pending
        ledger.detached, ledger.modified = fact.detached, fact.modified
        ledger.removed = fact.removed
        ledger.end(fact.ending, (fact.site, fact.error, fact.leaving))

    def _transaction_began(self, fact: facts.TransactionBegan) -> None:
        ledger = self.ledger
        ledger.is_used = True
        ledger.user = fact.owner or owner.current()
        self.tracer.trace = fact.trace
        with mock.patch.object(owner, "root_of", lambda user: fact.root or user):
            ledger.transaction_began(
                fact.at, fact.site, nested=fact.nested, two_phase=fact.two_phase
            )

    def _transaction_ended(self, fact: facts.TransactionEnded) -> None:
        ledger = self.ledger
        began_at = fact.at - fact.duration
        ended = OpenTransaction(began_at, None, ledger.user)
        ended.nested, ended.two_phase = fact.nested, fact.two_phase
        if ledger.transactions_open and ledger.transactions_open[-1].nested is fact.nested:
            ended = ledger.transactions_open[-1]
            ended.began_at = began_at
            ledger.transactions_open = ledger.transactions_open[:-1]
        ended.outcome, ended.took, ended.error = fact.outcome, fact.took, fact.error
        if not fact.nested and fact.outcome in ("committed", "rolled_back"):
            ledger.last_outcome = fact.outcome
        ledger.transaction_ended(ended, fact.at, fact.site, fact.size)

    def _connection_acquired(self, fact: facts.ConnectionAcquired) -> None:
        self.ledger.connection_acquired(self._holding(fact), fact.at, joined=fact.joined)

    def _connection_released(self, fact: facts.ConnectionReleased) -> None:
        ledger = self.ledger
        held = [one for one in ledger.connections if one.database == fact.database]
        holding = held[0] if held else self._holding(fact)
        others = tuple(one for one in ledger.connections if one is not holding)
        holding.since = fact.at - fact.held
        holding.sql_before = ledger.sql - fact.busy
        ledger.connections = (holding,)
        ledger.release_connections(fact.at)
        ledger.connections = others

    def _holding(self, fact: facts.ConnectionAcquired | facts.ConnectionReleased) -> Holding:
        site = fact.site if isinstance(fact, facts.ConnectionAcquired) else None
        connection: Any = _Weak()
        user = self.ledger.user
        return Holding(connection, fact.database, fact.at, user, site)

    def _attribute_loaded(self, fact: facts.AttributeLoaded) -> None:
        self._load = Load(fact.kind, fact.entity, fact.attribute)
        is_judged = self.ledger.attribute_loaded(
            self._load,
            site=fact.site,
            parent=fact.parent,
            select=0,
            expired_by=fact.expired_by,
            duration=fact.duration,
        )
        self.ledger.publish(fact)
        if is_judged:
            self.ledger.judge(fact)

    def _statement_executed(self, fact: facts.StatementExecuted) -> None:
        ledger = self.ledger
        load, self._load = self._load, None
        if not fact.in_flush:
            ledger.flush = None
        elif ledger.flush is None:
            self._begin_flush(fact.at - fact.duration, fact.site, "explicit")
        ledger.is_streaming = fact.streamed
        is_quiet = not (ledger.publishers or ledger.announces_statements)
        if fact.operation != "SELECT" and fact.in_flush and not fact.error and is_quiet:
            self._written_by_flush(fact)
            return
        ledger.executed(
            fact.at,
            fact.site,
            fact.duration,
            fact.operation,
            entity=fact.entity,
            eager=fact.eager,
            in_flush=fact.in_flush,
            load=load,
        )
        if fact.operation == "SELECT":
            if load is None or not is_quiet:
                ledger.statement_executed(fact)
            is_own = load is None and fact.fingerprint and not (fact.eager or fact.error)
            if is_own:
                numbered = replace(fact, number=ledger.statements)
                ledger.selected((numbered,), lambda select, *_: select[0], ())
            return
        ledger.wrote_to(fact.collection)
        is_write = fact.operation in _WRITES and not fact.error
        if is_write and not fact.in_flush and fact.rows:
            ledger.wrote_rows(fact.entity, fact.collection, fact.rows)
        has_crossed = (
            is_write and fact.rows == 1 and fact.operation in _ONE_ROW and self._wrote_row(fact)
        )
        if has_crossed or not is_quiet:
            ledger.statement_executed(fact)
        if has_crossed:
            ledger.judge(fact)

    def _written_by_flush(self, fact: facts.StatementExecuted) -> None:
        ledger = self.ledger
        ledger.executed_by_flush(fact.at, fact.site, fact.duration, fact.operation, fact.collection)
        is_row = fact.batch_size == 1 and fact.operation in _ONE_ROW and fact.rows == 1
        if is_row and self._wrote_row(fact):
            ledger.judge(fact)

    def _wrote_row(self, fact: facts.StatementExecuted) -> bool:
        where = (fact.site, fact.operation, fact.collection)
        return self.ledger.wrote_row(*where, _text(fact), self.ledger.flush, fact.duration)

    def _objects_loaded(self, fact: facts.ObjectsLoaded) -> None:
        ledger = self.ledger
        if ledger.counter is NOTHING_LOADED:  # the scope has ended
            ledger.counter = _counter()
        for name, count in fact.loaded.items():
            ledger.counter.counts[_mapped(name)] += count
        ledger.load_site = fact.site
        ledger.at_once = fact.at_once
        ledger.settle(fact.at)

    def _begin_flush(self, when: int, site: CallSite | None, trigger: facts.Trigger) -> Flush:
        context: Any = _Weak()
        flush = self.ledger.flush = Flush(context, site, trigger, self.ledger.user)
        flush.began, flush.began_at = True, when
        self.ledger.flush_number += 1
        self.ledger.flush_began(flush)
        return flush

    def _flush_began(self, fact: facts.FlushBegan) -> None:
        self._begin_flush(fact.at, fact.site, fact.trigger)

    def _flush_completed(self, fact: facts.FlushCompleted) -> None:
        flush = self.ledger.flush
        if flush is None:
            flush = self._begin_flush(fact.at - fact.duration, fact.site, fact.trigger)
        self.ledger.flush = None
        flush.began_at = fact.at - fact.duration
        flush.site, flush.trigger = fact.site, fact.trigger
        flush.counts = (fact.new, fact.dirty, fact.deleted, fact.unchanged)
        flush.unchanged_attributes = fact.unchanged_attributes
        self.ledger.flushed(flush, fact.at)

    def _flush_failed(self, fact: facts.FlushFailed) -> None:
        if self.ledger.flush is None:
            self._begin_flush(fact.at - fact.duration, fact.site, fact.trigger)
        self.ledger.flush = None
        self.ledger.flush_failed(fact)

    def _rollback_pending(self, fact: facts.RollbackPending) -> None:
        self.ledger.rollback_pending(fact)

    def _statement_started(self, fact: facts.StatementStarted) -> None:
        self.ledger.statement_started(fact)

    def _objects_expired(self, fact: facts.ObjectsExpired) -> None:
        self.ledger.objects_expired(fact.at, fact.site, fact.count)

    def _objects_expunged(self, fact: facts.ObjectsExpunged) -> None:
        self.ledger.objects_expunged(fact.at, fact.site, fact.count)

    def _object_merged(self, fact: facts.ObjectMerged) -> None:
        self.ledger.object_merged(fact.at, fact.site, fact.entity)

    def _load_refused(self, fact: facts.LoadRefused) -> None:
        self.ledger.load_refused(fact)

    def _detached_load_failed(self, fact: facts.DetachedLoadFailed) -> None:
        self.report.load_was_refused(fact, None)

    def _transaction_cancelled(self, fact: facts.TransactionCancelled) -> None:
        self.ledger.cancelled = self.ledger.is_suspect = True
        self.ledger.suspect(fact)

    def _time_passed(self, fact: facts.TimePassed) -> None:
        # The watchdog asks each report.
        self.report.publish(fact)
        self.report.judge(fact)


def _suspect(scope: PlayedScope, fact: Fact) -> None:
    """Something that is rare enough to be a fact at once."""
    scope.ledger.suspect(fact)


_PLAYERS: Final[Mapping[type, Callable[[PlayedScope, Any], None]]] = {
    facts.SessionOpened: PlayedScope._session_opened,
    facts.SessionClosed: PlayedScope._session_closed,
    facts.TransactionBegan: PlayedScope._transaction_began,
    facts.TransactionEnded: PlayedScope._transaction_ended,
    facts.ConnectionAcquired: PlayedScope._connection_acquired,
    facts.ConnectionReleased: PlayedScope._connection_released,
    facts.StatementStarted: PlayedScope._statement_started,
    facts.StatementExecuted: PlayedScope._statement_executed,
    facts.AttributeLoaded: PlayedScope._attribute_loaded,
    facts.ObjectsLoaded: PlayedScope._objects_loaded,
    facts.FlushBegan: PlayedScope._flush_began,
    facts.FlushCompleted: PlayedScope._flush_completed,
    facts.FlushFailed: PlayedScope._flush_failed,
    facts.RollbackPending: PlayedScope._rollback_pending,
    facts.ObjectsExpired: PlayedScope._objects_expired,
    facts.ObjectsExpunged: PlayedScope._objects_expunged,
    facts.ObjectMerged: PlayedScope._object_merged,
    facts.LoadRefused: PlayedScope._load_refused,
    facts.DetachedLoadFailed: PlayedScope._detached_load_failed,
    facts.TransactionCancelled: PlayedScope._transaction_cancelled,
    facts.TimePassed: PlayedScope._time_passed,
}
_WRITES: Final = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"})
_ONE_ROW: Final = frozenset({"INSERT", "UPDATE", "DELETE"})


def _counter() -> Counter:
    counter = Counter()
    counter.counts = defaultdict(int)
    return counter


class _Ledger(Ledger):
    """A ledger whose user and clock are those of the facts."""

    def __init__(self, tracer: Tracer, *, is_async: bool) -> None:
        super().__init__((tracer,), is_async=is_async, clock=lambda: self.now)
        self.now = 0
        self.user: Owner = owner.current()
        self.id = "9b21e0456789abcd"
        self.scope = Scope(self.id, None, is_async=is_async)
        self.origin = Origin(self.scope)
        self.counter = _counter()

    def enter(self, site: CallSite | None) -> Owner:
        del site
        return self.user


class _Tracer(Tracer):
    """A tracer in which no failure of a detector is hidden."""

    def __init__(
        self, settings: dict[str, Any], exporter: Exporter, detectors: Iterable[Detector]
    ) -> None:
        super().__init__(
            "orders-db",
            Settings(**settings),
            fixed(exporter),
            detectors,
            lambda tracer: OpenNow(tracer.name, [], [], [], collections.Counter()),
        )
        self.trace = 0
        for logs in self._logs:
            logs.close()  # or the thread that logs repeats would outlive the test

    def caller(self, context: Any = None) -> tuple[int, int]:
        del context
        return self.trace, 0

    def failed(self, where: str, error: BaseException) -> None:
        raise error


class _Weak:
    """In place of an object of SQLAlchemy that is only referred to weakly."""


@functools.cache
def _mapped(name: str) -> type:
    """The mapped class of that name."""
    return type(name, (), {})


def _text(fact: facts.StatementExecuted) -> str:
    return _statement(fact.operation, fact.collection, fact.text)


@functools.cache
def _statement(operation: str, collection: str, text: int) -> str:
    """The one SQL text that the facts with this number have."""
    return f"{operation} {collection} {text}"

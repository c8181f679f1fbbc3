"""SQLAlchemy's session events, written to the ledger."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.engine import NestedTransaction
from sqlalchemy.orm.session import SessionTransactionOrigin

from session_tracer import facts
from session_tracer.hooks import flush_contents, statements
from session_tracer.hooks.scopes import begin_scope, ledger_failed, opening_now, resumed
from session_tracer.hooks.targets import live_sessions
from session_tracer.ledger import object_counter, same_owner
from session_tracer.ledger.in_progress import SLOT, Flush
from session_tracer.ledger.ledger import Ledger, Opening, type_name
from session_tracer.runtime.degraded import without
from session_tracer.where.except_finder import failure
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from weakref import WeakKeyDictionary

    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import InstanceState, Session, SessionTransaction, UOWTransaction

    from session_tracer.ledger.report import Tracer

__all__ = ["listen", "remove", "take_up"]

_SUBTRANSACTION: Final = SessionTransactionOrigin.SUBTRANSACTION


def _contained(listener: Callable[..., None]) -> Callable[..., None]:
    """A listener that ignores sessions without an open ledger, and contains its own failures.

    What code fires by hand may lack arguments.
    """
    name = listener.__name__

    def contained(session: Any = None, *rest: Any) -> None:
        ledger = None
        try:
            ledger = session.__dict__.get(SLOT)
            if ledger.__class__ is Ledger:
                listener(ledger, session, *rest)
        except Exception as error:
            if isinstance(ledger, Ledger):
                ledger.failed(name, error)

    contained.__name__ = name
    return contained


def after_transaction_create(session: Any = None, transaction: Any = None) -> None:
    """A transaction begins, and with a session's first one its scope; or a flush begins."""
    ledger = None
    try:
        ledger = session.__dict__.get(SLOT)
        if ledger is None:
            return
        if transaction.origin is _SUBTRANSACTION:
            # A bulk operation makes a subtransaction too, outside of a flush.
            if ledger.__class__ is Ledger and ledger.flush is not None and not ledger.flush.began:
                _flush_begins(ledger, ledger.flush)
            return
        if ledger.__class__ is not Ledger or not ledger.is_open:
            ledger = resumed(session, ledger)
        site = ledger.site()
        now = ledger.clock()
        nested = transaction.nested
        if not nested and not ledger.is_used:
            ledger.first_used(session, site)
        if ledger.counter.counts:
            ledger.settle(now)
        two_phase = session.twophase and not nested
        ledger.transaction_began(now, site, nested=nested, two_phase=two_phase)
    except Exception as error:
        if ledger is not None:
            ledger_failed(ledger, "after_transaction_create", error)


def _flush_begins(ledger: Ledger, flush: Flush) -> None:
    flush.began = True
    now = flush.began_at = ledger.clock()
    unit_of_work = flush.unit_of_work()
    if unit_of_work is not None:
        flush.unchanged = flush_contents.unchanged(unit_of_work)
        if flush.unchanged:
            flush.unchanged_attributes = flush_contents.attributes(flush.unchanged)
    if ledger.counter.counts:
        ledger.settle(now)
    ledger.flush_began(flush)


@_contained
def after_transaction_end(
    ledger: Ledger, session: Session, transaction: SessionTransaction
) -> None:
    if transaction.origin is _SUBTRANSACTION:
        if ledger.flush is not None and ledger.flush.began:
            _flush_ends(ledger, ledger.flush, session, transaction)
        return
    opened = ledger.transactions_open
    if not opened:
        return  # it began before this session was traced
    ended = opened[-1]
    outcome = ended.outcome
    if outcome != "committed":
        error = sys.exc_info()[1]
        if error is not None and outcome == "rolled_back":
            ledger.is_cancellation(error)
        if ended.committing_at and not ended.error:
            ended.error = "_OTHER" if error is None else type_name(error)
    ledger.transactions_open = opened[:-1]
    ledger.failure = None
    now = ledger.clock()
    site = ended.site_of_commit or ledger.site()
    if ledger.counter.counts:
        ledger.settle(now)
    if ended.nested:
        ledger.transaction_ended(ended, now, site, len(session.identity_map))
        return
    ledger.release_connections(now)
    if outcome == "committed":
        ledger.last_outcome = outcome
        if session.expire_on_commit:
            ledger.scope.swept("commit", site)
    elif outcome == "rolled_back":
        ledger.last_outcome = outcome
        ledger.scope.swept("rollback", site)
    ledger.transaction_ended(ended, now, site, len(session.identity_map))
    if ledger.written:
        ledger.writes_ended(now, site, is_committed=outcome == "committed")


@_contained
def after_begin(
    ledger: Ledger, session: Session, transaction: SessionTransaction, connection: Connection
) -> None:
    if not statements.is_timed(connection):
        return
    # Another session may share the connection: the last to begin is the one at work.
    connection.__dict__[SLOT] = ledger
    for known in ledger.connections:
        if known.holds(connection):
            return
    now = ledger.clock()
    if ledger.counter.counts:
        ledger.settle(now)
    site = ledger.site()
    holding = statements.hold(connection, now, ledger.enter(site), site)
    ledger.connection_acquired(holding, now, joined=_is_joined(transaction, connection))
    nested = same_owner.nested_in(ledger, connection, now)
    if nested is not None:
        ledger.suspect(nested)


def _held(transaction: SessionTransaction) -> dict[Any, Any]:
    """The transaction's connections, by themselves and by their engines; it has no public name."""
    held: dict[Any, Any] = getattr(transaction, "_connections", {})
    return held


def _is_joined(transaction: SessionTransaction, connection: Connection) -> bool:
    """Whether the connection was, or may have been, in another transaction before."""
    held = _held(transaction)
    entry = held.get(connection)
    if entry is None or transaction.nested:
        # Without its connections a transaction may be in another one.
        return not held
    return not entry[2] or isinstance(entry[1], NestedTransaction)


def take_up(session: Session, tracers: tuple[Tracer, ...], *, is_async: bool) -> None:
    """Trace a session that exists, and report how far it is if it is in a transaction."""
    session.__dict__[SLOT] = Opening(tracers, is_async=is_async)
    outermost = session.get_transaction()
    if outermost is not None:
        ledger = begin_scope(session, opening_now(tracers, None, is_async=is_async))
        try:
            _take_up(ledger, session, outermost)
        except Exception as error:
            ledger.failed("take_up", error)


def _take_up(ledger: Ledger, session: Session, outermost: SessionTransaction) -> None:
    ledger.first_used(session, None)
    now = ledger.clock()
    opened = []
    transaction: SessionTransaction | None = session.get_nested_transaction() or outermost
    while transaction is not None:
        if transaction.origin is not SessionTransactionOrigin.SUBTRANSACTION:
            opened.append(transaction.nested)
        transaction = transaction.parent
    for nested in reversed(opened):
        two_phase = bool(session.twophase) and not nested
        ledger.transaction_began(now, None, nested=nested, two_phase=two_phase)
    held = {id(entry[0]): entry[0] for entry in _held(outermost).values()}
    for connection in filter(statements.is_timed, held.values()):
        connection.__dict__[SLOT] = ledger
        holding = statements.hold(connection, now, ledger.owner, None)
        ledger.connection_acquired(holding, now, joined=False)


_PREPARE: Final = frozenset({"prepare"})


@_contained
def before_commit(ledger: Ledger, session: Session) -> None:
    if ledger.at_work is not None:
        ledger.check_use(ledger.site())
    if ledger.transactions_open:
        transaction = ledger.transactions_open[-1]
        # The event comes with prepare() as well, and a rollback may follow that.
        if not (transaction.two_phase and ledger.locator.called_by(_PREPARE)):
            transaction.committing_at = ledger.clock()


@_contained
def after_commit(ledger: Ledger, session: Session) -> None:
    if ledger.transactions_open:
        committed = ledger.transactions_open[-1]
        committed.outcome = "committed"
        if committed.committing_at:
            committed.took = ledger.clock() - committed.committing_at


@_contained
def after_rollback(ledger: Ledger, session: Session) -> None:
    if ledger.transactions_open:
        ledger.transactions_open[-1].outcome = "rolled_back"
    flush = ledger.flush
    if flush is not None and flush.began and not flush.failed:
        flush.failed = True
        unit_of_work = flush.unit_of_work()
        if unit_of_work is not None:
            flush.counts = flush_contents.counts(unit_of_work, flush.unchanged)


@_contained
def before_flush(
    ledger: Ledger, session: Session, flush_context: UOWTransaction, instances: object
) -> None:
    site = ledger.site()
    opened = ledger.transactions_open
    trigger = flush_contents.trigger(
        running_frame(3), in_savepoint=bool(opened) and opened[-1].nested
    )
    # It may turn out to have nothing to do: it has begun when its subtransaction begins.
    ledger.flush = Flush(flush_context, site, trigger, ledger.enter(site))


@_contained
def after_flush(ledger: Ledger, session: Session, flush_context: UOWTransaction) -> None:
    flush = ledger.flush
    if flush is not None:
        # The last moment at which new, dirty and deleted can be told apart.
        flush.counts = flush_contents.counts(flush_context, flush.unchanged)
        flush.executed = True
        if flush.counts[2]:
            _remember_deleted(ledger, flush, flush_context)


def _remember_deleted(ledger: Ledger, flush: Flush, context: UOWTransaction) -> None:
    """Mark what is deleted: it is about to leave the identity map, and not always with an event.

    Without expire_on_commit, SQLAlchemy has no event for a deleted object that becomes detached.
    """
    now = ledger.clock()
    for state, (is_delete, list_only) in flush_contents.states(context).items():
        if is_delete and not list_only:
            object_counter.remember(state, ledger.origin, "deleted", now, flush.site)


def _flush_ends(
    ledger: Ledger, flush: Flush, session: Session, transaction: SessionTransaction
) -> None:
    ledger.flush = None
    now = ledger.clock()
    if ledger.counter.counts:
        ledger.settle(now)
    opened = ledger.transactions_open
    if opened and opened[-1].committing_at:
        # What the flush took is not the COMMIT's; the line is the same.
        opened[-1].committing_at = now
        opened[-1].site_of_commit = flush.site
    size = len(session.identity_map)
    if size > ledger.identity_map_peak:
        ledger.identity_map_peak = size
    if not flush.executed or flush.failed or ledger.is_closing or _is_undone(transaction):
        _flush_fails(ledger, flush, now)
        return
    if ledger.pending_by_class:
        ledger.nothing_pending()
        # What a listener added after the flush had begun.
        for added in session.new:
            ledger.pending_by_class[type(added)] += 1
            ledger.added_before -= 1
    ledger.flushed(flush, now)


def _is_undone(transaction: SessionTransaction) -> bool:
    """Whether a flush that was executed is rolled back, of which there is no event if that fails.

    An error may also be handled by the application while it flushes.
    """
    if sys.exc_info()[1] is None:
        return False
    return transaction.parent is None or not transaction.parent.is_active


def _flush_fails(ledger: Ledger, flush: Flush, now: int) -> None:
    counts, unit_of_work = flush.counts, flush.unit_of_work()
    if not flush.failed and unit_of_work is not None:
        # What failed is the rollback itself: no event came of one.
        counts = flush_contents.counts(unit_of_work, flush.unchanged)
    error = sys.exc_info()[1]
    ledger.failure = failure(error, ledger.locator.frames(running_frame(1)))
    ledger.flush_failed(
        facts.FlushFailed(
            at=now,
            site=flush.site,
            trigger=flush.trigger,
            duration=now - flush.began_at,
            error="_OTHER" if error is None else type_name(error),
            new=dict(counts[0]),
            dirty=dict(counts[1]),
            deleted=dict(counts[2]),
            constraint=flush_contents.constraint(error),
        )
    )


# Objects that change state one at a time; those that do by the thousand are counted elsewhere.


def _counting(name: str) -> Callable[[Session, InstanceState[Any]], None]:
    def counting(session: Session, state: InstanceState[Any]) -> None:
        ledger = session.__dict__.get(SLOT)
        if type(ledger) is Ledger:
            ledger.count_transition(name)

    counting.__name__ = name
    return counting


# The adds of a class of which the line is looked for: in the end ever fewer, for there may be many.
_LOOKED_FOR: Final = frozenset({*range(1, 17), *(1 << bit for bit in range(5, 40))})


def transient_to_pending(session: Any = None, state: Any = None) -> None:
    """An object was added. It may be one of thousands: no call more than needed."""
    ledger = None
    try:
        ledger = session.__dict__.get(SLOT)
        if ledger.__class__ is Ledger:
            pending = ledger.pending_by_class
            entity = state.class_
            count = pending[entity] = pending[entity] + 1
            if count in _LOOKED_FOR:
                ledger.added_site = ledger.site()
    except Exception as error:
        if isinstance(ledger, Ledger):
            ledger.failed("transient_to_pending", error)


@_contained
def pending_to_transient(ledger: Ledger, session: Session, state: Any) -> None:
    ledger.count_transition("pending_to_transient")
    if ledger.is_closing:
        return  # close() empties the session first: what it held is still to be reported
    left = ledger.pending_by_class.pop(state.class_, 0) - 1
    if left >= 0:
        ledger.added_before += 1
    if left > 0:
        ledger.pending_by_class[state.class_] = left


@_contained
def deleted_to_detached(ledger: Ledger, session: Session, state: Any) -> None:
    ledger.count_transition("deleted_to_detached")
    object_counter.remember(state, ledger.origin, "deleted", ledger.clock(), ledger.site())


_LISTENERS: Final[tuple[tuple[str, Callable[..., None], bool], ...]] = (
    ("after_transaction_create", after_transaction_create, False),
    ("after_transaction_end", after_transaction_end, False),
    ("after_begin", after_begin, False),
    ("before_commit", before_commit, False),
    ("after_commit", after_commit, False),
    ("after_rollback", after_rollback, False),
    ("before_flush", before_flush, False),
    ("after_flush", after_flush, False),
    ("transient_to_pending", transient_to_pending, True),
    ("pending_to_transient", pending_to_transient, True),
    ("persistent_to_transient", _counting("persistent_to_transient"), True),
    ("deleted_to_persistent", _counting("deleted_to_persistent"), True),
    ("detached_to_persistent", _counting("detached_to_persistent"), True),
    ("deleted_to_detached", deleted_to_detached, True),
)


def listen(target: type[Session]) -> None:
    """Listen to every session of the class."""
    with _aside(target):
        for name, listener, raw in _LISTENERS:
            event.listen(target, name, listener, **({"raw": True} if raw else {}))


def remove(target: type[Session]) -> None:
    """Listen no longer."""
    with _aside(target):
        for name, listener, _ in _LISTENERS:
            if event.contains(target, name, listener):
                event.remove(target, name, listener)


@contextmanager
def _aside(target: Any) -> Iterator[None]:
    """Have listeners come and go in copies, which are put in force at the end.

    SQLAlchemy fires an event by iterating over a deque, which must not change meanwhile, and other
    threads may be amid it.
    """
    try:
        levels = [getattr(target.dispatch, name) for name, _, _ in _LISTENERS]
        for level in levels:
            for cls, told in _items(level._clslevel):
                level._clslevel[cls] = type(told)(told)
    except AttributeError:
        levels = []
        without(
            "the collections of SQLAlchemy's listeners",
            "instrument() and uninstrument() may disturb other threads' sessions as they are used",
        )
    try:
        yield
    finally:
        for level in levels:
            _put_in_force(target, level)


def _items(by_class: WeakKeyDictionary[type, Any]) -> list[tuple[type, Any]]:
    """What is there now: other threads may be making classes meanwhile."""
    classes = [ref() for ref in by_class.keyrefs()]
    return [(cls, by_class[cls]) for cls in classes if cls is not None and cls in by_class]


def _put_in_force(target: Any, level: Any) -> None:
    for cls, collections in _items(target.dispatch._empty_listener_reg):
        if level.name in collections and cls in level._clslevel:
            collections[level.name].parent_listeners = level._clslevel[cls]
    for session in live_sessions():
        # Somebody listens to this very session as well.
        own = session.dispatch.__dict__.get(level.name)
        if own is not None and type(session) in level._clslevel:
            own.parent_listeners = level._clslevel[type(session)]

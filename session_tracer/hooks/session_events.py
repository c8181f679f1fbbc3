"""SQLAlchemy's session events, written to the ledger."""

from __future__ import annotations

import functools
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.engine import NestedTransaction
from sqlalchemy.orm.session import SessionTransactionOrigin

from session_tracer import facts
from session_tracer.hooks import flush_contents, statements
from session_tracer.hooks.scopes import begin_scope, ledger_failed, resumed
from session_tracer.hooks.targets import live_sessions
from session_tracer.ledger import object_counter, same_owner
from session_tracer.ledger.in_progress import SLOT, Flush
from session_tracer.ledger.ledger import Ledger, Opening, type_name
from session_tracer.model.counts import total
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


def _contained(listener: Callable[..., None]) -> Callable[..., None]:
    """A listener that ignores sessions that are not traced, and contains its own failures."""

    @functools.wraps(listener)
    def contained(*told: Any) -> None:
        # Code that fires an event by hand may leave out what it should tell.
        ledger = told[0].__dict__.get(SLOT) if told else None
        if ledger is not None:
            try:
                if type(ledger) is Opening:
                    ledger = begin_scope(told[0], ledger)
                listener(ledger, *told)
            except Exception as error:
                ledger_failed(ledger, listener.__name__, error)

    del contained.__dict__["__wrapped__"]  # its signature is not the event's
    return contained


@_contained
def after_transaction_create(
    ledger: Ledger, session: Session, transaction: SessionTransaction
) -> None:
    if transaction.origin is SessionTransactionOrigin.SUBTRANSACTION:
        flush = ledger.flush
        # A bulk operation makes a subtransaction too, outside of a flush.
        if flush is not None and not flush.began:
            flush.began = True
            flush.began_at = ledger.clock()
            if flush.context is not None:
                flush.unchanged = flush_contents.unchanged(flush.context)
                if flush.unchanged:
                    flush.unchanged_attributes = flush_contents.attributes(flush.unchanged)
            if ledger.counter.counts:
                ledger.settle(flush.began_at)
            ledger.flush_began(flush)
        return
    ledger = resumed(session, ledger)
    site = ledger.site()
    now = ledger.clock()
    nested = transaction.nested
    if not nested and not ledger.is_used:
        ledger.first_used(session, site)
    if ledger.counter.counts:
        ledger.settle(now)
    ledger.transaction_began(now, site, nested=nested, two_phase=session.twophase and not nested)


@_contained
def after_transaction_end(
    ledger: Ledger, session: Session, transaction: SessionTransaction
) -> None:
    if transaction.origin is SessionTransactionOrigin.SUBTRANSACTION:
        _end_flush(ledger, session)
        return
    if not ledger.transactions_open:
        return  # it began before this session was traced
    error = sys.exc_info()[1]
    ended = ledger.transactions_open[-1]
    outcome = ended.outcome
    if error is not None and outcome == "rolled_back":
        ledger.is_cancellation(error)
    ledger.transactions_open = ledger.transactions_open[:-1]
    ledger.failure = None
    now = ledger.clock()
    site = ended.site_of_commit or ledger.site()
    if ledger.counter.counts:
        ledger.settle(now)
    if ended.committing_at and outcome != "committed":
        ended.error = ended.error or ("_OTHER" if error is None else type_name(error))
    if not ended.nested:
        ledger.release_connections(now)
        if outcome == "committed":
            ledger.last_outcome = outcome
            if session.expire_on_commit:
                ledger.swept("commit", site)
        elif outcome == "rolled_back":
            ledger.last_outcome = outcome
            ledger.swept("rollback", site)
    ledger.transaction_ended(ended, now, site, len(session.identity_map))
    if not ended.nested and ledger.written:
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
    user = ledger.enter(site)
    holding = statements.hold(connection, now, user, site)
    ledger.connection_acquired(holding, now, joined=_is_joined(transaction, connection))
    nested = same_owner.nested_in(ledger, connection, now)
    if nested is not None:
        ledger.suspect(nested)


def _held(transaction: SessionTransaction) -> dict[Any, Any] | None:
    """The transaction's connections, by themselves and by their engines; it has no public name."""
    held: dict[Any, Any] | None = getattr(transaction, "_connections", None)
    if held is None:
        without(
            "SessionTransaction._connections",
            "every session may have joined a transaction of somebody else's, so that none is said "
            "to discard changes or to split them; the transaction amid which a session is "
            "instrumented is told without its statements",
        )
    return held


def _is_joined(transaction: SessionTransaction, connection: Connection) -> bool:
    """Whether the connection was, or may have been, in another transaction before."""
    held = _held(transaction)
    entry = None if held is None else held.get(connection)
    if held is not None and (entry is None or transaction.nested):
        return False
    return entry is None or not entry[2] or isinstance(entry[1], NestedTransaction)


def take_up(session: Session, tracers: tuple[Tracer, ...], *, is_async: bool) -> None:
    """Trace a session that exists, and report how far it is if it is in a transaction."""
    session.__dict__[SLOT] = Opening(tracers, 0, None, is_async=is_async)
    outermost = session.get_transaction()
    if outermost is not None:
        opening = Opening(tracers, tracers[0].clock(), None, is_async=is_async)
        ledger = begin_scope(session, opening)
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
    held = {id(entry[0]): entry[0] for entry in (_held(outermost) or {}).values()}
    for connection in filter(statements.is_timed, held.values()):
        connection.__dict__[SLOT] = ledger
        holding = statements.hold(connection, now, ledger.owner, None)
        ledger.connection_acquired(holding, now, joined=False)


_PREPARE: Final = frozenset({"prepare"})


@_contained
def before_commit(ledger: Ledger, session: Session) -> None:
    if ledger.at_work is not None:
        ledger.check_use(ledger.site())
    if not ledger.transactions_open:
        return
    transaction = ledger.transactions_open[-1]
    # prepare() tells of itself so as well, and what follows it may be a rollback.
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
        if flush.context is not None:
            flush.counts = flush_contents.counts(flush.context, flush.unchanged)


@_contained
def before_flush(
    ledger: Ledger, session: Session, flush_context: UOWTransaction, instances: object
) -> None:
    site = ledger.site()
    user = ledger.enter(site)
    trigger = flush_contents.trigger(running_frame(2))
    # It may turn out to have nothing to do; what follows tells whether it began.
    ledger.flush = Flush(flush_context, ledger.clock(), site, trigger, user)


@_contained
def after_flush(ledger: Ledger, session: Session, flush_context: UOWTransaction) -> None:
    if ledger.flush is not None:
        # The last moment at which new, dirty and deleted can be told apart.
        ledger.flush.counts = flush_contents.counts(flush_context, ledger.flush.unchanged)
        if ledger.flush.counts[2]:
            _remember_deleted(ledger, ledger.flush, flush_context)


def _remember_deleted(ledger: Ledger, flush: Flush, context: UOWTransaction) -> None:
    """Mark what is deleted: it is about to leave the identity map, and not always with an event.

    Without expire_on_commit, SQLAlchemy tells of no deleted object that it became detached.
    """
    now = ledger.clock()
    for state, (is_delete, list_only) in flush_contents.states(context).items():
        if is_delete and not list_only:
            object_counter.remember(state, ledger.origin, "deleted", now, flush.site)


@_contained
def after_flush_postexec(ledger: Ledger, session: Session, flush_context: UOWTransaction) -> None:
    if ledger.flush is not None:
        ledger.flush.written = True


def _end_flush(ledger: Ledger, session: Session) -> None:
    flush = ledger.flush
    if flush is None or not flush.began:
        return
    ledger.flush = None
    now = ledger.clock()
    if ledger.counter.counts:
        ledger.settle(now)
    if ledger.transactions_open and ledger.transactions_open[-1].committing_at:
        # What the flush took is not the COMMIT's; the line is the same.
        ledger.transactions_open[-1].committing_at = now
        ledger.transactions_open[-1].site_of_commit = flush.site
    ledger.measure(len(session.identity_map))
    new, dirty, deleted, _ = flush.counts
    duration = now - flush.began_at
    if flush.written and not flush.failed:
        if new:
            ledger.count_transition("pending_to_persistent", total(new))
        if deleted:
            ledger.count_transition("persistent_to_deleted", total(deleted))
        ledger.pending_by_class.clear()
        for added in session.new:  # by somebody's listener, after what there was had been written
            ledger.pending_by_class[type(added)] = ledger.pending_by_class.get(type(added), 0) + 1
        ledger.flushed(flush, now)
        return
    if not flush.failed and flush.context is not None:
        # What failed is the rollback itself: nothing has told of one.
        new, dirty, deleted, _ = flush_contents.counts(flush.context, flush.unchanged)
    error = sys.exc_info()[1]
    ledger.failure = failure(error, ledger.locator.frames(running_frame(1)))
    ledger.flush_failed(
        facts.FlushFailed(
            now,
            flush.site,
            flush.trigger,
            duration,
            "_OTHER" if error is None else type_name(error),
            new,
            dirty,
            deleted,
            flush_contents.constraint(error),
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


# An add() of many calls a line for each: beyond these, the line is looked for ever more rarely.
_SURE: Final = 16


@_contained
def transient_to_pending(ledger: Ledger, session: Session, state: Any) -> None:
    pending, entity = ledger.pending_by_class, state.class_
    ledger.count_transition("transient_to_pending")
    count = ledger.transitions["transient_to_pending"]
    pending[entity] = pending.get(entity, 0) + 1
    if count <= _SURE or count & (count - 1) == 0:
        ledger.added_site = ledger.site()


@_contained
def pending_to_transient(ledger: Ledger, session: Session, state: Any) -> None:
    ledger.count_transition("pending_to_transient")
    if ledger.is_closing:
        return  # close() empties the session first: what it held is still to be told
    left = ledger.pending_by_class.get(state.class_, 0) - 1
    if left > 0:
        ledger.pending_by_class[state.class_] = left
    else:
        ledger.pending_by_class.pop(state.class_, None)


@_contained
def deleted_to_detached(ledger: Ledger, session: Session, state: Any) -> None:
    ledger.count_transition("deleted_to_detached")
    object_counter.remember(state, ledger.origin, "deleted", ledger.clock(), ledger.site())


@_contained
def loaded_as_persistent(ledger: Ledger, session: Session, state: Any) -> None:
    if (
        isinstance(ledger.counter, object_counter.EventCounter)
        and ledger.counter is not object_counter.NOTHING_LOADED
    ):
        ledger.counter.count(state.class_)
        object_counter.put(state, object_counter.Mark(ledger.origin, ledger.counter.site))


@_contained
def taken_in(ledger: Ledger, session: Session, state: Any) -> None:
    """An object became persistent otherwise than by a load: it was written, or added again."""
    if isinstance(ledger.counter, object_counter.EventCounter):
        object_counter.put(state, object_counter.Mark(ledger.origin, ledger.counter.site))


_LISTENERS: Final[tuple[tuple[str, Callable[..., None], bool], ...]] = (
    ("after_transaction_create", after_transaction_create, False),
    ("after_transaction_end", after_transaction_end, False),
    ("after_begin", after_begin, False),
    ("before_commit", before_commit, False),
    ("after_commit", after_commit, False),
    ("after_rollback", after_rollback, False),
    ("before_flush", before_flush, False),
    ("after_flush", after_flush, False),
    ("after_flush_postexec", after_flush_postexec, False),
    ("transient_to_pending", transient_to_pending, True),
    ("pending_to_transient", pending_to_transient, True),
    ("persistent_to_transient", _counting("persistent_to_transient"), True),
    ("deleted_to_persistent", _counting("deleted_to_persistent"), True),
    ("detached_to_persistent", _counting("detached_to_persistent"), True),
    ("deleted_to_detached", deleted_to_detached, True),
)
_FALL_BACK: Final = (
    ("loaded_as_persistent", loaded_as_persistent, True),
    ("pending_to_persistent", taken_in, True),
    ("detached_to_persistent", taken_in, True),
)


def _wanted() -> tuple[tuple[str, Callable[..., None], bool], ...]:
    return _LISTENERS if object_counter.PRIVATE_ROAD else _LISTENERS + _FALL_BACK


def listen(target: type[Session]) -> None:
    """Listen to every session of the class."""
    with _aside(target):
        for name, listener, raw in _wanted():
            event.listen(target, name, listener, **({"raw": True} if raw else {}))


def remove(target: type[Session]) -> None:
    """Listen no longer."""
    with _aside(target):
        for name, listener, _ in _wanted():
            if event.contains(target, name, listener):
                event.remove(target, name, listener)


@contextmanager
def _aside(target: Any) -> Iterator[None]:
    """Have listeners come and go in copies, which are put in force at the end.

    SQLAlchemy fires an event by iterating over a deque, which must not change meanwhile, and other
    threads may be amid it.
    """
    try:
        levels = [getattr(target.dispatch, name) for name, _, _ in _wanted()]
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

"""SQLAlchemy's session events, written to the ledger."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.engine import Connection, NestedTransaction
from sqlalchemy.orm import Session
from sqlalchemy.orm.session import SessionTransactionOrigin

from session_tracer import facts
from session_tracer.hooks import flush_contents, flush_failures, statements
from session_tracer.hooks.failed_statements import commit_failed
from session_tracer.hooks.scopes import begin_scope, ledger_failed, opening_now, resumed
from session_tracer.hooks.targets import live_sessions
from session_tracer.ledger import first_use, object_counter, same_owner
from session_tracer.ledger.guard import reporting
from session_tracer.ledger.in_progress import SLOT, Flush
from session_tracer.ledger.ledger import Ledger, Opening, type_name
from session_tracer.model.counts import NOTHING
from session_tracer.where.except_finder import failure
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from weakref import WeakKeyDictionary

    from sqlalchemy.orm import InstanceState, SessionTransaction, UOWTransaction

    from session_tracer.ledger.in_progress import OpenTransaction
    from session_tracer.ledger.report import Tracer

__all__ = ["listen", "remove", "take_up"]

_SUBTRANSACTION: Final = SessionTransactionOrigin.SUBTRANSACTION


# The hooks that run in every unit of work contain their failures themselves: a decorator would cost
# another call. Code that fires an event by hand may leave out arguments. A session that is not
# traced has no SLOT: the KeyError ends the hook.


def _failed(session: Any, hook: str, error: Exception) -> None:
    """Report a failure of a hook, and this scope no further; nothing of an untraced session."""
    ledger = getattr(session, "__dict__", {}).get(SLOT)
    if ledger is not None:
        ledger_failed(ledger, hook, error)


def _contained(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that contains its failures and ignores sessions without an open ledger."""

    def contained(session: Any = None, *rest: Any) -> None:
        try:
            ledger = session.__dict__.get(SLOT)
            if ledger.__class__ is Ledger:
                hook(ledger, session, *rest)
        except Exception as error:
            _failed(session, hook.__name__, error)

    contained.__name__ = hook.__name__
    return contained


def after_transaction_create(session: Any = None, transaction: Any = None) -> None:
    """A transaction begins, and with a session's first one its scope; or a flush begins."""
    try:
        ledger = session.__dict__[SLOT]
        if transaction.origin is _SUBTRANSACTION:
            if ledger.__class__ is Ledger:
                flush = ledger.flush
                # A bulk operation makes a subtransaction too, outside of a flush.
                if flush is not None and not flush.began:
                    _flush_begins(ledger, flush)
            return
        if ledger.__class__ is not Ledger or not ledger.is_open:
            ledger = resumed(session, ledger)
        site = ledger.site() if ledger.is_used else ledger.first_site()
        now = ledger.clock()
        nested = transaction.nested
        if not ledger.is_used:
            if not nested:
                ledger.first_used(session, site)
        elif ledger.counter.counts:
            ledger.settle(now)
        ledger.transaction_began(now, site, nested=nested, two_phase=session.twophase)
    except Exception as error:
        _failed(session, "after_transaction_create", error)


def _flush_begins(ledger: Ledger, flush: Flush) -> None:
    flush.began = True
    now = flush.began_at = ledger.clock()
    unit_of_work = flush.unit_of_work()
    if unit_of_work is not None:
        flush_contents.look(flush, unit_of_work)
    if ledger.counter.counts:
        ledger.settle(now)
    if reporting.now:
        return
    ledger.flush_number += 1
    if ledger.publishers or ledger.recording:
        ledger.flush_began(flush)


def after_transaction_end(session: Any = None, transaction: Any = None) -> None:
    """A transaction has ended, or a flush."""
    try:
        ledger = session.__dict__[SLOT]
        if ledger.__class__ is not Ledger:
            return
        if transaction.origin is _SUBTRANSACTION:
            flush = ledger.flush
            if flush is not None and flush.began:
                _flush_ends(ledger, flush, session, transaction)
        elif opened := ledger.transactions_open:  # else it began before this session was traced
            _transaction_ends(ledger, session, opened)
    except Exception as error:
        _failed(session, "after_transaction_end", error)


def _transaction_ends(
    ledger: Ledger, session: Session, opened: tuple[OpenTransaction, ...]
) -> None:
    ended = opened[-1]
    outcome, nested = ended.outcome, ended.nested
    if outcome != "committed":
        error = sys.exc_info()[1]
        if error is not None and outcome == "rolled_back":
            ledger.is_cancellation(error)
        if ended.committing_at and not ended.error:
            ended.error = "_OTHER" if error is None else type_name(error)
            if error is not None:
                commit_failed(ledger, error, ended.site_of_commit or ledger.site())
    ledger.transactions_open = opened[:-1]
    ledger.failure = None
    now = ledger.clock()
    site = ended.site_of_commit or ledger.site()
    if ledger.counter.counts:
        ledger.settle(now)
    if not nested:
        if ledger.connections or ledger.borrowed:
            ledger.release_connections(now)
        if outcome == "committed":
            ledger.last_outcome = outcome
            if session.expire_on_commit:
                ledger.scope.swept("commit", site)
        elif outcome == "rolled_back":
            ledger.last_outcome = outcome
            ledger.scope.swept("rollback", site)
        if ledger.when_ended:
            asked, ledger.when_ended = ledger.when_ended, ()
            for ask in asked:
                ask(ledger, session, outcome, site)
    ledger.transaction_ended(ended, now, site, len(session.identity_map))
    if ledger.written and not nested:
        if outcome == "committed":
            ledger.writes_committed(now, site)
        else:
            ledger.written = NOTHING


def after_begin(session: Any = None, transaction: Any = None, connection: Any = None) -> None:
    """The transaction has begun on a connection."""
    try:
        ledger = session.__dict__[SLOT]
        if ledger.__class__ is not Ledger:
            return
        if type(connection) is not Connection and not statements.is_timed(connection):
            return
        # Another session may share the connection: the last to begin is the one at work.
        before = getattr(connection, SLOT, None)
        setattr(connection, SLOT, ledger)
        for known in ledger.connections:
            if known.holds(connection):
                return
        if ledger.borrowed and ledger.uses(connection):
            return
        now = ledger.clock()
        if ledger.counter.counts:
            ledger.settle(now)
        site = ledger.site()
        holding = statements.hold(connection, now, ledger.enter(site), site)
        joined, borrowed = _relation(transaction, connection)
        ledger.connection_acquired(holding, now, joined=joined, borrowed=borrowed)
        if borrowed:
            if type(before) is Ledger and before is not ledger:
                holding.lender = before
            return
        if len(ledger.together) > 1 or ledger.was_handed_on:
            nested = same_owner.nested_in(ledger, connection, now)
            if nested is not None:
                ledger.suspect(nested)
    except Exception as error:
        _failed(session, "after_begin", error)


def _relation(transaction: SessionTransaction, connection: Connection) -> tuple[bool, bool]:
    """Whether the connection was in another transaction, or may have been; and was not taken."""
    try:
        held: dict[Any, Any] = transaction._connections
    except AttributeError:
        return True, False
    if transaction.nested:
        return False, False
    entry = held.get(connection)
    if entry is None:
        return False, False
    _, begun, is_committed, is_closed = entry
    return not is_committed or isinstance(begun, NestedTransaction), not is_closed


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
    entries: Any = getattr(outermost, "_connections", {}).values()
    held = {id(entry[0]): (entry[0], not entry[3]) for entry in entries}
    for connection, borrowed in held.values():
        if statements.is_timed(connection):
            setattr(connection, SLOT, ledger)
            holding = statements.hold(connection, now, ledger.owner, None)
            ledger.connection_acquired(holding, now, joined=False, borrowed=borrowed)


_PREPARE: Final = frozenset({"prepare"})


def before_commit(session: Any = None) -> None:
    """COMMIT is about to be executed, after a flush."""
    try:
        ledger = session.__dict__[SLOT]
        if ledger.__class__ is not Ledger:
            return
        if ledger.at_work is not None:
            ledger.check_use(ledger.site())
        opened = ledger.transactions_open
        if opened:
            transaction = opened[-1]
            # The event comes with prepare() as well, and a rollback may follow that.
            if not (transaction.two_phase and ledger.locator.called_by(_PREPARE)):
                transaction.committing_at = ledger.clock()
    except Exception as error:
        _failed(session, "before_commit", error)


def after_commit(session: Any = None) -> None:
    """COMMIT was executed, or a savepoint released."""
    try:
        ledger = session.__dict__[SLOT]
        if ledger.__class__ is Ledger and (opened := ledger.transactions_open):
            committed = opened[-1]
            committed.outcome = "committed"
            began_at = committed.committing_at
            if began_at:
                committed.took = ledger.clock() - began_at
    except Exception as error:
        _failed(session, "after_commit", error)


@_contained
def after_rollback(ledger: Ledger, session: Session) -> None:
    if ledger.transactions_open:
        ledger.transactions_open[-1].outcome = "rolled_back"
    flush = ledger.flush
    if flush is not None and flush.began and not flush.failed:
        flush.failed = True
        unit_of_work = flush.unit_of_work()
        if unit_of_work is not None:
            flush_contents.look_again(flush, unit_of_work)


def before_flush(session: Any = None, flush_context: Any = None, instances: Any = None) -> None:
    """A flush may begin: it turns out to when its subtransaction begins."""
    try:
        ledger = session.__dict__[SLOT]
        if ledger.__class__ is Ledger:
            site = ledger.site()
            opened = ledger.transactions_open
            trigger = flush_contents.trigger(opened[-1].nested if opened else False)
            ledger.flush = Flush(flush_context, site, trigger, ledger.enter(site))
    except Exception as error:
        _failed(session, "before_flush", error)


def after_flush(session: Any = None, flush_context: Any = None) -> None:
    """The unit of work was executed: new, dirty and deleted can be distinguished a last time."""
    try:
        ledger = session.__dict__[SLOT]
        if ledger.__class__ is Ledger and (flush := ledger.flush) is not None:
            flush_contents.look_again(flush, flush_context)
            flush.executed = True
            if flush.counts[2]:
                _remember_deleted(ledger, flush, flush_context)
    except Exception as error:
        _failed(session, "after_flush", error)


def _remember_deleted(ledger: Ledger, flush: Flush, context: UOWTransaction) -> None:
    """Mark what is deleted: it is about to leave the identity map, and not always with an event.

    Without expire_on_commit, SQLAlchemy has no event for a deleted object that becomes detached.
    """
    now = ledger.clock()
    for state, (is_delete, list_only) in context.states.items():
        if is_delete and not list_only:
            object_counter.remember(state, ledger.origin, "deleted", now, flush.site)


def _flush_ends(
    ledger: Ledger, flush: Flush, session: Session, transaction: SessionTransaction
) -> None:
    if flush.repeated is not None:
        ledger.end_repeats()
    ledger.flush = None
    now = ledger.clock()
    if ledger.counter.counts:
        ledger.settle(now)
    opened = ledger.transactions_open
    if opened and (innermost := opened[-1]).committing_at:
        # What the flush took is not the COMMIT's; the line is the same.
        innermost.committing_at = now
        innermost.site_of_commit = flush.site
    size = len(session.identity_map)
    if size > ledger.identity_map_peak:
        ledger.identity_map_peak = size
    is_undone = sys.exc_info()[1] is not None and _is_undone(transaction)
    if is_undone or flush.failed or not flush.executed or ledger.is_closing:
        _flush_fails(ledger, flush, session, now)
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
    return transaction.parent is None or not transaction.parent.is_active


def _flush_fails(ledger: Ledger, flush: Flush, session: Session, now: int) -> None:
    unit_of_work = flush.unit_of_work()
    if not flush.failed and unit_of_work is not None:
        # What failed is the rollback itself: no event came of one.
        flush_contents.look_again(flush, unit_of_work)
    new, dirty, deleted, _ = flush.counts
    error = sys.exc_info()[1]
    ledger.failure = failure(error, ledger.locator.frames(running_frame(1)))
    cause = flush_failures.cause_of(error, flush, session, ledger.locator)
    ledger.flush_failed(
        facts.FlushFailed(
            at=now,
            site=flush.site,
            trigger=flush.trigger,
            duration=now - flush.began_at,
            error="_OTHER" if error is None else type_name(error),
            new=dict(new),
            dirty=dict(dirty),
            deleted=dict(deleted),
            constraint=flush_contents.constraint(error),
            in_savepoint=ledger.open_savepoints > 0,
            problem=cause.problem,
            code=cause.code,
            column=cause.column,
            relationship=cause.relationship,
            listener=cause.listener,
            added_site=ledger.added_site if sum(new.values()) == 1 else None,
            existing_site=cause.existing_site,
        ),
        error,
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
    """An object was added, perhaps one of thousands."""
    try:
        ledger = session.__dict__[SLOT]
        if ledger.__class__ is Ledger:
            pending = ledger.pending_by_class
            entity = state.class_
            count = pending[entity] = pending[entity] + 1
            if count in _LOOKED_FOR:
                site = ledger.added_site = ledger.site()
                if ledger.may_be_lent and site is not None:
                    first_use.elsewhere(ledger, site)
    except Exception as error:
        _failed(session, "transient_to_pending", error)


@_contained
def persistent_to_transient(ledger: Ledger, session: Session, state: Any) -> None:
    ledger.count_transition("persistent_to_transient")
    object_counter.note_undone(state, ledger.site())


@_contained
def pending_to_transient(ledger: Ledger, session: Session, state: Any) -> None:
    ledger.count_transition("pending_to_transient")
    if ledger.transactions_open and ledger.transactions_open[-1].outcome == "rolled_back":
        object_counter.note_undone(state, ledger.site())
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
    ("persistent_to_transient", persistent_to_transient, True),
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


# The listeners by class, what an event without listeners of its own session goes by, and what one
# with such listeners goes by.
KNOWS_COLLECTIONS: Final = (
    hasattr(getattr(Session.dispatch, "before_flush", None), "_clslevel")
    and hasattr(Session.dispatch, "_empty_listener_reg")
    and hasattr(getattr(Session().dispatch, "before_flush", None), "parent_listeners")
)


@contextmanager
def _aside(target: Any) -> Iterator[None]:
    """Have listeners come and go in copies, which are put in force at the end.

    SQLAlchemy fires an event by iterating over a deque and listens by appending to it: without the
    copies, an event of another thread's session would raise "deque mutated during iteration" in the
    application. Other classes' listeners are left alone: another thread may be adding one.
    """
    levels = [getattr(target.dispatch, name) for name, *_ in _LISTENERS if KNOWS_COLLECTIONS]
    for level in levels:
        for cls, listeners in _of_subclasses(target, level._clslevel):
            level._clslevel[cls] = type(listeners)(listeners)
    try:
        yield
    finally:
        sessions = live_sessions() if levels else []
        for level in levels:
            by_class = level._clslevel
            for cls, collections in _of_subclasses(target, target.dispatch._empty_listener_reg):
                if level.name in collections and cls in by_class:
                    collections[level.name].parent_listeners = by_class[cls]
            for session in sessions:
                # The application listens to this very session as well.
                own = session.dispatch.__dict__.get(level.name)
                if own is not None and type(session) in by_class:
                    own.parent_listeners = by_class[type(session)]


def _of_subclasses(target: type, by_class: WeakKeyDictionary[type, Any]) -> list[tuple[type, Any]]:
    """The items of a class and its subclasses; other threads may be making classes meanwhile."""
    classes = [ref() for ref in by_class.keyrefs()]
    known = [cls for cls in classes if cls is not None and issubclass(cls, target)]
    return [(cls, by_class[cls]) for cls in known if cls in by_class]

"""SQLAlchemy's session events in, facts out; what must be remembered is in the probe."""

from __future__ import annotations

import functools
import sys
from asyncio import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.engine import NestedTransaction
from sqlalchemy.orm.session import SessionTransactionOrigin

from session_tracer import facts
from session_tracer.hooks import flush_contents, statements
from session_tracer.hooks.targets import live_sessions
from session_tracer.ledger import object_counter, same_owner
from session_tracer.ledger.in_progress import SLOT, Flush, OpenTransaction
from session_tracer.ledger.probe import add_transition, type_name
from session_tracer.publisher.timeline import NOTHING, with_counts
from session_tracer.runtime.degraded import without
from session_tracer.signals.spans import caller
from session_tracer.where import owner
from session_tracer.where.except_finder import failure
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from weakref import WeakKeyDictionary

    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import InstanceState, Session, SessionTransaction, UOWTransaction

    from session_tracer.ledger.probe import Probe

__all__ = ["listen", "remove", "take_up"]


def _contained(listener: Callable[..., None]) -> Callable[..., None]:
    """A listener that is deaf to sessions nobody traces, and whose failures stop with us."""

    @functools.wraps(listener)
    def contained(*told: Any) -> None:
        # Whoever fires an event by hand may leave out what it should tell.
        probe = told[0].__dict__.get(SLOT) if told else None
        if probe is not None:
            try:
                listener(probe, *told)
            except Exception as error:
                probe.failed(listener.__name__, error)

    del contained.__dict__["__wrapped__"]  # its signature is not the event's
    return contained


@_contained
def after_transaction_create(
    probe: Probe, session: Session, transaction: SessionTransaction
) -> None:
    if transaction.origin is SessionTransactionOrigin.SUBTRANSACTION:
        flush = probe.flush
        # A bulk operation makes a subtransaction too, outside of a flush.
        if flush is not None and not flush.began:
            flush.began = True
            flush.began_at = probe.clock()
            if flush.context is not None:
                flush.unchanged = flush_contents.unchanged(flush.context)
                if flush.unchanged:
                    flush.unchanged_attributes = flush_contents.attributes(flush.unchanged)
            if probe.counter.counts:
                probe.settle(flush.began_at)
            probe.tell(facts.FlushBegan(flush.began_at, flush.site, flush.trigger))
        return
    probe.resume(session)
    site = probe.site()
    now = probe.clock()
    if not transaction.nested and not probe.used:
        probe.used = True
        probe.watch_loads(session, site)
    if probe.counter.counts:
        probe.settle(now)
    nested = transaction.nested
    two_phase = bool(session.twophase) and not nested
    user = probe.enter(site)
    # Only where it is not the one who opened the session is it worth asking who awaits it.
    root = user if user is probe.opened_by else owner.root_of(user)
    probe.transactions.append(
        OpenTransaction(now, nested=nested, two_phase=two_phase, owner=user, site=site)
    )
    probe.tell(facts.TransactionBegan(now, site, nested, two_phase, user, root, caller()[0]))


@_contained
def after_transaction_end(probe: Probe, session: Session, transaction: SessionTransaction) -> None:
    if transaction.origin is SessionTransactionOrigin.SUBTRANSACTION:
        _end_flush(probe, session)
        return
    if not probe.transactions:
        return  # it began before this session was traced
    error = sys.exc_info()[1]
    ended = probe.transactions[-1]
    if error is not None and ended.outcome == "rolled_back" and isinstance(error, CancelledError):
        probe.note_cancelled(error)
    probe.transactions.pop()
    probe.failure = None
    now = probe.clock()
    site = ended.site_of_commit or probe.site()
    if probe.counter.counts:
        probe.settle(now)
    if ended.committing_at and ended.outcome != "committed":
        ended.error = ended.error or ("_OTHER" if error is None else type_name(error))
    if not ended.nested:
        probe.release_connections(now)
        if ended.outcome in ("committed", "rolled_back"):
            probe.last_outcome = ended.outcome
        if ended.outcome == "committed" and session.expire_on_commit:
            probe.swept("commit", site)
        elif ended.outcome == "rolled_back":
            probe.swept("rollback", site)
    probe.tell(
        facts.TransactionEnded(
            now,
            site,
            ended.outcome,
            now - ended.began_at,
            ended.took,
            ended.nested,
            ended.two_phase,
            ended.error,
            len(session.identity_map),
        )
    )
    if not ended.nested:
        written, probe.written = probe.written, NOTHING
        if written and ended.outcome == "committed":
            for split in same_owner.committed(
                probe, same_owner.Commit(probe.scope, site, written), now
            ):
                probe.tell(split)


@_contained
def after_begin(
    probe: Probe, session: Session, transaction: SessionTransaction, connection: Connection
) -> None:
    if not statements.is_timed(connection):
        return
    # Somebody else's session may share the connection: the last to begin is the one at work.
    connection.__dict__[SLOT] = probe
    for known in probe.connections:
        if known.holds(connection):
            return
    now = probe.clock()
    if probe.counter.counts:
        probe.settle(now)
    site = probe.site()
    user = probe.enter(site)
    holding = statements.hold(connection, now, user, site)
    probe.connections.append(holding)
    joined = _is_joined(transaction, connection)
    probe.is_joined = probe.is_joined or joined
    probe.tell(facts.ConnectionAcquired(now, holding.database, site, joined))
    nested = same_owner.nested_in(probe, connection, now)
    if nested is not None:
        probe.tell(nested)


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
    """Whether the connection was, or may have been, in a transaction of somebody else's before."""
    held = _held(transaction)
    entry = None if held is None else held.get(connection)
    if held is not None and (entry is None or transaction.nested):
        return False
    return entry is None or not entry[2] or isinstance(entry[1], NestedTransaction)


@_contained
def take_up(probe: Probe, session: Session) -> None:
    """Tell how far a session amid a transaction is: where it came there is unknown."""
    outermost = session.get_transaction()
    if outermost is None:
        return
    probe.begin_scope(session, None, reopened=False)
    probe.used = True
    probe.watch_loads(session, None)
    now = probe.clock()
    opened = []
    transaction: SessionTransaction | None = session.get_nested_transaction() or outermost
    while transaction is not None:
        if transaction.origin is not SessionTransactionOrigin.SUBTRANSACTION:
            opened.append(transaction.nested)
        transaction = transaction.parent
    user = probe.owner
    for nested in reversed(opened):
        two_phase = bool(session.twophase) and not nested
        probe.transactions.append(
            OpenTransaction(now, nested=nested, two_phase=two_phase, owner=user)
        )
        probe.tell(facts.TransactionBegan(now, None, nested, two_phase, user, user))
    held = {id(entry[0]): entry[0] for entry in (_held(outermost) or {}).values()}
    for connection in filter(statements.is_timed, held.values()):
        connection.__dict__[SLOT] = probe
        holding = statements.hold(connection, now, user, None)
        probe.connections.append(holding)
        probe.tell(facts.ConnectionAcquired(now, holding.database))


_PREPARE: Final = frozenset({"prepare"})


@_contained
def before_commit(probe: Probe, session: Session) -> None:
    if probe.at_work is not None:
        probe.check_use(probe.site())
    if not probe.transactions:
        return
    transaction = probe.transactions[-1]
    # prepare() tells of itself so as well, and what follows it may be a rollback.
    if not (transaction.two_phase and probe.tracers[0].locator.called_by(_PREPARE)):
        transaction.committing_at = probe.clock()


@_contained
def after_commit(probe: Probe, session: Session) -> None:
    if probe.transactions:
        committed = probe.transactions[-1]
        committed.outcome = "committed"
        if committed.committing_at:
            committed.took = probe.clock() - committed.committing_at


@_contained
def after_rollback(probe: Probe, session: Session) -> None:
    if probe.transactions:
        probe.transactions[-1].outcome = "rolled_back"
    flush = probe.flush
    if flush is not None and flush.began and not flush.failed:
        flush.failed = True
        if flush.context is not None:
            flush.counts = flush_contents.counts(flush.context, flush.unchanged)


@_contained
def before_flush(
    probe: Probe, session: Session, flush_context: UOWTransaction, instances: object
) -> None:
    site = probe.site()
    user = probe.enter(site)
    trigger = flush_contents.trigger(running_frame(2))
    # It may turn out to have nothing to do; what follows tells whether it began.
    probe.flush = Flush(flush_context, probe.clock(), site, trigger, user)


@_contained
def after_flush(probe: Probe, session: Session, flush_context: UOWTransaction) -> None:
    if probe.flush is not None:
        # The last moment at which new, dirty and deleted can be told apart.
        probe.flush.counts = flush_contents.counts(flush_context, probe.flush.unchanged)
        if probe.flush.counts[2]:
            _remember_deleted(probe, probe.flush, flush_context)


def _remember_deleted(probe: Probe, flush: Flush, context: UOWTransaction) -> None:
    """Mark what is deleted: it is about to leave the identity map, and not always with an event.

    Without expire_on_commit, SQLAlchemy tells of no deleted object that it became detached.
    """
    now = probe.clock()
    for state, (is_delete, list_only) in flush_contents.states(context).items():
        if is_delete and not list_only:
            object_counter.remember(state, probe.origin, "deleted", now, flush.site)


@_contained
def after_flush_postexec(probe: Probe, session: Session, flush_context: UOWTransaction) -> None:
    if probe.flush is not None:
        probe.flush.written = True


def _end_flush(probe: Probe, session: Session) -> None:
    flush = probe.flush
    if flush is None or not flush.began:
        return
    probe.flush = None
    now = probe.clock()
    if probe.counter.counts:
        probe.settle(now)
    if probe.transactions and probe.transactions[-1].committing_at:
        # What the flush took is not the COMMIT's; the line is the same.
        probe.transactions[-1].committing_at = now
        probe.transactions[-1].site_of_commit = flush.site
    probe.measure(len(session.identity_map))
    new, dirty, deleted, unchanged = flush.counts
    duration = now - flush.began_at
    if flush.written and not flush.failed:
        add_transition(probe.transitions, "pending_to_persistent", sum(new.values()))
        add_transition(probe.transitions, "persistent_to_deleted", sum(deleted.values()))
        probe.pending.clear()
        for added in session.new:  # by somebody's listener, after what there was had been written
            probe.pending[type(added)] = probe.pending.get(type(added), 0) + 1
        for counts in (new, dirty, deleted):
            probe.written = with_counts(probe.written, counts)
        probe.tell(
            facts.FlushCompleted(
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
        )
        return
    if not flush.failed and flush.context is not None:
        # What failed is the rollback itself: nothing has told of one.
        new, dirty, deleted, _ = flush_contents.counts(flush.context, flush.unchanged)
    error = sys.exc_info()[1]
    probe.failure = failure(error, probe.tracers[0].locator.frames(running_frame(1)))
    probe.tell(
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
        probe = session.__dict__.get(SLOT)
        if probe is not None:
            transitions = probe.transitions
            transitions[name] = transitions.get(name, 0) + 1

    counting.__name__ = name
    return counting


# An add() of many calls a line for each: beyond these, the line is looked for ever more rarely.
_SURE: Final = 16


@_contained
def transient_to_pending(probe: Probe, session: Session, state: Any) -> None:
    transitions, pending, entity = probe.transitions, probe.pending, state.class_
    transitions["transient_to_pending"] = count = transitions.get("transient_to_pending", 0) + 1
    pending[entity] = pending.get(entity, 0) + 1
    if count <= _SURE or count & (count - 1) == 0:
        probe.added_site = probe.site()


@_contained
def pending_to_transient(probe: Probe, session: Session, state: Any) -> None:
    add_transition(probe.transitions, "pending_to_transient")
    if probe.closing:
        return  # close() empties the session first: what it held is still to be told
    left = probe.pending.get(state.class_, 0) - 1
    if left > 0:
        probe.pending[state.class_] = left
    else:
        probe.pending.pop(state.class_, None)


@_contained
def deleted_to_detached(probe: Probe, session: Session, state: Any) -> None:
    add_transition(probe.transitions, "deleted_to_detached")
    object_counter.remember(state, probe.origin, "deleted", probe.clock(), probe.site())


@_contained
def loaded_as_persistent(probe: Probe, session: Session, state: Any) -> None:
    if (
        isinstance(probe.counter, object_counter.EventCounter)
        and probe.counter is not object_counter.NOTHING_LOADED
    ):
        probe.counter.count(state.class_)
        object_counter.put(state, object_counter.Mark(probe.origin, probe.counter.site))


@_contained
def taken_in(probe: Probe, session: Session, state: Any) -> None:
    """An object became persistent otherwise than by a load: it was written, or added again."""
    if isinstance(probe.counter, object_counter.EventCounter):
        object_counter.put(state, object_counter.Mark(probe.origin, probe.counter.site))


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

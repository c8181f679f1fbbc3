"""Opening and closing, expunging, expiring and merging: what SQLAlchemy has no event for."""

from __future__ import annotations

import sys
from asyncio import CancelledError
from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.orm import Session, attributes
from sqlalchemy.orm.exc import NO_STATE

from session_tracer import facts
from session_tracer.hooks import flush_contents
from session_tracer.ledger import object_counter
from session_tracer.ledger.origin import Origin
from session_tracer.ledger.probe import add_transition, by_name, probe_of, type_name
from session_tracer.verdicts.misuse import raise_due

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

    from session_tracer.facts import Counts, Ending
    from session_tracer.hooks.patching import Patches
    from session_tracer.ledger.probe import Probe
    from session_tracer.where.callsite import CallSite

__all__ = ["wrap_async_session", "wrap_session"]


def wrap_session(patches: Patches, owner: type[Session], adopt: Callable[[Session], None]) -> None:
    """Wrap what begins and ends a scope of the class's sessions, and what moves objects about."""

    def constructing(session: Session, *_: Any, **__: Any) -> tuple[Session, object]:
        return session, sys.exc_info()[1]

    def constructed(call: tuple[Session, object]) -> None:
        session, handled = call
        if sys.exc_info()[1] is handled:  # else it could not be made
            adopt(session)

    patches.wrap(owner, "__init__", constructing, constructed)
    for name, before, after in _WRAPPED:
        patches.wrap(owner, name, before, after)


def wrap_async_session(
    patches: Patches, session: type[AsyncSession], transaction: type[AsyncSessionTransaction]
) -> None:
    """Wrap what ends a scope from asyncio: it closes in a greenlet, or in a task of its own.

    There neither the line nor the exception that is leaving can be seen, so they are noted before.
    """
    for name in ("close", "reset", "invalidate"):
        patches.wrap(session, name, _leaving, _nothing)
    patches.wrap(session, "__aexit__", _leaving_block, _nothing)
    patches.wrap(transaction, "__aexit__", _leaving_transaction, _nothing)


def _nothing(_: Any) -> None:
    """Has nothing to add."""


class _Call:
    """A wrapped call on its way: what to say of it when it has returned."""

    __slots__ = (
        "detached",
        "ending",
        "error",
        "handled",
        "leaving",
        "modified",
        "pending",
        "probe",
        "removed",
        "session",
        "site",
        "size",
    )

    def __init__(self, probe: Probe, session: Session, ending: Ending = "close") -> None:
        self.probe = probe
        self.session = session
        self.ending = ending
        self.handled = sys.exc_info()[1]
        self.site: CallSite | None = None
        self.error = ""
        self.size = 0
        self.pending = 0
        self.detached: Counts = {}
        self.leaving = False
        self.modified: Counts = {}
        self.removed: Counts = {}

    def look(self) -> None:
        """What the session is about to let go of."""
        session, probe = self.session, self.probe
        identity_map = session.identity_map
        self.size = len(identity_map)
        probe.measure(self.size)
        if self.size:
            # The first part of an identity key is the mapped class, or its hierarchy's base.
            # As a list: the collector may take objects out of the map amid a slower iteration.
            self.detached = by_name(Counter(map(itemgetter(0), list(identity_map.keys()))))
            if identity_map.check_modified():
                self.modified = _modified(session)
            add_transition(probe.transitions, "persistent_to_detached", self.size)
        self.pending = len(session.new)
        if session.deleted:
            self.removed = by_name(Counter(map(type, session.deleted)))


def _closing(ending: Ending) -> Callable[..., _Call | None]:
    def before(session: Session, *_: Any, **__: Any) -> _Call | None:
        probe = probe_of(session)
        if probe is None or not probe.open:
            return None
        try:
            call = _Call(probe, session, ending)
            probe.departing(ending)
            call.site, call.error, call.leaving = probe.leaving or (None, "", False)
            if probe.used:
                call.look()
        except Exception as error:
            probe.failed("lifetime", error)
            return None
        return call

    return before


def _modified(session: Session) -> Counts:
    """The objects with a net change that was not flushed, by mapped class."""
    counts: Counts = {}
    for instance in session.dirty:
        state = attributes.instance_state(instance)
        if flush_contents.changed(state):
            entity = state.class_.__name__
            counts[entity] = counts.get(entity, 0) + 1
    return counts


def _closed(call: _Call | None) -> None:
    if call is None:
        return
    stories = call.probe.stories
    try:
        if _is_refused(call):
            call.probe.remain(call.session, call.site)
            return
        call.probe.end_scope(
            call.ending,
            site=call.site,
            size=call.size,
            pending=call.pending,
            detached=call.detached,
            error=call.error,
            leaving=call.leaving,
            modified=call.modified,
            removed=call.removed,
        )
    except Exception as error:
        call.probe.failed("lifetime", error)
    if not call.leaving:
        raise_due(stories)


def _is_refused(call: _Call) -> bool:
    """Whether SQLAlchemy would not close the session, because something is being done with it."""
    error = sys.exc_info()[1]
    return error is not call.handled and isinstance(error, IllegalStateChangeError)


def _expunging(session: Session, instance: Any, *_more: Any, **__: Any) -> None:
    probe = probe_of(session)
    if probe is None or not probe.open:
        return
    try:
        state = attributes.instance_state(instance)
        if state.session is not session:
            return  # SQLAlchemy is about to refuse it
        leaving = [state]
        for _, _, related, _ in state.manager.mapper.cascade_iterator("expunge", state):
            leaving.append(related)
        now, site = probe.clock(), probe.site()
        for one in leaving:
            object_counter.remember(one, probe.origin, "expunge", now, site)
        persistent = sum(one.persistent for one in leaving)
        add_transition(probe.transitions, "persistent_to_detached", persistent)
        probe.settle(now)
        probe.tell(facts.ObjectsExpunged(now, site, len(leaving)))
    except NO_STATE:
        pass  # not a mapped object: SQLAlchemy is about to say so
    except Exception as error:
        probe.failed("lifetime", error)


def _expunging_all(session: Session, *_: Any, **__: Any) -> _Call | None:
    probe = probe_of(session)
    # close(), reset() and invalidate() expunge everything too, and say it themselves.
    if probe is None or not probe.open or probe.closing:
        return None
    try:
        now, site = probe.clock(), probe.site()
        size = len(session.identity_map)
        probe.settle(now)
        add_transition(probe.transitions, "persistent_to_detached", size)
        probe.tell(facts.ObjectsExpunged(now, site, size + len(session.new)))
        # The objects carry the origin; what the session loads from now on gets another.
        probe.origin.left("expunge_all", now, site)
        probe.origin = Origin(probe.scope)
        return _Call(probe, session)
    except Exception as error:
        probe.failed("lifetime", error)
        return None


def _expunged_all(call: _Call | None) -> None:
    if call is None:
        return
    try:
        call.probe.watch_loads(call.session, call.probe.last_site)
    except Exception as error:
        call.probe.failed("lifetime", error)


def _expiring(session: Session, instance: Any = None, *_: Any, **__: Any) -> None:
    probe = probe_of(session)
    if probe is None or not probe.open:
        return
    try:
        if instance is not None:
            state = attributes.instance_state(instance)
            if not state.persistent or state.session is not session:
                return  # SQLAlchemy is about to refuse it
        now, site = probe.clock(), probe.site()
        count = len(session.identity_map) if instance is None else 1
        if instance is None:
            probe.swept("expire_all", site)
        else:
            probe.scope.expired("expire", site)
            object_counter.expire(state, "expire", site, probe.scope.sweeps)
        probe.settle(now)
        probe.tell(facts.ObjectsExpired(now, site, count))
    except NO_STATE:
        pass  # not a mapped object: SQLAlchemy is about to say so
    except Exception as error:
        probe.failed("lifetime", error)


def _committing(session: Session, *_: Any, **__: Any) -> Probe | None:
    return probe_of(session)


def _committed(probe: Probe | None) -> None:
    # A transaction whose COMMIT failed stays open until somebody rolls it back, and by then the
    # error may be gone. One that was committed is open no longer.
    if probe is not None and probe.transactions:
        transaction, error = probe.transactions[-1], sys.exc_info()[1]
        if transaction.committing_at and error is not None:
            transaction.error = type_name(error)
    if probe is not None:
        raise_due(probe.stories)


def _rolling_back(session: Session, *_: Any, **__: Any) -> None:
    probe = probe_of(session)
    # When the event comes, it is done, and whoever was at work may be, too.
    if probe is None or probe.at_work is None:
        return
    try:
        probe.check_use(probe.site())
    except Exception as error:
        probe.failed("lifetime", error)


def _merging(session: Session, instance: Any, *_: Any, **__: Any) -> None:
    probe = probe_of(session)
    if probe is None:
        return
    try:
        attributes.instance_state(instance)
        probe.resume(session)
        probe.settle(probe.clock())
        entity = type(instance).__name__
        probe.tell(facts.ObjectMerged(probe.clock(), probe.site(), entity))
    except NO_STATE:
        pass  # not a mapped object: SQLAlchemy is about to say so
    except Exception as error:
        probe.failed("lifetime", error)


# A subclass's method may take more than the one it extends.
_WRAPPED: Final[tuple[tuple[str, Callable[..., Any], Callable[[Any], None]], ...]] = (
    ("close", _closing("close"), _closed),
    ("reset", _closing("reset"), _closed),
    ("invalidate", _closing("invalidate"), _closed),
    ("expunge", _expunging, _nothing),
    ("expunge_all", _expunging_all, _expunged_all),
    ("expire", _expiring, _nothing),
    ("expire_all", _expiring, _nothing),
    ("merge", _merging, _nothing),
    ("commit", _committing, _committed),
    ("rollback", _rolling_back, _nothing),
)


def _leaving(session: Any, *_: Any, **__: Any) -> None:
    _note(session, sys.exc_info()[1])


def _leaving_block(session: Any, type_: Any, value: Any, traceback: Any) -> None:
    del type_, traceback
    _note(session, value)


def _leaving_transaction(transaction: Any, type_: Any, value: Any, traceback: Any) -> None:
    del type_, traceback
    if not isinstance(value, CancelledError):
        return
    probe = probe_of(transaction.session.sync_session)
    if probe is not None and probe.open:
        try:
            # By the time the session's own block is left, no transaction is open any more.
            probe.note_cancelled(value)
        except Exception as failure:
            probe.failed("lifetime", failure)


def _note(session: Any, error: BaseException | None) -> None:
    probe = probe_of(session.sync_session)
    if probe is None or not probe.open or probe.leaving is not None:
        return
    try:
        probe.note_leaving(error)
    except Exception as failure:
        probe.failed("lifetime", failure)

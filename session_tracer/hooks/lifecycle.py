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

from session_tracer.hooks import flush_contents
from session_tracer.hooks.scopes import ledger_failed, ledger_of, resumed
from session_tracer.ledger import object_counter
from session_tracer.ledger.in_progress import SLOT
from session_tracer.ledger.ledger import Closing, Ledger, Opening, type_name
from session_tracer.ledger.origin import Origin
from session_tracer.model.counts import NOTHING, by_name
from session_tracer.verdicts.misuse import raise_due
from session_tracer.where.frameworks import error_of_request, is_by_transaction_manager

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

    from session_tracer.facts import Counts, Ending
    from session_tracer.hooks.patching import Patches
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
        "ledger",
        "modified",
        "pending",
        "removed",
        "session",
        "site",
        "size",
    )

    def __init__(self, ledger: Ledger, session: Session, ending: Ending = "close") -> None:
        self.ledger = ledger
        self.session = session
        self.ending = ending
        self.handled = sys.exc_info()[1]
        self.site: CallSite | None = None
        self.error = ""
        self.size = 0
        self.pending = 0
        self.detached: Counts = NOTHING
        self.leaving = False
        self.modified: Counts = NOTHING
        self.removed: Counts = NOTHING

    def look(self) -> None:
        """What the session is about to let go of."""
        session, ledger = self.session, self.ledger
        identity_map = session.identity_map
        self.size = len(identity_map)
        ledger.measure(self.size)
        if self.size:
            # The first part of an identity key is the mapped class, or its hierarchy's base.
            # As a list: the collector may take objects out of the map amid a slower iteration.
            self.detached = by_name(Counter(map(itemgetter(0), list(identity_map.keys()))))
            if identity_map.check_modified():
                self.modified = _modified(session)
            ledger.count_transition("persistent_to_detached", self.size)
        self.pending = len(session.new)
        if session.deleted:
            self.removed = by_name(Counter(map(type, session.deleted)))


def _closing(ending: Ending) -> Callable[..., _Call | None]:
    def before(session: Session, *_: Any, **__: Any) -> _Call | None:
        ledger = ledger_of(session)
        if ledger is None:
            _close_unused(session, ending)
            return None
        if not ledger.is_open:
            return None
        try:
            call = _Call(ledger, session, ending)
            error = sys.exc_info()[1] or error_of_request()
            ledger.departing(ending, error, is_managed=is_by_transaction_manager())
            call.site, call.error, call.leaving = ledger.leaving or (None, "", False)
            if ledger.is_used:
                call.look()
        except Exception as error:
            ledger.failed("lifetime", error)
            return None
        return call

    return before


def _close_unused(session: Session, ending: Ending) -> None:
    """A session that was never used is closed: it is counted, and opened anew by its next use."""
    opening = session.__dict__.get(SLOT)
    if type(opening) is Opening and opening.at:
        for tracer in opening.tracers:
            tracer.closed_unused(tracer.clock() - opening.at)
        tracers = opening.tracers
        closing = Closing(
            "reset" if is_by_transaction_manager() else ending,
            tracers[0].locator.locate(2),
            opening.owner,  # no other thread or task has used it
        )
        session.__dict__[SLOT] = Opening(
            tracers, 0, None, is_async=opening.is_async, closing=closing
        )


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
    reports = call.ledger.reports
    try:
        if _is_refused(call):
            call.ledger.remain(call.session, call.site)
            return
        call.ledger.end(
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
        call.ledger.failed("lifetime", error)
    if not call.leaving:
        raise_due(reports)


def _is_refused(call: _Call) -> bool:
    """Whether SQLAlchemy would not close the session, because something is being done with it."""
    error = sys.exc_info()[1]
    return error is not call.handled and isinstance(error, IllegalStateChangeError)


def _expunging(session: Session, instance: Any, *_more: Any, **__: Any) -> None:
    ledger = ledger_of(session)
    if ledger is None or not ledger.is_open:
        return
    try:
        state = attributes.instance_state(instance)
        if state.session is not session:
            return  # SQLAlchemy is about to refuse it
        leaving = [state]
        for _, _, related, _ in state.manager.mapper.cascade_iterator("expunge", state):
            leaving.append(related)
        now, site = ledger.clock(), ledger.site()
        for one in leaving:
            object_counter.remember(one, ledger.origin, "expunge", now, site)
        persistent = sum(one.persistent for one in leaving)
        ledger.count_transition("persistent_to_detached", persistent)
        ledger.settle(now)
        ledger.objects_expunged(now, site, len(leaving))
    except NO_STATE:
        pass  # not a mapped object: SQLAlchemy is about to say so
    except Exception as error:
        ledger.failed("lifetime", error)


def _expunging_all(session: Session, *_: Any, **__: Any) -> _Call | None:
    ledger = ledger_of(session)
    # close(), reset() and invalidate() expunge everything too, and say it themselves.
    if ledger is None or not ledger.is_open or ledger.is_closing:
        return None
    try:
        now, site = ledger.clock(), ledger.site()
        size = len(session.identity_map)
        ledger.settle(now)
        ledger.count_transition("persistent_to_detached", size)
        ledger.objects_expunged(now, site, size + len(session.new))
        # The objects carry the origin; what the session loads from now on gets another.
        ledger.origin.left("expunge_all", now, site)
        ledger.origin = Origin(ledger.scope)
        return _Call(ledger, session)
    except Exception as error:
        ledger.failed("lifetime", error)
        return None


def _expunged_all(call: _Call | None) -> None:
    if call is None:
        return
    try:
        call.ledger.watch_loads(call.session, call.ledger.last_site)
    except Exception as error:
        call.ledger.failed("lifetime", error)


def _expiring(session: Session, instance: Any = None, *_: Any, **__: Any) -> None:
    ledger = ledger_of(session)
    if ledger is None or not ledger.is_open:
        return
    try:
        if instance is not None:
            state = attributes.instance_state(instance)
            if not state.persistent or state.session is not session:
                return  # SQLAlchemy is about to refuse it
        now, site = ledger.clock(), ledger.site()
        count = len(session.identity_map) if instance is None else 1
        if instance is None:
            ledger.swept("expire_all", site)
        else:
            ledger.scope.expired("expire", site)
            object_counter.expire(state, "expire", site, ledger.scope.sweeps)
        ledger.settle(now)
        ledger.objects_expired(now, site, count)
    except NO_STATE:
        pass  # not a mapped object: SQLAlchemy is about to say so
    except Exception as error:
        ledger.failed("lifetime", error)


def _committing(session: Session, *_: Any, **__: Any) -> Ledger | None:
    return ledger_of(session)


def _committed(ledger: Ledger | None) -> None:
    # A transaction whose COMMIT failed stays open until somebody rolls it back, and by then the
    # error may be gone. One that was committed is open no longer.
    if ledger is not None and ledger.transactions_open:
        transaction, error = ledger.transactions_open[-1], sys.exc_info()[1]
        if transaction.committing_at and error is not None:
            transaction.error = type_name(error)
    if ledger is not None:
        raise_due(ledger.reports)


def _rolling_back(session: Session, *_: Any, **__: Any) -> None:
    ledger = ledger_of(session)
    # When the event comes, it is done, and whoever was at work may be, too.
    if ledger is None or ledger.at_work is None:
        return
    try:
        ledger.check_use(ledger.site())
    except Exception as error:
        ledger.failed("lifetime", error)


def _merging(session: Session, instance: Any, *_: Any, **__: Any) -> None:
    ledger = session.__dict__.get(SLOT)
    if ledger is None:
        return
    try:
        attributes.instance_state(instance)
        ledger = resumed(session, ledger)
        ledger.settle(ledger.clock())
        entity = type(instance).__name__
        ledger.object_merged(ledger.clock(), ledger.site(), entity)
    except NO_STATE:
        pass  # not a mapped object: SQLAlchemy is about to say so
    except Exception as error:
        ledger_failed(ledger, "lifetime", error)


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
    ledger = ledger_of(transaction.session.sync_session)
    if ledger is not None and ledger.is_open:
        try:
            # By the time the session's own block is left, no transaction is open any more.
            ledger.note_cancelled(value)
        except Exception as failure:
            ledger.failed("lifetime", failure)


def _note(session: Any, error: BaseException | None) -> None:
    ledger = ledger_of(session.sync_session)
    if ledger is None or not ledger.is_open or ledger.leaving is not None:
        return
    try:
        ledger.note_leaving(error)
    except Exception as failure:
        ledger.failed("lifetime", failure)

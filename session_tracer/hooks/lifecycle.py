"""Opening and closing, expunging, expiring and merging, which have no event in SQLAlchemy."""

from __future__ import annotations

import sys
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.orm import Session, attributes
from sqlalchemy.orm.exc import NO_STATE

from session_tracer.hooks import flush_contents, loops, merges
from session_tracer.hooks.failed_statements import commit_failed
from session_tracer.hooks.scopes import ledger_failed, ledger_of, resumed
from session_tracer.ledger import object_counter
from session_tracer.ledger.in_progress import SLOT
from session_tracer.ledger.ledger import Closing, Ledger, Opening, new_tuple, type_name
from session_tracer.ledger.origin import Origin
from session_tracer.verdicts.misuse import raise_due
from session_tracer.where.blocks import took_from_generator
from session_tracer.where.frameworks import CLOSING, error_of_request, is_by_transaction_manager
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

    from session_tracer.facts import Counts, Ending
    from session_tracer.hooks.patching import Patches
    from session_tracer.where.callsite import CallSite, Locator


__all__ = ["wrap_async_session", "wrap_session"]


def wrap_session(patches: Patches, owner: type[Session], adopt: Callable[[Session], None]) -> None:
    """Wrap what begins and ends a scope of the class's sessions, and what moves objects about."""
    patches.wrap(owner, "__init__", after=adopt)
    for name, before, after in _WRAPPED:
        patches.wrap(owner, name, before, after, slot=SLOT)


def wrap_async_session(
    patches: Patches, session: type[AsyncSession], transaction: type[AsyncSessionTransaction]
) -> None:
    """Wrap what ends a scope from asyncio: it closes in a greenlet, or in a task of its own.

    There neither the line nor the exception that is leaving can be seen, so they are noted before.
    """
    for name in ("close", "reset", "invalidate"):
        patches.wrap(session, name, _leaving)
    patches.wrap(session, "__aexit__", _leaving_block)
    patches.wrap(transaction, "__aexit__", _leaving_transaction)


def _closing(ending: Ending) -> Callable[..., Ledger | None]:
    def before(session: Session, *_: Any, **__: Any) -> Ledger | None:
        ledger: Any = session.__dict__.get(SLOT)
        try:
            if type(ledger) is not Ledger:
                if ledger is not None and ledger.at:
                    _close_unused(session, ledger, ending)
                return None
            if not ledger.is_open:
                return None
            handled = sys.exc_info()[1]
            if handled is not None:
                ledger.closed_during = handled
            if not sys.modules.keys().isdisjoint(CLOSING):
                if is_by_transaction_manager():
                    ledger.is_joined = ledger.is_managed = True
                handled = handled or error_of_request()
            ledger.departing(session, ending, handled)
            if type(handled) is GeneratorExit:
                ledger.dropped_site = _dropped_at(ledger.locator)
            if ledger.identity_map_size and session.identity_map.check_modified():
                ledger.modified, ledger.modified_attributes = _modified(session)
        except Exception as error:
            ledger_failed(ledger, "lifetime", error)
            return None
        return ledger

    return before


def _close_unused(session: Session, opening: Opening, ending: Ending) -> None:
    """Count a session that is closed unused. Its next use begins a new scope."""
    tracers, at, _, owner, _, _, is_async, *_ = opening
    nearest = tracers[0]
    duration = nearest.clock() - at
    for tracer in tracers:
        tracer.closed_unused(duration)
    if is_by_transaction_manager():
        ending = "reset"
    site = None
    # What called the wrapped method is most often the application's line, which is known.
    wrapper = running_frame(2)
    if wrapper is not None and (caller := wrapper.f_back) is not None:
        site = nearest.locator.known.get((id(caller.f_code), caller.f_lasti))
    dropped_site = _dropped_at(nearest.locator) if sys.exception() is not None else None
    # No other thread or task has used it.
    closing = new_tuple(Closing, (ending, site or nearest.locator.locate(3), owner, dropped_site))
    session.__dict__[SLOT] = new_tuple(
        Opening, (tracers, 0, None, owner, None, None, is_async, closing, (), None)
    )


def _dropped_at(locator: Locator) -> CallSite | None:
    """The line that drops the generator which closes the session, such as `next(get_db())`.

    A generator that is dropped ends there and then. The garbage collector may end one anywhere.
    """
    if not isinstance(sys.exception(), GeneratorExit):
        return None
    lines = locator.lines()
    if len(lines) < 2 or not took_from_generator(lines[1], lines[0]):
        return None
    return lines[1]


def _modified(session: Session) -> tuple[Counts, tuple[str, ...]]:
    """The objects with a net change that was not flushed, by mapped class; and what of them is."""
    counts: Counts = {}
    names: dict[str, None] = {}
    for instance in session.dirty:
        state = attributes.instance_state(instance)
        if flush_contents.change_of(state) == "written":
            entity = state.class_.__name__
            counts[entity] = counts.get(entity, 0) + 1
            if len(names) < _MOST_NAMES:
                names |= {f"{entity}.{key}": None for key in flush_contents.changed_in(state)}
    return counts, tuple(names)[:_MOST_NAMES]


def _closed(ledger: Ledger) -> None:
    reports = ledger.reports
    leaving = ledger.leaving or _NOT_LEAVING
    error = sys.exc_info()[1]
    try:
        if error is not None and _is_refused(ledger, error):
            ledger.remain(leaving[0])
            return
        ledger.end(ledger.ending or "close", leaving)
    except Exception as error:
        ledger.failed("lifetime", error)
    if ledger.has_misuses and not leaving[2]:
        raise_due(reports)


def _is_refused(ledger: Ledger, error: BaseException) -> bool:
    """Whether SQLAlchemy would not close the session, because something is being done with it."""
    return isinstance(error, IllegalStateChangeError) and error is not ledger.closed_during


_MOST_NAMES: Final = 100
_NOT_LEAVING: Final = (None, "", False)


def _expunging(session: Session, instance: Any, *_more: Any, **__: Any) -> None:
    ledger = session.__dict__.get(SLOT)
    if type(ledger) is not Ledger or not ledger.is_open:
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
        pass  # not a mapped object: SQLAlchemy is about to raise an error
    except Exception as error:
        ledger.failed("lifetime", error)


def _expunging_all(session: Session, *_: Any, **__: Any) -> Session | None:
    ledger = session.__dict__.get(SLOT)
    # close(), reset() and invalidate() call it, too, and report it themselves.
    if type(ledger) is not Ledger or ledger.is_closing or not ledger.is_open:
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
    except Exception as error:
        ledger.failed("lifetime", error)
        return None
    return session


def _expunged_all(session: Session) -> None:
    ledger = ledger_of(session)
    if ledger is not None:
        try:
            ledger.watch_loads(session, ledger.last_site)
        except Exception as error:
            ledger.failed("lifetime", error)


def _expiring(session: Session, instance: Any = None, *_: Any, **__: Any) -> None:
    ledger = session.__dict__.get(SLOT)
    if type(ledger) is not Ledger or not ledger.is_open:
        return
    try:
        if instance is not None:
            state = attributes.instance_state(instance)
            if not state.persistent or state.session is not session:
                return  # SQLAlchemy is about to refuse it
        now, site = ledger.clock(), ledger.site()
        count = len(session.identity_map) if instance is None else 1
        if instance is None:
            ledger.scope.swept("expire_all", site)
        else:
            ledger.scope.expired("expire", site)
            object_counter.expire(state, "expire", site, ledger.scope.sweeps)
        ledger.settle(now)
        ledger.objects_expired(now, site, count)
    except NO_STATE:
        pass  # not a mapped object: SQLAlchemy is about to raise an error
    except Exception as error:
        ledger.failed("lifetime", error)


def _committing(session: Session, *_: Any, **__: Any) -> Ledger | None:
    ledger = session.__dict__.get(SLOT)
    return ledger if type(ledger) is Ledger else None


def _committed(ledger: Ledger) -> None:
    # A transaction whose COMMIT failed stays open until it is rolled back, and by then the error
    # may be gone. One that was committed is open no longer.
    if ledger.transactions_open:
        transaction, error = ledger.transactions_open[-1], sys.exc_info()[1]
        if transaction.committing_at and error is not None:
            transaction.error = type_name(error)
            loops.left_with(ledger, error)
            commit_failed(ledger, error, transaction.site_of_commit or ledger.site())
    if ledger.has_misuses:
        raise_due(ledger.reports)


def _rolling_back(session: Session, *_: Any, **__: Any) -> None:
    ledger = session.__dict__.get(SLOT)
    # When the event comes, it is done, and what was at work may be, too.
    if type(ledger) is not Ledger or ledger.at_work is None:
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
        state = attributes.instance_state(instance)
        ledger = resumed(session, ledger)
        ledger.settle(ledger.clock())
        entity, site = type(instance).__name__, ledger.site()
        object_counter.note_merged(state, site)
        merges.follow(ledger, state, site)
        ledger.object_merged(ledger.clock(), site, entity)
    except NO_STATE:
        pass  # not a mapped object: SQLAlchemy is about to raise an error
    except Exception as error:
        ledger_failed(ledger, "lifetime", error)


# Each looks for the ledger again: another thread may uninstrument the session at any moment.
# A subclass's method may take more than the one it extends.
_WRAPPED: Final[tuple[tuple[str, Callable[..., Any], Callable[[Any], None] | None], ...]] = (
    ("close", _closing("close"), _closed),
    ("reset", _closing("reset"), _closed),
    ("invalidate", _closing("invalidate"), _closed),
    ("merge", _merging, None),
    ("expunge", _expunging, None),
    ("expunge_all", _expunging_all, _expunged_all),
    ("expire", _expiring, None),
    ("expire_all", _expiring, None),
    ("commit", _committing, _committed),
    ("rollback", _rolling_back, None),
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
        loops.left_with(ledger, error)
        ledger.note_leaving(error)
    except Exception as failure:
        ledger.failed("lifetime", failure)

"""The errors that SQLAlchemy raises without an event, seen where they are made."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy
from sqlalchemy import exc
from sqlalchemy.orm.exc import DetachedInstanceError, ObjectDeletedError

from session_tracer import facts
from session_tracer.hooks import (
    boundaries,
    error_frames,
    exhausted_pools,
    links,
    loader_options,
    reads,
    rows,
)
from session_tracer.hooks.scopes import ledger_of, resumed
from session_tracer.ledger import object_counter, pools
from session_tracer.ledger.in_progress import SLOT
from session_tracer.runtime.degraded import without
from session_tracer.where import owner
from session_tracer.where.except_finder import handler_of
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from sqlalchemy.orm import Session

    from session_tracer.facts import Fact
    from session_tracer.hooks.error_frames import Read
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.ledger.origin import OriginRef
    from session_tracer.ledger.report import Tracer
    from session_tracer.where.callsite import CallSite

__all__ = ["see", "watch"]


class Watch:
    """Whether SQLAlchemy's errors are seen: all of them, or none."""

    def __init__(self) -> None:
        self._ends: list[Callable[[], None]] = []

    def start(self) -> None:
        """See the errors from now on."""
        if not self._ends:
            self._ends = [see(error, seen) for error, seen in _SEEN]

    def stop(self) -> None:
        """Leave SQLAlchemy's errors as they were found."""
        while self._ends:
            self._ends.pop()()


def see(error: Any, seen: Callable[[Any, FrameType], None]) -> Callable[[], None]:
    """Have `seen` called with each error of the class that is made; return what ends that.

    SQLAlchemy makes them by calling the class: its `__init__` sees each one, and in its caller's
    frame what it is about. That costs nothing until an error is raised.
    """
    found = error.__dict__.get("__init__")
    is_open = True

    def __init__(self: Any, *arg: Any, **kw: Any) -> None:
        if found is None:
            super(error, self).__init__(*arg, **kw)
        else:
            found(self, *arg, **kw)
        frame = running_frame(1) if is_open else None
        if frame is not None:
            seen(self, frame)

    def end() -> None:
        nonlocal is_open
        is_open = False
        if error.__dict__.get("__init__") is not __init__:
            return  # another library has wrapped it since
        if found is None:
            del error.__init__
        else:
            error.__init__ = found

    try:
        error.__init__ = __init__
    except TypeError:  # a class that is compiled
        without(f"{error.__qualname__}.__init__", "errors of this class are not reported")
    return end


watch: Final = Watch()


# Errors about a session that is there.


def _refused(error: Any, frame: FrameType) -> None:
    """Report to the session's ledger that an operation was refused; never raises."""
    try:
        concludes = _BY_FUNCTION.get(frame.f_code.co_name) or _BY_ERROR.get(type(error))
        if concludes is None or not error_frames.is_sqlalchemys(frame):
            return
        ledger, fact = concludes(error, frame)
        if ledger is not None and fact is not None and ledger.is_open:
            if type(fact) is facts.LoadRefused:
                ledger.load_refused(fact)
            elif type(fact) is facts.RollbackPending:
                ledger.rollback_pending(fact)
            else:
                ledger.suspect(fact)
    except Exception as failure:
        _failed(failure, frame)


def _failed(failure: Exception, frame: FrameType) -> None:
    """Report a failure of session_tracer's own, where the session that it is about is known."""
    with suppress(Exception):
        ledger = _ledger_near(frame)
        if ledger is not None:
            ledger.failed("failures", failure)


def _rollback_pending(error: Any, frame: FrameType) -> tuple[Ledger | None, Fact | None]:
    if type(error) is exc.ResourceClosedError:
        return boundaries.used_after_end(error, frame)
    if type(error) is not exc.PendingRollbackError:
        return _used_at_once(error, frame)
    ledger = _ledger_near(frame)
    if ledger is None:
        return None, None
    return ledger, _used_after_failure(ledger, frame, in_block=False)


def _closed_in_block(error: Any, frame: FrameType) -> tuple[Ledger | None, Fact | None]:
    """In the block of a transaction, this is the error that follows a failed flush."""
    ledger = _ledger_near(frame)
    if ledger is None or ledger.failure is None:
        refused = boundaries.used_after_end(error, frame)
        return _used_at_once(error, frame) if refused[0] is None else refused
    return ledger, _used_after_failure(ledger, frame, in_block=True)


def _used_after_failure(ledger: Ledger, frame: FrameType, *, in_block: bool) -> Fact:
    here = ledger.locator.frames(frame)
    first = None if ledger.failures is None else ledger.failures.first
    caught = None if first is None else first.failure
    swallowed = None if caught is None else handler_of(caught, here)
    return facts.RollbackPending(ledger.clock(), ledger.site(), swallowed, in_block)


def _used_at_once(error: Any, frame: FrameType) -> tuple[Ledger | None, Fact | None]:
    """SQLAlchemy refuses two operations at once; a listener alone may cause that, too."""
    del error
    session = error_frames.session_near(frame)
    ledger = None if session is None else ledger_of(session)
    if session is None or ledger is None or not ledger.is_open:
        return None, None
    inside = list(_inside(session, ledger))
    if inside:
        # Of several, one that does not leave the block; the order of tasks is not to matter.
        *_, other, other_site = min(inside, key=lambda one: one[:2])
        ledger.met(ledger.site(), owner.current(), other_site, other)
    return None, None


def _inside(
    session: Session, ledger: Ledger
) -> Iterator[tuple[bool, str, owner.Owner, CallSite | None]]:
    """The others that are inside of an operation of the session, and where."""
    worker = ledger.at_work
    if worker is not None and not worker.is_current():
        yield False, "", worker, ledger.at_work_site
        return
    for other in owner.others():
        # From its use of the session outwards: inside of that a listener may be at work.
        stack = list(
            dropwhile(lambda one: not error_frames.is_inside(one, session), other.frames())
        )
        if stack:
            site = next(iter(ledger.locator.sites(stack)), None)
            yield owner.leaver_for(other) is not None, other.name, other, site


def _crossed(error: Any, frame: FrameType) -> tuple[Ledger | None, Fact | None]:
    del error
    session: Any = frame.f_locals.get("self")
    state: Any = frame.f_locals.get("state")
    ledger = None if session is None or state is None else session.__dict__.get(SLOT)
    if ledger is None:
        return None, None
    ledger = resumed(session, ledger)
    other = None if state.session is None else ledger_of(state.session)
    return ledger, facts.ObjectCrossed(
        at=ledger.clock(),
        site=ledger.site(),
        entity=state.class_.__name__,
        other="" if other is None else other.scope.id,
        other_name="" if other is None else other.tracers[0].name,
        other_opened_site=None if other is None else other.scope.opened_site,
        loaded_site=loader_options.loaded_at(state),
    )


def _load_refused(error: Any, frame: FrameType) -> tuple[Ledger | None, Fact | None]:
    del error
    loader: Any = frame.f_locals.get("self")
    state: Any = frame.f_locals.get("state")
    ledger = None if loader is None or state is None else _ledger_of_state(state)
    if ledger is None:
        return None, None
    key = str(loader.key)
    return ledger, facts.LoadRefused(ledger.clock(), ledger.site(), state.class_.__name__, key)


# What reaches the application: SQLAlchemy 2.1 wraps the error of a statement that has begun.
_UNAWAITED: Final = (
    exc.MissingGreenlet if sqlalchemy.__version__.startswith("2.0.") else exc.StatementError
)


def _implicit(error: Any, frame: FrameType) -> tuple[Ledger | None, Fact | None]:
    del error
    read = error_frames.attribute_read(error_frames.outwards(frame))
    ledger = None if read is None else _ledger_of_state(read.state)
    if read is None or ledger is None:
        return None, None
    state = read.state
    load, by, expired_site = reads.missing(read, ledger)
    mark = object_counter.mark_of(state)
    selected = loader_options.selection(state, read.attribute)
    # A framework may read what the application has returned to it.
    site = ledger.line() or (None if mark is None else mark.site) or ledger.site()
    fact = facts.ImplicitLoadFailed(
        at=ledger.clock(),
        site=site,
        entity=state.class_.__name__,
        attribute=read.attribute,
        load=load,
        root=selected.root,
        options=selected.options,
        replacement=selected.replacement,
        loaded_site=loader_options.loaded_at(state),
        expired_by=by,
        expired_site=expired_site,
        root_site=selected.site,
        expected=boundaries.is_named(_UNAWAITED, ledger, frame),
    )
    fact.identity = _identity(state, ledger.tracers[0])
    return ledger, fact


def _timed_out(error: Any, frame: FrameType) -> None:
    """Report which sessions hold the connections that a session waited for; never raises."""
    try:
        if type(error) is not exc.TimeoutError or not error_frames.is_sqlalchemys(frame):
            return
        pools.timed_out(frame.f_locals["self"])
        ledger = _ledger_near(frame)
        if ledger is None or not ledger.is_open:
            return
        fact = exhausted_pools.timed_out(frame.f_locals["self"], ledger)
        if fact is not None:
            ledger.suspect(fact)
    except Exception as failure:
        _failed(failure, frame)


def _ledger_of_state(state: Any) -> Ledger | None:
    session = state.session
    return None if session is None else ledger_of(session)


def _ledger_near(frame: FrameType) -> Ledger | None:
    session = error_frames.session_near(frame)
    return None if session is None else ledger_of(session)


# By the function that makes the error, and by the error's own class.
_BY_FUNCTION: Final[dict[str, Callable[..., tuple[Ledger | None, Fact | None]]]] = {
    "_before_attach": _crossed,
    "_invoke_raise_load": _load_refused,
    "_raise_for_prerequisite_state": _rollback_pending,
    "_trans_ctx_check": _closed_in_block,
    "begin": boundaries.begin_refused,
    "refresh": rows.not_refreshed,
    "_validate_persistent": rows.not_persistent,
    "flush": _used_at_once,
}
_BY_ERROR: Final[dict[type, Callable[..., tuple[Ledger | None, Fact | None]]]] = {
    exc.MissingGreenlet: _implicit,
    exc.PendingRollbackError: _rollback_pending,
    exc.IllegalStateChangeError: _used_at_once,
    ObjectDeletedError: rows.row_deleted,
}


def _warned(warning: Any, frame: FrameType) -> None:
    """SQLAlchemy warns, perhaps of a link that is not written; never raises."""
    try:
        links.left_out(str(warning.args[0]) if warning.args else "", frame)
    except Exception as failure:
        _failed(failure, frame)


# Errors about a session that is gone.


def _detached(error: Any, frame: FrameType) -> None:
    """Report a refused load by the tracers of the session that last held it; never raises."""
    del error
    tracers: Iterable[tuple[Tracer, Any]] = ()
    try:
        read = error_frames.detached_read(frame)
        mark = None if read is None else object_counter.mark_of(read.state)
        if read is None or mark is None:
            return
        tracers = mark.origin.scope.reported_by()
        now = time.perf_counter_ns()
        epoch = time.time_ns() - now
    except Exception as failure:
        for tracer, _ in tracers:
            tracer.failed("failures", failure)
        return
    for tracer, span in tracers:
        try:
            if not tracer.closed:
                fact = _fact(read, mark, now, tracer)
                report = tracer.begin_detached(mark.origin.scope, epoch)
                report.load_was_refused(fact, span)
        except Exception as failure:
            tracer.failed("failures", failure)


def _fact(
    read: Read, mark: object_counter.Mark | OriginRef, now: int, tracer: Tracer
) -> facts.DetachedLoadFailed:
    state: Any = read.state
    origin = mark.origin
    site = tracer.locator.locate(3)
    if site is None or site.distance > 1:
        # A framework reads what the application has returned to it.
        site = mark.site or mark.departed_site or origin.departed_site or origin.scope.opened_site
    selected = loader_options.selection(state, read.attribute)
    is_left_out = read.load == "expired" and loader_options.is_left_out(state, (read.attribute,))
    fact = facts.DetachedLoadFailed(
        at=now,
        site=site,
        entity=state.class_.__name__,
        attribute=read.attribute,
        load="left_out" if is_left_out else read.load,
        options=selected.options,
        root=selected.root,
        root_site=selected.site,
        replacement=selected.replacement,
        loaded_site=loader_options.loaded_at(state),
        departure=mark.departure or origin.departure or "collected",
        departed_at=mark.departed_at or origin.departed_at,
        departed_site=mark.departed_site or origin.departed_site,
    )
    # Nothing shows whether a relationship had been loaded before its object was expired.
    if read.load == "expired" or (state.expired and fact.load != "dynamic"):
        fact.expired_by, fact.expired_site = object_counter.expiry_of(state, origin.scope)
    fact.identity = _identity(state, tracer)
    return fact


def _identity(state: Any, tracer: Tracer) -> str:
    """The object's primary key, where the settings allow it to be named."""
    if not tracer.settings.record_identity or state.key is None:
        return ""
    return ", ".join(str(part) for part in state.key[1])


_SEEN: Final = (
    (DetachedInstanceError, _detached),
    (exc.InvalidRequestError, _refused),
    (exc.TimeoutError, _timed_out),
    (exc.SAWarning, _warned),
)

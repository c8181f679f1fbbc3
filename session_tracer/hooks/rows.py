"""Refusals of SQLAlchemy because an object has no row that could be loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.orm import InstanceState, Session

from session_tracer import facts
from session_tracer.hooks import error_frames, loader_options
from session_tracer.hooks.boundaries import is_handled
from session_tracer.hooks.scopes import ledger_of, resumed
from session_tracer.ledger import object_counter
from session_tracer.ledger.in_progress import SLOT

if TYPE_CHECKING:
    from types import FrameType

    from session_tracer.facts import Fact, Rowless
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.where.callsite import CallSite

__all__ = ["not_persistent", "not_refreshed", "row_deleted"]

# SQLAlchemy's own functions that catch the error: `get()` returns None, a flush skips the object.
_CATCHING: Final = frozenset({"get_from_identity", "was_already_deleted"})


def row_deleted(error: Any, frame: FrameType) -> tuple[Ledger | None, Fact | None]:
    """An attribute was read, and its object's row is gone (`ObjectDeletedError`)."""
    state = _state(frame)
    session = None if state is None else state.session
    ledger = None if session is None else ledger_of(session)
    if state is None or ledger is None or _is_caught(frame):
        return None, None
    return _without_row(error, frame, ledger, state, "gone")


def not_refreshed(error: Any, frame: FrameType) -> tuple[Ledger | None, Fact | None]:
    """`refresh()` found no row."""
    state, session = _state(frame), frame.f_locals.get("self")
    ledger = ledger_of(session) if issubclass(type(session), Session) else None
    if state is None or ledger is None:
        return None, None
    return _without_row(error, frame, ledger, state, "gone", call="refresh")


def not_persistent(error: Any, frame: FrameType) -> tuple[Ledger | None, Fact | None]:
    """`refresh()` or `expire()` was called with an object that is not persistent in the session."""
    state, session = _state(frame), frame.f_locals.get("self")
    ledger: Any = getattr(session, "__dict__", {}).get(SLOT)
    if state is None or ledger is None:
        return None, None
    ledger = resumed(session, ledger)  # type: ignore[arg-type] # it has a ledger
    why, cause = _reason(state, session)
    calls: Any = (outer.f_code.co_name for outer in error_frames.outwards(frame))
    call = next((name for name in calls if name in ("refresh", "expire")), "refresh")
    return _without_row(error, frame, ledger, state, why, call=call, cause=cause)


def _reason(state: InstanceState[Any], session: object) -> tuple[Rowless, CallSite | None]:
    """Why the object is not persistent in the session, and the line that made it so."""
    if state.session is not None and not state.deleted:
        return ("pending" if state.session is session else "elsewhere"), None
    if state.key is None:
        merged, undone = object_counter.noted(state)
        if undone is not None:
            return "rolled_back", undone
        return ("never_added" if merged is None else "merged"), merged
    mark = object_counter.mark_of(state)
    if mark is None:
        return "detached", None
    site = mark.departed_site or mark.origin.departed_site
    return ("deleted" if mark.departure == "deleted" else "detached"), site


def _without_row(
    error: Any,
    frame: FrameType,
    ledger: Ledger,
    state: InstanceState[Any],
    why: Rowless,
    *,
    call: Any = "",
    cause: CallSite | None = None,
) -> tuple[Ledger | None, Fact | None]:
    if is_handled(error, ledger, frame):
        return None, None
    fact = facts.RowGone(
        at=ledger.clock(),
        site=ledger.site(),
        entity=state.class_.__name__,
        why=why,
        call=call,
        cause_site=cause,
        loaded_site=loader_options.loaded_at(state),
    )
    if why == "gone" and not call:
        fact.expired_by, fact.expired_site = object_counter.expiry_of(state, ledger.scope)
    if ledger.tracers[0].settings.record_identity and state.key is not None:
        fact.identity = ", ".join(str(part) for part in state.key[1])
    return ledger, fact


def _state(frame: FrameType) -> InstanceState[Any] | None:
    state = frame.f_locals.get("state")
    return state if issubclass(type(state), InstanceState) else None


def _is_caught(frame: FrameType) -> bool:
    """Whether SQLAlchemy itself catches the error."""
    for outer in error_frames.outwards(frame):
        if not error_frames.is_sqlalchemys(outer):
            return False
        if outer.f_code.co_name in _CATCHING:
            return True
    return False

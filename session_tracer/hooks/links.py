"""Links that a flush leaves out, because their object is not in the session; SQLAlchemy warns."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.orm import InstanceState, RelationshipProperty, Session

from session_tracer import facts
from session_tracer.hooks import error_frames
from session_tracer.hooks.scopes import ledger_of

if TYPE_CHECKING:
    from types import FrameType

    from session_tracer.facts import Outcome
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.where.callsite import CallSite

__all__ = ["left_out"]

# Between the warning and the unit of work lie SQLAlchemy's own functions that warn.
_NEAR: Final = 6
# Of one transaction.
_MOST: Final = 100


def left_out(frame: FrameType) -> None:
    """SQLAlchemy warns; if it is about a link, look at the end whether it was written after all."""
    for outer in error_frames.outwards(frame, _NEAR):
        if not error_frames.is_sqlalchemys(outer):
            return
        if outer.f_code.co_name in _READERS:
            _left_out(*_READERS[outer.f_code.co_name](outer))
            return


def _registering(frame: FrameType) -> tuple[Any, Any, Any, Any, Any]:
    """The session, the object, its relationship, the operation and the object at the other end."""
    values = frame.f_locals
    caller = frame.f_back
    holder = None if caller is None else caller.f_locals.get("state")
    session = values["self"].session
    return session, values["state"], values["prop"], values["operation"], holder


def _synchronizing(frame: FrameType) -> tuple[Any, Any, Any, Any, Any]:
    values = frame.f_locals
    session = values["uowcommit"].session
    return session, values["child"], values["self"].prop, values["operation"], values["state"]


_READERS: Final = {"register_object": _registering, "_synchronize": _synchronizing}


def _left_out(session: Session, state: Any, prop: Any, operation: Any, holder: Any) -> None:
    ledger = ledger_of(session)
    if ledger is None or not isinstance(prop, RelationshipProperty):
        return
    if not isinstance(state, InstanceState) or (operation == "delete" and state.key is None):
        return  # what was never written need not be deleted
    fact = facts.LinkLost(
        at=ledger.clock(),
        site=ledger.site() if ledger.flush is None else ledger.flush.site,
        entity=state.class_.__name__,
        holder=prop.parent.class_.__name__,
        attribute=prop.key,
        removed=operation == "delete",
        cascades=bool(prop.cascade.save_update),
    )
    if len(ledger.when_ended) < _MOST:
        link = _Link(fact, weakref.ref(state), holder, is_two_way=bool(prop.back_populates))
        ledger.when_ended += (link.ended,)


class _Link:
    """A link that was left out. It may be written after all, or not be wanted, by the commit.

    If the relationship has another side, that side writes the link as soon as the object is added.
    """

    def __init__(self, fact: facts.LinkLost, state: Any, holder: Any, *, is_two_way: bool) -> None:
        self._fact = fact
        self._state = state
        self._holder = weakref.ref(holder) if isinstance(holder, InstanceState) else None
        self._is_two_way = is_two_way

    def ended(
        self, ledger: Ledger, session: Session, outcome: Outcome, site: CallSite | None
    ) -> None:
        """Report it if the transaction was committed without the link."""
        del site
        state = self._state()
        holder = None if self._holder is None else self._holder()
        is_written = self._is_two_way and state is not None and state.session is session
        is_gone = holder is not None and holder.session is not session
        if outcome == "committed" and not is_written and not is_gone:
            ledger.suspect(self._fact)

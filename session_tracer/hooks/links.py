"""Links that a flush leaves out, because their object is not in the session; SQLAlchemy warns."""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import SAWarning
from sqlalchemy.orm import InstanceState, RelationshipProperty, Session

from session_tracer import facts
from session_tracer.hooks import error_frames
from session_tracer.hooks.scopes import ledger_of

if TYPE_CHECKING:
    import re
    from types import FrameType

    from session_tracer.facts import Outcome
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.where.callsite import CallSite

__all__ = ["left_out"]

# Between the warning and the unit of work lie SQLAlchemy's own functions that warn.
_NEAR: Final = 6
# Of one transaction.
_MOST: Final = 100


def left_out(text: str, frame: FrameType) -> None:
    """SQLAlchemy warns; if it is about a link, look at the end whether it was written after all."""
    for outer in error_frames.outwards(frame, _NEAR):
        if not error_frames.is_sqlalchemys(outer):
            return
        if outer.f_code.co_name in _READERS:
            if not _is_filtered(text, outer):
                _left_out(*_READERS[outer.f_code.co_name](outer))
            return


def _is_filtered(text: str, frame: FrameType) -> bool:
    """Whether the application has a filter that ignores this very warning: it expects it.

    A filter that ignores warnings of every kind decides nothing about this one.
    """
    caller = next(
        (one for one in error_frames.outwards(frame) if not error_frames.is_sqlalchemys(one)), frame
    )
    module = str(caller.f_globals.get("__name__"))
    for action, message, category, of_module, line in warnings.filters:
        if (
            _matches(message, text)
            and issubclass(SAWarning, category)
            and _matches(of_module, module)
            and line in (0, caller.f_lineno)
        ):
            return action == "ignore" and (message is not None or category is SAWarning)
    return False


def _matches(pattern: re.Pattern[str] | str | None, text: str) -> bool:
    """Whether a filter's pattern matches; those of the interpreter itself are plain text."""
    if isinstance(pattern, str):
        return pattern == text
    return pattern is None or pattern.match(text) is not None


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
        autoflush=ledger.flush is not None and ledger.flush.trigger == "autoflush",
    )
    if len(ledger.when_ended) < _MOST:
        link = _Link(fact, weakref.ref(state), holder, is_two_way=bool(prop.back_populates))
        link.inserted = ledger.new.get(fact.entity, 0)
        ledger.when_ended += (link.ended,)


class _Link:
    """A link that was left out. It may be written after all, or not be wanted, by the commit.

    If the relationship has another side, that side writes the link as soon as the object is added,
    which may be in a later transaction: the link is lost with the object, or with the session.
    """

    # How many objects of the class were inserted before.
    inserted = 0
    _is_committed = False

    def __init__(self, fact: facts.LinkLost, state: Any, holder: Any, *, is_two_way: bool) -> None:
        self._fact = fact
        self._state = state
        self._holder = weakref.ref(holder) if isinstance(holder, InstanceState) else None
        self._is_two_way = is_two_way

    def ended(
        self, ledger: Ledger, session: Session, outcome: Outcome, site: CallSite | None
    ) -> None:
        """Report it if a transaction was committed without the link, and nothing will write it."""
        del site
        if self._is_committed and ledger.is_closing:
            return  # the session has let go of its objects: closed() decides
        ledger.when_closed = tuple(ask for ask in ledger.when_closed if ask != self.closed)
        self._is_committed = self._is_committed or outcome == "committed"
        holder = None if self._holder is None else self._holder()
        if not self._is_committed or (holder is not None and holder.session is not session):
            return
        state = self._state()
        if self._is_two_way and state is not None:
            if state.session is session:
                return
            if state.key is None:
                self._wait(ledger)
                return
        self._report(ledger, state)

    def _wait(self, ledger: Ledger) -> None:
        ledger.when_ended += (self.ended,)
        ledger.when_closed += (self.closed,)
        ledger.is_suspect = True

    def closed(self, ledger: Ledger) -> None:
        """Report it if the session is closed, and the object was never added to it."""
        state = self._state()
        if state is None or state.key is None:
            self._report(ledger, state)

    def _report(self, ledger: Ledger, state: Any) -> None:
        # An object that is gone may have been inserted before.
        is_inserted = state is None and ledger.new.get(self._fact.entity, 0) > self.inserted
        if not (self._is_two_way and is_inserted):
            ledger.suspect(self._fact)

"""What a flush holds, why it runs, and what stopped it."""

from __future__ import annotations

import sys
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.orm import NO_VALUE, Session
from sqlalchemy.orm.collections import InstrumentedDict, InstrumentedList, InstrumentedSet

from session_tracer.hooks.safe_types import PLAIN
from session_tracer.model.counts import NOTHING, by_name

if TYPE_CHECKING:
    from types import FrameType

    from sqlalchemy.orm import InstanceState, UOWTransaction

    from session_tracer.facts import Counts, Trigger

__all__ = ["attributes", "changed", "constraint", "counts", "states", "trigger", "unchanged"]

_MOST_ATTRIBUTES: Final = 10

# Going through one of these runs no code of the application's.
_COLLECTIONS: Final = frozenset({InstrumentedDict, InstrumentedList, InstrumentedSet})

_CALLERS: Final[dict[str, Trigger]] = {
    "_autoflush": "autoflush",
    "_prepare_impl": "commit",
    "commit": "commit",
    "_take_snapshot": "savepoint",
    "begin_nested": "savepoint",
}
_FLUSHES: Final = frozenset({"flush", "_flush"})
_SESSIONS: Final = vars(sys.modules[Session.__module__])


def trigger(frame: FrameType | None, *, in_savepoint: bool) -> Trigger:
    """Why the flush runs, by what called `Session.flush` from within SQLAlchemy.

    A subclass may override `flush`: the frames of its own are passed over. `in_savepoint` is
    whether the innermost open transaction is a savepoint.
    """
    # SQLAlchemy's own `flush()` has called `_flush()`, and is right here.
    while frame is not None and not (
        frame.f_code.co_name == "flush" and frame.f_globals is _SESSIONS
    ):
        frame = frame.f_back
    by_session = False
    while frame is not None:
        name = frame.f_code.co_name
        caller = _CALLERS.get(name)
        if caller is not None and frame.f_globals is _SESSIONS:
            # A savepoint that is released flushes as a commit does.
            return "savepoint" if in_savepoint and caller == "commit" else caller
        if str(frame.f_globals.get("__name__")).startswith("sqlalchemy.orm."):
            # Most of these names are private: under another one, too, SQLAlchemy has asked for it.
            # And a dynamic relationship's query autoflushes by calling flush() itself.
            by_session = by_session or name not in _FLUSHES
        elif name != "flush":
            break
        frame = frame.f_back
    return "autoflush" if by_session else "explicit"


def states(context: UOWTransaction) -> dict[InstanceState[Any], tuple[bool, bool]]:
    """The objects of the unit of work: whether each is deleted, and whether it is only listed."""
    return getattr(context, "states", {})


_KEY: Final = attrgetter("key")
_CLASS: Final = attrgetter("class_")
_NEW: Final = {(False, False)}


def unchanged(context: UOWTransaction) -> frozenset[InstanceState[Any]]:
    """The persistent objects of the unit of work that have no net change.

    To be called before it is executed: a column set to an SQL expression is forgotten by then.
    """
    found = states(context)
    if not any(map(_KEY, found)):
        return _NONE
    return frozenset(
        [
            state
            for state, (is_delete, list_only) in found.items()
            if not (is_delete or list_only or state.key is None or changed(state))
        ]
    )


_NONE: Final[frozenset[Any]] = frozenset()


def attributes(unchanged: frozenset[InstanceState[Any]]) -> tuple[str, ...]:
    """The attributes that were set to what they were, as `Author.name`; the first ten of them."""
    named: dict[str, None] = {}
    for state in unchanged:
        for key in state.committed_state:
            named[f"{state.class_.__name__}.{key}"] = None
        if len(named) > _MOST_ATTRIBUTES:
            break
    return tuple(sorted(named)[:_MOST_ATTRIBUTES])


def counts(
    context: UOWTransaction, unchanged_before: frozenset[InstanceState[Any]]
) -> tuple[Counts, Counts, Counts, Counts]:
    """The objects of the unit of work by entity: new, dirty, deleted, unchanged.

    To be called before it is finalised: after that everything is persistent. What was unchanged
    before it was executed may have been changed by a mapper's event since.
    """
    found = states(context)
    if {*found.values()} == _NEW and not any(map(_KEY, found)):
        return by_name(Counter(map(_CLASS, found))), NOTHING, NOTHING, NOTHING
    new: Counts = {}
    dirty: Counts = {}
    deleted: Counts = {}
    same: Counts = {}
    for state, (is_delete, list_only) in found.items():
        if list_only:
            continue
        if is_delete:
            into = deleted
        elif state.key is None:
            into = new
        elif state in unchanged_before and not changed(state):
            into = same
        else:
            into = dirty
        entity = state.class_.__name__
        into[entity] = into.get(entity, 0) + 1
    return new, dirty, deleted, same


def changed(state: Any) -> bool:
    """Whether a persistent object has a net change, told without running code of its own.

    A value of a type that could have an `__eq__` of the application's counts as changed unless it
    is the very same object. A collection that holds the same objects in another order is as it was.
    """
    values = state.dict
    for key, before in state.committed_state.items():
        if before is NO_VALUE or key not in values:
            return True
        now = values[key]
        if now is before:
            continue
        if type(now) in _COLLECTIONS:
            if not _holds_same(now, before):
                return True
        elif type(now) not in PLAIN or type(before) not in PLAIN or now != before:
            return True
    return False


def _holds_same(now: Any, before: Any) -> bool:
    """Whether a collection has the members it had, which SQLAlchemy keeps as a list."""
    if type(before) is not list or len(before) != len(now):
        return False
    members = now.values() if isinstance(now, dict) else now
    return sorted(map(id, members)) == sorted(map(id, before))


def constraint(error: BaseException | None) -> str:
    """The name of the constraint that was violated, where the driver says it."""
    original: Any = getattr(error, "orig", None)
    for source in (
        getattr(original, "diag", None),  # psycopg
        original,
        getattr(original, "__cause__", None),  # asyncpg
    ):
        name = getattr(source, "constraint_name", None)
        if isinstance(name, str):
            return name
    return ""

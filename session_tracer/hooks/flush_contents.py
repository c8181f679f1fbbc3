"""What a flush holds, why it runs, and what stopped it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.orm import NO_VALUE, SessionTransaction
from sqlalchemy.orm.collections import InstrumentedDict, InstrumentedList, InstrumentedSet

from session_tracer.hooks.safe_types import PLAIN
from session_tracer.runtime.degraded import without

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


def trigger(frame: FrameType | None) -> Trigger:
    """Why the flush runs, by whoever called `Session.flush` from within SQLAlchemy.

    A subclass may override `flush`: the frames of its own are passed over.
    """
    # Nearly always SQLAlchemy's own `flush()` has called `_flush()`, and is right here.
    while frame is not None and not (frame.f_code.co_name == "flush" and _is_sessions(frame)):
        frame = frame.f_back
    by_session = False
    while frame is not None:
        name = frame.f_code.co_name
        caller = _CALLERS.get(name)
        if caller is not None and _is_sessions(frame):
            # A savepoint that is released flushes as a commit does.
            return "savepoint" if caller == "commit" and _is_savepoints(frame) else caller
        if _module(frame).startswith("sqlalchemy.orm."):
            # Most of these names are private: under another one, too, SQLAlchemy has asked for it.
            # And a dynamic relationship's query autoflushes by calling flush() itself.
            by_session = by_session or name not in _FLUSHES
        elif name != "flush":
            break
        frame = frame.f_back
    return "autoflush" if by_session else "explicit"


_FLUSHES: Final = frozenset({"flush", "_flush"})


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _is_sessions(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") == "sqlalchemy.orm.session"


def _is_savepoints(frame: FrameType) -> bool:
    transaction: Any = frame.f_locals.get("self")
    return issubclass(type(transaction), SessionTransaction) and transaction.nested


def states(context: UOWTransaction) -> dict[InstanceState[Any], tuple[bool, bool]]:
    """The objects of the unit of work: whether each is deleted, and whether it is only listed."""
    found: dict[InstanceState[Any], tuple[bool, bool]] | None = getattr(context, "states", None)
    if found is None:
        without("UOWTransaction.states", "the objects that a flush writes are not counted")
        return {}
    return found


def unchanged(context: UOWTransaction) -> frozenset[InstanceState[Any]]:
    """The persistent objects of the unit of work that have no net change.

    To be asked before it is executed: a column set to an SQL expression is forgotten by then.
    """
    return frozenset(
        state
        for state, (is_delete, list_only) in states(context).items()
        if not (is_delete or list_only or state.key is None or changed(state))
    )


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

    To be asked before it is finalised: after that everything is persistent. What was unchanged
    before it was executed may have been changed by a mapper's event since.
    """
    new: Counts = {}
    dirty: Counts = {}
    deleted: Counts = {}
    same: Counts = {}
    for state, (is_delete, list_only) in states(context).items():
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

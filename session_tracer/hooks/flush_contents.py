"""What a flush holds, why it runs, and what stopped it."""

from __future__ import annotations

import sys
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from sqlalchemy.orm import NO_VALUE, RelationshipProperty, Session, attributes
from sqlalchemy.orm.collections import InstrumentedDict, InstrumentedList, InstrumentedSet

from session_tracer.hooks.safe_types import PLAIN
from session_tracer.model.counts import NOTHING, by_name
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import InstanceState, UOWTransaction

    from session_tracer.facts import Counts, Trigger, Write
    from session_tracer.ledger.in_progress import Flush

__all__ = ["LOST", "change_of", "constraint", "look", "look_again", "trigger", "wrote"]

# What is not reported if a transaction does not keep what its flushes have written.
LOST: Final = (
    "objects that SELECT ... FOR UPDATE returns with values from before the lock are not reported, "
    "nor is refresh() after a flush"
)
# The objects of a unit of work: whether each is deleted, and whether it is only listed.
States: TypeAlias = "dict[InstanceState[Any], tuple[bool, bool]]"

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
_FLUSH: Final = getattr(Session.flush, "__code__", None)
_SESSIONS: Final = vars(sys.modules[Session.__module__])


# How far out from `trigger()` SQLAlchemy's `flush()` nearly always is: the listener, the dispatch,
# _flush(), and in 2.1 the two functions of its decorator are in between.
_NEAR: Final = 6 if hasattr(getattr(Session, "_flush", None), "__wrapped__") else 4


def trigger(in_savepoint: bool) -> Trigger:
    """Why the flush runs, by what called `Session.flush` inside SQLAlchemy; a listener calls this.

    A subclass may override `flush`: the frames of its own are passed over. `in_savepoint` is
    whether the innermost open transaction is a savepoint.
    """
    frame = running_frame(_NEAR)
    if frame is None or frame.f_code is not _FLUSH:
        frame = running_frame(2)
        while frame is not None and not (
            frame.f_code.co_name == "flush" and frame.f_globals is _SESSIONS
        ):
            frame = frame.f_back
    by_session = False
    while frame is not None and (frame := frame.f_back) is not None:
        name = frame.f_code.co_name
        if name in _CALLERS and frame.f_globals is _SESSIONS:
            caller = _CALLERS[name]
            # A savepoint that is released flushes as a commit does.
            return "savepoint" if in_savepoint and caller == "commit" else caller
        if str(frame.f_globals.get("__name__")).startswith("sqlalchemy.orm."):
            # Most of these names are private: under another one, too, SQLAlchemy has asked for it.
            # And a dynamic relationship's query autoflushes by calling flush() itself.
            by_session = by_session or name not in _FLUSHES
        elif name != "flush":
            break
    return "autoflush" if by_session else "explicit"


_KEY: Final = attrgetter("key")
_CLASS: Final = attrgetter("class_")
_TO_WRITE: Final = (False, False)
_WRITTEN: Final = {_TO_WRITE}
# From this number on it is quicker to find out first whether all of them are new.
_FEW: Final = 3


def look(flush: Flush, context: UOWTransaction) -> None:
    """Take into account what the flush is about to write.

    To be called before it is executed: a column set to an SQL expression is forgotten by then.
    """
    try:
        found: States = context.states
    except AttributeError:
        return
    number = len(found)
    if number == 1:
        for state, how in found.items():
            if how == _TO_WRITE and state.key is not None and change_of(state) == "written":
                flush.only = state
                flush.counts = (NOTHING, {state.class_.__name__: 1}, NOTHING, NOTHING)
                return
    flush.found = [*found.values(), *map(id, map(_KEY, found))]
    if number > _FEW and {*found.values()} == _WRITTEN and not any(map(_KEY, found)):
        flush.counts = (by_name(Counter(map(_CLASS, found))), NOTHING, NOTHING, NOTHING)
        return
    flush.counts = _counts(found)
    if flush.counts[3]:
        flush.unchanged = tuple(
            state
            for state, (is_delete, list_only) in found.items()
            if not (is_delete or list_only or state.key is None or change_of(state))
        )
        flush.unchanged_attributes = _attributes(flush.unchanged)


def look_again(flush: Flush, context: UOWTransaction) -> None:
    """Take into account what has come in, or was changed by a mapper's event, since `look()`.

    To be called before it is finalised: after that everything is persistent.
    """
    try:
        found: States = context.states
    except AttributeError:
        return
    only = flush.only
    if only is not None:
        if len(found) == 1 and found.get(only) == _TO_WRITE:
            return
    # An object that replaces a deleted one of the same identity has a key from then on.
    elif not flush.unchanged and flush.found == [*found.values(), *map(id, map(_KEY, found))]:
        return
    flush.counts = _counts(found, frozenset(flush.unchanged))


def _counts(
    found: States, unchanged: frozenset[InstanceState[Any]] | None = None
) -> tuple[Counts, Counts, Counts, Counts]:
    """The objects by entity: new, dirty, deleted, and unchanged, of which all those may be."""
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
        elif (change := change_of(state)) == "left out":
            continue
        elif change or (unchanged is not None and state not in unchanged):
            into = dirty
        else:
            into = same
        entity = state.class_.__name__
        into[entity] = into.get(entity, 0) + 1
    return new, dirty, deleted, same


def _attributes(unchanged: Iterable[InstanceState[Any]]) -> tuple[str, ...]:
    """The attributes that were set to what they were, as `Author.name`; the first ten of them."""
    named: dict[str, None] = {}
    for state in unchanged:
        for key in state.committed_state:
            named[f"{state.class_.__name__}.{key}"] = None
        if len(named) > _MOST_ATTRIBUTES:
            break
    return tuple(sorted(named)[:_MOST_ATTRIBUTES])


def change_of(state: Any) -> Literal["", "written", "left out"]:
    """What a flush does with the net change of a persistent object; empty if it has none.

    It is found without running the application's code: a value of a type that could have an
    `__eq__` of the application's counts as changed unless it is the very same object. A collection
    that holds the same objects in another order is as it was.
    """
    values = state.dict
    for key, before in state.committed_state.items():
        if before is NO_VALUE or key not in values:
            break
        now = values[key]
        if now is before:
            continue
        if type(now) in PLAIN and type(before) in PLAIN:
            if now != before:
                return "written"
        elif type(now) not in _COLLECTIONS or not _holds_same(now, before):
            break
    else:
        return ""
    return "left out" if _links_outside_only(state) else "written"


def changed_in(state: Any) -> list[str]:
    """Return the attributes of an object that have a net change, found as in `change_of`."""
    values = state.dict
    return [
        key
        for key, before in state.committed_state.items()
        if before is NO_VALUE or key not in values or _is_other(values[key], before)
    ]


def _is_other(now: Any, before: Any) -> bool:
    if now is before:
        return False
    if type(now) in PLAIN and type(before) in PLAIN:
        return bool(now != before)
    return type(now) not in _COLLECTIONS or not _holds_same(now, before)


def _holds_same(now: Any, before: Any) -> bool:
    """Whether a collection has the members it had, which SQLAlchemy keeps as a list."""
    if type(before) is not list or len(before) != len(now):
        return False
    members = now.values() if isinstance(now, dict) else now
    return sorted(map(id, members)) == sorted(map(id, before))


def _links_outside_only(state: Any) -> bool:
    """Whether all changes of a persistent object are links to objects that are in no session.

    A flush leaves them out, and writes nothing of the object. A backref makes such links as another
    object is made, which may be added later, or never.
    """
    props, values = state.manager.mapper.attrs, state.dict
    for key, before in state.committed_state.items():
        if not isinstance(props.get(key), RelationshipProperty):
            return False
        if key in values:
            added = _added(values[key], before)
        else:
            pending = state.__dict__.get("_pending_mutations", {}).get(key)
            removed = getattr(pending, "deleted_items", True)
            added = None if removed else list(getattr(pending, "added_items", ()))
        if added is None or any(_is_in_session(one) for one in added):
            return False
    return True


def _added(now: Any, before: Any) -> list[Any] | None:
    """The objects that were added to a relationship; None if others were taken out of it."""
    if type(now) not in _COLLECTIONS:
        return [now] if now is not None and (before is None or before is NO_VALUE) else None
    if type(before) is not list:
        return None
    members = list(now.values() if isinstance(now, dict) else now)
    kept = set(map(id, members))
    known = set(map(id, before))
    if not known <= kept:
        return None
    return [one for one in members if id(one) not in known]


def _is_in_session(instance: Any) -> bool:
    return attributes.instance_state(instance).session_id is not None


def constraint(error: BaseException | None) -> str:
    """The name of the constraint that was violated, where the driver names it."""
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


def wrote(session: Session, state: InstanceState[Any]) -> Write:
    """How flushes of the open transaction have written the object last, if any did.

    Raises:
        AttributeError: SQLAlchemy does not keep it as expected.
    """
    transaction: Any = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        if state in transaction._dirty:
            return "UPDATE"
        if state in transaction._new:
            return "INSERT"
        transaction = transaction.parent
    return ""

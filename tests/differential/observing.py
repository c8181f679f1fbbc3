"""Looks at a world from outside, without changing it, and says in plain values what it sees."""

from __future__ import annotations

import contextvars
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy
from sqlalchemy.orm import attributes

import session_tracer
from tests.differential.diary import name, plain

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy.orm import Session

__all__ = ["ANY_LINE", "context", "error", "instance", "session"]

_OURS: Final = (
    str(Path(session_tracer.__file__).parent),
    str(Path(session_tracer.__file__).parent.parent / "exporters"),
    "<session_tracer>",
    # Others take the wrappers' frames for SQLAlchemy's.
    str(Path(sqlalchemy.__file__).parent / "session_tracer"),
)
# Whether anybody listens to a dialect decides from which line SQLAlchemy calls its `do_execute`,
# and its `connect`.
ANY_LINE: Final = -1
_CALLS_THE_DIALECT: Final = str(Path("sqlalchemy", "engine", "base.py"))
_CONNECTS: Final = str(Path("sqlalchemy", "engine", "create.py"))


def context() -> dict[str, int]:
    """The context's variables, each with the object it holds."""
    held = {variable.name: id(value) for variable, value in contextvars.copy_context().items()}
    if threading.current_thread() is not threading.main_thread():
        # What tells one piece of a thread's work from the next: in the thread's own context alone.
        held.pop("session_tracer_piece_of_work", None)
    return held


def error(raised: BaseException | None, depth: int = 0) -> Any:
    """An exception, all it says, where it came from, and those behind it."""
    if raised is None or depth > 8:
        return None
    return {
        "type": type(raised).__qualname__,
        "text": plain(traceback.format_exception_only(raised)),
        "args": plain(raised.args),
        "attributes": {
            key: error(value, depth + 1) if isinstance(value, BaseException) else plain(value)
            for key, value in vars(raised).items()
        },
        "traceback": frames(raised.__traceback__),
        "cause": error(raised.__cause__, depth + 1),
        "context": error(raised.__context__, depth + 1),
        "suppressed": raised.__suppress_context__,
    }


def frames(tb: TracebackType | None) -> list[tuple[str, str, int]]:
    """Each frame's file, function and line, but for ours."""
    seen: list[tuple[str, str, int]] = []
    while tb is not None:
        code = tb.tb_frame.f_code
        if not code.co_filename.startswith(_OURS):
            connects = code.co_name == "connect" and code.co_filename.endswith(_CONNECTS)
            line = ANY_LINE if connects else tb.tb_lineno
            seen.append((code.co_filename, code.co_name, line))
        elif seen and seen[-1][0].endswith(_CALLS_THE_DIALECT):
            seen[-1] = (*seen[-1][:2], ANY_LINE)
        tb = tb.tb_next
    return seen


def instance(seen: Any) -> dict[str, Any]:
    """A mapped object's state."""
    state: Any = attributes.instance_state(seen)
    values = {key: plain(value) for key, value in vars(seen).items() if key[0] != "_"}
    return {
        "name": name(seen),
        "lifecycle": [
            one
            for one in ("transient", "pending", "persistent", "deleted", "detached", "was_deleted")
            if getattr(state, one)
        ],
        "key": plain(state.key),
        "session": state.session_id is not None,
        "modified": state.modified,
        "expired": state.expired,
        "expired attributes": sorted(state.expired_attributes),
        "unloaded": sorted(state.unloaded),
        "committed": plain(state.committed_state),
        "history": {
            attribute.key: plain(tuple(attribute.history))
            for attribute in (state.attrs if state.modified else ())
            if attribute.key not in _ASKS_THE_DATABASE
        },
        "load options": len(state.load_options),
        "callables": sorted(state.callables),
        "parents": len(state.parents),
        "values": values,
    }


# Their history is that of a query.
_ASKS_THE_DATABASE: Final = frozenset({"letters"})


def session(seen: Session) -> dict[str, Any]:
    """A session, and the transactions it is in."""
    return {
        "type": type(seen).__qualname__,
        "new": [name(one) for one in seen.new],
        # SQLAlchemy keeps these in a set, by their address.
        "dirty": sorted(name(one) for one in seen.dirty),
        "deleted": [name(one) for one in seen.deleted],
        "identity map": plain(list(seen.identity_map.keys())),
        "in transaction": seen.in_transaction(),
        "in nested": seen.in_nested_transaction(),
        "active": seen.is_active,
        "info": plain(seen.info),
        "transactions": _transactions(seen),
    }


def _transactions(seen: Session) -> list[tuple[bool, bool]]:
    found, transaction = [], seen.get_nested_transaction() or seen.get_transaction()
    while transaction is not None:
        found.append((transaction.nested, transaction.is_active))
        transaction = transaction.parent
    return found

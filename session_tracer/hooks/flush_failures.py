"""Why a flush failed, as far as the error and SQLAlchemy's own frames show it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import RelationshipDirection, attributes
from sqlalchemy.orm.exc import StaleDataError

from session_tracer.hooks import sql
from session_tracer.hooks.error_frames import is_sqlalchemys
from session_tracer.hooks.safe_types import PLAIN
from session_tracer.ledger import object_counter
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from sqlalchemy.orm import Mapper, Session

    from session_tracer.facts import FlushProblem
    from session_tracer.ledger.in_progress import Flush
    from session_tracer.where.callsite import CallSite, Locator

__all__ = ["Cause", "cause_of", "is_locked"]

_NOT_NULL: Final = frozenset({"23502", "1048", "1364", "SQLITE_CONSTRAINT_NOTNULL"})
_UNIQUE: Final = frozenset(
    {"23505", "1062", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"}
)
# Serialization failure, deadlock, a lock that is not available; MySQL's lock wait timeout.
_LOCKED: Final = frozenset({"40001", "40P01", "55P03", "1205", "1213", "3572"})
_SQLITE_LOCKED: Final = ("SQLITE_BUSY", "SQLITE_LOCKED")
# SQLite's message where the connection itself is busy with a statement whose rows are not all read.
_IN_PROGRESS: Final = "sql statements in progress"
_ABORTED: Final = "25P02"
# The column that a driver names in its message alone: SQLite's, and those for MySQL.
_COLUMN: Final = re.compile(
    r"NOT NULL constraint failed: \w+\.(\w+)|(?:Column|Field) '(\w+)' (?:cannot be null|doesn't)"
)
_EVENTS: Final = ("sqlalchemy.event.", "sqlalchemy.orm.events")
_WRITING: Final = frozenset({"_emit_insert_statements", "_emit_update_statements"})


class Cause(NamedTuple):
    """Why a flush failed.

    `code` is the database's own: an SQLSTATE, or SQLite's name of the error. `listener` is the line
    of the application's event listener in which the error was raised. `existing_site` is where the
    object was loaded that has the key of a new one.
    """

    problem: FlushProblem = ""
    code: str = ""
    column: str = ""
    relationship: str = ""
    listener: CallSite | None = None
    existing_site: CallSite | None = None


def cause_of(
    error: BaseException | None, flush: Flush, session: Session, locator: Locator
) -> Cause:
    """Return why the flush failed; no value of a column is read but to compare a primary key."""
    if error is None:
        listener = next(reversed(locator.sites(_inside_flush(running_frame(1)))), None)
        return Cause("listener" if listener is not None else "", listener=listener)
    original = getattr(error, "orig", None)
    code = sql.status_code(original) if isinstance(original, BaseException) else ""
    frames = list(_raised_through(error))
    if _is_in_listener(frames, locator):
        listener = next(iter(locator.raised_through(error)), None)
        uses_session = frames[-1].f_globals.get("__name__") == "sqlalchemy.orm.session"
        return Cause("listener" if uses_session else "", code, listener=listener)
    return _of_rows(error, code, frames, flush, session)


def is_locked(code: str, error: BaseException | None) -> bool:
    """Whether the driver raises this error where another transaction has a lock, or conflicts."""
    return code in _LOCKED or (
        code.startswith(_SQLITE_LOCKED) and _IN_PROGRESS not in str(error).lower()
    )


def _of_rows(
    error: BaseException, code: str, frames: list[FrameType], flush: Flush, session: Session
) -> Cause:
    if isinstance(error, StaleDataError):
        return Cause("stale", code)
    if is_locked(code, getattr(error, "orig", None)):
        return Cause("locked", code)
    if code == _ABORTED:
        return Cause("aborted", code)
    if getattr(error, "connection_invalidated", False):
        return Cause("lost", code)
    if isinstance(error, AssertionError):
        return _blanked(frames)
    if not isinstance(error, IntegrityError):
        return Cause("", code)
    writing = next((one for one in reversed(frames) if one.f_code.co_name in _WRITING), None)
    if writing is None:
        return Cause("constraint", code)
    mapper: Mapper[Any] = writing.f_locals["mapper"]
    is_insert = writing.f_code.co_name == "_emit_insert_statements"
    if code in _NOT_NULL:
        column = writing.f_locals["table"].c.get(_column_name(error))
        return _null(code, mapper, column, flush, is_insert=is_insert)
    if code in _UNIQUE and is_insert:
        is_same, site = _existing(frames, session)
        return Cause("same_key" if is_same else "duplicate", code, existing_site=site)
    return Cause("constraint", code)


# Frames.


def _raised_through(error: BaseException) -> Iterator[FrameType]:
    passed = error.__traceback__
    while passed is not None:
        yield passed.tb_frame
        passed = passed.tb_next


def _inside_flush(frame: FrameType | None) -> list[FrameType]:
    """Return the running frames that the flush has called."""
    frames: list[FrameType] = []
    while frame is not None:
        if frame.f_code.co_name == "_flush" and is_sqlalchemys(frame):
            return frames
        frames.append(frame)
        frame = frame.f_back
    return []


def _is_in_listener(frames: list[FrameType], locator: Locator) -> bool:
    """Whether the first frame of the application's was called by an event."""
    before = ""
    for frame in frames:
        if not is_sqlalchemys(frame):
            return before.startswith(_EVENTS) and bool(locator.sites([frame]))
        before = str(frame.f_globals.get("__name__"))
    return False


# Columns and relationships.


def _blanked(frames: list[FrameType]) -> Cause:
    """A child is taken out of its parent, whose key is a part of the child's primary key."""
    for frame in reversed(frames):
        if frame.f_globals.get("__name__") == "sqlalchemy.orm.dependency":
            prop: Any = getattr(frame.f_locals.get("self"), "prop", None)
            if prop is not None:
                return Cause("blank_key", relationship=_name(prop.parent, prop.key))
    return Cause()


def _null(code: str, mapper: Mapper[Any], column: Any, flush: Flush, *, is_insert: bool) -> Cause:
    """A column is NULL that may not be: never set, or a key that was blanked out."""
    if column is None:
        return Cause("null", code)
    is_mapped = mapper.columns.contains_column(column)
    key = mapper.get_property_by_column(column).key if is_mapped else column.name
    named = _name(mapper, key)
    if not is_insert:
        touched = {*flush.counts[1], *flush.counts[2]}
        for parent in mapper.registry.mappers:
            for one in parent.relationships:
                if (
                    one.direction is RelationshipDirection.ONETOMANY
                    and column in one.remote_side
                    and parent.class_.__name__ in touched
                ):
                    return Cause("blank_key", code, named, _name(parent, one.key))
    return Cause("null", code, named)


def _name(mapper: Mapper[Any], key: str) -> str:
    return f"{mapper.class_.__name__}.{key}"


def _column_name(error: BaseException) -> str:
    original: Any = getattr(error, "orig", None)
    for source in (getattr(original, "diag", None), original, original.__cause__):
        name = getattr(source, "column_name", None)
        if isinstance(name, str):
            return name
    found = _COLUMN.search(str(original))
    return "" if found is None else found[1] or found[2]


# Two instances of one key.


def _existing(frames: list[FrameType], session: Session) -> tuple[bool, CallSite | None]:
    """Return whether the session has another object with a new one's key, and where from."""
    saving = next((one for one in frames if "states_to_insert" in one.f_locals), None)
    if saving is None:
        return False, None
    seen = set()
    for _, loaded, mapper, *_ in saving.f_locals["states_to_insert"]:
        keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        values = tuple(loaded.get(key) for key in keys)
        if not all(type(value) in PLAIN and value is not None for value in values):
            continue
        identity = mapper.identity_key_from_primary_key(values)
        existing = session.identity_map.get(identity)
        if existing is not None:
            mark = object_counter.mark_of(attributes.instance_state(existing))
            return True, None if mark is None else mark.site
        if identity in seen:
            return True, None
        seen.add(identity)
    return False, None

"""What SQLAlchemy's own frames know as it makes an error: the session, the object, the attribute.

Only SQLAlchemy's frames are read. Until Python 3.13 a frame keeps what `f_locals` has given out for
as long as it runs, and an application's function may run for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy.orm import (
    AppenderQuery,
    InstanceState,
    RelationshipProperty,
    Session,
    SessionTransaction,
    attributes,
)
from sqlalchemy.orm.interfaces import LoaderStrategy

from session_tracer.where.running import is_sqlalchemys, locals_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import FrameType

    from session_tracer.facts import Missing

__all__ = [
    "Read",
    "attribute_read",
    "detached_read",
    "is_inside",
    "is_sqlalchemys",
    "outwards",
    "session_near",
]

# How far out from an error its attribute or session is looked for. Between a session and its pool
# lies an engine, and perhaps a greenlet.
_NEAR: Final = 8
_FAR: Final = 60
# What a query class of the application's own is mixed with, too.
_DYNAMIC: Final[tuple[type, ...]] = tuple(
    base for base in AppenderQuery.__mro__ if base.__name__.endswith("AppenderMixin")
) or (AppenderQuery,)


class Read(NamedTuple):
    """An attribute that was read, its object's state, and what kind of load it needed.

    What is expired is loaded `together`.
    """

    state: InstanceState[Any]
    attribute: str
    load: Missing
    together: frozenset[str] = frozenset()


def outwards(frame: FrameType | None, most: int = _FAR) -> Iterator[FrameType]:
    """Yield the frame and those outwards, at most this many."""
    for _ in range(most):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def session_near(frame: FrameType) -> Session | None:
    """The session whose method is at work."""
    for outer in outwards(frame):
        session = _session_of(outer) if is_sqlalchemys(outer) else None
        if session is not None:
            return session
    return None


def _session_of(frame: FrameType) -> Session | None:
    owner: Any = locals_elsewhere(frame).get("self")
    if _is(owner, SessionTransaction):
        # Its constructor may be refused before it has set that.
        owner = getattr(owner, "session", None)
    return owner if _is(owner, Session) else None


def _is(one: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether it is one of the kind; an object of the application's is not asked."""
    return issubclass(type(one), kind)


def is_inside(frame: FrameType, session: Session) -> bool:
    """Whether the frame is a method's of the session, or of its AsyncSession."""
    match frame.f_globals.get("__name__"):
        case "sqlalchemy.orm.session":
            return _session_of(frame) is session
        case "sqlalchemy.ext.asyncio.session":
            proxy = locals_elsewhere(frame).get("self")
            # An AsyncSessionTransaction knows its AsyncSession.
            proxy = getattr(proxy, "session", proxy)
            return getattr(proxy, "sync_session", None) is session
    return False


def attribute_read(frames: Iterable[FrameType]) -> Read | None:
    """The attribute that is loaded in these frames, the innermost first, of any thread or task.

    It is the outermost one, which may need another one to be loaded. None where it was not an
    attribute that wanted to be loaded.
    """
    found: tuple[InstanceState[Any], str] | None = None
    expired: frozenset[str] = frozenset()
    for outer in frames:
        if not is_sqlalchemys(outer):
            if found is not None:
                break
            continue  # a method of the application's own Session, perhaps
        values = locals_elsewhere(outer)
        if _is(values.get("self"), Session):
            found, expired = None, frozenset()  # this is what has asked for the rest
        else:
            found = _attribute_of(values) or found
            if values.get("attribute_names"):
                expired = frozenset(values["attribute_names"])
            elif _is(values.get("self"), LoaderStrategy):
                expired = frozenset()  # what is deferred has a loader of its own, expired or not
    if found is None:
        return None
    state, attribute = found
    prop: Any = state.manager.mapper.attrs.get(attribute)
    if isinstance(prop, RelationshipProperty):
        is_query = prop.lazy in ("dynamic", "write_only")
        return Read(state, attribute, "dynamic" if is_query else "relationship")
    return Read(state, attribute, "expired" if expired else "deferred", expired)


def _attribute_of(values: Mapping[str, Any]) -> tuple[InstanceState[Any], str] | None:
    owner: Any = values.get("self")
    state: Any = values.get("state")
    if _is(owner, _DYNAMIC):
        return attributes.instance_state(owner.instance), owner.attr.key
    key = _key(owner) if _is(state, InstanceState) else ""
    return (state, key) if key else None


def _key(owner: object) -> str:
    """The key of an attribute, of its implementation or of its loader."""
    # What is the application's own may have a property of that name.
    if not type(owner).__module__.startswith("sqlalchemy."):
        return ""
    key = getattr(owner, "key", "")
    return key if isinstance(key, str) else ""


def detached_read(frame: FrameType) -> Read | None:
    """The attribute of a detached object whose load was refused."""
    if not is_sqlalchemys(frame):
        return None
    values = frame.f_locals
    owner: Any = values.get("self")
    state: Any = values.get("state")
    if _is(owner, _DYNAMIC):
        return Read(attributes.instance_state(owner.instance), owner.attr.key, "dynamic")
    if not _is(state, InstanceState):
        return None
    if "attribute_names" in values:
        return Read(state, _expired_attribute(frame, values["attribute_names"]), "expired")
    is_relationship = isinstance(getattr(owner, "parent_property", None), RelationshipProperty)
    return Read(state, _key(owner), "relationship" if is_relationship else "deferred")


def _expired_attribute(frame: FrameType, names: Any) -> str:
    """All that is expired is loaded at once: which of it was read, an outer frame knows."""
    for outer in outwards(frame.f_back, _NEAR):
        key = _key(outer.f_locals.get("self")) if is_sqlalchemys(outer) else ""
        if key in names:
            return key
    return ""

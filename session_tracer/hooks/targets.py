"""What can be instrumented: what makes sessions, and the class that fires their events."""

from __future__ import annotations

import inspect
import sys
import weakref
from typing import Any, Final

from sqlalchemy.orm import Session, scoped_session, sessionmaker

__all__ = [
    "ASYNC",
    "KNOWS_ASYNC",
    "KNOWS_SESSIONS",
    "SYNC_MAKER_CALL",
    "AsyncSession",
    "AsyncSessionTransaction",
    "Target",
    "async_makers",
    "async_session_of",
    "live_sessions",
    "may_have_made",
    "places",
    "resolve",
]


def _code(method: Any) -> Any:
    """The code of a method whose frames name its object; None of one that is made otherwise."""
    code = getattr(inspect.unwrap(method), "__code__", None)
    return code if code is not None and "self" in code.co_varnames else None


try:
    from sqlalchemy.ext.asyncio import (
        AsyncSession,
        AsyncSessionTransaction,
        async_scoped_session,
        async_session,
        async_sessionmaker,
    )
except ImportError:  # SQLAlchemy 2.1 without its asyncio extra: no async session can exist
    # Used only if ASYNC is true.
    AsyncSession: Any = None  # type: ignore[no-redef]
    AsyncSessionTransaction: Any = None  # type: ignore[no-redef]
    _ASYNC_INIT: Any = None
    _MAKER_CALL: Any = None
    ASYNC = False
else:
    _ASYNC_INIT = _code(AsyncSession.__init__)
    _MAKER_CALL = _code(async_sessionmaker.__call__)
    ASYNC = True
# Whether the sessions that asyncio's make are recognised; another library may have replaced their
# constructors.
KNOWS_ASYNC: Final = _ASYNC_INIT is not None and _MAKER_CALL is not None
SYNC_MAKER_CALL: Final = _code(sessionmaker.__call__)
_SESSIONS: Final[Any] = getattr(sys.modules["sqlalchemy.orm.session"], "_sessions", None)
KNOWS_SESSIONS: Final = isinstance(_SESSIONS, weakref.WeakValueDictionary)


class Target:
    """A target of `instrument()`, and the class whose events report its sessions.

    `place` is the class whose constructor makes the sessions, or what makes them and has no class
    of its own (an `async_sessionmaker`), or one live session.
    """

    __slots__ = ("_place", "listen_to")

    def __init__(self, place: object, listen_to: type[Session]) -> None:
        self._place = weakref.ref(place)
        self.listen_to = listen_to

    @property
    def place(self) -> object:
        """The target, None if it is gone."""
        return self._place()

    def same_as(self, other: Target) -> bool:
        """Whether both are the same target."""
        return self.place is not None and self.place is other.place


def resolve(target: Any) -> Target:
    """Return the target; `TypeError` with what is supported if it is not."""
    if target is None:
        return Target(Session, Session)
    if isinstance(target, sessionmaker):
        return Target(target.class_, target.class_)
    if isinstance(target, scoped_session):
        return resolve(target.session_factory)
    if isinstance(target, type) and issubclass(target, Session):
        return Target(target, target)
    if isinstance(target, Session):
        return Target(target, type(target))
    if ASYNC:
        if isinstance(target, async_sessionmaker):
            # It makes its sessions without a class of its own.
            made = target.kw.get("sync_session_class", target.class_.sync_session_class)
            return Target(target, made if isinstance(made, type) else Session)
        if isinstance(target, async_scoped_session):
            return resolve(target.session_factory)
        if isinstance(target, type) and issubclass(target, AsyncSession):
            return Target(target, Session)
        if isinstance(target, AsyncSession):
            return resolve(target.sync_session)
    if type(target).__module__.partition(".")[0] == "flask_sqlalchemy":
        return resolve(target.session)
    # Not its repr(): that may be the application's code.
    kind = "the class" if isinstance(target, type) else "an object of"
    made = target if isinstance(target, type) else type(target)
    name = f"{made.__module__}.{made.__qualname__}"
    raise TypeError(
        f"session_tracer cannot instrument {kind} {name}. It takes a sessionmaker, an "
        "async_sessionmaker, a scoped_session or async_scoped_session over one of them, a Session "
        "or AsyncSession class, one live session, a Flask-SQLAlchemy SQLAlchemy object, or nothing "
        "at all for every session of the process."
    )


def live_sessions() -> list[Session]:
    """Every live session of the process."""
    if not KNOWS_SESSIONS:
        return []
    # values() iterates in Python, while other threads may open and lose sessions.
    found = [reference() for reference in _SESSIONS.valuerefs()]
    return [session for session in found if session is not None]


def async_session_of(session: Session) -> Any:
    """The AsyncSession whose session it is, if it is one's."""
    return async_session(session) if ASYNC else None


def may_have_made(maker: object, session: Any) -> bool:
    """Whether an `async_sessionmaker` may have made an AsyncSession, which does not know."""
    if not isinstance(maker, async_sessionmaker):
        return False
    made = maker.kw.get("sync_session_class", session.sync_session_class)
    bind, bound = session.sync_session.bind, maker.kw.get("bind")
    return (
        type(session) is maker.class_
        and type(session.sync_session) is made
        and (bind is getattr(bound, "sync_engine", None) or bind is bound)
    )


def places(made: type, owner: type | None) -> tuple[object, ...]:
    """The classes of a session that may be instrumented, the nearest first."""
    return (*(() if owner is None else owner.__mro__), *made.__mro__)


def async_makers(frame: Any) -> tuple[object | None, type | None]:
    """The async factory and the class of the AsyncSession that make a session, if they do."""
    owner = None
    for _ in range(8):
        if frame is None or frame.f_code is SYNC_MAKER_CALL:
            break
        if frame.f_code is _ASYNC_INIT:
            owner = type(frame.f_locals["self"])
        elif frame.f_code is _MAKER_CALL and owner is not None:
            return frame.f_locals["self"], owner
        frame = frame.f_back
    return None, owner

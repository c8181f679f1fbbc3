"""Finds out whether anything but its test holds a session that is open after the test."""

from __future__ import annotations

import gc
import time
from collections import deque
from types import (
    AsyncGeneratorType,
    CellType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    ModuleType,
)
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Hashable

__all__ = ["Holder", "Holders"]

Holder: TypeAlias = Literal["nothing", "test", "others"]

# What has a session for a moment, or among others, and not under a name for later use.
_PASSING: Final = frozenset(
    {
        *(list, tuple, set, frozenset, deque),
        *(CellType, FrameType, FunctionType),
        *(GeneratorType, CoroutineType, AsyncGeneratorType),
    }
)
_ASYNC_SESSION: Final = ("sqlalchemy.ext.asyncio.session", "AsyncSession")
_FIXTURE: Final = ("_pytest.fixtures", "FixtureDef")
_MOST_STEPS: Final = 15
_MOST_OBJECTS: Final = 5_000
# Each step reads every object of the process, of which there may be millions. Sessions of one line
# are mostly held alike.
_MOST_LOOKS: Final = 3
# All searches may take two seconds, and this share of the time since the run began. It is the
# processor's time, so that what is found does not depend on how busy the machine is.
_SECONDS: Final = 2.0
_SHARE: Final = 0.03


class Holders:
    """Finds what holds sessions: an attribute of an object, a module's name, a `scoped_session`.

    If these are there for longer than the test and its own fixtures, they keep the session for
    others, and no code has forgotten to close it. What `gc.freeze()` has set aside is not seen.
    Where no time is left to search, others are supposed to hold the session: tests must not get
    much slower by it, and a finding is reported only if it is sure.

    Args:
        clock: Returns the seconds of the processor's time that this process has used.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._found: dict[Hashable, tuple[int, Holder]] = {}
        self._clock = clock
        self._began = clock()
        self._spent = 0.0

    def of(self, session: object, registry: weakref.ref[Any] | None, lines: Hashable) -> Holder:
        """Return what holds a session.

        Args:
            session: The session.
            registry: The `scoped_session` that has made it.
            lines: Where it was opened.
        """
        keeper = None if registry is None else registry()
        if registry is not None and keeper is None:
            return "others"  # they have thrown it away, with the sessions that it had to close
        looks, holder = self._found.get(lines, (0, "nothing"))
        if looks < _MOST_LOOKS:
            began = self._clock()
            left = _SECONDS + _SHARE * (began - self._began) - self._spent
            if left <= 0:
                return "others"

            def is_late() -> bool:
                return self._clock() > began + left

            if keeper is None:
                holder = _of_session(session, is_late)
            else:
                holder = _search(_Objects([keeper]), _Objects(), is_late)
            self._spent += self._clock() - began
            self._found[lines] = looks + 1, holder
        return holder


class _Objects(list[Any]):
    """Objects that are looked at. It has a type of its own because it refers to them as well."""


def _of_session(session: object, is_late: Callable[[], bool]) -> Holder:
    """Return what holds a session, or the AsyncSession that has it."""
    inner = _Objects([session])
    direct = _outer(inner, inner)
    wrappers = [one for one in (*direct, *_outer(direct, direct)) if _is(one, _ASYNC_SESSION)]
    if wrappers:
        inner = _Objects([session, *wrappers])
        direct = _outer(inner, inner)
    named = (one for one in direct if type(one) not in _PASSING and not _is_sqlalchemys(one))
    return _search(_Objects(named), inner, is_late)


def _search(now: _Objects, seen: _Objects, is_late: Callable[[], bool]) -> Holder:
    """Look for it from the inside out. Nothing is kept, and no object is asked for anything."""
    found: Holder = "nothing"
    for _ in range(_MOST_STEPS):
        # They live until the search has ended: otherwise their ids would be given to new objects.
        seen += now
        if any(issubclass(type(one), type | ModuleType) or _is(one, _FIXTURE) for one in now):
            return "others"
        if any(map(_is_pytests, now)):
            found = "test"
        now = _outer(_Objects(one for one in now if not _is_pytests(one)), seen)
        if not now:
            return found
        if len(seen) > _MOST_OBJECTS or is_late():
            break
    return "others"


def _outer(inner: _Objects, seen: _Objects) -> _Objects:
    """Return what refers to these objects, without frames and what was seen before."""
    # From Python 3.13 on, the tuple of arguments is found to refer to them.
    asked = tuple(inner)
    known = {*map(id, seen), id(asked)}
    referrers = gc.get_referrers(*asked) if asked else ()
    return _Objects(
        one
        for one in referrers
        if id(one) not in known and type(one) is not FrameType and not _is_ours(one)
    )


def _is(one: Any, kind: tuple[str, str]) -> bool:
    return kind in map(_name, type.__getattribute__(type(one), "__mro__"))


def _is_pytests(one: Any) -> bool:
    kinds = type.__getattribute__(type(one), "__mro__")
    return any(_name(kind)[0].startswith("_pytest.") for kind in kinds)


def _is_sqlalchemys(one: Any) -> bool:
    return _name(type(one))[0].startswith("sqlalchemy.")


def _is_ours(one: Any) -> bool:
    return _name(type(one))[0].startswith("session_tracer.")


def _name(kind: type) -> tuple[str, str]:
    """Return a class's module and name, without its metaclass being asked."""
    module = type.__getattribute__(kind, "__module__")
    return module if type(module) is str else "", type.__getattribute__(kind, "__name__")

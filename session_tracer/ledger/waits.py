"""Which sessions wait for a connection of a pool at this moment, and since when.

Nothing is noted as a session begins to wait, which would cost every unit of work. It is read from
the stack of its thread or greenlet: there is the method that times the checkout (`CHECKOUTS`).
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from session_tracer.where.running import locals_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType, FrameType

    from session_tracer.where.owner import Owner

__all__ = ["CHECKOUTS", "NAMES", "Wait", "Waits"]

# The code of the method that times a checkout: its `self` is the pool, and `began` is a time.
CHECKOUTS: Final[set[CodeType]] = set()
# The names of the pools that are known, by their dialects.
NAMES: Final[weakref.WeakKeyDictionary[Any, str]] = weakref.WeakKeyDictionary()
# Further inwards there is only the driver, as it opens a connection.
_MOST_FRAMES: Final = 100


class Wait(NamedTuple):
    """A checkout that is not over: since when, in nanoseconds; `is_connecting` if it opens one."""

    pool: Any
    since: int
    is_connecting: bool

    @property
    def name(self) -> str:
        """The pool's name."""
        known = NAMES.get(getattr(self.pool, "_dialect", None))
        return known or getattr(self.pool, "logging_name", None) or type(self.pool).__name__


class Waits:
    """What waits at one moment; each thread is looked at once."""

    def __init__(self) -> None:
        self._of_threads: dict[int | None, tuple[Any, Wait] | None] = {}

    def of(self, owner: Owner) -> tuple[Any, Wait] | None:
        """The session of this owner that waits for a checkout, if one does, and that checkout."""
        if owner.is_task and not owner.is_at_work():
            return _found(owner.frames_of_greenlet())
        if owner.ident not in self._of_threads:
            self._of_threads[owner.ident] = _found(owner.frames_of_thread(_MOST_FRAMES))
        return self._of_threads[owner.ident]


def _found(frames: Iterable[FrameType]) -> tuple[Any, Wait] | None:
    """The session that waits on this stack, if one does, and for what."""
    wait, is_connecting = None, False
    for frame in frames:
        module = frame.f_globals.get("__name__")
        if wait is None:
            if frame.f_code in CHECKOUTS:
                pool, began = _locals(frame, "self", "began")
                if began is None:
                    return None
                wait = Wait(pool, began, is_connecting)
            elif frame.f_code.co_name == "__connect" and module == "sqlalchemy.pool.base":
                is_connecting = True
        elif frame.f_code.co_name == "_connection_for_bind" and module == "sqlalchemy.orm.session":
            (taker,) = _locals(frame, "self")
            return getattr(taker, "session", taker), wait
        elif not str(module).startswith("sqlalchemy."):
            return None  # it is no session's
    return None


def _locals(frame: FrameType, *names: str) -> list[Any]:
    values = locals_elsewhere(frame)
    found = [values.get(name) for name in names]
    if type(values) is dict:
        # Before Python 3.13 the frame would keep them.
        values.clear()
    return found

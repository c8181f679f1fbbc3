"""How long the statements of a session, in one task, have kept an event loop from the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer import facts
from session_tracer.where.running import running_frame
from session_tracer.where.tasks import running_loop

if TYPE_CHECKING:
    from types import FrameType

    from session_tracer.ledger.ledger import Ledger
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

__all__ = ["Blocking", "ended", "used"]

# CO_COROUTINE and CO_ASYNC_GENERATOR.
_CO_ASYNC: Final = 0x80 | 0x200


class Blocking:
    """What a session without AsyncSession has run on an event loop.

    `coroutine` is the application's line that waits; None if a session is used on a loop by code
    that is no coroutine of the application's: a notebook's cell, a callback, or `run_sync()`, whose
    greenlet has a stack of its own.
    """

    __slots__ = ("_sql", "_statements", "coroutine", "due", "is_on", "ns", "owner", "statements")

    def __init__(self, coroutine: CallSite | None, due: int, user: Owner) -> None:
        self.coroutine = coroutine
        # From which time on it is looked at whether anything had to wait.
        self.due = due
        self.owner = user
        self.is_on = False
        self.ns = self.statements = 0
        self._sql = self._statements = 0

    def add_up(self, ledger: Ledger) -> None:
        """Take into account what has run since the session was last begun to be used."""
        if self.is_on:
            self.ns += ledger.sql - self._sql
            self.statements += ledger.statements - self._statements
        self._sql = ledger.sql
        self._statements = ledger.statements


def used(ledger: Ledger, user: Owner) -> None:
    """A task uses the session, or a thread that took it over from a task."""
    blocking = ledger.blocking
    is_on = running_loop() is not None
    if blocking is not None and is_on and blocking.owner is not user and blocking.owner != user:
        # Another request: what it runs is counted by itself, and is its own coroutine's.
        ended(ledger, blocking)
        blocking = None
    if blocking is None:
        if not is_on:
            return
        coroutine = _coroutine(ledger)
        blocking = ledger.blocking = Blocking(coroutine, ledger.gates.blocked_loop, user)
        blocking.add_up(ledger)
    if blocking.coroutine is None:
        return
    blocking.add_up(ledger)
    if blocking.ns >= blocking.due:
        _judge(ledger, blocking)
    blocking.is_on = is_on
    if is_on:
        blocking.owner = user


def ended(ledger: Ledger, blocking: Blocking) -> None:
    """The scope ends."""
    blocking.add_up(ledger)
    blocking.is_on = False
    if blocking.coroutine is not None and blocking.ns >= blocking.due:
        _judge(ledger, blocking)


def _judge(ledger: Ledger, blocking: Blocking) -> None:
    waiting = len(blocking.owner.tasks_beside())
    if not waiting:
        # Time in which nothing else was on the loop does not count.
        blocking.ns = blocking.statements = 0
        return
    blocking.due = blocking.ns + ledger.gates.blocked_loop
    ledger.suspect(
        facts.EventLoopBlocked(
            at=ledger.clock(),
            site=blocking.coroutine,
            used_site=ledger.last_statement_site,
            statements=blocking.statements,
            duration=blocking.ns,
            waiting=waiting,
        )
    )


def _coroutine(ledger: Ledger) -> CallSite | None:
    """The line of the application's innermost coroutine on this stack."""
    frame: FrameType | None = running_frame(1)
    while frame is not None:
        is_async = frame.f_code.co_flags & _CO_ASYNC
        if is_async and ledger.locator.is_application(frame):
            sites = ledger.locator.sites([frame])
            return sites[0] if sites else None
        frame = frame.f_back
    return None

"""Whether the thread or task that opened or used a session can still close it.

It is computed when code asks for it. On first use a ledger notes which instructions of which
functions were calling (`Use.callers`). It never holds a frame.

The function that uses a session is often a helper that has returned while its caller waits.
Therefore the callers at the first use count as well. A caller that stands at the very instruction
where it stood then does not count: it calls again. A decorator, a dispatcher or a server's loop, in
which every request runs, does not prove that this request still runs.

One case is not distinguished: the same function that runs again in the same thread looks like the
call that left its session open.
"""

from __future__ import annotations

import dis
import functools
from typing import TYPE_CHECKING, Final, NamedTuple

from session_tracer.where.callsite import is_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, FrameType

    from session_tracer.ledger.use import Use
    from session_tracer.where.callsite import Callers, CallSite, Locator
    from session_tracer.where.owner import Owner

__all__ = ["GONE", "OwnerState", "OwnerStates", "is_ending", "owner_state"]

# No code is left that would close the session.
GONE: Final = frozenset({"suspended", "returned", "ended", "cancelled", "failed"})
# The methods of SQLAlchemy's sessions and connections that end a transaction.
_ENDINGS: Final = frozenset({"commit", "rollback", "close", "prepare"})
# Generators and asynchronous generators.
_GENERATOR: Final = 0x20 | 0x200


class OwnerState(NamedTuple):
    """The state, an empty text if it is unknown, and the session's own stack at this moment."""

    state: str
    sites: Sequence[CallSite] = ()


class OwnerStates:
    """What the owners of open sessions do at one moment, without their stacks.

    It is found once for sessions that one function has opened and used alike: where a line leaks
    thousands, they differ in nothing that it depends on.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], str] = {}

    def of(self, ledger: Use) -> str:
        """Return the state, an empty text if it is unknown."""
        key = (
            id(ledger.owner),
            id(ledger.opened_by),
            id(ledger.locator),
            id(ledger.scope.opened_site),
            id(ledger.last_site),
            ledger.cancelled,
            # Hashing a code object reads its names and constants each time.
            *[number for code, at in ledger.callers for number in (id(code), at)],
        )
        state = self._known.get(key)
        if state is None:
            state = self._known[key] = owner_state(ledger, stack=False).state
        return state


def owner_state(ledger: Use, *, stack: bool) -> OwnerState:
    """Return what the owner of an open session does; with `stack`, also the session's own stack."""
    locator = ledger.locator
    owner, opened_by = ledger.owner, ledger.opened_by
    ending = owner.ending()
    if ending and opened_by != owner and not opened_by.ending():
        # A task that only used the session has ended, and the one that opened it goes on.
        owner, ending = opened_by, ""
    if not ending:
        return _of_living(ledger, owner, locator, stack=stack)
    if ending == "returned" and locator.is_in_generator(ledger.scope.opened_site):
        return OwnerState("suspended")
    if ending == "ended" and owner.is_task and ledger.cancelled:
        return OwnerState("cancelled")
    return OwnerState(ending)


def is_ending(ledger: Use) -> bool:
    """Return whether the session's owner waits for the end of a transaction at this moment.

    The database may take long to commit (a replica that has to confirm it, a deferred constraint),
    and no statement runs then. A listener of the application that waits there is not the database.
    """
    for frame in ledger.owner.frames():
        if ledger.locator.is_application(frame):
            return False
        module = str(frame.f_globals.get("__name__"))
        if module.startswith("sqlalchemy.") and frame.f_code.co_name in _ENDINGS:
            return True
    return False


def _of_living(ledger: Use, owner: Owner, locator: Locator, *, stack: bool) -> OwnerState:
    frames = owner.frames()
    at_work = "running" if owner.is_at_work() else "waiting"
    is_in_generator = locator.is_in_generator(ledger.scope.opened_site)
    if (
        owner.is_one_piece
        # A framework's task goes on with a generator that it has begun.
        or (is_in_generator and owner.is_task)
        or _is_its_own(ledger, owner, frames, locator)
    ):
        if not stack:
            return OwnerState(at_work)
        # A framework streams a response in another task.
        children = owner.frames_of_groups(locator.is_application)
        return OwnerState(at_work, locator.sites([*children, *frames]))
    if owner.is_task and owner.is_at_work():
        # Its coroutines may stand on the stack of another greenlet, which is not seen from here.
        return OwnerState("")
    if is_in_generator:
        return OwnerState("suspended")
    return OwnerState("returned" if _has_returned(ledger, frames, locator) else "")


def _is_its_own(ledger: Use, owner: Owner, frames: Sequence[FrameType], locator: Locator) -> bool:
    """Whether a function that opened or used the session, or its caller, is on this stack."""
    callers = ledger.callers
    opened, last = ledger.scope.opened_site, ledger.last_site
    user = callers[0][0] if callers else None
    # A line at which one helper opens and uses the sessions of many callers is known by these.
    opener = None if user is not None and is_in(opened, user) else opened
    outermost = None
    for at, frame in enumerate(frames):
        if not locator.is_application(frame):
            continue
        code = outermost = frame.f_code
        if code is user:
            is_own = owner.is_task or _has_callers(frames[at + 1 :], callers[1:])
        else:
            is_own = (
                _has_moved_on(frame, callers[1:])
                or (is_in(opener, code) and not code.co_flags & _GENERATOR)
                or (owner.is_task and is_in(last, code))
            )
        if is_own:
            return True
    # A helper may be at work for others: only the function that a library calls is no helper.
    return outermost is not None and user is not outermost and is_in(last, outermost)


def _has_callers(frames: Sequence[FrameType], callers: Callers) -> bool:
    """Whether these are the functions that called then: one helper is called by many."""
    return all(frame.f_code is code for frame, (code, _) in zip(frames, callers, strict=False))


def _has_moved_on(frame: FrameType, callers: Callers) -> bool:
    """Whether this function called the one that first used the session, and has gone on since."""
    return any(
        frame.f_code is code and frame.f_lasti != then and not is_in_loop(code, then)
        for code, then in callers
    )


def _has_returned(ledger: Use, frames: Sequence[FrameType], locator: Locator) -> bool:
    """Whether no function is known, or can be supposed, that still has the session at hand."""
    opened, last, callers = ledger.scope.opened_site, ledger.last_site, ledger.callers
    codes = [code for code, _ in callers]
    opened_by = next((at for at, code in enumerate(codes) if is_in(opened, code)), -1)
    if opened_by > 0:
        return True  # it called the function that first used the session, and so probably others
    if not any(is_in(last, code) for code in codes):
        return False  # another function has it, which is not known to have returned
    if opened_by == 0:
        return True
    # One that called in a loop may be in the next turn of it, or may have left it.
    return not any(
        frame.f_code is code and frame.f_lasti != then
        for frame in frames
        for code, then in callers[1:]
        if locator.is_application(frame)
    )


@functools.lru_cache(maxsize=1_000)
def _loops(code: CodeType) -> tuple[tuple[int, int], ...]:
    """Return the first and the last instruction of each loop of a function."""
    return tuple(
        (int(jump.argval), jump.offset)
        for jump in dis.get_instructions(code)
        # An `await` is a loop, too, whose jump does not check for interrupts.
        if jump.opname.startswith("JUMP_BACKWARD") and not jump.opname.endswith("NO_INTERRUPT")
    )


def is_in_loop(code: CodeType, instruction: int) -> bool:
    """Return whether this instruction (`f_lasti`) of a function is in a loop."""
    return any(first <= instruction <= last for first, last in _loops(code))

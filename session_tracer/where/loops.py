"""Whether an instruction lies in a loop of its function, or can follow another one."""

from __future__ import annotations

import dis
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from types import CodeType

__all__ = ["can_follow", "is_in_loop", "is_one_loop"]

_MOST_KNOWN: Final = 1_000
# By the id of the code, because hashing a code object reads all of it; the code is kept, so that no
# other one can have its id.
_KNOWN: Final[dict[tuple[int, int, int, bool], tuple[CodeType, bool]]] = {}

_JUMPS: Final = frozenset((*dis.hasjrel, *dis.hasjabs))
# What is not followed by the next instruction.
_ENDS: Final = frozenset(
    {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE"}
    | {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"}
)
# An `await` goes back to itself until it has its result: it is no loop of the source.
_AWAITS: Final = "JUMP_BACKWARD_NO_INTERRUPT"
# What takes the next item in a `for`, and what makes its iterator, which comes before.
_NEXT: Final = frozenset({"FOR_ITER", "GET_ANEXT"})
_ITERATORS: Final = frozenset({"GET_ITER", "GET_AITER"})
# What may run a function that opens a session.
_OPENING: Final = ("CALL", "LOAD_ATTR", "LOAD_METHOD", "BEFORE_", "LOAD_SPECIAL", "GET_ITER")


def is_in_loop(
    code: CodeType, offset: int, without: int = 0, *, in_generator: bool = False
) -> bool:
    """Return whether the instruction at the offset can be reached from itself.

    Where the instruction only runs again if it has raised an exception, a retry, it is in no loop.
    The compiler moves the handlers of exceptions to the end of a function, from where they jump
    back. What lies between a jump and its target is therefore not always a loop.

    Args:
        code: The function.
        offset: The instruction, `f_lasti`.
        without: A line that must not be on the way.
        in_generator: Whether a generator runs at the instruction. A `for` over it does not lead
            back to what it has run before: only a loop around the `for` does, with another one.
    """
    key = (id(code), offset, without, in_generator)
    known = _KNOWN.get(key)
    if known is None:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        is_again = _is_reached_again(code, offset, without, in_generator=in_generator)
        known = _KNOWN[key] = (code, is_again)
    return known[1]


def is_one_loop(code: CodeType, one: int, other: int) -> bool:
    """Return whether each of two instructions of a function leads to the other.

    One that ran before a loop does not follow what is in the loop.
    """
    if one == other:
        return True
    instructions = _flow(code).instructions
    places = [_after_await(instructions, _start(instructions, at)) for at in (one, other)]
    return all(to in _reached(code, [at]) for at, to in zip(places, reversed(places), strict=True))


@lru_cache(maxsize=_MOST_KNOWN)
def can_follow(code: CodeType, offset: int, line: int) -> bool:
    """Return whether a call of the function that has run the line can come to the instruction.

    Args:
        code: The function.
        offset: The instruction, `f_lasti`.
        line: A line of the function, or of a comprehension in it.
    """
    instructions = _flow(code).instructions
    starts = [
        one.offset
        for one in instructions
        if (at := one.positions) is not None
        and at.lineno is not None
        and at.lineno <= line <= (at.end_lineno or at.lineno)
    ]
    return _start(instructions, offset) in _reached(code, starts)


def _is_reached_again(code: CodeType, offset: int, without: int, *, in_generator: bool) -> bool:
    instructions, following, entries = _flow(code)
    start = _start(instructions, offset)
    ends = {one.offset for one in instructions if one.opname == "END_ASYNC_FOR"}
    own = {entry.target for entry in entries if entry.start <= start < entry.end} - ends
    again = _iterator(instructions, start) if in_generator else None
    start = _after_await(instructions, start)
    blocked = {
        one.offset
        for one in instructions
        if without
        and one.positions is not None
        and one.positions.lineno == without
        # `for book in session.scalars(...)` goes on without opening the session again.
        and one.opname.startswith(_OPENING)
    }
    again = start if again is None else again
    return again in _reached(code, following[start], blocked, own)


class _Flow(NamedTuple):
    """The instructions of a function, which may follow each, and its exception handlers."""

    instructions: list[dis.Instruction]
    following: dict[int, list[int]]
    handlers: Any


@lru_cache(maxsize=64)
def _flow(code: CodeType) -> _Flow:
    instructions = list(dis.get_instructions(code))
    handlers = getattr(dis.Bytecode(code), "exception_entries", ())
    return _Flow(instructions, _following(instructions), handlers)


def _iterator(instructions: list[dis.Instruction], start: int) -> int | None:
    """Return what makes the iterator that a `for` takes its next item of; None if it takes none.

    It is -1 for the iterator that a comprehension has been given.
    """
    offsets = [one.offset for one in instructions]
    number = offsets.index(start)
    for one in instructions:
        if one.opname == _AWAITS and one.argval <= start <= one.offset:
            number = offsets.index(one.argval) - 2  # GET_ANEXT, LOAD_CONST, and the await
    if instructions[number].opname not in _NEXT:
        return None
    made = (one.offset for one in reversed(instructions[:number]) if one.opname in _ITERATORS)
    return next(made, -1)


def _start(instructions: list[dis.Instruction], offset: int) -> int:
    # A frame that has called a function is at the end of the call's inline cache.
    return max((one.offset for one in instructions if one.offset <= offset), default=0)


def _reached(
    code: CodeType,
    starts: Iterable[int],
    blocked: Container[int] = (),
    own: Container[int] = (),
) -> set[int]:
    """Return the instructions that run from `starts` on, with no `blocked` one on the way.

    An exception does not lead to the handlers at `own`.
    """
    _, following, entries = _flow(code)
    reached: set[int] = set()
    to_do = list(starts)
    while to_do:
        at = to_do.pop()
        if at in reached or at in blocked:
            continue
        reached.add(at)
        to_do += following[at]
        to_do += [
            entry.target
            for entry in entries
            if entry.start <= at < entry.end and entry.target not in own
        ]
    return reached


def _after_await(instructions: list[dis.Instruction], start: int) -> int:
    """Return what runs when the `await` has its result that the instruction is part of, if any."""
    for one in instructions:
        if one.opname == _AWAITS and one.argval <= start <= one.offset:
            return next(
                (to.argval for to in instructions if to.offset == one.argval and _jumps(to)), start
            )
    return start


def _jumps(one: dis.Instruction) -> bool:
    return one.opcode in _JUMPS


def _following(instructions: list[dis.Instruction]) -> dict[int, list[int]]:
    """Return the instructions that may follow each, if none raises an exception."""
    following: dict[int, list[int]] = {one.offset: [] for one in instructions}
    for number, one in enumerate(instructions):
        if one.opname not in _ENDS and number + 1 < len(instructions):
            following[one.offset].append(instructions[number + 1].offset)
        if _jumps(one):
            following[one.offset].append(one.argval)
    return following

"""Whether an instruction lies in a loop of its function."""

from __future__ import annotations

import dis
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import CodeType

__all__ = ["is_in_loop"]

_MOST_KNOWN: Final = 1_000
# By the id of the code, because hashing a code object reads all of it; the code is kept, so that no
# other one can have its id.
_KNOWN: Final[dict[tuple[int, int, int], tuple[CodeType, bool]]] = {}

_JUMPS: Final = frozenset((*dis.hasjrel, *dis.hasjabs))
# What is not followed by the next instruction.
_ENDS: Final = frozenset(
    {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE"}
    | {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"}
)
# An `await` goes back to itself until it has its result: it is no loop of the source.
_AWAITS: Final = "JUMP_BACKWARD_NO_INTERRUPT"
# What may run a function that opens a session.
_OPENING: Final = ("CALL", "LOAD_ATTR", "LOAD_METHOD", "BEFORE_", "LOAD_SPECIAL", "GET_ITER")


def is_in_loop(code: CodeType, offset: int, without: int = 0) -> bool:
    """Return whether the instruction at the offset can be reached from itself.

    Where the instruction only runs again if it has raised an exception, a retry, it is in no loop.
    The compiler moves the handlers of exceptions to the end of a function, from where they jump
    back. What lies between a jump and its target is therefore not always a loop.

    Args:
        code: The function.
        offset: The instruction, `f_lasti`.
        without: A line that must not be on the way.
    """
    key = (id(code), offset, without)
    known = _KNOWN.get(key)
    if known is None:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        known = _KNOWN[key] = (code, _is_reached_again(code, offset, without))
    return known[1]


def _is_reached_again(code: CodeType, offset: int, without: int) -> bool:
    instructions = list(dis.get_instructions(code))
    # A frame that has called a function is at the end of the call's inline cache.
    start = max((one.offset for one in instructions if one.offset <= offset), default=0)
    entries: Any = getattr(dis.Bytecode(code), "exception_entries", ())
    own = {entry.target for entry in entries if entry.start <= start < entry.end}
    start = _after_await(instructions, start)
    following = _following(instructions)
    reached: set[int] = set()
    passing = {
        one.offset: not without
        or one.positions is None
        or one.positions.lineno != without
        # `for book in session.scalars(...)` goes on without opening the session again.
        or not one.opname.startswith(_OPENING)
        for one in instructions
    }
    to_do = list(following[start])
    while to_do:
        at = to_do.pop()
        if at in reached or not passing[at]:
            continue
        reached.add(at)
        to_do += following[at]
        to_do += [
            entry.target
            for entry in entries
            if entry.start <= at < entry.end and entry.target not in own
        ]
    return start in reached


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

"""Whether an instruction lies in a loop of its function."""

from __future__ import annotations

import dis
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType

__all__ = ["is_in_loop"]

_MOST_KNOWN: Final = 1_000
# By id, because hashing a code object reads all of it; the code is kept, so that no other one can
# have its id.
_KNOWN: Final[dict[int, tuple[CodeType, frozenset[int]]]] = {}

_JUMPS: Final = frozenset((*dis.hasjrel, *dis.hasjabs))
# What is not followed by the next instruction.
_ENDS: Final = frozenset(
    {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE"}
    | {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"}
)
# An `await` goes back to itself until it has its result: it is no loop of the source.
_AWAITS: Final = "JUMP_BACKWARD_NO_INTERRUPT"


def is_in_loop(code: CodeType, offset: int) -> bool:
    """Return whether the instruction at the offset can be reached from itself.

    The compiler moves the handlers of exceptions to the end of a function, from where they jump
    back. What lies between a jump and its target is therefore not always a loop.
    """
    known = _KNOWN.get(id(code))
    if known is None:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        known = _KNOWN[id(code)] = (code, _looping(code))
    return offset in known[1]


def _looping(code: CodeType) -> frozenset[int]:
    following, back = _edges(code)
    before: dict[int, list[int]] = {}
    for source, targets in following.items():
        for target in targets:
            before.setdefault(target, []).append(source)
    looping: set[int] = set()
    for source, target in back:
        inside = _reached(target, following)
        if source in inside:
            looping |= inside & _reached(source, before)
    # A frame that has called a function is at the end of the call's inline cache.
    ends = [*list(following)[1:], len(code.co_code)]
    return frozenset(
        offset
        for start, end in zip(following, ends, strict=True)
        if start in looping
        for offset in range(start, end, 2)
    )


def _edges(code: CodeType) -> tuple[dict[int, list[int]], list[tuple[int, int]]]:
    """Return the instructions that may follow each, and the jumps back, by their offsets."""
    instructions = list(dis.get_instructions(code))
    following: dict[int, list[int]] = {one.offset: [] for one in instructions}
    back: list[tuple[int, int]] = []
    for number, one in enumerate(instructions):
        if one.opname not in _ENDS and number + 1 < len(instructions):
            following[one.offset].append(instructions[number + 1].offset)
        if one.opcode in _JUMPS:
            following[one.offset].append(one.argval)
            if one.argval <= one.offset and one.opname != _AWAITS:
                back.append((one.offset, one.argval))
    entries: Any = getattr(dis.Bytecode(code), "exception_entries", ())
    for entry in entries:
        for offset, targets in following.items():
            if entry.start <= offset < entry.end:
                targets.append(entry.target)
    return following, back


def _reached(start: int, edges: Mapping[int, list[int]]) -> set[int]:
    reached, to_do = {start}, [start]
    while to_do:
        for offset in edges.get(to_do.pop(), ()):
            if offset not in reached:
                reached.add(offset)
                to_do.append(offset)
    return reached

"""Reads in the source what a loop goes over, and what is around and inside of it."""

from __future__ import annotations

import ast
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from session_tracer.where.flow import Flow
from session_tracer.where.syntax import (
    COMPREHENSIONS,
    COUNTING,
    FORS,
    function_at,
    is_at,
    own_nodes,
    source_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_tracer.where.callsite import CallSite

__all__ = [
    "Iteration",
    "asks_by_item",
    "goes_on_at",
    "goes_over",
    "goes_over_chunks",
    "goes_turn_by_turn",
    "is_around_block",
    "is_over_items",
    "may_write",
    "reads_row_count",
    "takes_messages",
]

# What a loop goes over: items that its body uses, or lists of items, each of which has a key.
Iteration: TypeAlias = Literal["", "items", "groups"]
_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

_LOOPS: Final = (*FORS, ast.While, *COMPREHENSIONS)
_BLOCKS: Final = (ast.With, ast.AsyncWith)
_LEAVING: Final = (ast.Raise, ast.Return, ast.Break)
_GROUPING: Final = frozenset({"items", "groupby"})
# Number of arguments of `range()` with a step, and parts of the names of what makes chunks.
_STEP: Final = 3
_CHUNKS: Final = ("batch", "chunk", "islice", "partition", "slices")
_ENDLESS: Final = frozenset({"count", "cycle"})
# Methods by which a session takes in what it will write.
_WRITING: Final = frozenset({"add", "add_all", "delete", "merge"})
# Parts of the names of what hands over one message after the other.
_QUEUES: Final = frozenset(
    {"channel", "consume", "consumer", "listen", "listener", "poll", "pubsub", "queue"}
    | {"receive", "subscribe", "subscriber", "subscription"}
)


def is_around_block(site: CallSite, managers: frozenset[str]) -> bool:
    """Return whether a loop is around the `with` that calls one of these and has the line in it."""
    is_in_loop = False
    for node in _around(source_of(site.file), site.line):
        if isinstance(node, _BLOCKS):
            if is_in_loop and any(managers & _called(item.context_expr) for item in node.items):
                return True
        else:
            is_in_loop = True
    return False


def goes_over(site: CallSite) -> Iteration:
    """Return what the innermost loop around the line goes over. A loop that counts is none."""
    parts = _parts(_innermost(site))
    if parts is None:
        return ""
    target, over, body = parts
    if not COUNTING.isdisjoint(_called(over)) or _names(target).isdisjoint(_used(body)):
        return ""
    return "items" if _GROUPING.isdisjoint(_called(over)) else "groups"


def asks_by_item(lines: Sequence[CallSite]) -> bool:
    """Return whether the item of a loop decides what is asked, as far as calls pass it on by name.

    Args:
        lines: The line that asks, the lines that called its function, and last that of the loop.
    """
    return _asks_by_item(tuple([(source_of(one.file), one.line) for one in lines]))


@lru_cache(maxsize=256)
def _asks_by_item(lines: tuple[tuple[str, int], ...]) -> bool:
    *inside, (source, line) = lines
    within = _innermost_at(source, line)
    parts = _parts(within)
    if within is None or parts is None:
        return False
    names = _names(parts[0])
    for source, next_line in reversed(inside):
        function = function_at(source, next_line)
        if isinstance(function, ast.Module):
            return False
        names = _given(function, _calls(within, line), Flow(within, 0, names))
        within, line = function, next_line
    flow = Flow(within, 0, names)
    return any(map(flow.has_name, chain.from_iterable(map(_arguments, _calls(within, line)))))


def may_write(lines: Sequence[CallSite], entity: str) -> bool:
    """Return whether the body of a loop, or a function between it and a line, writes an entity.

    Where it is not written there what a session is given, that may be one.

    Args:
        lines: The line, the lines that called its function, and last that of the loop.
        entity: The name of a mapped class.
    """
    *inside, around = lines
    loop = _innermost(around)
    within: list[ast.AST] = [] if loop is None else [loop]
    within += [function_at(source_of(one.file), one.line) for one in inside]
    calls = (node for one in within for node in own_nodes(one) if isinstance(node, ast.Call))
    return any(_writes(one, entity) for one in calls)


def reads_row_count(site: CallSite) -> bool:
    """Return whether the line's function asks how many rows a statement has matched."""
    nodes = own_nodes(function_at(source_of(site.file), site.line))
    return any(isinstance(one, ast.Attribute) and one.attr == "rowcount" for one in nodes)


def _writes(call: ast.Call, entity: str) -> bool:
    function = call.func
    if not isinstance(function, ast.Attribute) or function.attr not in _WRITING:
        return False
    given = {name for one in call.args for name in _called(one)}
    is_sessions = "session" in ast.unparse(function.value).lower()
    return is_sessions and (not given or entity in given)


def _calls(within: ast.AST, line: int) -> list[ast.Call]:
    nodes = [node for node in own_nodes(within) if isinstance(node, ast.Call)]
    return [node for node in nodes if is_at(node, line)]


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(one.value for one in call.keywords)]


def _given(function: _Function, calls: list[ast.Call], flow: Flow) -> set[str]:
    """The parameters of a function for which calls have an argument with one of the flow's names.

    A single call may be of the function by another name. After an argument with a star it is not
    known which parameters they are.
    """
    given: set[str] = set()
    parameters = function.args
    names = [one.arg for one in (*parameters.posonlyargs, *parameters.args)]
    named = [one for one in calls if function.name in _called(one)]
    for call in named or calls[:1] * (len(calls) == 1):
        is_method = isinstance(call.func, ast.Attribute) and names[:1] in (["self"], ["cls"])
        for name, value in zip(names[is_method:], call.args, strict=False):
            if isinstance(value, ast.Starred):
                break
            given |= {name} if flow.has_name(value) else set()
        given |= {one.arg for one in call.keywords if one.arg and flow.has_name(one.value)}
    return given


def goes_over_chunks(site: CallSite) -> bool:
    """Return whether the innermost loop around the line goes over parts of a list.

    It counts in steps, or goes over what a function or variable of such a name has made.
    """
    loop = _innermost(site)
    if isinstance(loop, FORS):
        over = loop.iter
    elif isinstance(loop, COMPREHENSIONS):
        over = loop.generators[-1].iter
    else:
        return False
    steps = [one for one in ast.walk(over) if isinstance(one, ast.Call) and len(one.args) == _STEP]
    names = {*_names(over), *_called(over)}
    return any("range" in _called(one) for one in steps) or any(
        part in name.lower() for name in names for part in _CHUNKS
    )


def goes_turn_by_turn(site: CallSite) -> bool:
    """Return whether the innermost loop around the line may know only then what its next turn is.

    That is a `while`, unless it goes over a list by index, and a loop that only counts the turns,
    each of which asks for what the one before has found.
    """
    loop = _innermost(site)
    if isinstance(loop, ast.While):
        return "len" not in _called(loop.test)
    if not isinstance(loop, FORS) or COUNTING.isdisjoint(_called(loop.iter)):
        return False
    flow = Flow(loop, site.line)
    asked = chain.from_iterable(map(_arguments, _calls(loop, site.line)))
    return _names(loop.target).isdisjoint(_used(loop.body)) and any(map(flow.has_name, asked))


def goes_on_at(site: CallSite) -> dict[int, bool]:
    """Return the lines of each `except` by which the innermost loop around the line goes on.

    An `except` that leaves the loop is not among them. The values are whether each rolls back.
    """
    loop = _innermost(site)
    if not isinstance(loop, (*FORS, ast.While)):
        return {}
    return {
        handler.lineno: any("rollback" in name for part in handler.body for name in _called(part))
        for node in ast.walk(loop)
        if isinstance(node, ast.Try)
        and node.body[0].lineno <= site.line <= (node.body[-1].end_lineno or 0)
        for handler in node.handlers
        if not isinstance(handler.body[-1], _LEAVING)
    }


def is_over_items(site: CallSite) -> bool:
    """Return whether the loops around the line go over items that are there when they begin.

    A worker takes its next job in a `while`, an `async for` or from a queue. Whether it has to wait
    for the job depends on how much there is to do.
    """
    loops = _loops(source_of(site.file), site.line)
    return bool(loops) and all(map(_has_items, loops))


def takes_messages(site: CallSite) -> bool:
    """Return whether the innermost loop around the line takes one message of a queue after another.

    A `get()` without a key is a queue's, not that of a dictionary or a session.
    """
    loop = _innermost(site)
    if isinstance(loop, FORS):
        return _is_endless(loop.iter)
    if not isinstance(loop, ast.While):
        return False
    calls = [one for one in ast.walk(loop) if isinstance(one, ast.Call)]
    return any(_takes_message(one) for one in calls)


def _takes_message(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute):
        return False
    name = call.func.attr
    if name in ("get", "get_nowait"):
        return not call.args and {one.arg for one in call.keywords} <= {"block", "timeout"}
    return not _QUEUES.isdisjoint(name.lower().split("_"))


def _innermost(site: CallSite) -> ast.AST | None:
    return _innermost_at(source_of(site.file), site.line)


def _innermost_at(source: str, line: int) -> ast.AST | None:
    return next(reversed(_loops(source, line)), None)


def _loops(source: str, line: int) -> list[ast.AST]:
    """The loops around a line that call a function, the outermost first."""
    loops = [node for node in _around(source, line) if isinstance(node, _LOOPS)]
    return [
        loop
        for loop in loops
        if not isinstance(loop, COMPREHENSIONS) or any(map(_called, _results(loop)))
    ]


def _parts(loop: ast.AST | None) -> tuple[ast.expr, ast.expr, Sequence[ast.AST]] | None:
    """The target of a loop, what it goes over, and what it runs for each item."""
    if isinstance(loop, FORS):
        return loop.target, loop.iter, loop.body
    if isinstance(loop, COMPREHENSIONS):
        last = loop.generators[-1]
        return last.target, last.iter, _results(loop)
    return None


def _has_items(loop: ast.AST) -> bool:
    if isinstance(loop, ast.For):
        return not _is_endless(loop.iter)
    if isinstance(loop, COMPREHENSIONS):
        return not any(one.is_async or _is_endless(one.iter) for one in loop.generators)
    return False


def _is_endless(over: ast.expr) -> bool:
    """Whether it counts for ever, calls a function for each item, or has the name of a queue."""
    if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) and over.func.id == "iter":
        return len(over.args) > 1
    names = _names(over) | {one.attr for one in ast.walk(over) if isinstance(one, ast.Attribute)}
    parts = {part for name in names for part in name.lower().split("_")}
    return not (_ENDLESS.isdisjoint(_called(over)) and _QUEUES.isdisjoint(parts))


def _results(loop: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> list[ast.expr]:
    parts = [loop.key, loop.value] if isinstance(loop, ast.DictComp) else [loop.elt]
    return [*parts, *loop.generators[-1].ifs]


def _called(expression: ast.AST) -> set[str]:
    """The names of the functions and methods that an expression or statement calls."""
    functions = [one.func for one in ast.walk(expression) if isinstance(one, ast.Call)]
    names = {one.attr for one in functions if isinstance(one, ast.Attribute)}
    return names | {one.id for one in functions if isinstance(one, ast.Name)}


def _names(target: ast.expr) -> set[str]:
    return {one.id for one in ast.walk(target) if isinstance(one, ast.Name)}


def _used(body: Sequence[ast.AST]) -> set[str]:
    used = [one for part in body for one in ast.walk(part) if isinstance(one, ast.Name)]
    return {one.id for one in used if isinstance(one.ctx, ast.Load)}


@lru_cache(maxsize=256)
def _around(source: str, line: int) -> tuple[ast.AST, ...]:
    """The loops and blocks around a line, in its function, the outermost first."""
    found: list[ast.AST] = []
    for node in ast.walk(function_at(source, line)):
        if isinstance(node, (*_LOOPS, *_BLOCKS)) and line <= (node.end_lineno or 0):
            first = node.lineno
            if isinstance(node, (*FORS, *_BLOCKS)):
                first = node.body[0].lineno  # what is in its head is outside
            if first <= line:
                found.append(node)
    return tuple(found)

"""Reads in the source what a loop goes over, and whether it is around a `with` block."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeGuard

from session_tracer.where.syntax import function_at, parsed, source_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_tracer.where.callsite import CallSite

__all__ = [
    "Iteration",
    "asks_by_item",
    "goes_on_after_errors",
    "goes_over",
    "goes_over_chunks",
    "goes_turn_by_turn",
    "is_around_block",
    "is_over_items",
    "takes_messages",
]

# What a loop goes over: items that its body uses, or lists of items, each of which has a key.
Iteration: TypeAlias = Literal["", "items", "groups"]

_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS: Final = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_LOOPS: Final = (ast.For, ast.AsyncFor, ast.While, *_COMPREHENSIONS)
_BLOCKS: Final = (ast.With, ast.AsyncWith)
_LEAVING: Final = (ast.Raise, ast.Return, ast.Break)
_COUNTING: Final = frozenset({"range", "count", "repeat", "cycle"})
_GROUPING: Final = frozenset({"items", "groupby"})
# Number of arguments of `range()` with a step, and parts of the names of what makes chunks.
_STEP: Final = 3
_CHUNKS: Final = ("batch", "chunk", "islice", "partition", "slices")
_ENDLESS: Final = frozenset({"count", "cycle"})
# Parts of the names of what hands over one message after the other.
_QUEUES: Final = frozenset(
    {"channel", "consume", "consumer", "listen", "listener", "poll", "pubsub", "queue"}
    | {"receive", "subscribe", "subscriber", "subscription"}
)


def is_around_block(site: CallSite, function: str) -> bool:
    """Return whether a loop is around the `with` that calls the function and has the line in it."""
    name = function.rpartition(".")[2]
    is_in_loop = False
    for node in _around(source_of(site.file), site.line):
        if isinstance(node, _BLOCKS):
            if is_in_loop and any(name in _called(item.context_expr) for item in node.items):
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
    if not _COUNTING.isdisjoint(_called(over)) or _names(target).isdisjoint(_used(body)):
        return ""
    return "items" if _GROUPING.isdisjoint(_called(over)) else "groups"


def asks_by_item(loop: CallSite, site: CallSite) -> bool:
    """Return whether the item of a loop decides what a line asks for.

    Args:
        loop: The line in the loop that asks, or that calls the function which asks.
        site: The line that asks.
    """
    parts = _parts(_innermost(loop))
    if parts is None or not _passes(parts[2], loop.line, _names(parts[0])):
        return False
    if (loop.file, loop.line) == (site.file, site.line):
        return True
    function = function_at(source_of(site.file), site.line)
    if isinstance(function, ast.Module):
        return False
    given = function.args
    names = {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
    return _passes(function.body, site.line, names)


def _passes(body: Sequence[ast.AST], line: int, names: set[str]) -> bool:
    """Whether a call at the line has an argument that depends on these names."""
    nodes = [node for part in body for node in ast.walk(part)]
    known, number = set(names), -1
    while number < len(known):
        number = len(known)
        for node in nodes:
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and (
                node.value is not None and not known.isdisjoint(_used([node.value]))
            ):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                known |= {one.id for to in targets for one in ast.walk(to) if _is_set(one)}
    arguments = [
        argument
        for node in nodes
        if isinstance(node, ast.Call) and node.lineno <= line <= (node.end_lineno or 0)
        for argument in (*node.args, *(one.value for one in node.keywords))
    ]
    return not known.isdisjoint(_used(arguments))


def _is_set(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def goes_over_chunks(site: CallSite) -> bool:
    """Return whether the innermost loop around the line goes over parts of a list.

    It counts in steps, or goes over what a function or variable of such a name has made.
    """
    loop = _innermost(site)
    if isinstance(loop, ast.For | ast.AsyncFor):
        over = loop.iter
    elif isinstance(loop, _COMPREHENSIONS):
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

    That is a `while`, unless it goes over a list by index.
    """
    loop = _innermost(site)
    return isinstance(loop, ast.While) and "len" not in _called(loop.test)


def goes_on_after_errors(site: CallSite) -> bool:
    """Return whether the innermost loop around the line catches an item's error and goes on."""
    loop = _innermost(site)
    return isinstance(loop, (ast.For, ast.AsyncFor, ast.While)) and any(
        isinstance(node, ast.Try)
        and node.body[0].lineno <= site.line <= (node.body[-1].end_lineno or 0)
        and not all(isinstance(handler.body[-1], _LEAVING) for handler in node.handlers)
        for node in ast.walk(loop)
    )


def is_over_items(site: CallSite) -> bool:
    """Return whether the loops around the line go over items that are there when they begin.

    A worker takes its next job in a `while`, an `async for` or from a queue. Whether it has to wait
    for the job depends on how much there is to do.
    """
    loops = _loops(site)
    return bool(loops) and all(map(_has_items, loops))


def takes_messages(site: CallSite) -> bool:
    """Return whether the innermost loop around the line takes one message of a queue after another.

    A `get()` without a key is a queue's, not that of a dictionary or a session.
    """
    loop = _innermost(site)
    if isinstance(loop, ast.For | ast.AsyncFor):
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
    return next(reversed(_loops(site)), None)


def _loops(site: CallSite) -> list[ast.AST]:
    """The loops around a line that call a function, the outermost first."""
    loops = [node for node in _around(source_of(site.file), site.line) if isinstance(node, _LOOPS)]
    return [
        loop
        for loop in loops
        if not isinstance(loop, _COMPREHENSIONS) or any(map(_called, _results(loop)))
    ]


def _parts(loop: ast.AST | None) -> tuple[ast.expr, ast.expr, Sequence[ast.AST]] | None:
    """The target of a loop, what it goes over, and what it runs for each item."""
    if isinstance(loop, ast.For | ast.AsyncFor):
        return loop.target, loop.iter, loop.body
    if isinstance(loop, _COMPREHENSIONS):
        last = loop.generators[-1]
        return last.target, last.iter, _results(loop)
    return None


def _has_items(loop: ast.AST) -> bool:
    if isinstance(loop, ast.For):
        return not _is_endless(loop.iter)
    if isinstance(loop, _COMPREHENSIONS):
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


def _called(expression: ast.expr) -> set[str]:
    """The names of the functions and methods that an expression calls."""
    functions = [one.func for one in ast.walk(expression) if isinstance(one, ast.Call)]
    names = {one.attr for one in functions if isinstance(one, ast.Attribute)}
    return names | {one.id for one in functions if isinstance(one, ast.Name)}


def _names(target: ast.expr) -> set[str]:
    return {one.id for one in ast.walk(target) if isinstance(one, ast.Name)}


def _used(body: Sequence[ast.AST]) -> set[str]:
    used = [one for part in body for one in ast.walk(part) if isinstance(one, ast.Name)]
    return {one.id for one in used if isinstance(one.ctx, ast.Load)}


@lru_cache(maxsize=64)
def _around(source: str, line: int) -> tuple[ast.AST, ...]:
    """The loops and blocks around a line, in its function, the outermost first."""
    tree = parsed(source)
    found: list[ast.AST] = []
    for node in () if tree is None else ast.walk(tree):
        first = getattr(node, "lineno", 0)
        if isinstance(node, (*_FUNCTIONS, *_LOOPS, *_BLOCKS)) and line <= (node.end_lineno or 0):
            if isinstance(node, (*_FUNCTIONS, ast.For, ast.AsyncFor, *_BLOCKS)):
                first = node.body[0].lineno  # what is in its head is outside
            if isinstance(node, _FUNCTIONS) and first <= line:
                found.clear()
            elif first <= line:
                found.append(node)
    return tuple(found)

"""Reads in the source whether a loop waits for the answer of what runs in it: whether it polls."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from session_tracer.where.flow import ASSIGNMENTS, Flow, names_of, targets, used
from session_tracer.where.syntax import (
    COMPREHENSIONS,
    COUNTING,
    FORS,
    FUNCTIONS,
    function_at,
    is_at,
    own_nodes,
    source_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from session_tracer.where.callsite import CallSite

__all__ = ["is_poll", "is_retry"]

_LOOPS: Final = (*FORS, ast.While)
# What reads a generator up to its first answer.
_ENDING: Final = frozenset({"any", "all", "next"})
_LOGGING: Final = frozenset({"print", "log", "debug", "info", "warning", "error", "exception"})


def is_poll(lines: Sequence[CallSite]) -> bool:
    """Return whether a loop is left depending on the answer of what one of its lines asks.

    Such a loop waits for a change: the answer cannot be kept. A loop over items does so only if
    the answer decides nothing else, and if the items have no part in that.

    Args:
        lines: The line that asks, the lines that called its function, and last that of the loop.
    """
    *inside, loop = lines
    called = [one for one in inside if not one.function.endswith("<lambda>")]
    return all(_is_passed_on(source_of(one.file), one.line) for one in called) and _is_left(
        source_of(loop.file), loop.line
    )


def is_retry(site: CallSite, opened: int = 0) -> bool:
    """Return whether a loop is around a line, which only an exception can lead back to.

    A loop that is also around the line `opened` of the function, which opens the session, has
    another session in each turn.
    """
    function = function_at(source_of(site.file), site.line)
    return any(_holds(one, site.line) and not _holds(one, opened) for one in own_nodes(function))


@lru_cache(maxsize=256)
def _is_passed_on(source: str, line: int) -> bool:
    """Whether the answer at the line decides what its function returns, or whether it raises."""
    flow = Flow(function_at(source, line), line)
    return any(
        flow.has(node.value)
        if isinstance(node, (ast.Return, ast.Yield))
        else isinstance(node, ast.If)
        and flow.has(node.test)
        and _leaves((*node.body, *node.orelse))
        for node in flow.nodes
    )


@lru_cache(maxsize=256)
def _is_left(source: str, line: int) -> bool:
    """Whether a loop around the line is left depending on the answer at the line."""
    function = function_at(source, line)
    nodes = list(own_nodes(function))
    calls = [node for node in nodes if isinstance(node, ast.Call) and _name(node) in _ENDING]
    for loop in nodes:
        if not _holds(loop, line):
            continue
        if isinstance(loop, ast.GeneratorExp):
            if any(loop in call.args for call in calls) and not _is_about_items(loop):
                return True
        elif isinstance(loop, _LOOPS) and _is_poll(loop, Flow(loop, line)):
            return True
    return False


def _is_poll(loop: ast.For | ast.AsyncFor | ast.While, flow: Flow) -> bool:
    conditions = list(_conditions(loop, flow))
    if not conditions or isinstance(loop, ast.While) or not _has_items(loop, loop.body):
        return bool(conditions)
    items = Flow(loop, 0, names_of(loop.target))
    return not (any(map(items.has, conditions)) or _is_used(loop.body, flow, items, conditions))


def _conditions(loop: ast.For | ast.AsyncFor | ast.While, flow: Flow) -> Iterator[ast.expr]:
    """Yield the conditions on which the loop is left, and of which the answer is a part."""
    if isinstance(loop, ast.While):
        if flow.has(loop.test):
            yield loop.test
    elif _has_sentinel(loop):
        yield loop.iter
    for node in flow.nodes:
        if isinstance(node, FORS):
            test = node.iter
        elif isinstance(node, (ast.If, ast.Match)):
            test = node.test if isinstance(node, ast.If) else node.subject
        else:
            continue
        goes_on = any(isinstance(one, ast.Continue) for one in own_nodes(node))
        if flow.has(test) and (_leaves([node]) or (goes_on and _ends(loop.body))):
            yield test


def _is_used(
    nodes: Sequence[ast.AST], flow: Flow, items: Flow, conditions: Sequence[ast.expr]
) -> bool:
    """Whether the answer is used for anything but to leave the loop, and to be logged."""
    for node in nodes:
        if isinstance(node, ast.If) and node.test in conditions:
            stays = [part for part in (node.body, node.orelse) if not _leaves(part)]
            if any(_is_used(part, flow, items, conditions) for part in stays):
                return True
        elif isinstance(node, ASSIGNMENTS):
            if flow.has(node.value) and any(map(items.has, [node.value, *targets(node)])):
                return True
        elif not (isinstance(node, ast.Expr) and _name(_awaited(node.value)) in _LOGGING):
            inner = list(ast.iter_child_nodes(node))
            if any(flow.has(one) for one in inner if isinstance(one, ast.expr)) or _is_used(
                [one for one in inner if not isinstance(one, ast.expr)], flow, items, conditions
            ):
                return True
    return False


def _holds(loop: ast.AST, line: int) -> bool:
    """Whether the node is a loop that runs the line again and again."""
    if isinstance(loop, FORS) and line < loop.body[0].lineno:
        return _has_sentinel(loop) and is_at(loop.iter, line)
    is_loop = isinstance(loop, (*_LOOPS, *COMPREHENSIONS))
    return is_loop and is_at(loop, line)


def _leaves(nodes: Iterable[ast.AST], *, is_inner: bool = False) -> bool:
    """Whether one of the nodes leaves the loop that they are in."""
    for node in nodes:
        if isinstance(node, (ast.Return, ast.Raise)) or (
            isinstance(node, ast.Break) and not is_inner
        ):
            return True
        inner = is_inner or isinstance(node, _LOOPS)
        if not isinstance(node, FUNCTIONS) and _leaves(ast.iter_child_nodes(node), is_inner=inner):
            return True
    return False


def _ends(body: Sequence[ast.stmt]) -> bool:
    """Whether a loop is left at the end of its body."""
    last = body[-1]
    if isinstance(last, (ast.With, ast.AsyncWith, ast.Try)):
        return _ends(last.body)
    return isinstance(last, (ast.Return, ast.Raise, ast.Break))


def _has_sentinel(loop: ast.For | ast.AsyncFor) -> bool:
    """Whether it is `for answer in iter(ask, "done")`."""
    call = loop.iter
    return isinstance(call, ast.Call) and _name(call) == "iter" and len(call.args) > 1


def _has_items(loop: ast.For | ast.AsyncFor | ast.comprehension, body: Sequence[ast.AST]) -> bool:
    """Whether it goes over items. A number that is an index stands for one."""
    names = names_of(loop.target)
    indices = [
        one.slice for part in body for one in ast.walk(part) if isinstance(one, ast.Subscript)
    ]
    counts = any(_name(one) in COUNTING for one in ast.walk(loop.iter))
    is_item = not counts or any(not names.isdisjoint(used(one)) for one in indices)
    return is_item and not (isinstance(loop, FORS) and _has_sentinel(loop))


def _is_about_items(loop: ast.GeneratorExp) -> bool:
    """Whether what a generator yields depends on the items that it goes over."""
    tests = [loop.elt, *(test for one in loop.generators for test in one.ifs)]
    over = [one for one in loop.generators if _has_items(one, tests)]
    names = names_of(*(one.target for one in over))
    return any(not names.isdisjoint(used(test)) for test in tests)


def _name(node: ast.AST) -> str:
    """The name of the function or method that a node calls; empty if it is no call."""
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _awaited(node: ast.expr) -> ast.expr:
    return node.value if isinstance(node, ast.Await) else node

"""Reads in the source whether a loop waits for the answer of what runs in it: whether it polls."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from session_tracer.where.syntax import function_at, source_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from session_tracer.where.callsite import CallSite

__all__ = ["is_poll", "is_retry"]

_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_FORS: Final = (ast.For, ast.AsyncFor)
_COMPREHENSIONS: Final = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_LOOPS: Final = (*_FORS, ast.While)
_ASSIGNMENTS: Final = (ast.Assign, ast.AnnAssign, ast.NamedExpr)
# What a loop goes over if it only counts, and what reads a generator up to its first answer.
_COUNTING: Final = frozenset({"range", "count", "repeat", "cycle"})
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
    return any(_holds(one, site.line) and not _holds(one, opened) for one in _own(function))


@lru_cache(maxsize=64)
def _is_passed_on(source: str, line: int) -> bool:
    """Whether the answer at the line decides what its function returns, or whether it raises."""
    flow = _Flow(function_at(source, line), line)
    return any(
        flow.has(node.value)
        if isinstance(node, (ast.Return, ast.Yield))
        else isinstance(node, ast.If)
        and flow.has(node.test)
        and _leaves((*node.body, *node.orelse))
        for node in flow.nodes
    )


@lru_cache(maxsize=64)
def _is_left(source: str, line: int) -> bool:
    """Whether a loop around the line is left depending on the answer at the line."""
    function = function_at(source, line)
    nodes = list(_own(function))
    calls = [node for node in nodes if isinstance(node, ast.Call) and _name(node) in _ENDING]
    for loop in nodes:
        if not _holds(loop, line):
            continue
        if isinstance(loop, ast.GeneratorExp):
            if any(loop in call.args for call in calls) and not _is_about_items(loop):
                return True
        elif isinstance(loop, _LOOPS) and _is_poll(loop, _Flow(loop, line)):
            return True
    return False


def _is_poll(loop: ast.For | ast.AsyncFor | ast.While, flow: _Flow) -> bool:
    conditions = list(_conditions(loop, flow))
    if not conditions or isinstance(loop, ast.While) or not _has_items(loop, loop.body):
        return bool(conditions)
    items = _Flow(loop, 0, _names(loop.target))
    return not (any(map(items.has, conditions)) or _is_used(loop.body, flow, items, conditions))


def _conditions(loop: ast.For | ast.AsyncFor | ast.While, flow: _Flow) -> Iterator[ast.expr]:
    """Yield the conditions on which the loop is left, and of which the answer is a part."""
    if isinstance(loop, ast.While):
        if flow.has(loop.test):
            yield loop.test
    elif _has_sentinel(loop):
        yield loop.iter
    for node in flow.nodes:
        if isinstance(node, _FORS):
            test = node.iter
        elif isinstance(node, (ast.If, ast.Match)):
            test = node.test if isinstance(node, ast.If) else node.subject
        else:
            continue
        goes_on = any(isinstance(one, ast.Continue) for one in _own(node))
        if flow.has(test) and (_leaves([node]) or (goes_on and _ends(loop.body))):
            yield test


def _is_used(
    nodes: Sequence[ast.AST], flow: _Flow, items: _Flow, conditions: Sequence[ast.expr]
) -> bool:
    """Whether the answer is used for anything but to leave the loop, and to be logged."""
    for node in nodes:
        if isinstance(node, ast.If) and node.test in conditions:
            stays = [part for part in (node.body, node.orelse) if not _leaves(part)]
            if any(_is_used(part, flow, items, conditions) for part in stays):
                return True
        elif isinstance(node, _ASSIGNMENTS):
            if flow.has(node.value) and any(map(items.has, [node.value, *_targets(node)])):
                return True
        elif not (isinstance(node, ast.Expr) and _name(_awaited(node.value)) in _LOGGING):
            inner = list(ast.iter_child_nodes(node))
            if any(flow.has(one) for one in inner if isinstance(one, ast.expr)) or _is_used(
                [one for one in inner if not isinstance(one, ast.expr)], flow, items, conditions
            ):
                return True
    return False


class _Flow:
    """The names of a function, or of a loop, that depend on others or on the answer at a line."""

    def __init__(self, within: ast.AST, line: int, names: Iterable[str] = ()) -> None:
        self.nodes = list(_own(within))
        self._line = line
        self._names = set(names)
        number = -1
        while number < len(self._names):
            number = len(self._names)
            for node in self.nodes:
                self._names |= self._following(node)

    def has(self, node: ast.AST | None) -> bool:
        """Return whether an expression has one of these names in it, or the line."""
        return node is not None and (
            _is_at(node, self._line) or not self._names.isdisjoint(_used(node))
        )

    def _following(self, node: ast.AST) -> set[str]:
        """The names that depend on what a node reads."""
        if isinstance(node, (*_ASSIGNMENTS, ast.AugAssign)) and self.has(node.value):
            return _names(*_targets(node))
        if isinstance(node, (*_FORS, ast.comprehension)) and self.has(node.iter):
            return _names(node.target)
        if isinstance(node, ast.withitem) and self.has(node.context_expr):
            return _names(node.optional_vars)
        if isinstance(node, ast.If) and self.has(node.test):
            return _names(*(to for one in _own(node) for to in _targets(one)))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            # `found.append(answer)`
            call = node.value
            if isinstance(call.func, ast.Attribute) and any(map(self.has, call.args)):
                return set() if _is_at(call.func, self._line) else _names(call.func.value)
        return set()


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is in a node and not in a function that is defined in it."""
    nodes = [*ast.iter_child_nodes(node)]
    for one in nodes:  # which grows as it is read
        yield one
        if not isinstance(one, _FUNCTIONS):
            nodes.extend(ast.iter_child_nodes(one))


def _is_at(node: ast.AST, line: int) -> bool:
    first = getattr(node, "lineno", None)
    return first is not None and first <= line <= (getattr(node, "end_lineno", None) or first)


def _holds(loop: ast.AST, line: int) -> bool:
    """Whether the node is a loop that runs the line again and again."""
    if isinstance(loop, _FORS) and line < loop.body[0].lineno:
        return _has_sentinel(loop) and _is_at(loop.iter, line)
    is_loop = isinstance(loop, (*_LOOPS, *_COMPREHENSIONS))
    return is_loop and _is_at(loop, line)


def _leaves(nodes: Iterable[ast.AST], *, is_inner: bool = False) -> bool:
    """Whether one of the nodes leaves the loop that they are in."""
    for node in nodes:
        if isinstance(node, (ast.Return, ast.Raise)) or (
            isinstance(node, ast.Break) and not is_inner
        ):
            return True
        inner = is_inner or isinstance(node, _LOOPS)
        if not isinstance(node, _FUNCTIONS) and _leaves(ast.iter_child_nodes(node), is_inner=inner):
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
    names = _names(loop.target)
    indices = [
        one.slice for part in body for one in ast.walk(part) if isinstance(one, ast.Subscript)
    ]
    counts = any(_name(one) in _COUNTING for one in ast.walk(loop.iter))
    is_item = not counts or any(not names.isdisjoint(_used(one)) for one in indices)
    return is_item and not (isinstance(loop, _FORS) and _has_sentinel(loop))


def _is_about_items(loop: ast.GeneratorExp) -> bool:
    """Whether what a generator yields depends on the items that it goes over."""
    tests = [loop.elt, *(test for one in loop.generators for test in one.ifs)]
    over = [one for one in loop.generators if _has_items(one, tests)]
    names = _names(*(one.target for one in over))
    return any(not names.isdisjoint(_used(test)) for test in tests)


def _targets(node: ast.AST) -> list[ast.expr]:
    """What an assignment assigns to."""
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, (ast.AnnAssign, ast.NamedExpr, ast.AugAssign)) else []


def _names(*targets: ast.expr | None) -> set[str]:
    """The names that targets give a value: `job`, `self.job`, and `jobs` for `jobs[0]`."""
    names: set[str] = set()
    for target in targets:
        if isinstance(target, (ast.Tuple, ast.List)):
            names |= _names(*target.elts)
        elif isinstance(target, (ast.Subscript, ast.Starred)):
            names |= _names(target.value)
        elif isinstance(target, (ast.Name, ast.Attribute)):
            names.add(ast.unparse(target))
    return names


def _used(node: ast.AST) -> set[str]:
    """The names and attributes in a node."""
    used = [one for one in ast.walk(node) if isinstance(one, (ast.Name, ast.Attribute))]
    return {ast.unparse(one) for one in used}


def _name(node: ast.AST) -> str:
    """The name of the function or method that a node calls; empty if it is no call."""
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _awaited(node: ast.expr) -> ast.expr:
    return node.value if isinstance(node, ast.Await) else node

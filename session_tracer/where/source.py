"""Reads what is written at a line of the application."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import TYPE_CHECKING

from session_tracer.where.syntax import function_at, is_at, own_nodes, source_of

if TYPE_CHECKING:
    from session_tracer.where.callsite import CallSite

__all__ = ["calls_at", "is_for_any_class", "removed_at"]


def calls_at(site: CallSite) -> frozenset[str] | None:
    """Return the names of the functions and methods that the statement at the line calls.

    Returns:
        The names without what they are attributes of, or None if the source cannot be read.
    """
    source = source_of(site.file)
    return _calls(source, site.line) if source else None


@lru_cache(maxsize=256)
def _calls(source: str, line: int) -> frozenset[str] | None:
    around = function_at(source, line)
    if not around.body:
        return None
    names: set[str] = set()
    for node in ast.walk(around):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            # The innermost statement comes last; of a block, only its head counts.
            names = {
                name
                for part in _head(node)
                for call in ast.walk(part)
                if isinstance(call, ast.Call) and (name := _name(call.func))
            }
    return frozenset(names)


def removed_at(site: CallSite) -> int:
    """Return the line at which a function removes the session of the registry that `site` calls.

    It is 0 if only the handler of an exception does, or the function does not: another call of it
    has the same session.
    """
    return _removed_at(source_of(site.file), site.line)


@lru_cache(maxsize=256)
def _removed_at(source: str, line: int) -> int:
    own = list(own_nodes(function_at(source, line)))
    names = {ast.unparse(one) for one in own if isinstance(one, ast.expr) and is_at(one, line)}
    in_handler = {
        node for one in own if isinstance(one, ast.ExceptHandler) for node in ast.walk(one)
    }
    for one in own:
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and not one.args:
            is_removed = one.func.attr == "remove" and ast.unparse(one.func.value) in names
            if is_removed and one not in in_handler:
                return one.lineno
    return 0


def is_for_any_class(site: CallSite) -> bool:
    """Return whether the function of the line selects objects of a class that its caller names.

    That is `select(model)` or `session.get(self.model, key)`, for a parameter of the function.
    """
    return _selects_parameter(source_of(site.file), site.line)


@lru_cache(maxsize=256)
def _selects_parameter(source: str, line: int) -> bool:
    function = function_at(source, line)
    if isinstance(function, ast.Module):
        return False
    named = function.args
    parameters = {one.arg for one in [*named.posonlyargs, *named.args, *named.kwonlyargs]}
    return any(
        isinstance(call, ast.Call) and _selected_by(call) in parameters
        for call in ast.walk(function)
    )


def _selected_by(call: ast.Call) -> str | None:
    """Return the variable that has the class which the call selects, or has it as an attribute."""
    name = _name(call.func)
    # A dictionary's `get` may have a single argument.
    if not call.args or not (name in _SELECTS or (name in _GETS and len(call.args) > 1)):
        return None
    selected = call.args[0]
    while isinstance(selected, ast.Attribute):
        selected = selected.value
    return selected.id if isinstance(selected, ast.Name) else None


_SELECTS = frozenset({"select", "query"})
_GETS = frozenset({"get", "get_one"})


def _head(statement: ast.stmt) -> list[ast.AST]:
    return [
        part
        for part in ast.iter_child_nodes(statement)
        if not isinstance(part, (ast.stmt, ast.ExceptHandler, ast.match_case))
    ]


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""

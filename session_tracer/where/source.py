"""Reads what is written at a line of the application."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import TYPE_CHECKING

from session_tracer.where.syntax import parsed, source_of

if TYPE_CHECKING:
    from session_tracer.where.callsite import CallSite

__all__ = ["calls_at"]


def calls_at(site: CallSite) -> frozenset[str] | None:
    """Return the names of the functions and methods that the statement at the line calls.

    Returns:
        The names without what they are attributes of, or None if the source cannot be read.
    """
    source = source_of(site.file)
    return _calls(source, site.line) if source else None


@lru_cache(maxsize=64)
def _calls(source: str, line: int) -> frozenset[str] | None:
    tree = parsed(source)
    if tree is None:
        return None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            # The innermost statement comes last; of a block, only its head counts.
            names = {
                name
                for part in _head(node)
                for call in ast.walk(part)
                if isinstance(call, ast.Call) and (name := _name(call.func))
            }
    return frozenset(names)


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

"""Which names of a function depend on others, or on the answer at a line."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final

from session_tracer.where.syntax import FORS, is_at, own_nodes

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ASSIGNMENTS", "Flow", "names_of", "targets", "used"]

ASSIGNMENTS: Final = (ast.Assign, ast.AnnAssign, ast.NamedExpr)


class Flow:
    """The names of a function, or of a loop, that depend on others or on the answer at a line."""

    def __init__(self, within: ast.AST, line: int, names: Iterable[str] = ()) -> None:
        self.nodes = list(own_nodes(within))
        self._line = line
        self._names = set(names)
        number = -1
        while number < len(self._names):
            number = len(self._names)
            for node in self.nodes:
                self._names |= self._following(node)

    def has(self, node: ast.AST | None) -> bool:
        """Return whether an expression has one of these names in it, or the line."""
        return node is not None and (is_at(node, self._line) or self.has_name(node))

    def has_name(self, node: ast.AST) -> bool:
        """Return whether an expression has one of these names in it, at whatever line it is."""
        return not self._names.isdisjoint(used(node))

    def _following(self, node: ast.AST) -> set[str]:
        """The names that depend on what a node reads."""
        if isinstance(node, (*ASSIGNMENTS, ast.AugAssign)) and self.has(node.value):
            return names_of(*targets(node))
        if isinstance(node, (*FORS, ast.comprehension)) and self.has(node.iter):
            return names_of(node.target)
        if isinstance(node, ast.withitem) and self.has(node.context_expr):
            return names_of(node.optional_vars)
        if isinstance(node, ast.If) and self.has(node.test):
            return names_of(*(to for one in own_nodes(node) for to in targets(one)))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            # `found.append(answer)`
            call = node.value
            if isinstance(call.func, ast.Attribute) and any(map(self.has, call.args)):
                return set() if is_at(call.func, self._line) else names_of(call.func.value)
        return set()


def targets(node: ast.AST) -> list[ast.expr]:
    """Return what an assignment assigns to."""
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, (ast.AnnAssign, ast.NamedExpr, ast.AugAssign)) else []


def names_of(*assigned: ast.expr | None) -> set[str]:
    """Return the names that are given a value: `job`, `self.job`, and `jobs` for `jobs[0]`."""
    names: set[str] = set()
    for target in assigned:
        if isinstance(target, (ast.Tuple, ast.List)):
            names |= names_of(*target.elts)
        elif isinstance(target, (ast.Subscript, ast.Starred)):
            names |= names_of(target.value)
        elif isinstance(target, (ast.Name, ast.Attribute)):
            names.add(ast.unparse(target))
    return names


def used(node: ast.AST) -> set[str]:
    """Return the names and attributes in a node."""
    return {
        ast.unparse(one) for one in ast.walk(node) if isinstance(one, (ast.Name, ast.Attribute))
    }

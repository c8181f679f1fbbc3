"""Parses the source of a file of the application, and goes through its syntax tree."""

from __future__ import annotations

import ast
import linecache
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "COMPREHENSIONS",
    "COUNTING",
    "FORS",
    "FUNCTIONS",
    "function_at",
    "is_at",
    "own_nodes",
    "parsed",
    "source_of",
]

FORS: Final = (ast.For, ast.AsyncFor)
COMPREHENSIONS: Final = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_NAMED: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
# What a loop goes over if it only counts.
COUNTING: Final = frozenset({"range", "count", "repeat", "cycle"})

_MOST_FILES: Final = 64
# The lines of each file as `linecache` has them, and their text, which is one object for all keys.
_TEXTS: Final[dict[str, tuple[list[str], str]]] = {}

# Enough that another failure is not by chance: each needs a garbage collection at the wrong moment.
_ATTEMPTS: Final = 5


def source_of(file: str) -> str:
    """Return the present source of a file, or an empty text if it cannot be read."""
    linecache.checkcache(file)
    lines = linecache.getlines(file)
    known = _TEXTS.get(file)
    if known is None or known[0] is not lines:
        if len(_TEXTS) >= _MOST_FILES:
            _TEXTS.clear()
        known = _TEXTS[file] = (lines, "".join(lines))
    return known[1]


def parsed(source: str) -> ast.Module | None:
    """Return the syntax tree of a source, or None if it cannot be parsed.

    Python 3.11 counts the depth of the tree that it builds in a variable of the whole interpreter.
    A garbage collection can run another thread, or a finalizer, that parses meanwhile; `ast.parse`
    then raises SystemError for a right source. A lock would not help: the other one may be the
    application, or the same thread.
    """
    for _ in range(_ATTEMPTS):
        try:
            return ast.parse(source)
        except SystemError:
            continue
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    return None


@lru_cache(maxsize=256)
def function_at(source: str, line: int) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.Module:
    """Return the innermost function with a name whose body has the line, or the module.

    The tree of a whole source is large and is not kept, unless lines of no function are asked for:
    of each function, only its own lines are parsed again.
    """
    around = [one for one in _functions(source) if one.body <= line <= one.end]
    if not around:
        return _module(source)
    first, _, end = around[-1]
    text = "\n".join(source.split("\n")[first - 1 : end])
    # What is indented is the body of something.
    before = "if 1:\n" if text[:1].isspace() else ""
    tree = parsed(before + text) or _module(source)
    found = next(one for one in ast.walk(tree) if isinstance(one, _NAMED))
    return ast.increment_lineno(found, first - 1 - before.count("\n"))


class _Lines(NamedTuple):
    """The lines at which a function, its decorators included, and its body begin, and its end."""

    first: int
    body: int
    end: int


@lru_cache(maxsize=_MOST_FILES)
def _functions(source: str) -> tuple[_Lines, ...]:
    """Return the lines of each function with a name, the outer ones first."""
    tree = parsed(source) or ast.Module([], [])
    found = [node for node in ast.walk(tree) if isinstance(node, _NAMED)]
    lines = [
        _Lines(
            min(part.lineno for part in (node, *node.decorator_list)),
            node.body[0].lineno,
            node.end_lineno or 0,
        )
        for node in found
    ]
    return tuple(sorted(lines))


@lru_cache(maxsize=4)
def _module(source: str) -> ast.Module:
    return parsed(source) or ast.Module([], [])


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is in a node and not in a function that is defined in it."""
    nodes = [*ast.iter_child_nodes(node)]
    for one in nodes:  # which grows as it is read
        yield one
        if not isinstance(one, FUNCTIONS):
            nodes.extend(ast.iter_child_nodes(one))


def is_at(node: ast.AST, line: int) -> bool:
    """Return whether a node is written at the line, or around it."""
    first = getattr(node, "lineno", None)
    return first is not None and first <= line <= (getattr(node, "end_lineno", None) or first)

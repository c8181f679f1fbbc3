"""Reads in the source whether a line ends a block, and whether code runs inside of one."""

from __future__ import annotations

import ast
import linecache
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from session_tracer.where.syntax import FORS, FUNCTIONS, own_nodes, parsed, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from session_tracer.where.callsite import CallSite

__all__ = [
    "block_around",
    "block_of",
    "blocks_of",
    "head_of",
    "is_end_of_block",
    "is_inside_block",
    "managers_of",
    "took_from_generator",
]

# session_tracer's own blocks, in which sessions are traced.
_OWN: Final = frozenset({"capture", "instrument", "silence"})
_LOOPS: Final = (*FORS, ast.While)
_CLOSING: Final = frozenset({"aclose", "close", "invalidate", "reset"})


class _Block(NamedTuple):
    """The lines of a `with`, or of a `try` with a `finally`; and those of the `with` itself.

    `managers` are the functions that make its context managers, by name, and the lines that do.
    """

    lines: range
    head: range
    managers: Mapping[str, int] = MappingProxyType({})


class _Generator(NamedTuple):
    """The lines of a generator function, and the lines that close a session at its end."""

    lines: range
    ends: frozenset[int]


_Source: TypeAlias = tuple[tuple[_Block, ...], tuple[_Generator, ...]]


def is_end_of_block(site: CallSite) -> bool:
    """Return whether what ends at the line is a `with` block or a generator.

    A generator ends a session that it has created or yielded, after its last `yield`. A session
    that it only uses, or closes between two items, is closed explicitly.
    """
    blocks, generators = _read(site.file)
    return any(site.line in block.head for block in blocks) or any(
        site.line in generator.ends for generator in generators
    )


def is_inside_block(lines: Sequence[CallSite], closed: CallSite) -> bool:
    """Return whether code runs in a block or generator that was begun after a line had closed one.

    Args:
        lines: The lines that are executed now, the innermost first.
        closed: The line that closed the block. What its function is in, was begun before.
    """
    for site in lines:
        blocks, generators = _read(site.file)
        if any(site.line in generator.lines for generator in generators):
            return True
        is_closer = (site.file, site.function) == (closed.file, closed.function)
        for block in blocks:
            was_begun = is_closer and closed.line in block.lines and closed.line not in block.head
            if site.line in block.lines and not was_begun:
                return True
        if is_closer:
            return False
    return False


def blocks_of(site: CallSite, opened: CallSite) -> int:
    """Return the number of `with` blocks around the line that a session was opened for.

    Args:
        site: The line.
        opened: The line that opens such sessions, in the function, or in the method of the class,
            that makes the context manager of the block.
    """
    return len(_around(site, opened))


def head_of(site: CallSite, opened: CallSite) -> int:
    """Return the line of the outermost `with` that `blocks_of` counts, which makes its manager.

    It is 0 if there is none.
    """
    names = managers_of(opened)
    outermost = next(iter(_around(site, opened)), None)
    made = {} if outermost is None else outermost.managers
    return next((line for name, line in made.items() if name in names), 0)


def block_of(site: CallSite, opened: CallSite) -> CallSite | None:
    """Return the line of the innermost `with` that `blocks_of` counts.

    Args:
        site: The line.
        opened: As for `blocks_of()`.
    """
    around = _around(site, opened)
    return replace(site, line=around[-1].head.start) if around else None


def block_around(lines: Sequence[CallSite]) -> CallSite | None:
    """Return the line of the `with` for which a context manager opens a session, if one does.

    If that block is in another context manager, which is called by a `with` too, it is that one.

    Args:
        lines: The lines that are at work when the session is opened, the innermost first.
    """
    around = None
    for inner, line in pairwise(lines):
        block = block_of(line, inner)
        if block is None:
            break
        around = block
    return around


def managers_of(opened: CallSite) -> frozenset[str]:
    """Return the names of what makes a context manager whose session is opened at the line.

    Other functions of the file may hand on what the first one makes: `with get_db() as session:
    yield session`, and `return get_db()`.
    """
    return _managers_of(opened.file, opened.function)


@lru_cache(maxsize=256)
def _managers_of(file: str, function: str) -> frozenset[str]:
    name = function.removesuffix(".__enter__").removesuffix(".__aenter__").removesuffix(".__init__")
    names = {name.rpartition(".")[2]}
    tree = parsed(source_of(file))
    nodes = [] if tree is None else ast.walk(tree)
    others = [one for one in nodes if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    while found := {one.name for one in others if _hands_on(one, names)} - names:
        names |= found
    return frozenset(names)


def _hands_on(function: ast.FunctionDef | ast.AsyncFunctionDef, names: set[str]) -> bool:
    for one in own_nodes(function):
        if isinstance(one, ast.With | ast.AsyncWith):
            if _has_yield(one.body) and not names.isdisjoint(_managers(one)):
                return True
        elif isinstance(one, ast.Return) and not names.isdisjoint(_made(one.value)):
            return True
    return False


def _around(site: CallSite, opened: CallSite) -> list[_Block]:
    """Return the blocks around a line that make such a manager, the outermost first."""
    blocks, _ = _read(site.file)
    names = managers_of(opened)
    return [one for one in blocks if site.line in one.lines and not names.isdisjoint(one.managers)]


def took_from_generator(site: CallSite, generator: CallSite) -> bool:
    """Return whether the line takes a value from that generator, and no more of it."""
    line = linecache.getline(site.file, site.line)
    return "next(" in line or generator.function.rpartition(".")[2] in line


@lru_cache(maxsize=64)
def _read(file: str) -> _Source:
    """Return the blocks and the generator functions of a file; none if it cannot be read."""
    tree = parsed(source_of(file))
    if tree is None:
        return (), ()
    blocks, generators = [], []
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith) and not _is_own(node):
            head = range(node.lineno, node.body[0].lineno)
            head = head or range(node.lineno, node.lineno + 1)
            blocks.append(_Block(_lines(node), head, _managers(node)))
        elif isinstance(node, ast.Try | ast.TryStar) and node.finalbody:
            blocks.append(_Block(_lines(node), range(0)))
        elif isinstance(node, FUNCTIONS):
            own = list(own_nodes(node))
            if any(map(_yields, own)):
                generators.append(_Generator(_lines(node), _ends(own)))
    return tuple(blocks), tuple(generators)


def _is_own(node: ast.With | ast.AsyncWith) -> bool:
    return not _OWN.isdisjoint(_managers(node))


def _managers(node: ast.With | ast.AsyncWith) -> dict[str, int]:
    return _made(*[item.context_expr for item in node.items])


def _made(*expressions: ast.expr | None) -> dict[str, int]:
    """Return the names of the functions whose results these are, and the lines of the calls."""
    return {
        ast.unparse(one.func).rpartition(".")[2]: one.lineno
        for one in expressions
        if isinstance(one, ast.Call)
    }


def _yields(node: ast.AST) -> bool:
    return isinstance(node, ast.Yield | ast.YieldFrom)


def _ends(own: Sequence[ast.AST]) -> frozenset[int]:
    """Return the lines of a generator that close, at its end, what it has created or yielded.

    `own` are the nodes of its function.
    """
    yields = [one for one in own if isinstance(one, ast.Yield | ast.YieldFrom)]
    lent = {name for one in yields for name in _lent(one.value)}
    lent |= {one.id for one in own if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    within = [_lines(one) for one in own if isinstance(one, _LOOPS) and _has_yield(one.body)]
    at_end = [
        _lines(statement)
        for one in own
        if isinstance(one, ast.Try | ast.TryStar) and _has_yield(one.body)
        for statement in one.finalbody
    ]
    last = max(_lines(one)[-1] for one in yields)
    return frozenset(
        line
        for one in own
        if isinstance(one, ast.Call)
        and isinstance(one.func, ast.Attribute)
        and one.func.attr in _CLOSING
        and ast.unparse(one.func.value) in lent
        for line in _lines(one)
        if any(line in lines for lines in at_end)
        or (line > last and not any(line in lines for lines in within))
    )


def _lent(value: ast.expr | None) -> Iterator[str]:
    """Yield the names in an expression that a generator yields: `db` in `yield Repository(db)`."""
    if isinstance(value, ast.Name | ast.Attribute):
        yield ast.unparse(value)
        return
    parts: list[ast.expr] = []
    if isinstance(value, ast.Call):
        parts = [*value.args, *[one.value for one in value.keywords]]
    elif isinstance(value, ast.Tuple | ast.List):
        parts = value.elts
    for part in parts:
        yield from _lent(part)


def _has_yield(body: list[ast.stmt]) -> bool:
    return any(_yields(part) for one in body for part in ast.walk(one))


def _lines(node: ast.AST) -> range:
    line: int = getattr(node, "lineno", 0)
    return range(line, (getattr(node, "end_lineno", None) or line) + 1)

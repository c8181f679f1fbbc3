"""Which `except` caught an error that nobody heard of any more, read from the source."""

from __future__ import annotations

import ast
import linecache
import os
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from session_tracer.callsite import CallSite

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Failure", "failure", "handler_of"]


class Failure(NamedTuple):
    """An error on its way out: the lines before it, innermost first, and its classes' names."""

    sites: Sequence[CallSite]
    names: frozenset[str]


def failure(error: BaseException | None, sites: Sequence[CallSite]) -> Failure:
    """An error as it leaves these lines."""
    kinds = () if error is None else type(error).__mro__
    return Failure(sites, frozenset(kind.__name__ for kind in kinds))


def handler_of(failed: Failure, here: Sequence[CallSite]) -> CallSite | None:
    """The line of the `except` that must have caught it, if execution went on to `here`.

    From the line where it was raised outwards to the function that both have in common, the first
    handler for such an error that does not raise it on. None where the source does not tell.
    """
    went_on = {(site.file, site.function) for site in here}
    for site in failed.sites:
        line = _handler(site, failed.names)
        if line:
            return CallSite(site.file, line, site.function)
        if (site.file, site.function) in went_on:
            return None  # it was caught by something else, `contextlib.suppress()` perhaps
    return None


def _handler(site: CallSite, names: frozenset[str]) -> int:
    found = 0
    for node in _tries(site.file, _changed_at(site.file)):
        if not node.body[0].lineno <= site.line <= (node.body[-1].end_lineno or 0):
            continue
        for handler in node.handlers:
            if _catches(handler, names):
                # Blocks within one another come from the outside inwards.
                found = 0 if _raises_on(handler) else handler.lineno
                break
    return found


def _changed_at(file: str) -> float:
    try:
        return os.stat(file).st_mtime
    except OSError:
        return 0.0


@lru_cache(maxsize=64)
def _tries(file: str, changed_at: float) -> tuple[ast.Try, ...]:
    del changed_at  # of the key alone: a file may be written anew while the process runs
    linecache.checkcache(file)
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.Try))


def _catches(handler: ast.ExceptHandler, names: frozenset[str]) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(ast.unparse(kind).rpartition(".")[2] in names for kind in kinds)


def _raises_on(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise)

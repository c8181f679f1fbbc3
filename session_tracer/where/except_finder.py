"""Finds the `except` that caught an error, by reading the source."""

from __future__ import annotations

import ast
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from session_tracer.where.callsite import CallSite
from session_tracer.where.syntax import parsed, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Failure", "failure", "handler_of", "is_caught", "is_expected"]


class Failure(NamedTuple):
    """An exception that propagates.

    Attributes:
        sites: The lines that it passes, the innermost first.
        names: The names of its class and base classes.
        is_known: False if it was raised in place of another one. Its class is then read from the
            source, which does not contain its base classes.
    """

    sites: Sequence[CallSite]
    names: frozenset[str]
    is_known: bool = True


def failure(error: BaseException | None, sites: Sequence[CallSite]) -> Failure:
    """Return an exception that passes these lines."""
    kinds = () if error is None else type(error).__mro__
    return Failure(sites, frozenset(kind.__name__ for kind in kinds))


def handler_of(failed: Failure, here: Sequence[CallSite]) -> CallSite | None:
    """Return the line of the `except` or `suppress()` that must have caught the exception.

    It is the first one, from the line where the exception was raised outwards, that catches such an
    exception and does not raise it again.

    Args:
        failed: The exception.
        here: The lines that are executed now, the innermost first.

    Returns:
        The line, or None if it cannot be determined from the source.
    """
    caught = _caught(failed, here)
    if caught is None or caught.by is None:
        return None
    return CallSite(caught.at.file, caught.by.line, caught.at.function)


def is_caught(failed: Failure, here: Sequence[CallSite]) -> bool:
    """Return whether code of the application expects the exception, and catches it.

    An `except Exception` further out does not count, because it catches whatever has gone wrong.
    It counts if it contains one of the lines `here`: then it is what handles the exception now.
    If the source does not decide it, the exception may be expected.
    """
    caught = _caught(failed, ())
    if caught is None:
        return False
    by, at = caught.by, caught.at
    if by is None or not _ANY_ERROR.issuperset(by.names):
        return True
    return any(
        site.file == at.file and site.function == at.function and site.line in by.body
        for site in here
    )


class _Caught(NamedTuple):
    """What catches an error and does not raise it again: None if the source does not decide it."""

    at: CallSite
    by: _Handler | None


def _caught(failed: Failure, here: Sequence[CallSite]) -> _Caught | None:
    """Return what catches the error, from where it is raised outwards, or None if nothing does.

    `here` are lines that are executed now, after it was raised.
    """
    for site in failed.sites:
        if site.function.endswith("<lambda>"):
            continue  # it lies in the function that made it, which need not have called it
        now = [one.line for one in here if (one.file, one.function) == (site.file, site.function)]
        by, leaving = _through(site, failed, now)
        if by is not None or leaving is None:
            return _Caught(site, by)
        failed = leaving
    return None


def is_expected(failed: Failure, sites: Sequence[CallSite], general: frozenset[str]) -> bool:
    """Return whether code on its way catches the exception by name: it was written to expect it.

    Args:
        failed: The exception, which is about to be raised.
        sites: The lines that it will pass, the innermost first.
        general: Names of classes whose `except` does not mean this exception in particular.
    """
    named = failed.names - general
    for site in sites:
        for block in _around(site):
            for handler in block.handlers:
                if not named.isdisjoint(handler.names):
                    return True
                if handler.raised is None and _catches(handler, failed):
                    return False
    return False


def _through(
    site: CallSite, failed: Failure, now: Sequence[int]
) -> tuple[_Handler | None, Failure | None]:
    """Return what catches the error there, or None and the error that propagates.

    Returns twice None if the source does not decide it. If there are lines of the function that are
    executed `now`, execution may still be in it: in a handler, too, that raises another error next.
    """
    for block in _around(site):
        for handler in block.handlers:
            caught = _catches(handler, failed)
            if caught and any(line in handler.body for line in now):
                return handler, None
            if caught is None or (caught and handler.is_filter):
                return None, None
            if caught and handler.may_go_on and not _ANY_ERROR.issuperset(handler.names):
                return None, None  # it knows this error, and raises another one only sometimes
            if caught:
                after = _leaves(handler, failed)
                if after is None:
                    return handler, None
                failed = after
                break
        else:
            if block.is_opaque and now:
                return None, None  # perhaps its context manager has caught it
    return None, failed


class _Handler(NamedTuple):
    """Code that catches errors: its line, the classes (none: all), its body, what it raises.

    With `may_go_on`, it can be left before it raises that. With `is_filter`, a condition about the
    error decides whether it is raised again.
    """

    line: int
    names: tuple[str, ...]
    body: range = range(0)
    raised: ast.Raise | None = None
    caught_as: str | None = None
    may_go_on: bool = False
    is_filter: bool = False


class _Block(NamedTuple):
    """Lines of one function whose errors pass handlers, or a context manager."""

    function: range
    lines: range
    handlers: tuple[_Handler, ...]
    is_opaque: bool = False


def _catches(handler: _Handler, failed: Failure) -> bool | None:
    """Return whether it catches the error; None if the source does not decide it."""
    if not handler.names or not failed.names.isdisjoint(handler.names):
        return True
    # `except ERRORS:` may stand for anything.
    if failed.is_known and all(name[:1].isupper() and not name.isupper() for name in handler.names):
        return False
    return None


# A handler that raises another error has that one leave.
_ANY_ERROR: Final = frozenset({"Exception", "BaseException"})


def _leaves(handler: _Handler, failed: Failure) -> Failure | None:
    """Return the error that propagates from the handler, or None."""
    if handler.raised is None:
        return None
    error = handler.raised.exc
    if error is None or (isinstance(error, ast.Name) and error.id == handler.caught_as):
        return failed
    names = _ANY_ERROR | {_last_name(error.func if isinstance(error, ast.Call) else error)}
    return Failure(failed.sites, names, is_known=False)


def _around(site: CallSite) -> Iterator[_Block]:
    """Yield the blocks of the function that contain the line, the innermost first."""
    functions, blocks = _read(site.file, _changed_at(site.file))
    function = min((lines for lines in functions if site.line in lines), key=len)
    for block in reversed(blocks):
        if block.function is function and site.line in block.lines:
            yield block


def _changed_at(file: str) -> float:
    try:
        return os.stat(file).st_mtime
    except OSError:
        return 0.0


_Source: TypeAlias = tuple[tuple[range, ...], tuple[_Block, ...]]
_EVERYWHERE: Final = range(1, 1_000_000_000)


@lru_cache(maxsize=64)
def _read(file: str, changed_at: float) -> _Source:
    """Return the functions of a file, and their blocks, the outermost first."""
    del changed_at  # of the key alone: a file may change while the process runs
    tree = parsed(source_of(file))
    if tree is None:
        return (_EVERYWHERE,), ()
    functions, blocks = [_EVERYWHERE], []
    nodes: list[tuple[ast.AST, range]] = [(tree, _EVERYWHERE)]
    for node, function in nodes:  # which grows as it is read
        within = function
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            within = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            functions.append(within)
        elif isinstance(node, ast.Try | ast.TryStar):
            handlers = tuple(map(_handler, node.handlers))
            blocks.append(_Block(function, _lines(node.body), handlers))
        elif isinstance(node, ast.With | ast.AsyncWith):
            blocks.append(_Block(function, _lines(node.body), *_managers(node)))
        nodes.extend((child, within) for child in ast.iter_child_nodes(node))
    return tuple(functions), tuple(blocks)


def _lines(body: list[ast.stmt]) -> range:
    return range(body[0].lineno, (body[-1].end_lineno or body[-1].lineno) + 1)


def _handler(node: ast.ExceptHandler) -> _Handler:
    last = node.body[-1]
    raised = last if isinstance(last, ast.Raise) else None
    return _Handler(
        line=node.lineno,
        names=_names(node.type),
        body=_lines(node.body),
        raised=raised,
        caught_as=node.name,
        may_go_on=raised is not None and any(map(_leaves_early, node.body)),
        is_filter=_is_filter(node),
    )


def _is_filter(node: ast.ExceptHandler) -> bool:
    """Return whether a condition about the error decides whether it is raised again.

    A check of its class does not count: whether that is the error's class is known.
    """
    if node.name is None:
        return False
    parts = [part for statement in node.body for part in ast.walk(statement)]
    asks = any(isinstance(part, ast.If) and _asks(part.test, node.name) for part in parts)
    return asks and any(
        isinstance(part, ast.Raise)
        and (part.exc is None or (isinstance(part.exc, ast.Name) and part.exc.id == node.name))
        for part in parts
    )


def _asks(test: ast.AST, name: str) -> bool:
    if isinstance(test, ast.Name):
        return test.id == name
    if isinstance(test, ast.Call) and ast.unparse(test.func) in _OF_CLASSES:
        return False
    return any(_asks(part, name) for part in ast.iter_child_nodes(test))


_OF_CLASSES: Final = frozenset({"isinstance", "type"})


_LEAVING: Final = (ast.Return, ast.Break, ast.Continue)
_LOOPS: Final = (ast.For, ast.AsyncFor, ast.While)
_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def _leaves_early(node: ast.AST, leaving: tuple[type[ast.stmt], ...] = _LEAVING) -> bool:
    """Return whether a statement has one in it that leaves the block around it without an error."""
    if isinstance(node, leaving):
        return True
    if isinstance(node, _DEFINITIONS):
        return False
    if isinstance(node, _LOOPS):
        leaving = (ast.Return,)  # the others leave this loop
    return any(_leaves_early(child, leaving) for child in ast.iter_child_nodes(node))


def _names(kinds: ast.expr | None) -> tuple[str, ...]:
    if kinds is None:
        return ()
    return tuple(map(_last_name, kinds.elts if isinstance(kinds, ast.Tuple) else [kinds]))


def _last_name(named: ast.expr) -> str:
    return ast.unparse(named).rpartition(".")[2]


# Context managers that catch the errors they are called with: contextlib's, pytest's, unittest's.
_CATCHING: Final = frozenset({"suppress", "raises", "assertRaises", "assertRaisesRegex"})
# Context managers that let every error through.
_TRANSPARENT: Final = frozenset({"begin", "begin_nested", "no_autoflush"})


def _managers(node: ast.With | ast.AsyncWith) -> tuple[tuple[_Handler, ...], bool]:
    """Return what the context managers suppress, and whether one of them is unknown."""
    suppressing, is_opaque = [], False
    for item in node.items:
        made = item.context_expr
        arguments = made.args if isinstance(made, ast.Call) else []
        name = _last_name(made.func if isinstance(made, ast.Call) else made)
        if name in _CATCHING and arguments:
            suppressing.append(_Handler(node.lineno, _named(arguments)))
        elif name not in _TRANSPARENT:
            is_opaque = True
    return tuple(suppressing), is_opaque


def _named(arguments: list[ast.expr]) -> tuple[str, ...]:
    """Return the classes that a context manager is called with, perhaps in a tuple."""
    return tuple(name for argument in arguments for name in _names(argument))

"""Wraps a method under its exact signature, and puts it back.

Wrappers are made from source. Only a function with the method's own parameters raises the
TypeError of a wrong call at the caller's line, has the method's `__defaults__`, stays a coroutine
function where the method is one, and belongs to the method's module: SQLAlchemy lays a warning to
the innermost line of a module that is not its own. A wrapper that takes `*args` has none of these.

Their frames lie between the application's and SQLAlchemy's. Another tool that looks for the
application's line leaves out SQLAlchemy's files by their folder: so the code names a file in it.
"""

from __future__ import annotations

import functools
import inspect
import os
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

__all__ = ["Patches", "as_sqlalchemys"]

C = TypeVar("C", bound="Callable[..., Any]")

_ABSENT: Final = object()
# What a call may raise whatever is called.
_LACKS: Final = (MemoryError, RecursionError)


class _Patch(NamedTuple):
    owner: type
    name: str
    before: Any
    wrapper: Any
    # Not empty as long as the wrapper reports what it sees.
    is_on: list[bool]


class Patches:
    """The methods replaced so far, in order."""

    def __init__(self) -> None:
        self._patches: list[_Patch] = []

    def wrap(
        self,
        owner: type,
        name: str,
        before: Callable[..., Any] | None = None,
        after: Callable[[Any], None] | None = None,
        *,
        slot: str = "",
    ) -> None:
        """Replace `owner.name`, if there is such a method.

        The wrapper calls `before(*arguments)`, then the method, then `after(token)` with what
        `before` returned, unless that is None, also when the method raises. Without `before` it
        calls `after(self)` when the method has returned. Neither may raise, unless the error is
        for the caller to see. If there is no memory or no stack left to call them, they are left
        out. With `slot`, objects whose `__dict__` has no such key are left out.
        """
        found = getattr(owner, name, None)
        if found is None:
            return
        own = owner.__dict__.get(name, _ABSENT)
        is_on = [True]
        names = {
            "_found": found,
            "_owner": owner,
            "_before": before,
            "_after": after,
            "_is_on": is_on,
            "_slot": slot,
            "_lacks": _LACKS,
        }
        wrapper = _wrapper(name, found, names, inherited=own is _ABSENT)
        setattr(owner, name, wrapper)
        self._patches.append(_Patch(owner, name, own, wrapper, is_on))

    def undo(self, owner: type) -> None:
        """Put back what was replaced on `owner`.

        A wrapper that another library has wrapped meanwhile stays, and lets every call through.
        """
        for patch in reversed(self._patches):
            if patch.owner is not owner:
                continue
            patch.is_on.clear()
            if owner.__dict__.get(patch.name) is not patch.wrapper:
                continue
            if patch.before is _ABSENT:
                delattr(owner, patch.name)
            else:
                setattr(owner, patch.name, patch.before)
        self._patches = [patch for patch in self._patches if patch.owner is not owner]


def _line() -> int:
    """Return the line that calls this, 0 if this Python does not provide it."""
    frame = inspect.currentframe()
    return frame.f_back.f_lineno if frame is not None and frame.f_back is not None else 0


_BEFORE_AROUND: Final = _line() + 1
_AROUND: Final = """\
def make({names}):
    def {name}({parameters}):
        if not ({condition}):
            return {call}
        try:
            _token = _before({arguments})
        except _lacks:
            _token = None
        try:
            return {call}
        finally:
            if _token is not None:
                try:
                    _after(_token)
                except _lacks:
                    pass
    return {name}
"""
_BEFORE_MADE: Final = _line() + 1
_MADE: Final = """\
def make({names}):
    def {name}({parameters}):
        if not _is_on:
            return {call}
        {call}
        try:
            _after({receiver})
        except _lacks:
            pass
    return {name}
"""


def _wrapper(name: str, found: Any, names: dict[str, Any], *, inherited: bool) -> Any:
    # A decorated method takes what its decorator's function takes, whatever that shows.
    parameters = inspect.signature(found, follow_wrapped=False).parameters.values()
    arguments = ", ".join(_PASSED_ON.get(one.kind, "{0}").format(one.name) for one in parameters)
    receiver, _, rest = arguments.partition(", ")
    if receiver.startswith("*"):  # a decorator's function takes everything together
        together = receiver.removeprefix("*")
        receiver, rest = f"{together}[0]", f"*{together}[1:], {rest}"
    # An inherited method is looked up at each call, as it would be without the wrapper.
    call = f"super(_owner, {receiver}).{name}({rest})" if inherited else f"_found({arguments})"
    is_around = names["_before"] is not None
    condition = f"_is_on and _slot in {receiver}.__dict__"
    source = (_AROUND if is_around else _MADE).format(
        names=", ".join(names),
        name=name,
        parameters=_parameters(parameters),
        arguments=arguments,
        receiver=receiver,
        call=call,
        condition=condition if names["_slot"] else "_is_on",
    )
    if inspect.iscoroutinefunction(found):
        source = source.replace("def " + name, "async def " + name)
        source = source.replace("return " + call, "return await " + call)
    by_sqlalchemy = str(found.__module__).startswith("sqlalchemy.")
    namespace: dict[str, Any] = {
        "__name__": found.__module__ if by_sqlalchemy else __name__,
        "__loader__": _Source(__file__),
    }
    # With the template's own lines, so that tracebacks show them.
    lines_before = "\n" * (_BEFORE_AROUND if is_around else _BEFORE_MADE)
    exec(_compiled(lines_before + source), namespace)
    wrapper = namespace["make"](**names)
    functools.update_wrapper(wrapper, found)
    # `inspect.signature` reads the wrapper's own, or follows what a decorator has left.
    del wrapper.__wrapped__
    if "__wrapped__" in vars(found):
        wrapper.__wrapped__ = found.__wrapped__
    wrapper.__defaults__ = found.__defaults__
    wrapper.__kwdefaults__ = found.__kwdefaults__
    return wrapper


@functools.lru_cache(maxsize=128)
def _compiled(source: str) -> CodeType:
    """Compile a wrapper; the same ones are needed at each `instrument()`."""
    return compile(source, _in_sqlalchemy(__file__), "exec")


_PASSED_ON: Final[dict[Any, str]] = {
    inspect.Parameter.VAR_POSITIONAL: "*{0}",
    inspect.Parameter.VAR_KEYWORD: "**{0}",
    inspect.Parameter.KEYWORD_ONLY: "{0}={0}",
}


def _parameters(parameters: Any) -> str:
    """Return the parameters as source. Their defaults are set when the function is made."""
    bare = [
        one.replace(annotation=one.empty, default=one.empty if one.default is one.empty else None)
        for one in parameters
    ]
    return str(inspect.Signature(bare)).strip("()")


_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MODULE: Final = "sqlalchemy.engine.base"
_SQLALCHEMY: Final = os.path.join(os.path.dirname(sqlalchemy.__file__), "session_tracer")


def _in_sqlalchemy(file: str) -> str:
    """The file in SQLAlchemy's folder by whose name others know that a frame is no application's.

    There is no such file; its lines come from `_Source`.
    """
    return os.path.join(_SQLALCHEMY, os.path.relpath(os.path.abspath(file), _PACKAGE))


class _Source:
    """Has the lines of a file of session_tracer's, which tracebacks show."""

    def __init__(self, file: str) -> None:
        self._file = file

    def get_source(self, name: str) -> str:
        """Return the source of the file, as `linecache` asks a module's loader for it."""
        del name
        return Path(self._file).read_text(encoding="utf-8")


# By the id of each function's own code, which lives as long as its module.
_CODES: Final[dict[int, CodeType]] = {}


def as_sqlalchemys(function: C) -> C:
    """The function, as if a module of SQLAlchemy's had it; its frame lies below SQLAlchemy's.

    SQLAlchemy lays a warning to the innermost line of a module that is not its own. A line of
    session_tracer's between two of its own would be taken for the application's.
    """
    found: Any = function
    code = found.__code__
    source: Any = _Source(code.co_filename)
    named = {
        **found.__globals__,
        "__name__": _MODULE,
        # `linecache` asks the one up to Python 3.12, and the other one later.
        "__loader__": source,
        "__spec__": ModuleSpec(_MODULE, source),
    }
    moved = _CODES.get(id(code))
    if moved is None:
        moved = code.replace(co_filename=_in_sqlalchemy(code.co_filename))
        _CODES[id(code)] = moved
    again: Any = FunctionType(moved, named, found.__name__, found.__defaults__, found.__closure__)
    again.__qualname__ = found.__qualname__
    return again  # type: ignore[no-any-return] # a copy of what was given

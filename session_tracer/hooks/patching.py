"""Wraps a method under its exact signature, and puts it back."""

from __future__ import annotations

import ast
import functools
import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Patches", "as_sqlalchemys"]

C = TypeVar("C", bound="Callable[..., Any]")

_ABSENT: Final = object()
# What a call may raise whoever is called.
_LACKS: Final = (MemoryError, RecursionError)


class _Switch:
    """Whether a wrapper still says what it sees."""

    __slots__ = ("is_on",)

    def __init__(self) -> None:
        self.is_on = True


class _Patch(NamedTuple):
    owner: type
    name: str
    before: Any
    wrapper: Any
    switch: _Switch


class Patches:
    """The methods replaced so far, in order.

    A wrapper calls `before(*arguments)`, then the method, then `after(token)` with what `before`
    returned, also when the method raises. Neither may raise, unless it is for the caller to see;
    where either cannot even be called, for there is no memory or no stack left, it is left out.
    The wrapper has the method's own signature, not `*args`: people and libraries read it.
    """

    def __init__(self) -> None:
        self._patches: list[_Patch] = []

    def wrap(
        self, owner: type, name: str, before: Callable[..., Any], after: Callable[[Any], None]
    ) -> None:
        """Replace `owner.name`, if there is such a method."""
        found = getattr(owner, name, None)
        if found is None:
            return
        own = owner.__dict__.get(name, _ABSENT)
        switch = _Switch()
        wrapper = _wrapper(owner, name, found, before, after, switch, inherited=own is _ABSENT)
        setattr(owner, name, wrapper)
        self._patches.append(_Patch(owner, name, own, wrapper, switch))

    def undo(self, owner: type) -> None:
        """Put back what was replaced on `owner`.

        Where somebody else has wrapped a wrapper meanwhile, it stays within theirs and lets every
        call through.
        """
        for patch in reversed(self._patches):
            if patch.owner is not owner:
                continue
            patch.switch.is_on = False
            if owner.__dict__.get(patch.name) is not patch.wrapper:
                continue
            if patch.before is _ABSENT:
                delattr(owner, patch.name)
            else:
                setattr(owner, patch.name, patch.before)
        self._patches = [patch for patch in self._patches if patch.owner is not owner]


def _line() -> int:
    """The line that calls this; 0 where Python does not tell."""
    frame = inspect.currentframe()
    return frame.f_back.f_lineno if frame is not None and frame.f_back is not None else 0


_BEFORE_TEMPLATE: Final = _line() + 1
_SYNC: Final = """\
def make(_found, _owner, _before, _after, _switch, _absent, _lacks):
    def {name}({parameters}):
        if not _switch.is_on:
            return {call}
        _token = _absent
        try:
            _token = _before({arguments})
        except _lacks:
            pass
        try:
            return {call}
        finally:
            if _token is not _absent:
                try:
                    _after(_token)
                except _lacks:
                    pass
    return {name}
"""
_ASYNC: Final = _SYNC.replace("    def {name}(", "    async def {name}(").replace(
    "return {call}", "return await {call}"
)


def _wrapper(
    owner: type,
    name: str,
    found: Any,
    before: Callable[..., Any],
    after: Callable[[Any], None],
    switch: _Switch,
    *,
    inherited: bool,
) -> Any:
    parameters, arguments = _signature(found)
    # An inherited method is looked up at each call, as it would be without the wrapper.
    receiver, _, rest = arguments.partition(", ")
    if receiver.startswith("*"):  # a decorator's function takes everything together
        together = receiver.removeprefix("*")
        receiver, rest = f"{together}[0]", f"*{together}[1:], {rest}"
    call = f"super(_owner, {receiver}).{name}({rest})" if inherited else f"_found({arguments})"
    template = _ASYNC if inspect.iscoroutinefunction(found) else _SYNC
    source = template.format(name=name, parameters=parameters, arguments=arguments, call=call)
    # SQLAlchemy warns at the innermost line of a module that is not its own: not at the wrapper's.
    by_sqlalchemy = str(found.__module__).startswith("sqlalchemy.")
    namespace: dict[str, Any] = {"__name__": found.__module__ if by_sqlalchemy else __name__}
    # Under this file's name, so that error trackers see where the package is installed, and with
    # the template's own lines, so that tracebacks show them.
    code = ast.increment_lineno(ast.parse(source), _BEFORE_TEMPLATE)
    exec(compile(code, __file__, "exec"), namespace)
    wrapper = namespace["make"](found, owner, before, after, switch, _ABSENT, _LACKS)
    functools.update_wrapper(wrapper, found)
    # `inspect.signature` reads the wrapper's own, or follows what a decorator has left.
    del wrapper.__wrapped__
    if "__wrapped__" in vars(found):
        wrapper.__wrapped__ = found.__wrapped__
    wrapper.__defaults__ = found.__defaults__
    wrapper.__kwdefaults__ = found.__kwdefaults__
    return wrapper


def _signature(found: Any) -> tuple[str, str]:
    """The parameters as source, and the same as arguments of a call."""
    parameters: list[str] = []
    arguments: list[str] = []
    positional_only = False
    keyword_only = False
    # A decorated method takes what its decorator's function takes, whatever that shows.
    for parameter in inspect.signature(found, follow_wrapped=False).parameters.values():
        if positional_only and parameter.kind is not parameter.POSITIONAL_ONLY:
            parameters.append("/")
            positional_only = False
        default = "" if parameter.default is parameter.empty else "=None"
        match parameter.kind:
            case parameter.VAR_POSITIONAL:
                parameters.append(f"*{parameter.name}")
                arguments.append(f"*{parameter.name}")
                keyword_only = True
            case parameter.VAR_KEYWORD:
                parameters.append(f"**{parameter.name}")
                arguments.append(f"**{parameter.name}")
            case parameter.KEYWORD_ONLY:
                if not keyword_only:
                    parameters.append("*")
                    keyword_only = True
                parameters.append(f"{parameter.name}{default}")
                arguments.append(f"{parameter.name}={parameter.name}")
            case _:
                positional_only = parameter.kind is parameter.POSITIONAL_ONLY
                parameters.append(f"{parameter.name}{default}")
                arguments.append(parameter.name)
    if positional_only:
        parameters.append("/")
    return ", ".join(parameters), ", ".join(arguments)


def as_sqlalchemys(function: C) -> C:
    """The function, as if a module of SQLAlchemy's had it; its frame lies below SQLAlchemy's.

    SQLAlchemy lays a warning to the innermost line of a module that is not its own. A line of
    session_tracer's between two of its own would be taken for the application's.
    """
    found: Any = function
    named = {**found.__globals__, "__name__": "sqlalchemy.engine.base"}
    again: Any = FunctionType(
        found.__code__, named, found.__name__, found.__defaults__, found.__closure__
    )
    again.__qualname__ = found.__qualname__
    return again  # type: ignore[no-any-return] # a copy of what was given

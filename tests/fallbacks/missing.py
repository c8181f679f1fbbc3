"""Takes away, for one test, what somebody else might take away in a release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_tracer.hooks import private_api

if TYPE_CHECKING:
    from types import CodeType

    import pytest

__all__ = ["call_otherwise", "hide", "rename", "unfound"]


def rename(monkeypatch: pytest.MonkeyPatch, function: Any, **names: str) -> None:
    """Have a function of theirs, and those of its local variables, run under another name."""
    code: CodeType = function.__code__
    variables = tuple(names.get(name, name) for name in code.co_varnames)
    renamed = code.replace(co_name=f"{code.co_name}_renamed", co_varnames=variables)
    monkeypatch.setattr(function, "__code__", renamed)


def hide(monkeypatch: pytest.MonkeyPatch, function: Any, *names: str) -> None:
    """Have a function of ours look for what theirs cannot do without under names that nobody has.

    That is what it would find if they called it otherwise.
    """
    code: CodeType = function.__code__
    assert set(names) <= {*code.co_consts, *code.co_names}, f"{code.co_name} has no {names}"
    hidden = code.replace(
        co_consts=tuple(call_otherwise(one) if one in names else one for one in code.co_consts),
        co_names=tuple(call_otherwise(one) if one in names else one for one in code.co_names),
    )
    monkeypatch.setattr(function, "__code__", hidden)


def call_otherwise(name: Any) -> str:
    """Another name."""
    return f"{name}_of_another_release"


def unfound(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Have the check at `instrument()` not find what this path leads to."""
    found = private_api._found

    def find(asked: str) -> Any:
        return private_api._ABSENT if asked == path else found(asked)

    monkeypatch.setattr(private_api, "_found", find)

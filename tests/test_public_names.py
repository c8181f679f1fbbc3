"""That the package has its public names, each when it is asked for."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

import session_tracer
from session_tracer.pytest_plugin.configured import SETTINGS

SOURCE = ast.parse(Path(str(session_tracer.__file__)).read_text())


@pytest.mark.parametrize("name", session_tracer.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(session_tracer, name) is not None
    assert name in dir(session_tracer)


def test_type_checkers_see_the_same_names() -> None:
    seen = {
        alias.asname or alias.name
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("session_tracer.")
        for alias in node.names
    }
    assert seen == set(session_tracer.__all__)


def test_any_other_name_is_missing() -> None:
    with pytest.raises(AttributeError, match="module 'session_tracer' has no attribute 'trace'"):
        getattr(session_tracer, "trace")  # noqa: B009 - no checker is to see that it is missing


def test_a_star_import_has_them_all() -> None:
    namespace: dict[str, object] = {}
    exec("from session_tracer import *", namespace)
    assert set(session_tracer.__all__) <= set(namespace)


def test_every_threshold_is_an_option_of_the_pytest_plugin() -> None:
    names = [option.name for option in fields(session_tracer.Settings)]
    first, last = names.index("baseline_path") + 1, names.index("jsonl_path")
    assert set(SETTINGS) == {"ignore", "severities", *names[first:last]}

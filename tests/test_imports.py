"""Tests what tracing imports, in a fresh interpreter: every module is time at each start."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import pytest

from session_tracer import facts

# What is there anyway: SQLAlchemy, and OpenTelemetry's API.
TELL = """
import json, sys
import opentelemetry.metrics, opentelemetry.trace, sqlalchemy.ext.asyncio, sqlalchemy.orm
before = set(sys.modules)
{code}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
FREE = "from session_tracer import *; instrument(exporter=Exporter())"
# Where SQLAlchemy or OpenTelemetry has one of them too, it is not even new.
OF_PYTHON = {"_queue", "faulthandler", "gc", "queue", "sysconfig"}


def imported(code: str) -> set[str]:
    """The modules that the code brings."""
    command = [sys.executable, "-c", TELL.format(code=code)]
    told = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tempfile.gettempdir(),  # without settings in a pyproject.toml
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ).stdout
    return set(json.loads(told))


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] == "session_tracer"}


def test_tracing_brings_hardly_anything_but_itself() -> None:
    modules = imported(FREE)
    assert ours(modules) >= {"session_tracer.tracer", "session_tracer.detectors"}
    # What sysconfig reads has the platform in its name.
    others = {one for one in modules if not one.startswith("_sysconfigdata")}
    assert others - ours(others) - OF_PYTHON == set()


def test_tracing_brings_no_exporter() -> None:
    assert [name for name in ours(imported(FREE)) if "exporters" in name] == []


@pytest.mark.parametrize("name", ["jsonl", "providers"])
def test_a_slight_exporter_brings_no_terminal_and_no_sdk(name: str) -> None:
    modules = imported(f"from session_tracer import *; instrument(exporter={name!r})")
    assert f"session_tracer.exporters.{name}" in modules
    assert {one for one in modules if one.startswith(("rich", "opentelemetry.sdk"))} == set()


def test_the_console_brings_no_sdk() -> None:
    modules = imported("from session_tracer import *; instrument(exporter='console')")
    assert "rich.console" in modules
    assert {name for name in modules if name.startswith("opentelemetry.sdk")} == set()


def test_the_package_alone_brings_nothing() -> None:
    assert imported("import session_tracer") == {"session_tracer"}


@pytest.mark.parametrize(
    "kind", [facts.Database, *get_args(facts.Fact)], ids=lambda kind: kind.__name__
)
def test_no_fact_has_code_made_for_what_all_of_them_share(kind: type) -> None:
    made = {name for name, value in vars(kind).items() if inspect.isfunction(value)}
    # Python 3.13 gives every dataclass the same `__replace__`.
    assert made - {"__replace__"} == {"__init__"}

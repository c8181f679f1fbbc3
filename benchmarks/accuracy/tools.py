"""Runs programs with one tool's plugin of pytest, and reads which of them it reports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.accuracy.programs import Programs

__all__ = ["LOWER", "NO_TOOL", "OWN", "PEERS", "RunFailed", "Tool", "outcomes"]

_PLUGINS: Final = ("session_tracer", "queryguard", "queryspy")


class RunFailed(Exception):
    """Why pytest did not run the programs."""


class Tool(NamedTuple):
    """A tool, and how a test fails for each thing that it reports.

    Attributes:
        name: What the table calls it.
        package: The name under which it is installed; empty for none.
        plugin: The name of its plugin of pytest; empty for none.
        options: The options of pytest.
    """

    name: str
    package: str
    plugin: str
    options: tuple[str, ...] = ()


NO_TOOL: Final = Tool("no tool", "", "")
OWN: Final = Tool("session_tracer", "session-tracer", "session_tracer", ("--session-tracer=info",))
LOWER: Final = Tool(
    "session_tracer, lower thresholds",
    "session-tracer",
    "session_tracer",
    (
        *OWN.options,
        "--override-ini=session_tracer_single_row_writes=10",
        "--override-ini=session_tracer_sessions_from_one_site=8",
    ),
)
PEERS: Final = (
    Tool("pytest-queryguard", "pytest-queryguard", "queryguard"),
    Tool(
        "pytest-queryguard, all its rules",
        "pytest-queryguard",
        "queryguard",
        (
            "--override-ini=queryguard_small_repeat_threshold=2",
            "--override-ini=queryguard_write_loop_threshold=2",
            "--override-ini=queryguard_column_load_threshold=2",
            "--override-ini=queryguard_unused_eager_load=fail",
        ),
    ),
    Tool("queryspy", "queryspy", "queryspy", ("--queryspy-strict",)),
)


def outcomes(tool: Tool, programs: Programs) -> Mapping[str, bool]:
    """Run the programs with a tool.

    Returns:
        Whether each program's test passed, by the program's name.

    Raises:
        RunFailed: pytest did not run them.
    """
    with tempfile.TemporaryDirectory(prefix="accuracy-") as temporary:
        folder = Path(temporary)
        tests, report = programs.prepare(folder), folder / "report.xml"
        others = [f"-pno:{plugin}" for plugin in _PLUGINS if plugin != tool.plugin]
        command: list[str | Path] = [sys.executable, "-m", "pytest", "-q", "-Wignore", tests]
        unused = ("cacheprovider", "hypothesispytest", "randomly")
        command += [*(f"-pno:{plugin}" for plugin in unused), f"--junit-xml={report}"]
        done = subprocess.run(
            [*command, *others, *tool.options],
            cwd=tests.parent,
            env={**os.environ, **programs.variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        # 1: some tests failed.
        if done.returncode not in (0, 1) or not report.exists():
            raise RunFailed(f"{tool.name} on {programs.name}:\n{done.stdout}")
        return _read(report)


def _read(report: Path) -> Mapping[str, bool]:
    passed: dict[str, bool] = {}
    for case in ET.parse(report).iter("testcase"):
        name = _program(case)
        failed = case.find("failure") is not None or case.find("error") is not None
        if case.find("skipped") is None:
            # A test that fails, and whose teardown fails as well, has two entries.
            passed[name] = passed.get(name, True) and not failed
    return passed


def _program(case: ET.Element) -> str:
    """Return the name of the program that a test runs: its parameter, or the test's own name."""
    name = case.get("name", "")
    found = re.fullmatch(r"test_(?:scenario|scene)\[(.+)\]", name)
    return found[1] if found else f"{case.get('classname', '')}.{name}"

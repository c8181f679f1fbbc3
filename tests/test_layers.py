"""Tests who imports whom: one direction, from SQLAlchemy's events to the exporters."""

from __future__ import annotations

import ast
import functools
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

VALUES = {
    "callsite", "facts", "findings", "owner", "record", "settings", "snapshot", "timeline",
    "uncommitted",
}  # fmt: skip
SAYS = {"exporter", "signals.names", "signals.routes"}

# Of our own modules, those a module may import. The first pattern that fits counts; a module that
# none fits may import any module of ours but an exporter.
OURS: dict[str, set[str]] = {
    "awaiting": set(),
    "degraded": set(),
    "nearest": set(),
    "process": set(),
    "threads": set(),
    "surroundings": set(),
    "background_queue": {"process", "threads"},
    "running": set(),
    "teardown": {"running"},
    "callsite": {"awaiting", "running"},
    "owner": {"awaiting", "process", "running"},
    "patching": set(),
    "settings": {"degraded", "findings", "nearest"},
    "version": set(),
    "signals.names": set(),
    "facts": {"callsite", "owner", "snapshot"},
    "snapshot": {"callsite", "facts", "findings"},
    "findings": {"callsite"},
    "silencing": {"findings", "nearest"},
    "baseline": {"findings"},
    "policy": VALUES | {"baseline", "detectors", "detectors.protocol", "nearest", "silencing"},
    "misuse": {"findings", "running", "tracer"},
    "plain": set(),
    "sql": {"facts", "plain"},
    "flushes": {"facts", "degraded", "plain"},
    "frames": {"facts"},
    "timeline": {"callsite", "facts"},
    "uncommitted": {"callsite", "facts", "timeline"},
    "record": {"callsite", "facts", "findings", "settings", "timeline", "uncommitted"},
    "dispatch": {"detectors.protocol", "facts", "record"},
    "detectors": {"detectors.*"},
    "detectors.*": VALUES
    | {
        "detectors.missing",
        "detectors.recent",
        "detectors.evidence",
        "detectors.protocol",
        "detectors.said",
        "detectors.unsaved",
        "detectors.watched",
        "detectors.wording",
    },
    "signals.metrics": VALUES | SAYS | {"process", "signals.tallies", "threads"},
    "signals.tallies": {"process", "threads"},
    "signals.logs": VALUES | SAYS | {"process", "surroundings", "threads"},
    "signals.*": VALUES | SAYS,
    "exporter": VALUES | {"nearest", "process", "threads"},
    "exporter_choice": {"degraded", "exporter", "settings", "surroundings", "threads"},
    "exporters.*": VALUES
    | SAYS
    | {"background_queue", "degraded", "exporters.*", "process", "surroundings", "threads"},
    "pytest_plugin": {"pytest_plugin.*"},
    "pytest_plugin.annotations": {"findings"},
    "pytest_plugin.budgets": set(),
    "pytest_plugin.options": {"findings"},
    "pytest_plugin.trace": {"findings", "pytest_plugin.*", "record", "snapshot"},
    # What the console shows of a session, a failing test shows too.
    "pytest_plugin.wording": VALUES
    | {"exporters.finding_block", "exporters.session_block", "pytest_plugin.*"},
}

# Of other people's, those that only some modules may import, and which modules those are.
THEIRS: dict[str, set[str]] = {
    "sqlalchemy": {
        "failures", "flushes", "frames", "instrumentor", "lifetime", "listeners", "loaders",
        "loads", "misuse", "statements", "targets",
    },
    "opentelemetry": {
        "exporter", "exporters.*", "signals.logs", "signals.metrics", "signals.spans",
        "signals.tallies", "surroundings", "testing", "tracer",
    },
    "opentelemetry.sdk": {"exporters.*", "testing"},
    "structlog": {"signals.logs"},
    "rich": {"exporters.*"},
    "pytest": {"pytest_plugin", "pytest_plugin.*"},
}  # fmt: skip

# The same, for types alone.
THEIR_TYPES: dict[str, set[str]] = {
    "sqlalchemy": {"peers", "probe", "sql", "underway"},
    "opentelemetry": {"origin"},
    "rich": {"pytest_plugin.wording"},
}


def module_name(file: Path) -> str:
    """A module's name without `session_tracer.`; the package's own is empty."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    dotted = ".".join(part for part in parts if part != "__init__")
    return dotted.removeprefix("session_tracer").removeprefix(".")


MODULES = {
    module_name(file): file
    for folder in ("session_tracer", "exporters")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if ROOT / "session_tracer" / "exporters" not in file.parents
}


@functools.cache
def imported(file: Path) -> tuple[set[str], set[str]]:
    """What a file imports when it runs, and what for its types alone; ours without the prefix."""
    tree = ast.parse(file.read_text())
    typed = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    when_run: set[str] = set()
    for_types: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [
                name if name.removeprefix("session_tracer.") in MODULES else str(node.module)
                for name in modules
            ]
        (for_types if node in typed else when_run).update(names)
    return when_run, for_types


def fits(name: str, patterns: set[str]) -> bool:
    """Whether a module is one of these."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_those_of_ours_that_it_may(module: str) -> None:
    ours = {
        name.removeprefix("session_tracer.")
        for names in imported(MODULES[module])
        for name in names
        if name.startswith("session_tracer.")
    }
    allowed = next((may for pattern, may in OURS.items() if fits(module, {pattern})), None)
    if allowed is None:
        assert not {name for name in ours if fits(name, {"exporters", "exporters.*"})}
    else:
        assert {name for name in ours if not fits(name, allowed)} == set()


@pytest.mark.parametrize("package", THEIRS)
def test_a_package_is_known_where_it_may_be(package: str) -> None:
    def of_package(names: set[str]) -> bool:
        return any(name == package or name.startswith(f"{package}.") for name in names)

    when_run = {name for name, file in MODULES.items() if of_package(imported(file)[0])}
    for_types = {name for name, file in MODULES.items() if of_package(imported(file)[1])}
    known_by = THEIRS[package]
    assert {name for name in when_run if not fits(name, known_by)} == set()
    may_type = known_by | THEIR_TYPES.get(package, set())
    assert {name for name in for_types if not fits(name, may_type)} == set()


@pytest.mark.parametrize("table", [OURS, THEIRS, THEIR_TYPES])
def test_the_tables_name_modules_that_exist(table: dict[str, set[str]]) -> None:
    named = set().union(*table.values()) | (set(table) if table is OURS else set())
    assert {
        pattern for pattern in named if not any(fits(name, {pattern}) for name in MODULES)
    } == set()

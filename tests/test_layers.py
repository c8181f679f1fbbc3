"""Tests who imports whom: one direction, from SQLAlchemy's events to the exporters."""

from __future__ import annotations

import ast
import functools
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

VALUES = {
    "where.callsite",
    "facts",
    "model.findings",
    "where.owner",
    "ledger.record",
    "settings",
    "model.live_session",
    "publisher.timeline",
    "ledger.uncommitted",
}
SAYS = {"exporter", "signals.histograms", "signals.names", "signals.routes"}

# Of our own modules, those a module may import. The first pattern that fits counts; a module that
# none fits may import any module of ours but an exporter.
OURS: dict[str, set[str]] = {
    "where.tasks": set(),
    "runtime.degraded": set(),
    "runtime.nearest": set(),
    "runtime.process": set(),
    "runtime.threads": set(),
    "runtime.environment": set(),
    "runtime.background_queue": {"runtime.process", "runtime.threads"},
    "where.running": set(),
    "where.frameworks": {"where.running"},
    "where.callsite": {"where.tasks", "where.running"},
    "where.owner": {"where.tasks", "runtime.process", "where.running"},
    "hooks.patching": set(),
    "settings": {"runtime.degraded", "model.findings", "runtime.nearest"},
    "version": set(),
    "signals.names": set(),
    "facts": {"where.callsite", "where.owner", "model.live_session"},
    "model.live_session": {"where.callsite", "facts", "model.findings"},
    "model.findings": {"where.callsite"},
    "verdicts.silencing": {"model.findings", "runtime.nearest"},
    "verdicts.baseline": {"model.findings"},
    "verdicts.policy": VALUES
    | {
        "verdicts.baseline",
        "detectors",
        "detectors.protocol",
        "runtime.nearest",
        "verdicts.silencing",
    },
    "verdicts.misuse": {"model.findings", "where.running", "tracer"},
    "hooks.safe_types": set(),
    "hooks.sql": {"facts", "hooks.safe_types"},
    "hooks.flush_contents": {"facts", "runtime.degraded", "hooks.safe_types"},
    "hooks.error_frames": {"facts"},
    "publisher.timeline": {"where.callsite", "facts"},
    "ledger.uncommitted": {"where.callsite", "facts", "publisher.timeline"},
    "ledger.record": {
        "where.callsite",
        "facts",
        "model.findings",
        "settings",
        "publisher.timeline",
        "ledger.uncommitted",
    },
    "publisher.dispatch": {"detectors.protocol", "facts", "ledger.record"},
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
    "signals.metrics": VALUES | SAYS | {"runtime.process", "runtime.threads"},
    "signals.histograms": {
        "runtime.process",
        "runtime.threads",
        "signals.names",
        "where.running",
        "runtime.degraded",
    },
    "signals.logs": VALUES | SAYS | {"runtime.process", "runtime.environment", "runtime.threads"},
    "signals.*": VALUES | SAYS,
    "exporter": VALUES
    | {"runtime.nearest", "runtime.process", "runtime.threads", "signals.histograms"},
    "exporter_choice": {
        "runtime.degraded",
        "exporter",
        "settings",
        "runtime.environment",
        "runtime.threads",
    },
    "exporters.*": VALUES
    | SAYS
    | {
        "runtime.background_queue",
        "runtime.degraded",
        "exporters.*",
        "runtime.process",
        "runtime.environment",
        "runtime.threads",
    },
    # The SDK's reader that it sets up is given histograms as those of the exporters are.
    "testing": VALUES
    | {
        "detectors",
        "exporter",
        "exporters.sdk_histograms",
        "hooks.targets",
        "instrumentor",
        "ledger.watchdog",
    },
    "pytest_plugin": {"pytest_plugin.*"},
    "pytest_plugin.annotations": {"model.findings"},
    "pytest_plugin.budgets": set(),
    "pytest_plugin.options": {"model.findings"},
    "pytest_plugin.trace": {
        "model.findings",
        "pytest_plugin.*",
        "ledger.record",
        "model.live_session",
    },
    # What the console shows of a session, a failing test shows too.
    "pytest_plugin.wording": VALUES
    | {"exporters.finding_block", "exporters.session_block", "pytest_plugin.*"},
}

# Of other people's, those that only some modules may import, and which modules those are.
THEIRS: dict[str, set[str]] = {
    "sqlalchemy": {
        "hooks.errors",
        "hooks.flush_contents",
        "hooks.error_frames",
        "instrumentor",
        "hooks.lifecycle",
        "hooks.session_events",
        "hooks.loader_options",
        "ledger.object_counter",
        "verdicts.misuse",
        "hooks.statements",
        "hooks.targets",
    },
    "opentelemetry": {
        "exporter",
        "exporters.*",
        "signals.logs",
        "signals.metrics",
        "signals.spans",
        "signals.histograms",
        "runtime.environment",
        "testing",
        "tracer",
    },
    "opentelemetry.sdk": {"exporters.*", "testing"},
    "structlog": {"signals.logs"},
    "rich": {"exporters.*"},
    "pytest": {"pytest_plugin", "pytest_plugin.*"},
}

# The same, for types alone.
THEIR_TYPES: dict[str, set[str]] = {
    "sqlalchemy": {"ledger.same_owner", "ledger.probe", "hooks.sql", "ledger.in_progress"},
    "opentelemetry": {"ledger.origin"},
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

"""Tests who imports whom: one direction, from SQLAlchemy's events to the exporters."""

from __future__ import annotations

import ast
import functools
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The folders and modules of the package, by their level: a module imports from its own level and
# those below, also where the import is only for types.
LEVELS: list[set[str]] = [
    {"runtime", "version"},
    {"where"},
    {"model", "facts"},
    {"settings"},
    {"ledger"},
    {"detectors"},
    {"verdicts"},
    {"signals", "exporter"},
    {"publisher"},
    {"exporter_choice"},
    {"tracer", "hooks"},
    {"instrumentor"},
    {"exporters", "auto_instrumentation", "asgi", "celery", "page", "wsgi"},
    {"testing"},
    {"cli", "__main__"},
    {"pytest_plugin"},
    {""},  # the package itself has the public names
]
# The exporters import the SDK and, of the package, what is public or made for them.
OF_EXPORTERS = {
    "background_queue", "counts", "degraded", "environment", "exporter", "facts", "findings",
    "histograms", "names", "process", "settings", "span_recorder", "summary", "threads",
    "timeline", "callsite", "version", "", "span_attributes",
}  # fmt: skip

# Packages that only some modules may import, and these modules.
THEIRS: dict[str, set[str]] = {
    "sqlalchemy": {"hooks.*", "instrumentor", "ledger.object_counter", "verdicts.misuse"},
    "opentelemetry": {
        "auto_instrumentation", "exporter", "exporters.*", "runtime.environment", "signals.*",
        "testing", "tracer",
    },
    "opentelemetry.sdk": {"exporters.*", "testing"},
    "structlog": {"signals.logs"},
    "celery": {"celery"},
    "rich": {"exporters.*", "cli.*"},
    "pytest": {"pytest_plugin", "pytest_plugin.*"},
}  # fmt: skip

# The same, for types alone.
THEIR_TYPES: dict[str, set[str]] = {
    "sqlalchemy": {"ledger.*"},
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
    """What a file imports when it runs, and for types only; session_tracer is left out."""
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


def level_of(module: str) -> int:
    """The level of a module; `LEVELS` names every module or its folder."""
    folder = module.partition(".")[0]
    (level,) = (number for number, names in enumerate(LEVELS) if folder in names)
    return level


def imported_modules(module: str) -> set[str]:
    """The modules of the package that a module imports, types included."""
    found = set().union(*imported(MODULES[module]))
    names = {one.removeprefix("session_tracer").removeprefix(".") for one in found
             if one.partition(".")[0] == "session_tracer"}  # fmt: skip
    return (names & set(MODULES)) - {module}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_level_and_below(module: str) -> None:
    level = level_of(module)
    allowed = {""} if module.startswith("exporters") else set()  # the public names
    above = {other for other in imported_modules(module) if level_of(other) > level}
    assert above - allowed == set()


def test_exporters_import_what_is_made_for_them() -> None:
    theirs = {
        other
        for module in MODULES
        if module.startswith("exporters.")
        for other in imported_modules(module)
        if not other.startswith("exporters")
    }
    assert {one.rpartition(".")[2] for one in theirs} <= OF_EXPORTERS


def test_hooks_know_no_signal() -> None:
    for module in MODULES:
        if module.startswith("hooks."):
            assert not {one for one in imported_modules(module) if one.startswith("signals")}


@pytest.mark.parametrize("folder", sorted({name.partition(".")[0] for name in MODULES} - {""}))
def test_folders_do_not_import_each_other_in_a_circle(folder: str) -> None:
    def folders(names: set[str]) -> set[str]:
        return {name.partition(".")[0] for name in names}

    of_folder = folders(
        set().union(*(imported_modules(one) for one in MODULES if one.split(".")[0] == folder))
    ) - {folder}
    for other in of_folder:
        back = folders(
            set().union(*(imported_modules(one) for one in MODULES if one.split(".")[0] == other))
        )
        is_known = {folder, other} in ({"facts", "model"}, {"exporter", "signals"})
        assert is_known or folder not in back, f"{folder} and {other} import each other"


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


@pytest.mark.parametrize("table", [THEIRS, THEIR_TYPES])
def test_the_tables_name_modules_that_exist(table: dict[str, set[str]]) -> None:
    named = set().union(*table.values())
    assert {
        pattern for pattern in named if not any(fits(name, {pattern}) for name in MODULES)
    } == set()
    assert {name.partition(".")[0] for name in MODULES} == set().union(*LEVELS)

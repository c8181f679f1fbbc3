"""Tests that only public names of OpenTelemetry and of prometheus_client are used."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.test_layers import MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = ("opentelemetry", "prometheus_client")

# OpenTelemetry's logs have no other modules yet.
LOGS = {
    "opentelemetry._logs",
    "opentelemetry.sdk._logs",
    "opentelemetry.sdk._logs.export",
    "opentelemetry.exporter.otlp.proto.grpc._log_exporter",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
}

FUNCTIONS = {"getattr", "hasattr", "setattr", "attrgetter", "methodcaller"}


def is_private(name: str) -> bool:
    """Whether a name is not for others: it begins with an underscore, and has no two of them."""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def of_package(module: str) -> bool:
    """Whether a module is one of those packages'."""
    return module.partition(".")[0] in PACKAGES


def private_imports(tree: ast.AST) -> Iterator[str]:
    """What is imported of the packages by a private name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in filter(of_package, names):
            if any(map(is_private, beyond_logs(name).split("."))):
                yield name


def beyond_logs(name: str) -> str:
    """A name without the module of logs that it begins with."""
    for module in sorted(LOGS, key=len, reverse=True):
        if f"{name}.".startswith(f"{module}."):
            return name.removeprefix(module)
    return name


def own_names(tree: ast.AST) -> set[str]:
    """The private names that a module defines itself."""
    defined: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) in ("self", "cls")
        ):
            defined.add(node.attr)
    return defined


def private_reads(tree: ast.AST) -> Iterator[str]:
    """What is read by a private name that the module does not define itself."""
    known = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in known:
            yield f"{ast.unparse(node)}, line {node.lineno}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in FUNCTIONS:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and is_private(str(argument.value)):
                    yield f"{ast.unparse(node)}, line {node.lineno}"


def knows_packages(tree: ast.AST) -> bool:
    """Whether a module imports one of the packages."""
    return any(
        of_package(str(node.module))
        if isinstance(node, ast.ImportFrom)
        else isinstance(node, ast.Import) and any(of_package(one.name) for one in node.names)
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_is_read(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    assert list(private_imports(tree)) == []
    if knows_packages(tree):
        assert list(private_reads(tree)) == []


@pytest.mark.parametrize(
    "source",
    [
        "from opentelemetry.metrics import _internal",
        "from opentelemetry.sdk.metrics._internal import point",
        "import opentelemetry.sdk.metrics._internal",
        "from prometheus_client.registry import _EmptyCollector",
        "from opentelemetry._logs import _internal",
        "import opentelemetry.trace\nprovider._measurement_consumer",
        "import opentelemetry.trace\ngetattr(provider, '_real_instrument', None)",
        "from opentelemetry import trace\noperator.attrgetter('_sdk_config')(provider)",
    ],
)
def test_a_private_name_is_found(source: str) -> None:
    tree = ast.parse(source)
    found = [*private_imports(tree), *(private_reads(tree) if knows_packages(tree) else ())]
    assert found != []


def test_the_exporters_are_among_the_modules() -> None:
    assert {"exporters.otlp", "exporters.prometheus", "signals.histograms"} <= MODULES.keys()

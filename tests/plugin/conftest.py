"""Gives the plugin's tests suites to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from session_tracer import DEFAULT_DETECTORS, CallSite, detectors
from tests.plugin.on_demand import OnDemand
from tests.plugin.suites import ROOT, Suites

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _paths_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """A run in this process shows files from its own folder only as long as it runs."""
    yield
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"{request.node.name.partition('[')[0]}.py"
    assert CallSite(str(file), 1, "f").path == file.name


@pytest.fixture
def suites(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suites:
    """Suites in a folder of their own."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(detectors, "DEFAULT_DETECTORS", (*DEFAULT_DETECTORS, OnDemand()))
    return Suites(pytester)

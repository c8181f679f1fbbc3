"""Gives the plugin's tests suites to run."""

import pytest

from session_tracer import DEFAULT_DETECTORS, detectors
from tests.plugin.on_demand import OnDemand
from tests.plugin.suites import ROOT, Suites


@pytest.fixture
def suites(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suites:
    """Suites in a folder of their own."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(detectors, "DEFAULT_DETECTORS", (*DEFAULT_DETECTORS, OnDemand()))
    return Suites(pytester)

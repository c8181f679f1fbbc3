"""Tests the alert rules with promtool, and the names that they use."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from session_tracer.model.findings import FINDING_IDS
from session_tracer.signals import names
from tests.test_dashboard import series_of

FOLDER: Final = Path(__file__).parents[1] / "grafana" / "alerts"
GROUPS: Final[list[dict[str, Any]]] = yaml.safe_load((FOLDER / "session-tracer.yml").read_text())[
    "groups"
]
RULES: Final[list[dict[str, Any]]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS: Final = [rule for rule in RULES if "alert" in rule]
RECORDED: Final = {rule["record"] for rule in RULES if "record" in rule}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="no `promtool` on the PATH; Debian and Ubuntu have it in the package `prometheus`",
)


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_the_rules_are_valid() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "session-tracer.yml")


@needs_promtool
def test_each_alert_fires_and_stays_silent_as_it_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", "session-tracer_test.yml")


def test_each_alert_is_tested() -> None:
    tests = (FOLDER / "session-tracer_test.yml").read_text()
    assert [rule["alert"] for rule in ALERTS if rule["alert"] not in tests] == []


def test_each_alert_has_a_severity_and_what_to_do() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    paged = [rule["alert"] for rule in ALERTS if rule["labels"]["severity"] == "page"]
    assert paged == ["SQLAlchemyPoolSaturated", "SQLAlchemyTransactionStuck"]


def test_the_rules_ask_for_metrics_that_are_emitted() -> None:
    emitted = {series for metric in names.METRICS for series in series_of(metric)}
    asked = {
        name
        for rule in RULES
        for name in re.findall(
            r"(?:sqlalchemy|session_tracer|db_client)\w+", metrics_of(rule["expr"])
        )
    }
    assert asked - emitted == set()
    ids = re.findall(r'sqlalchemy_finding_id=~?"([^"]+)"', str(RULES))
    assert {id_ for each in ids for id_ in each.split("|")} <= set(FINDING_IDS)


def metrics_of(expression: str) -> str:
    """An expression without the labels in it, and without what a rule records."""
    for recorded in RECORDED:
        expression = expression.replace(recorded, "")
    return re.sub(r"\{[^}]*\}|\b(?:by|on) \([^)]*\)", "", expression)

"""Every key of every log event is in the table of docs/logs.md, and no other."""

from __future__ import annotations

import ast
import gc
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from examples.misuse.db import close_shop, open_shop
from examples.misuse.scenes import SCENES
from session_tracer.signals import names
from session_tracer.testing import capture
from tests.exporters.test_evidence import KEYS

if TYPE_CHECKING:
    from session_tracer.exporter import LogEvent

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "logs.md").read_text()
OF_EVENTS, _, OF_KEYS = PAGE.partition("\n## Keys\n")
EVENTS = re.findall(r"^\| `([\w.]+)` \|", OF_EVENTS, re.MULTILINE)
TABLED = re.findall(r"^\| `(\w+)` \|", OF_KEYS, re.MULTILINE)
# Counts by mapped class, which the page describes once.
BY_ENTITY = "_by_entity"


@pytest.fixture(scope="module")
def logged() -> list[LogEvent]:
    """The events of all examples of misuse, step by step."""
    events: list[LogEvent] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some examples are about a warning
        for scene in SCENES:
            open_shop()
            overrides: dict[str, Any] = {**scene.settings, "log_level": "debug"}
            with capture(**overrides) as captured:
                scene.play()
            events += captured.logs
            gc.collect()
            close_shop()
    return events


def test_no_key_is_listed_twice() -> None:
    assert sorted(set(TABLED)) == sorted(TABLED)


def test_each_key_that_is_logged_is_in_the_table(logged: list[LogEvent]) -> None:
    of_findings = [one for event in logged for one in event.get("findings", ())]
    keys = {key.removesuffix(BY_ENTITY) for event in [*logged, *of_findings] for key in event}
    assert keys - set(TABLED) == set()


def test_each_key_of_evidence_is_in_the_table() -> None:
    assert KEYS.keys() - set(TABLED) == set()


def test_each_key_in_the_table_is_logged_or_named_by_the_code_that_logs(
    logged: list[LogEvent],
) -> None:
    keys = {key.removesuffix(BY_ENTITY) for event in logged for key in event}
    source = "".join(
        (ROOT / "session_tracer" / file).read_text()
        for file in (
            *("signals/logs.py", "model/summary.py", "runtime/environment.py"),
            "ledger/report.py",
        )
    )
    named = {
        node.value
        for node in ast.walk(ast.parse(source.replace("from __future__ import annotations", "")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(TABLED) - keys - KEYS.keys() - named == set()


def test_each_event_is_in_the_table() -> None:
    assert set(EVENTS) == {
        names.SESSION_OPENED,
        names.SESSION_CLOSED,
        names.TRANSACTION_ENDED,
        names.FLUSH_COMPLETED,
        names.FLUSH_FAILED,
        names.FINDING,
        names.FINDING_LASTING,
        names.FINDING_RETRACTED,
        names.SUPPRESSED,
    }


def test_no_key_is_logged_without_a_value(logged: list[LogEvent]) -> None:
    empty = {
        key
        for event in logged
        for key, value in event.items()
        if not value and (key, event["event"]) != ("suppressed", names.FINDING)
    }
    assert empty == set()


def test_durations_are_rounded_alike(logged: list[LogEvent]) -> None:
    for event in logged:
        for key, value in event.items():
            if key.endswith("_ms"):
                assert value == round(value, 3), (event["event"], key)

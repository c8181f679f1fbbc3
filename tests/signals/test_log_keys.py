"""Tests that docs/signals.md has every key of every log event with its type, and no other."""

from __future__ import annotations

import ast
import gc
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from docs.signals import ELEMENTS, LOG_KEYS, MILLISECONDS, PYTHON_TYPES
from examples.misuse.db import close_shop, open_shop
from examples.misuse.scenes import SCENES
from session_tracer.signals import names
from session_tracer.testing import capture
from tests.exporters.test_evidence import KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.exporter import LogEvent

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "logs.md").read_text()
EVENTS = re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE)
TABLED = [key for keys in LOG_KEYS.values() for key in keys]
TYPES = {key: one.type for keys in LOG_KEYS.values() for key, one in keys.items()}
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


def objects_in(event: LogEvent) -> Iterator[LogEvent]:
    """The event, and the objects in its lists."""
    yield event
    for value in event.values():
        if isinstance(value, list):
            yield from (one for one in value if isinstance(one, dict))


def is_of_type(key: str, value: Any) -> bool:
    """Whether the value is of the type that the table has."""
    if key.endswith(BY_ENTITY):
        return type(value) is str
    if isinstance(value, list):
        return {type(one) for one in value} <= ELEMENTS[TYPES[key]]
    return type(value) is PYTHON_TYPES[TYPES[key].partition(",")[0]]


def test_each_key_that_is_logged_is_in_the_table(logged: list[LogEvent]) -> None:
    objects = [one for event in logged for one in objects_in(event)]
    keys = {key.removesuffix(BY_ENTITY) for one in objects for key in one}
    assert keys - set(TABLED) == set()


def test_each_value_that_is_logged_is_of_its_type(logged: list[LogEvent]) -> None:
    wrong = {
        key: value
        for event in logged
        for one in objects_in(event)
        for key, value in one.items()
        if not is_of_type(key, value)
    }
    assert wrong == {}


def test_the_unit_is_that_of_the_keys_name() -> None:
    in_milliseconds = {key for key, type_ in TYPES.items() if type_ == MILLISECONDS}
    assert in_milliseconds == {key for key in TYPES if key.endswith("_ms")}


def test_a_value_of_another_type_is_seen() -> None:
    assert not is_of_type("duration_ms", 3)
    assert not is_of_type("statements", 3.0)
    assert not is_of_type("statements", True)
    assert not is_of_type("doing", [{}])
    assert not is_of_type("new_by_entity", 3)
    assert is_of_type("findings", [{"finding_id": "n-plus-one"}])


def test_each_key_of_evidence_is_in_the_table() -> None:
    assert KEYS.keys() - set(TABLED) == set()


def test_each_key_in_the_table_is_logged_or_named_by_the_code_that_logs(
    logged: list[LogEvent],
) -> None:
    objects = [one for event in logged for one in objects_in(event)]
    keys = {key.removesuffix(BY_ENTITY) for one in objects for key in one}
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

"""Tests that each setting is defined once, and that an invalid value is rejected by name."""

from __future__ import annotations

import ast
import inspect
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from session_tracer import Settings, instrument
from session_tracer import settings as module
from session_tracer.runtime import degraded

DEFAULTS = Settings()
PACKAGES = 'the names of top-level packages, for example ("shop", "shop_jobs") or "shop"'
IGNORE = "a set of finding ids, each optionally followed by @glob, :Entity or :Entity.attribute"
RAISE_ON = "a set of severities (info, warning, error) and finding ids"
SEVERITIES = "a mapping of finding ids to severities (info, warning, error)"


def documented() -> set[str]:
    """The fields of Settings that are followed by a docstring."""
    (settings,) = [
        node
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    ]
    return {
        field.target.id
        for field, text in zip(settings.body, settings.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def test_every_option_has_a_docstring() -> None:
    assert documented() == {field.name for field in fields(Settings)}


def test_the_defaults_are_possible() -> None:
    assert DEFAULTS.override({}) == DEFAULTS
    assert Settings.from_env({}) == DEFAULTS


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("STATEMENT_SPANS", "1", Settings(statement_spans=True)),
        ("STATEMENT_SPANS", "TRUE", Settings(statement_spans=True)),
        ("STATEMENT_SPANS", "yes", Settings(statement_spans=True)),
        ("STATEMENT_SPANS", "on", Settings(statement_spans=True)),
        ("STATEMENT_SPANS", "0", DEFAULTS),
        ("STATEMENT_SPANS", "False", DEFAULTS),
        ("RECORD_IDENTITY", "no", DEFAULTS),
        ("RECORD_IDENTITY", "off", DEFAULTS),
        ("MAX_ENTITIES", "7", Settings(max_entities=7)),
        ("SITE_FRAMES", " 3 ", Settings(site_frames=3)),
        ("SLOW_SESSION_SECONDS", "0.25", Settings(slow_session_seconds=0.25)),
        ("SLOW_SESSION_SECONDS", "5", Settings(slow_session_seconds=5.0)),
        ("LOG_LEVEL", "warning", Settings(log_level="warning")),
        ("APPLICATION_PACKAGES", "shop", Settings(application_packages=("shop",))),
        ("APPLICATION_PACKAGES", "shop, till,", Settings(application_packages=("shop", "till"))),
        ("JSONL_PATH", "sessions.jsonl", Settings(jsonl_path="sessions.jsonl")),
        ("MAX_ENTITIES", "", DEFAULTS),
        ("IGNORE", "n-plus-one", Settings(ignore={"n-plus-one"})),
        (
            "IGNORE",
            "commit-in-loop@jobs/*, n-plus-one:Author.books,",
            Settings(ignore=["n-plus-one:Author.books", "commit-in-loop@jobs/*"]),
        ),
        (
            "SEVERITIES",
            "n-plus-one=error, large-flush = info",
            Settings(severities={"large-flush": "info", "n-plus-one": "error"}),
        ),
        ("RAISE_ON", "error,n-plus-one", Settings(raise_on={"n-plus-one", "error"})),
        ("BASELINE_PATH", "known.jsonl", Settings(baseline_path="known.jsonl")),
        ("LEAK_AFTER_SECONDS", "0.5", Settings(leak_after_seconds=0.5)),
    ],
)
def test_the_environment_names_an_option(variable: str, text: str, expected: Settings) -> None:
    assert Settings.from_env({f"SESSION_TRACER_{variable}": text}) == expected


def test_every_option_can_be_named_in_the_environment() -> None:
    texts = {
        field.name: ",".join(field.default) or "shop"
        if isinstance(field.default, tuple)
        else str(field.default)
        for field in fields(Settings)
    }
    texts["severities"] = "shop=info"
    environ = {f"SESSION_TRACER_{name.upper()}": text for name, text in texts.items()}
    assert Settings.from_env(environ) == Settings(
        application_packages=("shop",),
        ignore={"shop"},
        raise_on={"shop"},
        severities={"shop": "info"},
    )


def test_the_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SESSION_TRACER_MAX_ENTITIES", "7")
    assert Settings.from_env() == Settings(max_entities=7)


def test_other_variables_are_nobodys_business() -> None:
    assert Settings.from_env({"SESSION_TRACER_EXPORTER": "jsonl", "MAX_ENTITIES": "x"}) == DEFAULTS


@pytest.mark.parametrize(
    ("variable", "text", "allowed"),
    [
        ("STATEMENT_SPANS", "maybe", "true or false"),
        ("MAX_ENTITIES", "many", "a positive integer"),
        ("MAX_ENTITIES", "1.5", "a positive integer"),
        ("SITE_FRAMES", "one", "an integer from 1 to 50"),
        ("SLOW_SESSION_SECONDS", "soon", "a positive number of seconds"),
        ("SEVERITIES", "n-plus-one", SEVERITIES),
        ("SEVERITIES", "n-plus-one=error,large-flush", SEVERITIES),
    ],
)
def test_a_text_that_is_no_such_value_is_refused_by_its_variable(
    variable: str, text: str, allowed: str
) -> None:
    variable = f"SESSION_TRACER_{variable}"
    with pytest.raises(ValueError, match="Invalid") as refused:
        Settings.from_env({variable: text})
    assert str(refused.value) == f"Invalid {variable}={text!r}: expected {allowed}."


@pytest.mark.parametrize(
    ("option", "text", "allowed"),
    [
        ("site_frames", "51", "an integer from 1 to 50"),
        ("log_level", "loud", "one of debug, info, warning, error"),
        ("application_packages", "a.b", PACKAGES),
        ("slow_session_seconds", "nan", "a positive number of seconds"),
        ("severities", "n-plus-one=fatal", SEVERITIES),
        ("ignore", "N-Plus-One", IGNORE),
    ],
)
def test_a_value_out_of_range_in_the_environment_is_refused_by_name(
    option: str, text: str, allowed: str
) -> None:
    with pytest.raises(ValueError, match="Invalid") as refused:
        Settings.from_env({f"SESSION_TRACER_{option.upper()}": text})
    variable = f"SESSION_TRACER_{option.upper()}"
    assert str(refused.value) == f"Invalid {variable}={text!r}: expected {allowed}."


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("statement_spans", 1, "true or false"),
        ("record_identity", "yes", "true or false"),
        ("max_entities", 0, "a positive integer"),
        ("max_entities", True, "a positive integer"),
        ("max_entities", 2.0, "a positive integer"),
        ("site_frames", 0, "an integer from 1 to 50"),
        ("site_frames", None, "an integer from 1 to 50"),
        ("application_packages", "shop.web", PACKAGES),
        ("application_packages", ["shop.web"], PACKAGES),
        ("application_packages", (1,), PACKAGES),
        ("application_packages", ("",), PACKAGES),
        ("slow_session_seconds", 0, "a positive number of seconds"),
        ("slow_session_seconds", float("nan"), "a positive number of seconds"),
        ("slow_session_seconds", True, "a positive number of seconds"),
        ("repeat_finding_seconds", -1.0, "a positive number of seconds"),
        ("repeat_finding_seconds", "60", "a positive number of seconds"),
        ("log_level", "INFO", "one of debug, info, warning, error"),
        ("log_level", [], "one of debug, info, warning, error"),
        ("timeline_steps", 3, "an integer from 4 to 10000"),
        ("timeline_steps", 10_001, "an integer from 4 to 10000"),
        ("jsonl_path", "", "a non-empty string"),
        ("prometheus_host", None, "a non-empty string"),
        ("prometheus_port", 65_536, "an integer from 0 to 65535"),
        ("prometheus_port", -1, "an integer from 0 to 65535"),
        ("ignore", {1}, IGNORE),
        ("ignore", {""}, IGNORE),
        ("ignore", {"n plus one"}, IGNORE),
        ("ignore", {"n-plus-one@"}, IGNORE),
        ("ignore", {"n-plus-one:"}, IGNORE),
        ("ignore", {"n-plus-one:Author.books.title"}, IGNORE),
        ("ignore", {"@jobs/*"}, IGNORE),
        ("ignore", {"n-*"}, IGNORE),
        ("ignore", None, IGNORE),
        ("raise_on", {"Error"}, RAISE_ON),
        ("raise_on", {"n-plus-one@jobs/*"}, RAISE_ON),
        ("severities", {"n-plus-one": "fatal"}, SEVERITIES),
        ("severities", {"n-plus-one": None}, SEVERITIES),
        ("severities", {"N+1": "info"}, SEVERITIES),
        ("severities", {1: "info"}, SEVERITIES),
        ("severities", ["n-plus-one"], SEVERITIES),
        ("baseline_path", None, "a string"),
        ("leak_after_seconds", 0, "a positive number of seconds"),
        ("lazy_loads_from_one_site", 1, "an integer of at least 2"),
        ("large_flush_objects", 0, "a positive integer"),
    ],
)
def test_a_bad_value_is_refused_by_name(option: str, value: Any, allowed: str) -> None:
    message = f"Invalid {option}={value!r}: expected {allowed}."
    with pytest.raises(ValueError, match="Invalid") as refused:
        Settings(**{option: value})
    assert str(refused.value) == message
    with pytest.raises(ValueError, match="Invalid") as refused:
        DEFAULTS.override({option: value})
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("site_frames", 1),
        ("site_frames", 50),
        ("timeline_steps", 4),
        ("timeline_steps", 10_000),
        ("prometheus_port", 0),
        ("prometheus_port", 65_535),
        ("slow_session_seconds", 1),
        ("application_packages", ("_shop", "till2")),
        ("ignore", {"*", "*@jobs/*", "*:Author", "own-finding:Author.books", "n-plus-one@*.py"}),
        ("raise_on", {"error", "own-finding"}),
        ("severities", {"own-finding": "error"}),
        ("baseline_path", ""),
        ("lazy_loads_from_one_site", 2),
        ("large_flush_objects", 1),
    ],
)
def test_a_value_at_the_edge_is_possible(option: str, value: Any) -> None:
    assert getattr(Settings(**{option: value}), option) == value


def test_a_keyword_beats_the_environment() -> None:
    of_the_environment = Settings.from_env(
        {"SESSION_TRACER_MAX_ENTITIES": "7", "SESSION_TRACER_SITE_FRAMES": "3"}
    )
    assert of_the_environment.override({"max_entities": 9}) == Settings(
        max_entities=9, site_frames=3
    )


def test_an_unknown_option_is_refused_with_the_available_ones() -> None:
    with pytest.raises(ValueError, match="Unknown setting") as refused:
        DEFAULTS.override({"max_entity": 1, "site_frames": 2})
    known = ", ".join(sorted(field.name for field in fields(Settings)))
    assert str(refused.value) == (
        f"Unknown setting 'max_entity'. Did you mean 'max_entities'? Available: {known}."
    )


@pytest.mark.parametrize(
    ("option", "given", "value"),
    [
        ("application_packages", "shop", ("shop",)),
        ("application_packages", "shop, till", ("shop", "till")),
        ("application_packages", ["shop", "till"], ("shop", "till")),
        ("ignore", "n-plus-one, *@jobs/*", frozenset({"n-plus-one", "*@jobs/*"})),
        ("raise_on", "error", frozenset({"error"})),
    ],
)
def test_names_may_be_one_text_as_in_the_environment(option: str, given: Any, value: Any) -> None:
    assert getattr(Settings(**{option: given}), option) == value


def test_a_misspelt_variable_is_warned_of_once_with_the_nearest_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(degraded, "_WARNED", set())
    environment = {
        "SESSION_TRACER_JSON_PATH": "events.jsonl",
        "SESSION_TRACER_EXPORTER": "jsonl",
        "SESSION_TRACER_MAX_ENTITIES": "7",
        "SESSION_TRACER_TEST_POSTGRES": "postgresql://",
        "SESSIONS": "3",
    }
    for _ in range(2):
        assert Settings.from_env(environment) == Settings(max_entities=7)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("session_tracer", "WARNING")
    assert record.getMessage() == (
        "session_tracer: unknown environment variable SESSION_TRACER_JSON_PATH, which has no "
        "effect. Did you mean 'SESSION_TRACER_JSONL_PATH'?"
    )


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        DEFAULTS.max_entities = 1  # type: ignore[misc] # what the test is about
    assert hash(DEFAULTS) == hash(Settings())


def test_whose_set_or_dict_it_is_cannot_change_settings_later() -> None:
    ignore, severities = {"n-plus-one"}, {"n-plus-one": "info"}
    settings = DEFAULTS.override({"ignore": ignore, "severities": severities, "raise_on": ignore})
    assert isinstance(hash(settings), int)
    ignore.clear()
    severities.clear()
    assert settings == Settings(
        ignore={"n-plus-one"}, raise_on={"n-plus-one"}, severities={"n-plus-one": "info"}
    )


def test_a_bad_setting_leaves_sqlalchemy_as_it_was() -> None:
    before = dict(vars(Session))
    with pytest.raises(ValueError, match="Invalid max_entities=0"):
        instrument(sessionmaker(), max_entities=0)
    with pytest.raises(ValueError, match=r"Unknown setting .max_entitys."):
        instrument(max_entitys=1)  # type: ignore[call-arg]
    assert dict(vars(Session)) == before

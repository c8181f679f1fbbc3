"""Reads the settings of findings from pytest's configuration file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from session_tracer.settings import Settings

__all__ = ["SETTINGS", "SMALL", "add_settings", "given_settings", "settings_for_tests"]

PREFIX: Final = "session_tracer_"

# The fields of `Settings` that the configuration file can set. They are listed here because every
# run of pytest imports this module, and `Settings` is imported when tests are traced.
SETTINGS: Final = (
    "ignore",
    "severities",
    "leak_after_seconds",
    "long_transaction_seconds",
    "idle_in_transaction_seconds",
    "commits_from_one_site",
    "commit_loop_gap_seconds",
    "batch_commit_objects",
    "savepoints_per_transaction",
    "autoflushes_from_one_site",
    "failed_flushes_from_one_site",
    "large_flush_objects",
    "unchanged_dirty_objects",
    "single_row_writes",
    "lazy_loads_from_one_site",
    "gets_from_one_site",
    "queries_from_one_site",
    "sessions_from_one_site",
    "repeats_of_one_select",
    "reloads_after_commit",
    "refreshes_from_one_site",
    "blocked_loop_seconds",
    "large_identity_map_objects",
    "large_result_objects",
    "traces_per_session",
)
# What a list in TOML, or one line each, can be.
_LISTS: Final = ("ignore", "severities")
# A test has three rows where production has a thousand.
SMALL: Final[Mapping[str, int]] = {
    "lazy_loads_from_one_site": 2,
    "gets_from_one_site": 3,
    "queries_from_one_site": 3,
    "reloads_after_commit": 3,
    "refreshes_from_one_site": 3,
}


def add_settings(parser: pytest.Parser) -> None:
    """Declare the settings."""
    for name in SETTINGS:
        default = f", {SMALL[name]} by default" if name in SMALL else ""
        kind: Literal["linelist", "string"] = "linelist" if name in _LISTS else "string"
        parser.addini(PREFIX + name, f"the setting {name} in tests{default}", kind, default="")


def given_settings(config: pytest.Config) -> dict[str, str]:
    """Return the settings that the configuration file has, as they are written there."""
    texts = {name: text_of(config.getini(PREFIX + name)) for name in SETTINGS}
    return {name: text for name, text in texts.items() if text}


def text_of(given: str | list[str]) -> str:
    """Return what an option has: its lines, or in TOML its list, separated by commas."""
    return given.strip() if isinstance(given, str) else ", ".join(given)


def settings_for_tests(given: Mapping[str, str]) -> Settings:
    """Return the settings: of the environment, else of the configuration file, else for small data.

    Args:
        given: What the configuration file has.

    Raises:
        ValueError: a setting is invalid.
    """
    from session_tracer.settings import Settings

    of_environment = Settings.from_env()
    default = {**SMALL, **{name: _read(name, text) for name, text in given.items()}}
    chosen = {name: value for name, value in default.items() if not _is_in_environment(name)}
    # The plugin counts the known findings, so the tracer must not drop them.
    return of_environment.override({**chosen, "baseline_path": ""})


def _read(name: str, text: str) -> Any:
    from session_tracer.settings import read_setting
    from session_tracer.verdicts.ignoring import ANY, Ignored, check_ids

    where = " in pytest's configuration file"
    try:
        value = read_setting(name, text)
    except ValueError as error:
        message = f"Invalid {PREFIX}{name}={text!r}{where}: expected {error}."
        raise ValueError(message) from None
    # The environment may be the application's, which may have findings of its own.
    if name == "ignore":
        check_ids(PREFIX + name, [Ignored.parse(entry).id for entry in value], (ANY,))
    if name == "severities":
        check_ids(PREFIX + name, value)
    return value


def _is_in_environment(name: str) -> bool:
    return bool(os.environ.get(f"{PREFIX}{name}".upper()))

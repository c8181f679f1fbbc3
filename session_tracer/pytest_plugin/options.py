"""The plugin's command-line options and its settings in pytest's configuration file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from session_tracer.pytest_plugin.budgets import BUDGETS, OPTION, read_default_budgets
from session_tracer.pytest_plugin.configured import add_settings, given_settings, text_of

if TYPE_CHECKING:
    from session_tracer.model.findings import Severity

__all__ = ["Options", "add_options", "read_options", "separate_path"]

_FAIL_FROM: Final[dict[str, Severity | None]] = {
    "report": None,
    "info": "info",
    "warning": "warning",
    "error": "error",
}
_ALLOWED: Final = "report, info, warning, error or off"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options as they were given.

    Attributes:
        on: Whether every test is traced.
        fail_from: The lowest severity of findings for which a test fails; None for none.
        baseline: The file of known findings.
        update: Whether that file is brought up to date.
        json: The file to which all findings are written.
        sarif: The file to which new findings are written for code scanning.
        settings: The settings in the configuration file, as they are written there.
        budgets: The budgets of tests whose markers do not set them.
    """

    on: bool = False
    fail_from: Severity | None = None
    baseline: Path | None = None
    update: bool = False
    json: Path | None = None
    sarif: Path | None = None
    settings: dict[str, str] = field(default_factory=dict)
    budgets: dict[str, float] = field(default_factory=dict)


def add_options(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("session_tracer", "SQLAlchemy sessions (session_tracer)")
    group.addoption(
        "--session-tracer",
        nargs="?",
        const="report",
        metavar="SEVERITY",
        help="report the findings of session_tracer; with info, warning or error also fail the "
        "tests with findings of that severity or a higher one",
    )
    group.addoption(
        "--session-tracer-baseline",
        metavar="FILE",
        help="report only the findings that FILE does not contain",
    )
    group.addoption(
        "--session-tracer-update-baseline",
        action="store_true",
        help="add the findings of this run to the baseline, and remove known ones that are gone",
    )
    group.addoption(
        "--session-tracer-json", metavar="FILE", help="write the findings to FILE as JSON"
    )
    group.addoption(
        "--session-tracer-sarif",
        metavar="FILE",
        help="write the new findings to FILE as SARIF, for code scanning",
    )
    parser.addini("session_tracer", f"default of --session-tracer: {_ALLOWED}", default="off")
    parser.addini(
        "session_tracer_baseline",
        "default of --session-tracer-baseline, relative to the configuration file",
        default="",
    )
    parser.addini(OPTION, f"budgets of every test: {', '.join(BUDGETS)}", "linelist", default="")
    add_settings(parser)


def separate_path(config: pytest.Config, args: list[str]) -> None:
    """Read `--session-tracer tests/` as `--session-tracer=report tests/`."""
    for index, (option, following) in enumerate(pairwise(args)):
        is_value = following in (*_FAIL_FROM, "off") or following.startswith("-")
        if option == "--session-tracer" and not is_value:
            args[index] = "--session-tracer=report"
            # Where pytest looks for the first conftest files.
            config.known_args_namespace.file_or_dir.insert(0, following)


def read_options(config: pytest.Config) -> Options:
    """Return the options as they were given.

    Raises:
        pytest.UsageError: a value is invalid, or the baseline to update is not named.
    """
    given = config.getoption("--session-tracer")
    settings = given_settings(config)
    try:
        budgets = read_default_budgets(text_of(config.getini(OPTION)))
    except ValueError as error:
        raise pytest.UsageError(f"session_tracer: {error}") from None
    update = bool(config.getoption("--session-tracer-update-baseline"))
    baseline = _baseline(config)
    json, sarif = _path(config, "--session-tracer-json"), _path(config, "--session-tracer-sarif")
    has_option = bool(config.getoption("--session-tracer-baseline") or update or json or sarif)
    value = given or config.getini("session_tracer")
    if value == "off":
        if given or not has_option:
            return Options(settings=settings, budgets={} if given else budgets)
        value = "report"  # an option names a file, so findings are reported
    if value not in _FAIL_FROM:
        option = "--session-tracer" if given else "session_tracer"
        where = "" if given else " in pytest's configuration file"
        raise pytest.UsageError(f"Invalid {option}={value!r}{where}: expected {_ALLOWED}.")
    if update and baseline is None:
        raise pytest.UsageError(
            "--session-tracer-update-baseline needs a file: add --session-tracer-baseline=FILE."
        )
    return Options(
        on=True,
        fail_from=_FAIL_FROM[value],
        baseline=baseline,
        update=update,
        json=json,
        sarif=sarif,
        settings=settings,
        budgets=budgets,
    )


def _path(config: pytest.Config, option: str) -> Path | None:
    given = config.getoption(option)
    return Path(config.invocation_params.dir, given) if given else None


def _baseline(config: pytest.Config) -> Path | None:
    given = _path(config, "--session-tracer-baseline")
    if given:
        return given
    default = config.getini("session_tracer_baseline")
    if default:
        home = config.rootpath if config.inipath is None else config.inipath.parent
        return Path(home, default)
    # The setting baseline_path, which instrument() uses.
    setting = os.environ.get("SESSION_TRACER_BASELINE_PATH")
    return Path(config.invocation_params.dir, setting) if setting else None

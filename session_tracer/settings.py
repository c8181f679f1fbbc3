"""Every setting, its default and its valid values."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, get_args

from session_tracer.runtime.degraded import warn_once
from session_tracer.runtime.nearest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from session_tracer.model.findings import Severity

__all__ = ["LogLevel", "Overrides", "Settings"]

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

_PREFIX: Final = "SESSION_TRACER_"
_EXPORTER: Final = "SESSION_TRACER_EXPORTER"
# The project's own tests and benchmarks have variables of their own.
_OF_TESTS: Final = ("SESSION_TRACER_TEST_", "SESSION_TRACER_BENCH_")
# Settings that may also be one text in which commas separate the names.
_LISTS_OF_NAMES: Final = frozenset({"application_packages", "ignore", "raise_on"})
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings. Each field is also an environment variable, `SESSION_TRACER_<FIELD>`.

    Instances are immutable. Thresholds of findings are counted per session scope.

    Raises:
        ValueError: a value is invalid. The message names the setting, the value and what is
            expected.
    """

    disabled: bool = False
    """Switch tracing off: `instrument()` returns and changes nothing.

    Set it in the environment to switch tracing off without a change of the code.
    """

    statement_spans: bool = False
    """Emit a CLIENT span and `db.client.operation.duration` for each statement.

    Set it if no other instrumentation emits spans for the database driver.
    """

    record_identity: bool = False
    """Include the primary keys of the objects that a finding is about.

    No other column value is ever emitted.
    """

    max_entities: int = 100
    """Number of mapped classes that metrics distinguish. The others are counted as `_other`.

    Raise it if an application has more classes, lower it to have fewer time series.
    """

    site_frames: int = 1
    """Number of application frames in a call site, the innermost first.

    Raise it if most lines are those of a common helper function.
    """

    application_packages: str | Collection[str] = ()
    """Installed packages whose lines belong to the application. Code that is not installed does.

    A tuple or list of package names, or one text in which commas separate them.
    """

    slow_session_seconds: float = 1.0
    """Duration in seconds above which a session is logged at `info` even if it wrote nothing."""

    log_level: LogLevel = "info"
    """Lowest level that is handed to the exporter. A configured structlog also filters."""

    repeat_finding_seconds: float = 60.0
    """Seconds between two log events for the same finding at the same site.

    The second event has the number of repeats. The metric counts each of them.
    """

    timeline_steps: int = 60
    """Number of steps that a session's timeline keeps. Steps in the middle are omitted."""

    ignore: str | Collection[str] = ()
    """Findings that are not reported: `id`, `id@glob`, `id:Entity` or `id:Entity.attribute`.

    `*` means any id. The glob is matched with the site's file, relative to the working directory.
    """

    severities: Mapping[str, Severity] = field(default_factory=dict, hash=False)
    """Another severity for findings, by id. In the environment: `id=severity` pairs."""

    raise_on: str | Collection[str] = ()
    """Findings that are raised as `SessionMisuse`: ids, or severities including the higher ones.

    Meant for tests.
    """

    baseline_path: str = ""
    """Path of a file of known findings, which are not reported. Empty for none.

    The pytest plugin writes this file.
    """

    leak_after_seconds: float = 60.0
    """Age in seconds at which an open session is reported (`leaked-session`).

    A session that never began a transaction is not reported. Raise it if jobs
    use one session for longer.
    """

    long_transaction_seconds: float = 30.0
    """Age in seconds at which an open transaction is reported (`long-transaction`).

    Raise it if the application has transactions that are meant to be longer.
    """

    idle_in_transaction_seconds: float = 5.0
    """Seconds for which a connection is held without a statement (`idle-in-transaction`).

    Raise it if the pool is large compared with the number of threads or tasks.
    """

    commits_from_one_site: int = 10
    """Number of commits from one line in a session that counts as a loop (`commit-in-loop`)."""

    batch_commit_objects: int = 10
    """Number of objects from which a commit is a batch and does not count (`commit-in-loop`)."""

    savepoints_per_transaction: int = 50
    """Number of savepoints in one transaction that is reported (`savepoint-churn`)."""

    autoflushes_from_one_site: int = 10
    """Number of autoflushes that write, from one line in one transaction (`autoflush-storm`)."""

    large_flush_objects: int = 1_000
    """Number of objects above which a flush is reported (`large-flush`)."""

    unchanged_dirty_objects: int = 10
    """Number of dirty objects without a net change in one flush (`unchanged-dirty`)."""

    single_row_writes: int = 50
    """Number of single-row writes of one kind to one table (`row-by-row-writes`)."""

    lazy_loads_from_one_site: int = 5
    """Number of objects for which one line lazily loads one attribute (`n-plus-one`)."""

    gets_from_one_site: int = 10
    """Number of loads of one entity by primary key, from one line (`get-in-loop`)."""

    repeats_of_one_select: int = 5
    """Number of times the same SELECT runs with the same parameters (`repeated-select`)."""

    reloads_after_commit: int = 5
    """Number of objects that one commit expired and that are reloaded (`reload-after-commit`)."""

    refreshes_from_one_site: int = 5
    """Number of `refresh()` calls from one line after a flush or commit (`refresh-after-write`)."""

    large_identity_map_objects: int = 10_000
    """Number of objects above which an identity map is reported (`large-identity-map`)."""

    large_result_objects: int = 5_000
    """Number of objects above which one statement's result is reported (`large-result`)."""

    traces_per_session: int = 3
    """Number of traces, or of unrelated tasks, in which one session is used (`shared-session`)."""

    jsonl_path: str = "-"
    """Path of the file to which the `jsonl` exporter appends. `-` is standard output."""

    prometheus_host: str = "127.0.0.1"
    """Address on which the `prometheus` exporter listens."""

    prometheus_port: int = 9464
    """Port on which the `prometheus` exporter listens. 0 uses a free port."""

    def __post_init__(self) -> None:
        for option in fields(self):
            value = given = getattr(self, option.name)
            if option.name in _LISTS_OF_NAMES and isinstance(given, str):
                value = _names(given)
                object.__setattr__(self, option.name, value)
            allowed, holds = _RULES[option.name]
            try:
                right = holds(value)
            except TypeError:
                right = False
            if not right:
                raise ValueError(f"Invalid {option.name}={given!r}: expected {allowed}.")
        # Copied: the caller may change its set or dictionary later.
        object.__setattr__(self, "application_packages", tuple(self.application_packages))
        object.__setattr__(self, "ignore", frozenset(self.ignore))
        object.__setattr__(self, "raise_on", frozenset(self.raise_on))
        object.__setattr__(self, "severities", dict(self.severities))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Return the settings in the environment, and the defaults of the others.

        A variable that starts with `SESSION_TRACER_` and is not a setting is logged once as a
        warning.

        Args:
            environ: The environment variables, by default those of the process.

        Returns:
            The settings.

        Raises:
            ValueError: a variable has an invalid value.
        """
        environ = os.environ if environ is None else environ
        _warn_of_unknown(environ)
        given: dict[str, Any] = {}
        for option in fields(cls):
            variable = _PREFIX + option.name.upper()
            text = environ.get(variable)
            if text is None or text == "":
                continue
            parse = _pairs if option.name == "severities" else _PARSERS[type(option.default)]
            try:
                given[option.name] = parse(text.strip())
            except ValueError:
                allowed, _ = _RULES[option.name]
                raise ValueError(f"Invalid {variable}={text!r}: expected {allowed}.") from None
        try:
            return cls(**given)
        except ValueError as error:
            raise ValueError(f"In the environment ({_PREFIX}...): {error}") from None

    def override(self, overrides: Mapping[str, Any]) -> Settings:
        """Return a copy of these settings with some fields replaced.

        Args:
            overrides: The new values, by field name.

        Returns:
            The new settings.

        Raises:
            ValueError: a name is not a setting, or a value is invalid.
        """
        known = {option.name for option in fields(self)}
        unknown = sorted(set(overrides) - known)
        for name in unknown:
            raise ValueError(
                f"Unknown setting {name!r}.{did_you_mean(name, known)} Available: "
                f"{', '.join(sorted(known))}."
            )
        return replace(self, **overrides)


class Overrides(TypedDict, total=False):
    """The fields of `Settings` as optional keywords of `instrument()`."""

    disabled: bool
    statement_spans: bool
    record_identity: bool
    max_entities: int
    site_frames: int
    application_packages: str | Collection[str]
    slow_session_seconds: float
    log_level: LogLevel
    repeat_finding_seconds: float
    timeline_steps: int
    ignore: str | Collection[str]
    severities: Mapping[str, Severity]
    raise_on: str | Collection[str]
    baseline_path: str
    leak_after_seconds: float
    long_transaction_seconds: float
    idle_in_transaction_seconds: float
    commits_from_one_site: int
    batch_commit_objects: int
    savepoints_per_transaction: int
    autoflushes_from_one_site: int
    large_flush_objects: int
    unchanged_dirty_objects: int
    single_row_writes: int
    lazy_loads_from_one_site: int
    gets_from_one_site: int
    repeats_of_one_select: int
    reloads_after_commit: int
    refreshes_from_one_site: int
    large_identity_map_objects: int
    large_result_objects: int
    traces_per_session: int
    jsonl_path: str
    prometheus_host: str
    prometheus_port: int


def _warn_of_unknown(environ: Mapping[str, str]) -> None:
    known = {_PREFIX + option.name.upper() for option in fields(Settings)} | {_EXPORTER}
    for variable in environ:
        if (
            variable.startswith(_PREFIX)
            and variable not in known
            and not variable.startswith(_OF_TESTS)
        ):
            warn_once(
                f"session_tracer: unknown environment variable {variable}, which has no effect."
                f"{did_you_mean(variable, known)}"
            )


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered not in _TRUE | _FALSE:
        raise ValueError(text)
    return lowered in _TRUE


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _pairs(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in _names(text)]
    if any(not sign for _, sign, _ in pairs):
        raise ValueError(text)
    return {name.strip(): value.strip() for name, _, value in pairs}


_PARSERS: Final[Mapping[type, Callable[[str], Any]]] = {
    bool: _boolean,
    int: int,
    float: float,
    str: str,
    tuple: _names,
}


def _whole(least: int, most: int | None = None) -> tuple[str, Callable[[Any], bool]]:
    if most is not None:
        expected = f"an integer from {least} to {most}"
    else:
        expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
    return (
        expected,
        lambda value: (
            isinstance(value, int)
            and not isinstance(value, bool)
            and value >= least
            and (most is None or value <= most)
        ),
    )


_SWITCH: Final[tuple[str, Callable[[Any], bool]]] = (
    "true or false",
    lambda value: isinstance(value, bool),
)
_SECONDS: Final[tuple[str, Callable[[Any], bool]]] = (
    "a positive number of seconds",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value > 0,
)
_TEXT: Final[tuple[str, Callable[[Any], bool]]] = (
    "a non-empty string",
    lambda value: isinstance(value, str) and value != "",
)
_PACKAGES: Final[tuple[str, Callable[[Any], bool]]] = (
    'the names of top-level packages, for example ("shop", "shop_jobs") or "shop"',
    lambda value: _each(value, lambda item: re.fullmatch(r"[A-Za-z_]\w*", item) is not None),
)
_LEVEL: Final[tuple[str, Callable[[Any], bool]]] = (
    f"one of {', '.join(get_args(LogLevel))}",
    lambda value: value in get_args(LogLevel),
)
_ID: Final = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_IGNORED: Final = rf"(?:{_ID}|\*)(?:@.+|:[A-Za-z_]\w*(?:\.\w+)?)?"
_SEVERITIES: Final = ("info", "warning", "error")
_IGNORE: Final[tuple[str, Callable[[Any], bool]]] = (
    "a set of finding ids, each optionally followed by @glob, :Entity or :Entity.attribute",
    lambda value: _each(value, lambda item: re.fullmatch(_IGNORED, item) is not None),
)
_RAISE_ON: Final[tuple[str, Callable[[Any], bool]]] = (
    "a set of severities (info, warning, error) and finding ids",
    lambda value: _each(value, lambda item: re.fullmatch(_ID, item) is not None),
)
_SEVERITY_OF: Final[tuple[str, Callable[[Any], bool]]] = (
    "a mapping of finding ids to severities (info, warning, error)",
    lambda value: (
        all(one in _SEVERITIES for one in value.values())
        and _each(list(value), lambda item: re.fullmatch(_ID, item) is not None)
        if isinstance(value, dict)
        else False
    ),
)
_ANY_TEXT: Final[tuple[str, Callable[[Any], bool]]] = (
    "a string",
    lambda value: isinstance(value, str),
)


def _each(value: Any, holds: Callable[[str], bool]) -> bool:
    """Whether the value is a collection of such strings; a string itself is not a collection."""
    return isinstance(value, set | frozenset | tuple | list) and all(
        isinstance(item, str) and holds(item) for item in value
    )


_RULES: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "disabled": _SWITCH,
    "statement_spans": _SWITCH,
    "record_identity": _SWITCH,
    "max_entities": _whole(1),
    "site_frames": _whole(1, 50),
    "application_packages": _PACKAGES,
    "slow_session_seconds": _SECONDS,
    "log_level": _LEVEL,
    "repeat_finding_seconds": _SECONDS,
    "timeline_steps": _whole(4, 10_000),
    "ignore": _IGNORE,
    "severities": _SEVERITY_OF,
    "raise_on": _RAISE_ON,
    "baseline_path": _ANY_TEXT,
    "leak_after_seconds": _SECONDS,
    "long_transaction_seconds": _SECONDS,
    "idle_in_transaction_seconds": _SECONDS,
    "commits_from_one_site": _whole(2),
    "batch_commit_objects": _whole(2),
    "savepoints_per_transaction": _whole(2),
    "autoflushes_from_one_site": _whole(2),
    "large_flush_objects": _whole(1),
    "unchanged_dirty_objects": _whole(1),
    "single_row_writes": _whole(2),
    "lazy_loads_from_one_site": _whole(2),
    "gets_from_one_site": _whole(2),
    "repeats_of_one_select": _whole(2),
    "reloads_after_commit": _whole(2),
    "refreshes_from_one_site": _whole(2),
    "large_identity_map_objects": _whole(1),
    "large_result_objects": _whole(1),
    "traces_per_session": _whole(2),
    "jsonl_path": _TEXT,
    "prometheus_host": _TEXT,
    "prometheus_port": _whole(0, 65_535),
}

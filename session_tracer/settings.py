"""Every setting, its default and its valid values."""

from __future__ import annotations

import math
import os
import re
import signal
from dataclasses import Field, dataclass, field, fields, replace
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeAlias,
    TypedDict,
    TypeVar,
    get_args,
)

from session_tracer.runtime.degraded import warn_once
from session_tracer.runtime.nearest import did_you_mean
from session_tracer.runtime.project_file import read_table
from session_tracer.where.expected import CLIENT_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from session_tracer.model.findings import Severity
    from session_tracer.runtime.project_file import Table

__all__ = [
    "EXPORTER_KEY",
    "IGNORED",
    "Given",
    "LogLevel",
    "Overrides",
    "Settings",
    "given_settings",
    "read_setting",
    "settings_of",
]

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

_PREFIX: Final = "SESSION_TRACER_"
_EXPORTER: Final = "SESSION_TRACER_EXPORTER"
# In `[tool.session_tracer]`, beside the settings: the names of the exporters.
EXPORTER_KEY: Final = "exporter"
# The project's own tests and benchmarks have variables of their own.
_OF_TESTS: Final = ("SESSION_TRACER_TEST_", "SESSION_TRACER_BENCH_")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_SEVERITIES: Final = frozenset({"info", "warning", "error"})
_ID: Final = r"[a-z0-9]+(?:-[a-z0-9]+)*"
# An entry of `ignore`.
IGNORED: Final = rf"(?:{_ID}|\*)(?:@.+|:[A-Za-z_]\w*(?:\.\w+)?)?"
# Those that are sent on purpose, and neither end the process nor belong to the system or to timers.
_SIGNALS: Final = (
    "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGWINCH", "SIGTTIN", "SIGTTOU", "SIGTSTP",
    "SIGINFO", "SIGIO", "SIGPWR", "SIGURG", "SIGRTMIN", "SIGRTMAX",
)  # fmt: skip
# The key of a field's metadata.
_RULE: Final = "rule"

T = TypeVar("T")


class _Rule(NamedTuple):
    """What is expected of a value, whether a value is that, and how a variable's text is read.

    `names` are the values that may be misspelt.
    """

    expected: str
    holds: Callable[[Any], bool]
    parse: Callable[[str], Any] = str
    names: tuple[str, ...] = ()

    def refusal(self, given: Any) -> str:
        """Return what is expected in place of the value, as the end of a sentence."""
        nearest = did_you_mean(given, self.names) if isinstance(given, str) and self.names else ""
        return f"expected {self.expected}.{nearest}"


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


def _whole(least: int, most: float = math.inf) -> _Rule:
    expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
    if most != math.inf:
        expected = f"an integer from {least} to {most}"
    return _Rule(expected, lambda value: _is_number(value, int) and least <= value <= most, int)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _names_like(pattern: str, expected: str) -> _Rule:
    return _Rule(expected, lambda value: _all_match(pattern, value), _names)


def _all_match(pattern: str, value: Any) -> bool:
    """Whether the value is a collection of such strings; a string itself is not a collection."""
    return isinstance(value, set | frozenset | tuple | list) and all(
        isinstance(item, str) and re.fullmatch(pattern, item) for item in value
    )


def _are_severities(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _all_match(_ID, list(value))
        and all(isinstance(one, str) and one in _SEVERITIES for one in value.values())
    )


def _is_exception(value: Any) -> bool:
    """Whether the value is an exception class, or can be the name of one."""
    if isinstance(value, str):
        return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value) is not None
    return isinstance(value, type) and issubclass(value, BaseException)


def _is_signal(value: Any) -> bool:
    """Whether it is such a signal. Its name is the same on a system that has no signals."""
    if isinstance(value, str):
        return value == "" or value in _SIGNALS
    known = {getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)}
    real_time = range(getattr(signal, "SIGRTMIN", 0), getattr(signal, "SIGRTMAX", -1) + 1)
    return _is_number(value, int) and (value in known or value in real_time or not known)


def _name_or_number(text: str) -> str | int:
    return int(text) if text.isdigit() else text


_SWITCH: Final = _Rule("true or false", lambda value: isinstance(value, bool), _boolean)
_SECONDS: Final = _Rule(
    "a positive number of seconds",
    lambda value: _is_number(value, int | float) and value > 0,
    float,
)
_TEXT: Final = _Rule("a non-empty string", lambda value: isinstance(value, str) and value != "")
_ANY_TEXT: Final = _Rule("a string", lambda value: isinstance(value, str))
_LEVEL: Final = _Rule(
    f"one of {', '.join(get_args(LogLevel))}",
    lambda value: isinstance(value, str) and value in get_args(LogLevel),
)
_SIGNAL: Final = _Rule(
    "the name or the number of a signal that neither ends the process nor belongs to the system, "
    'for example "SIGUSR1"',
    _is_signal,
    _name_or_number,
    _SIGNALS,
)
_EXCEPTIONS: Final = _Rule(
    'exception classes, or their names with their modules, for example ("shop.stock.OutOfStock",)',
    lambda value: (
        isinstance(value, set | frozenset | tuple | list) and all(map(_is_exception, value))
    ),
    _names,
)
_PACKAGES: Final = _names_like(
    r"[A-Za-z_]\w*", 'the names of top-level packages, for example ("shop", "shop_jobs") or "shop"'
)
_IGNORE: Final = _names_like(
    IGNORED,
    "a set of finding ids, each optionally followed by @glob, :Entity or :Entity.attribute",
)
_RAISE_ON: Final = _names_like(_ID, "a set of severities (info, warning, error) and finding ids")
_SEVERITY_OF: Final = _Rule(
    "a mapping of finding ids to severities (info, warning, error)", _are_severities, _pairs
)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _option(default: T, rule: _Rule) -> T:
    option: T = field(default=default, metadata={_RULE: rule})
    return option


def _rule_of(option: Field[Any]) -> _Rule:
    rule: _Rule = option.metadata[_RULE]
    return rule


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings. Each field is also an environment variable, `SESSION_TRACER_<FIELD>`.

    Instances are immutable. Thresholds of findings are counted per session scope.

    Raises:
        ValueError: a value is invalid. The message names the setting, the value and what is
            expected.
    """

    disabled: bool = _option(False, _SWITCH)
    """Switch tracing off: `instrument()` returns and changes nothing.

    Set it in the environment to switch tracing off without a change of the code.
    """

    statement_spans: bool = _option(False, _SWITCH)
    """Emit a CLIENT span and `db.client.operation.duration` for each statement.

    Set it if no other instrumentation emits spans for the database driver.
    """

    statement_comment: bool = _option(False, _SWITCH)
    """Send the statements of sessions with a comment that names the session, its line and its work.

    The database shows it with what runs now, for example in `pg_stat_activity`. The comment comes
    first, because PostgreSQL shows only the beginning of a statement. One statement is sent with at
    most 20 different comments, and without one by the sessions of other lines and works: each
    comment makes another text, which drivers and databases prepare by itself.
    """

    statement_comment_trace: bool = _option(False, _SWITCH)
    """Add the trace to the comment of `statement_comment`, as W3C's `traceparent`.

    Each request has another trace: no prepared statement is used for a second request.
    """

    record_identity: bool = _option(False, _SWITCH)
    """Include the primary keys of the objects that a finding is about.

    No other column value is ever emitted.
    """

    max_entities: int = _option(100, _whole(1))
    """Number of mapped classes that metrics distinguish. The others are counted as `_other`.

    Raise it if an application has more classes, lower it to have fewer time series.
    """

    max_works: int = _option(100, _whole(1))
    """Number of names of work (`work()`) that are distinguished. The others are `_other`.

    Raise it if an application has more endpoints and tasks.
    """

    connection_sites: bool = _option(False, _SWITCH)
    """Emit `sqlalchemy.connection.holders`: the connections that sessions hold now, by line.

    The line is the one that first used the session. No other metric has lines. At most 20 lines are
    distinguished at a time.
    """

    site_frames: int = _option(1, _whole(1, 50))
    """Number of application frames in a call site, the innermost first.

    Raise it if most lines are those of a common helper function.
    """

    application_packages: str | Collection[str] = _option((), _PACKAGES)
    """Installed packages whose lines belong to the application. Code that is not installed does.

    A tuple or list of package names, or one text in which commas separate them.
    """

    expected_exceptions: str | Collection[str | type[BaseException]] = _option(
        CLIENT_ERRORS, _EXCEPTIONS
    )
    """Exceptions that are no failure of the session that they leave: its outcome is not `failed`.

    Classes, or their names with their modules, and their subclasses. By default the exceptions of
    Starlette, FastAPI and Werkzeug whose status is below 500. To add one, use
    `(*Settings.expected_exceptions, OutOfStock)`.
    """

    slow_session_seconds: float = _option(1.0, _SECONDS)
    """Duration in seconds above which a session is logged at `info` even if it wrote nothing."""

    log_level: LogLevel = _option("info", _LEVEL)  # noqa: RUF009 - a field
    """Lowest level that is handed to the exporter. A configured structlog also filters."""

    repeat_finding_seconds: float = _option(60.0, _SECONDS)
    """Seconds in which repeats of a log event are held back.

    A repeat of a finding has the same id, entity, attribute, site and work. `flush.failed` and
    `session.closed` at the level info are repeats if they have the same site, work and error or
    outcome; with `log_level="debug"` they are all logged. At the end of the seconds, at a flush and
    at the end of the process, what was held back is logged with its number. The metrics count each.
    """

    timeline_steps: int = _option(60, _whole(4, 10_000))
    """Number of steps that a session's timeline keeps. Steps in the middle are omitted."""

    ignore: str | Collection[str] = _option((), _IGNORE)
    """Findings that are not reported: `id`, `id@glob`, `id:Entity` or `id:Entity.attribute`.

    `*` means any id. The glob is matched with the site's file, relative to the working directory.
    """

    severities: Mapping[str, Severity] = field(
        default_factory=dict, hash=False, metadata={_RULE: _SEVERITY_OF}
    )
    """Another severity for findings, by id. In the environment: `id=severity` pairs."""

    raise_on: str | Collection[str] = _option((), _RAISE_ON)
    """Findings that are raised as `SessionMisuse`: ids, or severities including the higher ones.

    Meant for tests.
    """

    baseline_path: str = _option("", _ANY_TEXT)
    """Path of a file of known findings, which are not reported. Empty for none.

    The pytest plugin writes this file.
    """

    leak_after_seconds: float = _option(60.0, _SECONDS)
    """Age in seconds at which an open session is reported (`leaked-session`).

    A session that never began a transaction is not reported. Raise it if jobs
    use one session for longer.
    """

    long_transaction_seconds: float = _option(30.0, _SECONDS)
    """Age in seconds at which an open transaction is reported (`long-transaction`).

    Raise it if the application has transactions that are meant to be longer.
    """

    idle_in_transaction_seconds: float = _option(5.0, _SECONDS)
    """Seconds for which a connection is held without a statement (`idle-in-transaction`).

    Raise it if the pool is large compared with the number of threads or tasks.
    """

    commits_from_one_site: int = _option(10, _whole(2))
    """Number of commits from one line in a session that counts as a loop (`commit-in-loop`)."""

    commit_loop_gap_seconds: float = _option(1.0, _SECONDS)
    """Seconds between two commits from which they are not of one loop (`commit-in-loop`).

    A worker that commits job by job waits for the next job between them. Raise it if a loop works
    for longer on each item.
    """

    batch_commit_objects: int = _option(10, _whole(2))
    """Number of objects from which a commit is a batch and does not count (`commit-in-loop`)."""

    savepoints_per_transaction: int = _option(50, _whole(2))
    """Number of savepoints in one transaction that is reported (`savepoint-churn`)."""

    autoflushes_from_one_site: int = _option(10, _whole(2))
    """Number of autoflushes that write, from one line in one transaction (`autoflush-storm`)."""

    failed_flushes_from_one_site: int = _option(10, _whole(2))
    """Number of flushes that fail alike at one line in a minute, in all sessions (`failed-flush`).

    A failed flush that is handled is reported only then.
    """

    large_flush_objects: int = _option(1_000, _whole(1))
    """Number of objects above which a flush is reported (`large-flush`)."""

    unchanged_dirty_objects: int = _option(10, _whole(1))
    """Number of dirty objects without a net change in one flush (`unchanged-dirty`)."""

    single_row_writes: int = _option(20, _whole(2))
    """Number of single-row writes of one kind to one table (`row-by-row-writes`)."""

    lazy_loads_from_one_site: int = _option(5, _whole(2))
    """Number of objects for which one line lazily loads one attribute (`n-plus-one`)."""

    gets_from_one_site: int = _option(10, _whole(2))
    """Number of loads of one entity by primary key, from one line (`get-in-loop`)."""

    queries_from_one_site: int = _option(10, _whole(2))
    """Number of different parameters with which one line runs a SELECT (`query-in-loop`)."""

    sessions_from_one_site: int = _option(20, _whole(2))
    """Number of sessions that a loop opens one after the other, from one line (`session-per-item`).
    """

    repeats_of_one_select: int = _option(5, _whole(2))
    """Number of times the same SELECT runs with the same parameters (`repeated-select`)."""

    reloads_after_commit: int = _option(5, _whole(2))
    """Number of objects of one class that one commit expired and that are reloaded
    (`reload-after-commit`).
    """

    refreshes_from_one_site: int = _option(5, _whole(2))
    """Number of `refresh()` calls from one line, after a flush or commit (`refresh-after-write`) or
    of different objects (`refresh-in-loop`).
    """

    blocked_loop_seconds: float = _option(0.1, _SECONDS)
    """Seconds for which one session's statements keep an event loop from its other tasks
    (`blocked-event-loop`).
    """

    large_identity_map_objects: int = _option(10_000, _whole(1))
    """Number of objects above which an identity map is reported (`large-identity-map`)."""

    large_result_objects: int = _option(5_000, _whole(1))
    """Number of objects above which one statement's result is reported (`large-result`)."""

    traces_per_session: int = _option(3, _whole(2))
    """Number of traces, or of unrelated tasks, in which one session is used (`shared-session`)."""

    jsonl_path: str = _option("-", _TEXT)
    """Path of the file to which the `jsonl` exporter appends. `-` is standard output."""

    prometheus_host: str = _option("127.0.0.1", _TEXT)
    """Address on which the `prometheus` exporter listens."""

    prometheus_port: int = _option(9464, _whole(0, 65_535))
    """Port on which the `prometheus` exporter listens. 0 uses a free port."""

    dump_signal: str | int = _option("", _SIGNAL)
    """Name or number of a signal at which `dump()` is written to standard error. Empty for none.

    Set it to see what a process holds that hangs, for example to `SIGUSR2`.
    """

    def __post_init__(self) -> None:
        for option in fields(self):
            given = getattr(self, option.name)
            rule = _rule_of(option)
            value = _names(given) if rule.parse is _names and isinstance(given, str) else given
            if not rule.holds(value):
                raise ValueError(f"Invalid {option.name}={given!r}: {rule.refusal(given)}")
            object.__setattr__(self, option.name, value)
        # Copied: the caller may change its set or dictionary later.
        object.__setattr__(self, "application_packages", tuple(self.application_packages))
        expected = [one if isinstance(one, str) else _name(one) for one in self.expected_exceptions]
        object.__setattr__(self, "expected_exceptions", tuple(expected))
        object.__setattr__(self, "ignore", frozenset(self.ignore))
        object.__setattr__(self, "raise_on", frozenset(self.raise_on))
        object.__setattr__(self, "severities", dict(self.severities))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Return the settings of the environment, else of `pyproject.toml`, else the defaults.

        The table `[tool.session_tracer]` is read from the nearest `pyproject.toml`, in the working
        directory or a folder that contains it. A variable that starts with `SESSION_TRACER_` and is
        not a setting is logged once as a warning.

        Args:
            environ: The environment variables, by default those of the process.

        Returns:
            The settings.

        Raises:
            ValueError: a variable or a key of the table has an invalid value, or the table has an
                unknown key.
        """
        return settings_of(read_table(), environ)

    def override(self, overrides: Mapping[str, Any]) -> Settings:
        """Return a copy of these settings with some fields replaced.

        Args:
            overrides: The new values, by field name.

        Returns:
            The new settings.

        Raises:
            ValueError: a name is not a setting, or a value is invalid.
        """
        for name in overrides:
            _check_name(name)
        return replace(self, **overrides)


class Given(NamedTuple):
    """The value of a setting, and the variable or the file that has it."""

    value: Any
    source: str


def settings_of(project: Table, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings as `Settings.from_env()` does, of a table that is read already."""
    given = given_settings(project, environ)
    return Settings(**{name: one.value for name, one in given.items()})


def given_settings(project: Table, environ: Mapping[str, str] | None = None) -> dict[str, Given]:
    """Return the settings that the environment or the project's table gives, by name.

    Args:
        project: The table `[tool.session_tracer]`.
        environ: The environment variables, by default those of the process.

    Raises:
        ValueError: as for `Settings.from_env()`.
    """
    environ = os.environ if environ is None else environ
    _warn_of_unknown(environ)
    source, table = project
    for name in table:
        if name != EXPORTER_KEY:
            _check_name(name, (EXPORTER_KEY,), f"In {source}: ")
    given: dict[str, Given] = {}
    for option in fields(Settings):
        variable = _PREFIX + option.name.upper()
        text = environ.get(variable, "")
        if text != "":
            given[option.name] = Given(_parsed(option, variable, text), variable)
        elif option.name in table:
            given[option.name] = Given(_read(option, source, table[option.name]), source)
    return given


def _parsed(option: Field[Any], variable: str, text: str) -> Any:
    try:
        return read_setting(option.name, text)
    except ValueError:
        refusal = _rule_of(option).refusal(text)
        raise ValueError(f"Invalid {variable}={text!r}: {refusal}") from None


def _read(option: Field[Any], source: str, value: Any) -> Any:
    try:
        return getattr(Settings(**{option.name: value}), option.name)
    except ValueError as error:
        raise ValueError(f"In {source}: {error}") from None


def _check_name(name: str, others: tuple[str, ...] = (), where: str = "") -> None:
    known = sorted([*others, *(option.name for option in fields(Settings))])
    if name not in known:
        raise ValueError(
            f"{where}Unknown setting {name!r}.{did_you_mean(name, known)} Available: "
            f"{', '.join(known)}."
        )


def read_setting(name: str, text: str) -> Any:
    """Return the value of a setting that is written as text.

    Raises:
        ValueError: it is unknown, or invalid. The message of an invalid one is what is expected.
    """
    _check_name(name)
    (rule,) = (_rule_of(option) for option in fields(Settings) if option.name == name)
    try:
        value = rule.parse(text.strip())
    except ValueError:
        raise ValueError(rule.expected) from None
    if not rule.holds(value):
        raise ValueError(rule.expected)
    return value


class Overrides(TypedDict, total=False):
    """The fields of `Settings` as optional keywords of `instrument()`."""

    disabled: bool
    statement_spans: bool
    statement_comment: bool
    statement_comment_trace: bool
    record_identity: bool
    max_entities: int
    max_works: int
    connection_sites: bool
    site_frames: int
    application_packages: str | Collection[str]
    expected_exceptions: str | Collection[str | type[BaseException]]
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
    commit_loop_gap_seconds: float
    batch_commit_objects: int
    savepoints_per_transaction: int
    autoflushes_from_one_site: int
    failed_flushes_from_one_site: int
    large_flush_objects: int
    unchanged_dirty_objects: int
    single_row_writes: int
    lazy_loads_from_one_site: int
    gets_from_one_site: int
    queries_from_one_site: int
    sessions_from_one_site: int
    repeats_of_one_select: int
    reloads_after_commit: int
    refreshes_from_one_site: int
    blocked_loop_seconds: float
    large_identity_map_objects: int
    large_result_objects: int
    traces_per_session: int
    jsonl_path: str
    prometheus_host: str
    prometheus_port: int
    dump_signal: str | int


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

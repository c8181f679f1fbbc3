"""Every option, once."""

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
# What may also be one text, with commas between the names.
_LISTS_OF_NAMES: Final = frozenset({"application_packages", "ignore", "raise_on"})
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be chosen; each field is also an environment variable, `SESSION_TRACER_<FIELD>`.

    Raises `ValueError`, naming the option, the value and what is allowed, for a value that makes
    no sense.
    """

    disabled: bool = False
    """Switch tracing off: `instrument()` returns and changes nothing."""

    statement_spans: bool = False
    """Emit a CLIENT span and `db.client.operation.duration` for every statement."""

    record_identity: bool = False
    """Name the primary keys of the objects a finding is about. No other value is ever emitted."""

    max_entities: int = 100
    """How many mapped classes metrics tell apart; the rest are `_other`."""

    site_frames: int = 1
    """How many application frames a call site carries, innermost first."""

    application_packages: str | Collection[str] = ()
    """Installed packages whose lines are the application's own; what is not installed always is.

    Several names as a tuple or list, or as a text that separates them with commas.
    """

    slow_session_seconds: float = 1.0
    """A session that lived longer is logged at `info` although nothing else happened."""

    log_level: LogLevel = "info"
    """The lowest level handed to the exporter; a configured structlog filters for itself."""

    repeat_finding_seconds: float = 60.0
    """Repeats of one finding from one site are logged at most this often, with their number."""

    timeline_steps: int = 60
    """The most steps of a session's timeline that are kept; the middle is left out."""

    ignore: str | Collection[str] = ()
    """Findings that are not reported: an id, or `id@glob` for sites, or `id:Entity.attribute`.

    `*` is every id; the glob is matched with the site's file, relative to the working directory.
    """

    severities: Mapping[str, Severity] = field(default_factory=dict, hash=False)
    """Another severity for findings of an id; in the environment `id=severity` pairs."""

    raise_on: str | Collection[str] = ()
    """Findings that are raised as `SessionMisuse`: ids, or severities, each with those above it.

    Meant for tests.
    """

    baseline_path: str = ""
    """A file of known findings, which are not said, as the pytest plugin writes it. Empty: none."""

    leak_after_seconds: float = 60.0
    """A session open longer that has begun a transaction is said to leak (`leaked-session`)."""

    long_transaction_seconds: float = 30.0
    """A transaction open longer is long (`long-transaction`)."""

    idle_in_transaction_seconds: float = 5.0
    """A connection held longer without a statement is idle (`idle-in-transaction`)."""

    commits_from_one_site: int = 10
    """So many commits from one line are a loop (`commit-in-loop`)."""

    batch_commit_objects: int = 10
    """A commit of so many objects is a batch, and none of a loop's (`commit-in-loop`)."""

    savepoints_per_transaction: int = 50
    """So many savepoints in one transaction are many (`savepoint-churn`)."""

    autoflushes_from_one_site: int = 10
    """So many autoflushes with content from one line in one transaction (`autoflush-storm`)."""

    large_flush_objects: int = 1_000
    """A flush of more objects is large (`large-flush`)."""

    unchanged_dirty_objects: int = 10
    """So many objects without a net change in one flush (`unchanged-dirty`)."""

    single_row_writes: int = 50
    """So many single-row writes of one kind to one table (`row-by-row-writes`)."""

    lazy_loads_from_one_site: int = 5
    """One attribute lazily loaded for so many objects from one line (`n-plus-one`)."""

    gets_from_one_site: int = 10
    """So many loads by primary key of one entity from one line (`get-in-loop`)."""

    repeats_of_one_select: int = 5
    """The same SELECT with the same parameters so many times (`repeated-select`)."""

    reloads_after_commit: int = 5
    """So many objects that one commit expired, reloaded one by one (`reload-after-commit`)."""

    refreshes_from_one_site: int = 5
    """So many `refresh()` from one line after a flush or commit (`refresh-after-write`)."""

    large_identity_map_objects: int = 10_000
    """An identity map of more objects is large (`large-identity-map`)."""

    large_result_objects: int = 5_000
    """A statement that loads more objects has a large result (`large-result`)."""

    traces_per_session: int = 3
    """A session used in so many traces, or unrelated tasks, is shared (`shared-session`)."""

    jsonl_path: str = "-"
    """Where the `jsonl` exporter appends its lines; `-` is standard output."""

    prometheus_host: str = "127.0.0.1"
    """The address the `prometheus` exporter listens on."""

    prometheus_port: int = 9464
    """The port the `prometheus` exporter listens on; 0 takes a free one."""

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
        # Whose set or dict it is may change it later.
        object.__setattr__(self, "application_packages", tuple(self.application_packages))
        object.__setattr__(self, "ignore", frozenset(self.ignore))
        object.__setattr__(self, "raise_on", frozenset(self.raise_on))
        object.__setattr__(self, "severities", dict(self.severities))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """The settings that the environment names, the defaults for the rest.

        Raises `ValueError` for a bad value. A variable that is no setting's is warned of once.
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
        """These settings with some fields replaced; an unknown name raises `ValueError`."""
        known = {option.name for option in fields(self)}
        unknown = sorted(set(overrides) - known)
        for name in unknown:
            raise ValueError(
                f"Unknown setting {name!r}.{did_you_mean(name, known)} Available: "
                f"{', '.join(sorted(known))}."
            )
        return replace(self, **overrides)


class Overrides(TypedDict, total=False):
    """The fields of `Settings` as keywords, as `instrument()` takes them: none has to be given."""

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
    span = f"from {least} up" if most is None else f"from {least} to {most}"
    return (
        f"a whole number {span}",
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
    "a number of seconds above 0",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value > 0,
)
_TEXT: Final[tuple[str, Callable[[Any], bool]]] = (
    "some text",
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
    "a set of findings' ids, each alone, with @ and a glob for files, or with : and an entity",
    lambda value: _each(value, lambda item: re.fullmatch(_IGNORED, item) is not None),
)
_RAISE_ON: Final[tuple[str, Callable[[Any], bool]]] = (
    "a set of severities (info, warning, error) and of findings' ids",
    lambda value: _each(value, lambda item: re.fullmatch(_ID, item) is not None),
)
_SEVERITY_OF: Final[tuple[str, Callable[[Any], bool]]] = (
    "severities (info, warning, error) by findings' ids",
    lambda value: (
        all(one in _SEVERITIES for one in value.values())
        and _each(list(value), lambda item: re.fullmatch(_ID, item) is not None)
        if isinstance(value, dict)
        else False
    ),
)
_ANY_TEXT: Final[tuple[str, Callable[[Any], bool]]] = (
    "some text, or none",
    lambda value: isinstance(value, str),
)


def _each(value: Any, holds: Callable[[str], bool]) -> bool:
    """Whether a collection, which a text is not, holds such texts only."""
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

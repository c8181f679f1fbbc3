"""Every option, once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["LogLevel", "Settings"]

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

_PREFIX: Final = "SESSION_TRACER_"
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be chosen; each field is also an environment variable, `SESSION_TRACER_<FIELD>`.

    Raises `ValueError`, naming the option, the value and what is allowed, for a value that makes
    no sense.
    """

    statement_spans: bool = False
    """Emit a CLIENT span and `db.client.operation.duration` for every statement."""

    record_identity: bool = False
    """Name the primary keys of the objects a finding is about. No other value is ever emitted."""

    max_entities: int = 100
    """How many mapped classes metrics tell apart; the rest are `_other`."""

    site_frames: int = 1
    """How many application frames a call site carries, innermost first."""

    application_packages: tuple[str, ...] = ()
    """Installed packages whose lines are the application's own; what is not installed always is.

    In the environment the names are separated by commas.
    """

    slow_session_seconds: float = 1.0
    """A session that lived longer is logged at `info` although nothing else happened."""

    log_level: LogLevel = "info"
    """The lowest level handed to the exporter; a configured structlog filters for itself."""

    repeat_finding_seconds: float = 60.0
    """Repeats of one finding from one site are logged at most this often, with their number."""

    timeline_steps: int = 60
    """The most steps of a session's timeline that are kept; the middle is left out."""

    jsonl_path: str = "-"
    """Where the `jsonl` exporter appends its lines; `-` is standard output."""

    prometheus_host: str = "127.0.0.1"
    """The address the `prometheus` exporter listens on."""

    prometheus_port: int = 9464
    """The port the `prometheus` exporter listens on; 0 takes a free one."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            allowed, holds = _RULES[field.name]
            try:
                right = holds(value)
            except TypeError:
                right = False
            if not right:
                raise ValueError(f"{field.name} = {value!r} is not possible: it takes {allowed}.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """The settings that the environment names, the defaults for the rest."""
        environ = os.environ if environ is None else environ
        given: dict[str, Any] = {}
        for field in fields(cls):
            variable = _PREFIX + field.name.upper()
            text = environ.get(variable)
            if text is None or text == "":
                continue
            try:
                given[field.name] = _PARSERS[type(field.default)](text.strip())
            except ValueError:
                allowed, _ = _RULES[field.name]
                raise ValueError(
                    f"{variable}={text!r} is not possible: it takes {allowed}."
                ) from None
        try:
            return cls(**given)
        except ValueError as error:
            raise ValueError(f"in the environment ({_PREFIX}...): {error}") from None

    def override(self, overrides: Mapping[str, Any]) -> Settings:
        """These settings with some fields replaced; an unknown name raises `ValueError`."""
        known = {field.name for field in fields(self)}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise ValueError(
                f"There is no option {', '.join(unknown)}; there are {', '.join(sorted(known))}."
            )
        return replace(self, **overrides)


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered not in _TRUE | _FALSE:
        raise ValueError(text)
    return lowered in _TRUE


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


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
    "names of top-level packages",
    lambda value: (
        isinstance(value, tuple)
        and all(isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w*", name) for name in value)
    ),
)
_LEVEL: Final[tuple[str, Callable[[Any], bool]]] = (
    f"one of {', '.join(get_args(LogLevel))}",
    lambda value: value in get_args(LogLevel),
)

_RULES: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "statement_spans": _SWITCH,
    "record_identity": _SWITCH,
    "max_entities": _whole(1),
    "site_frames": _whole(1, 50),
    "application_packages": _PACKAGES,
    "slow_session_seconds": _SECONDS,
    "log_level": _LEVEL,
    "repeat_finding_seconds": _SECONDS,
    "timeline_steps": _whole(4, 10_000),
    "jsonl_path": _TEXT,
    "prometheus_host": _TEXT,
    "prometheus_port": _whole(0, 65_535),
}

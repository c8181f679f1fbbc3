"""Shows what is installed, which settings apply and where each is set, and what is degraded."""

from __future__ import annotations

import platform
import re
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from session_tracer.exporter import GROUP
from session_tracer.exporter_choice import names_in
from session_tracer.hooks import private_api
from session_tracer.runtime import environment
from session_tracer.runtime.project_file import read_table
from session_tracer.settings import Settings, given_settings
from session_tracer.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check"]

_DISTRIBUTION: Final = "session-tracer"
_DRIVERS: Final = (
    *("psycopg", "psycopg2", "psycopg2-binary", "asyncpg", "pg8000"),
    *("PyMySQL", "mysqlclient", "asyncmy", "aiomysql", "mysql-connector-python"),
    *("aiosqlite", "oracledb", "pyodbc", "aioodbc"),
)
_OTHERS: Final = (
    *("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp"),
    *("opentelemetry-exporter-prometheus", "opentelemetry-instrumentation-sqlalchemy"),
    *("structlog", "rich"),
)
# Of a file or a pipe, where no line is broken.
_WIDEST: Final = 10_000


class _Row(NamedTuple):
    """A name, its value, and whether it needs attention."""

    name: str
    value: str
    is_wrong: bool = False


def check() -> int:
    """Print what is found here.

    Returns:
        0, or 1 if something needs attention.
    """
    needs_attention = False
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDEST
    for title, rows in (
        ("Installed", _installed()),
        ("Exporters", _exporters()),
        ("Settings", _settings()),
        ("Degraded", _degraded()),
    ):
        table = Table.grid(padding=(0, 2))
        for row in rows:
            needs_attention |= row.is_wrong
            style = "bold yellow" if row.is_wrong else ""
            table.add_row(Text(f"  {row.name}", no_wrap=True), Text(row.value, style))
        console.print(Text(title, "bold"))
        console.print(table)
    return int(needs_attention)


def _installed() -> Iterator[_Row]:
    yield _Row("session_tracer", VERSION)
    yield _Row("Python", f"{platform.python_version()} on {platform.system()}")
    yield _sqlalchemy()
    drivers = [f"{name} {_version(name)}" for name in _DRIVERS if _version(name)]
    yield _Row("drivers", ", ".join(["sqlite3", *drivers]))
    for name in _OTHERS:
        yield _Row(name, _version(name) or "not installed")


def _sqlalchemy() -> _Row:
    found = _version("SQLAlchemy")
    supported = next(
        (
            needed.partition(";")[0].removeprefix("sqlalchemy")
            for needed in requires(_DISTRIBUTION) or ()
            if re.match(r"sqlalchemy\W", needed) and "extra" not in needed
        ),
        "",
    )
    below = re.search(r"<(\d+)\.(\d+)", supported)
    is_newer = below is not None and _line(found) >= (int(below[1]), int(below[2]))
    return _Row("SQLAlchemy", f"{found} (supported: {supported})", is_newer)


def _line(found: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", found)[:2])


def _exporters() -> Iterator[_Row]:
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            entry.load()
        except Exception as error:
            yield _Row(entry.name, str(error))
        else:
            yield _Row(entry.name, "available")
    try:
        named = names_in(None, read_table())
    except (ValueError, TypeError) as error:
        yield _Row("in use", str(error), True)
    else:
        yield _Row("in use", ", ".join(named) or _automatic())


def _automatic() -> str:
    """What a bare `instrument()` would use, unless the application configures something else."""
    variable = environment.otlp_endpoint()
    if variable:
        return f"otlp, because {variable} is set; OpenTelemetry's providers if they are configured"
    here = "console, on a terminal" if environment.is_terminal() else "logging, without a terminal"
    return f"{here}; OpenTelemetry's providers or structlog if the application configures them"


def _settings() -> Iterator[_Row]:
    """The settings that are set, each with its source, and then the others."""
    if environment.is_sdk_disabled():
        yield _Row("nothing is traced", "OTEL_SDK_DISABLED is true", True)
    try:
        given = given_settings(read_table())
    except (ValueError, TypeError) as error:
        yield _Row("invalid", str(error), True)
        return
    for name, (value, source) in given.items():
        yield _Row(name, f"{_shown(value)}  from {source}")
    defaults = Settings()
    for option in fields(Settings):
        if option.name not in given:
            yield _Row(option.name, f"{_shown(getattr(defaults, option.name))}  default")


def _shown(value: Any) -> str:
    """The value as the environment would have it."""
    if isinstance(value, dict):
        return ",".join(f"{key}={one}" for key, one in value.items()) or "none"
    if isinstance(value, tuple | frozenset | list | set):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value) or "none"


def _degraded() -> Iterator[_Row]:
    missing = private_api.missing()
    for reliance in missing:
        yield _Row(reliance.what, f"is missing or has changed, therefore {reliance.loses}", True)
    if not missing:
        yield _Row("nothing", "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""

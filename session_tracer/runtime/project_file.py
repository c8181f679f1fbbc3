"""Reads the table `[tool.session_tracer]` of the application's `pyproject.toml`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final, NamedTuple

from session_tracer.runtime.degraded import warn_once

__all__ = ["NO_TABLE", "Table", "read_table"]

_FILE: Final = "pyproject.toml"
_TOOL: Final = "session_tracer"


class Table(NamedTuple):
    """The settings of a project, by name, and the file that has them."""

    source: str
    values: dict[str, Any]


NO_TABLE: Final = Table("", {})


def read_table(folder: Path | None = None) -> Table:
    """Return the table of the nearest `pyproject.toml`, in the folder or one that contains it.

    A file that cannot be read is logged once as a warning and has no table: the application
    must not be stopped by it.

    Args:
        folder: Where to begin, by default the working directory.
    """
    try:
        start = Path.cwd() if folder is None else folder.resolve()
        file = next(
            (one for place in (start, *start.parents) if (one := place / _FILE).is_file()), None
        )
        if file is None:
            return NO_TABLE
        return Table(str(file), dict(_table_of(file, file.read_bytes())))
    except OSError as error:
        warn_once(f"session_tracer: {_FILE} cannot be read, therefore it is not used: {error}")
        return NO_TABLE


# A test suite reads it for each test.
@functools.lru_cache(maxsize=1)
def _table_of(file: Path, text: bytes) -> dict[str, Any]:
    if _TOOL.encode() not in text:
        return {}
    import tomllib  # only where there is a table: 4 ms of the import

    try:
        tool = tomllib.loads(text.decode()).get("tool")
    except ValueError as error:
        warn_once(f"session_tracer: {file} is not valid TOML, therefore it is not used: {error}")
        return {}
    table = tool.get(_TOOL, {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise ValueError(f"In {file}: Invalid tool.{_TOOL}={table!r}: expected a table.")
    return table

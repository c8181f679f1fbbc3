"""A file of known findings, which stays valid when the lines of the code move."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.model.findings import Finding

__all__ = ["Baseline", "load", "write"]

_HEADING: Final = """\
# Known findings, which are not reported. Line numbers do not matter.
# Delete a line when its cause is fixed.
"""


class Known(NamedTuple):
    """The identity of a known finding. Its line is no part of it, because edits move lines.

    `file` is relative to the folder of the baseline file and contains slashes. A value that is not
    known is an empty string, and is not written.
    """

    id: str
    file: str = ""
    function: str = ""
    entity: str = ""
    attribute: str = ""


class Baseline:
    """The known findings of a file.

    Args:
        folder: The folder of the file.
        known: The known findings.
    """

    def __init__(self, folder: str, known: Iterable[Known] = ()) -> None:
        self._folder = folder
        self._known = frozenset(known)

    def __len__(self) -> int:
        return len(self._known)

    def knows(self, finding: Finding) -> bool:
        """Return whether the finding is a known one."""
        return bool(self._known) and _key(finding, self._folder) in self._known


NOTHING_KNOWN: Final = Baseline("")


def load(path: str | os.PathLike[str]) -> Baseline:
    """Read a baseline.

    Args:
        path: The file.

    Returns:
        The known findings.

    Raises:
        ValueError: the file cannot be read, or a line is invalid.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(
            f"Cannot read {os.fspath(path)!r}: {why}. Write it with pytest "
            "--session-tracer-baseline=FILE --session-tracer-update-baseline."
        ) from None
    known = [
        _read(line, f"{os.fspath(path)}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    return Baseline(_folder(path), known)


def write(
    path: str | os.PathLike[str], findings: Iterable[Finding], known: Baseline = NOTHING_KNOWN
) -> None:
    """Write a baseline. The same findings give the same file.

    Args:
        path: The file.
        findings: The findings to write, each once.
        known: Known findings to write as well, from a file in the same folder.
    """
    folder = _folder(path)
    keys = sorted({*known._known, *(_key(finding, folder) for finding in findings)})
    text = _HEADING + "".join(f"{_line(key)}\n" for key in keys)
    Path(path).write_text(text, encoding="utf-8", newline="\n")


def _key(finding: Finding, folder: str) -> Known:
    site = finding.site
    return Known(
        finding.id,
        "" if site is None else _relative(site.file, folder),
        "" if site is None else site.function,
        finding.entity or "",
        finding.attribute or "",
    )


def _folder(path: str | os.PathLike[str]) -> str:
    return os.path.dirname(os.path.realpath(path))


@functools.lru_cache(maxsize=10_000)
def _relative(file: str, folder: str) -> str:
    real = os.path.realpath(file)
    try:
        return os.path.relpath(real, folder).replace(os.sep, "/")
    except ValueError:  # another drive on Windows
        return real.replace(os.sep, "/")


def _line(known: Known) -> str:
    values = {name: value for name, value in known._asdict().items() if value}
    return json.dumps(values, ensure_ascii=False)


def _read(line: str, where: str) -> Known:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if (
        not isinstance(values, dict)
        or "id" not in values
        or not set(values) <= set(Known._fields)
        or not all(isinstance(value, str) for value in values.values())
    ):
        raise ValueError(
            f"Invalid line {where}: {line.strip()!r}. Expected a JSON object of strings with the "
            f"key id and optionally {', '.join(Known._fields[1:])}."
        )
    return Known(**values)

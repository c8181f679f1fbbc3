"""Findings that are known already, in a file that outlives edits of the code they are about."""

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
# Findings that are known and are not said, wherever in the function they are.
# Delete a line once its cause is mended.
"""


class Known(NamedTuple):
    """What a finding is known by: not its line, which every edit above it changes.

    `file` is relative to the baseline's own folder, whatever the working directory is, and has
    slashes; what is not known of a finding is empty.
    """

    id: str
    file: str
    function: str
    entity: str
    attribute: str


class Baseline:
    """The findings that a file knows; `folder` is the file's."""

    def __init__(self, folder: str, known: Iterable[Known] = ()) -> None:
        self._folder = folder
        self._known = frozenset(known)

    def __len__(self) -> int:
        return len(self._known)

    def knows(self, finding: Finding) -> bool:
        """Whether the finding was there when the file was written."""
        return bool(self._known) and _key(finding, self._folder) in self._known


NOTHING_KNOWN: Final = Baseline("")


def load(path: str | os.PathLike[str]) -> Baseline:
    """Read a baseline.

    Raises `ValueError` where there is no such file, and where a line of it is no known finding.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(
            f"{os.fspath(path)!r} cannot be read ({why}); pytest writes it, with "
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
    """Write a baseline that knows these findings, each once; the same findings, the same file.

    It also knows what `known` does, which was loaded from a file in the same folder.
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


_FIELDS: Final = ("id", "file", "function", "entity", "attribute")


def _line(known: Known) -> str:
    told = {name: getattr(known, name) for name in _FIELDS}
    return json.dumps({name: value for name, value in told.items() if value}, ensure_ascii=False)


def _read(line: str, where: str) -> Known:
    try:
        told = json.loads(line)
    except ValueError:
        told = None
    if (
        not isinstance(told, dict)
        or "id" not in told
        or not set(told) <= set(_FIELDS)
        or not all(isinstance(value, str) for value in told.values())
    ):
        raise ValueError(
            f"{where} is no known finding: {line.strip()!r}. Each line is a JSON object of texts "
            f"with an id, and with {', '.join(_FIELDS[1:])} as far as there are."
        )
    return Known(**{**dict.fromkeys(_FIELDS, ""), **told})

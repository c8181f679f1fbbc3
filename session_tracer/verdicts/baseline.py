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

__all__ = ["Baseline", "Known", "load", "write"]

_HEADING: Final = """\
# Known findings, which are not reported. Line numbers do not matter.
# Delete a line when its cause is fixed.
"""


# What shows that a folder is the root of a project.
_PROJECT_MARKS: Final = ("pyproject.toml", "setup.py", "setup.cfg", ".git", ".hg")
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


class Known(NamedTuple):
    """The identity of a known finding. Its line is no part of it, because edits move lines.

    `file` contains slashes. It is relative to the folder of the baseline file, or begins with the
    package if the file is installed or outside the project. A value that is not known is an empty
    string, and is not written.
    """

    id: str
    file: str = ""
    function: str = ""
    entity: str = ""
    attribute: str = ""

    @classmethod
    def of(cls, finding: Finding, folder: str) -> Known:
        """Return the identity of a finding, with its file as seen from the folder."""
        site = finding.site
        return cls(
            finding.id,
            "" if site is None else _relative(site.file, folder),
            "" if site is None else site.function,
            finding.entity or "",
            finding.attribute or "",
        )


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
        return bool(self._known) and Known.of(finding, self._folder) in self._known


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
    keys = sorted({*known._known, *(Known.of(finding, folder) for finding in findings)})
    text = _HEADING + "".join(f"{_line(key)}\n" for key in keys)
    Path(path).write_text(text, encoding="utf-8", newline="\n")


def _folder(path: str | os.PathLike[str]) -> str:
    return os.path.dirname(os.path.realpath(path))


@functools.lru_cache(maxsize=10_000)
def _relative(file: str, folder: str) -> str:
    """The file as seen from the folder, or a path in its package if it lies outside the project.

    Where packages are installed, and for which version of Python, differs between machines.
    """
    real = os.path.realpath(file)
    project = _project(folder)
    if _INSTALLED.isdisjoint(real.split(os.sep)) and (not project or _lies_in(real, project)):
        try:
            return os.path.relpath(real, folder).replace(os.sep, "/")
        except ValueError:  # another drive on Windows
            pass
    return _in_package(real)


@functools.lru_cache(maxsize=100)
def _project(folder: str) -> str:
    """The nearest folder around it that looks like a project, or an empty string."""
    for around in (Path(folder), *Path(folder).parents):
        if any((around / mark).exists() for mark in _PROJECT_MARKS):
            return str(around)
    return ""


def _lies_in(file: str, folder: str) -> bool:
    return file.startswith(os.path.join(folder, ""))


def _in_package(file: str) -> str:
    """The file's path from its outermost package on, such as `shop/orders/views.py`."""
    path = Path(file)
    package = path.parent
    while (package / "__init__.py").exists():
        package = package.parent
    return path.relative_to(package).as_posix()


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

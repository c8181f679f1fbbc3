"""A file of known findings, which stays valid when the lines of the code move."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from session_tracer.model.findings import Finding

__all__ = ["Baseline", "Known", "Update", "empty", "load", "write"]

_HEADING: Final = """\
# Known findings, which are not reported. Line numbers do not matter.
# "tests" are the files of the tests that have a finding.
# pytest --session-tracer-update-baseline removes the ones that no longer occur.
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

    def __str__(self) -> str:
        function = f"in {self.function}()" if self.function.isidentifier() else ""
        name = ".".join(filter(None, [self.entity, self.attribute]))
        place = " ".join(filter(None, [self.file, function]))
        return "   ".join(filter(None, [self.id, place, name]))


class Baseline:
    """The known findings of a file.

    Args:
        folder: The folder of the file.
        known: The known findings, each with the files of the tests that have it. There are none if
            the file is of an older form, or if the finding occurred outside of tests.
    """

    def __init__(self, folder: str, known: Mapping[Known, Collection[str]] | None = None) -> None:
        self._folder = folder
        self._known = dict(known or {})

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[tuple[Known, Collection[str]]]:
        return iter(sorted(self._known.items()))

    def knows(self, finding: Finding) -> bool:
        """Return whether the finding is a known one."""
        return bool(self._known) and Known.of(finding, self._folder) in self._known

    def updated(
        self,
        found: Iterable[tuple[Finding, Collection[str]]],
        has_seen: Callable[[Collection[str]], bool],
    ) -> Update:
        """Return the baseline after a run.

        Args:
            found: The findings of the run, each with the files of its tests.
            has_seen: Whether the run would have seen a finding of the tests in these files.
        """
        seen: dict[Known, set[str]] = {}
        for finding, tests in found:
            seen.setdefault(Known.of(finding, self._folder), set()).update(tests)
        gone = [known for known in self._known if known not in seen]
        removed = [known for known in gone if has_seen(self._known[known])]
        unseen = [known for known in gone if known not in removed]
        after = {known: set(self._known[known]) for known in unseen}
        for known, tests in seen.items():
            earlier = {one for one in self._known.get(known, ()) if not has_seen([one])}
            after[known] = earlier | tests
        return Update(Baseline(self._folder, after), sorted(removed), sorted(unseen))


class Update(NamedTuple):
    """A baseline after a run: what was removed, and what stays although it was not found.

    The latter may occur in tests that have not run to their end.
    """

    baseline: Baseline
    removed: list[Known]
    unseen: list[Known]


NOTHING_KNOWN: Final = Baseline("")


def empty(path: str | os.PathLike[str]) -> Baseline:
    """Return a baseline without known findings, of a file that is to be written."""
    return Baseline(_folder(path))


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
    folder = _folder(path)
    known: dict[Known, set[str]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            one, tests = _read(line, f"{os.fspath(path)}:{number}", folder)
            known.setdefault(one, set()).update(tests)
    return Baseline(folder, known)


def write(path: str | os.PathLike[str], baseline: Baseline) -> None:
    """Write a baseline. The same findings give the same file.

    Args:
        path: The file.
        baseline: The known findings, from this file or from `empty()` for it.
    """
    text = _HEADING + "".join(f"{_line(known, tests)}\n" for known, tests in baseline)
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


def _line(known: Known, tests: Collection[str]) -> str:
    values: dict[str, object] = {name: value for name, value in known._asdict().items() if value}
    if tests:
        values["tests"] = sorted(tests)
    return json.dumps(values, ensure_ascii=False)


def _read(line: str, where: str, folder: str) -> tuple[Known, list[str]]:
    try:
        values = json.loads(line)
        tests = values.pop("tests", []) if isinstance(values, dict) else []
    except ValueError:
        values = tests = None
    if (
        not isinstance(values, dict)
        or "id" not in values
        or not set(values) <= set(Known._fields)
        or not all(isinstance(value, str) for value in values.values())
        or not isinstance(tests, list)
        or not all(isinstance(test, str) for test in tests)
    ):
        raise ValueError(
            f"Invalid line {where}: {line.strip()!r}. Expected a JSON object of strings with the "
            f"key id and optionally {', '.join(Known._fields[1:])}, and a list of tests."
        )
    known = Known(**values)
    return known._replace(file=_portable(known.file, folder)), tests


def _portable(file: str, folder: str) -> str:
    """Return the path as it is written now. Older files have the path of an environment."""
    before, installed, in_package = file.rpartition("-packages/")
    if not installed or before.rpartition("/")[2] not in ("site", "dist"):
        return file
    there = os.path.join(folder, file)
    return _relative(there, folder) if os.path.exists(there) else in_package

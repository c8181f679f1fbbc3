"""Observes which tests run to their end, so that it is known which findings a run could see."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = ["Completeness"]


class Completeness:
    """Which tests were collected, and which of them ran to their end. It is a plugin of pytest.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        # xdist's workers run a part of the tests, which is the controller's decision.
        is_worker = hasattr(config, "workerinput")
        self._is_part = not is_worker and _is_part(config)
        self._collected: set[str] = set()
        self._ended: set[str] = set()
        self._failed: set[str] = set()
        # Files that were skipped as a whole.
        self._skipped: set[str] = set()

    def conclude(self) -> Callable[[Collection[str]], bool]:
        """Return a function: whether all tests of some files ran to their end.

        Without files, it is about every file. In a run of a part of the tests it is always False:
        the other tests could have the same finding.
        """
        unfinished = self._collected - (self._ended - self._failed)
        left_out = {_file(nodeid) for nodeid in unfinished} | self._skipped
        is_part = self._is_part or not self._collected

        def has_seen(files: Collection[str]) -> bool:
            return not is_part and (left_out.isdisjoint(files) if files else not left_out)

        return has_seen

    def dump(self) -> dict[str, Any]:
        """Return what xdist's controller does not observe itself."""
        return {"is_part": self._is_part, "skipped": sorted(self._skipped)}

    def merge(self, dumped: dict[str, Any]) -> None:
        """Add what a worker has dumped."""
        self._is_part = self._is_part or dumped["is_part"]
        self._skipped.update(dumped["skipped"])

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._collected.update(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        self._collected.update(ids)

    def pytest_deselected(self, items: Collection[pytest.Item]) -> None:
        self._is_part = self._is_part or bool(items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._is_part = True
        elif report.skipped:
            self._skipped.add(_file(report.nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid)
        elif report.when == "call" and (report.passed or hasattr(report, "wasxfail")):
            self._ended.add(report.nodeid)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _is_part(config: pytest.Config) -> bool:
    """Return whether the command line chooses some of the tests by their files."""
    if config.getoption("lf", default=False) or any(
        argument.startswith("--ignore") for argument in config.invocation_params.args
    ):
        return True
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        return False
    given = {Path(config.invocation_params.dir, path).resolve() for path in config.args}
    root = config.rootpath.resolve()
    testpaths = [path for glob in config.getini("testpaths") for path in root.glob(glob)]
    if testpaths:
        return not all(_lies_in(path, given) for path in testpaths)
    return _has_tests_elsewhere(config, root, given)


def _has_tests_elsewhere(config: pytest.Config, root: Path, given: set[Path]) -> bool:
    """Return whether a file of tests lies in none of these folders."""
    passed_over, named = config.getini("norecursedirs"), config.getini("python_files")
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        if _lies_in(here, given):
            folders.clear()
        elif any(
            fnmatch(file, glob) and here / file not in given for file in files for glob in named
        ):
            return True
        folders[:] = [
            name
            for name in folders
            if not any(fnmatch(name, glob) for glob in passed_over)
            and not (here / name / "pyvenv.cfg").exists()
        ]
    return False


def _lies_in(path: Path, folders: set[Path]) -> bool:
    return path in folders or not folders.isdisjoint(path.parents)

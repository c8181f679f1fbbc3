"""The pytest plugin that writes down what each test of a run came to."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import pytest

__all__ = ["Outcomes"]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The result of each test by its id, and the output of those that did not pass.

    A test that passed and whose teardown failed came to `error and passed`.
    """

    of_tests: dict[str, str] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Self:
        """The outcomes that a run has written."""
        return cls(**json.loads(file.read_text()))

    def add(self, test: str, outcome: str, shown: str = "") -> None:
        """Take in one report on a test, of which pytest may make three."""
        known = self.of_tests.get(test)
        outcomes = {outcome} if known is None else {outcome, *known.split(" and ")}
        self.of_tests[test] = " and ".join(sorted(outcomes))
        if shown:
            self.shown[test] = shown

    def write(self, file: Path) -> None:
        """Save them for the process that started the run."""
        file.write_text(json.dumps(asdict(self)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes-to", type=Path, help="the file to write the outcomes to")


def pytest_configure(config: pytest.Config) -> None:
    # The process that was started hears of every test, xdist's workers of their own only.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Listener(config.getoption("--outcomes-to")))


class _Listener:
    """Hears of every test, and writes down what it has heard as the run ends."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._outcomes = Outcomes()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = _outcome(report)
        if outcome:
            self._outcomes.add(report.nodeid, outcome, report.longreprtext if report.failed else "")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._outcomes.add(report.nodeid, "error", report.longreprtext)

    def pytest_sessionfinish(self) -> None:
        self._outcomes.write(self._file)


def _outcome(report: pytest.TestReport) -> str:
    """The result in a report; nothing if a setup or teardown passed."""
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    if report.when == "call" or report.skipped:
        return report.outcome
    return "error" if report.failed else ""

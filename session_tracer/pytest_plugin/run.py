"""One run of pytest: which test is traced, what it fails for, and the summary at the end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import pytest

from session_tracer.model.findings import LEFT_OPEN
from session_tracer.pytest_plugin import wording
from session_tracer.pytest_plugin.annotations import are_wanted, workflow_commands
from session_tracer.pytest_plugin.case import Case
from session_tracer.pytest_plugin.ledger import Ledger
from session_tracer.pytest_plugin.tracing import Tracing
from session_tracer.verdicts import baseline

if TYPE_CHECKING:
    from collections.abc import Generator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Severity
    from session_tracer.pytest_plugin.options import Options
    from session_tracer.verdicts.baseline import Baseline

__all__ = ["Run"]

# Where xdist's workers put what they found.
_OUTPUT: Final = "session_tracer"
_COLOURS: Final = {"error": "red", "warning": "yellow", "info": "cyan"}


class Run:
    """Traces the tests that ask for it, or every test where it is registered as a plugin.

    Raises:
        pytest.UsageError: the baseline cannot be read.
    """

    def __init__(self, config: pytest.Config, options: Options) -> None:
        self._config = config
        self._options = options
        self._baseline = _load(options)
        self._ledger = Ledger()
        self.tracing = Tracing(self._baseline, self._ledger.add)

    # One test.

    def begin(self, nodeid: str, budgets: dict[str, int]) -> Case:
        """A test begins.

        Raises:
            ValueError: a setting in the environment is invalid.
        """
        if not self.tracing.is_on:
            self.tracing.start()
        case = Case(nodeid, budgets, self.tracing.settle)
        self.tracing.begin(case)
        return case

    def end(self, case: Case) -> None:
        """A test and its own fixtures have ended."""
        self.tracing.settle()
        for report, scope in case.left_open():
            # A session that is reported as leaked is not reported as left open as well.
            if not report.was_reported("leaked-session"):
                self.tracing.conclude(_left_open(report), report, case)
            scope.left_open = True
        if not self._options.on:
            self.tracing.case = None
            self.tracing.stop()

    def judge_call(self, case: Case) -> None:
        """Fail the test for what it did, where it exceeds a budget or has such findings."""
        self.tracing.settle()
        if not case.failed:  # one of its subtests has
            self._fail(case, wording.failure_of_call(case, self._fail_from))

    def judge_fixtures(self, case: Case) -> None:
        """Fail the teardown for what the fixtures did, unless the test has failed already."""
        if not case.failed:
            self._fail(case, wording.failure_of_fixtures(case, self._fail_from))

    def add_to_report(
        self, case: Case, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> None:
        """Add the findings to the test's report, and the reason if this plugin failed the test."""
        case.failed = case.failed or report.failed
        if call.excinfo is not None and call.excinfo.value is case.raised:
            _point_to(report, item, case.headline)
        if case.untold and (report.failed or report.when != "setup"):
            report.sections.append(("session findings", wording.blocks(case.untold)))
            case.untold.clear()

    def _fail(self, case: Case, failure: wording.Failure | None) -> None:
        if failure is not None:
            case.headline = failure.headline
            case.untold = [one for one in case.untold if one not in failure.findings]
            case.raised = pytest.fail.Exception(failure.text, pytrace=False)
            raise case.raised

    @property
    def _fail_from(self) -> Severity | None:
        # A run that accepts its findings does not fail for them.
        return None if self._options.update else self._options.fail_from

    # The whole run; pytest calls these where this is registered.

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        # xdist's controller runs no tests.
        if not self._config.pluginmanager.has_plugin("dsession"):
            try:
                self.tracing.start()
            except ValueError as error:
                raise pytest.UsageError(f"session_tracer: {error}") from None

    # Innermost: after the teardown of every fixture, before xdist's worker sends its output.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            self.tracing.stop()
            self._ledger.sessions += self.tracing.sessions
            output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
            if output is not None:
                output[_OUTPUT] = self._ledger.dump()
            elif self._options.update and self._options.baseline is not None:
                found = [entry.finding for entry in self._ledger.new]
                baseline.write(self._options.baseline, found, self._baseline)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A worker that crashed has no output.
        dumped = getattr(node, "workeroutput", {}).get(_OUTPUT)
        if dumped is not None:
            self._ledger.merge(dumped)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._config.getoption("collectonly"):
            return
        terminalreporter.ensure_newline()
        new, known = self._ledger.new, self._ledger.known
        if new or known:
            terminalreporter.section("session findings")
        for entry, (id_, rest, remedy) in zip(new, wording.rows(new), strict=True):
            terminalreporter.write(id_, **{_COLOURS[entry.finding.severity]: True})
            terminalreporter.write_line(f"   {rest}")
            if remedy:
                terminalreporter.write_line(f"    {remedy}")
        terminalreporter.write_line(self._last_line(len(new), known))
        if are_wanted():
            for line in workflow_commands(entry.finding for entry in new):
                terminalreporter.write_line(line)

    def _last_line(self, new: int, known: int) -> str:
        file = self._options.baseline
        if self._options.update and file is not None:
            return f"{new} new, {known} known; all are in {os.path.relpath(file)} now"
        if file is not None:
            return f"{new} new, {known} known (baseline)"
        sessions = wording.number(self._ledger.sessions, "session")
        return f"{wording.number(new, 'finding') if new else 'no findings'} in {sessions}"


def _load(options: Options) -> Baseline:
    path = options.baseline
    if path is None or (options.update and not path.exists()):
        return baseline.NOTHING_KNOWN
    try:
        return baseline.load(path)
    except ValueError as error:
        raise pytest.UsageError(f"--session-tracer-baseline: {error}") from None


def _left_open(report: Report) -> Finding:
    began = report.ledger.transaction_began_site
    where = "" if began is None else f" begun at {began}"
    factory = "async with AsyncSessionLocal()" if report.ledger.is_async else "with SessionLocal()"
    return report.finding(
        LEFT_OPEN,
        "warning",
        f"a session was still open after its test, in a transaction{where}",
        f"{factory} as session:",
        report.ledger.opened_site,
        evidence={} if began is None else {"began_at": str(began)},
    )


def _point_to(report: pytest.TestReport, item: pytest.Item, headline: str) -> None:
    """Have the report's short line give the reason, at the test instead of in this plugin."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = headline
        crash.path = str(item.path)
        crash.lineno = (item.location[1] or 0) + 1

"""One run of pytest: which test is traced, what it fails for, and the summary at the end."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from session_tracer.detectors.evidence import life_site
from session_tracer.exporters.wording import counted
from session_tracer.ledger.registry import LIVE
from session_tracer.model.findings import LEFT_OPEN
from session_tracer.pytest_plugin import wording
from session_tracer.pytest_plugin.annotations import (
    is_github_actions,
    repository,
    workflow_commands,
)
from session_tracer.pytest_plugin.case import Case
from session_tracer.pytest_plugin.completeness import Completeness
from session_tracer.pytest_plugin.configured import settings_for_tests
from session_tracer.pytest_plugin.holders import Holders
from session_tracer.pytest_plugin.limits import read_limits
from session_tracer.pytest_plugin.own_files import own_files_of
from session_tracer.pytest_plugin.reports import check_writable, write_json, write_sarif
from session_tracer.pytest_plugin.run_findings import RunFindings
from session_tracer.pytest_plugin.summary import rows, update_lines
from session_tracer.pytest_plugin.tracing import Tracing
from session_tracer.verdicts import baseline
from session_tracer.where.callsite import show_paths_from

if TYPE_CHECKING:
    from collections.abc import Generator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Severity
    from session_tracer.pytest_plugin.case import Phase, Scope
    from session_tracer.pytest_plugin.options import Options
    from session_tracer.verdicts.baseline import Baseline

__all__ = ["Run"]

# The keys of xdist's worker output.
_OUTPUT: Final = "session_tracer"
_COMPLETENESS: Final = "session_tracer_completeness"
_COLOURS: Final = {"error": "red", "warning": "yellow", "info": "cyan"}


class Run:
    """Traces the tests that use the fixture or marker, or every test if registered as a plugin.

    Raises:
        pytest.UsageError: the baseline cannot be read.
        ValueError: a setting is invalid, or a file cannot be written.
    """

    def __init__(self, config: pytest.Config, options: Options) -> None:
        self._config = config
        self._options = options
        self._baseline = _load(options)
        if not hasattr(config, "workerinput"):  # xdist's controller writes
            _check_files(options)
        self._found = RunFindings()
        self._holders = Holders()
        self._completeness = Completeness(config)
        # xdist's workers that have not reported their findings.
        self._silent_workers = 0
        self._update: baseline.Update | None = None
        settings = settings_for_tests(options.settings)
        self.tracing = Tracing(settings, self._baseline, self._found.add)
        self._paths = ExitStack()
        if options.on:  # else a single test may be traced, and the others are left alone
            self._paths.callback(show_paths_from(str(config.invocation_params.dir)))

    def close(self) -> None:
        """End the run, when everything is printed and written."""
        self._paths.close()

    # For one test.

    def begin(self, item: pytest.Item) -> Case:
        """Begin a test.

        Raises:
            ValueError: a marker of the test is invalid.
        """
        limits = read_limits(item, self._options.budgets)
        if not self.tracing.is_on:
            self.tracing.start()
        own_files = own_files_of(item.path, self._config.rootpath)
        case = Case(item.nodeid, own_files, limits, self.tracing.settle)
        self.tracing.begin(case)
        return case

    def end(self, case: Case) -> None:
        """End a test, after its own fixtures have ended."""
        self.tracing.settle()
        for report, scope in case.left_open():
            # A session is reported as leaked or as left open, not as both. If the tests use it, it
            # is not reported as leaked.
            if scope.is_tests or not report.was_reported("leaked-session"):
                self._left_open(case, report, scope)
            scope.left_open = True
        self._found.ended(case)
        if not self._options.on:
            self.tracing.case = None
            self.tracing.stop()

    def _left_open(self, case: Case, report: Report, scope: Scope) -> None:
        """Report a session that is open after its test, unless something keeps it for later."""
        lines = report.ledger.opened_site, scope.opened_for
        holder = self._holders.of(LIVE[report.ledger](), scope.registry, lines)
        if holder != "others":
            finding = _left_open(report, scope, is_tests=holder == "test")
            self.tracing.conclude(finding, report, case)

    def judge(self, case: Case, *phases: Phase) -> None:
        """Fail the test if it has exceeded a budget, or if findings of these phases are severe."""
        self.tracing.settle()
        if case.failed:  # by itself, or one of its subtests has
            return
        failure = wording.failure_of(case, self._fail_from, phases)
        if failure is not None:
            case.headline = failure.headline
            case.unlisted = [one for one in case.unlisted if one not in failure.findings]
            case.raised = pytest.fail.Exception(failure.text, pytrace=False)
            raise case.raised

    def add_to_report(
        self, case: Case, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> None:
        """Add the findings to the test's report, and the headline if this plugin failed it."""
        case.failed = case.failed or report.failed
        if call.excinfo is not None and call.excinfo.value is case.raised:
            _point_to(report, item, case.headline)
        elif call.excinfo is not None:
            case.has_raised = True
        if case.unlisted and (report.failed or report.when != "setup"):
            report.sections.append(
                ("session findings", wording.blocks(case.unlisted, case.took_ms))
            )
            case.unlisted.clear()

    @property
    def _fail_from(self) -> Severity | None:
        # A run that adds its findings to the baseline does not fail for them.
        return None if self._options.update else self._options.fail_from

    # For the whole run. pytest calls these if this is registered as a plugin.

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        if self._options.update:
            self._config.pluginmanager.register(self._completeness, "session_tracer_completeness")
        # xdist's controller runs no tests.
        if not self._config.pluginmanager.has_plugin("dsession"):
            self.tracing.start()

    # Innermost: after the teardown of every fixture, and before xdist's worker sends its output.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            self.tracing.stop()
            self._found.sessions += self.tracing.sessions
            output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
            if output is not None:
                output[_OUTPUT] = self._found.dump()
                output[_COMPLETENESS] = self._completeness.dump()
            elif not self._config.getoption("collectonly"):
                self._write_files()

    def _write_files(self) -> None:
        options, found = self._options, self._found
        if options.update and options.baseline is not None:
            has_seen = self._completeness.conclude()
            self._update = self._baseline.updated(found.not_allowed(), has_seen)
            baseline.write(options.baseline, self._update.baseline)
        root = Path(repository(str(_outer_folder(self._config))))
        if options.json is not None:
            write_json(options.json, found, root)
        if options.sarif is not None:
            write_sarif(options.sarif, found, root)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self) -> None:
        self._silent_workers += 1

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A worker that crashed has no output.
        dumped = getattr(node, "workeroutput", {}).get(_OUTPUT)
        if dumped is not None:
            self._silent_workers -= 1
            self._found.merge(dumped)
            self._completeness.merge(node.workeroutput[_COMPLETENESS])

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._config.getoption("collectonly"):
            return
        terminalreporter.ensure_newline()
        new, known = self._found.new, self._found.known
        if new or known:
            terminalreporter.section("session findings")
        shown = list(rows(new, self._shown))
        for row in shown:
            terminalreporter.write(row.id_, **{_COLOURS[row.severity]: True})
            terminalreporter.write_line(f"   {row.rest}")
            for line in row.below:
                terminalreporter.write_line(f"    {line}")
        for line in update_lines(self._update):
            terminalreporter.write_line(line)
        terminalreporter.write_line(self._last_line(len(shown), known) + self._missing())
        if is_github_actions():
            for line in workflow_commands(new):
                terminalreporter.write_line(line)

    def _shown(self, nodeid: str) -> str:
        """Return a test's id from the working folder on; pytest counts it from its root folder.

        `Config.cwd_relative_nodeid()` takes another type in each version of pytest.
        """
        file, *names = nodeid.split("::")
        path = self._config.rootpath / file
        try:
            relative = os.path.relpath(path, self._config.invocation_params.dir)
        except ValueError:  # another drive on Windows
            relative = str(path)
        return "::".join([relative.replace(os.sep, "/"), *names])

    def _missing(self) -> str:
        """Return what to add if workers were stopped, or have crashed."""
        number = self._silent_workers
        return f"; the findings of {counted(number, 'worker')} are missing" if number else ""

    def _last_line(self, new: int, known: int) -> str:
        file, allowed = self._options.baseline, self._found.allowed
        also = f", {allowed} allowed" if allowed else ""
        if self._options.update and file is not None:
            removed = 0 if self._update is None else len(self._update.removed)
            also += f", {removed} removed" if removed else ""
            return f"{new} new, {known} known{also}; updated {os.path.relpath(file)}"
        if file is not None:
            return f"{new} new, {known} known (baseline){also}"
        sessions = counted(self._found.sessions, "session")
        return f"{counted(new, 'finding') if new else 'no findings'} in {sessions}{also}"


def _load(options: Options) -> Baseline:
    path = options.baseline
    if path is None:
        return baseline.NOTHING_KNOWN
    if options.update and not path.exists():
        return baseline.empty(path)
    try:
        return baseline.load(path)
    except ValueError as error:
        raise pytest.UsageError(f"--session-tracer-baseline: {error}") from None


def _outer_folder(config: pytest.Config) -> Path:
    """Return pytest's root folder, or the working folder if that is around it.

    A configuration file in `tests` makes that the root: the application lies outside of it.
    """
    started_in = config.invocation_params.dir
    return started_in if started_in in config.rootpath.parents else config.rootpath


def _check_files(options: Options) -> None:
    """Refuse files that cannot be written, before tests run."""
    for option, path in {
        "--session-tracer-baseline": options.baseline if options.update else None,
        "--session-tracer-json": options.json,
        "--session-tracer-sarif": options.sarif,
    }.items():
        if path is not None:
            check_writable(option, path)


def _left_open(report: Report, scope: Scope, *, is_tests: bool) -> Finding:
    """Return the finding, at the tests' line if it is the tests that have or use the session."""
    began = report.ledger.transaction_began_site
    where = "" if began is None else f" begun at {began}"
    is_async = report.ledger.is_async
    remedy = (
        f"{'async with AsyncSessionLocal()' if is_async else 'with SessionLocal()'} as session:"
    )
    site = life_site(report)
    is_theirs = scope.is_opened_for_tests(site, is_kept=is_tests)
    if scope.registry is not None or is_theirs:
        end = "session.close()" if scope.registry is None else "Session.remove()"
        remedy = f"{'await ' if is_async else ''}{end}  # at the end of the test or its fixture"
    return report.finding(
        LEFT_OPEN,
        "warning",
        f"a session was still open after its test, in a transaction{where}",
        remedy,
        scope.opened_for if is_theirs else site,
        evidence={} if began is None else {"began_at": str(began)},
    )


def _point_to(report: pytest.TestReport, item: pytest.Item, headline: str) -> None:
    """Make the report's short line name the reason and the test, not this plugin's file."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = headline
        crash.path = str(item.path)
        crash.lineno = (item.location[1] or 0) + 1

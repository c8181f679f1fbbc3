"""Traces every session while tests run, and passes facts and findings to the running test."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, get_args

from session_tracer import detectors, facts
from session_tracer.detectors.protocol import Suspecting
from session_tracer.exporter import Exporter
from session_tracer.hooks.targets import resolve
from session_tracer.instrumentor import capture
from session_tracer.ledger import failures, openings, watchdog
from session_tracer.ledger.registry import LIVE
from session_tracer.model.findings import Finding
from session_tracer.pytest_plugin.case import Case, Reported, Scope
from session_tracer.pytest_plugin.client_threads import ClientThreads
from session_tracer.runtime import process
from session_tracer.verdicts.policy import Policy
from session_tracer.where.blocks import block_around
from session_tracer.where.callsite import registry_at_work, task_stack
from session_tracer.where.tasks import is_ready, suspended

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from session_tracer.detectors import Detector
    from session_tracer.facts import (
        ConnectionNested,
        EventLoopBlocked,
        Fact,
        FlushFailureDecided,
        WritesSplit,
    )
    from session_tracer.instrumentor import Instrumentation
    from session_tracer.ledger.loads import Passed
    from session_tracer.ledger.report import Report, Verdict
    from session_tracer.pytest_plugin.case import Call, State
    from session_tracer.settings import Settings
    from session_tracer.verdicts.baseline import Baseline
    from session_tracer.where.callsite import CallSite

__all__ = ["Tracing"]

# The endings of sessions that no code closed. Their test may have ended before.
_ENDINGS_BY_ITSELF: Final = frozenset({"collected", "exit", "shutdown"})


# Facts that come before or with what is counted.
_COUNTED: Final = (
    facts.AttributeLoaded,
    facts.FlushBegan,
    facts.StatementExecuted,
    facts.TransactionEnded,
)


# What is about how long a session, or its transaction, is open.
_LASTING: Final = frozenset({"leaked-session", "long-transaction", "idle-in-transaction"})

# What is about an object that one SELECT could have loaded.
_LOADING: Final = (
    facts.AttributeLoaded,
    facts.DetachedLoadFailed,
    facts.ImplicitLoadFailed,
    facts.SessionUsedConcurrently,
)


class _Current(threading.local):
    """The scope of the fact that this thread reports now.

    Attributes:
        site: The line of the fact, if it is about something that had to be loaded.
        by_itself: Whether the fact is not something that the running test did: time has passed, or
            a session was collected.
    """

    scope: Scope | None = None
    site: CallSite | None = None
    by_itself = False


class Tracing:
    """Traces every session of the process, in addition to the application's own tracing.

    It is a detector that receives every fact and reports nothing.

    Args:
        settings: The settings.
        baseline: The known findings.
        on_finding: Called with each finding of the other detectors, and the id of its test.
    """

    facts: Final[tuple[type[Fact], ...]] = get_args(facts.Fact)

    def __init__(
        self,
        settings: Settings,
        baseline: Baseline,
        on_finding: Callable[[Reported, str], None],
    ) -> None:
        self.case: Case | None = None
        self.sessions = 0
        self._settings = settings
        self._baseline = baseline
        self._on_finding = on_finding
        self._instrumentation: Instrumentation | None = None
        self._policy: Policy | None = None
        self._sharing = 0
        # The ids of the open sessions that fixtures opened, and the sessions themselves: what is
        # used again after close() is a fixture's still.
        self._of_fixtures: set[str] = set()
        self._sessions_of_fixtures: weakref.WeakValueDictionary[int, Any]
        self._sessions_of_fixtures = weakref.WeakValueDictionary()
        # The open sessions by their ids.
        self._open: dict[str, tuple[Report, Scope]] = {}
        self._registries: weakref.WeakKeyDictionary[Any, weakref.ref[Any]]
        self._registries = weakref.WeakKeyDictionary()
        self._written = _Written()
        # What was at work at the last failure of each line, in the running test.
        self._failed: dict[CallSite | None, Passed] = {}
        # The call of the running test that happened last.
        self._call: Call = ()
        self._current = _Current()
        # The scopes of what no code of the running test did, by the ids of session and finding.
        self._by_itself: dict[tuple[str, str], Scope] = {}
        self._clients = ClientThreads()
        self._has_threads = False
        # Sessions of several threads may be reported at the same time.
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        """Whether sessions are traced now."""
        return self._instrumentation is not None

    def start(self) -> None:
        """Trace every session."""
        settings = self._settings
        exporter = Exporter(on_finding=self._found, structlog=False)
        per_test = [_PerTest(detector, self) for detector in detectors.DEFAULT_DETECTORS]
        judges: tuple[Detector, ...] = (self, *per_test)
        self._policy = Policy(settings, judges)
        self._instrumentation = capture(resolve(None), "default", exporter, settings, judges)
        self._clients.start()
        self._has_threads = False

    def stop(self) -> None:
        """Stop tracing."""
        if self._instrumentation is not None:
            self._clients.stop()
            self._instrumentation.uninstrument()
            self._instrumentation = None
            # A scope refers to its test, and the test to the facts of all its sessions.
            self._open.clear()
            self._by_itself.clear()

    def begin(self, case: Case) -> None:
        """Begin a test. Sessions that it shares with other tests begin to count from zero.

        The ledger counts a statement before it publishes it. Counts must therefore be reset before
        the test's first statement.
        """
        self.case = case
        if not self._has_threads:
            # Not in the first session: a fixture may compare the threads before and after its test.
            # Nor as the run starts: modules that are imported then may patch threads.
            self._has_threads = True
            process.began_work()
        self._clients.begin(case.own_files)
        failures.forget_repeats()
        self._failed.clear()
        openings.forget()
        for report, scope in self._of_this_thread():
            self._reset_counts(report, scope)

    def _reset_counts(self, report: Report, scope: Scope) -> None:
        if scope.case is None and scope.last is not self.case:
            scope.last = self.case
            report.ledger.reset_counts(report)

    def _begin_call(self, fact: Fact, report: Report, scope: Scope) -> None:
        """Count what repeats from zero if another call of the test leads to it than before."""
        if isinstance(fact, _COUNTED) and self.case is not None and self.case.phase == "call":
            call = self.case.call(report)
            if call != self._call:
                self._call = call
                failures.forget_repeats()
            if call != scope.call:
                scope.call = call
                # These have been counted already.
                report.ledger.begin_turn(
                    report,
                    with_load=isinstance(fact, facts.AttributeLoaded),
                    with_row=isinstance(fact, facts.StatementExecuted)
                    and fact.operation != "SELECT",
                )

    def _of_this_thread(self) -> list[tuple[Report, Scope]]:
        """Return the open sessions to whose ledgers no other thread is writing now."""
        return [
            (report, scope)
            for report, scope in list(self._open.values())
            if report.ledger.owner.ident == threading.get_ident()
        ]

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Set up a fixture with a wider scope than one test. Its sessions belong to no test."""
        self._sharing += 1
        try:
            yield
        finally:
            self._sharing -= 1

    def settle(self) -> None:
        """Report collected sessions, and the objects that the last statements loaded."""
        watchdog.settle()
        for report, _ in self._of_this_thread():
            report.ledger.settle(report.ledger.clock())
            report.ledger.fold_rows()

    def memory(self) -> Scope:
        """Return a scope, which belongs to the running test unless a wider fixture opened it."""
        shared = self._sharing > 0
        return Scope(None if shared else self.case, shared, last=self.case)

    def judge(self, fact: Fact, report: Report, memory: Scope) -> tuple[()]:
        """Add the fact to the running test."""
        self._note(fact, memory)
        if isinstance(fact, facts.TransactionEnded) and fact.outcome == "committed":
            memory.commits[str(fact.site)] = report.ledger.locator.passed()
        self._reset_counts(report, memory)
        self._begin_call(fact, report, memory)
        if self.case is not None:
            memory.came_with(fact, self.case.phase)
            if isinstance(fact, _COUNTED) and not memory.is_tests:
                # What is left to a library may have only a line of the tests around it.
                is_direct = fact.site is not None and fact.site.distance == 0
                memory.is_tests = is_direct and self.case.has_line(fact.site)
        with self._lock:
            if isinstance(fact, facts.SessionOpened):
                self._opened(report, memory)
            elif isinstance(fact, facts.SessionClosed):
                self._of_fixtures.discard(report.ledger.id)
                self._open.pop(report.ledger.id, None)
            if self.case is not None:
                self.case.add(fact, report, memory)
                self._flushed(fact, report, memory, self.case)
        return ()

    def _flushed(self, fact: Fact, report: Report, scope: Scope, case: Case) -> None:
        """Note what a line has written, and count its failures from zero if a test repeats them."""
        if isinstance(fact, facts.FlushCompleted):
            for key in _keys(fact, report):
                self._written.add(key, _piece(report, scope, case))
        elif isinstance(fact, facts.FlushFailed):
            passed = report.ledger.locator.passed()
            before, self._failed[fact.site] = self._failed.get(fact.site), passed
            if before is not None and case.repeats(report, before):
                failures.forget_repeats()

    def note(self, fact: Fact, report: Report) -> None:
        """Note which fact is reported, because another detector is called before `judge()`."""
        self._current.site = fact.site if isinstance(fact, _LOADING) else None
        report.is_left_out = self._is_left_out
        report.tells_tests_apart = True
        known = self._open.get(report.ledger.id)
        # The scope of a session that has ended was noted by judge() with its last fact.
        if known is not None:
            self._note(fact, known[1])

    def _is_left_out(self, line: CallSite) -> bool:
        """Return whether it is a line of the tests that leads to a mistake of the application."""
        case = self.case
        return case is not None and case.has_line(line) and not case.has_line(self._current.site)

    def _note(self, fact: Fact, scope: Scope) -> None:
        self._current.scope = scope
        self._current.by_itself = isinstance(fact, facts.TimePassed) or (
            isinstance(fact, facts.SessionClosed) and fact.ending in _ENDINGS_BY_ITSELF
        )

    def _opened(self, report: Report, scope: Scope) -> None:
        self._open[report.ledger.id] = report, scope
        session = LIVE[report.ledger]()
        scope.registry = self._registry_of(session)
        if scope.case is not None:
            scope.opened_for = report.ledger.locator.innermost(scope.case.own_files.begins)
        scope.opened_by = report.ledger.locator.sites(report.ledger.owner.frames())
        self.sessions += self.is_on  # sessions that were open before are not counted
        if session is not None and (
            self._sharing or self.case is None or self.case.phase != "call"
        ):
            self._sessions_of_fixtures[id(session)] = session
        scope.is_of_a_fixture = id(session) in self._sessions_of_fixtures
        if scope.is_of_a_fixture:
            self._of_fixtures.add(report.ledger.id)

    def _registry_of(self, session: object) -> weakref.ref[Any] | None:
        """Return the `scoped_session` that has made the session, for this or an earlier scope."""
        registry = registry_at_work()
        if session is None:
            return None
        if registry is not None:
            self._registries[session] = weakref.ref(registry)
        return self._registries.get(session)

    def is_beside_the_tests(self, fact: ConnectionNested | WritesSplit, report: Report) -> bool:
        """Return whether one of two sessions is a fixture's, or one of them alone is the tests'.

        The application would not have that one. But the session of its `scoped_session` is its own
        if its own line has begun to hold the connection, also where a fixture used it before.
        """
        if isinstance(fact, facts.ConnectionNested) and self._is_taken_by_application(fact):
            return False
        if not self._of_fixtures.isdisjoint((report.ledger.id, fact.other)):
            return True
        mine = self._opened_by_tests(report.ledger.id, report.ledger.opened_site)
        others = self._opened_by_tests(fact.other, fact.other_opened_site)
        return (mine is None) != (others is None)

    def _opened_by_tests(self, id_: str, opened: CallSite | None) -> CallSite | None:
        """Return the line of the tests that opened a session, or whose `with` block has it."""
        case, known = self.case, self._open.get(id_)
        if case is None:
            return None
        scope = case.scope_of(id_) if known is None else known[1]
        lines = opened, None if scope is None else block_around(scope.opened_by)
        return next(filter(case.has_line, lines), None)

    def _is_taken_by_application(self, fact: ConnectionNested) -> bool:
        case, known = self.case, self._open.get(fact.other)
        if case is None or fact.other_site is None or known is None:
            return False
        return known[1].registry is not None and not case.has_line(fact.other_site)

    def lasts_for_tests(self, finding: Finding, report: Report) -> bool:
        """Return whether tests decide how long it lasts, of a session that they opened.

        The transaction ends when they end it. Where a line of the application leaves the session
        waiting, its function is at work.
        """
        case, ledger = self.case, report.ledger
        if case is None or finding.id not in _LASTING:
            return False
        if ledger.id not in self._of_fixtures and not case.has_line(ledger.opened_site):
            return False
        if finding.id == "long-transaction":
            return True
        at_work = next(iter(ledger.locator.sites(ledger.owner.frames())), None)
        return not case.has_line(finding.site) and (at_work is None or case.has_line(at_work))

    def with_line_of_tests(self, finding: Finding, report: Report) -> Finding:
        """Return the finding with the line of the tests that opened the session used by several."""
        if finding.id != "concurrent-use":
            return finding
        opened = self._opened_by_tests(report.ledger.id, report.ledger.opened_site)
        if opened is None:
            return finding
        where = f"the tests opened the session at {opened}"
        return replace(finding, message=f"{finding.message}; {where}")

    def outlives_tests(self) -> bool:
        """Return whether the session that this thread reports now belongs to no test."""
        return self._current.scope is None or self._current.scope.case is None

    def note_finding(self, finding: Finding) -> None:
        """Note the scope of what no code of the running test did: another thread reports it."""
        scope = self._current.scope
        if scope is not None and self._current.by_itself:
            self._by_itself[finding.session_id, finding.id] = scope

    def is_stopped(self, finding: Finding) -> bool:
        """Return whether a fixture ends, and with it a task that closes its session."""
        is_cancelled = finding.id == "cancelled-transaction" and not self._current.by_itself
        return is_cancelled and self.case is not None and self.case.is_in_a_fixture()

    def was_written(self, fact: FlushFailureDecided, report: Report) -> bool:
        """Return whether what failed is handled, and tests have had its line write such objects.

        If tests run an import twice, each row of the second time fails, and none is written.
        """
        failed, scope = fact.failed, self._current.scope
        if fact.unhandled or scope is None or self.case is None:
            return False
        by = _piece(report, scope, self.case)
        before = sum(self._written.before(key, by) for key in _keys(failed, report))
        return before >= fact.repeats

    def in_the_way(self, fact: EventLoopBlocked, report: Report) -> EventLoopBlocked:
        """Return the fact with the number of tasks that would have run meanwhile.

        What a fixture or the test's own coroutine does has no request in its way. The tasks of
        pytest's plugins and of a server without a request wait for what the test does next. What a
        test awaits, such as the start of an application, is only in the way of its other tasks.
        """
        case, blocking = self.case, report.ledger.blocking
        if case is None or blocking is None:
            return fact
        if case.is_in_a_fixture() or case.has_line(fact.site):
            return replace(fact, waiting=0)
        ready = [task for task in blocking.owner.tasks_beside() if is_ready(task)]
        if any(map(case.own_files.begins, task_stack())):
            ready = [task for task in ready if any(map(case.own_files.begins, suspended(task)))]
        return replace(fact, waiting=len(ready))

    def commit_of(self, found: Verdict) -> Passed:
        """Return what was at work at the commit after which objects were loaded again."""
        scope = self._current.scope
        if scope is None or not isinstance(found, Finding) or found.id != "reload-after-commit":
            return {}
        return scope.commits.get(found.evidence.get("committed_at", ""), {})

    def were_there(self, finding: Finding) -> bool:
        """Return whether a lock is about objects that another call of the test has brought."""
        scope = self._current.scope
        return scope is not None and scope.were_there(finding)

    def conclude(self, finding: Finding, report: Report, case: Case) -> None:
        """Report a finding of the plugin, unless the settings or `silence()` suppress it."""
        ruled = None if self._policy is None else self._policy.rule(finding, report)
        if ruled is not None:
            self._report(ruled, case)

    def _found(self, finding: Finding) -> None:
        """Report a finding in the running test, or in the test whose session was collected."""
        scope = self._by_itself.pop((finding.session_id, finding.id), None)
        if scope is None:
            self._report(finding, self.case)
        elif not (
            scope.shared
            or scope.left_open
            or scope.is_in_a_traceback
            or (finding.id == "leaked-session" and (scope.is_tests or scope.is_registered))
            or (scope.is_of_a_fixture and finding.evidence.get("owner_state") == "suspended")
        ):
            # The fixture decides how long a shared session is open, and pytest resumes it. A
            # session that was left open has its finding already, and what the tests use is reported
            # if their test leaves it. A registry may have its session for the whole run.
            self._report(finding, scope.case)

    def _report(self, finding: Finding, case: Case | None) -> None:
        phase = "teardown" if case is None else case.phase
        if case is not None and case.has(finding):
            return
        reason = "" if case is None else case.allowed(finding)
        state: State = "allowed" if reason else "new"
        if not reason and self._baseline.knows(finding):
            state = "known"
        reported = Reported(finding, phase, state, reason)
        if case is not None:
            case.add_finding(reported)
        self._on_finding(reported, "" if case is None else case.nodeid)


def _keys(fact: facts.FlushCompleted | facts.FlushFailed, report: Report) -> Iterator[Hashable]:
    """The new objects of a flush: their class, the line, and the database they are for."""
    for entity, number in fact.new.items():
        yield from repeat((entity, fact.site, report.ledger.scope.kind), number)


def _piece(report: Report, scope: Scope, case: Case) -> Hashable:
    """Return which call of which test runs, and in which session, if the test opened that."""
    ledger = report.ledger
    session = ledger.id if case.has_line(ledger.opened_site) else ""
    return case.nodeid, case.phase, scope.call, session


class _Written:
    """Number of objects by what they are, before the latest piece of work and in it."""

    def __init__(self) -> None:
        self._before: Counter[Hashable] = Counter()
        self._now: Counter[Hashable] = Counter()
        self._by: Hashable = None

    def add(self, key: Hashable, by: Hashable) -> None:
        """An object was written."""
        if by != self._by:
            self._before.update(self._now)
            self._now.clear()
            self._by = by
        self._now[key] += 1

    def before(self, key: Hashable, by: Hashable) -> int:
        """Return how many were written before, and 0 if this piece of work writes them too."""
        if by != self._by:
            return self._before[key] + self._now[key]
        return 0 if self._now[key] else self._before[key]


class _PerTest:
    """A detector with a new memory of a session for each test that uses the session.

    A test must not fail because of what earlier tests did with the session, or because its fixtures
    have a session open while the application has one.
    """

    def __init__(self, detector: Detector, tracing: Tracing) -> None:
        self.facts = detector.facts
        self.candidates = detector.candidates if isinstance(detector, Suspecting) else ()
        self.counts_repeats = getattr(detector, "counts_repeats", False)
        self._detector = detector
        self._tracing = tracing

    def memory(self) -> _Memory:
        return _Memory(self._tracing.case, self._detector.memory())

    def judge(self, fact: Any, report: Report, memory: _Memory) -> Iterable[Verdict]:
        self._tracing.note(fact, report)
        if memory.case is not self._tracing.case and self._tracing.outlives_tests():
            memory.case, memory.of_detector = self._tracing.case, self._detector.memory()
        if isinstance(fact, facts.ConnectionNested | facts.WritesSplit) and (
            self._tracing.is_beside_the_tests(fact, report)
        ):
            return ()
        if isinstance(fact, facts.FlushFailureDecided) and self._tracing.was_written(fact, report):
            return ()
        if isinstance(fact, facts.EventLoopBlocked):
            fact = self._tracing.in_the_way(fact, report)
            if not fact.waiting:
                return ()
        return self._of_the_application(
            self._detector.judge(fact, report, memory.of_detector), report
        )

    def _of_the_application(self, found: Iterable[Verdict], report: Report) -> Iterator[Verdict]:
        """Leave out what the running test itself repeats, or committed as its set-up."""
        for one in found:
            earlier, report.passed = [report.passed, self._tracing.commit_of(one)], {}
            loop, report.loop = report.loop, None
            case = self._tracing.case
            if isinstance(one, Finding):
                if self._tracing.lasts_for_tests(one, report):
                    continue
                self._tracing.note_finding(one)
                one = self._tracing.with_line_of_tests(one, report)
            if case is None:
                yield one
            elif isinstance(one, Finding) and (
                case.prepares(one, loop)
                or self._tracing.were_there(one)
                or self._tracing.is_stopped(one)
            ):
                continue
            elif not any(case.repeats(report, passed) for passed in earlier if passed):
                yield one


class _Memory:
    """A detector's memory of a session in one test."""

    __slots__ = ("case", "of_detector")

    def __init__(self, case: Case | None, of_detector: Any) -> None:
        self.case = case
        self.of_detector = of_detector

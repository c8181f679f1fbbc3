"""Traces every session while tests run, and passes facts and findings to the running test."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, get_args

from session_tracer import detectors, facts
from session_tracer.detectors.protocol import Suspecting
from session_tracer.exporter import Exporter
from session_tracer.hooks.targets import resolve
from session_tracer.instrumentor import capture
from session_tracer.ledger import watchdog
from session_tracer.ledger.registry import LIVE
from session_tracer.pytest_plugin.case import Case, Drawn, Scope
from session_tracer.settings import Settings
from session_tracer.verdicts.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from session_tracer.detectors import Detector
    from session_tracer.facts import Fact
    from session_tracer.instrumentor import Instrumentation
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.verdicts.baseline import Baseline

__all__ = ["Tracing"]

# How a session ends that no code has closed. Its test may be over by then.
_ENDINGS_BY_ITSELF: Final = frozenset({"collected", "exit"})


class _Current(threading.local):
    """The scope of the fact that this thread reports now.

    `by_itself` is whether the fact is not something that the running test did: time has passed, or
    a session was lost.
    """

    scope: Scope | None = None
    by_itself = False


class Tracing:
    """Traces every session of the process, in addition to the application's own tracing.

    It is a detector that gets every fact and concludes nothing. `on_finding` gets the findings of
    the other detectors, each with the id of the test that it belongs to.
    """

    facts: Final[tuple[type[Fact], ...]] = get_args(facts.Fact)

    def __init__(self, baseline: Baseline, on_finding: Callable[[Drawn, str], None]) -> None:
        self.case: Case | None = None
        self.sessions = 0
        self._baseline = baseline
        self._on_finding = on_finding
        self._instrumentation: Instrumentation | None = None
        self._policy: Policy | None = None
        self._sharing = 0
        # The ids of the open sessions that only the tests' fixtures have.
        self._of_fixtures: set[str] = set()
        # The scopes of the open sessions, by the session's id.
        self._scopes: dict[str, Scope] = {}
        self._current = _Current()
        # Sessions of several threads may be reported at the same time.
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        """Whether sessions are traced now."""
        return self._instrumentation is not None

    def start(self) -> None:
        """Trace every session.

        Raises:
            ValueError: a setting in the environment is invalid.
        """
        # The plugin reports what the baseline knows as known, so the tracer must not drop it.
        settings = Settings.from_env().override({"baseline_path": ""})
        exporter = Exporter(on_finding=self._drawn, structlog=False)
        anew = [_PerTest(detector, self) for detector in detectors.DEFAULT_DETECTORS]
        judges: tuple[Detector, ...] = (self, *anew)
        self._policy = Policy(settings, judges)
        self._instrumentation = capture(resolve(None), "default", exporter, settings, judges)

    def stop(self) -> None:
        """Stop tracing."""
        if self._instrumentation is not None:
            self._instrumentation.uninstrument()
            self._instrumentation = None
            # A scope refers to its test, and through it to all that the test's sessions did.
            self._scopes.clear()

    def begin(self, case: Case) -> None:
        """A test begins: count anew what sessions do that it shares with other tests.

        The ledger counts a statement before it publishes it. Counting therefore has to begin anew
        before the test's first statement, not with it.
        """
        self.case = case
        for ledger in list(LIVE):
            scope = self._scopes.get(ledger.id)
            # A ledger that another thread may be writing to is reset by that thread.
            if scope is not None and ledger.owner.ident == threading.get_ident():
                self._count_anew(scope, ledger)

    def _count_anew(self, scope: Scope, ledger: Ledger) -> None:
        if scope.case is None and scope.last is not self.case:
            scope.last = self.case
            ledger.begin_counting_anew()

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """A fixture wider than one test is set up: its sessions belong to no single test."""
        self._sharing += 1
        try:
            yield
        finally:
            self._sharing -= 1

    def settle(self) -> None:
        """Have lost sessions reported, and what the last statements loaded."""
        watchdog.settle()
        for ledger in list(LIVE):
            # A session of another thread may be loading objects at this moment.
            if ledger.owner.ident == threading.get_ident():
                ledger.settle(ledger.clock())

    def memory(self) -> Scope:
        """What is remembered of a scope: the running test, if the scope belongs to it."""
        shared = self._sharing > 0
        return Scope(None if shared else self.case, shared, last=self.case)

    def judge(self, fact: Fact, report: Report, memory: Scope) -> tuple[()]:
        """Pass the fact to the running test."""
        self._note(fact, memory)
        self._count_anew(memory, report.ledger)
        with self._lock:
            if isinstance(fact, facts.SessionOpened):
                self._opened(report.ledger.id, memory)
            elif isinstance(fact, facts.SessionClosed):
                self._of_fixtures.discard(report.ledger.id)
                self._scopes.pop(report.ledger.id, None)
            if self.case is not None:
                self.case.add(fact, report, memory)
        return ()

    def note(self, fact: Fact, report: Report) -> None:
        """Another detector is asked about the fact, perhaps before `judge()` gets it."""
        scope = self._scopes.get(report.ledger.id)
        # The scope of a session that has ended is noted: judge() has just got its last fact.
        if scope is not None:
            self._note(fact, scope)

    def _note(self, fact: Fact, scope: Scope) -> None:
        self._current.scope = scope
        self._current.by_itself = isinstance(fact, facts.TimePassed) or (
            isinstance(fact, facts.SessionClosed) and fact.ending in _ENDINGS_BY_ITSELF
        )

    def _opened(self, session_id: str, scope: Scope) -> None:
        self._scopes[session_id] = scope
        self.sessions += self.is_on  # sessions that were open before are not counted
        if self._sharing or self.case is None or self.case.phase != "call":
            self._of_fixtures.add(session_id)

    def is_of_a_fixture(self, *session_ids: str) -> bool:
        """Whether one of these sessions was opened by a fixture, and is open."""
        return not self._of_fixtures.isdisjoint(session_ids)

    def outlives_tests(self) -> bool:
        """Whether the session that this thread reports now belongs to no test."""
        return self._current.scope is None or self._current.scope.case is None

    def conclude(self, finding: Finding, report: Report, case: Case) -> None:
        """Report a finding of the plugin's own, unless the settings or the code silence it."""
        ruled = None if self._policy is None else self._policy.rule(finding, report)
        if ruled is not None:
            self._report(ruled, case)

    def _drawn(self, finding: Finding) -> None:
        """Report a finding of the running test, or of the test whose session was lost."""
        scope = self._current.scope
        if scope is None or not self._current.by_itself:
            self._report(finding, self.case)
        elif not (scope.shared or scope.left_open):
            # How long a shared session lives is up to its fixture. That a session was left open is
            # reported already.
            self._report(finding, scope.case)

    def _report(self, finding: Finding, case: Case | None) -> None:
        phase = "teardown" if case is None else case.phase
        drawn = Drawn(finding, phase, self._baseline.knows(finding))
        if case is not None:
            case.draw(drawn)
        self._on_finding(drawn, "" if case is None else case.nodeid)


class _PerTest:
    """A detector whose memory of a session begins anew with each test that uses the session.

    A test must not fail for what other tests did with the session before, nor because its fixtures
    have a session open while the application has one.
    """

    def __init__(self, detector: Detector, tracing: Tracing) -> None:
        self.facts = detector.facts
        self.candidates = detector.candidates if isinstance(detector, Suspecting) else ()
        self._detector = detector
        self._tracing = tracing

    def memory(self) -> _Memory:
        return _Memory(self._tracing.case, self._detector.memory())

    def judge(self, fact: Any, report: Report, memory: _Memory) -> Iterable[Finding | Retraction]:
        self._tracing.note(fact, report)
        if memory.case is not self._tracing.case and self._tracing.outlives_tests():
            memory.case, memory.of_detector = self._tracing.case, self._detector.memory()
        if isinstance(fact, facts.ConnectionNested | facts.WritesSplit) and (
            self._tracing.is_of_a_fixture(report.ledger.id, fact.other)
        ):
            return ()
        return self._detector.judge(fact, report, memory.of_detector)


class _Memory:
    """What a detector remembers, and the test in which it does."""

    __slots__ = ("case", "of_detector")

    def __init__(self, case: Case | None, of_detector: Any) -> None:
        self.case = case
        self.of_detector = of_detector

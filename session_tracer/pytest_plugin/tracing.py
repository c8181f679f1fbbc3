"""Has every session traced while tests run, and tells the running test of what it hears."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, get_args

from session_tracer import detectors, facts
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
    from session_tracer.ledger.record import SessionRecord
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.verdicts.baseline import Baseline

__all__ = ["Tracing"]

# How a session ends that nobody ends: long after its test, perhaps.
_ENDINGS_BY_ITSELF: Final = frozenset({"collected", "exit"})


class _Heard(threading.local):
    """Of what this thread tells: the scope it is about, and whether it came about by itself."""

    scope: Scope | None = None
    by_itself = False


class Tracing:
    """Traces every session of the process, besides whoever traces them already.

    As a detector it hears of facts and whose they are, and concludes nothing; `on_finding` gets
    what the others conclude, with the id of the test it is of.
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
        # The ids of the open sessions that the application would not have without its tests.
        self._of_fixtures: set[str] = set()
        self._heard = _Heard()
        # Sessions of several threads may be told of at the same time.
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        """Whether sessions are traced now."""
        return self._instrumentation is not None

    def start(self) -> None:
        """Trace every session; `ValueError` for a bad setting in the environment."""
        # What the baseline knows is reported as known, so it is not the tracer that drops it.
        settings = Settings.from_env().override({"baseline_path": ""})
        exporter = Exporter(on_finding=self._drawn, structlog=False)
        anew = [_PerTest(detector, self) for detector in detectors.DEFAULT_DETECTORS]
        judges: tuple[Detector, ...] = (self, *anew)
        self._policy = Policy(settings, judges)
        self._instrumentation = capture(resolve(None), "default", exporter, settings, judges)

    def stop(self) -> None:
        """Trace no longer."""
        if self._instrumentation is not None:
            self._instrumentation.uninstrument()
            self._instrumentation = None

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """A fixture wider than one test is set up: its sessions are no test's own."""
        self._sharing += 1
        try:
            yield
        finally:
            self._sharing -= 1

    def settle(self) -> None:
        """Hear of what was not told yet: lost sessions, and what the last statements loaded."""
        watchdog.settle()
        for probe in list(LIVE):
            # Another thread's may be loading at this moment.
            if probe.owner.ident == threading.get_ident():
                probe.settle(probe.clock())

    def memory(self) -> Scope:
        """What is remembered of a scope that this is told of for the first time."""
        shared = self._sharing > 0
        return Scope(None if shared else self.case, shared)

    def judge(self, fact: Fact, record: SessionRecord, memory: Scope) -> tuple[()]:
        """Tell the running test of the fact."""
        self._heard.scope = memory
        self._heard.by_itself = isinstance(fact, facts.TimePassed) or (
            isinstance(fact, facts.SessionClosed) and fact.ending in _ENDINGS_BY_ITSELF
        )
        with self._lock:
            if isinstance(fact, facts.SessionOpened):
                self._opened(record.id)
            elif isinstance(fact, facts.SessionClosed):
                self._of_fixtures.discard(record.id)
            if self.case is not None:
                self.case.hear(fact, record, memory)
        return ()

    def _opened(self, session_id: str) -> None:
        self.sessions += self.is_on  # and not of those that were open before
        if self._sharing or self.case is None or self.case.phase != "call":
            self._of_fixtures.add(session_id)

    def is_of_a_fixture(self, *session_ids: str) -> bool:
        """Whether one of these sessions was opened by a fixture, and is open."""
        return not self._of_fixtures.isdisjoint(session_ids)

    def outlives_tests(self) -> bool:
        """Whether the session that this thread tells of belongs to no test."""
        return self._heard.scope is None or self._heard.scope.case is None

    def conclude(self, finding: Finding, record: SessionRecord, case: Case) -> None:
        """Say a finding of the plugin's own, unless the settings or the code silence it."""
        ruled = None if self._policy is None else self._policy.rule(finding, record)
        if ruled is not None:
            self._say(ruled, case)

    def _drawn(self, finding: Finding) -> None:
        """Say a finding of the running test, or of the one whose session it came upon."""
        scope = self._heard.scope
        if scope is None or not self._heard.by_itself:
            self._say(finding, self.case)
        elif not (scope.shared or scope.left_open):
            # How long a shared session lives is its fixture's business, and what was left open was
            # said to be.
            self._say(finding, scope.case)

    def _say(self, finding: Finding, case: Case | None) -> None:
        phase = "teardown" if case is None else case.phase
        drawn = Drawn(finding, phase, self._baseline.knows(finding))
        if case is not None:
            case.draw(drawn)
        self._on_finding(drawn, "" if case is None else case.nodeid)


class _PerTest:
    """A detector that begins anew with each test, for a session that several tests share.

    A test is not to fail for what others have done with the session before it; nor because it has a
    session of its fixtures open besides the application's.
    """

    def __init__(self, detector: Detector, tracing: Tracing) -> None:
        self.facts = detector.facts
        self._detector = detector
        self._tracing = tracing

    def memory(self) -> _Memory:
        return _Memory(self._tracing.case, self._detector.memory())

    def judge(
        self, fact: Any, record: SessionRecord, memory: _Memory
    ) -> Iterable[Finding | Retraction]:
        if memory.case is not self._tracing.case and self._tracing.outlives_tests():
            memory.case, memory.of_detector = self._tracing.case, self._detector.memory()
        if isinstance(fact, facts.ConnectionNested | facts.WritesSplit) and (
            self._tracing.is_of_a_fixture(record.id, fact.other)
        ):
            return ()
        return self._detector.judge(fact, record, memory.of_detector)


class _Memory:
    """What a detector remembers, and the test in which it does."""

    __slots__ = ("case", "of_detector")

    def __init__(self, case: Case | None, of_detector: Any) -> None:
        self.case = case
        self.of_detector = of_detector

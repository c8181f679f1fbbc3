"""What one tracer reports of one session scope: its findings, and its signals."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from session_tracer import facts
from session_tracer.ledger.guard import aside, reporting
from session_tracer.ledger.suspicion import Suspicion
from session_tracer.model.findings import Finding, Lasting, Retraction
from session_tracer.model.summary import COUNTS, NUMBERS, SessionSummary
from session_tracer.model.timeline import NO_TIMELINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from session_tracer.facts import Fact, Outcome, Trigger
    from session_tracer.ledger.gates import Gates
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.ledger.loads import Passed
    from session_tracer.ledger.origin import Scope
    from session_tracer.model.findings import Severity
    from session_tracer.model.timeline import Timeline
    from session_tracer.model.totals import Total
    from session_tracer.settings import Settings
    from session_tracer.where.callsite import CallSite, Locator

__all__ = ["Attached", "Attaching", "Comments", "Judge", "Publisher", "Report", "Spans", "Tracer"]

_MOST_FINDINGS: Final = 1_000
_NOTHING_PASSED: Final[Passed] = MappingProxyType({})
# What a detector concludes.
Verdict: TypeAlias = "Finding | Lasting | Retraction"
# What it concludes most of the time.
_NOTHING: Final = ()


class Judge(Protocol):
    """A detector, as a report calls it."""

    def memory(self) -> Any: ...

    def judge(self, fact: Any, report: Report, memory: Any) -> Iterable[Verdict]: ...


class Attached(Protocol):
    """A context that can be put in force, and the caller's, which is put back after it."""

    def attach(self) -> None: ...

    def detach(self) -> None: ...


class Attaching(Protocol):
    """Has the context for the statements of one scope."""

    def attach(self) -> Attached | None: ...


class Publisher(Protocol):
    """Gets every fact of one scope, because code asked for facts."""

    @property
    def timeline(self) -> Timeline: ...

    def publish(self, fact: Fact, report: Report) -> None: ...

    def mute(self, signal: object) -> None: ...


class Comments(Protocol):
    """Has the comments of one tracer's sessions."""

    def before(self, ledger: Ledger, statement: str) -> str: ...


class Metrics(Protocol):
    """Measures what sessions do. All methods but `finding` are called without containment."""

    def transaction_ended(
        self, report: Report, outcome: Outcome, duration: int, held: tuple[tuple[int, int], ...]
    ) -> None: ...

    def flushed(self, report: Report, trigger: Trigger, error: str, duration: int) -> None: ...

    def statement_executed(self, report: Report, fact: facts.StatementExecuted) -> None: ...

    def load_refused(self, report: Report) -> None: ...

    def session_ended(self, report: Report) -> None: ...

    def finding(self, finding: Finding, report: Report) -> None: ...


class Logs(Protocol):
    """Logs what sessions do."""

    def flush_failed(self, report: Report, decided: facts.FlushFailureDecided) -> None: ...

    def session_closed(self, report: Report) -> None: ...

    # What an event has of the moment: None where it is logged at once.

    def moment(self, report: Report, note: Callable[[Any], None]) -> None: ...

    def finding(self, finding: Finding, report: Report, moment: Any) -> None: ...

    def lasting(self, lasting: Lasting, report: Report, moment: Any, lasts: int) -> None: ...

    def retracted(self, retraction: Retraction, report: Report, moment: Any) -> None: ...


class Spans(Protocol):
    """The open spans of one scope, once its first transaction has begun and if it is sampled."""

    def transaction_began(self, at: int, site: CallSite | None, nested: bool) -> None: ...

    def transaction_ended(self, at: int, outcome: Outcome, nested: bool, error: str) -> None: ...

    def flush_began(self, at: int, site: CallSite | None, trigger: Trigger) -> None: ...

    def flush_ended(
        self, at: int, new: int, dirty: int, deleted: int, unchanged: int | None, error: str
    ) -> None: ...

    def statement_started(self, fact: facts.StatementStarted) -> None: ...

    def statement_executed(self, fact: facts.StatementExecuted) -> None: ...

    def session_ended(self, at: int) -> None: ...

    def detached_load_failed(self, fact: facts.DetachedLoadFailed) -> None: ...

    def finding(self, finding: Finding) -> None: ...

    def retracted(self, retraction: Retraction) -> None: ...

    def stop(self) -> None: ...


class SpanSource(Protocol):
    """Begins the spans of scopes.

    It sets `spans` of the report if they are sampled, and `attaching` and `session_context`.
    """

    def begin(self, report: Report) -> None: ...

    def refused(self, report: Report, origin: Any) -> None: ...


class Sink(Protocol):
    """An exporter that takes whole values."""

    wants_sessions: bool

    def session(self, report: Report) -> None: ...

    def finding(self, finding: Finding, report: Report) -> None: ...

    def retracted(self, retraction: Retraction, report: Report) -> None: ...


class Rules(Protocol):
    """Which findings are reported, how severe they are, and which are raised."""

    def rule(self, finding: Finding, report: Report) -> Finding | None: ...

    def as_reported(self, finding: Finding) -> Finding: ...

    def raises(self, finding: Finding) -> bool: ...


class Tracer(Protocol):
    """One name, its settings, its detectors and its signals."""

    name: str
    settings: Settings
    gates: Gates
    locator: Locator
    # Monotonic, in nanoseconds.
    clock: Callable[[], int]
    closed: bool
    is_settled: bool
    is_quiet: bool
    tells_statements: bool
    # What is sent with the statements of its sessions; None unless the settings ask for it.
    comments: Comments | None
    # How long, in nanoseconds, until a session leaks, a transaction is long, a connection is idle.
    patience: tuple[int, int, int]
    watches: bool

    @property
    def judges(self) -> Mapping[Any, tuple[tuple[int, Any], ...]]:
        """The detectors to be asked about each type of fact, with their places."""

    # The places of the detectors that count what repeats.
    @property
    def repeating(self) -> tuple[int, ...]: ...

    def wants_everything(self) -> bool: ...

    def closed_unused(self, duration: int) -> None: ...

    @property
    def policy(self) -> Rules: ...

    def settle(self) -> None: ...

    @property
    def context(self) -> Callable[[], Any]:
        """Return the current context of OpenTelemetry."""

    @property
    def caller(self) -> Callable[..., tuple[int, int]]:
        """Return the trace and the span of a context, by default of the caller's."""

    def begin(self, ledger: Ledger) -> Report: ...

    def begin_detached(self, scope: Scope, epoch: int) -> Report: ...

    def work_of(self, ledger: Ledger) -> str: ...

    # For each of its metrics: what they are, and where a checkout's nanoseconds are added to them.
    def pool_waits(self, pool: str) -> Iterable[tuple[object, tuple[Any, Any]]]: ...

    def failed(self, where: str, error: BaseException) -> None: ...


class Report:
    """One session scope as one tracer reports it.

    A detector or signal that fails is counted, logged once, and left out of the rest of the scope.
    An attribute keeps the class's value, which costs nothing, until something changes it.
    """

    # None until the first transaction has begun, and if the session is not sampled.
    spans: Spans | None = None
    attaching: Attaching | None = None
    # Where links to the session point.
    session_context: Any = None
    publisher: Publisher | None = None
    # Whether a span of the application's may be current: what is measured then leads to it.
    may_be_traced = True
    # The innermost open span if it is recorded: a tuple that begins with trace id and span id.
    span_context: tuple[Any, ...] | None = None
    findings: tuple[Finding, ...] = ()
    # The findings about something that lasts which are not retracted, the latest last.
    suspicions: tuple[Suspicion, ...] = ()
    # Whether a finding is reported again after counts were reset for another report.
    repeats = True
    # What is to be raised as `SessionMisuse`.
    misuses: tuple[Finding, ...] = ()
    # What was at work when what the last finding is about happened before.
    passed: Passed = _NOTHING_PASSED
    # The line that loops, of the last finding of which one was looked for.
    loop: CallSite | None = None
    # Whether what the tests themselves repeat is left out afterwards, by the pytest plugin.
    tells_tests_apart = False
    # Whether a remedy does not name a line: the pytest plugin leaves out those of tests.
    is_left_out: Callable[[CallSite], bool] = staticmethod(lambda _: False)
    _memories: dict[int, Any] | None = None
    _muted: frozenset[int] = frozenset()

    def __init__(
        self,
        tracer: Tracer,
        ledger: Ledger,
        *,
        metrics: tuple[Metrics, ...],
        logs: Logs | None,
        reports_end: bool,
        span_source: SpanSource | None,
        sinks: tuple[Sink, ...],
        silenced: frozenset[str],
    ) -> None:
        self.tracer = tracer
        self.ledger = ledger
        self.name = tracer.name
        self.metrics = metrics
        self.logs = logs
        # Whether an event about the whole session, or its summary, can reach anything.
        self.reports_end = reports_end
        # None where no spans are made or sampled, and once they have begun.
        self.span_source = span_source
        self.sinks = sinks
        # What was silenced where the scope was opened.
        self.silenced = silenced

    @property
    def settings(self) -> Settings:
        """The settings of the tracer."""
        return self.tracer.settings

    def finding(
        self,
        id_: str,
        severity: Severity,
        message: str,
        remedy: str,
        site: CallSite | None,
        *,
        entity: str | None = None,
        attribute: str | None = None,
        count: int = 1,
        evidence: Mapping[str, Any] | None = None,
        total: Total | None = None,
    ) -> Finding:
        """A finding about this scope; `total` counts on what repeats."""
        evidence, ledger = evidence or {}, self.ledger
        opened_site, used_site = ledger.opened_site, ledger.first_used_site
        if opened_site is None or opened_site.distance > 1:
            opened_site = used_site  # a library opened it by itself
        if ledger.is_lent and used_site not in (site, opened_site):
            evidence = {**evidence, "first_used_site": str(used_site)}
        return Finding(
            id=id_,
            severity=severity,
            message=message,
            remedy=remedy,
            site=site,
            session_id=ledger.id,
            session_name=self.name,
            session_site=opened_site,
            work=ledger.work,
            entity=entity,
            attribute=attribute,
            count=count,
            evidence=evidence,
            total=total,
        )

    def was_reported(self, id_: str) -> bool:
        """Whether a finding of that id was reported of this scope."""
        return any(finding.id == id_ for finding in self.findings)

    def is_due(self, finding: Finding, at: int) -> bool:
        """Whether it is to be reported that the finding still holds."""
        return any(one.finding.id == finding.id and one.due_at < at for one in self.suspicions)

    # Detectors.

    def forget_repeats(self) -> None:
        """Give the detectors that count what repeats a new memory."""
        if self._memories is not None:
            for place in self.tracer.repeating:
                self._memories.pop(place, None)

    def judge(self, fact: Fact) -> None:
        """Ask the detectors that conclude something from such a fact; never raises."""
        judges = self.tracer.judges.get(type(fact))
        if judges is not None and not reporting.now:
            for place, detector in judges:
                self.ask(place, detector, fact)

    def ask(self, place: int, detector: Judge, fact: Fact) -> None:
        """Ask one detector, which has that place among the tracer's; never raises."""
        if place in self._muted:
            return
        with aside():
            try:
                memories = self._memories
                if memories is None:
                    memories = self._memories = {}
                if place not in memories:
                    memories[place] = detector.memory()
                verdicts = detector.judge(fact, self, memories[place])
                if verdicts is _NOTHING:
                    return
                ruled = [one for one in map(self._rule, verdicts) if one is not None]
            except Exception as error:
                self._muted |= {place}
                self.tracer.failed(type(detector).__name__, error)
                return
        for one in ruled:
            self._conclude(one, fact)

    def _rule(self, verdict: Verdict) -> Verdict | None:
        """The verdict as the policy has it reported, or None."""
        passed, self.passed = self.passed, _NOTHING_PASSED
        if isinstance(verdict, Finding):
            ruled = self.tracer.policy.rule(verdict, self)
            is_new = ruled is not None and not self._is_repeated(ruled)
            return ruled if is_new and not self._is_of_several_requests(passed) else None
        if not isinstance(verdict, Lasting | Retraction):
            raise TypeError(f"{type(verdict).__qualname__} is no Finding")
        reported = self.tracer.policy.as_reported(verdict.finding)
        return replace(verdict, finding=reported) if reported in self.findings else None

    def _is_repeated(self, finding: Finding) -> bool:
        """Whether it was reported already, and is found again because counts were reset."""
        return not self.repeats and any(
            (one.id, one.site, one.entity, one.attribute)
            == (finding.id, finding.site, finding.entity, finding.attribute)
            for one in self.findings
        )

    def _is_of_several_requests(self, passed: Passed) -> bool:
        """Whether what a finding counts was done before for another request of this thread.

        A loop of a server's is none of the application's: it is counted from zero.
        """
        if not self.ledger.locator.is_another_request(passed):
            return False
        self.ledger.begin_turn()
        return True

    def _conclude(self, verdict: Verdict, fact: Fact) -> None:
        later, lasts = reporting.later, 0
        if isinstance(verdict, Finding):
            self._found(verdict, fact)
        else:
            for one in [one for one in self.suspicions if one.finding.id == verdict.finding.id]:
                later = later or one.later
                lasts = fact.at - one.since
                if isinstance(verdict, Retraction):
                    self.suspicions = tuple(
                        [other for other in self.suspicions if other is not one]
                    )
            if self.spans is not None and isinstance(verdict, Retraction):
                self.emit(self.spans.retracted, verdict)
        if later is None:
            self._publish(verdict, None, lasts)
            return
        # The session may end before it is logged.
        moments: list[Any] = []
        if self.logs is not None:
            self.emit(self.logs.moment, self, moments.append)
        later(partial(self._publish, verdict, moments[0] if moments else None, lasts))

    def _found(self, finding: Finding, fact: Fact) -> None:
        # A scope that goes on for ever and fails for ever must not fill the memory.
        if len(self.findings) < _MOST_FINDINGS:
            self.findings += (finding,)
            if isinstance(fact, facts.TimePassed):
                self.suspicions += (Suspicion(finding, fact.at, reporting.later),)
        if self.tracer.policy.raises(finding) and len(self.misuses) < _MOST_FINDINGS:
            self.misuses += (finding,)
            self.ledger.has_misuses = True
        for metrics in self.metrics:
            self.emit(metrics.finding, finding, self)
        if self.spans is not None:
            self.emit(self.spans.finding, finding)

    def _publish(self, verdict: Verdict, moment: Any, lasts: int) -> None:
        """Log what was concluded at the moment, and hand it to the exporters."""
        logs = self.logs
        if isinstance(verdict, Finding):
            if logs is not None:
                self.emit(logs.finding, verdict, self, moment)
            for sink in self.sinks:
                self.emit(sink.finding, verdict, self)
            for suspicion in self.suspicions:
                if suspicion.finding is verdict:
                    suspicion.later = None
        elif isinstance(verdict, Lasting):
            if logs is not None:
                self.emit(logs.lasting, verdict, self, moment, lasts)
        else:
            if logs is not None:
                self.emit(logs.retracted, verdict, self, moment)
            for sink in self.sinks:
                self.emit(sink.retracted, verdict, self)

    # Signals. What is measured and logged of something that ended is of its span, so spans come
    # after metrics and logs; whole values come last, for a summary holds the findings.

    def emit(self, method: Any, *arguments: Any) -> None:
        """Call a signal's method; never raises."""
        before, reporting.now = reporting.now, True
        try:
            method(*arguments)
        except Exception as error:
            self.lose(method.__self__, error)
        finally:
            reporting.now = before

    def lose(self, signal: Any, error: Exception) -> None:
        """A signal has failed: report the rest of the scope without it."""
        self.tracer.failed(type(signal).__name__, error)
        if self.publisher is not None:
            self.publisher.mute(signal)
        self.metrics = tuple(one for one in self.metrics if one is not signal)
        self.sinks = tuple(one for one in self.sinks if one is not signal)
        if self.logs is signal:
            self.logs = None
        if self.spans is signal:
            self._lose_spans()

    def _end_spans(self, end: Callable[[Any], None], argument: Any) -> None:
        self.emit(end, argument)
        # They hold this report: only the garbage collector would end the two.
        self.spans = self.attaching = None

    def _lose_spans(self) -> None:
        ledger = self.ledger
        ledger.recording = tuple([one for one in ledger.recording if one[0] is not self])
        if ledger.attaching is self.attaching:
            ledger.attaching = None
        self.spans = self.span_source = self.span_context = None

    def begin_spans(self, source: SpanSource) -> None:
        """The scope's first transaction begins: begin the session's span."""
        self.span_source = None
        self.emit(source.begin, self)
        if self.spans is not None:
            self.ledger.recording += ((self, self.spans),)
        # Where the application is traced and a test captures as well, the application's spans are
        # the ones that its other instrumentations belong to.
        if self.attaching is not None and self.ledger.reports[0] is self:
            self.ledger.attaching = self.attaching
            # It is not known whether code runs within the statements of what is held already.
            self.ledger.attaches = bool(self.ledger.connections or self.ledger.borrowed)

    def publish(self, fact: Fact) -> None:
        """Hand the fact to the code that asked for facts, if any did; never raises."""
        if self.publisher is not None:
            self.publisher.publish(fact, self)

    def session_ended(self) -> None:
        """The scope ended, and was measured."""
        if self.logs is not None and self.reports_end:
            self.emit(self.logs.session_closed, self)
        if self.spans is not None:
            self._end_spans(self.spans.session_ended, self.ledger.closed_at)
        for sink in self.sinks:
            if sink.wants_sessions:
                self.emit(sink.session, self)

    def load_was_refused(self, fact: facts.DetachedLoadFailed, origin: Any) -> None:
        """A detached object was refused a load; `origin` is the span of its session."""
        if reporting.now:
            return
        if self.span_source is not None:
            self.emit(self.span_source.refused, self, origin)
        self.publish(fact)
        self.judge(fact)
        for metrics in self.metrics:
            self.emit(metrics.load_refused, self)
        if self.spans is not None:
            self._end_spans(self.spans.detached_load_failed, fact)

    def take_up(self, now: int) -> None:
        """The scope is open already: report how far it is."""
        ledger = self.ledger
        self.publish(facts.SessionOpened(now, ledger.opened_site))
        for one in ledger.transactions_open:
            self.publish(facts.TransactionBegan(now, None, one.nested, one.two_phase, one.owner))
            if self.span_source is not None:
                self.begin_spans(self.span_source)
            if self.spans is not None:
                self.emit(self.spans.transaction_began, now, None, one.nested)
        for holding in ledger.connections + ledger.borrowed:
            self.publish(facts.ConnectionAcquired(now, holding.database))

    def stop(self) -> None:
        """End the report unfinished."""
        if self.spans is not None:
            self.emit(self.spans.stop)
        self._lose_spans()

    def summary(self) -> SessionSummary:
        """The account as a value that outlives the session."""
        ledger = self.ledger
        timeline = NO_TIMELINE if self.publisher is None else self.publisher.timeline
        totals: dict[str, Any] = dict(zip(NUMBERS, _numbers(ledger), strict=True))
        totals |= zip(COUNTS, map(dict, _counts(ledger)), strict=True)
        return SessionSummary(
            id=ledger.id,
            name=self.name,
            work=ledger.work,
            is_async=ledger.is_async,
            outcome=ledger.outcome or "closed",
            opened_unix_ns=ledger.opened_at + ledger.epoch,
            opened_site=ledger.opened_site,
            closed_site=ledger.closed_site,
            ending=ledger.ending,
            error=ledger.error,
            database=ledger.database,
            duration_ms=(ledger.closed_at - ledger.opened_at) / 1e6,
            held_ms=ledger.held / 1e6,
            sql_ms=ledger.sql / 1e6,
            **totals,
            timeline=tuple(timeline),
            timeline_left_out=timeline.left_out,
            findings=self.findings,
        )


_numbers: Final = attrgetter(*NUMBERS)
_counts: Final = attrgetter(*COUNTS)

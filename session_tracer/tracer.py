"""The pipeline: a fact goes into the record, then to the detectors, then out as signals."""

from __future__ import annotations

import logging
import threading
import traceback
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from weakref import WeakSet

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from session_tracer.ledger.record import ADDERS, SessionRecord
from session_tracer.model.findings import Finding, Retraction
from session_tracer.publisher.dispatch import Dispatch
from session_tracer.runtime import process, threads
from session_tracer.runtime.degraded import warn_once
from session_tracer.signals.logs import LogSignal
from session_tracer.signals.metrics import MetricSignal
from session_tracer.signals.reports import ReportSignal
from session_tracer.signals.spans import SpanSignal
from session_tracer.verdicts.policy import Policy
from session_tracer.verdicts.silencing import silenced_now
from session_tracer.version import VERSION
from session_tracer.where.callsite import Locator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.trace import SpanContext

    from session_tracer.detectors.protocol import Detector
    from session_tracer.exporter import Exporter
    from session_tracer.exporter_choice import Choice
    from session_tracer.facts import Fact
    from session_tracer.ledger.origin import Scope
    from session_tracer.publisher.dispatch import Wake
    from session_tracer.settings import Settings
    from session_tracer.signals.metrics import Ages
    from session_tracer.signals.spans import SessionSpans

__all__ = ["Story", "Tracer", "is_telling", "tell"]

_LOGGER: Final = logging.getLogger("session_tracer")


class Teller(Protocol):
    """What one kind of signal says about one session."""

    def finding(self, finding: Finding, record: SessionRecord) -> None: ...

    def retracted(self, retraction: Retraction, record: SessionRecord) -> None: ...


class Reporting(NamedTuple):
    """How the scopes that begin now are reported.

    `signals` are in order, with the spans at `place_of_spans`; `dispatch` has which detectors and
    signals each fact goes to.
    """

    signals: tuple[Any, ...]
    place_of_spans: int
    spans: SpanSignal
    dispatch: Dispatch


class Tracer:
    """One name, its settings, its detectors and its signals; it makes a story of each session."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        choice: Choice,
        detectors: Iterable[Detector],
        ages: Callable[[Tracer], Ages],
    ) -> None:
        self.name = name
        self.settings = settings
        detectors = tuple(detectors)
        self.policy = Policy(settings, detectors)
        self.locator = Locator(tuple(settings.application_packages), settings.site_frames)
        self.choice = choice
        self.closed = False
        self._ages = ages
        self.tells_statements = settings.statement_spans
        # How long a scope may do nothing before somebody wants to hear of it, in nanoseconds: until
        # it leaks, until its transaction is long, until its connection is idle.
        self.patience = (
            int(settings.leak_after_seconds * 1e9),
            int(settings.long_transaction_seconds * 1e9),
            int(settings.idle_in_transaction_seconds * 1e9),
        )
        self._failures_said: set[str] = set()
        self.detectors = detectors
        self._metrics: list[MetricSignal] = []
        # Whether the exporters are open, and stay as they are.
        self.is_settled = False
        self._is_opening = False
        self._report_to(())
        with _OPENING.value.lock:
            _TRACERS.add(self)
        if choice.can_open:
            self.settle()

    def _report_to(self, exporters: tuple[Exporter, ...]) -> None:
        """Report the sessions that begin from now on to these exporters."""
        for metrics in self._metrics:
            metrics.close()
        self.wants_sessions = any(one.wants_sessions for one in exporters)
        self._metrics = list(self._measuring(exporters))
        spans = self._spanning(exporters)
        # In the order of a story's tellers. What is measured and logged of something that ended
        # is of its span, which spans end; reports come last, for a summary holds the findings.
        before: tuple[Any, ...] = (*self._metrics, LogSignal(exporters, self.settings))
        signals = (*before, spans, *map(ReportSignal, exporters))
        routes: dict[type, list[tuple[int, Callable[..., None]]]] = {}
        for index, signal in enumerate(signals):
            for kind, tell in signal.routes.items():
                routes.setdefault(kind, []).append((index, tell))
        self.dispatch = Dispatch(self.detectors, ADDERS, routes)
        # In one step: another thread may begin a story meanwhile.
        self._reporting = Reporting(signals, len(before), spans, self.dispatch)

    def _measuring(self, exporters: tuple[Exporter, ...]) -> Iterator[MetricSignal]:
        for one in exporters:
            provider = one.meter_provider
            if isinstance(provider, NoOpMeterProvider):
                continue
            try:
                yield MetricSignal(
                    provider,
                    self.name,
                    self.settings,
                    VERSION,
                    ages=lambda: self._ages(self),
                    histograms=one.histograms,
                )
            except Exception as error:
                _refused("MeterProvider", provider, "metrics are not", error)

    def _spanning(self, exporters: tuple[Exporter, ...]) -> SpanSignal:
        statement_spans = self.settings.statement_spans
        providers = [one.tracer_provider for one in exporters if one.wants_spans]
        for provider in providers[:1]:
            try:
                return SpanSignal(provider, VERSION, statement_spans=statement_spans)
            except Exception as error:
                _refused("TracerProvider", provider, "spans are not", error)
        return SpanSignal(NoOpTracerProvider(), VERSION, statement_spans=statement_spans)

    def settle(self) -> None:
        """Report to the exporters that fit now, before a scope begins; never raises.

        It may take longer than the scope, for example where a module is imported.
        """
        if self.is_settled:
            return
        with _OPENING.value.lock:
            # Another thread may have been first; an exporter may use a session while it is opened.
            if self._is_opening or self.is_settled:
                return
            self._is_opening = True
            try:
                with _telling():
                    exporters = self.choice.open()
                    if exporters is not None:
                        self._report_to(exporters)
                        process.end_first()
                self.is_settled = self.choice.is_settled
                if exporters is not None:
                    # What fits this one fits the others; an exporter is closed when all have left.
                    for other in [one for one in _TRACERS if not (one.is_settled or one.closed)]:
                        other.settle()
            except Exception as error:
                self.failed("exporter", error)
            finally:
                self._is_opening = False

    def begin(self, scope: Scope, epoch: int) -> Story:
        """The story of a session scope that begins now; `settle()` has to come before it."""
        return Story(self, self._reporting, self._record(scope, epoch))

    def begin_detached(self, scope: Scope, epoch: int, span: SpanContext | None) -> Story:
        """The story of one load that an object was refused after its scope had ended."""
        self.settle()
        record = self._record(scope, epoch)
        record.opened_site = scope.opened_site
        story = Story(self, self._reporting, record)
        story.refused(span)
        return story

    def _record(self, scope: Scope, epoch: int) -> SessionRecord:
        record = SessionRecord(
            scope.id,
            self.name,
            is_async=scope.is_async,
            epoch=epoch,
            timeline_steps=self.settings.timeline_steps if self.wants_sessions else 0,
            settings=self.settings,
        )
        # What other threads conclude of the scope has no context of the application's.
        record.silenced = silenced_now()
        return record

    def failed(self, where: str, error: BaseException) -> None:
        """Count a failure of our own, and log the first of its kind."""
        with suppress(Exception):
            for metrics in self._metrics:
                metrics.error(where)
        try:
            if where not in self._failures_said:
                self._failures_said.add(where)
                # Neither the error's text nor what it happened in the middle of: both may quote
                # values of the application's.
                _LOGGER.error(
                    "session_tracer failed in %s with %s and goes on without it for this session; "
                    "the application is not affected. Please report this:\n%s",
                    where,
                    type(error).__qualname__,
                    "".join(traceback.format_tb(error.__traceback__)),
                )
        except Exception:
            pass

    def close(self) -> None:
        """Tell nothing more."""
        self.closed = True
        for metrics in self._metrics:
            metrics.close()


class _Opening:
    """Has the lock that is held while exporters are opened.

    Opening an exporter starts threads of other libraries, which lets other greenlets run where
    threads are greenlets. They have to wait, so this lock is one of their kind: it is made when it
    is first needed, because a library may patch threading until then.
    """

    def __init__(self) -> None:
        self._lock: threading.RLock | None = None
        self._making = threads.Lock()

    @property
    def lock(self) -> threading.RLock:
        with self._making:
            if self._lock is None:
                self._lock = threading.RLock()
            return self._lock


_OPENING: Final = process.PerProcess(_Opening)
_TRACERS: Final[WeakSet[Tracer]] = WeakSet()


def _refused(kind: str, provider: object, lost: str, error: Exception) -> None:
    """A provider of a class that does not do what OpenTelemetry's API asks of it."""
    warn_once(
        f"session_tracer: {lost} reported, because the {kind} in place ("
        f"{type(provider).__module__}.{type(provider).__qualname__}) raises "
        f"{type(error).__qualname__} where OpenTelemetry's API is used. The application is not "
        "affected."
    )


# What a detector says most of the time.
_NOTHING: Final = ()
# What stands for a memory before it is made.
_UNMADE: Final = object()
_MOST_FINDINGS: Final = 1_000


class _Telling(threading.local):
    """Whether this thread is telling a fact.

    A detector or an exporter may use a session itself, which would have something to tell again.
    """

    now = False


_TELLING: Final = _Telling()


@contextmanager
def _telling() -> Iterator[None]:
    """What a sampler or a span processor does meanwhile is not told of."""
    before, _TELLING.now = _TELLING.now, True
    try:
        yield
    finally:
        _TELLING.now = before


def tell(stories: tuple[Story, ...], fact: Fact) -> None:
    """Take a fact through the pipeline of each story; never raises."""
    if _TELLING.now:
        return
    _TELLING.now = True
    try:
        for story in stories:
            story.take(fact)
    finally:
        _TELLING.now = False


def is_telling() -> bool:
    """Whether what happens now is done by what is told."""
    return _TELLING.now


class Story:
    """One session scope as one tracer tells it: its record, its detectors' memory, its signals.

    A detector or signal that fails is counted, logged once and left out of the rest of the story.
    """

    __slots__ = (
        "_awake",
        "_dispatch",
        "_memories",
        "_muted",
        "_table",
        "_tellers",
        "record",
        "spans",
        "tracer",
    )

    def __init__(self, tracer: Tracer, reporting: Reporting, record: SessionRecord) -> None:
        self.tracer = tracer
        self.record = record
        self.spans: SessionSpans = reporting.spans.begin(record)
        # Where the exporters change while the scope is open, the earlier ones hear of its end.
        self._dispatch = dispatch = reporting.dispatch
        self._tellers: list[Teller | None] = [*reporting.signals]
        self._tellers[reporting.place_of_spans] = self.spans
        # The detectors that do not sleep, and those that have failed: bits, by their place.
        self._awake = dispatch.awake
        self._muted = 0
        self._table = dispatch.table(self._awake)
        self._memories: dict[int, Any] = {}

    def tell(self, fact: Fact) -> None:
        """Take a fact through the pipeline; never raises."""
        tell((self,), fact)

    def take(self, fact: Fact) -> None:
        """Take a fact, of which `tell` tells this thread."""
        steps = self._table.get(type(fact))
        if steps is None:
            return
        add, wakes, judges, says = steps
        record = self.record
        if add is not None:
            try:
                add(record, fact)
            except Exception as error:
                self.tracer.failed("record", error)
        if wakes and self._wake(wakes, fact):
            judges = self._table[type(fact)].judges
        for index, judge in judges:
            try:
                memory = self._memories.get(index, _UNMADE)
                if memory is _UNMADE:
                    memory = self._memories[index] = self._dispatch.remember[index](fact, record)
                verdicts = judge(fact, record, memory)
                if verdicts is _NOTHING:
                    continue
                verdicts = [*verdicts]
            except Exception as error:
                self._silence(index, error)
                continue
            if verdicts:
                self._conclude(index, verdicts)
        for index, say in says:
            teller = self._tellers[index]
            if teller is not None:
                try:
                    say(teller, fact, record)
                except Exception as error:
                    self._mute(index, error)

    def _wake(self, wakes: tuple[tuple[int, Wake], ...], fact: Fact) -> bool:
        """Wake those to whom the fact means something; whether there is one."""
        awake = self._awake
        for index, wake in wakes:
            try:
                if wake(fact, self.record):
                    awake |= 1 << index
            except Exception as error:
                self._silence(index, error)
        if awake == self._awake:
            return False
        self._awake = awake
        self._table = self._dispatch.table(awake, self._muted)
        return True

    def refused(self, origin: SpanContext | None) -> None:
        """Open the span of a load that was refused, linked to its session's."""
        with _telling():
            try:
                self.spans.refused(origin)
            except Exception as error:
                self._mute(self._tellers.index(self.spans), error)

    def stop(self) -> None:
        """End the story unfinished."""
        with _telling():
            try:
                self.spans.stop()
            except Exception as error:
                self.tracer.failed("spans", error)

    def _conclude(self, index: int, verdicts: list[Finding | Retraction]) -> None:
        """Say what a detector concludes, as far as the policy has it said."""
        try:
            for verdict in verdicts:
                if not isinstance(verdict, Finding | Retraction):
                    raise TypeError(f"{type(verdict).__qualname__} is no Finding")
            ruled = [one for one in map(self._rule, verdicts) if one is not None]
        except Exception as error:
            self._silence(index, error)
            return
        for one in ruled:
            self._say(one)

    def _silence(self, index: int, error: Exception) -> None:
        self._muted |= 1 << index
        self._table = self._dispatch.table(self._awake, self._muted)
        self.tracer.failed(type(self.tracer.detectors[index]).__name__, error)

    def _say(self, verdict: Finding | Retraction) -> None:
        record = self.record
        if isinstance(verdict, Finding):
            # A scope that goes on for ever and fails for ever must not fill the memory.
            if len(record.findings) < _MOST_FINDINGS:
                record.findings.append(verdict)
            if self.tracer.policy.raises(verdict) and len(record.misuses) < _MOST_FINDINGS:
                record.misuses.append(verdict)
        for index, teller in enumerate(self._tellers):
            if teller is not None:
                try:
                    if isinstance(verdict, Finding):
                        teller.finding(verdict, record)
                    else:
                        teller.retracted(verdict, record)
                except Exception as error:
                    self._mute(index, error)

    def _rule(self, verdict: Finding | Retraction) -> Finding | Retraction | None:
        """The verdict as the policy has it told, or None."""
        policy = self.tracer.policy
        if isinstance(verdict, Finding):
            return policy.rule(verdict, self.record)
        said = policy.as_said(verdict.finding)
        return replace(verdict, finding=said) if said in self.record.findings else None

    def _mute(self, index: int, error: Exception) -> None:
        teller, self._tellers[index] = self._tellers[index], None
        self.tracer.failed(type(teller).__name__, error)

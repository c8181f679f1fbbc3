"""One name's settings, detectors and signals, which report each of its session scopes."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias
from weakref import WeakSet

from opentelemetry import context as context_api
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from session_tracer import facts
from session_tracer.detectors.protocol import Suspecting
from session_tracer.ledger import pools
from session_tracer.ledger.gates import Gates
from session_tracer.ledger.guard import aside
from session_tracer.ledger.ledger import Ledger
from session_tracer.ledger.report import Report
from session_tracer.publisher.publisher import FactPublisher
from session_tracer.runtime import process, threads
from session_tracer.runtime.degraded import warn_once
from session_tracer.signals.comments import Comments
from session_tracer.signals.logs import LEVELS, LogSignal
from session_tracer.signals.metrics import MetricSignal
from session_tracer.signals.reports import ReportSignal
from session_tracer.signals.spans import NOT_DRAWN, SpanSignal, caller, server_span_name
from session_tracer.verdicts.policy import Policy
from session_tracer.verdicts.silencing import silenced_now
from session_tracer.version import VERSION
from session_tracer.where.callsite import Locator
from session_tracer.where.work import Works, given_by_a_person

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from session_tracer.detectors.protocol import Detector
    from session_tracer.exporter import Exporter
    from session_tracer.exporter_choice import Choice
    from session_tracer.facts import Fact
    from session_tracer.ledger import report as protocols
    from session_tracer.ledger.origin import Scope
    from session_tracer.ledger.registry import OpenNow
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.settings import Settings
    from session_tracer.where.work import Work

__all__ = ["Tracer", "Watcher", "unwatch", "watch", "watching_changed"]

_DEBUG: Final = LEVELS["debug"]
_INFO: Final = LEVELS["info"]
_LOGGER: Final = logging.getLogger("session_tracer")
# By the type of fact, the detectors to ask about it, each with its place among the tracer's.
Asked: TypeAlias = "dict[Any, tuple[tuple[int, Any], ...]]"


class Reporting(NamedTuple):
    """How the scopes that begin now are reported.

    `listeners` get every fact; `publishes` is whether facts are made of every scope, `takes_ends`
    whether something takes each scope as a whole.
    """

    metrics: tuple[MetricSignal, ...]
    logs: LogSignal
    spans: SpanSignal | None
    sinks: tuple[protocols.Sink, ...]
    listeners: tuple[Callable[[Any, Report], None], ...]
    steps: int
    publishes: bool
    takes_ends: bool


class Watcher(Protocol):
    """Takes the sessions and findings of every tracer, whatever its exporters are."""

    wants_sessions: bool
    # Whether it reads the timelines of the sessions that begin now.
    wants_steps: bool

    def session(self, report: protocols.Report) -> None: ...

    def finding(self, finding: Finding, report: protocols.Report) -> None: ...

    def retracted(self, retraction: Retraction, report: protocols.Report) -> None: ...


class Tracer:
    """One name, its settings, its detectors and its signals, which report each session scope."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        choice: Choice,
        detectors: Iterable[Detector],
        open_now: Callable[[protocols.Tracer], OpenNow],
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.name = name
        # Monotonic, in nanoseconds.
        self.clock = clock
        self.settings = settings
        detectors = tuple(detectors)
        self.policy = Policy(settings, detectors)
        self.locator = Locator(tuple(settings.application_packages), settings.site_frames)
        self.choice = choice
        self.closed = False
        self._open_now = open_now
        self.tells_statements = settings.statement_spans
        self.comments: protocols.Comments | None = None
        if settings.statement_comment:
            self.comments = Comments(self)
        # Nanoseconds until a scope leaks, its transaction is long, its connection is idle.
        self.patience = (
            int(settings.leak_after_seconds * 1e9),
            int(settings.long_transaction_seconds * 1e9),
            int(settings.idle_in_transaction_seconds * 1e9),
        )
        self.gates = Gates.of([settings])
        self._works = Works(settings.max_works)
        self._failures_said: set[str] = set()
        self.detectors = detectors
        self.judges = _asked(
            (place, one, one.candidates)
            for place, one in enumerate(detectors)
            if isinstance(one, Suspecting)
        )
        self.repeating = tuple(
            place for place, one in enumerate(detectors) if getattr(one, "counts_repeats", False)
        )
        self._published = _asked((place, one, one.facts) for place, one in enumerate(detectors))
        self.watches = facts.TimePassed in self.judges or facts.TimePassed in self._published
        self._metrics: list[MetricSignal] = []
        self._logs: list[LogSignal] = []
        # Whether the exporters are open, and stay as they are.
        self.is_settled = False
        # Whether they are, and nothing wants sessions that are never used unless structlog does.
        self.is_quiet = False
        self._is_opening = False
        # Whether sessions that are never used are reported, too.
        self._is_eager = False
        self._report_to(())
        with _OPENING.value.lock:
            _TRACERS.add(self)
        if choice.can_open:
            self.settle()

    def _report_to(self, exporters: tuple[Exporter, ...]) -> None:
        """Report the sessions that begin from now on to these exporters."""
        self._end_signals()
        self._metrics = list(self._measuring(exporters))
        self._logs = [LogSignal(exporters, self.settings, self.failed)]
        wants_sessions = any(one.wants_sessions for one in exporters)
        sinks = tuple(map(ReportSignal, exporters))
        listeners = tuple(sink.fact for sink in sinks if sink.wants_facts)
        steps = self.settings.timeline_steps if wants_sessions else 0
        self._is_eager = (
            wants_sessions
            or bool(self._published)
            or any(sink.wants_facts or sink.wants_sessions for sink in sinks)
        )
        self._of_exporters = Reporting(
            metrics=tuple(self._metrics),
            logs=self._logs[0],
            spans=self._spanning(exporters),
            sinks=sinks,
            listeners=listeners,
            steps=steps,
            publishes=bool(listeners or steps or self._published),
            takes_ends=self._is_eager,
        )
        self.be_watched()

    def be_watched(self) -> None:
        """Report the sessions that begin from now on to the watchers, too."""
        metrics, logs, spans, sinks, listeners, steps, publishes, takes_ends = self._of_exporters
        watchers = tuple(_WATCHERS)
        if any(one.wants_steps for one in watchers):
            steps = steps or self.settings.timeline_steps
        # In one step: another thread may begin a report meanwhile.
        self._reporting = Reporting(
            metrics=metrics,
            logs=logs,
            spans=spans,
            sinks=sinks + watchers,
            listeners=listeners,
            steps=steps,
            publishes=publishes or bool(steps),
            takes_ends=takes_ends or bool(watchers),
        )

        pools.renew(self)

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
                    open_now=lambda: self._open_now(self),
                    pools=lambda: pools.pools_of(self),
                    failed=self.failed,
                    histograms=one.histograms,
                )
            except Exception as error:
                _refused("MeterProvider", provider, "metrics are not", error)

    def _spanning(self, exporters: tuple[Exporter, ...]) -> SpanSignal | None:
        """Begins spans; None where no provider makes any."""
        for one in [one for one in exporters if one.wants_spans][:1]:
            provider = one.tracer_provider
            if isinstance(provider, NoOpTracerProvider):
                return None
            try:
                return SpanSignal(provider, VERSION, one.span_recorder)
            except Exception as error:
                _refused("TracerProvider", provider, "spans are not", error)
        return None

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
                with aside():
                    exporters = self.choice.open()
                    if exporters is not None:
                        self._report_to(exporters)
                        process.end_first()
                now = self._reporting
                is_asked = self._is_eager or now.logs.least <= _DEBUG
                self.is_quiet = self.choice.is_settled and not is_asked
                self.is_settled = self.choice.is_settled
                if exporters is not None:
                    # What fits this one fits the others; an exporter is closed when all have left.
                    for other in [one for one in _TRACERS if not (one.is_settled or one.closed)]:
                        other.settle()
            except Exception as error:
                self.failed("exporter", error)
            finally:
                self._is_opening = False

    def wants_everything(self) -> bool:
        """Whether sessions that are never used are worth a report, too."""
        if not self.is_settled:
            self.settle()
        return self._is_eager or self._reporting.logs.least_level() <= _DEBUG

    def closed_unused(self, duration: int) -> None:
        """A session was closed that was never used, after that many nanoseconds; never raises."""
        if self.closed:
            return
        try:
            for metrics in self._metrics:
                metrics.closed_unused(duration)
        except Exception as error:
            self.failed("MetricSignal", error)

    # The context in which a session is opened.
    context: Callable[[], Any] = staticmethod(context_api.get_current)

    # The trace and the span that the caller is in; zeros where it is in none.
    caller: Callable[..., tuple[int, int]] = staticmethod(caller)

    def begin(self, ledger: Ledger) -> Report:
        """A report of a session scope that begins now; `settle()` has to come before it."""
        metrics, logs, spans, sinks, listeners, steps, publishes, takes_ends = self._reporting
        least = logs.least if "structlog" not in sys.modules else logs.least_level()
        report = Report(
            self,
            ledger,
            metrics=metrics,
            logs=logs,
            reports_end=least <= _INFO or takes_ends,
            span_source=spans,
            sinks=sinks,
            # What other threads conclude of the scope has no context of the application's.
            silenced=silenced_now(),
        )
        if spans is not None and not ledger.context and spans.begins_none:
            report.span_source = None
            report.may_be_traced = False
            report.session_context = NOT_DRAWN
        if publishes or least <= _DEBUG:
            if least <= _DEBUG:
                listeners = (logs.fact, *listeners)
            report.publisher = FactPublisher(
                ledger.opened_at, steps=steps, detectors=self._published, listeners=listeners
            )
        return report

    def begin_detached(self, scope: Scope, epoch: int) -> Report:
        """A report of one load that an object was refused after its scope had ended."""
        self.settle()
        return self.begin(Ledger.of_ended(scope, self, epoch))

    def work_of(self, ledger: Ledger) -> str:
        """What the session works for, an empty string if it is not known; never raises.

        In this order: what the application named, the span of the request or message, Celery's
        task, and the thread or task if a person named it.
        """
        blocks, works = ledger.blocks[-1:], self._works
        try:
            for block in blocks:
                if block.is_named:
                    return works.name(block.name)
        except Exception as error:
            self._could_not_name(block, error)
            return ""
        try:
            name = server_span_name(ledger.context)
            for block in blocks:
                name = name or str(block)
            return works.name(name or given_by_a_person(ledger.opened_by.given_name))
        except Exception as error:
            self.failed("work", error)
            return ""

    def pool_waits(self, pool: str) -> list[tuple[object, tuple[Any, Any]]]:
        """For each of its metrics: what they are, and where a checkout's duration is added."""
        return [metrics.pool_waits(pool) for metrics in self._metrics]

    def _could_not_name(self, block: Work, error: Exception) -> None:
        """Count that a function of the application's could not name the work, and log it once."""
        for metrics in self._metrics:
            metrics.error("work")
        # Not its text, which may quote values.
        warn_once(
            f"session_tracer: the function {block} that names the work of sessions "
            f"raised {type(error).__qualname__}. These sessions are reported without a name."
        )

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

    def flush(self) -> None:
        """Wait until everything that was reported is emitted."""
        for logs in self._logs:
            logs.flush()
        self.choice.flush()

    def close(self) -> None:
        """Report nothing more."""
        self.closed = True
        self._end_signals()
        pools.renew(self)

    def _end_signals(self) -> None:
        for metrics in self._metrics:
            metrics.close()
        for logs in self._logs:
            logs.close()


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
_WATCHERS: Final[list[Watcher]] = []


def watch(watcher: Watcher) -> None:
    """Report to the watcher what every tracer reports from now on, also those made later."""
    with _OPENING.value.lock:
        _WATCHERS.append(watcher)
        watching_changed()


def unwatch(watcher: Watcher) -> None:
    """Report nothing more to it."""
    _WATCHERS[:] = [one for one in _WATCHERS if one is not watcher]
    watching_changed()


def watching_changed() -> None:
    """What a watcher wants has changed; never waits.

    A thread that opens exporters at this moment may take long; tracers then stay as they are
    until the next change.
    """
    lock = _OPENING.value.lock
    if lock.acquire(blocking=False):
        try:
            for tracer in list(_TRACERS):
                tracer.be_watched()
        finally:
            lock.release()


def _refused(kind: str, provider: object, lost: str, error: Exception) -> None:
    """A provider of a class that does not do what OpenTelemetry's API asks of it."""
    warn_once(
        f"session_tracer: {lost} reported, because the {kind} in place ("
        f"{type(provider).__module__}.{type(provider).__qualname__}) raises "
        f"{type(error).__qualname__} where OpenTelemetry's API is used. The application is not "
        "affected."
    )


def _asked(wanted: Iterable[tuple[int, Detector, tuple[type[Fact], ...]]]) -> Asked:
    asked: Asked = {}
    for place, detector, kinds in wanted:
        for kind in kinds:
            asked[kind] = (*asked.get(kind, ()), (place, detector))
    return asked

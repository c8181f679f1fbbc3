"""The pipeline: a fact goes into the record, then to the detectors, then out as signals."""

from __future__ import annotations

import logging
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final, Protocol

from session_tracer.callsite import Locator
from session_tracer.findings import Finding
from session_tracer.record import SessionRecord
from session_tracer.signals.logs import LogSignal
from session_tracer.signals.metrics import MetricSignal
from session_tracer.signals.reports import ReportSignal
from session_tracer.signals.spans import SpanSignal
from session_tracer.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.trace import SpanContext

    from session_tracer.detectors.protocol import Detector
    from session_tracer.exporter import Exporter
    from session_tracer.facts import Fact
    from session_tracer.origin import Scope
    from session_tracer.settings import Settings
    from session_tracer.signals.metrics import Ages
    from session_tracer.signals.routes import Routes
    from session_tracer.signals.spans import SessionSpans

__all__ = ["Story", "Tracer", "is_telling"]

_LOGGER: Final = logging.getLogger("session_tracer")


class Signal(Protocol):
    """One kind of signal: which facts it tells of."""

    @property
    def routes(self) -> Routes: ...


class Teller(Protocol):
    """What one kind of signal says about one session."""

    def finding(self, finding: Finding, record: SessionRecord) -> None: ...


class Tracer:
    """One name, its settings, its detectors and its signals; it makes a story of each session."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        exporter: Exporter,
        detectors: Iterable[Detector],
        ages: Callable[[Tracer], Ages],
    ) -> None:
        self.name = name
        self.settings = settings
        self.locator = Locator(settings.application_packages, settings.site_frames)
        self.exporter = exporter
        self.closed = False
        self.spans = SpanSignal(
            exporter.tracer_provider, VERSION, statement_spans=settings.statement_spans
        )
        self.metrics = MetricSignal(
            exporter.meter_provider, name, settings, VERSION, lambda: ages(self)
        )
        self.logs = LogSignal(exporter, settings)
        self.reports = ReportSignal(exporter)
        # In the order of a story's tellers. What is measured and logged of something that ended
        # is of its span, which spans end; reports come last, for a summary holds the findings.
        signals: tuple[Signal, ...] = (self.metrics, self.logs, self.spans, self.reports)
        self.routes: dict[type, list[tuple[int, Callable[..., None]]]] = {}
        for index, signal in enumerate(signals):
            for kind, tell in signal.routes.items():
                self.routes.setdefault(kind, []).append((index, tell))
        self._failures_said: set[str] = set()
        self.listening: dict[type, list[Detector]] = {}
        for detector in detectors:
            for fact in detector.facts:
                self.listening.setdefault(fact, []).append(detector)

    def begin(self, scope: Scope, epoch: int) -> Story:
        """The story of a session scope that begins now."""
        record = self._record(scope, epoch)
        return Story(self, record, self.spans.begin(record))

    def begin_detached(self, scope: Scope, epoch: int, span: SpanContext | None) -> Story:
        """The story of one load that an object was refused after its scope had ended."""
        record = self._record(scope, epoch)
        record.opened_site = scope.opened_site
        story = Story(self, record, self.spans.begin(record))
        story.refused(span)
        return story

    def _record(self, scope: Scope, epoch: int) -> SessionRecord:
        return SessionRecord(
            scope.id,
            self.name,
            is_async=scope.is_async,
            epoch=epoch,
            timeline_steps=self.settings.timeline_steps if self.exporter.wants_sessions else 0,
        )

    def failed(self, where: str, error: BaseException) -> None:
        """Count a failure of our own, and log the first of its kind."""
        try:
            self.metrics.error(where)
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
        self.metrics.close()


_NOBODY: Final = ()


class _Telling(threading.local):
    """Whether this thread is telling a fact.

    A detector or an exporter may use a session itself, which would have something to tell again.
    """

    now = False


_TELLING: Final = _Telling()


def is_telling() -> bool:
    """Whether what happens now is done by what is told."""
    return _TELLING.now


class Story:
    """One session scope as one tracer tells it: its record, its detectors' memory, its signals.

    A detector or signal that fails is counted, logged once and left out of the rest of the story.
    """

    __slots__ = ("_memories", "_muted", "_tellers", "record", "spans", "tracer")

    def __init__(self, tracer: Tracer, record: SessionRecord, spans: SessionSpans) -> None:
        self.tracer = tracer
        self.record = record
        self.spans = spans
        self._tellers: list[Teller | None] = [tracer.metrics, tracer.logs, spans, tracer.reports]
        self._memories: dict[int, Any] = {}
        self._muted: list[Detector] = []

    def tell(self, fact: Fact) -> None:
        """Take a fact through the pipeline; never raises."""
        if _TELLING.now:
            return
        _TELLING.now = True
        try:
            self._tell(fact)
        finally:
            _TELLING.now = False

    def _tell(self, fact: Fact) -> None:
        kind = type(fact)
        try:
            self.record.add(fact)
        except Exception as error:
            self.tracer.failed("record", error)
        for detector in self.tracer.listening.get(kind, _NOBODY):
            if detector not in self._muted:
                self._judge(detector, fact)
        for index, say in self.tracer.routes.get(kind, _NOBODY):
            teller = self._tellers[index]
            if teller is not None:
                try:
                    say(teller, fact, self.record)
                except Exception as error:
                    self._mute(index, error)

    def refused(self, origin: SpanContext | None) -> None:
        """Open the span of a load that was refused, linked to its session's."""
        try:
            self.spans.refused(origin)
        except Exception as error:
            self._mute(self._tellers.index(self.spans), error)

    def stop(self) -> None:
        """End the story unfinished."""
        try:
            self.spans.stop()
        except Exception as error:
            self.tracer.failed("spans", error)

    def _judge(self, detector: Detector, fact: Fact) -> None:
        try:
            key = id(detector)
            if key not in self._memories:
                self._memories[key] = detector.memory()
            findings = list(detector.judge(fact, self.record, self._memories[key]))
            for finding in findings:
                if not isinstance(finding, Finding):
                    raise TypeError(f"{type(finding).__qualname__} is no Finding")
        except Exception as error:
            self._muted.append(detector)
            self.tracer.failed(type(detector).__name__, error)
            return
        for finding in findings:
            self.record.findings.append(finding)
            for index, teller in enumerate(self._tellers):
                if teller is not None:
                    try:
                        teller.finding(finding, self.record)
                    except Exception as error:
                        self._mute(index, error)

    def _mute(self, index: int, error: Exception) -> None:
        teller, self._tellers[index] = self._tellers[index], None
        self.tracer.failed(type(teller).__name__, error)

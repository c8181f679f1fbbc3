"""An exporter as a value, and how an exporter is found by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import EntryPoints, PackageNotFoundError, distribution, entry_points
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider, TracerProvider

from session_tracer.runtime import process, threads
from session_tracer.runtime.nearest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.facts import Fact
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.model.summary import SessionSummary
    from session_tracer.settings import Settings
    from session_tracer.signals.histograms import Histograms
    from session_tracer.signals.span_recorder import SpanRecorder

__all__ = ["Exporter", "ExporterFactory", "Exporters", "LogEvent", "OpenExporter", "find_exporter"]

GROUP: Final = "session_tracer_exporter"
_DISTRIBUTION: Final = "session-tracer"

LogEvent: TypeAlias = "dict[str, Any]"


def _nowhere(_value: object) -> None:
    """Ignore the value."""


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """Where each kind of signal goes. Signals without a destination are not made.

    The functions are called in the application's thread and must not block. If none of `on_log`,
    `on_session` and `on_finding` is given, findings are logged to the logger `session_tracer` of
    Python's logging. If the application has configured structlog, log events also go to structlog.

    Attributes:
        tracer_provider: The OpenTelemetry provider for spans.
        meter_provider: The OpenTelemetry provider for metrics.
        histograms: Set by session_tracer's exporters, whose readers collect histograms from it and
            other metrics from `meter_provider`. By default the provider's histograms are used.
        span_recorder: Set by session_tracer's exporters that made `tracer_provider` themselves: it
            builds the provider's spans when they end. By default spans are made by OpenTelemetry's
            API.
        on_log: Called with each log event: a flat dictionary with `event`, `level` and `timestamp`
            (ISO 8601, UTC).
        on_session: Called with the summary of each session scope that ends.
        on_finding: Called with each finding.
        on_retraction: Called with each retraction of a finding.
        on_fact: Called with each fact. Facts are then made for every event, which costs time.
        only_findings: Whether `on_log` gets only findings and retractions.
        structlog: Whether log events also go to a structlog that the application has configured.
        yields_to_structlog: Whether log events go to such a structlog instead of `on_log`.
        flush: Waits until everything that was reported is emitted.
        close: Releases all resources.
        open_later: Given instead of the rest by an exporter that starts threads or opens
            connections. It returns the exporter, and is called when the first session is reported.
            A server that forks its workers after `instrument()` then has nothing to close.
    """

    tracer_provider: TracerProvider = field(default_factory=NoOpTracerProvider)
    meter_provider: MeterProvider = field(default_factory=NoOpMeterProvider)
    histograms: Histograms | None = None
    span_recorder: SpanRecorder | None = None
    on_log: Callable[[LogEvent], None] = _nowhere
    on_session: Callable[[SessionSummary], None] = _nowhere
    on_finding: Callable[[Finding], None] = _nowhere
    on_retraction: Callable[[Retraction], None] = _nowhere
    on_fact: Callable[[Fact], None] = _nowhere
    only_findings: bool = False
    structlog: bool = True
    yields_to_structlog: bool = False
    flush: Callable[[], object] = _nothing
    close: Callable[[], object] = _nothing
    open_later: Callable[[], Exporter] | None = None

    def opened(self) -> Exporter:
        """Return the opened exporter: itself, or the result of `open_later`."""
        return self if self.open_later is None else self.open_later()

    @property
    def wants_spans(self) -> bool:
        """Whether it has a destination for spans."""
        return not isinstance(self.tracer_provider, NoOpTracerProvider)

    @property
    def wants_sessions(self) -> bool:
        """Whether it has a destination for summaries."""
        return self.on_session is not _nowhere

    @property
    def wants_logs(self) -> bool:
        """Whether it has a destination for log events."""
        return self.on_log is not _nowhere

    @property
    def wants_facts(self) -> bool:
        """Whether it has a destination for facts."""
        return self.on_fact is not _nowhere

    @property
    def wants_findings(self) -> bool:
        """Whether it has a destination for findings."""
        return self.wants_logs or self.wants_sessions or self.on_finding is not _nowhere


class ExporterFactory(Protocol):
    """The type of function that entry points of the group `session_tracer_exporter` name.

    Args:
        settings: The settings of the instrumentation.

    Returns:
        The exporter.

    Raises:
        Exception: the exporter cannot work, for example because a dependency is missing or a file
            is not writable. `instrument()` raises it again, so the message should be readable.
    """

    def __call__(self, settings: Settings, /) -> Exporter: ...


class OpenExporter:
    """An exporter in use, opened when it is needed."""

    def __init__(self, made: Exporter) -> None:
        self.made = made
        self._exporter = made if made.open_later is None else None

    @property
    def is_open(self) -> bool:
        """Whether it has been opened."""
        return self._exporter is not None

    def flush(self) -> None:
        """Wait until everything that was reported is emitted, unless it was never opened."""
        if self._exporter is not None:
            self._exporter.flush()

    def open(self) -> Exporter:
        """Return the exporter, and open it if necessary."""
        if self._exporter is None:
            self._exporter = self.made.opened()
        return self._exporter

    def close(self) -> None:
        """Close it, unless it was never opened."""
        if self._exporter is not None:
            self._exporter.close()


class Exporters:
    """The exporters in use. Factories that name the same one share it: one port, one file."""

    def __init__(self) -> None:
        self._lock = process.PerProcess(threads.RLock)
        self._named: dict[tuple[object, ...], OpenExporter] = {}
        self._users: list[OpenExporter] = []

    def use(self, exporter: str | Exporter, settings: Settings) -> OpenExporter:
        """Return the exporter of that name, which is created if no other factory uses it."""
        with self._lock.value:
            if isinstance(exporter, str):
                place = (settings.jsonl_path, settings.prometheus_host, settings.prometheus_port)
                key = (exporter, *place)
                used = self._named.get(key)
                if used is None:
                    used = self._named[key] = OpenExporter(find_exporter(exporter)(settings))
            else:
                same = (user for user in self._users if user.made is exporter)
                used = next(same, None) or OpenExporter(exporter)
            self._users.append(used)
            return used

    def release(self, used: OpenExporter) -> None:
        """Close it if no other factory uses it."""
        with self._lock.value:
            self._users.remove(used)
            if used in self._users:
                return
            self._named = {key: one for key, one in self._named.items() if one is not used}
        used.close()


def find_exporter(name: str) -> ExporterFactory:
    """Return the factory of an exporter.

    Args:
        name: The name of an entry point in the group `session_tracer_exporter`.

    Returns:
        The factory.

    Raises:
        ValueError: there is no such exporter. The message lists the available ones.
    """
    # session_tracer's own first: reading the entry points of a hundred packages takes 3 ms.
    found = _own_entry_points().select(group=GROUP, name=name) or entry_points(
        group=GROUP, name=name
    )
    if not found:
        available = sorted({entry.name for entry in entry_points(group=GROUP)})
        raise ValueError(
            f"Unknown exporter {name!r}. Available: {', '.join(available) or 'none'}."
            f"{did_you_mean(name, available)} A package adds one through the entry-point group "
            f"{GROUP}."
        )
    factory: ExporterFactory = found[name].load()
    return factory


def _own_entry_points() -> EntryPoints:
    try:
        return distribution(_DISTRIBUTION).entry_points
    except PackageNotFoundError:  # run from a folder, without being installed
        return EntryPoints()

"""What carries the tracer's signals away, as a value; and how one is found by name."""

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
    from session_tracer.ledger.record import SessionSummary
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.settings import Settings
    from session_tracer.signals.histograms import Histograms

__all__ = ["Exporter", "ExporterFactory", "Exporters", "LogEvent", "OpenExporter", "find_exporter"]

GROUP: Final = "session_tracer_exporter"
_DISTRIBUTION: Final = "session-tracer"

LogEvent: TypeAlias = "dict[str, Any]"


def _nowhere(_told: object) -> None:
    """Carries nothing away."""


def _nothing() -> None:
    """Has nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """Where each kind of signal goes; what is left out goes nowhere.

    `on_log` gets every log event as a flat dictionary with `event`, `level` and `timestamp`
    (ISO 8601, UTC); with `only_findings` it gets the findings and their retractions alone.
    `on_session` gets the summary of each scope as it ends, `on_finding` each finding as it is
    drawn, `on_retraction` each one that is taken back, `on_fact` everything that happens. An
    exporter that has none of `on_log`, `on_session` and `on_finding` leaves findings to the logger
    `session_tracer` of Python's logging.

    Where the application has configured structlog, log events go to it, too. `structlog=False`
    keeps them from it; with `yields_to_structlog` they go to it instead of `on_log`.

    All are called in the application's own thread and must not block; `flush` waits until what
    was reported is out, `close` gives everything back.

    `histograms` is set by session_tracer's own exporters, whose readers collect histograms from it
    and everything else from `meter_provider`. Without it, the provider's own histograms are used.

    An exporter that starts threads or opens connections gives `open_later` instead of the rest: a
    function that returns the exporter, called when the first session is reported. A server that
    forks its workers after `instrument()` then has nothing to close.
    """

    tracer_provider: TracerProvider = field(default_factory=NoOpTracerProvider)
    meter_provider: MeterProvider = field(default_factory=NoOpMeterProvider)
    histograms: Histograms | None = None
    on_log: Callable[[LogEvent], None] = _nowhere
    on_session: Callable[[SessionSummary], None] = _nowhere
    on_finding: Callable[[Finding], None] = _nowhere
    on_retraction: Callable[[Retraction], None] = _nowhere
    on_fact: Callable[[Fact], None] = _nowhere
    only_findings: bool = False
    structlog: bool = True
    yields_to_structlog: bool = False
    flush: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing
    open_later: Callable[[], Exporter] | None = None

    def opened(self) -> Exporter:
        """The exporter that works: itself, or what `open_later` returns."""
        return self if self.open_later is None else self.open_later()

    @property
    def wants_spans(self) -> bool:
        """Whether it has a place for spans."""
        return not isinstance(self.tracer_provider, NoOpTracerProvider)

    @property
    def wants_sessions(self) -> bool:
        """Whether anybody reads the summaries, so that they are worth making."""
        return self.on_session is not _nowhere

    @property
    def wants_logs(self) -> bool:
        """Whether anybody reads the log events."""
        return self.on_log is not _nowhere

    @property
    def wants_facts(self) -> bool:
        """Whether anybody listens to every single fact."""
        return self.on_fact is not _nowhere

    @property
    def wants_findings(self) -> bool:
        """Whether findings have a place to go."""
        return self.wants_logs or self.wants_sessions or self.on_finding is not _nowhere


class ExporterFactory(Protocol):
    """What the entry points of the group `session_tracer_exporter` name.

    Raises an exception with a message for people where it cannot work (a missing dependency, a
    file that cannot be written): it is raised on from `instrument()`.
    """

    def __call__(self, settings: Settings, /) -> Exporter: ...


class OpenExporter:
    """An exporter in use, opened when it is needed."""

    def __init__(self, made: Exporter) -> None:
        self._made = made
        self._exporter = made if made.open_later is None else None

    @property
    def is_open(self) -> bool:
        """Whether it has been opened already."""
        return self._exporter is not None

    def flush(self) -> None:
        """Wait until what was reported is out, unless it was never opened."""
        if self._exporter is not None:
            self._exporter.flush()

    def open(self) -> Exporter:
        """The exporter, opened now at the latest."""
        if self._exporter is None:
            self._exporter = self._made.opened()
        return self._exporter

    def close(self) -> None:
        """Close it, unless it was never opened."""
        if self._exporter is not None:
            self._exporter.close()

    def is_made_of(self, exporter: Exporter) -> bool:
        """Whether this is the exporter that the application made."""
        return self._made is exporter


class Exporters:
    """The exporters in use. Two factories that name the same one share it: one port, one file."""

    def __init__(self) -> None:
        self._lock = process.PerProcess(threads.RLock)
        self._named: dict[tuple[object, ...], OpenExporter] = {}
        self._users: list[OpenExporter] = []

    def use(self, exporter: str | Exporter, settings: Settings) -> OpenExporter:
        """The exporter called `exporter`, made if no other factory uses it yet."""
        with self._lock.value:
            if isinstance(exporter, str):
                place = (settings.jsonl_path, settings.prometheus_host, settings.prometheus_port)
                key = (exporter, *place)
                used = self._named.get(key)
                if used is None:
                    used = self._named[key] = OpenExporter(find_exporter(exporter)(settings))
            else:
                same = (user for user in self._users if user.is_made_of(exporter))
                used = next(same, None) or OpenExporter(exporter)
            self._users.append(used)
            return used

    def release(self, used: OpenExporter) -> None:
        """Close it when its last user is done with it."""
        with self._lock.value:
            self._users.remove(used)
            if used in self._users:
                return
            self._named = {key: one for key, one in self._named.items() if one is not used}
        used.close()


def find_exporter(name: str) -> ExporterFactory:
    """The exporter factory called `name`; `ValueError` lists those there are."""
    # Ours first: to read what all packages there are name takes 3 ms for a hundred of them.
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

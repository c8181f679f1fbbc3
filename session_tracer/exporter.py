"""What carries the tracer's signals away, as a value; and how one is found by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import EntryPoints, PackageNotFoundError, distribution, entry_points
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider, TracerProvider

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.facts import Fact
    from session_tracer.findings import Finding, Retraction
    from session_tracer.record import SessionSummary
    from session_tracer.settings import Settings

__all__ = ["Exporter", "ExporterFactory", "Exporters", "LogEvent", "find_exporter"]

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
    (ISO 8601, UTC). `on_session` gets the summary of each scope as it ends, `on_finding` each
    finding as it is drawn, `on_retraction` each one that is taken back, `on_fact` everything that
    happens. `structlog=False` keeps the log events from a structlog that the application has
    configured.
    All are called in the application's own thread and must not block; `flush` waits until what
    was told is out, `close` gives everything back.
    """

    tracer_provider: TracerProvider = field(default_factory=NoOpTracerProvider)
    meter_provider: MeterProvider = field(default_factory=NoOpMeterProvider)
    on_log: Callable[[LogEvent], None] = _nowhere
    on_session: Callable[[SessionSummary], None] = _nowhere
    on_finding: Callable[[Finding], None] = _nowhere
    on_retraction: Callable[[Retraction], None] = _nowhere
    on_fact: Callable[[Fact], None] = _nowhere
    structlog: bool = True
    flush: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing

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


class ExporterFactory(Protocol):
    """What the entry points of the group `session_tracer_exporter` name.

    Raises an exception with a message for people where it cannot work (a missing dependency, a
    file that cannot be written): it is raised on from `instrument()`.
    """

    def __call__(self, settings: Settings, /) -> Exporter: ...


class Exporters:
    """The exporters in use. Two factories that name the same one share it: one port, one file."""

    def __init__(self) -> None:
        self._named: dict[tuple[object, ...], Exporter] = {}
        self._users: list[Exporter] = []

    def open(self, exporter: str | Exporter, settings: Settings) -> Exporter:
        """The exporter called `exporter`, opened if nobody uses it yet."""
        if isinstance(exporter, str):
            place = (settings.jsonl_path, settings.prometheus_host, settings.prometheus_port)
            key = (exporter, *place)
            opened = self._named.get(key)
            if opened is None:
                opened = self._named[key] = find_exporter(exporter)(settings)
        else:
            opened = exporter
        self._users.append(opened)
        return opened

    def close(self, exporter: Exporter) -> None:
        """Close it when its last user is done with it."""
        for index, user in enumerate(self._users):
            if user is exporter:
                del self._users[index]
                break
        if all(user is not exporter for user in self._users):
            self._named = {key: one for key, one in self._named.items() if one is not exporter}
            exporter.close()


def find_exporter(name: str) -> ExporterFactory:
    """The exporter factory called `name`; `ValueError` names those there are."""
    # Ours first: to read what all packages there are name takes 3 ms for a hundred of them.
    found = _own_entry_points().select(group=GROUP, name=name) or entry_points(
        group=GROUP, name=name
    )
    if not found:
        there_are = sorted({entry.name for entry in entry_points(group=GROUP)})
        raise ValueError(
            f"There is no exporter {name!r}; there are {', '.join(there_are) or 'none'}. "
            f"A package adds one through the entry-point group {GROUP}."
        )
    factory: ExporterFactory = found[name].load()
    return factory


def _own_entry_points() -> EntryPoints:
    try:
        return distribution(_DISTRIBUTION).entry_points
    except PackageNotFoundError:  # run from a folder, without being installed
        return EntryPoints()

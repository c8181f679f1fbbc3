"""Chooses a tracer's exporters: the named ones, or the one that fits the process."""

from __future__ import annotations

import errno
import functools
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

from session_tracer.exporter import Exporter, find_exporter
from session_tracer.runtime import environment, threads
from session_tracer.runtime.degraded import warn_once
from session_tracer.settings import EXPORTER_KEY

if TYPE_CHECKING:
    from collections.abc import Collection

    from session_tracer.exporter import Exporters, OpenExporter
    from session_tracer.runtime.project_file import Table
    from session_tracer.settings import Settings

__all__ = ["NONE", "Automatic", "Choice", "Named", "names_in"]

# The exporter that switches tracing off.
NONE: Final = "none"
_VARIABLE: Final = "SESSION_TRACER_EXPORTER"
# Each of these brings spans to its own place, and nothing may be sent twice.
_WITH_SPANS: Final = frozenset({"otlp", "providers"})
# The settings that name where an exporter writes or listens.
_PLACES: Final[dict[str, frozenset[str]]] = {
    "jsonl": frozenset({"jsonl_path"}),
    "prometheus": frozenset({"prometheus_host", "prometheus_port"}),
}


def names_in(exporter: object, project: Table) -> tuple[str, ...]:
    """Return the names of the exporters in the argument of `instrument()` or the environment.

    Args:
        exporter: The argument; None to use `SESSION_TRACER_EXPORTER`, else the project's table.
        project: The table `[tool.session_tracer]`.

    Returns:
        The names, empty if neither is given.

    Raises:
        TypeError: the argument is not a string.
        ValueError: a name is unknown, or the names cannot be combined.
    """
    given, option = exporter, "exporter"
    if given is None:
        given, option = os.environ.get(_VARIABLE), _VARIABLE
    if not given and exporter is None:
        given, option = project.values.get(EXPORTER_KEY), f"{EXPORTER_KEY} in {project.source}"
    if given is None:
        return ()
    if not isinstance(given, str):
        raise TypeError(
            f"Invalid {option}={given!r}: expected the name of an exporter, several names "
            "separated by commas, or an Exporter."
        )
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    if not names:
        raise ValueError(f"Invalid {option}={given!r}: expected the name of an exporter.")
    for name in names:
        if name != NONE:
            find_exporter(name)
    if NONE in names and len(names) > 1:
        raise ValueError(f"Invalid {option}={given!r}: 'none' cannot be combined with others.")
    if _WITH_SPANS.issubset(names):
        raise ValueError(
            f"Invalid {option}={given!r}: 'otlp' and 'providers' would both send the spans. Name "
            "one of them."
        )
    return names


# The exporters of one tracer.
Choice: TypeAlias = "Named | Automatic"


class Named:
    """The exporters that the application or its environment has named, or the application created.

    Their exceptions are raised again, unless only the environment is the cause: a port is in use,
    or the path or address is not among the settings in the application's code (`written`).

    Attributes:
        is_settled: Whether the exporters are open and will not change.
        can_open: Whether they may be opened before the first session.
    """

    can_open: bool

    def __init__(
        self,
        exporters: tuple[str, ...] | Exporter,
        settings: Settings,
        in_use: Exporters,
        written: Collection[str] = (),
    ) -> None:
        self._exporters = in_use
        self._used: list[OpenExporter] = []
        self._settings = settings
        self.is_settled = False
        try:
            for one in (exporters,) if isinstance(exporters, Exporter) else exporters:
                self._use(one, written)
        except BaseException:
            self.close()
            raise
        self.can_open = all(one.is_open for one in self._used)

    def open(self) -> tuple[Exporter, ...]:
        """Return the exporters, opened."""
        self.is_settled = True
        opened = [exporter for one in self._used if (exporter := _opened(one)) is not None]
        if not any(one.wants_findings for one in opened):
            opened.append(
                replace(_with_logging(Exporter(), self._settings), yields_to_structlog=True)
            )
        return tuple(opened)

    def flush(self) -> None:
        """Wait until everything that was reported is emitted."""
        for one in self._used:
            one.flush()

    def close(self) -> None:
        """Release the exporters."""
        while self._used:
            self._exporters.release(self._used.pop())

    def _use(self, exporter: str | Exporter, written: Collection[str]) -> None:
        if isinstance(exporter, Exporter):
            self._used.append(self._exporters.use(exporter, self._settings))
            _check(exporter)
            return
        try:
            self._used.append(self._exporters.use(exporter, self._settings))
        except OSError as error:
            is_from_outside = error.errno == errno.EADDRINUSE or (
                exporter in _PLACES and _PLACES[exporter].isdisjoint(written)
            )
            if not is_from_outside:
                raise
            warn_once(
                f"session_tracer: the exporter {exporter!r} cannot be opened, therefore nothing is "
                f"sent to it: {error.strerror}"
            )


def _check(exporter: Exporter) -> None:
    """Raise `TypeError` if a provider is not an OpenTelemetry provider."""
    for name, method in (("tracer_provider", "get_tracer"), ("meter_provider", "get_meter")):
        provider = getattr(exporter, name)
        if not hasattr(provider, method):
            raise TypeError(
                f"Invalid Exporter({name}={provider!r}): expected an OpenTelemetry "
                f"provider with the method {method}()."
            )


def _with_logging(exporter: Exporter, settings: Settings) -> Exporter:
    """Return the exporter with its findings logged by the exporter `logging`."""
    # Loaded with the first finding: most processes have none when they start.
    logging = functools.cache(lambda: find_exporter("logging")(settings))
    return replace(exporter, on_log=lambda event: logging().on_log(event), only_findings=True)


def _opened(one: OpenExporter) -> Exporter | None:
    """Return the opened exporter, or None with a warning if it cannot be opened."""
    try:
        return one.open()
    except Exception as error:
        warn_once(
            f"session_tracer: an exporter cannot be opened, therefore nothing is sent to it: "
            f"{error}"
        )
        return None


class Automatic:
    """The exporter that fits the process, if none is named.

    It is chosen when the first session is reported, because an application may configure
    OpenTelemetry after `instrument()`. If it does so even later, spans and metrics move.
    """

    can_open = False

    def __init__(self, settings: Settings, in_use: Exporters) -> None:
        self._settings = settings
        self._exporters = in_use
        self._fits: tuple[bool, bool] | None = None
        self._used: OpenExporter | None = None
        self.is_settled = False

    def open(self) -> tuple[Exporter, ...] | None:
        """Return the exporter from now on, or None if it does not change."""
        fits = (environment.has_providers(), environment.has_structlog())
        if fits == self._fits:
            return None
        was_open, before = self._fits is not None, self._used
        self._fits, self._used = fits, None
        has_providers, has_structlog = fits
        if has_providers:
            self.is_settled = True
            exporter = self._open("providers")
        else:
            exporter = self._open_otlp() or self._open_for_people(has_structlog=has_structlog)
        if before is not None:
            # It may wait for a collector, which the application's thread must not do.
            threads.start(lambda: self._exporters.release(before), "session_tracer closing")
        if was_open and has_providers:
            warn_once(
                "session_tracer: the application configured OpenTelemetry after its first sessions "
                "were reported. Spans and metrics of sessions that are opened from now on go to "
                "its providers. Configure OpenTelemetry before the first session is used, or "
                'call instrument(..., exporter="providers").'
            )
        return (replace(exporter, yields_to_structlog=True),)

    def flush(self) -> None:
        """Wait until everything that was reported is emitted."""
        if self._used is not None:
            self._used.flush()

    def close(self) -> None:
        """Release the exporter."""
        if self._used is not None:
            self._exporters.release(self._used)
            self._used = None

    def _open(self, name: str) -> Exporter:
        self._used = self._exporters.use(name, self._settings)
        return self._used.open()

    def _open_otlp(self) -> Exporter | None:
        variable = environment.otlp_endpoint()
        if not variable:
            return None
        try:
            exporter = self._open("otlp")
        except Exception as error:
            self.close()
            warn_once(
                f"session_tracer: the exporter 'otlp' for {variable} cannot be opened, therefore "
                f"nothing is sent to the collector: {error} Findings are printed to the console or "
                "logged to Python's logging instead."
            )
            return None
        # OTEL_LOGS_EXPORTER may have switched its logs off.
        return exporter if exporter.wants_findings else _with_logging(exporter, self._settings)

    def _open_for_people(self, *, has_structlog: bool) -> Exporter:
        if has_structlog:
            return Exporter()
        return self._open("console" if environment.is_terminal() else "logging")

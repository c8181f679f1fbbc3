"""What is instrumented, and how that is undone."""

from __future__ import annotations

import time
import warnings
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy.orm import Session

from session_tracer.detectors import DEFAULT_DETECTORS
from session_tracer.exporter import Exporter, Exporters
from session_tracer.exporter_choice import NONE, Automatic, Named, names_in
from session_tracer.hooks import errors, private_api, session_events, statements
from session_tracer.hooks.lifecycle import wrap_async_session, wrap_session
from session_tracer.hooks.patching import Patches
from session_tracer.hooks.targets import (
    ASYNC,
    AsyncSession,
    AsyncSessionTransaction,
    Target,
    async_makers,
    async_session_of,
    live_sessions,
    may_have_made,
    places,
    resolve,
)
from session_tracer.ledger import object_counter, registry, same_owner, watchdog
from session_tracer.ledger.in_progress import SLOT
from session_tracer.ledger.probe import Probe, probe_of
from session_tracer.runtime import environment, process, threads
from session_tracer.settings import Settings
from session_tracer.tracer import Tracer
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from types import TracebackType
    from typing import Protocol, TypeAlias, Unpack

    # Not the AsyncSession of `targets`: that may be None, and no type for pyright.
    from sqlalchemy.ext import asyncio as aio
    from sqlalchemy.orm import scoped_session, sessionmaker

    from session_tracer.detectors.protocol import Detector
    from session_tracer.exporter_choice import Choice
    from session_tracer.settings import Overrides

    class _FlaskSQLAlchemy(Protocol):
        """A Flask-SQLAlchemy `SQLAlchemy` object, as far as types tell it."""

        @property
        def session(self) -> scoped_session[Any]: ...

    Instrumentable: TypeAlias = (
        sessionmaker[Any]
        | scoped_session[Any]
        | Session
        | aio.async_sessionmaker[Any]
        | aio.async_scoped_session[Any]
        | aio.AsyncSession
        | type[Session | aio.AsyncSession]
        | _FlaskSQLAlchemy
    )

__all__ = ["Instrumentation", "instrument", "uninstrument"]


class Instrumentation:
    """What `instrument()` started. As a context manager it ends with the block."""

    def __init__(self, target: Target, tracer: Tracer, *, capture: bool) -> None:
        self._target = target
        self._tracer = tracer
        self._is_capture = capture

    @property
    def name(self) -> str:
        """The name of the factory in every signal."""
        return self._tracer.name

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._tracer.settings

    def flush(self) -> None:
        """Wait until what was told so far is out."""
        watchdog.settle()
        self._tracer.choice.flush()

    def uninstrument(self) -> None:
        """Leave SQLAlchemy as it was found; a second time does nothing."""
        _INSTRUMENTOR.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.uninstrument()


def instrument(
    target: Instrumentable | None = None,
    *,
    name: str | None = None,
    exporter: str | Exporter | None = None,
    settings: Settings | None = None,
    detectors: Iterable[Detector] = DEFAULT_DETECTORS,
    **overrides: Unpack[Overrides],
) -> Instrumentation:
    """Trace the sessions that `target` makes.

    `target` is a `sessionmaker`, an `async_sessionmaker`, a `scoped_session`, an
    `async_scoped_session`, a `Session` or `AsyncSession` class, one live session, a
    Flask-SQLAlchemy `SQLAlchemy` object, or None for every session of the process. `name` names
    the factory in every signal. `exporter` is the name of an exporter, several names separated by
    commas, or an `Exporter`; without it the environment variable `SESSION_TRACER_EXPORTER` decides.
    Where neither names one, it is found when the first session is reported: the OpenTelemetry
    providers that the application has configured; else `otlp` if `OTEL_EXPORTER_OTLP_ENDPOINT` is
    set; else structlog if the application has configured it; else `console` on a terminal, and
    `logging` elsewhere. `settings` default to the environment's; `overrides` are fields of
    `Settings` and win.

    With the exporter `none`, `disabled=True` or `OTEL_SDK_DISABLED=true` it changes nothing.

    Raises `TypeError` for a target that is none of those, `ValueError` for a bad setting or an
    unknown exporter, and what the exporter raises where it cannot work as it is written in code;
    SQLAlchemy is then as it was. Instrumenting a target again changes nothing and returns the first
    `Instrumentation`.
    """
    resolved = resolve(target)
    chosen = (Settings.from_env() if settings is None else settings).override(overrides)
    named = exporter if isinstance(exporter, Exporter) else names_in(exporter)
    if chosen.disabled or environment.is_sdk_disabled() or named == (NONE,):
        tracer = Tracer(
            name or "default", chosen, Named(Exporter(), chosen, Exporters()), (), registry.ages
        )
        return Instrumentation(resolved, tracer, capture=False)
    written = set(overrides)
    if settings is not None:
        written.update(option.name for option in fields(settings))
    return _INSTRUMENTOR.add(
        resolved, name or "default", named, chosen, tuple(detectors), written=written
    )


def uninstrument(target: Instrumentable | None = None) -> None:
    """Stop tracing `target`, or with None everything; leave SQLAlchemy as it was found."""
    _INSTRUMENTOR.remove_target(None if target is None else resolve(target))


def capture(
    target: Target,
    name: str,
    exporter: Exporter,
    settings: Settings,
    detectors: Iterable[Detector],
) -> Instrumentation:
    """Trace `target` besides whoever traces it already."""
    return _INSTRUMENTOR.add(target, name, exporter, settings, tuple(detectors), capture=True)


class Instrumentor:
    """The process's one account of what is instrumented."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._lock = process.PerProcess(threads.RLock)
        self._instrumentations: list[Instrumentation] = []
        self._patches = Patches()
        self._listening: set[type[Session]] = set()
        self._is_listening_to_all = False
        self._known: dict[tuple[object, ...], tuple[Tracer, ...]] = {}
        self._exporters = Exporters()

    def add(
        self,
        target: Target,
        name: str,
        exporters: tuple[str, ...] | Exporter,
        settings: Settings,
        detectors: tuple[Detector, ...],
        *,
        written: Collection[str] = (),
        capture: bool = False,
    ) -> Instrumentation:
        """Trace a target; what can be refused is refused before SQLAlchemy is touched."""
        with self._lock.value:
            for gone in [one for one in self._instrumentations if one._target.place is None]:
                self.remove(gone)
            if not capture:
                for existing in self._instrumentations:
                    if not existing._is_capture and existing._target.same_as(target):
                        _warn_if_different(existing, name, settings)
                        return existing
            choice: Choice
            if exporters:
                choice = Named(exporters, settings, self._exporters, written)
            else:
                choice = Automatic(settings, self._exporters)
            try:
                tracer = Tracer(name, settings, choice, detectors, registry.ages)
            except BaseException:
                choice.close()
                raise
            instrumentation = Instrumentation(target, tracer, capture=capture)
            self._instrumentations.append(instrumentation)
            process.at_end(watchdog.at_end, process.SESSIONS)
            try:
                private_api.check()
                self._update()
                self._take_up()
            except BaseException:
                self._instrumentations.remove(instrumentation)
                self._update()
                self._close(tracer)
                raise
            return instrumentation

    def remove(self, instrumentation: Instrumentation) -> None:
        """Stop tracing what was started with it."""
        watchdog.settle()
        with self._lock.value:
            if instrumentation not in self._instrumentations:
                return
            self._instrumentations.remove(instrumentation)
            self._update()
            tracer = instrumentation._tracer
            for session in live_sessions():
                self._leave(session, tracer)
            self._known.clear()  # what was looked up meanwhile would keep the sessions' class alive
            if not self._instrumentations:
                statements.remove()
                process.not_at_end(watchdog.at_end)
        self._close(tracer)

    def _close(self, tracer: Tracer) -> None:
        tracer.close()
        try:
            tracer.choice.close()
        except Exception as error:
            tracer.failed("exporter", error)

    def remove_target(self, target: Target | None) -> None:
        """Stop tracing a target, or everything but what a test captures."""
        for instrumentation in list(self._instrumentations):
            same = target is None or instrumentation._target.same_as(target)
            if same and not instrumentation._is_capture:
                self.remove(instrumentation)

    def opened(self, session: Session) -> None:
        """A session was constructed: trace it if it is meant."""
        try:
            if probe_of(session) is not None:
                return
            maker, owner = async_makers(running_frame(1))
            tracers = self._tracers_for(type(session), owner, maker)
            if tracers:
                probe = self._attach(session, tracers, is_async=owner is not None)
                probe.begin_scope(session, probe.site(), reopened=False)
        except Exception as error:
            for instrumentation in list(self._instrumentations):
                instrumentation._tracer.failed("instrumentor", error)

    def _attach(self, session: Session, tracers: tuple[Tracer, ...], *, is_async: bool) -> Probe:
        probe = Probe(tracers, is_async=is_async, clock=self._clock)
        session.__dict__[SLOT] = probe
        return probe

    def _take_up(self) -> None:
        """Have each session that exists be told of by whom it should be."""
        for session in live_sessions():
            tracers = self._tracers_of(session)
            probe = probe_of(session)
            if probe is not None:
                probe.hand_to(tracers)
            elif tracers:
                self._attach(session, tracers, is_async=async_session_of(session) is not None)
                session_events.take_up(session)

    def _tracers_of(self, session: Session) -> tuple[Tracer, ...]:
        """Who traces a session that exists."""
        proxy = async_session_of(session)
        owner = None if proxy is None else type(proxy)
        meant = [one._target.place for one in self._instrumentations]
        makers = [place for place in meant if proxy is not None and may_have_made(place, proxy)]
        if any(place is session for place in meant):
            return tuple(self._find((session, *makers, *places(type(session), owner))))
        return self._tracers_for(type(session), owner, makers[0] if makers else None)

    def _leave(self, session: Session, tracer: Tracer) -> None:
        probe = probe_of(session)
        if probe is None:
            return
        probe.part(tracer)
        # Who was further off may be the nearest now.
        probe.hand_to(self._tracers_of(session))
        if not probe.tracers:
            registry.LIVE.pop(probe, None)
            same_owner.leave(probe)
            session.__dict__.pop(SLOT, None)
            for holding in probe.connections:
                holding.unmark(probe)
            object_counter.unwatch(session.identity_map)

    def _tracers_for(
        self, made: type, owner: type | None, maker: object | None
    ) -> tuple[Tracer, ...]:
        """Who traces sessions of a class: the nearest instrumentation, and every capture."""
        if maker is not None and all(
            one._target.place is not maker for one in self._instrumentations
        ):
            maker = None  # or what is known here would keep it alive
        key = (made, owner, maker)
        tracers = self._known.get(key)
        if tracers is None:
            if len(self._known) > 256:  # an application that makes factories as it runs
                self._known.clear()
            if len(self._listening.intersection(made.__mro__)) > 1:
                # It is heir to two instrumented classes, and would hear every event twice.
                self._is_listening_to_all = True
                self._update()
            tracers = tuple(self._find((maker, *places(made, owner))))
            self._known[key] = tracers
        return tracers

    def _find(self, places: tuple[object, ...]) -> Iterator[Tracer]:
        """From the nearest place outwards."""
        nearest = False
        for place in places:
            for one in self._instrumentations:
                is_meant = place is not None and one._target.place is place
                if is_meant and not one._is_capture and not nearest:
                    nearest = True
                    yield one._tracer
        for one in self._instrumentations:
            place = one._target.place
            if one._is_capture and place is not None and any(place is other for other in places):
                yield one._tracer

    def _update(self) -> None:
        """Bring listeners and wrappers in line with what is instrumented now.

        A class below another one that is listened to hears nothing of its own, so that no event is
        told twice.
        """
        self._known.clear()
        everything = {one._target.listen_to for one in self._instrumentations}
        if not everything:
            self._is_listening_to_all = False
        elif self._is_listening_to_all:
            everything = {Session}
        wanted = {cls for cls in everything if everything.isdisjoint(cls.__mro__[1:])}
        for cls in self._listening - wanted:
            session_events.remove(cls)
            self._patches.undo(cls)
        for cls in wanted - self._listening:
            session_events.listen(cls)
            wrap_session(self._patches, cls, self.opened)
        if ASYNC and wanted and not self._listening:
            wrap_async_session(self._patches, AsyncSession, AsyncSessionTransaction)
        if ASYNC and not wanted:
            self._patches.undo(AsyncSession)
            self._patches.undo(AsyncSessionTransaction)
        self._listening = wanted
        if wanted:
            statements.begin()
            errors.watch.start()
            watchdog.start()
        else:
            errors.watch.stop()
            watchdog.stop()


_INSTRUMENTOR: Final = Instrumentor()


def _warn_if_different(existing: Instrumentation, name: str, settings: Settings) -> None:
    if (existing.name, existing.settings) != (name, settings):
        warnings.warn(
            f"This is instrumented already, as {existing.name!r} and with other options, which "
            "stay; uninstrument() it first to change them.",
            stacklevel=4,
        )

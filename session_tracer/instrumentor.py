"""What is instrumented, and how that is undone."""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy.orm import Session

from session_tracer.detectors import DEFAULT_DETECTORS
from session_tracer.exporter import Exporter, Exporters
from session_tracer.exporter_choice import NONE, Automatic, Named, names_in
from session_tracer.hooks import checkouts, errors, private_api, scopes, session_events, statements
from session_tracer.hooks.lifecycle import wrap_async_session, wrap_session
from session_tracer.hooks.patching import Patches
from session_tracer.hooks.targets import (
    ASYNC,
    SYNC_MAKER_CALL,
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
from session_tracer.ledger import dump_signal, object_counter, openings, same_owner, watchdog
from session_tracer.ledger.in_progress import SLOT
from session_tracer.ledger.ledger import Ledger, Opening, new_tuple, recognising
from session_tracer.ledger.registry import LIVE, open_now
from session_tracer.runtime import environment, process, threads
from session_tracer.runtime.project_file import NO_TABLE, read_table
from session_tracer.settings import Settings, settings_of
from session_tracer.tracer import Tracer
from session_tracer.where import owner as owners
from session_tracer.where.application import own_packages
from session_tracer.where.running import running_frame
from session_tracer.where.work import BLOCKS, blocks_now

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
        """A Flask-SQLAlchemy `SQLAlchemy` object, for type checkers."""

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
    """What `instrument()` returns. As a context manager it uninstruments when the block ends."""

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
        """The settings in use."""
        return self._tracer.settings

    def flush(self) -> None:
        """Wait until the exporters have emitted what was reported so far."""
        watchdog.settle()
        self._tracer.flush()

    def uninstrument(self) -> None:
        """Stop tracing the target and restore SQLAlchemy. A second call does nothing."""
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
    """Trace the sessions of `target`.

    If no exporter is named, it is chosen when the first session is reported: the OpenTelemetry
    providers that the application has configured; else `otlp` if `OTEL_EXPORTER_OTLP_ENDPOINT` is
    set; else structlog if the application has configured it; else `console` on a terminal; else
    `logging`.

    The exporter `none`, `disabled=True` and `OTEL_SDK_DISABLED=true` switch tracing off: nothing is
    changed. Instrumenting a target again changes nothing and returns the first `Instrumentation`.

    Args:
        target: A `sessionmaker`, an `async_sessionmaker`, a `scoped_session`, an
            `async_scoped_session`, a `Session` or `AsyncSession` class, one live session, or a
            Flask-SQLAlchemy `SQLAlchemy` object. None for every session of the process.
        name: The factory's name in every signal, by default `default`.
        exporter: The name of an exporter, several names separated by commas, or an `Exporter`. By
            default the environment variable `SESSION_TRACER_EXPORTER`.
        settings: The settings, by default those of the environment.
        detectors: The detectors. To add one: `[*DEFAULT_DETECTORS, MyDetector()]`.
        **overrides: Fields of `Settings`. They take precedence over `settings`.

    Returns:
        The instrumentation, which can be uninstrumented.

    Raises:
        TypeError: the target or the exporter is not supported.
        ValueError: a setting is invalid, or an exporter is unknown.
        Exception: an exporter that the code names cannot work. SQLAlchemy is unchanged whenever an
            exception is raised.
    """
    resolved = resolve(target)
    project = NO_TABLE if settings is not None and exporter is not None else read_table()
    chosen = (settings_of(project) if settings is None else settings).override(overrides)
    named = exporter if isinstance(exporter, Exporter) else names_in(exporter, project)
    if chosen.disabled or environment.is_sdk_disabled() or named == (NONE,):
        tracer = Tracer(
            name or "default", chosen, Named(Exporter(), chosen, Exporters()), (), open_now
        )
        return Instrumentation(resolved, tracer, capture=False)
    written = set(overrides)
    if settings is not None:
        written.update(option.name for option in fields(settings))
    return _INSTRUMENTOR.add(
        resolved,
        name or "default",
        named,
        chosen,
        tuple(detectors),
        written=written,
        is_own=own_packages(target),
    )


def uninstrument(target: Instrumentable | None = None) -> None:
    """Stop tracing `target`, and restore SQLAlchemy.

    Args:
        target: A target of `instrument()`, or None for everything that is instrumented.

    Raises:
        TypeError: the target is not supported.
    """
    _INSTRUMENTOR.remove_target(None if target is None else resolve(target))


def flush_all() -> None:
    """Wait until the exporters have emitted what was reported so far, of everything."""
    for one in list(_INSTRUMENTOR._instrumentations):
        one.flush()


def capture(
    target: Target,
    name: str,
    exporter: Exporter,
    settings: Settings,
    detectors: Iterable[Detector],
    is_own: Callable[[str], bool] | None = None,
) -> Instrumentation:
    """Trace `target` in addition to the tracers that trace it already."""
    return _INSTRUMENTOR.add(
        target, name, exporter, settings, tuple(detectors), is_own=is_own, capture=True
    )


class Instrumentor:
    """What is instrumented in this process."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._lock = process.PerProcess(threads.RLock)
        self._instrumentations: list[Instrumentation] = []
        self._patches = Patches()
        self._listening: set[type[Session]] = set()
        self._is_listening_to_all = False
        # By the class of the session, and for asyncio by what made it as well.
        self._known: dict[object, tuple[Tracer, ...]] = {}
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
        is_own: Callable[[str], bool] | None = None,
        capture: bool = False,
    ) -> Instrumentation:
        """Trace a target. Invalid arguments are rejected before SQLAlchemy is changed."""
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
                tracer = Tracer(name, settings, choice, detectors, open_now, self._clock)
            except BaseException:
                choice.close()
                raise
            if is_own is not None:
                tracer.locator.adopt(is_own)
            openings.forget()
            instrumentation = Instrumentation(target, tracer, capture=capture)
            self._instrumentations.append(instrumentation)
            process.at_end(watchdog.at_end, process.SESSIONS)
            try:
                private_api.check()
                self._update()
                self._take_up()
                watchdog.start(self._shortest())  # sessions that are open have one more report
            except BaseException:
                self._instrumentations.remove(instrumentation)
                self._update()
                self._close(tracer)
                raise
            return instrumentation

    def remove(self, instrumentation: Instrumentation) -> None:
        """Stop tracing what this instrumentation traces."""
        watchdog.settle()
        with self._lock.value:
            if instrumentation not in self._instrumentations:
                return
            self._instrumentations.remove(instrumentation)
            self._update()
            tracer = instrumentation._tracer
            for session in live_sessions():
                self._leave(session, tracer)
            self._known.clear()  # lookups since then would keep the sessions' classes alive
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
        """Stop tracing a target, or everything except captures."""
        for instrumentation in list(self._instrumentations):
            same = target is None or instrumentation._target.same_as(target)
            if same and not instrumentation._is_capture:
                self.remove(instrumentation)

    def opened(self, session: Session) -> None:
        """A session was constructed: trace it if it is instrumented."""
        try:
            slots = session.__dict__
            if SLOT in slots:
                return
            frame = running_frame(2)
            owner = site = caller = None
            if frame is not None and frame.f_code is SYNC_MAKER_CALL:
                caller = frame.f_back
                tracers = self._known.get(session.__class__)
                if tracers is None:
                    tracers = self._tracers_for(type(session), None, None)
            else:
                maker, owner = async_makers(frame)
                tracers = self._tracers_for(type(session), owner, maker)
            if not tracers:
                return
            nearest, error = tracers[0], sys.exception()
            if caller is not None:  # most often the application's line, which is known
                site = nearest.locator.known.get((id(caller.f_code), caller.f_lasti))
            opening = slots[SLOT] = new_tuple(
                Opening,
                (
                    tracers,
                    nearest.clock(),
                    nearest.locator.locate(2) if site is None else site,
                    owners.current(),
                    nearest.context(),
                    None if error is None else recognising(error),
                    owner is not None,
                    None,
                    blocks_now() if "celery" in sys.modules else BLOCKS.get(),
                    environment.bound_context() if "structlog" in sys.modules else None,
                ),
            )
            for tracer in tracers:
                # What the application logs may change as soon as it has imported structlog.
                is_quiet = tracer.is_quiet and "structlog" not in sys.modules
                if not is_quiet and tracer.wants_everything():
                    scopes.begin_scope(session, opening)
                    return
        except Exception as error:
            for instrumentation in list(self._instrumentations):
                instrumentation._tracer.failed("instrumentor", error)

    def _take_up(self) -> None:
        """Give each existing session the tracers that should report it."""
        for session in live_sessions():
            tracers = self._tracers_of(session)
            known = session.__dict__.get(SLOT)
            if type(known) is Ledger:
                known.hand_to(tracers)
            elif known is not None:
                session.__dict__[SLOT] = known._replace(tracers=tracers or known.tracers)
            elif tracers:
                is_async = async_session_of(session) is not None
                session_events.take_up(session, tracers, is_async=is_async)

    def _tracers_of(self, session: Session) -> tuple[Tracer, ...]:
        """Return the tracers of an existing session."""
        proxy = async_session_of(session)
        owner = None if proxy is None else type(proxy)
        meant = [one._target.place for one in self._instrumentations]
        makers = [place for place in meant if proxy is not None and may_have_made(place, proxy)]
        if any(place is session for place in meant):
            return tuple(self._find((session, *makers, *places(type(session), owner))))
        return self._tracers_for(type(session), owner, makers[0] if makers else None)

    def _leave(self, session: Session, tracer: Tracer) -> None:
        ledger = session.__dict__.get(SLOT)
        if type(ledger) is Ledger:
            ledger.part(tracer)
            # Another tracer may be the nearest now.
            ledger.hand_to(self._tracers_of(session))
            if not ledger.tracers:
                LIVE.pop(ledger, None)
                same_owner.leave(ledger)
                del session.__dict__[SLOT]
                for holding in ledger.connections + ledger.borrowed:
                    holding.unmark(ledger)
                object_counter.unwatch(session.identity_map)
        elif ledger is not None:
            tracers = self._tracers_of(session)
            if tracers:
                session.__dict__[SLOT] = ledger._replace(tracers=tracers)
            else:
                del session.__dict__[SLOT]

    def _tracers_for(
        self, made: type, owner: type | None, maker: object | None
    ) -> tuple[Tracer, ...]:
        """Return the tracers of a class: the nearest instrumentation's, and every capture's."""
        if maker is not None and all(
            one._target.place is not maker for one in self._instrumentations
        ):
            maker = None  # the cache must not keep it alive
        key = made if owner is None else (made, owner, maker)
        tracers = self._known.get(key)
        if tracers is None:
            if len(self._known) > 256:  # an application that creates factories at run time
                self._known.clear()
            if len(self._listening.intersection(made.__mro__)) > 1:
                # It inherits from two instrumented classes, and its events would be reported twice.
                self._is_listening_to_all = True
                self._update()
            tracers = tuple(self._find((maker, *places(made, owner))))
            self._known[key] = tracers
        return tracers

    def _find(self, places: tuple[object, ...]) -> Iterator[Tracer]:
        """Yield the tracers, those of the nearest place first."""
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
        """Register and remove listeners and wrappers for what is instrumented now.

        No listener is registered on a class whose base class has one, so that no event is reported
        twice.
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
            checkouts.begin()
            errors.watch.start()
            watchdog.start(self._shortest())
        else:
            errors.watch.stop()
            checkouts.remove()
            watchdog.stop()
        by_signal = [one._tracer for one in self._instrumentations if one.settings.dump_signal]
        dump_signal.use({one.settings.dump_signal: one.locator.is_own for one in by_signal})

    def _shortest(self) -> int:
        """Return the shortest threshold of all tracers, in nanoseconds."""
        watching = [one._tracer for one in self._instrumentations if one._tracer.watches]
        return min((min(tracer.patience) for tracer in watching), default=sys.maxsize)


_INSTRUMENTOR: Final = Instrumentor()


def _warn_if_different(existing: Instrumentation, name: str, settings: Settings) -> None:
    if (existing.name, existing.settings) != (name, settings):
        warnings.warn(
            f"The target is already instrumented, as {existing.name!r} and with other options, "
            "which stay in use. Call uninstrument() first to change them.",
            stacklevel=4,
        )

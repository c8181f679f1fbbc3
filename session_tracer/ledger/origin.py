"""Which session last held an object, remembered by the object alone."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from session_tracer.facts import Departure, Expiry
    from session_tracer.ledger.report import Report, Tracer
    from session_tracer.where.callsite import CallSite

__all__ = ["Origin", "OriginRef", "Route", "Scope", "refer"]


class Scope:
    """What stays known of a session scope for as long as an object of it lives.

    `reports` are those of the open scope; when it ends `tracers` takes their place, each with the
    context of the span it made.
    """

    # What expired objects of the scope last.
    expired_by: Expiry | Literal[""] = ""
    expired_site: CallSite | None = None
    # What expired all of them last, and how often that has happened.
    swept_by: Expiry | Literal[""] = ""
    swept_site: CallSite | None = None
    sweeps = 0
    # What stands for the factory: an async_sessionmaker has no class of its own.
    kind: tuple[type, int] = (object, 0)
    reports: tuple[Report, ...] = ()
    tracers: tuple[tuple[Tracer, SpanContext | None], ...] = ()

    def __init__(self, id_: str, opened_site: CallSite | None, *, is_async: bool) -> None:
        self.id = id_
        self.opened_site = opened_site
        self.is_async = is_async

    def reported_by(self) -> tuple[tuple[Tracer, SpanContext | None], ...]:
        """The tracers that reported the scope, and the span that each made of it."""
        # Once: another thread may end the scope meanwhile.
        reports = self.reports
        if not reports:
            return self.tracers
        if len(reports) == 1:
            return ((reports[0].tracer, reports[0].session_context),)
        return tuple([(report.tracer, report.session_context) for report in reports])

    def expired(self, by: Expiry, site: CallSite | None) -> None:
        """Note what expired objects of the scope."""
        self.expired_by = by
        self.expired_site = site

    def swept(self, by: Expiry, site: CallSite | None) -> None:
        """Note what expired all objects of the scope."""
        self.expired_by = self.swept_by = by
        self.expired_site = self.swept_site = site
        self.sweeps += 1


class Origin:
    """The scope an object is of, and how it left; times in nanoseconds of the monotonic clock.

    All that leave together, by a `close()` or an `expunge_all()`, share one.
    """

    departure: Departure | None = None
    departed_at = 0
    departed_site: CallSite | None = None

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def left(self, departure: Departure, at: int, site: CallSite | None) -> None:
        """Note how the session's objects left it."""
        self.departure = departure
        self.departed_at = at
        self.departed_site = site


class Route(NamedTuple):
    """How objects come: `root`, a mapper, was selected at `site`, the rest through relationships.

    `steps` are the relationships' properties, outermost first. `select` is equal for what began
    with the same SELECT.
    """

    root: Any
    steps: tuple[Any, ...]
    site: CallSite | None
    select: int | None = None


class OriginRef(weakref.ref[Any]):
    """The weak reference to the identity map that every persistent object carries anyway.

    SQLAlchemy gives each object's state the identity map's own weak reference, and leaves it there
    when the session is closed. Handing out this one instead records where an object came from at no
    cost for each: `origin` is its session scope, `site` the line that loaded it, `sweeps` how often
    all objects of the scope had been expired before, `route` how it came where that was by a lazy
    load.
    """

    __slots__ = ("origin", "route", "site", "sweeps")

    # An object that carries it left, if it did, as the rest of its origin.
    departure: Final = None
    departed_at: Final = 0
    departed_site: Final = None

    origin: Origin
    site: CallSite | None
    sweeps: int
    route: Route | None


def refer(
    identity_map: Any, origin: Origin, site: CallSite | None, route: Route | None = None
) -> OriginRef:
    """A reference to the identity map that knows where its objects come from."""
    ref = OriginRef(identity_map)
    ref.origin = origin
    ref.site = site
    ref.sweeps = origin.scope.sweeps
    ref.route = route
    return ref

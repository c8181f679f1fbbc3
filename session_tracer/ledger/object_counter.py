"""Counts the objects an identity map takes in, and marks where they come from.

Nothing may cost more than a count here: a listener on `loaded_as_persistent` alone slows a bulk
load by seven to ten percent. So the identity map's own function for a new row is replaced by one
that counts. That is private to SQLAlchemy; `PRIVATE_ROAD` says whether it works as expected, and
where it does not, the public event (listeners.py) counts instead.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

from sqlalchemy.orm import Session

from session_tracer.ledger.origin import Origin, OriginRef, refer
from session_tracer.runtime.degraded import without

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm.identity import IdentityMap

    from session_tracer.facts import Departure, Expiry
    from session_tracer.ledger.origin import Route, Scope
    from session_tracer.where.callsite import CallSite

__all__ = [
    "NOTHING_LOADED",
    "PRIVATE_ROAD",
    "Counter",
    "EventCounter",
    "Mark",
    "expire",
    "expiry_of",
    "mark_of",
    "put",
    "remember",
    "unwatch",
    "watch",
]


class Counter(Protocol):
    """What was loaded since it was last asked: `counts` by mapped class.

    `peak` is how many objects the identity map held at its fullest since it is followed.
    """

    counts: dict[type, int]
    peak: int

    def come_from(self, site: CallSite | None, route: Route | None = None) -> None:
        """What is loaded from now on, is loaded from this line, by this route."""

    def size(self) -> int:
        """How many objects the identity map holds."""

    def follow(self, *, on: bool) -> None:
        """Note the peak with every object, or no longer: it costs a little for each."""


class EventCounter:
    """Counts what the public event tells; the fall-back, and what counts before a transaction."""

    __slots__ = ("_follows", "_map", "counts", "peak", "site")

    def __init__(self, identity_map: IdentityMap | None = None) -> None:
        self.counts: dict[type, int] = defaultdict(int)
        self.peak = 0
        self._follows = False
        self.site: CallSite | None = None
        self._map = _nowhere if identity_map is None else weakref.ref(identity_map)

    def come_from(self, site: CallSite | None, route: Route | None = None) -> None:
        del route
        self.site = site

    def size(self) -> int:
        identity_map = self._map()
        return 0 if identity_map is None else len(identity_map)

    def follow(self, *, on: bool) -> None:
        self._follows = on
        self.peak = 0

    def count(self, entity: type) -> None:
        """One more was loaded."""
        self.counts[entity] += 1
        if self._follows:
            self.peak = max(self.peak, self.size())


def _nowhere() -> None:
    """The reference to no identity map."""


class MapCounter:
    """Counts within the identity map. It must not hold the map: its lifetime is SQLAlchemy's."""

    __slots__ = ("_origin", "counts", "peak", "ref")

    def __init__(self, identity_map: Any, origin: Origin, site: CallSite | None) -> None:
        self.counts: dict[type, int] = defaultdict(int)
        self.peak = 0
        self._origin = origin
        self.ref = refer(identity_map, origin, site)
        identity_map._wr = self.ref
        identity_map._add_unpresent = self._counting(identity_map._dict)

    def come_from(self, site: CallSite | None, route: Route | None = None) -> None:
        identity_map = self.ref()
        if identity_map is not None:
            self.ref = identity_map._wr = refer(identity_map, self._origin, site, route)

    def size(self) -> int:
        identity_map = self.ref()
        return 0 if identity_map is None else len(identity_map)

    def follow(self, *, on: bool) -> None:
        identity_map = self.ref()
        if identity_map is not None:
            self.peak = 0
            count = self._following if on else self._counting
            identity_map._add_unpresent = count(identity_map._dict)

    def _counting(self, rows: dict[Any, Any]) -> Callable[[Any, Any], None]:
        # Runs for every object loaded. The cycle-free closure and the inlined body are its price.
        counts = self.counts
        counter = self

        def _add_unpresent(state: Any, key: Any) -> None:
            rows[key] = state
            state._instance_dict = counter.ref
            counts[state.class_] += 1

        return _add_unpresent

    def _following(self, rows: dict[Any, Any]) -> Callable[[Any, Any], None]:
        count = self._counting(rows)
        counter = self

        def _add_unpresent(state: Any, key: Any) -> None:
            count(state, key)
            counter.peak = max(counter.peak, len(rows))

        return _add_unpresent


def watch(identity_map: IdentityMap, origin: Origin, site: CallSite | None) -> Counter:
    """Count what this identity map takes in, by the cheapest road that works."""
    if PRIVATE_ROAD:
        return MapCounter(identity_map, origin, site)
    counter = EventCounter(identity_map)
    counter.come_from(site)
    return counter


class Mark:
    """Where an object came from, and how it left where its session's end does not say."""

    __slots__ = ("departed_at", "departed_site", "departure", "origin", "route", "site", "sweeps")

    def __init__(
        self,
        origin: Origin,
        site: CallSite | None,
        sweeps: int | None = None,
        route: Route | None = None,
    ) -> None:
        self.origin = origin
        self.site = site
        self.route = route
        # How often all objects of its scope had been expired when it came.
        self.sweeps = origin.scope.sweeps if sweeps is None else sweeps
        self.departure: Departure | None = None
        self.departed_at = 0
        self.departed_site: CallSite | None = None


def remember(
    state: Any, origin: Origin, departure: Departure, at: int, site: CallSite | None
) -> None:
    """Mark an object that leaves its session by itself."""
    known = mark_of(state)
    mark = Mark(origin, None if known is None else known.site)
    mark.departure = departure
    mark.departed_at = at
    mark.departed_site = site
    put(state, mark)


def put(state: Any, mark: Mark) -> None:
    """Have the object carry the mark."""
    _carry(state, "_session_tracer", mark)


def _carry(state: Any, name: str, value: object) -> None:
    try:
        setattr(state, name, value)
    except AttributeError:
        without(
            "attributes of ours on InstanceState",
            "a load that an object is refused after it left its session by itself is not told, "
            "nor what expired a single object",
        )


def mark_of(state: Any) -> Mark | OriginRef | None:
    """What is known of where an object came from."""
    # In an identity map again, the object carries that map's reference: newer than any mark.
    ref = getattr(state, "_instance_dict", None)
    if isinstance(ref, OriginRef):
        return ref
    mark: Mark | None = getattr(state, "_session_tracer", None)
    return mark


def expire(state: Any, by: Expiry, site: CallSite | None, sweeps: int) -> None:
    """Mark an object that was expired by itself."""
    _carry(state, "_session_tracer_expired", (by, site, sweeps))


def expiry_of(state: Any, scope: Scope) -> tuple[Expiry | Literal[""], CallSite | None]:
    """What expired the object last, if anything did since it came."""
    singly: tuple[Expiry, CallSite | None, int] | None
    singly = getattr(state, "_session_tracer_expired", None)
    if singly is not None and singly[2] == scope.sweeps:
        return singly[0], singly[1]
    mark = mark_of(state)
    if mark is not None and mark.sweeps == scope.sweeps:
        return "", None
    return scope.swept_by, scope.swept_site


def unwatch(identity_map: Any) -> None:
    """Leave the identity map, and the objects in it, as they would be without us."""
    if isinstance(getattr(identity_map, "_wr", None), OriginRef):
        plain = identity_map._wr = weakref.ref(identity_map)
        if "_add_unpresent" in identity_map.__dict__:
            del identity_map._add_unpresent
        for state in identity_map.all_states():
            if isinstance(state._instance_dict, OriginRef):
                state._instance_dict = plain
            state.__dict__.pop("_session_tracer", None)
            state.__dict__.pop("_session_tracer_expired", None)


def _works() -> bool:
    """Whether an identity map takes rows in the way the private road assumes."""

    class _State:
        key: Any = None
        class_ = object
        modified = False
        _instance_dict: Any = None

    state = _State()
    try:
        identity_map = cast("Any", Session().identity_map)
        plain = identity_map._wr
        identity_map._add_unpresent(state, "key")
        return (
            type(plain) is weakref.ref
            and plain() is identity_map
            and cast("Any", identity_map)._dict == {"key": state}
            and state._instance_dict is plain
            and "_add_unpresent" not in identity_map.__dict__
            and set(identity_map.__dict__) == {"_dict", "_modified", "_wr"}
        )
    except Exception:
        return False


PRIVATE_ROAD: Final = _works()
NOTHING_LOADED: Final[Counter] = EventCounter()

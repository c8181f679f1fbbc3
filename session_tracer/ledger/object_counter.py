"""Counts the objects an identity map takes in, and marks where they come from.

Nothing may cost more than a count here: a listener on `loaded_as_persistent` alone slows a bulk
load by seven to ten percent. The identity map's own function for a new row is private to
SQLAlchemy; it is replaced by one that counts. If it does not work as expected (`IS_KNOWN`), objects
are not counted.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from sqlalchemy.orm import InstanceState, Session

from session_tracer.ledger.origin import Origin, OriginRef, refer

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.facts import Departure, Expiry
    from session_tracer.ledger.origin import Route, Scope
    from session_tracer.where.callsite import CallSite

__all__ = [
    "IS_KNOWN",
    "NOTHING_LOADED",
    "Counter",
    "MapCounter",
    "Mark",
    "brought_by",
    "expire",
    "expiry_of",
    "keep_brought_by",
    "mark_of",
    "note_merged",
    "note_undone",
    "noted",
    "remember",
    "unwatch",
]


class Counter:
    """Counts what is loaded into no identity map: nothing.

    `counts` is the number of objects by mapped class since it was last cleared. `peak` is the
    largest number of objects that the identity map held since it is followed.
    """

    counts: dict[type, int] = {}  # noqa: RUF012 # never added to
    peak = 0

    def come_from(self, site: CallSite | None, route: Route | None = None) -> None:
        """What is loaded from now on, is loaded from this line, by this route."""

    def size(self) -> int:
        """How many objects the identity map holds."""
        return 0

    def brought_from(self, site: CallSite | None) -> frozenset[tuple[int, int | None]]:
        """The objects that came from a line, each with a number that its next load changes."""
        del site
        return frozenset()

    def follow(self, *, on: bool) -> None:
        """Note the peak with every object, or no longer: it costs a little for each."""


class MapCounter(Counter):
    """Counts in the identity map. It must not hold the map: its lifetime is SQLAlchemy's."""

    def __init__(self, identity_map: Any, origin: Origin, site: CallSite | None) -> None:
        self.counts = defaultdict(int)
        self._origin = origin
        self.ref = identity_map._wr = refer(identity_map, origin, site)
        identity_map._add_unpresent = self._counting(identity_map._dict)

    def come_from(self, site: CallSite | None, route: Route | None = None) -> None:
        identity_map = self.ref()
        if identity_map is not None:
            self.ref = identity_map._wr = refer(identity_map, self._origin, site, route)

    def size(self) -> int:
        identity_map = self.ref()
        return 0 if identity_map is None else len(identity_map._dict)

    def brought_from(self, site: CallSite | None) -> frozenset[tuple[int, int | None]]:
        identity_map = self.ref()
        states = () if identity_map is None else list(identity_map._dict.values())
        known = [(state, getattr(state, "_instance_dict", None)) for state in states]
        return frozenset(
            (id(state), state.runid)
            for state, ref in known
            if isinstance(ref, OriginRef) and ref.site == site
        )

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


class Mark:
    """Where an object came from, and how it left if not by its session's end."""

    __slots__ = ("departed_at", "departed_site", "departure", "origin", "route", "site", "sweeps")

    def __init__(
        self, state: Any, origin: Origin, departure: Departure, at: int, site: CallSite | None
    ) -> None:
        known = mark_of(state)
        self.origin = origin
        self.site: CallSite | None = None if known is None else known.site
        self.route: Route | None = None if known is None else known.route
        # How often all objects of its scope had been expired when it left.
        self.sweeps = origin.scope.sweeps
        self.departure = departure
        self.departed_at = at
        self.departed_site = site


def remember(
    state: Any, origin: Origin, departure: Departure, at: int, site: CallSite | None
) -> None:
    """Mark an object that leaves its session by itself."""
    state._session_tracer = Mark(state, origin, departure, at, site)


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
    state._session_tracer_expired = (by, site, sweeps)


def expiry_of(state: Any, scope: Scope) -> tuple[Expiry | Literal[""], CallSite | None]:
    """What expired the object last, if anything did since it came."""
    singly: tuple[Expiry, CallSite | None, int] | None
    singly = getattr(state, "_session_tracer_expired", None)
    if singly is not None and singly[2] == scope.sweeps:
        return singly[0], singly[1]
    if not scope.sweeps:
        return "", None
    mark = mark_of(state)
    if mark is not None and mark.sweeps == scope.sweeps:
        return "", None
    return scope.swept_by, scope.swept_site


def brought_by(state: Any) -> int | None:
    """A number that is equal for all objects that one SELECT has brought; None for a new object.

    SQLAlchemy gives an object another number when a column of it is loaded.
    """
    number: int | None = state.__dict__.get("_session_tracer_select", getattr(state, "runid", None))
    return number


def keep_brought_by(state: Any) -> None:
    """Keep that number, because a column of the object is about to be loaded."""
    state.__dict__.setdefault("_session_tracer_select", getattr(state, "runid", None))


def note_merged(state: Any, site: CallSite | None) -> None:
    """Mark an object that was given to `merge()`, which returns another one."""
    state._session_tracer_merged = site


def note_undone(state: Any, site: CallSite | None) -> None:
    """Mark an object whose INSERT, or whose `add()`, was rolled back."""
    state._session_tracer_undone = site


def noted(state: Any) -> tuple[CallSite | None, CallSite | None]:
    """Where the object was given to `merge()`, and where its INSERT was rolled back."""
    marks = state.__dict__
    return marks.get("_session_tracer_merged"), marks.get("_session_tracer_undone")


def unwatch(identity_map: Any) -> None:
    """Leave the identity map, and the objects in it, as they would be without us."""
    if isinstance(getattr(identity_map, "_wr", None), OriginRef):
        plain = identity_map._wr = weakref.ref(identity_map)
        if "_add_unpresent" in identity_map.__dict__:
            del identity_map._add_unpresent
        identity_map.__dict__.pop("get", None)
        for state in identity_map.all_states():
            if isinstance(state._instance_dict, OriginRef):
                state._instance_dict = plain
            for mark in _MARKS:
                state.__dict__.pop(mark, None)


_MARKS: Final = (
    "_session_tracer",
    "_session_tracer_expired",
    "_session_tracer_merged",
    "_session_tracer_select",
    "_session_tracer_undone",
)


def _works() -> bool:
    """Whether an identity map takes rows, and its objects take attributes, as assumed here."""

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
            InstanceState.__dictoffset__ != 0
            and type(plain) is weakref.ref
            and plain() is identity_map
            and cast("Any", identity_map)._dict == {"key": state}
            and state._instance_dict is plain
            and "_add_unpresent" not in identity_map.__dict__
            and set(identity_map.__dict__) == {"_dict", "_modified", "_wr"}
        )
    except Exception:
        return False


IS_KNOWN: Final = _works()
NOTHING_LOADED: Final = Counter()

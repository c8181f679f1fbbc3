"""Counts the objects for which one line loads one attribute or reloads what was expired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from session_tracer.model.totals import Tally

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_tracer.facts import Counts, LoadKind
    from session_tracer.where.callsite import CallSite

__all__ = ["Load", "Loads", "Passed"]

# The instructions of the frames that were at work, by the ids of each frame and of its code.
Passed: TypeAlias = "Mapping[tuple[int, int], int]"

_MOST_LINES: Final = 1_000
_MOST_SELECTS: Final = 100
# Number of arguments of `Loads.loaded()`.
_OF_LOADED: Final = 6


class Load(NamedTuple):
    """What a statement loads of one object: its kind, the mapped class, and the attribute."""

    kind: LoadKind
    entity: str
    attribute: str


class Loads:
    """How many objects each line has loaded each attribute for.

    An object is known by a hash, never kept. Of a line that has reached the highest threshold, no
    more objects are remembered; of more than a thousand lines, those not seen for longest are
    forgotten.

    What counts is how many statements a loader option would save. Each object counts that one
    SELECT has brought with others. Of objects that came one by one, each with its own SELECT, only
    one counts. An object that the session has added does not count: no SELECT brought it.
    """

    __slots__ = (
        "_by_line",
        "_passed",
        "_reloaded",
        "attributes",
        "count",
        "entities",
        "last",
        "passed",
        "refreshed_site",
        "refreshes",
        "reloads",
        "tally",
    )

    def __init__(self) -> None:
        # The objects, the numbers of the SELECTs that brought them, and all loads.
        self._by_line: dict[tuple[CallSite | None, str, str], tuple[set[int], set[int], Tally]] = {}
        # How many objects the candidate that is judged now stands for, all loads of its line, and
        # what was at work at the one before.
        self.count = 0
        self.tally = Tally()
        self.passed: Passed = {}
        # What was counted last, as arguments of `loaded()` or `reloaded()`.
        self.last: tuple[Any, ...] = ()
        self._passed: dict[object, Passed] = {}
        self.committed()

    def committed(self) -> None:
        """Count again from zero what a commit has expired."""
        self._reloaded: set[int] = set()
        self.reloads = Tally()
        self.entities: Counts = {}
        # How often refresh() was called since the commit, and the line that did so last.
        self.refreshes = 0
        self.refreshed_site: CallSite | None = None
        # As `entity, attribute`, in the order of their coming; when enough objects were reloaded,
        # the class to select and the option that brings the attribute are added.
        self.attributes: dict[tuple[str, str], tuple[str, str]] = {}

    def begin_turn(self) -> Loads:
        """Return what begins with the last load, because other code uses the session since then."""
        begun = Loads()
        key: Any = None
        if len(self.last) == _OF_LOADED:
            begun.loaded(*self.last)
            key = self.last[:2]
        elif self.last:
            begun.reloaded(*self.last)
            key = self.last[0].entity
        if key in self._passed:
            begun.note(key, self._passed[key])
        return begun

    def note(self, key: object, passed: Passed) -> None:
        """Note what is at work at the load before the one that is judged."""
        if len(self._passed) >= _MOST_LINES:
            self._passed.clear()
        self._passed[key] = passed

    def recall(self, key: object) -> None:
        """Have `passed` be what was noted."""
        self.passed = self._passed.pop(key, {})

    def loaded(
        self,
        site: CallSite | None,
        load: Load,
        parent: int,
        select: int | None,
        duration: int,
        most: int,
    ) -> int:
        """How many objects the line has loaded it for, if this is another one; else 0.

        `select` is equal for objects that one SELECT has brought, None for what was added.
        """
        self.last = (site, load, parent, select, duration, most)
        key = (site, load.entity, load.attribute)
        known = self._by_line.pop(key, None)
        if known is None:
            known = (set(), set(), Tally())
            if len(self._by_line) >= _MOST_LINES:
                del self._by_line[next(iter(self._by_line))]
        self._by_line[key] = known
        parents, selects, tally = known
        tally.count += 1
        tally.ns += duration
        before = len(parents) - len(selects) + 1 if selects else 0
        if select is None or before >= most or parent in parents:
            return 0
        self.tally = tally
        if len(selects) >= _MOST_SELECTS:
            parents.clear()
            selects.clear()
        parents.add(parent)
        selects.add(select)
        count = len(parents) - len(selects) + 1
        return count if count > before else 0

    def reloaded(self, load: Load, parent: int, duration: int, most: int) -> int:
        """How many of its class were reloaded since the commit, if it is another one; else 0.

        A function that goes on after a commit reloads one or two objects of each class.
        """
        self.last = (load, parent, duration, most)
        parents, tally = self._reloaded, self.reloads
        tally.count += 1
        tally.ns += duration
        number = self.entities.get(load.entity, 0)
        if number >= most:
            return 0
        if load.attribute:
            self.attributes[load.entity, load.attribute] = ("", "")
        if parent in parents:
            return 0
        parents.add(parent)
        self.entities[load.entity] = number + 1
        return number + 1

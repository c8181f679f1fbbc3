"""Counts the objects for which one line loads one attribute or reloads what was expired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from session_tracer.facts import Counts, LoadKind
    from session_tracer.where.callsite import CallSite

__all__ = ["Load", "Loads", "Passed"]

# The frames that were at work, by the ids of each and of its code.
Passed: TypeAlias = frozenset[tuple[int, int]]

_MOST_LINES: Final = 1_000


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
    """

    __slots__ = ("_by_line", "_passed", "_reloaded", "attributes", "count", "entities", "passed")

    def __init__(self) -> None:
        self._by_line: dict[tuple[CallSite | None, str, str], set[int]] = {}
        # How many objects the candidate that is judged now stands for, and what was at work at the
        # one before.
        self.count = 0
        self.passed: Passed = frozenset()
        self._passed: dict[object, Passed] = {}
        self.committed()

    def committed(self) -> None:
        """Count again from zero what a commit has expired."""
        self._reloaded: set[int] = set()
        self.entities: Counts = {}
        # As `entity, attribute`, in the order of their coming.
        self.attributes: dict[tuple[str, str], None] = {}

    def note(self, key: object, passed: Passed) -> None:
        """Note what is at work at the load before the one that is judged."""
        if len(self._passed) >= _MOST_LINES:
            self._passed.clear()
        self._passed[key] = passed

    def recall(self, key: object) -> None:
        """Have `passed` be what was noted."""
        self.passed = self._passed.pop(key, frozenset())

    def loaded(self, site: CallSite | None, load: Load, parent: int, most: int) -> int:
        """How many objects the line has loaded it for, if this is another one; else 0."""
        key = (site, load.entity, load.attribute)
        parents = self._by_line.pop(key, None)
        if parents is None:
            parents = set()
            if len(self._by_line) >= _MOST_LINES:
                del self._by_line[next(iter(self._by_line))]
        self._by_line[key] = parents
        if len(parents) >= most or parent in parents:
            return 0
        parents.add(parent)
        return len(parents)

    def reloaded(self, load: Load, parent: int, most: int) -> int:
        """How many objects were reloaded since the commit, if this is another one; else 0."""
        parents = self._reloaded
        if len(parents) >= most or parent in parents:
            return 0
        parents.add(parent)
        self.entities[load.entity] = self.entities.get(load.entity, 0) + 1
        if load.attribute:
            self.attributes[load.entity, load.attribute] = None
        return len(parents)

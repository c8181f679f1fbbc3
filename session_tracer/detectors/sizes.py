"""Finds sessions that hold, and statements that load, very many objects."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import largest
from session_tracer.detectors.wording import objects
from session_tracer.facts import (
    AttributeLoaded,
    FlushCompleted,
    ObjectsLoaded,
    StatementExecuted,
    TransactionEnded,
)
from session_tracer.timeline import add_counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer.facts import Counts
    from session_tracer.findings import Finding
    from session_tracer.record import SessionRecord

__all__ = ["LargeIdentityMap", "LargeResult"]


class LargeIdentityMap:
    """`large-identity-map`: a session holds more objects than one unit of work needs."""

    facts = (AttributeLoaded, StatementExecuted, ObjectsLoaded, FlushCompleted, TransactionEnded)

    def memory(self) -> _Growth:
        """How many objects the identity map held after each commit."""
        return _Growth()

    def judge(
        self,
        fact: AttributeLoaded
        | StatementExecuted
        | ObjectsLoaded
        | FlushCompleted
        | TransactionEnded,
        record: SessionRecord,
        memory: _Growth,
    ) -> Iterator[Finding]:
        """One finding for a scope."""
        if memory.said:
            return
        if isinstance(fact, AttributeLoaded | StatementExecuted):
            memory.reading.take(fact)
            return
        if isinstance(fact, TransactionEnded) and fact.outcome == "committed" and not fact.nested:
            memory.committed(fact.size)
        if record.identity_map_peak > record.settings.large_identity_map_objects:
            memory.said = True
            yield _large_map(fact, memory, record)


# Of the sizes after each commit, so many of the first and of the last are kept.
_KEPT: Final = 3
_MOST_ENTITIES: Final = 5


class _Growth:
    """How large the identity map was after the first commits and the last ones."""

    __slots__ = ("_first", "_last", "reading", "said")

    def __init__(self) -> None:
        self.said = False
        self.reading = _Reading()
        self._first: list[int] = []
        self._last: deque[int] = deque(maxlen=_KEPT)

    def committed(self, size: int) -> None:
        """Note the size after a commit."""
        if len(self._first) < _KEPT:
            self._first.append(size)
        else:
            self._last.append(size)

    def sizes(self) -> list[int]:
        """The sizes that are remembered."""
        return [*self._first, *self._last]


def _large_map(
    fact: ObjectsLoaded | FlushCompleted | TransactionEnded,
    growth: _Growth,
    record: SessionRecord,
) -> Finding:
    size, commits = record.identity_map_peak, record.commits
    came: Counts = {}
    add_counts(came, record.loaded)
    add_counts(came, record.new)
    most = sorted(came, key=lambda entity: -came[entity])[:_MOST_ENTITIES]
    evidence: dict[str, Any] = {
        "age_ms": (fact.at - record.opened_at) / 1e6,
        "came": {entity: came[entity] for entity in most},
        "commits": commits,
    }
    if growth.sizes():
        evidence["sizes_after_commits"] = growth.sizes()
    over = f" over {commits} commit{'s' if commits > 1 else ''}" if commits else ""
    remedy, *others = _shrink(fact, growth.reading, record)
    evidence["alternatives"] = others
    return record.finding(
        "large-identity-map",
        "warning",
        f"the identity map has grown to {size} objects{over}",
        remedy,
        fact.site,
        entity=largest(came),
        count=size,
        evidence=evidence,
    )


def _shrink(
    fact: ObjectsLoaded | FlushCompleted | TransactionEnded,
    reading: _Reading,
    record: SessionRecord,
) -> Iterator[str]:
    is_selected = reading.operation == "SELECT" and not reading.is_lazy
    if isinstance(fact, ObjectsLoaded) and not (fact.at_once or record.commits) and is_selected:
        yield _streamed(reading.selected(fact.loaded))
    yield "a session for each batch of objects"
    yield "session.expunge_all() after each batch"


class LargeResult:
    """`large-result`: one statement loads very many objects at once."""

    facts = (AttributeLoaded, StatementExecuted, ObjectsLoaded)

    def memory(self) -> _Reading:
        """What the last statement read, where that was an attribute."""
        return _Reading()

    def judge(
        self,
        fact: AttributeLoaded | StatementExecuted | ObjectsLoaded,
        record: SessionRecord,
        memory: _Reading,
    ) -> Iterable[Finding]:
        """One finding for each large result."""
        if isinstance(fact, AttributeLoaded | StatementExecuted):
            memory.take(fact)
        elif not fact.at_once:
            count = sum(fact.loaded.values())
            if count > record.settings.large_result_objects:
                return (_large_result(fact, count, memory, record),)
        return ()


class _Reading:
    """What the last statement read: objects of a mapped class, or an attribute of such."""

    __slots__ = ("_load", "attribute", "entity", "is_lazy", "operation")

    def __init__(self) -> None:
        self._load: AttributeLoaded | None = None
        self.attribute = ""
        self.entity = ""
        self.is_lazy = False
        self.operation = "SELECT"

    def take(self, fact: AttributeLoaded | StatementExecuted) -> None:
        """Another statement ran; an AttributeLoaded before it tells why."""
        if isinstance(fact, AttributeLoaded):
            self._load = fact
            return
        load, self._load = self._load, None
        self.is_lazy = load is not None
        self.operation = fact.operation
        self.attribute = fact.eager
        if load is not None and load.kind == "relationship" and load.attribute:
            self.attribute = f"{load.entity}.{load.attribute}"
        if not fact.eager:  # what an eager loader reads belongs to the SELECT before it
            self.entity = "" if self.is_lazy else fact.entity

    def selected(self, loaded: Counts) -> str:
        """The mapped class to select: what was loaded may be its subclasses', or joined to it."""
        return self.entity or largest(loaded) or "..."


def _streamed(entity: str) -> str:
    return f"select({entity}).execution_options(yield_per=1000)"


def _large_result(
    fact: ObjectsLoaded, count: int, reading: _Reading, record: SessionRecord
) -> Finding:
    attribute = reading.attribute
    remedy, *others = _read_less(fact, reading)
    return record.finding(
        "large-result",
        "info",
        f"one {reading.operation}{f' for {attribute}' if attribute else ''} "
        f"loaded {objects(fact.loaded)}",
        remedy,
        fact.site,
        entity=largest(fact.loaded),
        attribute=attribute.rpartition(".")[2] or None,
        count=count,
        evidence={"loaded": dict(fact.loaded), "alternatives": others},
    )


def _read_less(fact: ObjectsLoaded, reading: _Reading) -> Iterator[str]:
    if reading.attribute:
        yield f"select the {largest(fact.loaded)} objects that are needed"
        yield f'lazy="write_only" for {reading.attribute}, and its select() with yield_per'
        return
    entity = reading.selected(fact.loaded)
    if reading.operation != "SELECT":
        yield f"{reading.operation.lower()}({entity}).returning(...) of columns, not of objects"
        return
    yield _streamed(entity)
    yield f"select({entity}).limit(...)"
    if entity in fact.loaded and len(fact.loaded) > 1:
        yield "selectinload() in place of joinedload(), which yield_per refuses for collections"

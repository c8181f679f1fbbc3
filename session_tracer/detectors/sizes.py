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

    facts = (ObjectsLoaded, FlushCompleted, TransactionEnded)

    def memory(self) -> _Growth:
        """How many objects the identity map held after each commit."""
        return _Growth()

    def judge(
        self,
        fact: ObjectsLoaded | FlushCompleted | TransactionEnded,
        record: SessionRecord,
        memory: _Growth,
    ) -> Iterator[Finding]:
        """One finding for a scope."""
        if memory.said:
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

    __slots__ = ("_first", "_last", "said")

    def __init__(self) -> None:
        self.said = False
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
    remedy, *others = _shrink(fact, came, record)
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


def _shrink(fact: object, came: Counts, record: SessionRecord) -> Iterator[str]:
    entity = largest(came)
    by_one_load = not record.commits and isinstance(fact, ObjectsLoaded)
    if by_one_load and entity is not None:
        yield f"select({entity}).execution_options(yield_per=1000)"
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
        if isinstance(fact, AttributeLoaded):
            memory.loading = fact
        elif isinstance(fact, StatementExecuted):
            memory.executed(fact)
        elif not fact.at_once:
            count = sum(fact.loaded.values())
            if count > record.settings.large_result_objects:
                return (_large_result(fact, count, memory.attribute, record),)
        return ()


class _Reading:
    """Which attribute the last statement read, lazily or eagerly; empty where it did not."""

    __slots__ = ("attribute", "loading")

    def __init__(self) -> None:
        self.loading: AttributeLoaded | None = None
        self.attribute = ""

    def executed(self, fact: StatementExecuted) -> None:
        """Another statement ran; an AttributeLoaded before it tells why."""
        load, self.loading = self.loading, None
        self.attribute = fact.eager
        if load is not None and load.kind == "relationship" and load.attribute:
            self.attribute = f"{load.entity}.{load.attribute}"


def _large_result(
    fact: ObjectsLoaded, count: int, attribute: str, record: SessionRecord
) -> Finding:
    entity = largest(fact.loaded)
    if attribute:
        select = f"select the {entity} objects that are needed"
        other = f'lazy="write_only" for {attribute}, and its select() with yield_per'
    else:
        select = f"select({entity}).execution_options(yield_per=1000)"
        other = f"select({entity}).limit(...)"
    return record.finding(
        "large-result",
        "info",
        f"one SELECT{f' for {attribute}' if attribute else ''} loaded {objects(fact.loaded)}",
        select,
        fact.site,
        entity=entity,
        attribute=attribute.rpartition(".")[2] or None,
        count=count,
        evidence={"loaded": dict(fact.loaded), "alternatives": [other]},
    )

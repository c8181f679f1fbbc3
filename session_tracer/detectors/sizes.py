"""Finds sessions that hold, and statements that load, very many objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import largest
from session_tracer.detectors.said import Said
from session_tracer.detectors.wording import objects
from session_tracer.facts import FlushCompleted, ObjectsLoaded, TransactionEnded
from session_tracer.publisher.timeline import add_counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer.detectors.protocol import Wakes
    from session_tracer.facts import Counts, Fact
    from session_tracer.ledger.record import SessionRecord
    from session_tracer.model.findings import Finding

__all__ = ["LargeIdentityMap", "LargeResult"]


def _is_large(fact: Fact, record: SessionRecord) -> bool:
    del fact
    return record.identity_map_peak > record.settings.large_identity_map_objects


class LargeIdentityMap:
    """`large-identity-map`: a session holds more objects than one unit of work needs."""

    facts = (ObjectsLoaded, FlushCompleted, TransactionEnded)
    wakes: Final[Wakes] = {
        ObjectsLoaded: _is_large,
        FlushCompleted: _is_large,
        TransactionEnded: _is_large,
    }

    def memory(self) -> Said:
        """Whether it was said."""
        return Said()

    def judge(
        self,
        fact: ObjectsLoaded | FlushCompleted | TransactionEnded,
        record: SessionRecord,
        memory: Said,
    ) -> Iterable[Finding]:
        """One finding for a scope."""
        if _is_large(fact, record) and memory.first(record.id):
            return (_large_map(fact, record),)
        return ()


_MOST_ENTITIES: Final = 5


def _large_map(
    fact: ObjectsLoaded | FlushCompleted | TransactionEnded, record: SessionRecord
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
    if record.sizes:
        evidence["sizes_after_commits"] = list(record.sizes)
    over = f" over {commits} commit{'s' if commits > 1 else ''}" if commits else ""
    remedy, *others = _shrink(fact, record)
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
    fact: ObjectsLoaded | FlushCompleted | TransactionEnded, record: SessionRecord
) -> Iterator[str]:
    reading = _Reading(record)
    is_selected = reading.operation == "SELECT" and not reading.is_lazy
    if isinstance(fact, ObjectsLoaded) and not (fact.at_once or record.commits) and is_selected:
        yield _streamed(reading.selected(fact.loaded))
    yield "a session for each batch of objects"
    yield "session.expunge_all() after each batch"


def _is_large_result(fact: ObjectsLoaded, record: SessionRecord) -> bool:
    most = record.settings.large_result_objects
    return not fact.at_once and sum(fact.loaded.values()) > most


class LargeResult:
    """`large-result`: one statement loads very many objects at once."""

    facts = (ObjectsLoaded,)
    wakes: Final[Wakes] = {ObjectsLoaded: _is_large_result}

    def memory(self) -> None:
        """Each result speaks for itself."""

    def judge(self, fact: ObjectsLoaded, record: SessionRecord, memory: None) -> Iterable[Finding]:
        """One finding for each large result."""
        del memory
        if not _is_large_result(fact, record):
            return ()
        return (_large_result(fact, _Reading(record), record),)


class _Reading:
    """What the last statement read: objects of a mapped class, or an attribute of such."""

    __slots__ = ("_entity", "attribute", "is_lazy", "operation")

    def __init__(self, record: SessionRecord) -> None:
        statement, load = record.last_statement, record.last_load
        self._entity = record.last_select
        self.is_lazy = load is not None
        self.operation = "SELECT" if statement is None else statement.operation
        self.attribute = "" if statement is None else statement.eager
        if load is not None and load.kind == "relationship" and load.attribute:
            self.attribute = f"{load.entity}.{load.attribute}"

    def selected(self, loaded: Counts) -> str:
        """The mapped class to select: what was loaded may be its subclasses', or joined to it."""
        return self._entity or largest(loaded) or "..."


def _streamed(entity: str) -> str:
    return f"select({entity}).execution_options(yield_per=1000)"


def _large_result(fact: ObjectsLoaded, reading: _Reading, record: SessionRecord) -> Finding:
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
        count=sum(fact.loaded.values()),
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

"""Finds sessions that hold, and statements that load, very many objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import largest
from session_tracer.detectors.said import Said
from session_tracer.detectors.wording import objects
from session_tracer.facts import FlushCompleted, ObjectsLoaded, TransactionEnded
from session_tracer.model.counts import add_counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer.facts import Counts, Fact
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding

__all__ = ["LargeIdentityMap", "LargeResult"]


def _is_large(fact: Fact, report: Report) -> bool:
    del fact
    return report.ledger.identity_map_peak > report.settings.large_identity_map_objects


class LargeIdentityMap:
    """`large-identity-map`: a session holds more objects than one unit of work needs."""

    facts: Final = ()
    candidates = (ObjectsLoaded, FlushCompleted, TransactionEnded)

    def memory(self) -> Said:
        """Whether it was said."""
        return Said()

    def judge(
        self,
        fact: ObjectsLoaded | FlushCompleted | TransactionEnded,
        report: Report,
        memory: Said,
    ) -> Iterable[Finding]:
        """One finding for a scope."""
        if _is_large(fact, report) and memory.first(report.ledger.id):
            return (_large_map(fact, report),)
        return ()


_MOST_ENTITIES: Final = 5


def _large_map(fact: ObjectsLoaded | FlushCompleted | TransactionEnded, report: Report) -> Finding:
    size, commits = report.ledger.identity_map_peak, report.ledger.commits
    came: Counts = {}
    add_counts(came, report.ledger.loaded)
    add_counts(came, report.ledger.new)
    most = sorted(came, key=lambda entity: -came[entity])[:_MOST_ENTITIES]
    evidence: dict[str, Any] = {
        "age_ms": (fact.at - report.ledger.opened_at) / 1e6,
        "came": {entity: came[entity] for entity in most},
        "commits": commits,
    }
    if report.ledger.sizes:
        evidence["sizes_after_commits"] = list(report.ledger.sizes)
    over = f" over {commits} commit{'s' if commits > 1 else ''}" if commits else ""
    remedy, *others = _shrink(fact, report)
    evidence["alternatives"] = others
    return report.finding(
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
    fact: ObjectsLoaded | FlushCompleted | TransactionEnded, report: Report
) -> Iterator[str]:
    reading = _Reading(report)
    is_selected = reading.operation == "SELECT" and not reading.is_lazy
    if (
        isinstance(fact, ObjectsLoaded)
        and not (fact.at_once or report.ledger.commits)
        and is_selected
    ):
        yield _streamed(reading.selected(fact.loaded))
    yield "a session for each batch of objects"
    yield "session.expunge_all() after each batch"


def _is_large_result(fact: ObjectsLoaded, report: Report) -> bool:
    most = report.settings.large_result_objects
    return not fact.at_once and sum(fact.loaded.values()) > most


class LargeResult:
    """`large-result`: one statement loads very many objects at once."""

    facts: Final = ()
    candidates = (ObjectsLoaded,)

    def memory(self) -> None:
        """Each result speaks for itself."""

    def judge(self, fact: ObjectsLoaded, report: Report, memory: None) -> Iterable[Finding]:
        """One finding for each large result."""
        del memory
        if not _is_large_result(fact, report):
            return ()
        return (_large_result(fact, _Reading(report), report),)


class _Reading:
    """What the last statement read: objects of a mapped class, or an attribute of such."""

    __slots__ = ("_entity", "attribute", "is_lazy", "operation")

    def __init__(self, report: Report) -> None:
        ledger = report.ledger
        load = ledger.last_load
        self._entity = ledger.last_select
        self.is_lazy = load is not None
        self.operation = ledger.last_operation
        self.attribute = ledger.last_eager
        if load is not None and load.kind == "relationship" and load.attribute:
            self.attribute = f"{load.entity}.{load.attribute}"

    def selected(self, loaded: Counts) -> str:
        """The mapped class to select: what was loaded may be its subclasses', or joined to it."""
        return self._entity or largest(loaded) or "..."


def _streamed(entity: str) -> str:
    return f"select({entity}).execution_options(yield_per=1000)"


def _large_result(fact: ObjectsLoaded, reading: _Reading, report: Report) -> Finding:
    attribute = reading.attribute
    remedy, *others = _read_less(fact, reading)
    return report.finding(
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

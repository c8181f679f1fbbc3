"""Finds large identity maps and large results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import known, largest, ms
from session_tracer.detectors.memory import Once
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import objects
from session_tracer.facts import FlushCompleted, ObjectsLoaded, TransactionEnded
from session_tracer.model.counts import add_counts, total

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.facts import Counts
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding

_MOST_ENTITIES: Final = 5
_PORTION: Final = 1000


class LargeIdentityMap(BuiltIn):
    """`large-identity-map`: a session holds more objects than one unit of work needs."""

    candidates = (ObjectsLoaded, FlushCompleted, TransactionEnded)
    memory = Once

    def judge(
        self, fact: ObjectsLoaded | FlushCompleted | TransactionEnded, report: Report, memory: Once
    ) -> Iterator[Finding]:
        """Report a scope once."""
        ledger = report.ledger
        size, commits = ledger.identity_map_peak, ledger.commits
        if size <= report.settings.large_identity_map_objects or not memory.first(ledger.id):
            return
        came: Counts = {}
        add_counts(came, ledger.loaded)
        add_counts(came, ledger.new)
        most = sorted(came, key=lambda entity: -came[entity])[:_MOST_ENTITIES]
        over = f" over {commits} commit{'s' if commits > 1 else ''}" if commits else ""
        remedy, *others = _shrink(fact, report)
        yield report.finding(
            "large-identity-map",
            "warning",
            f"the identity map has grown to {size} objects{over}",
            remedy,
            fact.site,
            entity=largest(came),
            count=size,
            evidence=known(
                age_ms=ms(fact.at - ledger.opened_at),
                came={entity: came[entity] for entity in most},
                commits=commits,
                sizes_after_commits=list(ledger.sizes) or None,
                alternatives=others,
            ),
        )


def _shrink(
    fact: ObjectsLoaded | FlushCompleted | TransactionEnded, report: Report
) -> Iterator[str]:
    last = _LastStatement(report)
    if (
        isinstance(fact, ObjectsLoaded)
        and not (fact.at_once or report.ledger.commits or last.is_lazy)
        and last.operation == "SELECT"
    ):
        parent = last.attribute.partition(".")[0]
        if parent and report.ledger.loaded.get(parent, 0) < _PORTION:
            # With yield_per, all of these would be in one portion.
            yield f"select fewer {parent} objects at a time: each brings its {last.attribute}"
        else:
            yield _streamed(last.selected(fact.loaded))
    yield "use one session for each batch of objects"
    yield "call session.expunge_all() after each batch"


class LargeResult(BuiltIn):
    """`large-result`: one statement loads very many objects at once."""

    candidates = (ObjectsLoaded,)

    def judge(self, fact: ObjectsLoaded, report: Report, memory: None) -> Iterator[Finding]:
        """Report each large result."""
        del memory
        count = total(fact.loaded)
        if fact.at_once or count <= report.settings.large_result_objects:
            return
        last = _LastStatement(report)
        remedy, *others = _read_less(fact, last)
        subject = f" for {last.attribute}" if last.attribute else ""
        yield report.finding(
            "large-result",
            "info",
            f"one {last.operation}{subject} loaded {objects(fact.loaded)}",
            remedy,
            fact.site,
            entity=largest(fact.loaded),
            attribute=last.attribute.rpartition(".")[2] or None,
            count=count,
            evidence={"loaded": dict(fact.loaded), "alternatives": others},
        )


class _LastStatement:
    """What the last statement read: objects of a mapped class, or an attribute of objects."""

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
        """Return the selected class. Loaded objects may be of its subclasses, or joined to it."""
        return self._entity or largest(loaded) or "..."


def _streamed(entity: str) -> str:
    return f"select({entity}).execution_options(yield_per={_PORTION})"


def _read_less(fact: ObjectsLoaded, last: _LastStatement) -> Iterator[str]:
    if last.attribute:
        yield f"select only the {largest(fact.loaded)} objects that are needed"
        yield f'set lazy="write_only" for {last.attribute}, and run its select() with yield_per'
        return
    entity = last.selected(fact.loaded)
    if last.operation != "SELECT":
        operation = last.operation.lower()
        yield f"return columns instead of objects: {operation}({entity}).returning(...)"
        return
    yield _streamed(entity)
    yield f"select({entity}).limit(...)"
    if entity in fact.loaded and len(fact.loaded) > 1:
        yield "use selectinload() instead of joinedload(): yield_per refuses joined collections"

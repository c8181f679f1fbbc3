"""Finds what is read back from the database after the session itself had it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import largest, places
from session_tracer.detectors.recent import Recent
from session_tracer.detectors.said import Said
from session_tracer.detectors.wording import dotted_each, objects
from session_tracer.facts import (
    AttributeLoaded,
    FlushCompleted,
    StatementExecuted,
    TransactionEnded,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer.callsite import CallSite
    from session_tracer.facts import Counts
    from session_tracer.findings import Finding
    from session_tracer.record import SessionRecord

__all__ = ["RefreshAfterWrite", "ReloadAfterCommit"]


class ReloadAfterCommit:
    """`reload-after-commit`: objects that a commit expired are reloaded one by one."""

    facts = (AttributeLoaded, TransactionEnded)

    def memory(self) -> _Reloads:
        """What was reloaded since the last commit."""
        return _Reloads()

    def judge(
        self, fact: AttributeLoaded | TransactionEnded, record: SessionRecord, memory: _Reloads
    ) -> Iterator[Finding]:
        """One finding for each line that commits and each line that reloads."""
        if isinstance(fact, TransactionEnded):
            if fact.outcome == "committed" and not fact.nested:
                memory.committed()
            return
        if fact.expired_by != "commit" or fact.kind not in _EXPIRING:
            return
        enough = record.settings.reloads_after_commit
        if memory.reach(fact, enough) and memory.said.first((fact.expired_site, fact.site)):
            yield _reloaded(fact, memory, enough, record)


_EXPIRING: Final = frozenset({"expired", "relationship", "deferred"})


class _Reloads:
    """The objects reloaded since the last commit."""

    __slots__ = ("_parents", "attributes", "entities", "said")

    def __init__(self) -> None:
        self.said = Said()
        self.committed()

    def committed(self) -> None:
        """Begin anew."""
        self._parents: set[int] = set()
        self.entities: Counts = {}
        self.attributes: dict[str, None] = {}

    def reach(self, fact: AttributeLoaded, enough: int) -> bool:
        """Whether this object is the one that makes them enough."""
        if len(self._parents) >= enough or fact.parent in self._parents:
            return False
        self._parents.add(fact.parent)
        self.entities[fact.entity] = self.entities.get(fact.entity, 0) + 1
        if fact.attribute:
            self.attributes.update(dict.fromkeys(dotted_each(fact.entity, fact.attribute)))
        return len(self._parents) == enough


def _reloaded(
    fact: AttributeLoaded, reloads: _Reloads, count: int, record: SessionRecord
) -> Finding:
    evidence: dict[str, Any] = places(committed_at=fact.expired_site)
    evidence["reloaded"] = dict(reloads.entities)
    if reloads.attributes:
        evidence["attributes"] = list(reloads.attributes)
    evidence["alternatives"] = ["select them again after the commit, in one statement"]
    one = len(reloads.entities) == 1 and len(reloads.attributes) == 1
    maker = "async_sessionmaker" if record.is_async else "sessionmaker"
    return record.finding(
        "reload-after-commit",
        "warning",
        f"{objects(reloads.entities)} expired by a commit were reloaded so far, one SELECT each",
        f"{maker}(expire_on_commit=False)",
        fact.site,
        entity=largest(reloads.entities),
        attribute=fact.attribute if one else None,
        count=count,
        evidence=evidence,
    )


class RefreshAfterWrite:
    """`refresh-after-write`: `refresh()` reads back what was written just before."""

    facts = (AttributeLoaded, FlushCompleted, StatementExecuted, TransactionEnded)

    def memory(self) -> _Writing:
        """Whether something was just written, and how often each line refreshed after that."""
        return _Writing()

    def judge(
        self,
        fact: AttributeLoaded | FlushCompleted | StatementExecuted | TransactionEnded,
        record: SessionRecord,
        memory: _Writing,
    ) -> Iterable[Finding]:
        """One finding for each line."""
        match fact:
            case StatementExecuted():
                memory.executed(fact)
            case FlushCompleted():
                if fact.new or fact.dirty or fact.deleted:
                    memory.wrote(fact)
            case TransactionEnded():
                if not fact.nested:
                    memory.wrote(fact if fact.outcome == "committed" else None)
            case AttributeLoaded():
                if memory.refreshed(fact) == record.settings.refreshes_from_one_site:
                    return (_refreshed(fact, memory, record),)
        return ()


class _Writing:
    """What was written last, as long as nothing else has run since, and what was refreshed then."""

    __slots__ = ("_by_site", "_is_refresh", "_last", "write")

    def __init__(self) -> None:
        self.write: FlushCompleted | TransactionEnded | None = None
        self._is_refresh = False
        self._last: _Refreshes | None = None
        self._by_site: Recent[CallSite | None, _Refreshes] = Recent(_Refreshes)

    def wrote(self, fact: FlushCompleted | TransactionEnded | None) -> None:
        """Something was flushed or committed, or taken back."""
        self.write = fact
        self._is_refresh = False
        self._last = None

    def refreshed(self, fact: AttributeLoaded) -> int:
        """How often this line has refreshed directly after a write, 0 if it does not now."""
        self._last = None
        self._is_refresh = fact.kind == "refresh"
        if not self._is_refresh or self.write is None:
            return 0
        self._last = self._by_site.of(fact.site)
        self._last.count += 1
        return self._last.count

    def executed(self, fact: StatementExecuted) -> None:
        """Forget the write if the statement is for something else."""
        if self.write is None or fact.in_flush or fact.operation in _SAVEPOINT_OPERATIONS:
            return
        if fact.eager:
            # refresh(author, ["books"]) loads what no write brings back.
            if self._last is not None:
                self._last.count -= 1
                self._last = None
        elif self._is_refresh:
            self._is_refresh = False  # the statement of the refresh itself
        else:
            self.wrote(None)


_SAVEPOINT_OPERATIONS: Final = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK"})


class _Refreshes:
    """How often one line has refreshed what was just written."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _refreshed(fact: AttributeLoaded, memory: _Writing, record: SessionRecord) -> Finding:
    count = record.settings.refreshes_from_one_site
    if isinstance(memory.write, TransactionEnded):
        what, where = "commit", places(committed_at=memory.write.site)
        maker = "async_sessionmaker" if record.is_async else "sessionmaker"
        remedy = f"leave refresh() out, and use {maker}(expire_on_commit=False)"
    else:
        what, where = "flush", places(flushed_at=memory.write.site if memory.write else None)
        remedy = "leave refresh() out"
    return record.finding(
        "refresh-after-write",
        "info",
        f"{fact.entity} was refreshed directly after a {what} {count} times so far, "
        "one SELECT each",
        remedy,
        fact.site,
        entity=fact.entity or None,
        count=count,
        evidence={
            **where,
            "why": "an INSERT reads back what it generates, where the database has RETURNING",
            "alternatives": [
                '__mapper_args__ = {"eager_defaults": True}  # for what an UPDATE generates'
            ],
        },
    )

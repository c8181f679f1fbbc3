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
    from collections.abc import Iterable

    from session_tracer.detectors.protocol import Wakes
    from session_tracer.facts import Counts
    from session_tracer.ledger.record import SessionRecord
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = ["RefreshAfterWrite", "ReloadAfterCommit"]


def _expired_by_commit(fact: AttributeLoaded, record: SessionRecord) -> bool:
    del record
    return fact.expired_by == "commit" and fact.kind in _EXPIRING


class ReloadAfterCommit:
    """`reload-after-commit`: objects that a commit expired are reloaded one by one."""

    facts = (AttributeLoaded, TransactionEnded)
    wakes: Final[Wakes] = {AttributeLoaded: _expired_by_commit}

    def memory(self) -> _Reloads:
        """What was reloaded since the last commit."""
        return _Reloads()

    def judge(
        self, fact: AttributeLoaded | TransactionEnded, record: SessionRecord, memory: _Reloads
    ) -> Iterable[Finding]:
        """One finding for each line that commits and each line that reloads."""
        if isinstance(fact, TransactionEnded):
            if fact.outcome == "committed" and not fact.nested:
                memory.committed()
            return ()
        if not _expired_by_commit(fact, record):
            return ()
        enough = record.settings.reloads_after_commit
        if memory.reach(fact, enough) and memory.said.first((fact.expired_site, fact.site)):
            return (_reloaded(fact, memory, enough, record),)
        return ()


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


def _just_written(fact: AttributeLoaded, record: SessionRecord) -> bool:
    return fact.kind == "refresh" and record.last_write is not None


class RefreshAfterWrite:
    """`refresh-after-write`: `refresh()` reads back what was written just before."""

    facts = (AttributeLoaded, StatementExecuted)
    wakes: Final[Wakes] = {AttributeLoaded: _just_written}

    def memory(self) -> _Refreshing:
        """How often each line refreshed what was just written."""
        return _Refreshing()

    def judge(
        self, fact: AttributeLoaded | StatementExecuted, record: SessionRecord, memory: _Refreshing
    ) -> Iterable[Finding]:
        """One finding for each line."""
        if isinstance(fact, StatementExecuted):
            if memory.last is not None and fact.eager and not fact.in_flush:
                # refresh(author, ["books"]) loads what no write brings back.
                if record.last_write is memory.write:
                    memory.last.count -= 1
                memory.last = None
            return ()
        memory.last = None
        if not _just_written(fact, record):
            return ()
        memory.write = record.last_write
        refreshes = memory.last = memory.by_site.of(fact.site)
        refreshes.count += 1
        if refreshes.count != record.settings.refreshes_from_one_site:
            return ()
        return (_refreshed(fact, record),)


class _Refreshing:
    """How often each line has refreshed what was just written; which did last, and after what."""

    __slots__ = ("by_site", "last", "write")

    def __init__(self) -> None:
        self.by_site: Recent[CallSite | None, _Refreshes] = Recent(_Refreshes)
        self.last: _Refreshes | None = None
        self.write: FlushCompleted | TransactionEnded | None = None


class _Refreshes:
    """How often one line has refreshed what was just written."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _refreshed(fact: AttributeLoaded, record: SessionRecord) -> Finding:
    count = record.settings.refreshes_from_one_site
    write = record.last_write
    if isinstance(write, TransactionEnded):
        what, where = "commit", places(committed_at=write.site)
        maker = "async_sessionmaker" if record.is_async else "sessionmaker"
        remedy = f"leave refresh() out, and use {maker}(expire_on_commit=False)"
    else:
        what, where = "flush", places(flushed_at=None if write is None else write.site)
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

"""Finds what is read back from the database after the session itself had it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import largest, places
from session_tracer.detectors.recent import Recent
from session_tracer.detectors.said import Said
from session_tracer.detectors.wording import dotted_each, objects
from session_tracer.facts import AttributeLoaded, StatementExecuted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.ledger.loads import Loads
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = ["RefreshAfterWrite", "ReloadAfterCommit"]


def _expired_by_commit(fact: AttributeLoaded) -> bool:
    return fact.expired_by == "commit" and fact.kind in _EXPIRING


class ReloadAfterCommit:
    """`reload-after-commit`: objects that a commit expired are reloaded one by one."""

    facts: Final = ()
    candidates = (AttributeLoaded,)

    def memory(self) -> Said:
        """The lines for which it was reported."""
        return Said()

    def judge(self, fact: AttributeLoaded, report: Report, memory: Said) -> Iterable[Finding]:
        """One finding for each line that commits and each line that reloads."""
        loads, enough = report.ledger.loads, report.settings.reloads_after_commit
        if loads is None or loads.count != enough or not _expired_by_commit(fact):
            return ()
        if memory.first((fact.expired_site, fact.site)):
            return (_reloaded(fact, loads, enough, report),)
        return ()


_EXPIRING: Final = frozenset({"expired", "relationship", "deferred"})


def _reloaded(fact: AttributeLoaded, reloads: Loads, count: int, report: Report) -> Finding:
    evidence: dict[str, Any] = places(committed_at=fact.expired_site)
    evidence["reloaded"] = dict(reloads.entities)
    attributes = {name: None for one in reloads.attributes for name in dotted_each(*one)}
    if attributes:
        evidence["attributes"] = list(attributes)
    evidence["alternatives"] = ["select them again after the commit, in one statement"]
    one = len(reloads.entities) == 1 and len(attributes) == 1
    maker = "async_sessionmaker" if report.ledger.is_async else "sessionmaker"
    return report.finding(
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


def _just_written(fact: AttributeLoaded, report: Report) -> bool:
    return fact.kind == "refresh" and report.ledger.last_write is not None


class RefreshAfterWrite:
    """`refresh-after-write`: `refresh()` reads back what was written just before."""

    facts: Final = ()
    candidates = (AttributeLoaded, StatementExecuted)

    def memory(self) -> _Refreshing:
        """How often each line refreshed what was just written."""
        return _Refreshing()

    def judge(
        self, fact: AttributeLoaded | StatementExecuted, report: Report, memory: _Refreshing
    ) -> Iterable[Finding]:
        """One finding for each line."""
        if isinstance(fact, StatementExecuted):
            if memory.last is not None and fact.eager and not fact.in_flush:
                # refresh(author, ["books"]) loads what no write brings back.
                if report.ledger.last_write is memory.write:
                    memory.last.count -= 1
                memory.last = None
            return ()
        memory.last = None
        if not _just_written(fact, report):
            return ()
        memory.write = report.ledger.last_write
        refreshes = memory.last = memory.by_site.of(fact.site)
        refreshes.count += 1
        if refreshes.count != report.settings.refreshes_from_one_site:
            return ()
        return (_refreshed(fact, report),)


class _Refreshing:
    """How often each line has refreshed what was just written; which did last, and after what."""

    __slots__ = ("by_site", "last", "write")

    def __init__(self) -> None:
        self.by_site: Recent[CallSite | None, _Refreshes] = Recent(_Refreshes)
        self.last: _Refreshes | None = None
        self.write: tuple[str, CallSite | None] | None = None


class _Refreshes:
    """How often one line has refreshed what was just written."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _refreshed(fact: AttributeLoaded, report: Report) -> Finding:
    count = report.settings.refreshes_from_one_site
    write = report.ledger.last_write
    if write is not None and write[0] == "commit":
        what, where = "commit", places(committed_at=write[1])
        maker = "async_sessionmaker" if report.ledger.is_async else "sessionmaker"
        remedy = f"leave refresh() out, and use {maker}(expire_on_commit=False)"
    else:
        what, where = "flush", places(flushed_at=None if write is None else write[1])
        remedy = "leave refresh() out"
    return report.finding(
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

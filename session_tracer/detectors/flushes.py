"""Finds flushes that fail, that hold too much, and that nobody asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import added_up, largest, places, written
from session_tracer.detectors.recent import Recent
from session_tracer.detectors.wording import bulk_write, counted, lasted, objects
from session_tracer.facts import (
    FlushCompleted,
    FlushFailed,
    ImplicitLoadFailed,
    RollbackPending,
)
from session_tracer.model.counts import add_counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from session_tracer.facts import Counts, Trigger
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = [
    "AutoflushStorm",
    "FailedFlush",
    "LargeFlush",
    "PendingRollback",
    "UnchangedDirty",
]


class FailedFlush:
    """`failed-flush`: a flush raises."""

    facts: Final = ()
    candidates = (ImplicitLoadFailed, FlushFailed)

    def memory(self) -> _Refused:
        """The last load that could not be awaited."""
        return _Refused()

    def judge(
        self,
        fact: ImplicitLoadFailed | FlushFailed,
        report: Report,
        memory: _Refused,
    ) -> Iterator[Finding]:
        """One finding for each flush that failed.

        Where it is one that reading an attribute asked for, and that could not be awaited,
        `implicit-async-io` tells of it.
        """
        if isinstance(fact, ImplicitLoadFailed):
            memory.at = fact.at
            return
        began_at = fact.at - fact.duration
        refused_at = memory.at
        if fact.trigger == "autoflush" and refused_at is not None and refused_at >= began_at:
            return
        held = written(fact)
        contents = added_up(held)
        remedy, *others = _survive(fact, report)
        yield report.finding(
            "failed-flush",
            "warning",
            f"{_FLUSHES[fact.trigger]} of {counted(contents) or 'no objects'} "
            f"failed with {_name(fact.error)}",
            remedy,
            fact.site,
            entity=largest(contents),
            evidence={
                "error": fact.error,
                **({"constraint": fact.constraint} if fact.constraint else {}),
                "trigger": fact.trigger,
                **held,
                "duration_ms": fact.duration / 1e6,
                **({"alternatives": others} if others else {}),
            },
        )


class _Refused:
    """When a load was refused that could not be awaited."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at: int | None = None


_FLUSHES: Final[Mapping[Trigger, str]] = {
    "explicit": "a flush",
    "autoflush": "an autoflush",
    "commit": "a commit's flush",
    "savepoint": "a savepoint's flush",
}


def _survive(fact: FlushFailed, report: Report) -> Iterator[str]:
    awaited, block = ("await ", "async with") if report.ledger.is_async else ("", "with")
    error = _name(fact.error)
    if report.ledger.open_savepoints:
        yield f"catch {error} around the savepoint's block: no more than the savepoint is lost"
        return
    yield f"whoever catches {error} must call {awaited}session.rollback()"
    yield f"{block} session.begin_nested(): around what may fail"


def _name(error: str) -> str:
    return error.rpartition(".")[2] or "an error"


class PendingRollback:
    """`pending-rollback`: a session is used after a failed flush without `rollback()`."""

    facts: Final = ()
    candidates = (RollbackPending,)

    def memory(self) -> _Reported:
        """For which failure it was reported."""
        return _Reported()

    def judge(self, fact: RollbackPending, report: Report, memory: _Reported) -> Iterator[Finding]:
        """One finding for each failure, at the first use that SQLAlchemy refuses after it."""
        if memory.ended != report.ledger.ended:
            memory.ended = report.ledger.ended
            yield _pending(fact, report.ledger.failed_flush, report)


class _Reported:
    """How many transactions and savepoints had ended when it was reported last."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = -1


def _pending(fact: RollbackPending, failed: FlushFailed | None, report: Report) -> Finding:
    if failed is None:
        used = "the session was used again after its transaction had failed"
    else:
        since = lasted(fact.at - failed.at)
        used = f"the session was used again {since} after a flush failed with {_name(failed.error)}"
    evidence: dict[str, Any] = {}
    if failed is not None:
        evidence["error"] = failed.error
        evidence["failed_ms_ago"] = (fact.at - failed.at) / 1e6
        evidence |= places(failed_at=failed.site)
        if failed.constraint:
            evidence["constraint"] = failed.constraint
    evidence |= places(swallowed_at=fact.swallowed)
    return report.finding(
        "pending-rollback",
        "error",
        f"{used}, without a rollback()",
        _recover(fact, failed, report),
        fact.site,
        evidence=evidence,
    )


def _recover(fact: RollbackPending, failed: FlushFailed | None, report: Report) -> str:
    in_savepoint = report.ledger.open_savepoints > 0
    if fact.in_block:
        # Leaving the block with the error is what rolls it back.
        error = "the error" if failed is None else _name(failed.error)
        what = "savepoint" if in_savepoint else "transaction"
        return f"catch {error} around the {what}'s block, not in it"
    awaited = "await " if report.ledger.is_async else ""
    rollback = f"{awaited}{'savepoint' if in_savepoint else 'session'}.rollback()"
    if fact.swallowed is None:
        return f"{rollback} in the except block that caught the failure"
    return f"{rollback} at {fact.swallowed}"


class AutoflushStorm:
    """`autoflush-storm`: reading in a loop flushes what the loop has changed, each time."""

    facts: Final = ()
    candidates = (FlushCompleted,)

    def memory(self) -> Recent[CallSite | None, _Autoflushes]:
        """The autoflushes of each line in this transaction."""
        return Recent(_Autoflushes)

    def judge(
        self,
        fact: FlushCompleted,
        report: Report,
        memory: Recent[CallSite | None, _Autoflushes],
    ) -> Iterable[Finding]:
        """One finding for each line."""
        if fact.trigger != "autoflush" or not (held := written(fact)):
            return ()
        enough = report.settings.autoflushes_from_one_site
        autoflushes = memory.of(fact.site)
        autoflushes.add(held, report.ledger.transactions, enough)
        return (_storm(fact, autoflushes, report),) if autoflushes.count == enough else ()


class _Autoflushes:
    """What one line has had flushed in one transaction.

    What was reported once is not reported of the next transaction too.
    """

    __slots__ = ("_transaction", "count", "written")

    def __init__(self) -> None:
        self._transaction = 0
        self.count = 0
        self.written: dict[str, Counts] = {}

    def add(self, held: dict[str, Any], transaction: int, enough: int) -> None:
        """Take one more autoflush into account."""
        if transaction != self._transaction:
            self._transaction = transaction
            if self.count < enough:
                self.count = 0
                self.written = {}
        self.count += 1
        for kind, counts in held.items():
            add_counts(self.written.setdefault(kind, {}), counts)


def _storm(fact: FlushCompleted, autoflushes: _Autoflushes, report: Report) -> Finding:
    contents = added_up(autoflushes.written)
    return report.finding(
        "autoflush-storm",
        "warning",
        f"reading made {autoflushes.count} autoflushes in one transaction so far, "
        f"which wrote {counted(contents)}",
        "read what the loop needs before the loop",
        fact.site,
        entity=largest(contents),
        count=autoflushes.count,
        evidence={
            **{kind: dict(counts) for kind, counts in autoflushes.written.items()},
            **places(began_at=report.ledger.transaction_began_site),
            "alternatives": ["with session.no_autoflush:"],
        },
    )


def _is_large(fact: FlushCompleted, report: Report) -> bool:
    return _size(fact) > report.settings.large_flush_objects


class LargeFlush:
    """`large-flush`: one flush holds too many objects to be written one after the other."""

    facts: Final = ()
    candidates = (FlushCompleted,)

    def memory(self) -> None:
        """Each flush speaks for itself."""

    def judge(self, fact: FlushCompleted, report: Report, memory: None) -> Iterable[Finding]:
        """One finding for each large flush."""
        del memory
        return (_large(fact, report),) if _is_large(fact, report) else ()


def _large(fact: FlushCompleted, report: Report) -> Finding:
    held = written(fact)
    kind = max(held, key=lambda kind: _sum(held[kind]))
    entity = largest(held[kind])
    return report.finding(
        "large-flush",
        "warning",
        f"one flush held {objects(added_up(held))}",
        bulk_write(_VERBS[kind], entity or "", is_async=report.ledger.is_async),
        fact.site,
        entity=entity,
        count=_size(fact),
        evidence={
            "trigger": fact.trigger,
            **held,
            "duration_ms": fact.duration / 1e6,
            "alternatives": ["a flush for each batch of them"],
        },
    )


_VERBS: Final[Mapping[str, str]] = {"new": "INSERT", "dirty": "UPDATE", "deleted": "DELETE"}


def _size(fact: FlushCompleted) -> int:
    size = 0
    for counts in (fact.new, fact.dirty, fact.deleted):
        if counts:
            size += sum(counts.values())
    return size


def _sum(counts: Counts) -> int:
    return sum(counts.values())


class UnchangedDirty:
    """`unchanged-dirty`: objects are in `session.dirty` and have no net change."""

    facts: Final = ()
    candidates = (FlushCompleted,)

    def memory(self) -> None:
        """Each flush speaks for itself."""

    def judge(self, fact: FlushCompleted, report: Report, memory: None) -> Iterator[Finding]:
        """One finding for each flush with so many."""
        del memory
        count = _sum(fact.unchanged)
        if not count or count < report.settings.unchanged_dirty_objects:
            return
        names = ", ".join(fact.unchanged_attributes)
        to = f": {names} set to what it was" if names else ""
        yield report.finding(
            "unchanged-dirty",
            "info",
            f"{objects(fact.unchanged)} in session.dirty had no net change{to}",
            "assign only what differs: the flush compares each such object, and writes nothing",
            fact.site,
            entity=largest(fact.unchanged),
            attribute=names.rpartition(".")[2] if len(fact.unchanged_attributes) == 1 else None,
            count=count,
            evidence={
                "unchanged": dict(fact.unchanged),
                "unchanged_attributes": list(fact.unchanged_attributes),
                "trigger": fact.trigger,
            },
        )

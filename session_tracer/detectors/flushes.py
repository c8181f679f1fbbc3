"""Finds flushes that fail, are too large or run too often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import (
    added_up,
    is_reported_at,
    known,
    largest,
    looping,
    ms,
    work_site,
    written,
)
from session_tracer.detectors.flush_remedies import remedies, what_failed
from session_tracer.detectors.memory import Once, Recent
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import (
    awaited,
    bulk_write,
    counted,
    duration,
    elsewhere,
    listed,
    objects,
)
from session_tracer.facts import (
    FlushCompleted,
    FlushFailureDecided,
    ImplicitLoadFailed,
    RollbackPending,
)
from session_tracer.model.counts import add_counts, total
from session_tracer.model.totals import Tally, Total
from session_tracer.where.autoflush import asking_now

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    from session_tracer.facts import Counts, FlushFailed, Trigger
    from session_tracer.ledger.loads import Passed
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.autoflush import Asking
    from session_tracer.where.callsite import CallSite


class _Failed:
    """The failed flushes of each line, and when a load was last refused under asyncio."""

    def __init__(self) -> None:
        self.refused_at: int | None = None
        self.by_site: Recent[CallSite | None, Tally] = Recent(Tally)


_FLUSHES: Final[Mapping[Trigger, str]] = {
    "explicit": "a flush",
    "autoflush": "an autoflush",
    "commit": "a commit's flush",
    "savepoint": "a savepoint's flush",
}


class FailedFlush(BuiltIn):
    """`failed-flush`: a flush raises, and the application does not handle that, or too often."""

    candidates = (ImplicitLoadFailed, FlushFailureDecided)
    memory = _Failed

    def judge(
        self, fact: ImplicitLoadFailed | FlushFailureDecided, report: Report, memory: _Failed
    ) -> Iterator[Finding]:
        """Report each failed flush that is not handled, and one that fails again and again.

        An autoflush for an attribute that could not be awaited is reported as `implicit-async-io`.
        """
        if isinstance(fact, ImplicitLoadFailed):
            memory.refused_at = fact.at
            return
        memory.by_site.of(fact.failed.site).add(fact.failed.duration)
        is_enough = fact.repeats == report.settings.failed_flushes_from_one_site
        if not (fact.unhandled or is_enough):
            return
        yield from self._failed(fact, report, memory)

    def _failed(
        self, decided: FlushFailureDecided, report: Report, memory: _Failed
    ) -> Iterator[Finding]:
        fact = decided.failed
        refused_at = memory.refused_at
        is_refused = refused_at is not None and refused_at >= fact.at - fact.duration
        if fact.problem == "aborted" or (fact.trigger == "autoflush" and is_refused):
            return  # `pending-rollback` is reported, or `implicit-async-io`
        if fact.operation and decided.unhandled != "left":
            return  # `pending-rollback` is reported, if anything is
        if fact.error == _NO_CONNECTION:
            return  # `pool-exhausted` is reported
        contents = added_up(written(fact))
        error = _class_name(fact.error)
        is_handled = not decided.unhandled
        remedy, *others = remedies(decided, error, report)
        often = f", for the {decided.repeats}th time in a minute" if is_handled else ""
        yield report.finding(
            "failed-flush",
            "warning",
            f"{fact.operation or _flush(fact, contents)} {what_failed(fact, error, report)}{often}",
            remedy,
            fact.listener or fact.site,
            entity=largest(contents),
            total=Total("flush", memory.by_site.of(fact.site)) if is_handled else None,
            evidence=known(
                error_type=None if error == "an error" else fact.error,
                error_code=fact.code or None,
                constraint=fact.constraint or None,
                column=fact.column or None,
                relationship=fact.relationship or None,
                trigger=None if fact.operation else fact.trigger,
                flushed_at=None if fact.listener is None else fact.site,
                added_at=fact.added_site,
                loaded_at=fact.existing_site,
                **written(fact),
                duration_ms=ms(fact.duration),
                other_session_id=fact.holder or None,
                other_opened_at=fact.holder_site,
                alternatives=others or None,
            ),
        )


def _flush(fact: FlushFailed, contents: Counts) -> str:
    return f"{_FLUSHES[fact.trigger]} of {counted(contents) or 'no objects'}"


def _class_name(error: str) -> str:
    name = error.rpartition(".")[2]
    return "an error" if name in _UNKNOWN else name


# The flush was the first to need a connection, and the pool had none.
_NO_CONNECTION: Final = "sqlalchemy.exc.TimeoutError"
# OpenTelemetry's word for an error without a type is not for people.
_UNKNOWN: Final = frozenset({"", "_OTHER"})


class _Reported:
    """How many transactions and savepoints had ended when a failure was last reported."""

    ended = -1


class PendingRollback(BuiltIn):
    """`pending-rollback`: a session is used after a failure without `rollback()`."""

    candidates = (RollbackPending,)
    memory = _Reported

    def judge(self, fact: RollbackPending, report: Report, memory: _Reported) -> Iterator[Finding]:
        """Report each failure once, at the first use of the session that SQLAlchemy refuses."""
        if memory.ended == report.ledger.ended:
            return
        memory.ended = report.ledger.ended
        failures = report.ledger.failures
        failed = None if failures is None else failures.first
        if failed is None:
            error, what, evidence = "the error", "after its transaction had failed", {}
        else:
            error = _class_name(failed.error)
            what = f"{duration(fact.at - failed.at)} after {failed.what} failed with {error}"
            evidence = known(
                error_type=failed.error,
                failed_ago_ms=ms(fact.at - failed.at),
                failed_at=failed.site,
                error_code=failed.code or None,
                constraint=failed.constraint or None,
            )
        yield report.finding(
            "pending-rollback",
            "error",
            f"the session was used again {what}, without a rollback()",
            _recover(fact, error, report),
            fact.site,
            evidence=evidence | known(swallowed_at=fact.swallowed),
        )


def _recover(fact: RollbackPending, error: str, report: Report) -> str:
    in_savepoint = report.ledger.open_savepoints > 0
    if fact.in_block:
        # The block rolls back when the error leaves it.
        what = "savepoint" if in_savepoint else "transaction"
        return f"catch {error} outside of the {what}'s block, not inside it"
    rollback = f"{awaited(report)}{'savepoint' if in_savepoint else 'session'}.rollback()"
    if fact.swallowed is None:
        return f"{rollback} in the except block that caught the failure"
    return f"{rollback} at {fact.swallowed}"


class _Autoflushes:
    """The autoflushes from one line in one transaction.

    A line that was reported is not counted again in the next transaction.
    """

    def __init__(self) -> None:
        self._transaction = 0
        self.tally = Tally()
        self.written: dict[str, Counts] = {}
        self.passed: Passed = {}

    @property
    def count(self) -> int:
        return self.tally.count

    def add(
        self, contents: dict[str, Counts], duration: int, transaction: int, enough: int
    ) -> None:
        if transaction != self._transaction:
            self._transaction = transaction
            if self.count < enough:
                self.tally = Tally()
                self.written = {}
        self.tally.add(duration)
        for kind, counts in contents.items():
            add_counts(self.written.setdefault(kind, {}), counts)


class AutoflushStorm(BuiltIn):
    """`autoflush-storm`: each statement of a loop flushes what the loop has changed."""

    candidates = (FlushCompleted,)
    counts_repeats = True

    def memory(self) -> Recent[CallSite | None, _Autoflushes]:
        """Return the autoflushes of each line."""
        return Recent(_Autoflushes)

    def judge(
        self, fact: FlushCompleted, report: Report, memory: Recent[CallSite | None, _Autoflushes]
    ) -> Iterator[Finding]:
        """Report each line once."""
        if fact.trigger != "autoflush" or not (contents := written(fact)):
            return
        ledger, enough = report.ledger, report.settings.autoflushes_from_one_site
        autoflushes = memory.of(fact.site)
        autoflushes.add(contents, fact.duration, ledger.transactions, enough)
        if autoflushes.count == enough - 1:
            autoflushes.passed = ledger.locator.passed()
        if autoflushes.count != enough:
            return
        # What the loop reads one by one is reported as that: where it is read once nothing flushes.
        # But merge() flushes also what was read before.
        is_merge = ledger.locator.called_by(_MERGING)
        if not is_merge and any(is_reported_at(id_, fact.site, report) for id_ in _READING):
            return
        objects_by_class = added_up(autoflushes.written)
        loop = looping(autoflushes.passed, report)
        new, deleted = (autoflushes.written.get(kind, {}) for kind in ("new", "deleted"))
        asking = asking_now(objects_by_class, {*new, *deleted})
        what = f"{asking.verb}s" if asking.verb else "reads"
        remedy, *others = _without_flushes(asking, new, is_merge, elsewhere(loop, fact.site))
        yield report.finding(
            "autoflush-storm",
            "warning",
            f"{what} at one line caused at least {enough} autoflushes in one transaction "
            f"({counted(objects_by_class)})",
            remedy,
            fact.site,
            entity=largest(objects_by_class),
            count=enough,
            total=Total("autoflush", autoflushes.tally),
            evidence=known(
                loop=loop,
                **{kind: dict(counts) for kind, counts in autoflushes.written.items()},
                began_at=ledger.transaction_began_site,
                alternatives=others or None,
            ),
        )


_MERGING: Final = frozenset({"merge"})
# Findings whose remedies read once what a loop reads in each turn.
_READING: Final = ("get-in-loop", "n-plus-one", "query-in-loop", "repeated-select")


# What the loop is to collect, by the verb of the statement that it executes.
_COLLECTED: Final = {"INSERT": "rows", "UPDATE": "new values", "DELETE": "keys"}


def _without_flushes(asking: Asking, new: Counts, is_merge: bool, place: str) -> Iterator[str]:
    """Yield the remedies; merge() flushes also where it finds its object in the session.

    What asks for the rows that are flushed must not run without them.
    """
    block = "with session.no_autoflush:"
    if is_merge:
        yield f"{block}  # around the loop{place}"
        return
    if asking.verb:
        what = f"collect the {_COLLECTED[asking.verb]} and execute one {asking.verb} for all of"
        yield f"{what} them after the loop{place}"
    elif not asking.needs:
        yield f"load what the loop needs before the loop{place}"
    elif asking.entity in asking.needs and asking.entity in new:
        one = asking.entity
        yield (
            f"run one SELECT of {one} with .in_(...) before the loop{place}, "
            f"and add each new {one} to its result"
        )
    else:
        yield (
            f"load what the loop needs before the loop{place}, "
            f"and update it with each {listed(list(asking.needs))} that the loop writes"
        )
    if asking.needs == ():
        yield block


_OPERATIONS: Final[Mapping[str, str]] = {"new": "INSERT", "dirty": "UPDATE", "deleted": "DELETE"}


class LargeFlush(BuiltIn):
    """`large-flush`: one flush contains too many objects."""

    candidates = (FlushCompleted,)

    def judge(self, fact: FlushCompleted, report: Report, memory: None) -> Iterator[Finding]:
        """Report each large flush."""
        del memory
        contents = written(fact)
        size = sum(map(total, contents.values()))
        if size <= report.settings.large_flush_objects:
            return
        kind = max(contents, key=lambda kind: total(contents[kind]))
        entity = largest(contents[kind])
        site, wrapper = work_site(fact.site, report)
        yield report.finding(
            "large-flush",
            "warning",
            f"one flush contained {objects(added_up(contents))}",
            bulk_write(_OPERATIONS[kind], entity or "", report),
            site,
            entity=entity,
            count=size,
            evidence=known(
                trigger=fact.trigger,
                flushed_at=wrapper,
                **contents,
                duration_ms=ms(fact.duration),
                alternatives=["flush after each batch of objects"],
            ),
        )


class UnchangedDirty(BuiltIn):
    """`unchanged-dirty`: objects are in `session.dirty` and have no net change."""

    candidates = (FlushCompleted,)
    memory = Once

    def judge(self, fact: FlushCompleted, report: Report, memory: Once) -> Iterator[Finding]:
        """Report flushes with too many of these objects, but each attribute once.

        Whichever lines flush, it was set at another line.
        """
        count = total(fact.unchanged)
        if not count or count < report.settings.unchanged_dirty_objects:
            return
        attributes = list(fact.unchanged_attributes)
        causes: Sequence[Hashable] = attributes or [(fact.site, *fact.unchanged)]
        if not list(filter(memory.first, causes)):
            return
        site, wrapper = work_site(fact.site, report)
        what = f": {', '.join(attributes)} set to the same value" if attributes else ""
        yield report.finding(
            "unchanged-dirty",
            "info",
            f"{objects(fact.unchanged)} in session.dirty had no net change{what}",
            "assign only values that differ: the flush compares each of these objects and writes "
            "nothing",
            site,
            entity=largest(fact.unchanged),
            attribute=attributes[0].rpartition(".")[2] if len(attributes) == 1 else None,
            count=count,
            evidence={
                "unchanged": dict(fact.unchanged),
                "unchanged_attributes": attributes,
                "trigger": fact.trigger,
                **known(flushed_at=wrapper),
            },
        )

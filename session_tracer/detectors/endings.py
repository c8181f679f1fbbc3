"""Finds sessions that are not closed, that lose changes, or that are used after `close()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from session_tracer.detectors.evidence import known, life_site, ms
from session_tracer.detectors.memory import Once
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import (
    NEVER_CLOSED,
    awaited,
    closing,
    duration,
    listed,
    own_session,
    removal,
    session,
    variable,
    with_block,
)
from session_tracer.facts import (
    CopyChanged,
    SessionClosed,
    SessionOpened,
    TransactionBegan,
    TransactionCancelled,
    TransactionEnded,
)
from session_tracer.where.blocks import is_end_of_block, is_inside_block
from session_tracer.where.callsite import registry_at_work
from session_tracer.where.frameworks import is_test_teardown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.facts import Counts
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

ByState: TypeAlias = "dict[str, Counts]"


class _LastTransaction:
    """How the last transaction ended, and the scope's last activity before that."""

    cancelled = False
    abandoned = False
    last_at = 0
    last_site: CallSite | None = None
    # What had closed the session before this scope began.
    closed_site: CallSite | None = None


class AbandonedSession(BuiltIn):
    """`abandoned-session`: the garbage collector, or the process's end, takes an open scope."""

    candidates = (SessionOpened, TransactionCancelled, TransactionEnded, SessionClosed)
    memory = _LastTransaction

    def judge(
        self,
        fact: SessionOpened | TransactionCancelled | TransactionEnded | SessionClosed,
        report: Report,
        memory: _LastTransaction,
    ) -> Iterator[Finding]:
        """Report a scope whose transaction was open when it was taken.

        A cancelled task is reported as `cancelled-transaction`. A session that is joined to an
        outer transaction loses nothing: the outer transaction decides.
        """
        ledger = report.ledger
        if isinstance(fact, SessionOpened):
            memory.closed_site = fact.last_closed_site
        elif isinstance(fact, TransactionCancelled):
            memory.cancelled = True
        elif isinstance(fact, SessionClosed):
            is_excused = memory.cancelled or fact.joined
            if memory.abandoned and fact.ending in NEVER_CLOSED and not is_excused:
                yield _abandoned(fact, report, memory)
        elif not fact.nested:
            memory.abandoned = fact.outcome == "abandoned"
            memory.last_at, memory.last_site = ledger.last_activity_at, ledger.last_activity_site


def _abandoned(fact: SessionClosed, report: Report, memory: _LastTransaction) -> Finding:
    lost, held = _Lost(fact, report), report.ledger.last_held
    if lost:
        harm = f"and lost {lost}"
    elif held:
        harm = f"and held a connection for {duration(held)}"
    else:
        harm = "with an open transaction"
    again = "" if memory.closed_site is None else ", used again after it was closed,"
    remedy = closing(report)
    if again and not removal(report):
        remedy = with_block(report, "around all uses of the session")
    return report.finding(
        "abandoned-session",
        "error",
        f"{session(report)}{again} {NEVER_CLOSED[fact.ending]}, {harm}",
        remedy,
        life_site(report),
        entity=lost.entity(),
        count=max(lost.count(), 1),
        evidence=known(
            ending=fact.ending,
            age_ms=ms(fact.at - report.ledger.opened_at),
            held_ms=ms(held) if held else None,
            closed_at=memory.closed_site,
            **lost.evidence(),
            last_activity_at=memory.last_site,
            last_activity_ago_ms=ms(fact.at - memory.last_at),
        ),
    )


class DiscardedChanges(BuiltIn):
    """`discarded-changes`: a scope is closed with changes neither committed nor rolled back."""

    candidates = (SessionClosed, CopyChanged)
    memory = Once

    def judge(
        self, fact: SessionClosed | CopyChanged, report: Report, memory: Once
    ) -> Iterator[Finding]:
        """Report a scope that loses changes, and once for each line what `merge()` does not write.

        An exception that propagates is a reason to discard. A session that is joined to an outer
        transaction loses nothing: the outer transaction decides. A test's fixture discards on
        purpose.
        """
        if isinstance(fact, CopyChanged):
            if memory.first((fact.site, fact.entity)):
                yield _copy_changed(fact, report)
            return
        is_excused = fact.leaving or fact.error or fact.joined
        if fact.ending not in ("close", "reset") or is_excused:
            return
        lost, ledger = _Lost(fact, report), report.ledger
        if not lost or is_test_teardown():
            return
        work = lost.last_at or ledger.left_site
        is_own = _is_own(fact.site, work, report) and not fact.changed_by_another
        site = fact.site if is_own or work is None else work
        when = "before the session is closed" if is_own else "after the last change"
        remedy = f"{awaited(report)}session.commit()  # {when}"
        unsaved, names = lost.unsaved(), fact.modified_attributes
        if unsaved and not (ledger.new or ledger.dirty or ledger.deleted or ledger.writes):
            remedy += ", if the change is to be saved"
        if fact.changed_by_another:
            # A commit there would be that of the others.
            remedy = own_session(report)
        yield report.finding(
            "discarded-changes",
            "warning",
            f"{fact.ending}() discarded {lost}{f': {listed(list(names))}' if unsaved else ''}",
            remedy,
            site,
            entity=lost.entity(),
            count=lost.count(),
            evidence=known(
                attributes=list(names) or None,
                **lost.evidence(),
                last_activity_at=None
                if ledger.left_site in (site, fact.site, lost.flushed_at, lost.unflushed_at)
                else ledger.left_site,
                closed_at=fact.site if site != fact.site else None,
                alternatives=unsaved,
            ),
        )


def _copy_changed(fact: CopyChanged, report: Report) -> Finding:
    one, names = variable(fact.entity), [f"{fact.entity}.{key}" for key in fact.attributes]
    return report.finding(
        "discarded-changes",
        "warning",
        f"the change of {', '.join(names)} was not written: merge() had copied the "
        f"{fact.entity} object before, and the session writes its own",
        f"{one} = {awaited(report)}session.merge({one}), and change what it returns",
        fact.site,
        entity=fact.entity,
        attribute=fact.attributes[0] if len(fact.attributes) == 1 else None,
        evidence=known(committed_at=fact.committed_site),
    )


def _is_own(closed: CallSite | None, work: CallSite | None, report: Report) -> bool:
    """Whether the code that works with the session closes it itself.

    A dependency's generator, a decorator or a framework closes the sessions of many functions at
    one line. Where a framework does, the last line known of the session stands for its own; a
    `with` statement that opened the session is its own, also where a library's context manager
    opens and closes it, or where it ended a savepoint in it as well.
    """
    ledger = report.ledger
    if closed is None or ledger.is_lent:
        return False
    is_openers = closed == ledger.opened_site
    if closed.distance:
        return is_openers and closed.distance == 1 and is_end_of_block(closed)
    return is_openers or closed not in (work, ledger.left_site)


class _Lost:
    """The changes of a scope that were not flushed, or flushed and not committed."""

    def __init__(self, fact: SessionClosed, report: Report) -> None:
        ledger = report.ledger
        parts = (("added", fact.added), ("modified", fact.modified), ("removed", fact.removed))
        self.unflushed: ByState = {state: dict(counts) for state, counts in parts if counts}
        self.unflushed_at = fact.added_site if fact.added else None
        self.flushed: ByState = ledger.uncommitted()
        self.flushed_at = ledger.flushed_site if self.flushed else None
        # Nothing shows where an object was modified.
        is_known = fact.added or not self.unflushed
        self.last_at = (self.unflushed_at or self.flushed_at) if is_known else None

    def __bool__(self) -> bool:
        return bool(self.unflushed or self.flushed)

    def unsaved(self) -> list[str] | None:
        """Return what to write where objects were only modified, perhaps for an answer alone."""
        if self.flushed or set(self.unflushed) != {"modified"}:
            return None
        entity = self.entity()
        one = "..." if entity is None else variable(entity)
        return [f"session.expunge({one}) before the change, if it is not to be saved"]

    def __str__(self) -> str:
        """`2 Stock modified (never flushed) and 3 Order added (flushed, never committed)`."""
        parts = []
        if self.unflushed:
            parts.append(f"{_changes(self.unflushed)} (never flushed)")
        if self.flushed:
            parts.append(f"{_changes(self.flushed)} (flushed, never committed)")
        return " and ".join(parts)

    def _counts(self) -> list[Counts]:
        return [*self.unflushed.values(), *self.flushed.values()]

    def entity(self) -> str | None:
        """Return the mapped class of all changes, if it is one."""
        entities = {entity for counts in self._counts() for entity in counts}
        return entities.pop() if len(entities) == 1 else None

    def count(self) -> int:
        """Return the number of changes. An object that was flushed twice counts twice."""
        return sum(sum(counts.values()) for counts in self._counts())

    def evidence(self) -> dict[str, Any]:
        """Return the counts by state, and the lines of the last changes."""
        sites = known(added_at=self.unflushed_at, flushed_at=self.flushed_at)
        return {**self.unflushed, **self.flushed, **sites}


_DONE: Final = {
    "added": "added",
    "modified": "modified",
    "removed": "deleted",
    "flushed_new": "added",
    "flushed_dirty": "modified",
    "flushed_deleted": "deleted",
}
# Number of mapped classes that are named, the most frequent ones. The others are added up.
_MOST_NAMED: Final = 3


def _changes(by_state: ByState) -> str:
    return ", ".join(f"{_number(counts)} {_DONE[state]}" for state, counts in by_state.items())


def _number(counts: Counts) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    named = [f"{count} {entity}" for entity, count in ordered[:_MOST_NAMED]]
    others = sum(count for _, count in ordered[_MOST_NAMED:])
    *first, last = [*named, f"{others} others"] if others else named
    return f"{', '.join(first)} and {last}" if first else last


class _Reopening:
    """The reopening of a closed session, until a transaction begins."""

    fact: SessionOpened | None = None


class ReusedAfterClose(BuiltIn):
    """`reused-after-close`: a session that a block or generator has closed is used outside of one.

    The thread or task that closed it uses it again, and nothing is left to close it. A session that
    is closed explicitly and then used for another unit of work, or in another block, is a pattern,
    and so is one that a `scoped_session` gives out again.
    """

    candidates = (SessionOpened, TransactionBegan)
    memory = _Reopening

    def judge(
        self, fact: SessionOpened | TransactionBegan, report: Report, memory: _Reopening
    ) -> Iterator[Finding]:
        """Report a scope when its first transaction begins."""
        if isinstance(fact, SessionOpened):
            if fact.reopened and fact.last_ending == "close" and fact.same_owner:
                memory.fact = fact
            return
        opened, memory.fact = memory.fact, None
        if opened is None or fact.nested or not _is_left_open(opened, report):
            return
        dropped = opened.last_dropped_site
        end = "its generator was dropped" if dropped else "the end of its block"
        yield report.finding(
            "reused-after-close",
            "info",
            f"this session was used again after {end}, which had closed it",
            with_block(report, "around all uses of the session"),
            fact.site or opened.site,
            evidence=known(closed_at=opened.last_closed_site, dropped_at=dropped),
        )


def _is_left_open(opened: SessionOpened, report: Report) -> bool:
    closed = opened.last_closed_site
    return (
        closed is not None
        and is_end_of_block(closed)
        and registry_at_work() is None  # its `remove()` closes it
        and not is_inside_block(report.tracer.locator.lines(), closed)
    )

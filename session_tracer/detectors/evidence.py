"""Evidence that several findings have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.model.counts import add_counts
from session_tracer.where.callsite import CallSite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_tracer.facts import Counts, FlushCompleted, FlushFailed
    from session_tracer.ledger.loads import Passed
    from session_tracer.ledger.report import Report
    from session_tracer.model.live_session import LiveSession

__all__ = [
    "added_up",
    "is_reported_at",
    "known",
    "largest",
    "life_site",
    "live_evidence",
    "looping",
    "ms",
    "work_site",
    "written",
]

_MOST_FRAMES: Final = 5


def known(**values: Any) -> dict[str, Any]:
    """Return the values that are not None, as evidence. A call site becomes its text."""
    return {
        key: str(value) if isinstance(value, CallSite) else value
        for key, value in values.items()
        if value is not None
    }


def is_reported_at(id_: str, site: CallSite | None, report: Report) -> bool:
    """Return whether a finding of that id was reported of this scope at the line."""
    return any(finding.id == id_ and finding.site == site for finding in report.findings)


def looping(passed: Passed, report: Report) -> CallSite | None:
    """Return the application's line that loops, because the same happens again.

    `passed` is what `locator.passed()` returned as it happened before.
    """
    report.passed = passed
    ledger = report.ledger
    report.loop = ledger.locator.loop(passed, ledger.opened_site) if passed else None
    if report.loop is None and not ledger.opened_by.is_current():
        report.loop = ledger.waiting_loop
    return report.loop


def ms(nanoseconds: float) -> float:
    """Return milliseconds, rounded as in all evidence."""
    return round(nanoseconds / 1e6, 3)


def written(fact: FlushCompleted | FlushFailed) -> dict[str, Counts]:
    """Return the objects of a flush by entity, in the evidence's keys."""
    parts = (("new", fact.new), ("dirty", fact.dirty), ("deleted", fact.deleted))
    return {key: dict(counts) for key, counts in parts if counts}


def life_site(report: Report) -> CallSite | None:
    """Return the line to look at first if a finding is about the session's life.

    It is the line that opened the session, unless that is in a dependency, a plugin or a wrapper,
    which may open every session of the application: then it is the line that first used it.
    """
    ledger = report.ledger
    return ledger.first_used_site if ledger.is_lent else ledger.opened_site


def work_site(site: CallSite | None, report: Report) -> tuple[CallSite | None, CallSite | None]:
    """Return the line to look at first if a session does its work at `site`.

    Where a wrapper ends the blocks of all its callers there, such as a context manager that
    commits, it is the line of the one that this session's work belongs to, and the other line that
    is returned is the wrapper's.
    """
    opened = report.ledger.opened_site
    if site is None or opened is None:
        return site, None
    is_openers = (site.file, site.function) == (opened.file, opened.function)
    ends_block = site.function.endswith(("__exit__", "__aexit__"))
    if ends_block or (is_openers and report.ledger.is_lent):
        first = life_site(report) or site
        return first, site if first != site else None
    return site, None


def added_up(contents: Mapping[str, Counts]) -> Counts:
    """Return the sum of new, dirty and deleted objects, by entity."""
    objects: Counts = {}
    for counts in contents.values():
        add_counts(objects, counts)
    return objects


def largest(counts: Counts) -> str | None:
    """Return the most frequent entity; the first by name if there are several."""
    return min(counts, key=lambda entity: (-counts[entity], entity), default=None)


def live_evidence(live: LiveSession) -> dict[str, Any]:
    """Return an open session's owner, what the owner is doing, and what the session holds."""
    is_open = live.transaction != "none"
    evidence = known(
        owner=live.owner,
        owner_state=live.owner_state or None,
        doing=[str(site) for site in live.owner_stack[:_MOST_FRAMES]],
        transaction=live.transaction,
        statements=live.statements,
        sql_ms=ms(live.sql_seconds * 1e9),
        transaction_ms=ms(live.transaction_seconds * 1e9) if is_open else None,
        held_ms=ms(live.held_seconds * 1e9) if live.holds_connection else None,
        process_id=live.process_id,
        pending=dict(live.pending_entities) or None,
        modified_objects=live.objects.get("modified") or None,
        deleted_objects=live.objects.get("deleted") or None,
    )
    if live.last_statement_seconds:
        evidence |= known(
            last_statement_at=live.last_statement_site,
            last_statement_ago_ms=ms(live.last_statement_seconds * 1e9),
        )
    if live.last_activity_site != live.last_statement_site:
        evidence |= known(
            last_activity_at=live.last_activity_site,
            last_activity_ago_ms=ms(live.last_activity_seconds * 1e9),
        )
    return evidence

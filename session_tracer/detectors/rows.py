"""Finds objects and links that differ from the database's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import known
from session_tracer.detectors.memory import Once
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import awaited, dotted, expiry, maker, objects, variable
from session_tracer.facts import LinkLost, RowGone, StaleLocked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite


_ONE: Final = ("was", "its row", "keeps")
_SEVERAL: Final = ("were", "their rows", "keep")


class LostLink(BuiltIn):
    """`lost-link`: a flush leaves out a link to an object that is not in the session."""

    candidates = (LinkLost,)
    memory = Once

    def judge(self, fact: LinkLost, report: Report, memory: Once) -> Iterator[Finding]:
        """Report each relationship and mapped class once, whichever lines flushed."""
        if not memory.first((fact.entity, fact.holder, fact.attribute, fact.removed)):
            return
        where = f"before {fact.site or 'the flush'}"
        if fact.autoflush:
            where = "where it is linked"  # the line of a query is not the one to change
        name = dotted(fact.holder, fact.attribute)
        what = "its removal from" if fact.removed else "its link in"
        alternatives = []
        if not (fact.cascades or fact.removed):
            alternatives.append(f'relationship(cascade="save-update, merge") for {name}')
        if not fact.removed:  # as an object that is made only to be looked at
            alternatives.append(f"leave the link out, if the {fact.entity} is not to be saved")
        yield report.finding(
            "lost-link",
            "warning",
            f"the {fact.entity} object was not in the session, so {what} {name} was not written",
            f"session.add({variable(fact.entity)}) {where}",
            fact.site,
            entity=fact.holder,
            attribute=fact.attribute,
            evidence=known(missing=fact.entity, alternatives=alternatives or None),
        )


class StaleLock(BuiltIn):
    """`stale-lock`: SELECT ... FOR UPDATE returns objects with values from before the lock."""

    candidates = (StaleLocked,)
    memory = Once

    def judge(self, fact: StaleLocked, report: Report, memory: Once) -> Iterator[Finding]:
        """Report each line and list of mapped classes once."""
        if not memory.first((fact.site, tuple(fact.counts))):
            return
        entity, count = next(iter(fact.counts)), sum(fact.counts.values())
        were, them, keep = _ONE if count == 1 else _SEVERAL
        one = variable(entity)
        again = f"{awaited(report)}session.refresh({one}, with_for_update=True) in its place"
        if fact.by_key:
            remedy = (
                f"{awaited(report)}session.get({entity}, ..., with_for_update=True, "
                "populate_existing=True)"
            )
        else:
            remedy = "add .execution_options(populate_existing=True) to this SELECT"
        yield report.finding(
            "stale-lock",
            "warning",
            f"{objects(fact.counts)} {were} in the session before SELECT ... FOR UPDATE locked "
            f"{them}, and {keep} the values from before the lock",
            remedy,
            fact.site,
            entity=entity,
            count=count,
            evidence=known(
                loaded_at=fact.loaded_site,
                began_at=None if fact.loaded_site is not None else fact.began_site,
                objects=fact.counts if len(fact.counts) > 1 else None,
                alternatives=[again] if count == 1 else None,
            ),
        )


class RowGoneAway(BuiltIn):
    """`row-gone`: an object's row is not there when it is loaded again."""

    candidates = (RowGone,)
    memory = Once

    def judge(self, fact: RowGone, report: Report, memory: Once) -> Iterator[Finding]:
        """Report each line, mapped class and reason once."""
        if not memory.first((fact.site, fact.entity, fact.why)):
            return
        message, remedy, *others = (_gone if fact.why == "gone" else _not_persistent)(fact, report)
        yield report.finding(
            "row-gone",
            "error",
            message,
            remedy,
            fact.site,
            entity=fact.entity,
            evidence=known(
                reason=fact.why,
                cause_at=fact.cause_site,
                expired_at=fact.expired_site,
                loaded_at=fact.loaded_site,
                identity=fact.identity or None,
                alternatives=others or None,
            ),
        )


def _gone(fact: RowGone, report: Report) -> Iterator[str]:
    """Yield the message, then the remedies, if the row was there before."""
    one, entity = variable(fact.entity), fact.entity
    get = f"{awaited(report)}session.get({entity}, inspect({one}).identity"
    if fact.call:
        yield f"refresh() found no row of the {entity} object: it was deleted, or its key changed"
        yield f"{get}, populate_existing=True), which returns None if the row is gone"
        return
    by = expiry(fact)
    read = f"read after {by} had expired it" if by else "to be loaded again"
    yield f"the {entity} object was {read}, and its row is gone: it was deleted, or its key changed"
    ask = f"{get}) before the object is read: it returns None if the row is gone"
    if fact.expired_by == "commit":
        yield f"{maker(report)}, or read the {entity} before {by}"
    yield ask


def _not_persistent(fact: RowGone, report: Report) -> Iterator[str]:
    """Yield the message, then the remedies, if the session has no such object."""
    one, call = variable(fact.entity), f"{fact.call}()"
    at = _at(fact.cause_site)
    wait = awaited(report)
    merge = f"{one} = {wait}session.merge({one})"
    refused = f"{call} was refused: the {fact.entity} object"
    match fact.why:
        case "merged":
            yield f"{refused} is the one that merge(){at} copied, and not the session's own"
            yield f"{merge}{at}: what it returns is the session's object"
        case "rolled_back":
            yield f"{refused} has no row, because the rollback{at} undid its INSERT"
            yield f"session.add({one}) and {wait}session.flush() again after the rollback"
        case "pending":
            yield f"{refused} has no row, because it was added and is not flushed"
            yield f"{wait}session.flush() before {call}"
        case "deleted":
            yield f"{refused} has no row, because the flush{at} deleted it"
            yield f"leave out {call}"
        case "elsewhere":
            yield f"{refused} is in another session"
            yield merge
        case "detached":
            yield f"{refused} is detached{': it left its session' + at if at else ''}"
            yield merge
        case _:
            yield f"{refused} was never added to the session"
            yield f"session.add({one}) and {wait}session.flush() before {call}"


def _at(site: CallSite | None) -> str:
    return "" if site is None else f" at {site}"

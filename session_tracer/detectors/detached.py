"""Explains the load that a detached object was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import places
from session_tracer.detectors.missing import expiry, reason
from session_tracer.detectors.wording import dotted, lasted
from session_tracer.facts import DetachedLoadFailed
from session_tracer.model.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from session_tracer.ledger.report import Report

__all__ = ["DetachedLazyLoad"]


class DetachedLazyLoad:
    """`detached-lazy-load`: an attribute of a detached object needs a load."""

    facts: Final = ()
    candidates = (DetachedLoadFailed,)

    def memory(self) -> None:
        """Each refused load speaks for itself."""

    def judge(self, fact: DetachedLoadFailed, report: Report, memory: None) -> Iterator[Finding]:
        """One finding for each refused load."""
        del memory
        name = dotted(fact.entity, fact.attribute)
        yield Finding(
            id="detached-lazy-load",
            severity="error",
            message=_message(name, fact),
            remedy=_remedy(name, fact),
            site=fact.site,
            session_id=report.ledger.id,
            session_name=report.name,
            session_site=report.ledger.opened_site,
            entity=fact.entity,
            attribute=fact.attribute or None,
            evidence=_evidence(fact, report),
        )


# How an object left its session, in the words of whoever wrote the line that did it.
_DEPARTURES: Final[Mapping[str, str]] = {
    "close": "its session was closed",
    "reset": "its session was reset",
    "invalidate": "its session was invalidated",
    "expunge": "it was expunged from its session",
    "expunge_all": "its session was emptied by expunge_all()",
    "deleted": "it was deleted",
    "collected": "its session was garbage collected without being closed",
    "exit": "the process had begun to end, and its session with it",
}


def _message(name: str, fact: DetachedLoadFailed) -> str:
    if not fact.departure:
        return f"{name} was read on an object that is in no session"
    if not fact.departed_at:
        return f"{name} was read after {_DEPARTURES[fact.departure]}"
    return (
        f"{name} was read {lasted(fact.at - fact.departed_at)} after {_DEPARTURES[fact.departure]}"
    )


def _remedy(name: str, fact: DetachedLoadFailed) -> str:
    where = f" at {fact.loaded_site}" if fact.loaded_site is not None else ""
    by = expiry(fact)
    match fact.load:
        case "expired" if fact.expired_by == "commit":
            return (
                f"sessionmaker(expire_on_commit=False), or read {name} before {by}, "
                f"or session.merge() the {fact.entity} into an open session"
            )
        case "expired":
            return (
                f"session.refresh() the {fact.entity} before it leaves the session, "
                "or session.merge() it into an open one"
            )
        case "dynamic":
            return (
                f"read {name} while the session is open, "
                f"or make it lazy='select' and load it with selectinload({name})"
            )
        case _ if fact.expired_by == "commit":
            return (
                f"select({fact.entity}).options({fact.loader}){where}, and "
                f"sessionmaker(expire_on_commit=False): {by} expired what was loaded before"
            )
        case _ if by:
            return (
                f"select({fact.entity}).options({fact.loader}) after {by}, "
                "which expired what was loaded before"
            )
        case _:
            return f"select({fact.entity}).options({fact.loader}){where}"


def _evidence(fact: DetachedLoadFailed, report: Report) -> dict[str, Any]:
    evidence: dict[str, Any] = {"why": reason(fact)}
    if fact.departure:
        evidence["session"] = report.ledger.id
        evidence["departure"] = fact.departure
    if fact.departed_at:
        evidence["departed_ms_ago"] = round((fact.at - fact.departed_at) / 1e6, 3)
    evidence |= places(
        loaded_at=fact.loaded_site,
        opened_at=report.ledger.opened_site,
        departed_at=fact.departed_site,
        expired_at=fact.expired_site,
    )
    if fact.identity:
        evidence["identity"] = fact.identity
    return evidence

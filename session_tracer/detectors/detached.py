"""Explains the load that a detached object was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.facts import DetachedLoadFailed
from session_tracer.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from session_tracer.record import SessionRecord

__all__ = ["DetachedLazyLoad"]


class DetachedLazyLoad:
    """`detached-lazy-load`: an attribute of a detached object needs a load."""

    facts = (DetachedLoadFailed,)

    def memory(self) -> None:
        """Each refused load speaks for itself."""

    def judge(
        self, fact: DetachedLoadFailed, record: SessionRecord, memory: None
    ) -> Iterator[Finding]:
        """One finding for each refused load."""
        del memory
        name = f"{fact.entity}.{fact.attribute}" if fact.attribute else fact.entity
        yield Finding(
            id="detached-lazy-load",
            severity="error",
            message=_message(name, fact),
            remedy=_remedy(name, fact),
            site=fact.site,
            session_id=record.id,
            session_name=record.name,
            session_site=record.opened_site,
            entity=fact.entity,
            attribute=fact.attribute or None,
            evidence=_evidence(fact, record),
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
}

_REASONS: Final[Mapping[str, str]] = {
    "relationship": "the relationship was never loaded",
    "deferred": "the column is deferred and was never loaded",
    "expired": "the column was expired",
    "dynamic": "a dynamic relationship runs a query each time it is read",
}

_EXPIRIES: Final[Mapping[str, str]] = {
    "commit": "the commit",
    "rollback": "the rollback",
    "expire": "expire()",
    "expire_all": "expire_all()",
}


def _message(name: str, fact: DetachedLoadFailed) -> str:
    if not fact.departure:
        return f"{name} was read on an object that is in no session"
    if not fact.departed_at:
        return f"{name} was read after {_DEPARTURES[fact.departure]}"
    return f"{name} was read {_ago(fact.at - fact.departed_at)} after {_DEPARTURES[fact.departure]}"


def _remedy(name: str, fact: DetachedLoadFailed) -> str:
    where = f" at {fact.loaded_site}" if fact.loaded_site is not None else ""
    expiry = _expiry(fact)
    match fact.load:
        case "expired" if fact.expired_by == "commit":
            return (
                f"sessionmaker(expire_on_commit=False), or read {name} before {expiry}, "
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
                f"sessionmaker(expire_on_commit=False): {expiry} expired what was loaded before"
            )
        case _ if expiry:
            return (
                f"select({fact.entity}).options({fact.loader}) after {expiry}, "
                "which expired what was loaded before"
            )
        case _:
            return f"select({fact.entity}).options({fact.loader}){where}"


def _expiry(fact: DetachedLoadFailed) -> str:
    """What expired the object, and where; empty if nothing did."""
    what = _EXPIRIES.get(fact.expired_by, "")
    return f"{what} at {fact.expired_site}" if what and fact.expired_site is not None else what


def _evidence(fact: DetachedLoadFailed, record: SessionRecord) -> dict[str, Any]:
    reason = _REASONS[fact.load]
    expiry = _expiry(fact)
    if expiry and fact.load == "expired":
        reason += f" by {expiry}"
    elif expiry and fact.load != "dynamic":
        reason += f", or expired by {expiry}"
    evidence: dict[str, Any] = {"why": reason}
    if fact.departure:
        evidence["session"] = record.id
        evidence["departure"] = fact.departure
    if fact.departed_at:
        evidence["departed_ms_ago"] = round((fact.at - fact.departed_at) / 1e6, 3)
    for key, site in (
        ("loaded_at", fact.loaded_site),
        ("opened_at", record.opened_site),
        ("departed_at", fact.departed_site),
        ("expired_at", fact.expired_site),
    ):
        if site is not None:
            evidence[key] = str(site)
    if fact.identity:
        evidence["identity"] = fact.identity
    return evidence


def _ago(nanoseconds: int) -> str:
    seconds = nanoseconds / 1e9
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms" if seconds >= 0.001 else "less than 1 ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min"

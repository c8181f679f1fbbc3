"""Explains loads that SQLAlchemy refuses: for detached objects, and under asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import known, ms
from session_tracer.detectors.memory import Once
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.selecting import selecting
from session_tracer.detectors.wording import (
    dotted,
    duration,
    expired_by,
    expiry,
    maker,
    variable,
)
from session_tracer.facts import DetachedLoadFailed, ImplicitLoadFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding

_REASONS: Final[Mapping[str, str]] = {
    "relationship": "the relationship was never loaded",
    "deferred": "the column is deferred and was never loaded",
    "expired": "the column was expired",
    "left_out": "the SELECT of the base class did not load the subclass's column",
    "dynamic": "a dynamic relationship runs a query each time it is read",
}


def _reason(fact: DetachedLoadFailed | ImplicitLoadFailed) -> str:
    """Return `the column was expired by the commit at app/shop.py:92 in place_order()`."""
    why = _REASONS[fact.load]
    by = expiry(fact)
    if by and fact.load == "expired":
        return f"{why} by {by}"
    if by and fact.load != "dynamic":
        return f"{why}, or expired by {by}"
    return why


# How an object left its session.
_DEPARTURES: Final[Mapping[str, str]] = {
    "close": "its session was closed",
    "reset": "its session was reset",
    "invalidate": "its session was invalidated",
    "expunge": "it was expunged from its session",
    "expunge_all": "its session was emptied by expunge_all()",
    "deleted": "it was deleted",
    "collected": "its session was garbage collected without being closed",
    "exit": "the process began to exit",
    "shutdown": "its application shut down",
}


class DetachedLazyLoad(BuiltIn):
    """`detached-lazy-load`: an attribute of a detached object needs a load."""

    candidates = (DetachedLoadFailed,)

    def judge(self, fact: DetachedLoadFailed, report: Report, memory: None) -> Iterator[Finding]:
        """Report each refused load."""
        del memory
        name, ago = dotted(fact.entity, fact.attribute), fact.at - fact.departed_at
        if not fact.departure:
            message = f"{name} was read on an object that is in no session"
        else:
            later = f"{duration(ago)} " if fact.departed_at else ""
            message = f"{name} was read {later}after {_DEPARTURES[fact.departure]}"
        yield report.finding(
            "detached-lazy-load",
            "error",
            message,
            _keep_loaded(name, fact, report),
            fact.site,
            entity=fact.entity,
            attribute=fact.attribute or None,
            evidence=known(
                why=_reason(fact),
                departure=fact.departure or None,
                departed_ago_ms=ms(ago) if fact.departed_at else None,
                loaded_at=fact.loaded_site,
                opened_at=report.ledger.opened_site,
                departed_at=fact.departed_site,
                expired_at=fact.expired_site,
                identity=fact.identity or None,
            ),
        )


def _keep_loaded(name: str, fact: DetachedLoadFailed, report: Report) -> str:
    by = expiry(fact)
    root, site = fact.root or fact.entity, fact.root_site or fact.loaded_site
    merge = f"pass the {fact.entity} to session.merge() of an open session"
    match fact.load:
        case "expired" if fact.expired_by == "commit":
            return f"use {maker(report)}, read {name} before {by}, or {merge}"
        case "expired":
            return (
                f"call session.refresh() with the {fact.entity} before it leaves the session, "
                f"or {merge}"
            )
        case "dynamic":
            return (
                f"read {name} while the session is open, "
                f"or set lazy='select' and load it with selectinload({name})"
            )
        case _ if not fact.options:
            return f"read {name} while the session is open, or {merge}"
        case _ if fact.expired_by == "commit":
            select = selecting(root, fact.options, site, report, replacement=fact.replacement)
            return f"{select}, and {maker(report)}: {by} expired what was loaded before"
        case _ if by:
            select = selecting(root, fact.options, None, report)
            return f"{select} after {by}, which expired what was loaded before"
        case _:
            return selecting(root, fact.options, site, report, replacement=fact.replacement)


class ImplicitAsyncIO(BuiltIn):
    """`implicit-async-io`: under asyncio, reading an attribute needs a load."""

    candidates = (ImplicitLoadFailed,)
    memory = Once

    def judge(self, fact: ImplicitLoadFailed, report: Report, memory: Once) -> Iterator[Finding]:
        """Report each attribute and line once."""
        if not memory.first((fact.site, fact.entity, fact.attribute)):
            return
        remedy, *others = _remedies(fact, report)
        yield report.finding(
            "implicit-async-io",
            # What the code goes on after costs only the load that it asks for then.
            "info" if fact.expected else "error",
            _unawaited(fact),
            remedy,
            fact.site,
            entity=fact.entity or None,
            attribute=fact.attribute or None,
            evidence=known(
                why=_reason(fact),
                loaded_at=fact.loaded_site,
                expired_at=fact.expired_site,
                identity=fact.identity or None,
                alternatives=others,
            ),
        )


def _unawaited(fact: ImplicitLoadFailed) -> str:
    name = dotted(fact.entity, fact.attribute)
    match fact.load:
        case "expired":
            what = expired_by(fact)
            expired = f"after {what} expired it" if what else "after it had expired"
            return f"{name} was read {expired}, and reading cannot await the reload"
        case "dynamic":
            return f"{name} runs a query when it is read, and reading cannot await the query"
        case _:
            return f"{name} was not loaded when it was read, and reading cannot await the load"


def _remedies(fact: ImplicitLoadFailed, report: Report) -> Iterator[str]:
    """Yield the change that fixes the cause, then alternatives."""
    one = variable(fact.entity)
    if fact.load == "dynamic":
        yield f"(await session.scalars({one}.{fact.attribute}.statement)).all()"
        yield f'lazy="write_only", and await session.scalars({one}.{fact.attribute}.select())'
        return
    yield from _expired(fact, one) if fact.load == "expired" else _never_loaded(fact, one, report)
    if fact.attribute:
        yield (
            f"await {one}.awaitable_attrs.{fact.attribute}, "
            f"with AsyncAttrs among the bases of {fact.entity}"
        )


def _expired(fact: ImplicitLoadFailed, one: str) -> Iterator[str]:
    if fact.expired_by == "commit":
        yield "async_sessionmaker(expire_on_commit=False)"
    if fact.expired_by == "flush":
        yield f'__mapper_args__ = {{"eager_defaults": True}}  # in {fact.entity}'
    # Every column of the object was expired, and one SELECT loads them all.
    yield f"await session.refresh({one})"


def _never_loaded(fact: ImplicitLoadFailed, one: str, report: Report) -> Iterator[str]:
    root = fact.root or fact.entity
    select = selecting(root, fact.options, None, report) if fact.options else ""
    refresh = f'await session.refresh({one}, ["{fact.attribute}"])'
    site = fact.root_site or fact.loaded_site
    if select and site is not None and not fact.expired_by:
        yield selecting(root, fact.options, site, report, replacement=fact.replacement)
        yield refresh
        return
    # A loader option does not survive a commit, and an object that was added was never selected.
    yield refresh
    if select and fact.expired_by == "commit":
        yield f"{select}, and async_sessionmaker(expire_on_commit=False)"
    elif select and fact.expired_by:
        yield f"{select} after {expiry(fact)}"

"""Says why an attribute was not there when it was read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_tracer.facts import AttributeLoaded, DetachedLoadFailed, ImplicitLoadFailed

__all__ = ["expired_by", "expiry", "reason"]

_REASONS: Final[Mapping[str, str]] = {
    "relationship": "the relationship was never loaded",
    "deferred": "the column is deferred and was never loaded",
    "expired": "the column was expired",
    "left_out": "the SELECT of the base class had left the subclass's column out",
    "dynamic": "a dynamic relationship runs a query each time it is read",
}

_EXPIRIES: Final[Mapping[str, str]] = {
    "commit": "the commit",
    "rollback": "the rollback",
    "expire": "expire()",
    "expire_all": "expire_all()",
    "flush": "the flush",
}


def reason(fact: DetachedLoadFailed | ImplicitLoadFailed) -> str:
    """`the column was expired by the commit at app/shop.py:92 in place_order()`, and the like."""
    why = _REASONS[fact.load]
    by = expiry(fact)
    if by and fact.load == "expired":
        return f"{why} by {by}"
    if by and fact.load != "dynamic":
        return f"{why}, or expired by {by}"
    return why


def expiry(fact: DetachedLoadFailed | ImplicitLoadFailed | AttributeLoaded) -> str:
    """What expired the object, and where; empty if nothing did."""
    what = expired_by(fact)
    return f"{what} at {fact.expired_site}" if what and fact.expired_site is not None else what


def expired_by(fact: DetachedLoadFailed | ImplicitLoadFailed | AttributeLoaded) -> str:
    """`the commit`, and the like; empty if nothing expired the object."""
    return _EXPIRIES.get(fact.expired_by, "")

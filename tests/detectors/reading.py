"""What is loaded, looked up and refreshed, as facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_tracer import Finding
from session_tracer.facts import (
    AttributeLoaded,
    FlushCompleted,
    SessionOpened,
    StatementExecuted,
    TransactionEnded,
)
from tests.detectors.feeding import MS, at

if TYPE_CHECKING:
    from session_tracer.facts import Fact
    from session_tracer.model.findings import Retraction
    from session_tracer.where.callsite import CallSite

OPENED = at(12, "get_db", "/srv/shop/db.py")
OPENING = SessionOpened(1, OPENED)
OF_SESSION: dict[str, Any] = {
    "session_id": "9b21e0456789abcd",
    "session_name": "orders-db",
    "session_site": OPENED,
}
SELECTED, LOOP, OTHER = at(18, "authors", "/srv/shop/repo.py"), at(33, "totals"), at(40, "names")
COMMIT = at(92, "place_order")
EXPIRED: dict[str, Any] = {"expired_by": "commit", "expired_site": COMMIT}


def one(found: list[Finding | Retraction]) -> Finding:
    (finding,) = found
    assert isinstance(finding, Finding)
    return finding


def lazy(parent: int, site: CallSite | None = LOOP, **more: Any) -> Fact:
    more = {
        "kind": "relationship",
        "entity": "Author",
        "attribute": "books",
        "root": "Author",
        "options": "selectinload(Author.books)",
        "loaded_site": SELECTED,
        **more,
    }
    return AttributeLoaded(1, site, parent=parent, **more)


def deferred(parent: int, **more: Any) -> Fact:
    options = {"attribute": "biography", "options": "undefer(Author.biography)", **more}
    return lazy(parent, kind="deferred", **options)


def reload_(parent: int, site: CallSite | None = LOOP, **more: Any) -> Fact:
    more = {
        "kind": "expired",
        "entity": "Author",
        "attribute": "",
        **EXPIRED,
        **more,
    }
    return AttributeLoaded(1, site, parent=parent, **more)


COMMITTED: Fact = TransactionEnded(1, COMMIT, "committed", MS)


AUTHORS = frozenset({"authors"})


def get(number: int, site: CallSite | None = LOOP, **more: Any) -> Fact:
    more = {"by_key": True, "key": "id", "fingerprint": number, "entity": "Author", **more}
    more = {"reads": AUTHORS, **more}
    return StatementExecuted(1, site, "SELECT", "authors", duration=MS, **more)


def select(fingerprint: int = 7, site: CallSite | None = LOOP, **more: Any) -> Fact:
    more = {"entity": "Author", "operation": "SELECT", "reads": AUTHORS, **more}
    more = {"collection": "authors", **more}
    return StatementExecuted(1, site, duration=MS, fingerprint=fingerprint, **more)


def refresh(site: CallSite | None = LOOP, **more: Any) -> list[Fact]:
    more = {"written": "INSERT", **more}
    return [AttributeLoaded(1, site, "refresh", "Author", "", **more), select(site=site)]


FLUSHED: Fact = FlushCompleted(1, COMMIT, "explicit", MS, {"Author": 1})

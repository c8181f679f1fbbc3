"""Counts by mapped class, such as `{"Author": 2}`, and how they are added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_tracer.facts import Counts

__all__ = ["NOTHING", "add_counts", "by_name", "difference", "total", "with_counts"]

# Where nothing was counted yet: most of a session's counts are never needed. Never added to.
NOTHING: Final[Counts] = {}


def with_counts(so_far: Counts, more: Counts) -> Counts:
    """Return the sum. Neither is changed, so that what is not added up is shared, not copied."""
    if not more:
        return so_far
    if not so_far:
        return more
    both = so_far.copy()
    add_counts(both, more)
    return both


def add_counts(so_far: Counts, more: Counts) -> None:
    """Add `more` to `so_far` in place."""
    for entity, count in more.items():
        so_far[entity] = so_far.get(entity, 0) + count


def difference(now: Counts, before: Counts) -> Counts:
    """Return what was added to `before` since."""
    if now is before:
        return NOTHING
    return {
        entity: count - before.get(entity, 0)
        for entity, count in now.items()
        if count != before.get(entity, 0)
    }


def by_name(counts: Mapping[type, int]) -> Counts:
    """Return counts by class as counts by class name. Classes of the same name are added up."""
    named: Counts = {}
    for entity, count in counts.items():
        named[entity.__name__] = named.get(entity.__name__, 0) + count
    return named


def total(counts: Counts) -> int:
    """Return the sum of the counts."""
    return sum(counts.values()) if counts else 0

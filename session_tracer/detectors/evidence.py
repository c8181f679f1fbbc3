"""Gathers what several findings bring as evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_tracer.model.counts import add_counts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_tracer.facts import Counts, FlushCompleted, FlushFailed
    from session_tracer.where.callsite import CallSite

__all__ = ["added_up", "largest", "places", "written"]


def places(**sites: CallSite | None) -> dict[str, str]:
    """The sites that are known, by the keys of evidence."""
    return {key: str(site) for key, site in sites.items() if site is not None}


def written(fact: FlushCompleted | FlushFailed) -> dict[str, Counts]:
    """What a flush held, by the keys of evidence."""
    parts = (("new", fact.new), ("dirty", fact.dirty), ("deleted", fact.deleted))
    return {key: dict(counts) for key, counts in parts if counts}


def added_up(held: Mapping[str, Counts]) -> Counts:
    """All of the objects, whatever became of them."""
    objects: Counts = {}
    for counts in held.values():
        add_counts(objects, counts)
    return objects


def largest(counts: Counts) -> str | None:
    """The entity there is most of; of several, the first by name."""
    return min(counts, key=lambda entity: (-counts[entity], entity), default=None)

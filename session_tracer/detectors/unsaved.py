"""Says what is lost with a scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from session_tracer.detectors.evidence import places

if TYPE_CHECKING:
    from session_tracer.facts import Counts, SessionClosed
    from session_tracer.ledger.ledger import Ledger

__all__ = ["Lost"]

ByState: TypeAlias = "dict[str, Counts]"


class Lost:
    """What a scope that ended had not flushed, and what it had flushed and not committed."""

    __slots__ = ("flushed", "flushed_at", "unflushed", "unflushed_at")

    def __init__(self, fact: SessionClosed, ledger: Ledger) -> None:
        told = {"added": fact.added, "modified": fact.modified, "removed": fact.removed}
        self.unflushed: ByState = {state: dict(counts) for state, counts in told.items() if counts}
        self.unflushed_at = fact.added_site if fact.added else None
        self.flushed: ByState = ledger.uncommitted()
        self.flushed_at = ledger.flushed_site if self.flushed else None

    def __bool__(self) -> bool:
        return bool(self.unflushed or self.flushed)

    def __str__(self) -> str:
        """`2 Stock modified (never flushed) and 3 Order added (flushed, never committed)`."""
        parts = []
        if self.unflushed:
            parts.append(f"{_in_words(self.unflushed)} (never flushed)")
        if self.flushed:
            parts.append(f"{_in_words(self.flushed)} (flushed, never committed)")
        return " and ".join(parts)

    def entity(self) -> str | None:
        """The mapped class of it all, if it is one."""
        entities = {
            entity
            for by_state in (self.unflushed, self.flushed)
            for counts in by_state.values()
            for entity in counts
        }
        return entities.pop() if len(entities) == 1 else None

    def count(self) -> int:
        """How many objects; one that was flushed twice counts twice."""
        by_states = (*self.unflushed.values(), *self.flushed.values())
        return sum(sum(counts.values()) for counts in by_states)

    def evidence(self) -> dict[str, Any]:
        """The counts by state, and where the last of them came from."""
        return {
            **self.unflushed,
            **self.flushed,
            **places(added_at=self.unflushed_at, flushed_at=self.flushed_at),
        }


# What was done to an object, in the words of whoever did it.
_DONE: Final = {
    "added": "added",
    "modified": "modified",
    "removed": "deleted",
    "flushed_new": "added",
    "flushed_dirty": "modified",
    "flushed_deleted": "deleted",
}


# So many mapped classes are named; of more, the least frequent ones are summed up.
_MOST_NAMED: Final = 3


def _in_words(by_state: ByState) -> str:
    return ", ".join(f"{_number(counts)} {_DONE[state]}" for state, counts in by_state.items())


def _number(counts: Counts) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    named = [f"{count} {entity}" for entity, count in ordered[:_MOST_NAMED]]
    others = sum(count for _, count in ordered[_MOST_NAMED:])
    *first, last = [*named, f"{others} others"] if others else named
    return f"{', '.join(first)} and {last}" if first else last

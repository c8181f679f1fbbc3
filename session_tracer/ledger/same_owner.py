"""The sessions that one thread or task has open at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from session_tracer import facts

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sqlalchemy.engine import Connection

    from session_tracer.facts import Counts
    from session_tracer.ledger.origin import Scope
    from session_tracer.ledger.probe import Probe
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

__all__ = ["Commit", "committed", "hand_on", "join", "leave", "nested_in"]

# By who opened them, and by who uses them now; a scope leaves as it ends.
_TOGETHER: Final[dict[Hashable, list[Probe]]] = {}
# A session that lives as long as the process must not remember every other one's commit.
_MOST_COMMITS: Final = 16


class Commit(NamedTuple):
    """What one scope committed first, and where."""

    scope: Scope
    site: CallSite | None
    written: Counts


def join(probe: Probe) -> None:
    """A scope was opened by its owner."""
    _TOGETHER.setdefault(probe.opened_by.key, []).append(probe)


def hand_on(probe: Probe, before: Owner) -> None:
    """Another one than before uses the session now."""
    opened_by = probe.opened_by.key
    if before.key != opened_by:
        _part(probe, before.key)
    if probe.owner.key != opened_by:
        _TOGETHER.setdefault(probe.owner.key, []).append(probe)


def leave(probe: Probe) -> None:
    """The scope ended."""
    _part(probe, probe.opened_by.key)
    if probe.owner is not probe.opened_by:
        _part(probe, probe.owner.key)


def _part(probe: Probe, key: Hashable) -> None:
    together = _TOGETHER.get(key)
    if together is not None and probe in together:
        together.remove(probe)
        if not together:
            _TOGETHER.pop(key, None)


def forget() -> None:
    """In a child process: what the parent has open is not this one's."""
    _TOGETHER.clear()


def nested_in(probe: Probe, connection: Connection, now: int) -> facts.ConnectionNested | None:
    """What to say if this thread or task holds another connection of the engine already."""
    owner = probe.owner
    for other in tuple(_TOGETHER.get(owner.key, ())):
        if other is probe:
            continue
        for holding in other.connections:
            if holding.owner == owner and holding.is_beside(connection):
                return facts.ConnectionNested(
                    now,
                    probe.last_site,
                    other.scope.id,
                    other.tracers[0].name,
                    other.scope.opened_site,
                    holding.site,
                    now - holding.since,
                )
    return None


def committed(probe: Probe, commit: Commit, now: int) -> list[facts.WritesSplit]:
    """What to say where a session beside this one has committed writes before.

    Beside it is one of the same factory, opened and used by the same thread or task alone, under
    the same span of the caller's.
    """
    earlier = list(probe.beside)
    probe.beside = ()
    for other in tuple(_TOGETHER.get(probe.opened_by.key, ())):
        if other is probe or not _is_beside(probe, other):
            continue
        if other.commit is None:
            if len(other.beside) < _MOST_COMMITS:
                other.beside = (*other.beside, commit)
        elif probe.commit is None and all(one.scope is not other.scope for one in earlier):
            earlier.append(other.commit)
    probe.commit = commit
    return [
        facts.WritesSplit(
            now,
            commit.site,
            commit.written,
            one.scope.id,
            one.scope.opened_site,
            one.site,
            one.written,
        )
        for one in earlier
    ]


def _is_beside(probe: Probe, other: Probe) -> bool:
    return (
        other.kind == probe.kind
        and other.caller == probe.caller
        and not (other.was_handed_on or probe.was_handed_on)
        and not (other.is_joined or probe.is_joined)
    )

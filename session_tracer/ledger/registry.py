"""The open sessions, and what can be seen of them from outside."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from session_tracer.ledger import same_owner
from session_tracer.model.live_session import LiveSession
from session_tracer.runtime.degraded import without

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.ledger.probe import Probe, ProbeRef
    from session_tracer.signals.metrics import Ages
    from session_tracer.tracer import Story, Tracer
    from session_tracer.where.callsite import CallSite

__all__ = ["LIVE", "ages", "end_all", "forget", "holders_of", "live_sessions", "look"]

# Every open scope. The sessions are held weakly; a scope leaves as it ends.
LIVE: Final[dict[Probe, ProbeRef]] = {}


def live_sessions() -> list[LiveSession]:
    """Every open session that is traced, the oldest first, as it is now.

    Cheap, and safe from any thread: nothing is asked of a database, loaded, or kept. Where their
    owners are at this moment (`owner_stack`) is not looked for; findings about them tell that.
    """
    stories = [(probe, story) for probe in list(LIVE) for story in probe.stories[:1]]
    stories.sort(key=lambda one: one[1].record.opened_at)
    return [look(probe, story, stack=False) for probe, story in stories]


def holders_of(pool: object) -> tuple[LiveSession, ...]:
    """The open sessions that hold a connection of the pool."""
    return tuple(
        look(probe, story)
        for probe in list(LIVE)
        if any(holding.is_of(pool) for holding in list(probe.connections))
        for story in probe.stories[:1]
    )


def look(probe: Probe, story: Story, *, stack: bool = True) -> LiveSession:
    """An open session as one tracer knows it. Its own thread may be changing it meanwhile."""
    record, now = story.record, probe.clock()
    pending = dict(probe.pending)
    return LiveSession(
        id=record.id,
        name=record.name,
        age_seconds=_seconds(record.opened_at, now),
        opened_site=record.opened_site,
        owner=probe.owner.name,
        owner_stack=_stack(probe, story) if stack else (),
        transaction=_transaction(probe),
        transaction_seconds=_seconds(record.transaction_began_at, now),
        holds_connection=bool(probe.connections),
        held_seconds=_seconds(record.held_since, now),
        process_id=_process_id(probe) if probe.connections else None,
        statements=record.statements,
        sql_seconds=record.sql / 1e9,
        objects=_objects(probe, sum(pending.values())),
        pending_entities={kind.__name__: count for kind, count in pending.items()},
        last_activity_seconds=_seconds(record.last_activity_at, now),
        last_activity_site=record.last_activity_site,
        last_statement_seconds=_seconds(record.last_statement_at, now),
        last_statement_site=record.last_statement_site,
        findings=tuple(record.findings),
    )


def _stack(probe: Probe, story: Story) -> tuple[CallSite, ...]:
    # Who used it last may have ended, and whoever opened it may be waiting with it.
    frames = probe.owner.frames() or probe.opened_by.frames()
    return tuple(story.tracer.locator.sites(frames))


def _seconds(since: int, now: int) -> float:
    # The clock was read before the fact of another thread.
    return (now - since) / 1e9 if 0 < since < now else 0.0


def _transaction(probe: Probe) -> str:
    depth = len(probe.transactions)
    return "none" if depth == 0 else "open" if depth == 1 else "savepoint"


def _process_id(probe: Probe) -> int | None:
    try:
        for holding in list(probe.connections):
            return holding.process_id()
    except Exception:  # the connection is being closed at this moment
        pass
    return None


def _objects(probe: Probe, pending: int) -> dict[str, int]:
    ref = LIVE.get(probe)
    session: Any = None if ref is None else ref()
    counts: dict[str, int] = {}
    if session is None:
        return counts
    # Counted by length alone: the public collections are made anew, and may change meanwhile.
    identity_map = session.identity_map
    if persistent := len(identity_map):
        counts["persistent"] = persistent
    if pending:
        counts["pending"] = pending
    _add_length(counts, "modified", getattr(identity_map, "_modified", None))
    _add_length(counts, "deleted", getattr(session, "_deleted", None))
    return counts


def _add_length(counts: dict[str, int], name: str, collection: Any) -> None:
    if collection:
        counts[name] = len(collection)
    elif collection is None:
        without(
            f"the {name} objects of a Session",
            f"how many objects of an open session are {name} is not told",
        )


def ages(tracer: Tracer) -> Ages:
    """How old, in seconds, the tracer's open sessions and open transactions are."""
    sessions: list[float] = []
    transactions: list[float] = []
    for probe in list(LIVE):
        for story in probe.stories:
            if story.tracer is tracer:
                record = story.record
                now = probe.clock()
                sessions.append((now - record.opened_at) / 1e9)
                if record.transaction_began_at:
                    transactions.append((now - record.transaction_began_at) / 1e9)
    return tracer.name, sessions, transactions


def end_all(clock: Callable[[], float] = time.monotonic, seconds: float = 1.0) -> None:
    """Tell of each session that is still open at the end of the process, for a second at most."""
    until = clock() + seconds
    for probe in list(LIVE):
        ref = LIVE.get(probe)
        if ref is None or not probe.used or clock() > until:
            continue
        session = ref()
        try:
            size = 0 if session is None else len(session.identity_map)
            probe.end_scope("exit", site=probe.last_site, size=size)
        except Exception as error:
            probe.failed("live", error)


def forget() -> None:
    """In a child process: what its parent has open is not its own."""
    LIVE.clear()
    same_owner.forget()

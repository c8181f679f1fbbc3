"""The open session scopes, and what can be seen of them from outside."""

from __future__ import annotations

import time
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from session_tracer.ledger.owner_state import OwnerState, OwnerStates, owner_state
from session_tracer.ledger.waits import Waits
from session_tracer.model.live_session import LiveSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.facts import Ending
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.ledger.report import Report, Tracer
    from session_tracer.ledger.waits import Wait
    from session_tracer.where.callsite import CallSite

__all__ = [
    "LIVE",
    "LedgerRef",
    "OpenNow",
    "connections_held",
    "end_all",
    "holders_of",
    "live_sessions",
    "look",
    "open_now",
    "waiters_of",
]


class OpenNow(NamedTuple):
    """What is open of one factory: ages of sessions and transactions in seconds.

    `holders` is how many connections are held, by the line that first used the session; it is
    empty unless `Settings.connection_sites` is set. `suspects` are the ids of the findings about
    something that lasts, one for each open session that has one which is not retracted: the latest,
    for one suspicion leads to the next.
    """

    name: str
    sessions: list[float]
    transactions: list[float]
    suspects: list[str]
    holders: Counter[CallSite | None]


class LedgerRef(weakref.ref[Any]):
    """A weak reference to a session that still knows its ledger when the session is gone."""

    __slots__ = ("ledger",)

    ledger: Ledger


# Every open scope. The sessions are held weakly; a scope leaves as it ends.
LIVE: Final[dict[Ledger, LedgerRef]] = {}


def live_sessions() -> list[LiveSession]:
    """Every open session that is traced, the oldest first, as it is now.

    Cheap, and safe from any thread: nothing is asked of a database, loaded, or kept. `owner_stack`
    is empty: findings have it.
    """
    ledgers = sorted(LIVE.copy(), key=lambda ledger: ledger.opened_at)
    # The clock is read first: to look at where the owners are takes longer than all the rest.
    reports = [(report, ledger.clock()) for ledger in ledgers for report in ledger.reports[:1]]
    waits, states = Waits(), OwnerStates()
    return [look(report, now, waits=waits, states=states) for report, now in reports]


def holders_of(pool: object) -> tuple[LiveSession, ...]:
    """The open sessions that hold a connection of the pool."""
    reports = [
        report
        for ledger in list(LIVE)
        if any(holding.is_of(pool) for holding in ledger.connections)
        for report in ledger.reports[:1]
    ]
    # One time for all: who has held one for longest is compared, and a look takes a while.
    now = reports[0].ledger.clock() if reports else 0
    return tuple([look(report, now) for report in reports])


def connections_held(pool: object) -> int:
    """How many of the pool's connections the open sessions hold."""
    return sum(holding.is_of(pool) for ledger in list(LIVE) for holding in ledger.connections)


def waiters_of(pool: object) -> tuple[LiveSession, ...]:
    """The open sessions that wait for a connection of the pool."""
    waits = Waits()
    return tuple(
        look(report, waits=waits)
        for ledger in list(LIVE)
        if (wait := _wait(ledger, waits)) is not None and wait.pool is pool
        for report in ledger.reports[:1]
    )


def _wait(ledger: Ledger, waits: Waits) -> Wait | None:
    """The checkout for which the session waits, if it does. A transaction is begun before."""
    if not ledger.transactions_open or ledger.at_work is not None:
        return None
    found = waits.of(ledger.owner)
    if found is None:
        return None
    session, wait = found
    reference = LIVE.get(ledger)
    return wait if reference is not None and reference() is session else None


def look(
    report: Report,
    now: int = 0,
    *,
    waits: Waits | None = None,
    states: OwnerStates | None = None,
) -> LiveSession:
    """An open session as one tracer knows it. Its own thread may be changing it meanwhile.

    With `states` of several sessions, which are found faster, it has no `owner_stack`.
    """
    ledger = report.ledger
    wait = _wait(ledger, waits or Waits())
    now = now or ledger.clock()
    state = owner_state(ledger, stack=True) if states is None else OwnerState(states.of(ledger))
    held_since, process_id = _held(ledger)
    pending = dict(ledger.pending_by_class)
    return LiveSession(
        id=ledger.id,
        name=report.name,
        work=ledger.work,
        age_seconds=_seconds(ledger.opened_at, now),
        opened_site=ledger.opened_site,
        first_used_site=ledger.first_used_site,
        owner=ledger.owner.name,
        owner_state=state.state,
        owner_stack=tuple(state.sites),
        transaction=_transaction(ledger),
        transaction_seconds=_seconds(ledger.transaction_began_at, now),
        holds_connection=bool(held_since),
        held_seconds=_seconds(held_since, now),
        process_id=process_id,
        waits_for_pool="" if wait is None else wait.name,
        waiting_seconds=0.0 if wait is None else _seconds(wait.since, now),
        is_connecting=wait is not None and wait.is_connecting,
        statements=ledger.statements,
        sql_seconds=ledger.sql / 1e9,
        objects=_objects(ledger, sum(pending.values())),
        pending_entities={kind.__name__: count for kind, count in pending.items()},
        last_activity_seconds=_seconds(ledger.last_activity_at, now),
        last_activity_site=ledger.last_activity_site,
        last_statement_seconds=_seconds(ledger.last_statement_at, now),
        last_statement_site=ledger.last_statement_site,
        findings=report.findings,
    )


def _seconds(since: int, now: int) -> float:
    # The clock was read before another thread wrote the ledger.
    return (now - since) / 1e9 if 0 < since < now else 0.0


def _transaction(ledger: Ledger) -> str:
    depth = len(ledger.transactions_open)
    return "none" if depth == 0 else "open" if depth == 1 else "savepoint"


def _held(ledger: Ledger) -> tuple[int, int | None]:
    """Since when the session holds a connection, 0 if it holds none, and the server's process."""
    for holding in ledger.connections:
        is_held, process_id = holding.look()
        if is_held:
            return holding.since, process_id
    return 0, None


def _objects(ledger: Ledger, pending: int) -> dict[str, int]:
    ref = LIVE.get(ledger)
    session: Any = None if ref is None else ref()
    counts: dict[str, int] = {}
    if session is None:
        return counts
    # By length alone: each call makes the public collections, which may change meanwhile.
    identity_map = session.identity_map
    if persistent := len(identity_map):
        counts["persistent"] = persistent
    if pending:
        counts["pending"] = pending
    if modified := len(getattr(identity_map, "_modified", ())):
        counts["modified"] = modified
    if deleted := len(getattr(session, "_deleted", ())):
        counts["deleted"] = deleted
    return counts


def open_now(tracer: Tracer) -> OpenNow:
    """What the tracer's open sessions are at this moment."""
    found = OpenNow(tracer.name, [], [], [], Counter())
    by_line = tracer.settings.connection_sites
    for ledger in list(LIVE):
        for report in ledger.reports:
            if report.tracer is tracer:
                now = ledger.clock()
                found.sessions.append((now - ledger.opened_at) / 1e9)
                if ledger.transaction_began_at:
                    found.transactions.append((now - ledger.transaction_began_at) / 1e9)
                found.suspects.extend(one.finding.id for one in report.suspicions[-1:])
                if by_line and (held := _number_held(ledger)):
                    found.holders[ledger.first_used_site or ledger.opened_site] += held
    return found


def _number_held(ledger: Ledger) -> int:
    return sum(not holding.is_given_back for holding in ledger.connections)


def is_used(ledger: Ledger) -> bool:
    """Whether the session has begun a transaction."""
    return ledger.is_used


def end_all(
    clock: Callable[[], float] = time.monotonic,
    seconds: float = 1.0,
    *,
    ending: Ending = "exit",
    is_left: Callable[[Ledger], bool] = is_used,
) -> None:
    """Report each session that is still open at the end, for a second at most.

    Args:
        clock: The time in seconds.
        seconds: The longest time for all.
        ending: What ends: the process, or an application in it.
        is_left: Whether the session ends with it.
    """
    until = clock() + seconds
    for ledger in list(LIVE):
        ref = LIVE.get(ledger)
        if ref is None or clock() > until:
            continue
        session = ref()
        try:
            if not is_left(ledger):
                continue
            ledger.identity_map_size = 0 if session is None else len(session.identity_map)
            ledger.end(ending, (ledger.last_site, "", False))
        except Exception as error:
            ledger.failed("live", error)

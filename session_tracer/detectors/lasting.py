"""Finds what has been open for too long, and still is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import places
from session_tracer.detectors.protocol import always
from session_tracer.detectors.watched import ENDED, TAKEN, block, called, connection, doing, ms
from session_tracer.detectors.wording import lasted
from session_tracer.facts import SessionClosed, TimePassed, TransactionBegan, TransactionEnded
from session_tracer.model.findings import Retraction

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer.detectors.protocol import Wakes
    from session_tracer.ledger.record import SessionRecord
    from session_tracer.model.findings import Finding
    from session_tracer.model.live_session import LiveSession
    from session_tracer.where.callsite import CallSite

__all__ = ["IdleOrLongTransaction", "LeakedSession"]


class _Leak:
    """What was said of a scope that does not end."""

    __slots__ = ("said",)

    def __init__(self) -> None:
        self.said: Finding | None = None


class LeakedSession:
    """`leaked-session`: a scope that has begun a transaction is open for too long."""

    facts = (TimePassed, SessionClosed)
    wakes: Final[Wakes] = {TimePassed: always}

    def memory(self) -> _Leak:
        """What was said."""
        return _Leak()

    def judge(
        self, fact: TimePassed | SessionClosed, record: SessionRecord, memory: _Leak
    ) -> Iterator[Finding | Retraction]:
        """One finding for a scope, taken back if somebody closes it after all."""
        if isinstance(fact, TimePassed):
            after = record.settings.leak_after_seconds * 1e9
            if memory.said or not record.transactions or fact.at - record.opened_at <= after:
                return
            live = fact.look()
            if record.closed_at:
                return  # meanwhile
            memory.said = _leak(fact, live, record)
            yield memory.said
        elif memory.said is not None and fact.ending not in TAKEN:
            yield Retraction(
                finding=memory.said,
                message=f"{called(record)} was closed after {lasted(fact.at - record.opened_at)}",
                evidence={"age_ms": ms(fact.at - record.opened_at), **places(closed_at=fact.site)},
            )


def _leak(fact: TimePassed, live: LiveSession, record: SessionRecord) -> Finding:
    age = fact.at - record.opened_at
    if live.holds_connection:
        holds = f"and holds {connection(live, record)}"
    elif live.transaction == "none":
        holds = "with no transaction open any more"
    else:
        holds = "and has a transaction open"
    earlier = [id_ for id_ in ("idle-in-transaction", "long-transaction") if record.was_said(id_)]
    return record.finding(
        "leaked-session",
        "error",
        f"{called(record)} has been open for {lasted(age)} {holds}",
        _end_it(fact, live, record),
        record.opened_site,
        evidence={
            "age_ms": ms(age),
            **doing(live),
            **({"earlier": earlier} if earlier else {}),
        },
    )


def _end_it(fact: TimePassed, live: LiveSession, record: SessionRecord) -> str:
    if live.holds_connection and live.owner_stack and not fact.running:
        return f"commit before the wait at {live.owner_stack[0]}, or open the session after it"
    unsaved = any(live.objects.get(state) for state in ("pending", "modified", "deleted"))
    if unsaved or (live.transaction != "none" and record.wrote):
        with_block = block(record).partition(":")[0]
        return f"commit or roll back, then close it; `{with_block}:` closes it whatever happens"
    return block(record)


class _Watched:
    """The open transaction, and what was said of it.

    Written by the session's own thread and by the watch's, so it holds nothing that grows.
    """

    __slots__ = ("idle_began_at", "long", "long_began_at", "sql", "statements")

    def __init__(self) -> None:
        # What the scope had done before this transaction.
        self.sql = 0
        self.statements = 0
        # When the transaction began that was said to be idle, or long.
        self.idle_began_at = 0
        self.long_began_at = 0
        self.long: Finding | None = None


def _another(fact: TransactionBegan, record: SessionRecord) -> bool:
    return not fact.nested and record.statements > 0


class IdleOrLongTransaction:
    """`idle-in-transaction`, `long-transaction`: a connection waits, a transaction does not end.

    One detector, for a transaction that was said to be the one is not said to be the other.
    """

    facts = (TransactionBegan, TransactionEnded, TimePassed)
    wakes: Final[Wakes] = {TransactionBegan: _another, TimePassed: always}

    def memory(self) -> _Watched:
        """The open transaction, and what was said of it."""
        return _Watched()

    def judge(
        self,
        fact: TransactionBegan | TransactionEnded | TimePassed,
        record: SessionRecord,
        memory: _Watched,
    ) -> Iterable[Finding | Retraction]:
        """One finding for a transaction; a long one is taken back at its end."""
        if isinstance(fact, TimePassed):
            return self._passed(fact, record, memory)
        if fact.nested:
            return ()
        if isinstance(fact, TransactionBegan):
            memory.sql, memory.statements = record.sql, record.statements
        elif memory.long is not None:
            said, memory.long = memory.long, None
            return (_ended(fact, memory.long_began_at, said, record),)
        return ()

    def _passed(
        self, fact: TimePassed, record: SessionRecord, memory: _Watched
    ) -> Iterator[Finding]:
        began_at, began_site = record.transaction_began_at, record.transaction_began_site
        if not began_at or _was_said(began_at, record, memory):
            return
        idle = 0 if fact.running else _idle_for(fact, record)
        is_idle = idle > record.settings.idle_in_transaction_seconds * 1e9
        is_idle = is_idle and memory.idle_began_at != began_at
        age = fact.at - began_at
        is_long = age > record.settings.long_transaction_seconds * 1e9
        is_long = is_long and memory.long_began_at != began_at
        if not (is_idle or is_long):
            return
        live = fact.look()
        if record.transaction_began_at != began_at:
            return  # it ended meanwhile
        if is_idle:
            memory.idle_began_at = began_at
            yield _idle(idle, live, record, memory)
        else:
            memory.long_began_at = began_at
            memory.long = _long(age, began_site, live, record, memory)
            yield memory.long


def _was_said(began_at: int, record: SessionRecord, memory: _Watched) -> bool:
    """Whether the session, or this transaction, is suspected already."""
    # What the settings leave unsaid is not in the record, and speaks for nothing else.
    return (
        record.was_said("leaked-session")
        or (memory.idle_began_at == began_at and record.was_said("idle-in-transaction"))
        or (memory.long_began_at == began_at and record.was_said("long-transaction"))
    )


def _idle_for(fact: TimePassed, record: SessionRecord) -> int:
    held_since = record.held_since
    return fact.at - max(held_since, record.last_statement_at) if held_since else 0


def _idle(idle: int, live: LiveSession, record: SessionRecord, memory: _Watched) -> Finding:
    wait = live.owner_stack[0] if live.owner_stack else None
    return record.finding(
        "idle-in-transaction",
        "warning",
        f"{called(record)} holds {connection(live, record)} "
        f"and has run no statement for {lasted(idle)}",
        "commit or close before this wait, or wait outside the transaction"
        if wait
        else "commit or close as soon as the last statement's result is read",
        wait or record.last_statement_site or record.transaction_began_site,
        evidence={"idle_ms": ms(idle), **doing(live), **_of_transaction(record, memory)},
    )


def _long(
    age: int, site: CallSite | None, live: LiveSession, record: SessionRecord, memory: _Watched
) -> Finding:
    sql = record.sql - memory.sql
    if sql * 2 > age:
        remedy = "commit in batches, so that each holds its locks for a short time"
    elif live.owner_stack:
        remedy = f"commit before the work at {live.owner_stack[0]}, or begin after it"
    else:
        remedy = "commit as soon as its statements are done"
    return record.finding(
        "long-transaction",
        "warning",
        f"{called(record)} has had a transaction open for {lasted(age)}, "
        f"{lasted(sql)} of it in SQL",
        remedy,
        site,
        evidence={**doing(live), **_of_transaction(record, memory)},
    )


def _of_transaction(record: SessionRecord, memory: _Watched) -> dict[str, float]:
    """What the transaction has done, which is not all that its scope has."""
    return {
        "statements": record.statements - memory.statements,
        "sql_ms": ms(record.sql - memory.sql),
    }


def _ended(
    fact: TransactionEnded, began_at: int, said: Finding, record: SessionRecord
) -> Retraction:
    age = fact.at - began_at
    how = ENDED.get(fact.outcome, "ended")
    return Retraction(
        finding=said,
        message=f"the transaction of {called(record)} was {how} after {lasted(age)}",
        evidence={"transaction_ms": ms(age), "outcome": fact.outcome, **places(ended_at=fact.site)},
    )

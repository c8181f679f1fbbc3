"""Sessions that take more connections than there are, or than they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import Finding
from session_tracer.detectors.connections import NestedSessions, PoolExhausted
from session_tracer.facts import CheckoutTimedOut, ConnectionNested, SessionOpened
from session_tracer.model.live_session import LiveSession
from tests.detectors.feeding import MS, SECOND, at, reported

if TYPE_CHECKING:
    from session_tracer import CallSite

OPENED, TAKEN = at(12, "get_db", "/srv/shop/db.py"), at(20)
OTHER_OPENED, OTHER_TAKEN, WAITING = at(31, "report"), at(32, "report"), at(120, "upload")
OF_SESSION: dict[str, Any] = {
    "session_id": "9b21e0456789abcd",
    "session_name": "orders-db",
    "session_site": OPENED,
}
OPENING = SessionOpened(SECOND, OPENED)
NESTED = ConnectionNested(
    2 * SECOND, TAKEN, "4f1c9a0000000000", "reports", OTHER_OPENED, OTHER_TAKEN, 35 * MS
)


# Nested sessions.


def test_a_session_takes_a_second_connection() -> None:
    assert reported(NestedSessions(), OPENING, NESTED) == [
        Finding(
            id="nested-sessions",
            severity="warning",
            message="a second connection was checked out while session 4f1c9a (reports) "
            "of the same thread had held one for 35 ms",
            remedy="pass that session to this code, or end it first: code that waits for a second "
            "connection while it holds one can deadlock the pool",
            site=TAKEN,
            **OF_SESSION,
            evidence={
                "other_session_id": "4f1c9a0000000000",
                "other_session_name": "reports",
                "other_held_ms": 35.0,
                "other_opened_at": str(OTHER_OPENED),
                "other_acquired_at": str(OTHER_TAKEN),
            },
        )
    ]


@pytest.mark.parametrize(
    ("opened", "where"), [(OTHER_OPENED, f" that was opened at {OTHER_OPENED}"), (None, "")]
)
def test_a_leaked_session_that_holds_the_other_connection_is_named_as_leaked(
    opened: CallSite | None, where: str
) -> None:
    leaked = ConnectionNested(
        3, TAKEN, "4f1c9a0000000000", "reports", opened, OTHER_TAKEN, 35 * MS, is_leaked=True
    )
    [finding] = reported(NestedSessions(), OPENING, leaked)
    assert isinstance(finding, Finding)
    assert "was checked out while the leaked session 4f1c9a (reports)" in finding.message
    assert finding.remedy.startswith(f"end the leaked session{where}: it keeps a connection")
    assert finding.evidence["other_findings"] == ["leaked-session"]


def test_under_asyncio_it_is_the_same_task() -> None:
    [finding] = reported(NestedSessions(), NESTED, is_async=True)
    assert "of the same task had held one" in finding.message


# An exhausted pool.


def holder(id_: str, held: float, **more: Any) -> LiveSession:
    return LiveSession(
        id=id_,
        name="orders-db",
        age_seconds=held + 1,
        opened_site=OTHER_OPENED,
        owner='thread "export-3"',
        holds_connection=True,
        held_seconds=held,
        **more,
    )


LONG_HOLDER = {
    "session_id": "4f1c9a0000000000",
    "session_name": "orders-db",
    "opened_at": str(OTHER_OPENED),
    "last_statement_at": str(OTHER_TAKEN),
    "held_ms": 12_000.0,
    "owner": 'thread "export-3"',
    "now_at": str(WAITING),
}
SHORT_HOLDER = {
    "session_id": "0a1b2c0000000000",
    "session_name": "orders-db",
    "opened_at": str(OTHER_OPENED),
    "held_ms": 250.0,
    "owner": 'thread "export-3"',
}


def test_a_pool_has_no_connection_left() -> None:
    short = holder("0a1b2c0000000000", 0.25)
    long = holder(
        "4f1c9a0000000000", 12.0, last_statement_site=OTHER_TAKEN, owner_stack=(WAITING, OPENED)
    )
    timeout = CheckoutTimedOut(40 * SECOND, TAKEN, (short, long), 30 * SECOND)
    assert reported(PoolExhausted(), OPENING, timeout) == [
        Finding(
            id="pool-exhausted",
            severity="error",
            message="the pool had no free connection for 30.0 s: 2 traced sessions hold one",
            remedy=f"commit or close sooner, first of all session 4f1c9a opened at {OTHER_OPENED}: "
            "it has held a connection for 12.0 s",
            site=TAKEN,
            **OF_SESSION,
            count=2,
            evidence={
                "timeout_ms": 30_000.0,
                "holders": [LONG_HOLDER, SHORT_HOLDER],
            },
        )
    ]


def exhausted(*holders: LiveSession, timeout: int = 0) -> Finding:
    [finding] = reported(PoolExhausted(), OPENING, CheckoutTimedOut(40, TAKEN, holders, timeout))
    assert isinstance(finding, Finding)
    return finding


def test_one_session_may_hold_the_only_connection() -> None:
    message = exhausted(holder("4f1c9a0000000000", 1)).message
    assert message == "the pool had no free connection: 1 traced session holds one"


def test_no_traced_session_may_hold_one() -> None:
    finding = exhausted(timeout=SECOND)
    assert (
        finding.message == "the pool had no free connection for 1.0 s: no traced session holds one"
    )
    assert (finding.count, finding.evidence["holders"]) == (1, [])
    assert finding.remedy == (
        "look for connections that are not closed and sessions that are not traced; "
        "if there are none, increase pool_size"
    )


def test_twenty_holders_are_named() -> None:
    holders = [holder(f"{number:016x}", number) for number in range(1, 24)]
    holding = exhausted(*holders[:20]).evidence["holders"]
    assert (len(holding), holding[-1]["session_id"]) == (20, f"{1:016x}")
    finding = exhausted(*holders)
    assert (len(finding.evidence["holders"]), finding.count) == (20, 23)
    assert finding.evidence["other_holders"] == 3


def test_what_no_session_holds_is_counted() -> None:
    timeout = CheckoutTimedOut(
        40, TAKEN, (holder("4f1c9a0000000000", 1),), size=2, overflow=0, checked_out=2, untraced=1
    )
    [finding] = reported(PoolExhausted(), OPENING, timeout)
    assert isinstance(finding, Finding)
    assert finding.message == (
        "the pool had no free connection: 1 traced session holds one, "
        "no traced session holds 1 of the 2 in use"
    )
    numbers = ("pool_size", "pool_overflow", "checked_out", "untraced")
    assert [finding.evidence[name] for name in numbers] == [2, 0, 2, 1]


def test_a_session_that_was_left_open_is_named_first() -> None:
    left = holder("0a1b2c0000000000", 0.25, owner_state="returned")
    finding = exhausted(holder("4f1c9a0000000000", 12.0), left)
    assert finding.remedy == (
        f"a session is left open: close session 0a1b2c opened at {OTHER_OPENED} where its work ends"
    )


def test_each_timeout_is_reported() -> None:
    timeouts = [CheckoutTimedOut(40, TAKEN, (), 1)] * 3
    assert len(reported(PoolExhausted(), OPENING, *timeouts)) == 3

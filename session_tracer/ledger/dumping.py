"""Writes the open sessions and the connection pools, as a table or as JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from session_tracer.ledger.owner_state import GONE
from session_tracer.ledger.pools import every_pool
from session_tracer.ledger.registry import live_sessions
from session_tracer.model.live_session import LiveSession
from session_tracer.runtime import process
from session_tracer.runtime.nearest import did_you_mean

if TYPE_CHECKING:
    from session_tracer.ledger.pools import PoolNow

__all__ = ["as_values", "dump"]

_FORMATS: Final = ("text", "json")


class _Writable(Protocol):
    """A text stream."""

    def write(self, text: str, /) -> object: ...


def dump(
    file: _Writable | None = None,
    *,
    format: Literal["text", "json"] = "text",  # noqa: A002 - the name that json and logging use
) -> None:
    """Write `live_sessions()` and the connection pools that they use.

    It may be called in any thread, also while others hang. The database is not asked.

    Args:
        file: A text stream, by default standard error.
        format: `text` for a person: a line about the process and its pools, then one block for
            each session, the oldest first. `json` for a program: one line.

    Raises:
        ValueError: the format is unknown.
    """
    if format not in _FORMATS:
        nearest = did_you_mean(format, _FORMATS)
        raise ValueError(f"Invalid format={format!r}: expected 'text' or 'json'.{nearest}")
    sessions, pools = live_sessions(), every_pool()
    text = _as_json(sessions, pools) if format == "json" else _as_text(sessions, pools)
    (sys.stderr if file is None else file).write(text)


def _left_behind(sessions: list[LiveSession]) -> int:
    """How many sessions no code is left to close."""
    return sum(live.owner_state in GONE for live in sessions)


def _waiting(pools: list[PoolNow]) -> int:
    return sum(pool.waiting or 0 for pool in pools)


def _as_json(sessions: list[LiveSession], pools: list[PoolNow]) -> str:
    every = {
        "process_pid": process.pid(),
        "host": process.host(),
        "open": len(sessions),
        "left_behind": _left_behind(sessions),
        "waiting": _waiting(pools),
        "pools": [pool._asdict() for pool in pools],
        "sessions": [as_values(live) for live in sessions],
    }
    return json.dumps(every) + "\n"


def as_values(live: LiveSession) -> dict[str, Any]:
    """Return an open session as values that JSON has."""
    values = {one.name: getattr(live, one.name) for one in fields(LiveSession)}
    values["findings"] = [finding.id for finding in live.findings]
    values["owner_stack"] = [str(site) for site in live.owner_stack]
    for key, value in values.items():
        if key.endswith("_site"):
            values[key] = None if value is None else str(value)
        elif key.endswith("_seconds"):
            values[key] = round(value, 3)
    return values


def _as_text(sessions: list[LiveSession], pools: list[PoolNow]) -> str:
    about = [f"{len(sessions)} open", f"{_left_behind(sessions)} left behind"]
    about += [f"{_waiting(pools)} waiting for a connection", *map(_pool, pools)]
    lines = [f"process {process.pid()} on {process.host()}: {'; '.join(about)}"]
    at = Counter(live.first_used_site or live.opened_site for live in sessions)
    for site, number in at.most_common():
        lines.append(f"  {number} at {site or 'a line of no application'}")
    for live in sessions:
        lines += _block(live)
    return "\n".join(lines) + "\n"


def _pool(pool: PoolNow) -> str:
    used = f"{pool.used} of {pool.most}" if pool.most is not None else f"{pool.used}"
    idle = "" if pool.idle is None else f", {pool.idle} idle"
    return f"pool {pool.name}: {used} used{idle}"


def _block(live: LiveSession) -> list[str]:
    work = f" for {live.work}" if live.work else ""
    findings = ", ".join(finding.id for finding in live.findings)
    rows = [
        ("opened", live.opened_site),
        ("first used", live.first_used_site if live.first_used_site != live.opened_site else None),
        ("owner", f"{live.owner}, {live.owner_state}" if live.owner_state else live.owner),
        ("transaction", _transaction(live)),
        ("connection", _connection(live)),
        ("last statement", _last(live)),
        ("findings", findings),
    ]
    head = f"session {live.id[:6]} ({live.name}){work}: open for {live.age_seconds:.1f} s"
    return ["", head, *(f"  {label:<15} {value}" for label, value in rows if value)]


def _transaction(live: LiveSession) -> str:
    is_open = live.transaction != "none"
    return f"{live.transaction} for {live.transaction_seconds:.1f} s" if is_open else "none"


def _connection(live: LiveSession) -> str:
    if live.waits_for_pool:
        how = "being opened for" if live.is_connecting else "waited for since"
        return f"{how} {live.waiting_seconds:.1f} s, pool {live.waits_for_pool}"
    if not live.holds_connection:
        return ""
    server = "" if live.process_id is None else f", server process {live.process_id}"
    return f"held for {live.held_seconds:.1f} s, {live.sql_seconds:.1f} s of it in SQL{server}"


def _last(live: LiveSession) -> str:
    if live.last_statement_site is None:
        return ""
    return f"{live.last_statement_seconds:.1f} s ago at {live.last_statement_site}"

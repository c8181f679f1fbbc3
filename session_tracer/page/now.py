"""The document of the live page: what is open now, and what was in the last minutes."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from session_tracer.ledger.dumping import as_values
from session_tracer.ledger.owner_state import GONE
from session_tracer.ledger.pools import every_pool
from session_tracer.ledger.registry import LIVE, look
from session_tracer.page.document import entry
from session_tracer.page.recent import Recent, steps_of
from session_tracer.runtime import process

if TYPE_CHECKING:
    from session_tracer.ledger.report import Report

__all__ = ["document"]

_MOST_OPEN: Final = 100
_MOST_LINES: Final = 50


def document(recent: Recent) -> dict[str, Any]:
    """What the live page shows. No database is asked, and nothing is loaded."""
    made_at = time.time()
    ledgers = sorted(LIVE.copy(), key=lambda ledger: ledger.opened_at)
    reports = [report for ledger in ledgers for report in ledger.reports[:1]]
    lines = Counter(str(ledger.first_used_site or ledger.opened_site or "") for ledger in ledgers)
    sessions = [_open(report) for report in reports[:_MOST_OPEN]]
    pools = every_pool()
    opened = [(ledger.opened_at + ledger.epoch) / 1e9 for ledger in ledgers]
    return entry(
        kind="live",
        made_at=made_at,
        process={"process_pid": process.pid(), "host": process.host()},
        open={
            "count": len(reports),
            "left_behind": sum(one["owner_state"] in GONE for one in sessions),
            "waiting": sum(pool.waiting or 0 for pool in pools),
            "by_line": [list(one) for one in lines.most_common(_MOST_LINES)],
            "sessions": sessions,
            "left_out": len(reports) - len(sessions),
        },
        pools=[pool._asdict() for pool in pools],
        **recent.read(opened),
        compared=None,
        notes=[],
    )


def _open(report: Report) -> dict[str, Any]:
    """An open session, with the keys of `dump()`, and its steps so far if they are kept."""
    values = as_values(look(report))
    publisher = report.publisher
    timeline = () if publisher is None else publisher.timeline
    values["steps"] = steps_of(timeline)
    values["steps_left_out"] = getattr(timeline, "left_out", 0)
    return values

"""Log events as an application would have logged them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

START = 1_800_000_000.0


def event(name: str, at: float = 0.0, **fields: Any) -> dict[str, Any]:
    """An event that was logged that many seconds after the first."""
    return {
        "timestamp": datetime.fromtimestamp(START + at, UTC).isoformat(),
        "level": "info",
        "event": name,
        "session_id": "a1",
        "session_name": "shop",
        "logger": "session_tracer",
        "thread": "worker-1",
        "host": "web-1",
        "process_pid": 7,
        **fields,
    }


def closed(at: float = 0.0, **fields: Any) -> dict[str, Any]:
    """A session that was closed."""
    return event("session.closed", at, **{"outcome": "committed", "duration_ms": 10.0, **fields})


def found(at: float = 0.0, id_: str = "n-plus-one", **fields: Any) -> dict[str, Any]:
    """A finding."""
    given = {
        "finding_id": id_,
        "severity": "warning",
        "explanation": "Author.books was lazily loaded",
        "remedy": "select(Author).options(selectinload(Author.books))",
        "site": "app/views.py:33 in totals()",
        "entity": "Author",
        "attribute": "books",
        "work": "GET /totals",
    }
    return event("finding", at, **{**given, **fields})


def write(path: Path, *lines: dict[str, Any] | str | bytes) -> str:
    """Write a log; a dictionary is a line, and the rest is written as it is."""
    with path.open("wb") as log:
        for line in lines:
            if isinstance(line, dict):
                line = json.dumps(line) + "\n"
            log.write(line.encode() if isinstance(line, str) else line)
    return str(path)

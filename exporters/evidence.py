"""Formats a finding's evidence as rows, in the order of their importance for a reader."""

from __future__ import annotations

import linecache
import re
from typing import TYPE_CHECKING, Final

from session_tracer.exporters.rows import Row
from session_tracer.exporters.wording import counted, duration, entities, flush_contents, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from session_tracer.where.callsite import CallSite

    Evidence = Mapping[str, Any]

__all__ = ["LABELS", "alternatives", "evidence_rows", "places", "source_line"]

# The keys of evidence that have a row, in this order, and their labels. Some rows combine several
# keys. The other keys are for programs.
LABELS: Final = (
    ("loop", "in the loop at"),
    ("statement", "statement"),
    ("why", "why"),
    ("loaded_at", "loaded at"),
    ("departure", "left its session"),
    ("expired_at", "expired at"),
    ("committed_at", "committed at"),
    ("began_at", "transaction began at"),
    ("streamed_at", "streamed at"),
    ("read_at", "read at"),
    ("failed_at", "first failed at"),
    ("swallowed_at", "caught at"),
    ("error_code", "error code"),
    ("constraint", "constraint"),
    ("column", "column"),
    ("relationship", "relationship"),
    ("trigger", "flushed by"),
    ("new", "objects"),
    ("duration_ms", "took"),
    ("added_at", "last added at"),
    ("flushed_at", "flushed at"),
    ("first_at", "first ran at"),
    ("attributes", "attributes"),
    ("came", "loaded or added"),
    ("sizes_after_commits", "after commits"),
    ("owner", "owner"),
    ("doing", "now at"),
    ("owners", "used by"),
    ("in_use_at", "in use at"),
    ("first_used_at", "first used at"),
    ("transaction_ms", "transaction open for"),
    ("held_ms", "connection held"),
    ("sql_ms", "in SQL"),
    ("pending", "not flushed"),
    ("last_statement_at", "last statement"),
    ("last_activity_at", "last used"),
    ("used_at", "used at"),
    ("cause_at", "caused at"),
    ("closed_at", "closed at"),
    ("dropped_at", "generator dropped at"),
    ("ended_at", "ended at"),
    ("called_at", "called at"),
    ("other_opened_at", "other session opened at"),
    ("other_acquired_at", "it took its connection at"),
    ("other_committed_at", "it committed at"),
    ("other_called_at", "which was called at"),
    ("pool_size", "pool"),
    ("holders", "held by"),
    ("waiters", "waited for at"),
    ("earlier", "reported before"),
    ("identity", "primary key"),
)

_MOST_HOLDERS: Final = 6
_MOST_WORKS: Final = 3


def evidence_rows(evidence: Evidence, site: CallSite | None) -> Iterator[Row]:
    """Yield the rows of evidence; `site` is the line that is shown already."""
    for key, label in LABELS:
        if key in _SEVERAL:
            yield from _SEVERAL[key](label, evidence, site)
            continue
        words = _COMBINED[key](evidence) if key in _COMBINED else _in_words(key, evidence.get(key))
        if words:
            yield Row(label, words)


def places(evidence: Evidence) -> Iterator[Row]:
    """Yield the rows of the sites only."""
    yield from evidence_rows(
        {key: value for key, value in evidence.items() if key.endswith("_at")}, None
    )


def alternatives(evidence: Evidence) -> list[str]:
    """Return the other remedies."""
    return [str(other) for other in evidence.get("alternatives", ())]


def source_line(file: str, line: int) -> str:
    """Return the line of source, as it is on the disk now."""
    linecache.checkcache(file)
    return plain(linecache.getline(file, line).strip())


# How an object left its session. The place and the time follow.
_DEPARTURES: Final = {
    "close": "session closed at",
    "reset": "session reset at",
    "invalidate": "session invalidated at",
    "collected": "session collected at",
    "exit": "session left at",
    "expunge": "expunged at",
    "expunge_all": "all expunged at",
    "deleted": "deleted at",
}


def _departure(_label: str, evidence: Evidence, _site: CallSite | None) -> Iterator[Row]:
    label = _DEPARTURES.get(str(evidence.get("departure", "")))
    if label is None:
        return
    ago = _in_words("departed_ago_ms", evidence.get("departed_ago_ms"))
    site = _in_words("departed_at", evidence.get("departed_at"))
    text = _listed(site, f"{ago} before" if ago else "")
    if text:
        yield Row(label if site else label.removesuffix(" at"), text)


# A site in evidence. No other key contains its line of source.
_SITE: Final = re.compile(r"(?P<file>.+):(?P<line>\d+) in [^ ]+")


def _doing(label: str, evidence: Evidence, site: CallSite | None) -> Iterator[Row]:
    frames = [plain(str(frame)) for frame in evidence.get("doing", ())]
    if frames and site is not None and frames[0] == plain(str(site)):
        del frames[0]
        label = "called from"
    for frame in frames:
        found = _SITE.fullmatch(frame)
        source = source_line(found["file"], int(found["line"])) if found else ""
        yield Row(label, f"{frame}  {source}" if source else frame, hangs=True)
        label = "called from" if label == "now at" else ""


def _loop(label: str, evidence: Evidence, site: CallSite | None) -> Iterator[Row]:
    loop = str(evidence.get("loop", ""))
    if loop and loop != str(site):
        found = _SITE.fullmatch(loop)
        source = source_line(found["file"], int(found["line"])) if found else ""
        yield Row(label, f"{plain(loop)}  {source}" if source else plain(loop), hangs=True)


def _holders(label: str, evidence: Evidence, _site: CallSite | None) -> Iterator[Row]:
    """Yield one row for each line whose sessions hold connections; the longest are first."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for holder in evidence.get("holders", ()):
        lines.setdefault(_held_at(holder), []).append(holder)
    for line, holders in list(lines.items())[:_MOST_HOLDERS]:
        yield Row(label, f"{line}: {_held_by(holders)}", hangs=True)
        label = ""
    if len(lines) > _MOST_HOLDERS:
        yield Row("", f"… {len(lines) - _MOST_HOLDERS} more lines")
    if others := evidence.get("other_holders"):
        yield Row("", f"… {counted(others, 'more session')}")
    if untraced := evidence.get("untraced"):
        yield Row(label, f"no traced session: {counted(untraced, 'connection')}")


def _waiters(label: str, evidence: Evidence, _site: CallSite | None) -> Iterator[Row]:
    """Yield one row for each line at which others wait; where most wait is first."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for waiter in evidence.get("waiters", ()):
        lines.setdefault(plain(str(waiter.get("waits_at", "?"))), []).append(waiter)
    for line, waiters in list(lines.items())[:_MOST_HOLDERS]:
        number = sum(one["sessions"] for one in waiters)
        waited = _in_words("waiting_ms", max(one["waiting_ms"] for one in waiters))
        works = [_in_words("work", one["work"]) for one in waiters if "work" in one]
        words = _listed(
            f"1 for {waited}" if number == 1 else f"{number}, the first for {waited}",
            *works[:_MOST_WORKS],
            "…" if len(works) > _MOST_WORKS else "",
        )
        yield Row(label, f"{line}: {words}", hangs=True)
        label = ""
    if len(lines) > _MOST_HOLDERS:
        yield Row("", f"… {len(lines) - _MOST_HOLDERS} more lines")


def _held_at(holder: Mapping[str, Any]) -> str:
    line = holder.get("first_used_at") or holder.get("opened_at") or holder["session_name"]
    return plain(str(line))


def _held_by(holders: list[Mapping[str, Any]]) -> str:
    """Return how many they are and what is known of the first, which has held one the longest."""
    first, number = holders[0], len(holders)
    held = _in_words("held_ms", first.get("held_ms"))
    processes = [str(one["process_id"]) for one in holders if "process_id" in one]
    return _listed(
        f"1 for {held}" if number == 1 else f"{number}, the first for {held}",
        _in_words("work", first.get("work")),
        _owner(first),
        f"now at {plain(str(first['now_at']))}" if "now_at" in first else "",
        f"server process {' '.join(processes)}" if processes else "",
    )


def _pool(evidence: Evidence) -> str:
    used, size = evidence.get("checked_out"), evidence.get("pool_size")
    if used is None or size is None:
        return ""
    connecting, waiting = evidence.get("connecting"), evidence.get("waiting")
    return _listed(
        f"{used} in use, size {size}, overflow {evidence.get('pool_overflow', 0)}",
        f"{connecting} being opened" if connecting else "",
        f"{waiting} more waiting" if waiting else "",
    )


# The keys that have rows of their own.
_SEVERAL: Final[Mapping[str, Callable[[str, Evidence, CallSite | None], Iterator[Row]]]] = {
    "departure": _departure,
    "doing": _doing,
    "holders": _holders,
    "loop": _loop,
    "waiters": _waiters,
}


# What triggers a flush, as it is written in code.
_TRIGGERS: Final = {
    "explicit": "flush()",
    "autoflush": "autoflush",
    "commit": "commit()",
    "savepoint": "begin_nested()",
}


def _trigger(evidence: Evidence) -> str:
    return _TRIGGERS.get(str(evidence.get("trigger")), "")


def _objects(evidence: Evidence) -> str:
    kinds = (evidence.get(kind) or {} for kind in ("new", "dirty", "deleted"))
    return " ".join(flush_contents(*kinds))


# What an owner does that is not at work with the session.
_OWNER_STATES: Final = {
    "suspended": "the generator that opened the session is not resumed",
    "returned": "goes on with other work",
    "ended": "has ended",
    "cancelled": "was cancelled",
    "failed": "has failed",
}


def _owner(evidence: Evidence) -> str:
    state = _OWNER_STATES.get(str(evidence.get("owner_state")), "")
    return _listed(_in_words("owner", evidence.get("owner")), state)


def _held(evidence: Evidence) -> str:
    held = _in_words("held_ms", evidence.get("held_ms"))
    process = evidence.get("process_id")
    return f"{held}, server process {process}" if held and process is not None else held


def _sql(evidence: Evidence) -> str:
    sql, number = _in_words("sql_ms", evidence.get("sql_ms")), evidence.get("statements")
    if not sql or number == 0:
        return ""
    return sql if number is None else f"{sql}, {counted(number, 'statement')}"


def _unflushed(evidence: Evidence) -> str:
    added = _in_words("pending", evidence.get("pending"))
    modified, deleted = evidence.get("modified_objects"), evidence.get("deleted_objects")
    return _listed(
        f"{added} added" if added else "",
        f"{modified} modified" if modified else "",
        f"{deleted} deleted" if deleted else "",
    )


def _closed(evidence: Evidence) -> str:
    by = _in_words("closed_by", evidence.get("closed_by"))
    return _listed(_in_words("closed_at", evidence.get("closed_at")), f"by {by}" if by else "")


def _last_statement(evidence: Evidence) -> str:
    return _last(evidence.get("last_statement_ago_ms"), evidence.get("last_statement_at"))


def _last_activity(evidence: Evidence) -> str:
    return _last(evidence.get("last_activity_ago_ms"), evidence.get("last_activity_at"))


def _last(ms_ago: object, at: object) -> str:
    ago, site = _in_words("_ms", ms_ago), _in_words("", at)
    return " ".join(filter(None, [f"{ago} ago" if ago else "", f"at {site}" if site else ""]))


def _growth(evidence: Evidence) -> str:
    return " → ".join(str(size) for size in evidence.get("sizes_after_commits", ()))


# The keys whose rows combine several keys.
_COMBINED: Final[Mapping[str, Callable[[Evidence], str]]] = {
    "trigger": _trigger,
    "new": _objects,
    "owner": _owner,
    "held_ms": _held,
    "sql_ms": _sql,
    "pending": _unflushed,
    "closed_at": _closed,
    "last_statement_at": _last_statement,
    "last_activity_at": _last_activity,
    "pool_size": _pool,
    "sizes_after_commits": _growth,
}


def _listed(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _in_words(key: str, value: object) -> str:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, int | float):
        return duration(value) if "_ms" in key else f"{value}"
    if isinstance(value, dict):
        return entities(value)
    if isinstance(value, list | tuple):
        return ", ".join(plain(str(item)) for item in value)
    return ""

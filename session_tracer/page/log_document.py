"""The document of a log: its findings, its slowest and busiest sessions, and what was stuck."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from session_tracer.model.findings import LASTING
from session_tracer.page.document import FindingGroups, OverTime, Top, entry, place_of
from session_tracer.page.log_lines import number, text, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from session_tracer.page.log_lines import LogLine

__all__ = ["LogSummary", "compared"]

_MOST_GROUPS: Final = 1_000
_MOST_TOP: Final = 25
_MOST_STUCK: Final = 200
_MOST_UNFINISHED: Final = 2_000
_MOST_STEPS: Final = 60
_MOST_PERIODS: Final = 240
_MOST_COMPARED: Final = 10_000
_MOST_NAMES: Final = 20
_LONG: Final = 4_000
_ENOUGH: Final = 3
_GROWN: Final = 1.5


class Compared(NamedTuple):
    """What makes two findings of two logs the same: its line may have moved in its function."""

    finding_id: str
    entity: str
    attribute: str
    file: str
    function: str
    work: str


class LogSummary:
    """Adds up a log line by line, in a memory that does not grow with the log."""

    def __init__(self) -> None:
        self.lines = 0
        self.sessions = 0
        self.findings: Counter[Compared] = Counter()
        self._first_at = self._last_at = 0.0
        self._groups = FindingGroups(_MOST_GROUPS)
        self._slowest, self._busiest = Top(_MOST_TOP), Top(_MOST_TOP)
        self._times = OverTime(1, _MOST_PERIODS)
        # By session, the findings that last and are not retracted.
        self._stuck: OrderedDict[str, LogLine] = OrderedDict()
        self._stuck_left_out = 0
        # The steps of sessions that are not closed yet.
        self._steps: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        self._dropped = 0
        self._hosts: set[str] = set()
        self._services: set[str] = set()
        self._processes: set[tuple[str, str]] = set()

    def add(self, line: LogLine) -> None:
        """Add an event."""
        self.lines += 1
        self._last_at = max(self._last_at, line.at)
        self._first_at = min(self._first_at or line.at, line.at)
        _ADDED[line.name](self, line)

    def _closed(self, line: LogLine) -> None:
        event, at = line.event, line.at
        duration, statements = number(event, "duration_ms"), number(event, "statements")
        id_ = text(event, "session_id")
        self.sessions += 1
        self._times.closed(at)
        self._times.opened(at - duration / 1e3)
        self._stuck.pop(id_, None)
        steps = self._steps.pop(id_, [])
        findings = event.get("findings")
        listed = findings if isinstance(findings, list) else []
        listed = [one for one in listed if isinstance(one, dict)]
        self._groups.totals(listed)
        if self._slowest.takes(duration) or self._busiest.takes(statements):
            session = _session(line, listed, steps)
            self._slowest.add(duration, session)
            self._busiest.add(statements, session)
        self._came_from(event)

    def _suppressed(self, line: LogLine) -> None:
        if line.event["suppressed_event"] == "session.closed":
            count = int(number(line.event, "suppressed"))
            self.sessions += count
            self._times.closed(line.at, count)
            self._times.opened(line.at, count)

    def _found(self, line: LogLine) -> None:
        event = line.event
        count = 1 + int(number(event, "suppressed"))
        cut = {key: text(event, key) for key in _SHORT}
        cut |= {key: text(event, key, _LONG) for key in ("explanation", "remedy")}
        self._groups.add(cut, line.at, count)
        place = place_of(cut["site"])
        parts = cut["finding_id"], cut["entity"], cut["attribute"]
        key = Compared(*parts, place.file, place.function, cut["work"])
        if key in self.findings or len(self.findings) < _MOST_COMPARED:
            self.findings[key] += count
        self._step(line, "finding", cut["finding_id"])
        if cut["finding_id"] in LASTING:
            self._lasts(line)
        self._came_from(event)

    def _lasts(self, line: LogLine) -> None:
        id_ = text(line.event, "session_id")
        before = self._stuck.pop(id_, None)
        event = line.event if before is None else before.event | line.event
        self._stuck[id_] = line._replace(event=event)
        if len(self._stuck) > _MOST_STUCK:
            self._stuck.popitem()
            self._stuck_left_out += 1

    def _retracted(self, line: LogLine) -> None:
        self._groups.retracted(line.event)
        stuck = self._stuck.get(text(line.event, "session_id"))
        if stuck is not None and stuck.event["finding_id"] == line.event["finding_id"]:
            del self._stuck[text(line.event, "session_id")]

    def _transaction(self, line: LogLine) -> None:
        outcome = text(line.event, "outcome")
        self._step(line, "savepoint" if line.event.get("nested") else "transaction", outcome)

    def _flushed(self, line: LogLine) -> None:
        self._step(line, "flush", text(line.event, "trigger"))

    def _lost(self, line: LogLine) -> None:
        self._dropped += int(number(line.event, "count"))

    def _nothing(self, line: LogLine) -> None:
        pass

    def _step(self, line: LogLine, verb: str, subject: str) -> None:
        id_ = text(line.event, "session_id")
        steps = self._steps.get(id_)
        if steps is None:
            if len(self._steps) >= _MOST_UNFINISHED:
                self._steps.popitem(last=False)
            steps = self._steps[id_] = []
        if len(steps) < _MOST_STEPS:
            took = 0 if verb == "finding" else number(line.event, "duration_ms")
            steps.append(
                {
                    "at_ms": line.at * 1e3 - took,  # of the session's beginning, once it is known
                    "duration_ms": took,
                    "verb": verb,
                    "subject": subject,
                    "site": text(line.event, "site"),
                    "count": 1,
                    "error_type": text(line.event, "error_type"),
                }
            )

    def _came_from(self, event: dict[str, Any]) -> None:
        host, pid = text(event, "host"), text(event, "process_pid")
        service = f"{text(event, 'service')} {text(event, 'service_version')}".strip()
        for names, name in ((self._hosts, host), (self._services, service)):
            if name and len(names) < _MOST_NAMES:
                names.add(name)
        if len(self._processes) < _MOST_COMPARED:
            self._processes.add((host, pid))

    def document(
        self, files: list[str], notes: list[str], difference: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The document that the page shows."""
        stuck = [_stuck(line, self._last_at) for line in self._stuck.values()]
        stuck.sort(key=lambda one: -one["age_seconds"])
        if self._dropped:
            notes = [*notes, f"{self._dropped} events were not written: the log was too slow."]
        return entry(
            kind="report",
            made_at=time.time(),
            files=files,
            first_at=self._first_at,
            last_at=self._last_at,
            process={
                "count": len(self._processes),
                "hosts": sorted(self._hosts),
                "services": sorted(self._services),
            },
            open={
                "count": len(stuck) + self._stuck_left_out,
                "sessions": stuck,
                "left_out": self._stuck_left_out,
            },
            findings=self._groups.listed(),
            findings_left_out=self._groups.left_out,
            sessions={
                "count": self.sessions,
                "slowest": self._slowest.listed(),
                "busiest": self._busiest.listed(),
            },
            over_time=self._times.listed(),
            compared=difference,
            notes=notes,
        )


_ADDED: Final[dict[str, Callable[[LogSummary, LogLine], None]]] = {
    "session.opened": LogSummary._nothing,
    "session.closed": LogSummary._closed,
    "transaction.ended": LogSummary._transaction,
    "flush.completed": LogSummary._flushed,
    "flush.failed": LogSummary._flushed,
    "finding": LogSummary._found,
    "finding.lasting": LogSummary._lasts,
    "finding.retracted": LogSummary._retracted,
    "suppressed": LogSummary._suppressed,
    "session_tracer.dropped": LogSummary._lost,
}

_SHORT: Final = (
    *("finding_id", "severity", "site", "session_site", "entity", "attribute", "work", "loop"),
    "help",
)
_NUMBERS: Final = (
    *("duration_ms", "held_ms", "sql_ms", "statements", "flushes", "failed_flushes"),
    *("commits", "rollbacks", "loaded", "new", "dirty", "deleted"),
)
_TEXTS: Final = (
    *("session_id", "session_name", "work", "outcome", "ending", "error_type", "session_site"),
    *("site", "trace_id", "host", "process_pid"),
)


def _session(
    line: LogLine, findings: list[dict[str, Any]], steps: list[dict[str, Any]]
) -> dict[str, Any]:
    event = line.event
    opened_at = line.at - number(event, "duration_ms") / 1e3
    for step in steps:
        step["at_ms"] = round(max(step["at_ms"] - opened_at * 1e3, 0), 3)
    return {
        **{key: text(event, key) for key in _TEXTS},
        **{key: number(event, key) for key in _NUMBERS},
        "async": event.get("async") is True,
        "owner": _owner(event),
        "opened_at": opened_at,
        "findings": [text(one, "finding_id") for one in findings],
        "steps": sorted(steps, key=lambda step: step["at_ms"]),
        "steps_left_out": 0,
    }


def _owner(event: dict[str, Any]) -> str:
    kind = "task" if "task" in event else "thread"
    name = text(event, kind)
    return text(event, "owner") or (f'{kind} "{name}"' if name else "")


def _stuck(line: LogLine, last_at: float) -> dict[str, Any]:
    """A session that was stuck when the log ended, with the keys of one that is open."""
    event, since = line.event, max(last_at - line.at, 0)
    held = number(event, "held_ms") / 1e3
    return {
        "id": text(event, "session_id"),
        "name": text(event, "session_name"),
        "work": text(event, "work"),
        "age_seconds": round(number(event, "age_ms") / 1e3 + since, 3),
        "opened_site": text(event, "session_site"),
        "first_used_site": text(event, "first_used_site") or text(event, "site"),
        "owner": _owner(event),
        "owner_state": text(event, "owner_state"),
        "owner_stack": texts(event, "doing"),
        "transaction": text(event, "transaction"),
        "transaction_seconds": round(number(event, "transaction_ms") / 1e3 + since, 3),
        **({"holds_connection": True, "held_seconds": round(held + since, 3)} if held else {}),
        "process_id": text(event, "process_id"),
        "last_statement_seconds": round(number(event, "last_statement_ago_ms") / 1e3 + since, 3),
        "last_statement_site": text(event, "last_statement_at"),
        "findings": [text(event, "finding_id")],
        "explanation": text(event, "explanation", _LONG),
        "steps": [],
        "steps_left_out": 0,
    }


def compared(now: LogSummary, before: LogSummary, name: str) -> dict[str, Any]:
    """What is new, gone or more frequent in one log, compared with an earlier one.

    A finding is more frequent if there are at least half as many again for each session, and at
    least three more than as many sessions had before.
    """
    new: list[dict[str, Any]] = []
    gone: list[dict[str, Any]] = []
    grown: list[dict[str, Any]] = []
    for key in {**before.findings, **now.findings}:
        was, is_ = before.findings[key], now.findings[key]
        row = {
            **key._asdict(),
            "before": was,
            "now": is_,
            "before_rate": _rate(was, before.sessions),
            "now_rate": _rate(is_, now.sessions),
        }
        expected = was * now.sessions / before.sessions if before.sessions else was
        if not was:
            new.append(row)
        elif not is_:
            gone.append(row)
        elif is_ >= _GROWN * expected and is_ - expected >= _ENOUGH:
            grown.append(row)
    return {
        "with": name,
        "before_sessions": before.sessions,
        "now_sessions": now.sessions,
        **{
            kind: sorted(rows, key=lambda row: (-row["now"], -row["before"]))[:_MOST_GROUPS]
            for kind, rows in (("new", new), ("grown", grown), ("gone", gone))
        },
    }


def _rate(count: int, sessions: int) -> float:
    """How many there are in a thousand sessions."""
    return round(count * 1_000 / max(sessions, 1), 1)

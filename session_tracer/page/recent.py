"""The sessions that ended in the last minutes, and what was found in them."""

from __future__ import annotations

import time
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from session_tracer.model.findings import Finding
from session_tracer.page.document import FindingGroups, OverTime, Top
from session_tracer.runtime import process, threads
from session_tracer.tracer import unwatch, watch, watching_changed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Retraction
    from session_tracer.model.timeline import Step

__all__ = ["Recent", "steps_of"]

_MOST_LATEST: Final = 50
_MOST_TOP: Final = 20
_MOST_GROUPS: Final = 200
_MOST_WAITING: Final = 200
_MINUTES: Final = 15
_PERIOD_SECONDS: Final = 10
# Timelines are kept for that long after the page was read.
_READ_SECONDS: Final = 60

_NUMBERS: Final = ("statements", "flushes", "failed_flushes", "commits", "rollbacks")
_COUNTS: Final = ("loaded", "new", "dirty", "deleted")
_values: Final = attrgetter(
    *("id", "work", "outcome", "ending", "error", "epoch", "opened_at", "closed_at"),
    *("held", "sql", "opened_site", "closed_site", "owner.name", "is_async"),
    *_NUMBERS,
    *_COUNTS,
)


class Recent:
    """Watches every tracer while a live page exists, and keeps plain values with a bounded size.

    The application's threads only append to a queue; what is in it is added up when the page is
    read, or when many wait. No thread ever waits for another one.
    """

    wants_sessions = True
    wants_steps = False

    def __init__(self) -> None:
        self._kept = process.PerProcess(_Kept)
        self._read_until = 0.0
        watch(self)

    def stop(self) -> None:
        """Watch no more."""
        unwatch(self)

    def session(self, report: Report) -> None:
        """A scope has ended."""
        ledger = report.ledger
        if ledger.reports and ledger.reports[0] is not report:
            return  # another tracer reports it, too
        timeline = None if report.publisher is None else report.publisher.timeline
        kept = self._kept.value
        kept.ended.append((report.name, _values(ledger), report.findings, timeline))
        if len(kept.ended) > _MOST_WAITING:
            kept.settle(wait=False)
            if self.wants_steps and time.monotonic() > self._read_until:
                self.wants_steps = False
                watching_changed()

    def finding(self, finding: Finding, report: Report) -> None:
        """Something was found."""
        if not report.ledger.reports or report.ledger.reports[0] is report:
            self._found(finding)

    def retracted(self, retraction: Retraction, report: Report) -> None:
        """Something has ended that was found."""
        if not report.ledger.reports or report.ledger.reports[0] is report:
            self._found(retraction)

    def _found(self, verdict: Finding | Retraction) -> None:
        kept = self._kept.value
        kept.found.append((time.time(), verdict))
        if len(kept.found) > _MOST_WAITING:
            kept.settle(wait=False)

    def read(self, opened: Iterable[float]) -> dict[str, Any]:
        """The parts of the document about what was; `opened` is when the open sessions began.

        Timelines are kept from now on, as long as the page is read.
        """
        self._read_until = time.monotonic() + _READ_SECONDS
        if not self.wants_steps:
            self.wants_steps = True
            watching_changed()
        kept = self._kept.value
        kept.settle(wait=True)
        return kept.listed(opened)


class _Kept:
    """What one process has kept."""

    def __init__(self) -> None:
        self.ended: deque[tuple[Any, ...]] = deque()
        self.found: deque[tuple[float, Finding | Retraction]] = deque()
        self._lock = threads.Lock()
        self._latest: deque[tuple[Any, ...]] = deque(maxlen=_MOST_LATEST)
        # By minute, so that they can be forgotten: the slowest and the busiest.
        self._minutes: dict[int, tuple[Top, Top]] = {}
        self._groups = FindingGroups(_MOST_GROUPS)
        self._times = OverTime(_PERIOD_SECONDS, _MINUTES * 60 // _PERIOD_SECONDS, keep="last")
        self._count = 0

    def settle(self, *, wait: bool) -> None:
        """Add up what waits, unless another thread does so and `wait` is false."""
        if not self._lock.acquire(blocking=wait):
            return
        try:
            # What was found in these is in the other queue: their totals need its groups.
            count = len(self.ended)
            while self.found:
                self._add_finding(*self.found.popleft())
            for _ in range(count):
                self._add(self.ended.popleft())
        finally:
            self._lock.release()

    def _add(self, one: tuple[Any, ...]) -> None:
        _, values, findings, _ = one
        *_, epoch, opened_at, closed_at = values[:8]
        self._count += 1
        self._latest.append(one)
        self._times.opened((opened_at + epoch) / 1e9)
        self._times.closed((closed_at + epoch) / 1e9)
        minute = (closed_at + epoch) // 60_000_000_000
        tops = self._minutes.get(minute)
        if tops is None:
            tops = self._minutes[minute] = Top(_MOST_TOP), Top(_MOST_TOP)
            for old in sorted(self._minutes)[:-_MINUTES]:
                del self._minutes[old]
        tops[0].add(closed_at - opened_at, one)
        tops[1].add(values[_STATEMENTS], one)
        self._groups.totals(_total(finding) for finding in findings if finding.total is not None)

    def _add_finding(self, at: float, verdict: Finding | Retraction) -> None:
        finding = verdict if isinstance(verdict, Finding) else verdict.finding
        event = {
            "finding_id": finding.id,
            "severity": finding.severity,
            "explanation": finding.message,
            "remedy": finding.remedy,
            "help": finding.help,
            "site": _text(finding.site),
            "session_site": _text(finding.session_site),
            "entity": finding.entity,
            "attribute": finding.attribute,
            "work": finding.work,
            "loop": finding.evidence.get("loop"),
        }
        if verdict is finding:
            self._groups.add(event, at)
        else:
            self._groups.retracted(event)

    def listed(self, opened: Iterable[float]) -> dict[str, Any]:
        """The parts of the document, each list bounded."""
        now = time.time()
        with self._lock:
            since = now // 60 - _MINUTES
            recent = [tops for minute, tops in self._minutes.items() if minute > since]
            slowest, busiest = Top(_MOST_TOP), Top(_MOST_TOP)
            for of_duration, of_statements in recent:
                for one in of_duration.listed():
                    slowest.add(one[1][7] - one[1][6], one)
                for one in of_statements.listed():
                    busiest.add(one[1][_STATEMENTS], one)
            times = self._times.listed(now)
            for at in opened:
                period = int((at - times["start"]) // _PERIOD_SECONDS)
                if 0 <= period < len(times["opened"]):
                    times["opened"][period] += 1
            return {
                "findings": self._groups.listed(),
                "findings_left_out": self._groups.left_out,
                "sessions": {
                    "count": self._count,
                    "slowest": [_session(one) for one in slowest.listed()],
                    "busiest": [_session(one) for one in busiest.listed()],
                    "latest": [_session(one) for one in reversed(self._latest)],
                },
                "over_time": times,
            }


# The place of the number of statements among the values.
_STATEMENTS: Final = 14


def _total(finding: Finding) -> dict[str, Any]:
    total = finding.total
    return {
        "finding_id": finding.id,
        "site": _text(finding.site),
        "entity": finding.entity,
        "attribute": finding.attribute,
        "total": 0 if total is None else total.count,
        "total_ms": 0 if total is None else total.ms,
    }


def _text(site: object) -> str:
    return "" if site is None else str(site)


def _session(one: tuple[Any, ...]) -> dict[str, Any]:
    """A session that has ended, with the keys of its log event."""
    name, values, findings, timeline = one
    id_, work, outcome, ending, error, epoch, opened_at, closed_at, *rest = values
    held, sql, opened_site, closed_site, owner, is_async, *numbers = rest
    counts = numbers[len(_NUMBERS) :]
    return {
        "session_id": id_,
        "session_name": name,
        "work": work,
        "outcome": outcome or "closed",
        "ending": ending,
        "error_type": error,
        "async": is_async,
        "owner": owner,
        "opened_at": (opened_at + epoch) / 1e9,
        "duration_ms": round((closed_at - opened_at) / 1e6, 3),
        "held_ms": round(held / 1e6, 3),
        "sql_ms": round(sql / 1e6, 3),
        "session_site": _text(opened_site),
        "site": _text(closed_site),
        **dict(zip(_NUMBERS, numbers, strict=False)),
        **{key: sum(by.values()) for key, by in zip(_COUNTS, counts, strict=True)},
        "findings": [finding.id for finding in findings],
        "steps": [] if timeline is None else steps_of(timeline),
        "steps_left_out": 0 if timeline is None else timeline.left_out,
    }


def steps_of(timeline: Iterable[Step]) -> list[dict[str, Any]]:
    """The steps of a timeline, which its thread may be adding to at this moment."""
    for _ in range(3):
        try:
            steps = list(timeline)
            break
        except RuntimeError:  # the deque has changed
            steps = []
    return [
        {
            "at_ms": round(step.at / 1e6, 3),
            "duration_ms": round(step.duration / 1e6, 3),
            "verb": step.verb,
            "subject": step.subject,
            "site": _text(step.site),
            "count": step.count,
            "error_type": step.error,
        }
        for step in steps
    ]

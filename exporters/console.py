"""Writes each session scope as it ends, and each finding, where people see it: on the terminal."""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from rich.text import Text

from session_tracer.exporter import Exporter
from session_tracer.exporters.finding_block import (
    finding_block,
    finding_reminder,
    retraction_block,
    retraction_note,
)
from session_tracer.exporters.screen import Screen
from session_tracer.exporters.session_block import is_quiet, session_head, timeline_lines
from session_tracer.exporters.wording import cropped, duration, plain
from session_tracer.model.findings import Finding, Retraction
from session_tracer.runtime.background_queue import BackgroundQueue
from session_tracer.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from typing import TextIO

    from session_tracer.model.summary import SessionSummary

__all__ = ["console_exporter", "open_exporter"]

# A finding waits so long for its session's block; then it is told by itself.
_GRACE_SECONDS: Final = 0.3
# Sessions that resemble each other are told one by one up to so many a second, then summed up.
_ALIKE_A_SECOND: Final = 10
# How many sessions, sites and kinds of session are remembered for all that.
_MOST_REMEMBERED: Final = 1000


def open_exporter(settings: Settings) -> Exporter:
    """Writes to standard error, in colour and to its width where that is a terminal."""
    return console_exporter(settings=settings)


def console_exporter(
    stream: TextIO | None = None,
    width: int | None = None,
    colour: bool | None = None,
    settings: Settings | None = None,
) -> Exporter:
    """Writes to `stream` (standard error), `width` columns wide, with or without `colour`.

    What is not said is found out: a terminal tells its width, and has colours unless `NO_COLOR` is
    set; anything else is as wide as `COLUMNS`, or 100, and has none. Writing is a thread's job, so
    that a slow terminal never holds up the application.
    """
    screen = Screen(stream, width, colour)
    writer = _Writer(screen, Settings() if settings is None else settings)
    queue: BackgroundQueue[_Told] = BackgroundQueue(
        writer.consume, name="session_tracer console", lost=writer.lost, settle=writer.settle
    )

    def flush() -> None:
        queue.flush()

    def close() -> None:
        queue.close()

    return Exporter(
        on_session=queue.put,
        on_finding=queue.put,
        on_retraction=queue.put,
        flush=flush,
        close=close,
    )


_Key: TypeAlias = "tuple[Hashable, ...]"
_Told: TypeAlias = "SessionSummary | Finding | Retraction"
K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Telling:
    """When a finding was told in full, for which session, and how many like it were held back."""

    at: float
    session_id: str
    finding: Finding
    held_back: int = 0


@dataclass(slots=True)
class _Burst:
    """Sessions of one kind that ended within one second."""

    since: float
    like: SessionSummary
    told: int = 0
    held_back: int = 0
    shortest: float = float("inf")
    longest: float = 0.0


class _Writer:
    """Decides what is written in full, in short, later, or summed up, on the queue's thread."""

    def __init__(
        self, screen: Screen, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._screen = screen
        self._slow_ms = settings.slow_session_seconds * 1000
        self._repeat_seconds = settings.repeat_finding_seconds
        self._clock = clock
        self._forget()

    def consume(self, told: _Told) -> None:
        """Tell a session that ended, a finding, or that one is taken back."""
        if self._process != os.getpid():
            self._forget()  # what is held back here, the parent tells
        if isinstance(told, Finding | Retraction):
            self._waiting.append((self._clock() + _GRACE_SECONDS, told))
        else:
            self._session(told)

    def settle(self, everything: bool) -> float | None:
        """Tell what has waited long enough, or everything; seconds until there is more."""
        if self._process != os.getpid():
            self._forget()
        now = self._clock()
        due = [
            *self._settle_waiting(now, everything),
            *self._settle_repeated(now, everything),
            *self._settle_bursts(now, everything),
        ]
        return max(min(due) - now, 0.0) if due else None

    def lost(self, count: int) -> None:
        """Say that the terminal could not keep up."""
        told = "1 session or finding" if count == 1 else f"{count} sessions and findings"
        self._short(f"… {told} not shown: more came than could be written")

    def _forget(self) -> None:
        self._process = os.getpid()
        self._waiting: deque[tuple[float, Finding | Retraction]] = deque()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._tellings: OrderedDict[_Key, _Telling] = OrderedDict()
        self._in_full: OrderedDict[_Key, None] = OrderedDict()
        self._repeated: dict[_Key, _Telling] = {}
        self._bursts: OrderedDict[_Key, _Burst] = OrderedDict()

    def _session(self, summary: SessionSummary) -> None:
        _remember(self._ended, summary.id, None)
        retracted = self._take_waiting(summary)
        findings = _folded(summary.findings)
        known = [self._telling(finding, summary.id) for finding, _ in findings]
        if None not in known and self._is_one_of_many(summary):
            return
        width = self._screen.width
        quiet = is_quiet(summary, self._slow_ms)
        lines = session_head(summary, width, slow_ms=self._slow_ms, quiet=quiet)
        if not quiet:
            lines += timeline_lines(summary, width)
        for (finding, times), telling in zip(findings, known, strict=True):
            lines += [Text(), *self._full_or_short(finding, telling, width)]
            if times > 1:
                lines.append(Text(f"      … {_more(times - 1)} in this session", "dim"))
            for retraction in retracted:
                if retraction.finding == finding:
                    lines += retraction_note(retraction, width, indent=6)
        self._screen.write(lines, apart=not quiet)

    def _full_or_short(self, finding: Finding, telling: _Telling | None, width: int) -> list[Text]:
        if telling is None:
            self._note(finding)
            return finding_block(finding, width, indent=2)
        same = telling.session_id == finding.session_id
        told = "told in full above" if same else f"told in full above, {_named(telling.finding)}"
        return finding_reminder(finding, width, indent=2, told=told)

    def _take_waiting(self, summary: SessionSummary) -> list[Retraction]:
        """Hold back no more what the session's own block tells; the retractions among it."""
        retracted: list[Retraction] = []
        kept: deque[tuple[float, Finding | Retraction]] = deque()
        for due, one in self._waiting:
            finding = one.finding if isinstance(one, Retraction) else one
            if finding.session_id != summary.id or finding not in summary.findings:
                kept.append((due, one))
            elif isinstance(one, Retraction):
                retracted.append(one)
        self._waiting = kept
        return retracted

    def _finding(self, finding: Finding) -> None:
        """Tell a finding by itself, unless it repeats a recent one."""
        telling = self._telling(finding)
        if telling is not None:
            telling.held_back += 1
            self._repeated[_key(finding)] = telling
            return
        self._screen.write(finding_block(finding, self._screen.width, session=True), apart=True)
        self._note(finding)

    def _retraction(self, retraction: Retraction) -> None:
        """Take a finding back, unless it was never told in full."""
        key = (retraction.finding.session_id, *_key(retraction.finding))
        if key in self._in_full:
            del self._in_full[key]
            self._screen.write(retraction_block(retraction, self._screen.width), apart=True)

    def _telling(self, finding: Finding, session_id: str = "") -> _Telling | None:
        """When this was told: lately for any session, or at any time for this one."""
        telling = self._tellings.get(_key(finding))
        if telling is None or telling.session_id == session_id:
            return telling
        return telling if self._clock() - telling.at < self._repeat_seconds else None

    def _note(self, finding: Finding) -> None:
        telling = _Telling(self._clock(), finding.session_id, finding)
        _remember(self._tellings, _key(finding), telling)
        _remember(self._in_full, (finding.session_id, *_key(finding)), None)

    def _is_one_of_many(self, summary: SessionSummary) -> bool:
        """Whether enough like it were told this second; it is counted then."""
        key = _kind(summary)
        burst = self._bursts.get(key)
        if burst is None:
            burst = _Burst(self._clock(), summary)
            _remember(self._bursts, key, burst)
        if burst.told < _ALIKE_A_SECOND:
            burst.told += 1
            return False
        burst.held_back += 1
        burst.shortest = min(burst.shortest, summary.duration_ms)
        burst.longest = max(burst.longest, summary.duration_ms)
        return True

    def _settle_waiting(self, now: float, everything: bool) -> list[float]:
        while self._waiting:
            due, one = self._waiting[0]
            whose = (one.finding if isinstance(one, Retraction) else one).session_id
            # A session that has ended says nothing any more.
            if not everything and due > now and whose not in self._ended:
                return [due]
            self._waiting.popleft()
            if isinstance(one, Retraction):
                self._retraction(one)
            else:
                self._finding(one)
        return []

    def _settle_repeated(self, now: float, everything: bool) -> list[float]:
        due: list[float] = []
        for key, telling in list(self._repeated.items()):
            if not everything and telling.at + self._repeat_seconds > now:
                due.append(telling.at + self._repeat_seconds)
                continue
            del self._repeated[key]
            site = f" at {telling.finding.site}" if telling.finding.site else ""
            self._short(f"… {telling.finding.id} {_more(telling.held_back)}{site}")
            telling.held_back = 0
        return due

    def _settle_bursts(self, now: float, everything: bool) -> list[float]:
        due: list[float] = []
        for key, burst in list(self._bursts.items()):
            if not everything and burst.since + 1 > now:
                due.append(burst.since + 1)
                continue
            del self._bursts[key]
            if burst.held_back:
                self._short(_summed_up(burst))
        return due

    def _short(self, text: str) -> None:
        line = Text(cropped(plain(text), self._screen.width), "dim")
        self._screen.write([line], apart=False)


def _summed_up(burst: _Burst) -> str:
    like = burst.like
    opened = f" · opened {like.opened_site}" if like.opened_site else ""
    return (
        f"… {burst.held_back} more like it: session {like.name} · {like.outcome.replace('_', ' ')}"
        f" · {duration(burst.shortest)} to {duration(burst.longest)}{opened}"
    )


def _folded(findings: Sequence[Finding]) -> list[tuple[Finding, int]]:
    """Those that differ to a reader, each with how often it was drawn."""
    times = Counter(map(_key, findings))
    first = {_key(finding): finding for finding in reversed(findings)}
    return [(first[key], number) for key, number in times.items()]


def _more(times: int) -> str:
    return "once more" if times == 1 else f"{times} more times"


def _named(finding: Finding) -> str:
    return f"session {finding.session_id[:6]}"


def _key(finding: Finding) -> _Key:
    """What makes two findings the same to a reader: the same to look at, and the same to do."""
    return (finding.id, finding.session_name, finding.site, finding.remedy)


def _kind(summary: SessionSummary) -> _Key:
    """What makes two sessions alike to a reader."""
    findings = tuple(_key(finding) for finding in summary.findings)
    return (summary.name, summary.opened_site, summary.outcome, summary.error, findings)


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > _MOST_REMEMBERED:
        memory.popitem(last=False)

"""Prints each session scope when it ends, and each finding, to a terminal or another stream."""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from rich.text import Text

from session_tracer.exporter import Exporter
from session_tracer.exporters.finding_block import (
    finding_block,
    finding_reminder,
    retraction_block,
    retraction_note,
)
from session_tracer.exporters.joined import groups, join
from session_tracer.exporters.screen import Screen
from session_tracer.exporters.session_block import is_quiet, session_head, timeline_lines
from session_tracer.exporters.wording import cropped, duration, plain
from session_tracer.model.findings import Finding, Retraction, ranked
from session_tracer.runtime.background_queue import BackgroundQueue
from session_tracer.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence
    from typing import TextIO

    from session_tracer.model.summary import SessionSummary

__all__ = ["console_exporter", "open_exporter"]

# Seconds for which a finding waits for the end of its session, to be printed below it.
_GRACE_SECONDS: Final = 0.3
# Number of similar sessions in one second that are printed. The others are summed up.
_SIMILAR_PER_SECOND: Final = 10
# Number of sessions, findings and kinds of session that are remembered.
_MOST_REMEMBERED: Final = 1000


def open_exporter(settings: Settings) -> Exporter:
    """Return an exporter that prints to standard error, in colour if it is a terminal."""
    return console_exporter(settings=settings)


def console_exporter(
    stream: TextIO | None = None,
    width: int | None = None,
    colour: bool | None = None,
    settings: Settings | None = None,
) -> Exporter:
    """Return an exporter that prints to a stream.

    A thread of its own prints, so that a slow terminal does not delay the application.

    Args:
        stream: The stream, by default standard error.
        width: Number of columns, by default `COLUMNS`, else that of the terminal, else 100.
        colour: Whether to print colours, by default on a terminal unless `NO_COLOR` is set.
        settings: The settings, by default the default ones.
    """
    screen = Screen(stream, width, colour)
    writer = _Writer(screen, Settings() if settings is None else settings)
    queue: BackgroundQueue[_Item] = BackgroundQueue(
        writer.consume, name="session_tracer console", lost=writer.lost, settle=writer.settle
    )
    return Exporter(
        on_session=queue.put,
        on_finding=queue.put,
        on_retraction=queue.put,
        flush=queue.flush,
        close=queue.close,
    )


_Key: TypeAlias = "tuple[Hashable, ...]"
_Item: TypeAlias = "SessionSummary | Finding | Retraction"
K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Printed:
    """A finding that was printed in full, and the number of repeats until `due`."""

    due: float
    finding: Finding
    held_back: int = 0

    def line(self) -> str:
        site = f" at {self.finding.site}" if self.finding.site else ""
        return f"… {self.finding.id} {_more(self.held_back)}{site}"


@dataclass(slots=True)
class _Burst:
    """Sessions of one kind that ended in the second before `due`."""

    due: float
    like: SessionSummary
    printed: int = 0
    held_back: int = 0
    shortest: float = float("inf")
    longest: float = 0.0

    def line(self) -> str:
        opened = f" · opened {self.like.opened_site}" if self.like.opened_site else ""
        return (
            f"… {self.held_back} more like it: {_work(self.like.work)}session {self.like.name} · "
            f"{self.like.outcome.replace('_', ' ')} · {duration(self.shortest)} to "
            f"{duration(self.longest)}{opened}"
        )


H = TypeVar("H", _Printed, _Burst)


class _Writer:
    """Decides what is printed in full, in short, later, or summed up, on the queue's thread."""

    def __init__(
        self, screen: Screen, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._screen = screen
        self._slow_ms = settings.slow_session_seconds * 1000
        self._repeat_seconds = settings.repeat_finding_seconds
        self._clock = clock
        self._forget()

    def consume(self, item: _Item) -> None:
        """Print a session that ended, a finding, or a retraction."""
        if self._process != os.getpid():
            self._forget()  # the parent prints what is held back here
        if isinstance(item, Finding | Retraction):
            self._waiting.append((self._clock() + _GRACE_SECONDS, item))
        else:
            self._session(item)

    def settle(self, everything: bool) -> float | None:
        """Print what has waited long enough, or everything; return the seconds until the next."""
        if self._process != os.getpid():
            self._forget()
        now = self._clock()
        due = [
            *self._settle_waiting(now, everything),
            *self._settle_held_back(self._repeated, now, everything),
            *self._settle_held_back(self._bursts, now, everything),
        ]
        return max(min(due) - now, 0.0) if due else None

    def lost(self, count: int) -> None:
        """Print that the terminal was too slow."""
        items = "1 session or finding" if count == 1 else f"{count} sessions and findings"
        self._short(f"… {items} not shown: more came than could be written")

    def _forget(self) -> None:
        self._process = os.getpid()
        self._waiting: deque[tuple[float, Finding | Retraction]] = deque()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._printed: OrderedDict[_Key, _Printed] = OrderedDict()
        self._in_full: OrderedDict[_Key, None] = OrderedDict()
        self._repeated: dict[_Key, _Printed] = {}
        self._bursts: OrderedDict[_Key, _Burst] = OrderedDict()

    def _session(self, summary: SessionSummary) -> None:
        _remember(self._ended, summary.id, None)
        retracted = self._take_waiting(summary)
        findings = _mistakes(ranked(summary.findings))
        printed = [self._printed_as(finding, summary.id) for finding, _ in findings]
        if None not in printed and self._is_one_of_many(summary):
            return
        width = self._screen.width
        quiet = is_quiet(summary, self._slow_ms)
        lines = session_head(summary, width, slow_ms=self._slow_ms, quiet=quiet)
        if not quiet:
            lines += timeline_lines(summary, width)
        for (finding, times), before in zip(findings, printed, strict=True):
            lines += [Text(), *self._full_or_short(finding, before, width, summary.duration_ms)]
            if times > 1:
                lines.append(Text(f"      … {_more(times - 1)} in this session", "dim"))
            for retraction in retracted:
                if retraction.finding == finding:
                    lines += retraction_note(retraction, width, indent=6)
        self._screen.write(lines, apart=not quiet)

    def _full_or_short(
        self, finding: Finding, before: _Printed | None, width: int, scope_ms: float
    ) -> list[Text]:
        if before is None:
            self._remember_printed(finding)
            return finding_block(finding, width, indent=2, scope_ms=scope_ms)
        is_same = before.finding.session_id == finding.session_id
        session = "" if is_same else f", session {before.finding.session_id[:6]}"
        note = f"shown in full above{session}"
        return finding_reminder(finding, width, indent=2, note=note, scope_ms=scope_ms)

    def _take_waiting(self, summary: SessionSummary) -> list[Retraction]:
        """Remove the waiting findings that the session's own block shows; return retractions."""
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
        """Print a finding by itself, unless it repeats a recent one."""
        before = self._printed_as(finding)
        if before is not None:
            before.held_back += 1
            self._repeated[_key(finding)] = before
            return
        self._screen.write(finding_block(finding, self._screen.width, session=True), apart=True)
        self._remember_printed(finding)

    def _retraction(self, retraction: Retraction) -> None:
        """Print a retraction, unless its finding was not printed in full."""
        key = (retraction.finding.session_id, *_key(retraction.finding))
        if key in self._in_full:
            del self._in_full[key]
            self._screen.write(retraction_block(retraction, self._screen.width), apart=True)

    def _printed_as(self, finding: Finding, session_id: str = "") -> _Printed | None:
        """Return the same finding, printed recently for any session, or earlier for this one."""
        printed = self._printed.get(_key(finding))
        if printed is None or printed.finding.session_id == session_id:
            return printed
        return printed if self._clock() < printed.due else None

    def _remember_printed(self, finding: Finding) -> None:
        printed = _Printed(self._clock() + self._repeat_seconds, finding)
        _remember(self._printed, _key(finding), printed)
        _remember(self._in_full, (finding.session_id, *_key(finding)), None)

    def _is_one_of_many(self, summary: SessionSummary) -> bool:
        """Count the session, and return whether enough similar ones were printed this second."""
        key = _kind(summary)
        burst = self._bursts.get(key)
        if burst is None:
            burst = _Burst(self._clock() + 1, summary)
            _remember(self._bursts, key, burst)
        if burst.printed < _SIMILAR_PER_SECOND:
            burst.printed += 1
            return False
        burst.held_back += 1
        burst.shortest = min(burst.shortest, summary.duration_ms)
        burst.longest = max(burst.longest, summary.duration_ms)
        return True

    def _settle_waiting(self, now: float, everything: bool) -> list[float]:
        while self._waiting:
            due, one = self._waiting[0]
            session_id = (one.finding if isinstance(one, Retraction) else one).session_id
            # Nothing more comes from a session that has ended.
            if not everything and due > now and session_id not in self._ended:
                return [due]
            self._waiting.popleft()
            if isinstance(one, Retraction):
                self._retraction(one)
            else:
                self._finding(self._with_waiting(one))
        return []

    def _with_waiting(self, finding: Finding) -> Finding:
        """Return the finding joined with the waiting ones that are one mistake with it."""
        others = [
            one
            for _, one in self._waiting
            if isinstance(one, Finding)
            and one.session_id == finding.session_id
            and _key(one) != _key(finding)
        ]
        found = groups([finding, *others], lambda one: one)
        group = next(one for one in found if finding in one)
        shown = [one for one in group if one is not finding]
        self._waiting = deque((due, one) for due, one in self._waiting if one not in shown)
        return join(group)

    def _settle_held_back(
        self, held: dict[_Key, H], now: float, everything: bool
    ) -> Iterator[float]:
        for key, one in list(held.items()):
            if one.due > now and not everything:
                yield one.due
                continue
            del held[key]
            if one.held_back:
                self._short(one.line())
                one.held_back = 0

    def _short(self, text: str) -> None:
        line = Text(cropped(plain(text), self._screen.width), "dim")
        self._screen.write([line], apart=False)


def _mistakes(findings: Sequence[Finding]) -> list[tuple[Finding, int]]:
    """Return the findings, joined if they are one mistake, each with the number of its repeats."""
    return [
        (join([finding for finding, _ in group]), max(number for _, number in group))
        for group in groups(_grouped(findings), itemgetter(0))
    ]


def _grouped(findings: Sequence[Finding]) -> list[tuple[Finding, int]]:
    """Return the findings that differ for a reader, each with its number."""
    times = Counter(map(_key, findings))
    first = {_key(finding): finding for finding in reversed(findings)}
    return [(first[key], number) for key, number in times.items()]


def _work(name: str) -> str:
    return f"{name} · " if name else ""


def _more(times: int) -> str:
    return "once more" if times == 1 else f"{times} more times"


def _key(finding: Finding) -> _Key:
    """Return what makes two findings equal for a reader: the same place, work and remedy."""
    return (finding.id, finding.session_name, finding.site, finding.work, finding.remedy)


def _kind(summary: SessionSummary) -> _Key:
    """Return what makes two sessions similar for a reader."""
    findings = tuple(_key(finding) for finding in summary.findings)
    opened = (summary.name, summary.work, summary.opened_site)
    return (*opened, summary.outcome, summary.error, findings)


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > _MOST_REMEMBERED:
        memory.popitem(last=False)

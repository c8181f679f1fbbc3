"""Reads the lines of a log that the exporter `jsonl` wrote, also of another version or cut off."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["LogLine", "Problems", "number", "read_lines", "text", "texts", "unix_time"]

# Longer lines are no log event, and must not fill the memory.
_LONGEST: Final = 1_000_000
_MOST_NAMED: Final = 1_000
_LOGGER: Final = "session_tracer"
_DROPPED: Final = "session_tracer.dropped"
_TEXT: Final = 500
# What an event must have, by its name; the events of this version.
_NEEDED: Final[dict[str, tuple[str, ...]]] = {
    "session.opened": ("session_id",),
    "session.closed": ("session_id", "outcome"),
    "transaction.ended": ("session_id",),
    "flush.completed": ("session_id",),
    "flush.failed": ("session_id",),
    "finding": ("finding_id", "severity"),
    "finding.lasting": ("finding_id",),
    "finding.retracted": ("finding_id",),
    "suppressed": ("suppressed_event",),
    _DROPPED: ("count",),
}


class LogLine(NamedTuple):
    """A log event, its name, and when it was logged."""

    event: dict[str, Any]
    name: str
    at: float


class Problems:
    """Names the lines that were not read, those with the same problem as one range.

    Args:
        name: The file's name.
        write: Called with each text.
    """

    def __init__(self, name: str, write: Callable[[str], object]) -> None:
        self.count = 0
        self.texts: list[str] = []
        self._name = name
        self._write = write
        self._what = ""
        self._first = self._last = self._named = 0

    def add(self, line: int, what: str) -> None:
        """A line has a problem."""
        self.count += 1
        if what == self._what and line == self._last + 1:
            self._last = line
            return
        self.settle()
        self._what, self._first, self._last = what, line, line

    def settle(self) -> None:
        """Name what was not named yet."""
        if not self._what:
            return
        lines = f"line {self._first}"
        if self._last > self._first:
            lines = f"lines {self._first} to {self._last}"
        found = f"{self._name}, {lines}: {self._what}"
        self._what = ""
        self._named += 1
        if self._named <= _MOST_NAMED:
            self._write(found)
        elif self._named == _MOST_NAMED + 1:
            self._write(f"{self._name}: further lines that were not read are not named")
        if len(self.texts) < 20:
            self.texts.append(found)


_decode: Final = json.JSONDecoder(parse_constant=lambda _: None).decode


def read_lines(
    stream: IO[bytes], problems: Problems, count_bytes: Callable[[int], object]
) -> Iterator[LogLine]:
    """Yield the events of a log; lines that are none are named, and the rest is read.

    Lines of other loggers, such as the application's own, are skipped.
    """
    at = 0.0
    line = 0
    while raw := stream.readline(_LONGEST):
        line += 1
        count_bytes(len(raw))
        is_whole = raw.endswith(b"\n")
        if len(raw) >= _LONGEST and not is_whole:
            while (more := stream.readline(_LONGEST)) and not more.endswith(b"\n"):
                count_bytes(len(more))
            count_bytes(len(more))
            problems.add(line, "longer than any log event")
            continue
        try:
            event = _decode(raw.decode().strip())
        except (ValueError, RecursionError):
            if raw.strip():
                is_half = not is_whole and raw.lstrip().startswith(b"{")
                problems.add(line, "half a line, the end is missing" if is_half else "no JSON")
            continue
        name = event.get("event") if isinstance(event, dict) else None
        if not isinstance(name, str) or event.get("logger", _LOGGER) != _LOGGER:
            if not isinstance(event, dict) or "logger" not in event:
                problems.add(line, "no log event of session_tracer")
            continue
        needed = _NEEDED.get(name)
        if needed is None:
            if "logger" in event:
                problems.add(line, f"the event {name[:50]!r} is not known to this version")
            else:
                problems.add(line, "no log event of session_tracer")
            continue
        if missing := [key for key in needed if not isinstance(event.get(key), str | int)]:
            problems.add(line, f"{name} without {missing[0]}: of another version")
            continue
        logged = unix_time(event.get("timestamp"))
        if logged is None:
            problems.add(line, "without a timestamp; read as of the time of the line before")
        at = at if logged is None else logged
        yield LogLine(event, name, at)
    problems.settle()


def unix_time(timestamp: object) -> float | None:
    """The Unix time of a timestamp, or None if it is none."""
    try:
        if isinstance(timestamp, str):
            return datetime.fromisoformat(timestamp).timestamp()
    except (ValueError, OverflowError):
        return None
    is_time = isinstance(timestamp, int | float) and 0 < timestamp < 1e11
    return float(timestamp) if is_time else None  # type: ignore[arg-type] # is_time has checked it


def number(event: dict[str, Any], key: str) -> float:
    """The number under a key, or 0 if it has none."""
    value = event.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return 0


def text(event: dict[str, Any], key: str, most: int = _TEXT) -> str:
    """The text under a key, shortened, or an empty one if it has none."""
    value = event.get(key)
    if not isinstance(value, str):
        return "" if value is None or isinstance(value, dict | list) else str(value)
    return value if len(value) <= most else f"{value[:most]}…"


def texts(event: dict[str, Any], key: str, most: int = 20) -> list[str]:
    """The texts of a list under a key."""
    value = event.get(key)
    if not isinstance(value, list):
        return [text(event, key)] if value else []
    return [one[:_TEXT] for one in value[:most] if isinstance(one, str)]

"""The JSON document that the page shows, as docs/live-page.md describes it."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["VERSION", "FindingGroups", "OverTime", "Place", "Top", "entry", "place_of"]

# Raised when a key is removed or means something else; a new key does not raise it.
VERSION: Final = 1
_MOST_WORKS: Final = 20
_SEVERITIES: Final = ("error", "warning", "info")
_OTHER: Final = "_other"
_SITE: Final = re.compile(r"(.*):(\d+)(?: in (.*)\(\))?", re.DOTALL)


class Place(NamedTuple):
    """A line of the application. Its number is 0 if there is none."""

    file: str
    line: int
    function: str


def place_of(site: str) -> Place:
    """Return the parts of a site as it is logged: `app/views.py:33 in totals()`."""
    parts = _SITE.fullmatch(site)
    if parts is None:
        return Place(site, 0, "")
    return Place(parts[1], int(parts[2][:9]), parts[3] or "")


def entry(*, kind: str, made_at: float, **rest: Any) -> dict[str, Any]:
    """The document with what each has."""
    return {"version": VERSION, "kind": kind, "made_at": made_at, **rest}


class FindingGroups:
    """Findings by id, line, entity and attribute; how often each was found, and for which work.

    Args:
        most: The number of groups. A new one takes the place of the one that was found least
            recently, which then only counts in `left_out`.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._groups: OrderedDict[tuple[str, ...], dict[str, Any]] = OrderedDict()
        self._works: dict[tuple[str, ...], Counter[str]] = {}
        self.left_out = 0

    def add(self, event: Mapping[str, Any], at: float, count: int = 1) -> None:
        """Add a finding, given as its log event, that was found at that Unix time."""
        text = {key: str(event.get(key) or "") for key in _TEXTS}
        key = (text["finding_id"], text["site"], text["entity"], text["attribute"])
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= self._most:
                oldest, gone = self._groups.popitem(last=False)
                self.left_out += gone["count"]
                del self._works[oldest]
            group = self._groups[key] = {"count": 0, "retracted": 0, "first_at": at}
            self._works[key] = Counter()
        group |= text
        group["count"] += count
        group["last_at"] = at
        self._groups.move_to_end(key)
        works, work = self._works[key], str(event.get("work") or "")
        works[work if work in works or len(works) < _MOST_WORKS else _OTHER] += count

    def retracted(self, event: Mapping[str, Any]) -> None:
        """What a finding was about has ended; `event` is the log event of its retraction."""
        for (id_, site, *_), group in self._groups.items():
            if (id_, site) == (event.get("finding_id"), str(event.get("site") or "")):
                group["retracted"] += 1

    def totals(self, findings: Iterable[Mapping[str, Any]]) -> None:
        """Add the totals that a session had when it ended; a list of `session.closed`."""
        for one in findings:
            key = tuple(str(one.get(part) or "") for part in _KEY)
            group = self._groups.get(key)
            if group is not None:
                for total in ("total", "total_ms"):
                    if isinstance(number := one.get(total), int | float):
                        group[total] = round(group.get(total, 0) + number, 3)

    def listed(self) -> list[dict[str, Any]]:
        """The worst first: by severity, then by the time they took, then by how often."""
        rows = [
            {**group, "works": [list(one) for one in self._works[key].most_common()]}
            for key, group in self._groups.items()
        ]
        return sorted(rows, key=_rank)


_KEY: Final = ("finding_id", "site", "entity", "attribute")
_TEXTS: Final = (*_KEY, "severity", "explanation", "remedy", "help", "loop", "session_site")


def _rank(group: Mapping[str, Any]) -> tuple[int, float, int]:
    severity = group["severity"]
    rank = _SEVERITIES.index(severity) if severity in _SEVERITIES else len(_SEVERITIES)
    return rank, -group.get("total_ms", 0), -group["count"]


class OverTime:
    """How many sessions were opened and closed in each period.

    Args:
        seconds: The first length of a period. It doubles where there are more than `most`.
        most: The number of periods.
        keep: `last` drops the oldest periods in place of longer ones.
    """

    def __init__(self, seconds: int, most: int, *, keep: str = "all") -> None:
        self.seconds = seconds
        self._most = most
        self._keep = keep
        self._counts: dict[int, list[int]] = {}

    def opened(self, at: float, count: int = 1) -> None:
        """Sessions were opened at that Unix time."""
        self._add(at, 0, count)

    def closed(self, at: float, count: int = 1) -> None:
        """Sessions were closed at that Unix time."""
        self._add(at, 1, count)

    def _add(self, at: float, which: int, count: int) -> None:
        while (period := int(at // self.seconds)) not in self._counts:
            self._counts[period] = [0, 0]
            if len(self._counts) > self._most:
                self._shorten()
            if self._keep == "last":
                break
        if period in self._counts:  # or it is older than all others
            self._counts[period][which] += count

    def _shorten(self) -> None:
        if self._keep == "last":
            for old in sorted(self._counts)[: -self._most]:
                del self._counts[old]
            return
        before, self._counts = self._counts, {}
        self.seconds *= 2
        for period, (opened, closed) in before.items():
            counts = self._counts.setdefault(period // 2, [0, 0])
            counts[0] += opened
            counts[1] += closed

    def listed(self, until: float | None = None) -> dict[str, Any]:
        """The periods from the first to the last, or to that Unix time; at most `most`."""
        last = max(self._counts, default=0) if until is None else int(until // self.seconds)
        first = max(min(self._counts, default=last), last - self._most + 1)
        rows = [self._counts.get(period, (0, 0)) for period in range(first, last + 1)]
        return {
            "seconds": self.seconds,
            "start": first * self.seconds,
            "opened": [opened for opened, _ in rows],
            "closed": [closed for _, closed in rows],
        }


class Top:
    """The sessions with the largest numbers."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int, Any]] = []
        self._number = 0  # decides between equal ones, which are not compared

    def takes(self, number: float) -> bool:
        """Whether a session with that number would be among them."""
        return len(self._heap) < self._most or number > self._heap[0][0]

    def add(self, number: float, session: Any) -> None:
        """Add a session."""
        if self.takes(number):
            self._number += 1
            entry = (number, self._number, session)
            if len(self._heap) < self._most:
                heappush(self._heap, entry)
            else:
                heappushpop(self._heap, entry)

    def listed(self) -> list[Any]:
        """The sessions, the largest number first."""
        return [
            session for *_, session in sorted(self._heap, reverse=True, key=lambda one: one[:2])
        ]

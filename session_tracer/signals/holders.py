"""The lines whose sessions hold connections, of which a bounded number is distinguished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.signals import names

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from session_tracer.where.callsite import CallSite

__all__ = ["HolderLines"]

# How many lines are distinguished at a time.
_MOST_LINES: Final = 20
_REST: Final = (names.OTHER, 0, names.OTHER)


class HolderLines:
    """The lines that are reported, with what was reported of each last.

    A line that holds nothing any more is reported with 0: a backend may show the last value of a
    series that has ended for minutes. It makes room for another line only after that.
    """

    def __init__(self) -> None:
        self._reported: dict[CallSite, int] = {}
        self._has_rest = False

    def observe(self, held: Counter[CallSite | None]) -> Iterator[tuple[int, dict[str, str | int]]]:
        """The number of connections and the attributes of each line, and of the rest together.

        The lines that hold most come first: the one that empties a pool is not in the rest.
        """
        rest = 0
        for site, number in held.most_common():
            if site is None or not self._has_room(site, held):
                rest += number
        for site in self._reported:
            number = self._reported[site] = held[site]
            yield number, _attributes(site.path, site.line, site.function)
        self._has_rest = self._has_rest or rest > 0
        if self._has_rest:
            yield rest, _attributes(*_REST)

    def _has_room(self, site: CallSite, held: Counter[CallSite | None]) -> bool:
        reported = self._reported
        if site not in reported and len(reported) >= _MOST_LINES:
            over = [one for one, number in reported.items() if not number and not held[one]]
            for one in over[:1]:
                del reported[one]
        if len(reported) < _MOST_LINES:
            reported.setdefault(site, 0)
        return site in reported


def _attributes(file: str, line: int, function: str) -> dict[str, str | int]:
    return {
        names.CODE_FILE_PATH: file,
        names.CODE_LINE_NUMBER: line,
        names.CODE_FUNCTION_NAME: function,
    }

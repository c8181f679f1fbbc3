"""Formats values as text of a given width that cannot control a terminal."""

from __future__ import annotations

import re
import unicodedata
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = [
    "counted",
    "cropped",
    "cropped_left",
    "duration",
    "entities",
    "error_name",
    "fitted_site",
    "flush_contents",
    "in_all",
    "plain",
    "total",
    "with_total",
    "wrapped",
    "wrapped_code",
]

ELLIPSIS: Final = "…"

# Controls, invisible formatting (which can reverse text), lone surrogates, line separators.
_UNPRINTABLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MOST_ENTITIES: Final = 4
_MOST_WRITTEN: Final = 6
_NOTHING: Final[Mapping[str, int]] = {}
# Rich's wrap() has it as a parameter.
_CONSOLE: Final = Console()

# Where a line of code is broken: before a call of a method, and after a comma.
_JOINTS: Final = re.compile(r"(?=\.\w+\()|(?<=, )")


def plain(text: str) -> str:
    """Return `text` on one line, with control characters made visible."""
    if text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in "\t\n\r":
        return " "
    if unicodedata.category(character) in _UNPRINTABLE:
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")
    return character


def counted(count: int, noun: str) -> str:
    """Return a number and a noun: `1 test`, `3 tests`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(milliseconds: float) -> str:
    """Return a duration: `0.04 ms`, `48.2 ms`, `312 ms`, `1.25 s`, `4 min 12 s`."""
    if milliseconds < 0.095:
        return f"{milliseconds:.2f} ms"
    if milliseconds < 99.95:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 59.995:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


# What the message of a finding has of the number at which it was reported.
_SO_FAR: Final = re.compile(r"\bat least \d+ (times\b)?| \(\d+ [^()]*\)")


def in_all(finding: Finding, scope_ms: float) -> str:
    """Return the message of a finding after its scope, which lasted that long: with its total."""
    if finding.total is None:
        return finding.message
    count = finding.total.count
    whole = total(count, finding.total.noun, finding.total.ms, scope_ms)
    return with_total(finding.message, count, whole)


def with_total(message: str, count: int, whole: str) -> str:
    """Return the message of a finding with the text of its total."""
    times = f"{count} times"
    message = _SO_FAR.sub(lambda match: times if match[1] else "", message)
    return f"{message}: {whole}"


def total(count: int, noun: str, ms: float, scope_ms: float) -> str:
    """Return a total and its time: `500 SELECTs, 812 ms of 1.10 s`."""
    plural = "" if count == 1 else "es" if noun.endswith("sh") else "s"
    of = f" of {duration(scope_ms)}" if scope_ms >= ms else ""
    return f"{count} {noun}{plural}, {duration(ms)}{of}"


def entities(counts: Mapping[str, int]) -> str:
    """Return counts: `12 Author, 300 Book`; the least frequent of many are summed up."""
    ordered = sorted(filter(itemgetter(1), counts.items()), key=itemgetter(1), reverse=True)
    listed = [f"{count} {plain(entity)}" for entity, count in ordered[:_MOST_ENTITIES]]
    if len(ordered) > _MOST_ENTITIES:
        listed.append(f"{sum(count for _, count in ordered[_MOST_ENTITIES:])} others")
    return ", ".join(listed)


def flush_contents(
    new: Mapping[str, int],
    dirty: Mapping[str, int],
    deleted: Mapping[str, int],
    unchanged: Mapping[str, int] = _NOTHING,
) -> list[str]:
    """Return changes: `+2 Order`, `~1 Stock (4 unchanged)`, `−1 Cart`; at most six and a number."""
    written = [f"+{count} {plain(entity)}" for entity, count in new.items()]
    for entity in {**dirty, **unchanged}:
        count, same = dirty.get(entity, 0), unchanged.get(entity, 0)
        changed = f"~{count} {plain(entity)}"
        if count and same:
            written.append(f"{changed} ({same} unchanged)")
        else:
            written.append(changed if count else f"({same} {plain(entity)} unchanged)")
    written += [f"−{count} {plain(entity)}" for entity, count in deleted.items()]
    if len(written) > _MOST_WRITTEN:
        written[_MOST_WRITTEN:] = [f"… {len(written) - _MOST_WRITTEN} more"]
    return written


def error_name(error: str) -> str:
    """Return `IntegrityError` for `sqlalchemy.exc.IntegrityError`."""
    return plain(error.rpartition(".")[2])


def fitted_site(site: CallSite, room: int) -> str:
    """Return the site in `room` cells, without its function or the path's beginning if needed."""
    whole = plain(str(site))
    if cell_len(whole) <= room:
        return whole
    return cropped_left(plain(f"{site.path}:{site.line}"), room)


def cropped(text: str, room: int) -> str:
    """Return `text`, or the beginning that fits in `room` cells."""
    if cell_len(text) <= room:
        return text
    return set_cell_size(text, max(room - 1, 0)).rstrip() + ELLIPSIS


def cropped_left(text: str, room: int) -> str:
    """Return `text`, or the end that fits in `room` cells, from a slash on if it contains one."""
    if cell_len(text) <= room:
        return text
    end = set_cell_size(text[::-1], max(room - 1, 0))[::-1].lstrip()
    slash = max(end.find("/"), end.find("\\"))
    return ELLIPSIS + (end[slash:] if slash > 0 else end)


def wrapped(text: str, room: int) -> list[str]:
    """Return `text` in lines of at most `room` cells, broken at spaces if possible."""
    lines = Text(text).wrap(_CONSOLE, room, overflow="fold")
    return [line.plain.rstrip() for line in lines] or [""]


def wrapped_code(code: str, room: int) -> list[str]:
    """Return `code` in lines of at most `room` cells, broken at calls and commas if possible."""
    lines: list[str] = []
    line = ""
    for piece in _JOINTS.split(code):
        if line.strip() and cell_len(line) + cell_len(piece.rstrip()) > room:
            lines.append(line.rstrip())
            line = f"    {piece}"
        else:
            line += piece
    lines.append(line)
    return lines if max(map(cell_len, lines)) <= room else wrapped(code, room)

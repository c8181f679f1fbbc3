"""Lays out a finding as lines: what is wrong, where in the source, why, and what to write."""

from __future__ import annotations

import ast
import linecache
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from session_tracer.exporters.wording import (
    cropped,
    duration,
    entities,
    fitted_site,
    plain,
    wrapped,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from session_tracer.callsite import CallSite
    from session_tracer.findings import Finding

__all__ = ["SIGNS", "finding_block", "finding_reminder"]

# The sign before a finding and its colour, by severity.
SIGNS: Final = {
    "error": ("✖", "bold red"),
    "warning": ("▲", "bold yellow"),
    "info": ("◆", "bold cyan"),
}
_REMEDY: Final = "bold"
_FAINT: Final = "dim"

_WIDEST_LABEL: Final = 36
_NARROWEST_VALUE: Final = 36

# What is told of the evidence, in this order, and what it is called; the rest is for machines.
_EVIDENCE: Final = (
    ("why", "why"),
    ("loaded_at", "loaded at"),
    ("selected_at", "selected at"),
    ("expired_at", "expired at"),
    ("committed_at", "committed at"),
    ("began_at", "transaction began at"),
    ("failed_at", "first failed at"),
    ("constraint", "constraint"),
    ("trigger", "flushed by"),
    ("owner", "owner"),
    ("process_id", "server process"),
    ("age_ms", "open for"),
    ("held_ms", "connection held"),
    ("sql_ms", "in SQL"),
    ("idle_ms", "idle for"),
    ("pending", "not flushed"),
    ("last_statement_at", "last statement at"),
    ("closed_at", "closed at"),
    ("identity", "primary key"),
)

# How an object left its session; the place and the time follow.
_DEPARTURES: Final = {
    "close": "session closed at",
    "reset": "session reset at",
    "invalidate": "session invalidated at",
    "collected": "session collected at",
    "expunge": "expunged at",
    "expunge_all": "all expunged at",
    "deleted": "deleted at",
}


class _Row(NamedTuple):
    """A label and what stands beside it; code goes below where it does not fit, for it breaks ill.

    `crop` is for code that need not be whole.
    """

    label: str
    value: str
    style: str = ""
    code: bool = False
    crop: bool = False


def finding_block(
    finding: Finding, width: int, *, indent: int = 0, session: bool = False
) -> list[Text]:
    """The finding in full; with `session`, also whose it is."""
    rows = [*_site_rows(finding.site), *_evidence_rows(finding.evidence)]
    if session:
        rows.append(_Row("session", _session(finding)))
    rows += _remedy_rows(finding.remedy)
    return [*_head(finding, width, indent), *_table(rows, width, indent + 4)]


def finding_reminder(finding: Finding, width: int, *, indent: int, told: str) -> list[Text]:
    """The finding in short; `told` says where it was told in full."""
    if finding.site is not None:
        room = width - indent - cell_len(told) - 7
        told = f"{fitted_site(finding.site, room)} · {told}"
    return [
        *_head(finding, width, indent),
        Text.assemble(" " * (indent + 4), (told, _FAINT)),
    ]


def _head(finding: Finding, width: int, indent: int) -> Iterator[Text]:
    sign, style = SIGNS[finding.severity]
    name = plain(finding.id)
    told = wrapped(plain(finding.message), width - indent - 4)
    beside = width - indent - cell_len(name) - 4
    first, *rest = wrapped(plain(finding.message), beside) if beside >= 30 else [""]
    # The first line stands beside the name, the others have the whole width.
    if rest:
        rest = wrapped(" ".join(rest), width - indent - 4)
    elif not first:
        rest = told
    yield Text.assemble(" " * indent, (f"{sign} {name}", style), "  ", first)
    for line in rest:
        yield Text(" " * (indent + 4) + line)


def _site_rows(site: CallSite | None) -> Iterator[_Row]:
    if site is not None:
        yield _Row(plain(str(site)), _source(site), code=True, crop=True)


def _source(site: CallSite) -> str:
    """The line of source, as it is on the disk now."""
    linecache.checkcache(site.file)
    return plain(linecache.getline(site.file, site.line).strip())


def _evidence_rows(evidence: Mapping[str, Any]) -> Iterator[_Row]:
    for key, label in _EVIDENCE:
        words = _in_words(key, evidence.get(key))
        if words:
            yield _Row(label, words)
        if key == "loaded_at":
            yield from _departure_rows(evidence)


def _departure_rows(evidence: Mapping[str, Any]) -> Iterator[_Row]:
    label = _DEPARTURES.get(str(evidence.get("departure", "")))
    if label is None:
        return
    ago = _in_words("departed_ms_ago", evidence.get("departed_ms_ago"))
    site = _in_words("departed_at", evidence.get("departed_at"))
    told = ", ".join(part for part in (site, f"{ago} before" if ago else "") if part)
    if told:
        yield _Row(label if site else label.removesuffix(" at"), told)


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
        return " ← ".join(plain(str(item)) for item in value)
    return ""


def _session(finding: Finding) -> str:
    opened = f", opened {finding.session_site}" if finding.session_site else ""
    return plain(f"{finding.session_name} {finding.session_id[:6]}{opened}")


def _remedy_rows(remedy: str) -> Iterator[_Row]:
    code = _is_code(remedy) or _is_code(remedy.rpartition(" at ")[0])  # `...` at a site
    label = "write" if code else "do"
    for line in remedy.splitlines():
        depth = len(line) - len(line.lstrip())
        yield _Row(label, " " * depth + plain(line.strip()), _REMEDY, code=code)
        label = ""


def _is_code(text: str) -> bool:
    if not any(sign in text for sign in "(=.:@"):
        return False  # a word by itself would be a name
    for completed in (text, f"{text}\n    ..."):
        try:
            ast.parse(completed)
        except (SyntaxError, ValueError):
            continue
        return True
    return False


def _table(rows: list[_Row], width: int, indent: int) -> Iterator[Text]:
    column = _label_width(rows)
    if any(row.code and column + 2 + cell_len(row.value) > width - indent for row in rows):
        # The site has the longest label; its source goes below, and there is room for the code.
        column = _label_width([row for row in rows if not row.crop])
    room = width - indent - column - 2
    for row in rows:
        yield from _lines(row, indent, column, room, width)


def _label_width(rows: list[_Row]) -> int:
    labels = [cell_len(row.label) for row in rows]
    return max((length for length in labels if length <= _WIDEST_LABEL), default=0)


def _lines(row: _Row, indent: int, column: int, room: int, width: int) -> Iterator[Text]:
    length, margin = cell_len(row.label), " " * indent
    if length <= column and cell_len(row.value) <= room:
        lines, start = [row.value], indent + column + 2
    elif length <= column and room >= _NARROWEST_VALUE and not row.code:
        lines, start = wrapped(row.value, room), indent + column + 2
    else:
        below = width - indent - 4
        lines = ["", *([cropped(row.value, below)] if row.crop else wrapped(row.value, below))]
        start = indent + 4
    first, *rest = lines
    label = row.label if length <= width - indent else cropped(row.label, width - indent)
    line = Text.assemble(margin, (label, "" if row.crop else _FAINT))
    if first:
        line.append(" " * (start - indent - length))
        line.append(first, row.style)
    yield line
    for more in rest:
        if more:
            yield Text.assemble(" " * start, (more, row.style))

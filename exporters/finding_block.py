"""Formats a finding as lines: what happened, where in the source, why, and what to do."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.text import Text

from session_tracer.exporters.evidence import alternatives, evidence_rows, places, source_line
from session_tracer.exporters.joined import TOGETHER
from session_tracer.exporters.rows import Row, table
from session_tracer.exporters.wording import fitted_site, in_all, plain, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.where.callsite import CallSite

__all__ = [
    "SIGNS",
    "finding_block",
    "finding_reminder",
    "remedy_label",
    "retraction_block",
    "retraction_note",
]

# The sign before a finding and its colour, by severity.
SIGNS: Final = {
    "error": ("✖", "bold red"),
    "warning": ("▲", "bold yellow"),
    "info": ("◆", "bold cyan"),
}
_RETRACTED: Final = ("●", "bold green")
_REMEDY: Final = "bold"
_FAINT: Final = "dim"


def finding_block(
    finding: Finding,
    width: int,
    *,
    indent: int = 0,
    session: bool = False,
    scope_ms: float | None = None,
) -> list[Text]:
    """Return the finding in full; with `session`, also its session.

    If `scope_ms` is given, which is how long the scope lasted, it has the finding's total.
    """
    rows = [*_site_rows(finding.site), *evidence_rows(finding.evidence, finding.site)]
    if session:
        rows += _session_rows(finding)
    rows += _change_rows(remedy_label(finding.remedy), finding.remedy, _REMEDY)
    for further in finding.evidence.get(TOGETHER, ()):
        rows += _change_rows("and", further, _REMEDY)
    for other in alternatives(finding.evidence):
        rows += _change_rows("or", other)
    work = finding.work if session else ""
    head = _finding_head(finding, width, indent, work=work, scope_ms=scope_ms)
    return [*head, *table(rows, width, indent + 4)]


def finding_reminder(
    finding: Finding, width: int, *, indent: int, note: str, scope_ms: float
) -> list[Text]:
    """Return the finding in short, with a note where it was shown in full."""
    if finding.site is not None:
        room = width - indent - cell_len(note) - 7
        note = f"{fitted_site(finding.site, room)} · {note}"
    return [
        *_finding_head(finding, width, indent, scope_ms=scope_ms),
        Text.assemble(" " * (indent + 4), (note, _FAINT)),
    ]


def retraction_block(retraction: Retraction, width: int) -> list[Text]:
    """Return a retraction: its finding, its session and its reason."""
    finding = retraction.finding
    rows = [*places(retraction.evidence), _session_row(finding)]
    head = _head(_RETRACTED, f"{finding.id} retracted", retraction.message, width, 0)
    return [*head, *table(rows, width, 4)]


def retraction_note(retraction: Retraction, width: int, *, indent: int) -> list[Text]:
    """Return the lines below a finding that was retracted."""
    return list(_head(_RETRACTED, "retracted", retraction.message, width, indent))


def _finding_head(
    finding: Finding, width: int, indent: int, *, work: str = "", scope_ms: float | None = None
) -> Iterator[Text]:
    message = finding.message if scope_ms is None else in_all(finding, scope_ms)
    message = f"{work} · {message}" if work else message
    return _head(SIGNS[finding.severity], finding.id, message, width, indent)


def _head(
    sign: tuple[str, str], name: str, message: str, width: int, indent: int
) -> Iterator[Text]:
    signed, style = f"{sign[0]} {plain(name)}", sign[1]
    room = width - indent - cell_len(signed) - 2
    # The first line is next to the name, the others have the whole width.
    first, *rest = wrapped(plain(message), room) if room >= 30 else ["", plain(message)]
    if rest:
        rest = wrapped(" ".join(rest), width - indent - 4)
    yield Text.assemble(" " * indent, (signed, style), "  ", first)
    for line in rest:
        yield Text(" " * (indent + 4) + line)


def _site_rows(site: CallSite | None) -> Iterator[Row]:
    if site is not None:
        yield Row(plain(str(site)), source_line(site.file, site.line), code=True, crop=True)


def _session_rows(finding: Finding) -> Iterator[Row]:
    """Yield the session, unless the message and the site contain it."""
    is_used_above = not finding.evidence.get("first_used_site")
    opened_above = finding.session_site in (None, finding.site) and is_used_above
    if not (opened_above and finding.session_id[:6] in finding.message):
        yield _session_row(finding)


def _session_row(finding: Finding) -> Row:
    opened = f", opened {finding.session_site}" if finding.session_site else ""
    used = finding.evidence.get("first_used_site")
    first_used = f", first used {used}" if used else ""
    name = f"{finding.session_name} {finding.session_id[:6]}"
    return Row("session", plain(f"{name}{opened}{first_used}"))


def _change_rows(label: str, change: str, style: str = "") -> Iterator[Row]:
    """Yield a change to make; its place (`... at a site`) or a comment follows code."""
    code, after = _is_code(change), ""
    place = change.rpartition(" at ")
    if not code and _is_code(place[0]):
        code, change, after = True, place[0], f" at {plain(place[2])}"
    elif code and "  # " in change:
        change, _, comment = change.rpartition("  # ")
        after = f"  # {plain(comment)}"
    *lines, last = change.splitlines() or [""]
    for line in lines:
        yield Row(label, _indented(line), style, code=code)
        label = ""
    yield Row(label, _indented(last), style, code=code, after=after)


def _indented(line: str) -> str:
    return " " * (len(line) - len(line.lstrip())) + plain(line.strip())


def remedy_label(remedy: str) -> str:
    """Return the label of a remedy: `write` if it is code, else `do`."""
    code = _is_code(remedy) or _is_code(remedy.rpartition(" at ")[0])
    return "write" if code else "do"


def _is_code(text: str) -> bool:
    if not any(sign in text for sign in "(=.:@"):
        return False  # a single word would be parsed as a name
    for completed in (text, f"{text}\n    ..."):
        try:
            ast.parse(completed)
        except (SyntaxError, ValueError):
            continue
        return True
    return False

"""Formats a session scope as lines: its outcome and cost, then what it did, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from session_tracer.exporters.finding_block import SIGNS
from session_tracer.exporters.wording import (
    counted,
    cropped,
    duration,
    entities,
    error_name,
    fitted_site,
    flush_contents,
    plain,
    wrapped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from session_tracer.facts import Counts
    from session_tracer.model.findings import Finding
    from session_tracer.model.summary import SessionSummary
    from session_tracer.model.timeline import Step
    from session_tracer.where.callsite import CallSite

__all__ = ["is_quiet", "session_head", "timeline_lines"]

_BAD: Final = "bold red"
_SLOW: Final = "yellow"
_FAINT: Final = "dim"

_BAD_OUTCOMES: Final = frozenset({"failed", "abandoned"})

# A quiet session is shown in two lines, and has at most this number of steps.
_QUIET_STEPS: Final = 8
# Number of repeats of one step from which a session is not quiet.
_LOUD_REPEATS: Final = 5
# Number of steps of a timeline that are shown: the first, the last, and the slowest or failed ones.
_MOST_ROWS: Final = 24
_FIRST_ROWS: Final = 10
_LAST_ROWS: Final = 8

# A step is slow from this number of milliseconds and this share of its session.
_SLOW_STEP_MS: Final = 50.0
_SLOW_STEP_SHARE: Final = 0.25
# A connection is marked that is held for this time with a smaller share of it in SQL.
_IDLE_HELD_MS: Final = 500.0
_IDLE_HELD_SHARE: Final = 0.2

_INDENT: Final = 4
_WIDEST_VERB: Final = 9
_NARROWEST_SITE: Final = 24

_SUBJECTS: Final = {"collected": "by the garbage collector"}


def is_quiet(summary: SessionSummary, slow_ms: float) -> bool:
    """Return whether two lines show all that matters about the session."""
    return not (
        summary.findings
        or summary.outcome in _BAD_OUTCOMES
        or summary.error
        or summary.failed_flushes
        or summary.new
        or summary.dirty
        or summary.deleted
        or summary.unchanged
        or summary.pending
        or summary.timeline_left_out
        or len(summary.timeline) > _QUIET_STEPS
        or any(step.error or step.count >= _LOUD_REPEATS for step in summary.timeline)
        or summary.duration_ms >= slow_ms
    )


def session_head(summary: SessionSummary, width: int, *, slow_ms: float, quiet: bool) -> list[Text]:
    """Return the session, its outcome and its cost in two lines, or more if they are narrow."""
    verdict = _flowing(_verdict(summary, slow_ms), width, first=0)
    if len(verdict) > 1:
        verdict = _flowing(_verdict(summary, slow_ms, short=True), width, first=0)
    account = _flowing(_account(summary, width, quiet), width, first=2)
    # The first words of the account matter most: a quiet session has one line for it.
    return [*verdict, *(account[:1] if quiet else account)]


def timeline_lines(summary: SessionSummary, width: int) -> list[Text]:
    """Return a line for each step that is shown."""
    steps = _shown(summary.timeline, summary.timeline_left_out)
    shown = [step if isinstance(step, int) else _row(step, summary) for step in steps]
    columns = _Columns([row for row in shown if not isinstance(row, int)], width)
    lines: list[Text] = []
    for row in shown:
        lines += [columns.gap(row)] if isinstance(row, int) else columns.lines(row)
    return lines


def _verdict(summary: SessionSummary, slow_ms: float, *, short: bool = False) -> Iterator[Text]:
    bad = _BAD if summary.outcome in _BAD_OUTCOMES else ""
    session = ("session ", (plain(summary.name), "bold"), " ", (plain(summary.id[:6]), _FAINT))
    if summary.work:
        yield Text.assemble(("● ", bad), (plain(summary.work), "bold"))
        yield Text.assemble(*session)
    else:
        yield Text.assemble(("● ", bad), *session)
    outcome = summary.outcome.replace("_", " ") if summary.ending else "still open"
    yield Text(f"{outcome} with {error_name(summary.error)}" if summary.error else outcome, bad)
    slow = _SLOW if summary.duration_ms >= slow_ms else ""
    yield Text(duration(summary.duration_ms), slow)
    if summary.held_ms > 0:
        share = min(summary.sql_ms / summary.held_ms, 1.0)
        idle = summary.held_ms >= _IDLE_HELD_MS and share < _IDLE_HELD_SHARE
        held, sql = duration(summary.held_ms), _percent(share)
        whole = f"connection held {held}, {sql} of it in SQL"
        yield Text(f"held {held}, {sql} in SQL" if short else whole, _SLOW if idle else "")


def _percent(share: float) -> str:
    return "under 1 %" if 0 < share < 0.005 else f"{share:.0%}".replace("%", " %")


def _account(summary: SessionSummary, width: int, quiet: bool) -> Iterator[Text]:
    if summary.opened_site is not None:
        yield Text(f"opened {fitted_site(summary.opened_site, width - len('  opened '))}")
    if summary.statements:
        yield Text(counted(summary.statements, "statement"))
    if quiet and summary.loaded:
        yield Text(f"{entities(summary.loaded)} loaded")
    if summary.identity_map_peak:
        yield Text(f"identity map peak {summary.identity_map_peak}")
    if summary.pending:
        yield Text(f"{counted(summary.pending, 'object')} added and never flushed", _SLOW)


def _flowing(parts: Iterable[Text], width: int, *, first: int) -> list[Text]:
    """Return the parts with dots between them, on as many lines as they need."""
    lines: list[Text] = []
    line = Text(" " * first)
    begun = False
    for part in parts:
        if begun and line.cell_len + 3 + part.cell_len > width:
            lines.append(line)
            line, begun = Text("  "), False
        if begun:
            line.append(" · ", _FAINT)
        if line.cell_len + part.cell_len > width:
            part.truncate(width - line.cell_len, overflow="ellipsis")
        line.append_text(part)
        begun = True
    return [*lines, line] if begun else lines


def _shown(steps: Sequence[Step], left_out: int) -> Iterator[Step | int]:
    """Yield the steps to show, and between them the number of steps that are not shown."""
    total = len(steps)
    kept = set(range(total))
    if total > _MOST_ROWS:
        middle = sorted(
            range(_FIRST_ROWS, total - _LAST_ROWS),
            key=lambda index: (not steps[index].error, -steps[index].duration),
        )
        kept = {*range(_FIRST_ROWS), *range(total - _LAST_ROWS, total)}
        kept.update(middle[: _MOST_ROWS - _FIRST_ROWS - _LAST_ROWS])
        # A line "1 step more" is no shorter than that step.
        kept.update(i for i in middle if i - 1 in kept and i + 1 in kept)
    # The timeline has the first and the last steps, of an odd number one more of the first.
    boundary = total - total // 2
    gap = 0
    for index, step in enumerate(steps):
        if index == boundary:
            gap += left_out
        if index not in kept:
            gap += 1
            continue
        if gap:
            yield gap
            gap = 0
        yield step


class _Row(NamedTuple):
    """The parts of a step's line; `style` marks the subject of a finding."""

    at: str
    style: str
    verb: str
    subject: str
    times: str
    done: str
    in_brief: str
    done_style: str
    took: str
    took_style: str
    site: CallSite | None


def _row(step: Step, summary: SessionSummary) -> _Row:
    took_ms = step.duration / 1e6
    slow = took_ms >= _SLOW_STEP_MS and took_ms >= _SLOW_STEP_SHARE * summary.duration_ms
    return _Row(
        at=_offset(step.at / 1e6, summary.duration_ms),
        style=_mark(step, summary.findings),
        verb=plain(step.verb),
        subject=plain(step.subject) or _SUBJECTS.get(step.verb, ""),
        times=f" ×{step.count}" if step.count > 1 else "",
        done=" ".join(_done(step, entities)),
        in_brief=" ".join(_done(step, _sum)),
        done_style=_BAD if step.error else "",
        took=duration(took_ms) if step.duration else "",
        took_style=_SLOW if slow else "",
        site=step.site,
    )


def _mark(step: Step, findings: Iterable[Finding]) -> str:
    for finding in findings:
        if step.site is not None and finding.site == step.site:
            named = finding.attribute or finding.entity or ""
            if named in step.subject:
                return SIGNS[finding.severity][1]
    return ""


def _offset(milliseconds: float, session_ms: float) -> str:
    # One unit for the whole block; the head shows it.
    return f"{milliseconds / 1000:.2f} s" if session_ms >= 10_000 else f"{milliseconds:.1f}"


def _done(step: Step, loaded: Callable[[Counts], str]) -> Iterator[str]:
    """Yield the error, `+2 Order ~1 Stock (4 unchanged) −1 Cart` of a flush, and the loads."""
    if step.error:
        yield error_name(step.error)
    yield from flush_contents(step.new, step.dirty, step.deleted, step.unchanged)
    if step.loaded:
        yield f"{_sum(step.loaded) if len(step.loaded) == 1 else loaded(step.loaded)} loaded"


def _sum(counts: Counts) -> str:
    return str(sum(counts.values()))


class _Columns:
    """The widths of the columns of one timeline."""

    def __init__(self, rows: list[_Row], width: int) -> None:
        self._width = width
        self._at = max((len(row.at) for row in rows), default=0)
        verbs = [cell_len(row.verb) for row in rows if row.subject or row.done]
        self._verb = max((verb for verb in verbs if verb <= _WIDEST_VERB), default=0)
        actions = [cell_len(self._action(row) + row.times) for row in rows]
        self._action_width = min(max(actions, default=0), max(24, width * 2 // 5))
        self._took = max((len(row.took) for row in rows), default=0)
        self._sites = [plain(str(row.site)) for row in rows if row.site is not None]
        self._done, self._in_brief = self._done_column(rows)

    def gap(self, steps: int) -> Text:
        """Return the line for steps that are not shown."""
        margin = " " * (_INDENT + self._at + 2)
        return Text(f"{margin}… {counted(steps, 'step')} more", _FAINT)

    def lines(self, row: _Row) -> Iterator[Text]:
        """Yield the row on one line, and below it what does not fit."""
        done = row.in_brief if self._in_brief else row.done
        fits = cell_len(done) <= self._done
        action = cropped(self._action(row), self._action_width - cell_len(row.times)) + row.times
        parts: list[str | tuple[str, str]] = [
            " " * _INDENT,
            (row.at.rjust(self._at), _FAINT),
            "  ",
            (action, row.style),
            " " * (self._action_width - cell_len(action)),
        ]
        if self._done:
            parts += ["  ", (_padded(done if fits else "", self._done), row.done_style)]
        if self._took:
            parts += ["  ", (row.took.rjust(self._took), row.took_style)]
        line = Text.assemble(*parts)
        below = [] if fits else [(done, row.done_style)]
        room = self._width - line.cell_len - 2
        if row.site is not None and room >= _NARROWEST_SITE // 2:
            line.append("  ")
            line.append(fitted_site(row.site, room), _FAINT)
        elif row.site is not None:
            below.append((plain(str(row.site)), _FAINT))
        line.rstrip()
        yield line
        start = _INDENT + self._at + 2 + self._verb + 1
        for text, style in below:
            for more in wrapped(text, self._width - start):
                yield Text.assemble(" " * start, (more, style))

    def _action(self, row: _Row) -> str:
        return f"{_padded(row.verb, self._verb)} {row.subject}" if row.subject else row.verb

    def _done_column(self, rows: list[_Row]) -> tuple[int, bool]:
        """Return the width of the column of results, and whether they are shown in brief.

        Sites lose their functions if the column needs the room, then the beginnings of their paths.
        """
        whole = max(map(cell_len, self._sites), default=0)
        lines = max((cell_len(site.partition(" in ")[0]) for site in self._sites), default=0)
        fixed = _INDENT + self._at + 2 + self._action_width + 2 + self._took + 2
        best = 0
        for brief in (False, True):
            widths = [cell_len(row.in_brief if brief else row.done) for row in rows]
            for site in (whole, lines, min(lines, _NARROWEST_SITE)):
                room = self._width - fixed - site
                best = max((width for width in widths if width + 2 <= room), default=0)
                if sum(width > best for width in widths) <= max(1, len(widths) // 10):
                    return best, brief
        return best, True


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))

"""Draws the ratios of one SQLAlchemy line as an SVG: a row for each work."""

from __future__ import annotations

from math import log
from statistics import median
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from benchmarks.goals import GOALS

if TYPE_CHECKING:
    from benchmarks.results import Row, Section

LEFT, RIGHT, TOP, ROW = 330, 30, 78, 24
WIDTH = 900
SVG = "http://www.w3.org/2000/svg"
FONT = 'font-family="system-ui, sans-serif" font-size="12"'
TICKS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0)
# Marks of levels are filled, those of other tracers are outlines.
LEVELS = {"A": "#1a7f5a", "B": "#2f6fde", "C": "#8a4fd3"}
PEERS = {
    "OpenTelemetry": "#c2410c",
    "ddtrace": "#0d9488",
    "Sentry": "#be185d",
    "Logfire": "#64748b",
}


def plot(section: Section) -> str:
    drawn = [
        (f"{row.key} {row.title}, {ratios.database}", ratios.database, row)
        for ratios in section.ratios
        for row in ratios.rows
    ]
    highest = max(
        (
            median(row.ratios[name])
            for _label, _on, row in drawn
            for name in (*LEVELS, *PEERS)
            if name in row.ratios
        ),
        default=2.0,
    )
    scale = Scale(max(highest * 1.03, 1.5))
    height = TOP + ROW * len(drawn) + 20
    body = [*axis(scale, height), *key(drawn)]
    for n, (label, on, row) in enumerate(drawn):
        body += marks(scale, TOP + ROW * n + ROW / 2, label, on, row)
    return "\n".join(
        (
            f'<svg xmlns="{SVG}" viewBox="0 0 {WIDTH} {height}" {FONT} role="img">',
            "<title>What tracing costs: ratios to the same work untraced</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            text(
                16,
                22,
                f"Time with tracing divided by time without. {section.machine}",
            ),
            *body,
            "</svg>\n",
        )
    )


class Scale:
    """Places a ratio; logarithmic, or the small ratios would be one spot."""

    def __init__(self, highest: float) -> None:
        self.highest = highest

    def x(self, ratio: float) -> float:
        share = log(max(ratio, 0.97) / 0.97) / log(self.highest / 0.97)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def axis(scale: Scale, height: int) -> list[str]:
    lines: list[str] = []
    for tick in TICKS:
        if tick <= scale.highest:
            x = scale.x(tick)
            lines.append(
                f'<line x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{height - 14}" stroke="#e2e8f0"/>'
            )
            lines.append(text(x, TOP - 12, f"{tick:g}", anchor="middle", fill="#64748b"))
    return lines


def key(drawn: list[tuple[str, str, Row]]) -> list[str]:
    present = {name for _label, _on, row in drawn for name in row.ratios}
    entries: list[str] = []
    x = 16.0
    for name in (*LEVELS, *PEERS):
        if name in present:
            entries += [mark(name, x, 41), text(x + 9, 45, name)]
            x += 26 + 7.2 * len(name)
    entries += [goal_mark(x, 41, "#334155"), text(x + 9, 45, "goal")]
    return entries


def marks(scale: Scale, y: float, label: str, on: str, row: Row) -> list[str]:
    lines = [text(16, y + 4, label)]
    goal = GOALS.get(row.key)
    for name in (*PEERS, *LEVELS):
        if name in row.ratios:
            ratio = median(row.ratios[name])
            lines.append(mark(name, scale.x(ratio), y, f"{label}: {name} {ratio:.2f}"))
            due = goal.of(on, name) if goal and name in LEVELS else None
            if due is not None:
                lines.append(goal_mark(scale.x(due), y, LEVELS[name]))
    return lines


def mark(name: str, x: float, y: float, title: str = "") -> str:
    look = (
        f'fill="{LEVELS[name]}"'
        if name in LEVELS
        else f'fill="none" stroke="{PEERS[name]}" stroke-width="1.8"'
    )
    tip = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle cx="{x}" cy="{y}" r="4.5" {look}>{tip}</circle>'


def goal_mark(x: float, y: float, colour: str) -> str:
    return (
        f'<line x1="{x}" x2="{x}" y1="{y - 9}" y2="{y + 9}" stroke="{colour}" stroke-width="1.6"/>'
    )


def text(x: float, y: float, content: str, anchor: str = "start", fill: str = "#0f172a") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}">{escape(content)}</text>'

"""The results as tables, on the terminal and in docs/performance.md."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.goals import GOALS
from benchmarks.plot import plot
from benchmarks.results import CONTROL, LINES, Ratios, Row, Section, duration, middle, saved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PLOT = PAGE.with_suffix(".svg")
BEGIN, END = "<!-- written by the benchmark -->\n", "<!-- to here -->\n"
LEVELS = ("A", "B", "C")
# Above it, the machine was too busy for the ratios beside it to mean much.
NOISE_ALLOWED = 0.03

Lines = list[list[str]]


def write_page() -> None:
    """Puts all results there are into the page, and draws its plot."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(head + BEGIN + "\n" + figures() + "\n" + END + tail, encoding="utf-8")
    works = saved("works", LINES[0])
    if works:
        PLOT.write_text(plot(works), encoding="utf-8")


def figures() -> str:
    """Everything that was measured, in Markdown."""
    parts: list[str] = []
    for heading, said, name, tell, add in SECTIONS:
        sections = [section for line in LINES if (section := saved(name, line))]
        if sections:
            parts += [f"## {heading}", said]
        for section in sections:
            parts += [f"### {section.machine}", *(markdown(table) for table in tell(section))]
            if notes := add(section):
                parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def levels(section: Section) -> list[Lines]:
    """Each work beside its goals."""
    named = [name for name in LEVELS if name in all_titles(section)]
    header = ["work", "on", "untraced"]
    for name in named:
        header += [name, "goal"]
    lines = [[*header, CONTROL]]
    for ratios, row in rows(section):
        cells = [f"{row.key} {row.title}", ratios.database, duration(row.bare_seconds)]
        for name in named:
            cells += against_goal(row, ratios.database, name)
        lines.append([*cells, middle(row.ratios[CONTROL])])
    return [lines]


def against_goal(row: Row, database: str, level: str) -> list[str]:
    measured = middle(row.ratios[level])
    goal = GOALS.get(row.key)
    if goal is None:
        return [measured, ""]
    ratio = goal.of(database, level)
    reached = median(row.ratios[level]) < ratio + 0.005
    return [measured if reached else f"**{measured}**", f"{ratio:.2f}"]


def others(section: Section) -> list[Lines]:
    """Each work under the listeners that do nothing, and under other people's tracers."""
    named = [name for name in all_titles(section) if name not in ("bare", CONTROL, *LEVELS)]
    return [plain(section, named)] if named else []


def plain(section: Section, named: Sequence[str]) -> Lines:
    return [
        ["work", "on", "untraced", *named],
        *(
            [
                f"{row.key} {row.title}",
                ratios.database,
                duration(row.bare_seconds),
                *(middle(row.ratios[name]) if name in row.ratios else "" for name in named),
            ]
            for ratios, row in rows(section)
        ),
    ]


def exported(section: Section) -> list[Lines]:
    return [plain(section, [*(n for n in LEVELS if n in all_titles(section)), CONTROL])]


def scaled(section: Section) -> list[Lines]:
    named = [*(name for name in LEVELS if name in all_titles(section)), CONTROL]
    return [
        [
            ["at once", "on", "sessions a second, untraced", *named],
            *(
                [
                    row.title,
                    ratios.database,
                    f"{1 / row.bare_seconds:,.0f}",
                    *(middle(row.ratios[name]) for name in named),
                ]
                for ratios, row in rows(section)
            ),
        ]
    ]


def memory(section: Section) -> list[Lines]:
    return [
        [
            ["what", "measured", "goal"],
            *(
                [
                    figure.what,
                    figure.measured if figure.reached else f"**{figure.measured}**",
                    figure.goal,
                ]
                for figure in section.figures
            ),
        ]
    ]


def noise(section: Section) -> list[str]:
    """Which rows mean little, because the machine had other work."""
    return [
        f"The control of {row.key} {row.title} on {ratios.database} is off by {row.noise():.1%},"
        f" allowed are {NOISE_ALLOWED:.0%}: measure it again on a quieter machine."
        for ratios, row in rows(section)
        if row.noise() >= NOISE_ALLOWED
    ]


def explained(section: Section) -> list[str]:
    """What others are, and why some are missing."""
    left_out = {name: why for ratios in section.ratios for name, why in ratios.left_out.items()}
    return [
        *(
            f"{name}: {title}."
            for name, title in all_titles(section).items()
            if name not in ("bare", CONTROL, *LEVELS)
        ),
        *(f"Without {name}: {why}" for name, why in left_out.items()),
    ]


def nothing(_section: Section) -> list[str]:
    return []


# Heading, what it is, the file it is kept in, its tables, what is noted below them.
SECTIONS: tuple[
    tuple[str, str, str, Callable[[Section], list[Lines]], Callable[[Section], list[str]]], ...
] = (
    (
        "What tracing costs",
        "Time of a unit of work to the same untraced, [lowest..highest launch]; bold: goal missed.",
        "works",
        levels,
        noise,
    ),
    (
        "What others cost",
        "The same, in the same rounds, for listeners that do nothing and tracers of statements.",
        "works",
        others,
        explained,
    ),
    (
        "With export",
        "OTLP over HTTP to a collector on the same machine; encoding and sending it all are timed.",
        "otlp",
        exported,
        noise,
    ),
    ("Memory and standing costs", "Level A, unless it says otherwise.", "memory", memory, nothing),
    (
        "Scaling",
        "Threads run W1, tasks W6, on 16 connections: seconds for a session to those untraced.",
        "scaling",
        scaled,
        noise,
    ),
)


def rows(section: Section) -> list[tuple[Ratios, Row]]:
    """Every work on every database, the databases of one work together."""
    order = {row.title: n for ratios in section.ratios for n, row in enumerate(ratios.rows)}
    return sorted(
        ((ratios, row) for ratios in section.ratios for row in ratios.rows),
        key=lambda one: order[one[1].title],
    )


def all_titles(section: Section) -> dict[str, str]:
    return {name: title for ratios in section.ratios for name, title in ratios.titles.items()}


def terminal(name: str, section: Section) -> str:
    """One section as plain text."""
    parts = [section.machine]
    for _heading, _said, of, tell, add in SECTIONS:
        if of == name:
            parts += [*map(aligned, tell(section)), "\n".join(add(section))]
    return "\n\n".join(part for part in parts if part)


def aligned(lines: Lines) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(lines: Lines) -> str:
    header, *body = lines
    return "\n".join(map(cells, (header, ["---"] * len(header), *body)))


def cells(line: Iterable[str]) -> str:
    return "| " + " | ".join(line) + " |"

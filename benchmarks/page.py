"""The results as Markdown: printed, and written into docs/performance.md and the README."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.goals import GOALS, INSTRUCTIONS, STATEMENT_SPANS
from benchmarks.plot import plot
from benchmarks.results import CONTROL, LINES, Ratios, Row, Section, duration, middle, saved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

README = Path(__file__).parents[1] / "README.md"
PAGE = README.parent / "docs" / "performance.md"
PLOT = PAGE.with_suffix(".svg")
BEGIN, END = "<!-- written by the benchmark -->\n", "<!-- to here -->\n"
LEVELS = ("A", "B", "C")
# What level C is compared with; `variants.SPANS`.
SPANS = "spans"
# A work whose statements' spans cost less than this has no price that can be compared.
PRICE_SEEN = 0.05
# With a larger distance, the machine was too busy and the row means little.
NOISE_ALLOWED = 0.03

Lines = list[list[str]]


def write_page() -> None:
    """Writes all saved results into the page and the README, and draws the plot."""
    between_marks(PAGE, figures())
    if works := saved("works", LINES[0]):
        between_marks(README, overview(works))
        PLOT.write_text(plot(works), encoding="utf-8")


def between_marks(file: Path, written: str) -> None:
    text = file.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    file.write_text(f"{head}{BEGIN}\n{written}\n{END}{tail}", encoding="utf-8")


def figures() -> str:
    """All saved results."""
    texts = [
        part.text([section for line in LINES if (section := saved(part.name, line))])
        for part in PARTS
    ]
    return "\n\n".join(text for text in texts if text) + "\n"


def printed(name: str, section: Section) -> str:
    """One section that was just measured."""
    texts = [part.text([section]) for part in PARTS if part.name == name]
    return "\n\n".join(text for text in texts if text) + "\n"


class Part(NamedTuple):
    """One heading of the page."""

    heading: str
    about: str
    # The section whose results it has.
    name: str
    tables: Callable[[Section], list[Lines]]
    notes: Callable[[Section], list[str]] = lambda _section: []

    def text(self, sections: Sequence[Section]) -> str:
        parts: list[str] = []
        for section in sections:
            if tables := self.tables(section):
                parts += [f"### {section.machine}", *map(markdown, tables)]
                parts += ["\n".join(f"- {note}" for note in self.notes(section))]
        parts = [part for part in parts if part]
        return "\n\n".join([f"## {self.heading}", self.about, *parts]) if parts else ""


def overview(section: Section) -> str:
    """The README's table: each work on both databases, medians only."""
    first, *others = section.ratios
    columns = [(first, name) for name in (CONTROL, "A", "B", "OpenTelemetry")]
    columns += [(ratios, name) for ratios in others for name in ("A", "B", "OpenTelemetry")]
    columns = [(ratios, name) for ratios, name in columns if name in ratios.titles]
    header = ["work", f"untraced, {first.database}"]
    header += [
        name if ratios is first else f"{ratios.database}: {name}" for ratios, name in columns
    ]
    rows = {id(ratios): {row.title: row for row in ratios.rows} for ratios in section.ratios}
    lines = [header]
    for row in first.rows:
        cells = [f"{row.key} {row.title}", duration(row.bare_seconds)]
        for ratios, name in columns:
            of_database = rows[id(ratios)][row.title]
            ratio = f"{median(of_database.ratios[name]):.2f}"
            cells.append(bold_if_missed(ratio, of_database, ratios.database, name))
        lines.append(cells)
    return f"{markdown(lines)}\n\n{section.machine}.\n"


def bold_if_missed(text: str, row: Row, database: str, name: str) -> str:
    goal = goal_of(row, database, name)
    reached = goal is None or median(row.ratios[name]) < goal + 0.005
    return text if reached else f"**{text}**"


def goal_of(row: Row, database: str, name: str) -> float | None:
    goal = GOALS.get(row.key)
    return goal.of(database, name) if goal else None


def levels(section: Section) -> list[Lines]:
    """Each work with its goals."""
    named = [name for name in LEVELS if name in all_titles(section)]
    header = ["work", "on", "untraced"]
    for name in named:
        header += [name] if name == "C" else [name, "goal"]
    lines = [[*header, CONTROL]]
    for ratios, row in rows(section):
        cells = [f"{row.key} {row.title}", ratios.database, duration(row.bare_seconds)]
        for name in named:
            measured = middle(row.ratios[name])
            cells.append(bold_if_missed(measured, row, ratios.database, name))
            if name != "C":
                goal = goal_of(row, ratios.database, name)
                cells.append("" if goal is None else f"{goal:.2f}")
        lines.append([*cells, middle(row.ratios[CONTROL])])
    return [lines]


def statement_spans(section: Section) -> list[Lines]:
    """What level C adds to B, and the price of the SDK's spans, in the same rounds."""
    lines = [["work", "on", "C adds to B", "OpenTelemetry's spans alone", "compared", "goal"]]
    for ratios, row in rows(section):
        if not {"B", "C", SPANS} <= row.ratios.keys():
            continue
        prices = [ratio - 1 for ratio in row.ratios[SPANS]]
        if min(prices) - row.noise() < PRICE_SEEN:
            continue
        added = [c - b for b, c in zip(row.ratios["B"], row.ratios["C"], strict=True)]
        compared = [more / price for more, price in zip(added, prices, strict=True)]
        reached = median(compared) < STATEMENT_SPANS + 0.005
        lines.append(
            [
                f"{row.key} {row.title}",
                ratios.database,
                f"{median(added):.0%}",
                f"{median(prices):.0%}",
                middle(compared) if reached else f"**{middle(compared)}**",
                f"{STATEMENT_SPANS:.2f}",
            ]
        )
    return [lines] if len(lines) > 1 else []


def instructions(section: Section) -> list[Lines]:
    """What each level adds to each work, by package."""
    packages = ("session_tracer", "sqlalchemy", "opentelemetry")
    lines = [["work", "level", "instructions", "goal", *packages, "others"]]
    for count in section.counts:
        if count.variant not in LEVELS:
            continue
        total = sum(count.instructions.values())
        goal = INSTRUCTIONS.get((count.key, count.variant))
        of_packages = [count.instructions.get(package, 0) for package in packages]
        lines.append(
            [
                f"{count.key} {count.title}",
                count.variant,
                f"{total:,}" if goal is None or total <= goal else f"**{total:,}**",
                "" if goal is None else f"{goal:,}",
                *(f"{number:,}" for number in of_packages),
                f"{total - sum(of_packages):,}",
            ]
        )
    return [lines]


def counted_spans(section: Section) -> list[Lines]:
    """As `statement_spans`, in instructions."""
    added = {(one.title, one.variant): one.instructions for one in section.counts}
    lines = [["work", "C adds to B", "OpenTelemetry's spans alone", "compared", "goal"]]
    for title, key in {one.title: one.key for one in section.counts}.items():
        b, c, spans = (added.get((title, name), {}) for name in ("B", "C", SPANS))
        # Without the listener that makes the spans, and what SQLAlchemy does to call it.
        price = spans.get("opentelemetry", 0)
        if not (b and c and price):
            continue
        more = sum(c.values()) - sum(b.values())
        compared = f"{more / price:.2f}"
        reached = more / price < STATEMENT_SPANS + 0.005
        lines.append(
            [
                f"{key} {title}",
                f"{more:,}",
                f"{price:,}",
                compared if reached else f"**{compared}**",
                f"{STATEMENT_SPANS:.2f}",
            ]
        )
    return [lines] if len(lines) > 1 else []


def others(section: Section) -> list[Lines]:
    """Each work with listeners that do nothing, and with other tracers."""
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
            ["at once", "on", "sessions per second, untraced", *named],
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
    """The rows that mean little because the machine was busy."""
    return [
        f"The control of {row.key} {row.title} on {ratios.database} is off by {row.noise():.1%},"
        f" allowed are {NOISE_ALLOWED:.0%}: measure it again on a quieter machine."
        for ratios, row in rows(section)
        if row.noise() >= NOISE_ALLOWED
    ]


def explained(section: Section) -> list[str]:
    """What the other variants are, and why some are missing."""
    left_out = {name: why for ratios in section.ratios for name, why in ratios.left_out.items()}
    return [
        *(
            f"{name}: {title}."
            for name, title in all_titles(section).items()
            if name not in ("bare", CONTROL, *LEVELS)
        ),
        *(f"{name} is missing: {why}" for name, why in left_out.items()),
    ]


PARTS = (
    Part(
        "What tracing costs",
        "Time with tracing divided by time without, [lowest..highest launch]. Bold: goal missed.",
        "works",
        levels,
        noise,
    ),
    Part(
        "What other tracers cost",
        "Ratios from the same rounds: listeners that do nothing, and tracers of statements.",
        "works",
        others,
        explained,
    ),
    Part(
        "What statement spans cost",
        "The time that level C adds to level B, and the time that OpenTelemetry's SDK alone takes"
        " to make a span for each statement, as shares of the untraced time. Works where these take"
        f" less than {PRICE_SEEN:.0%} are omitted.",
        "works",
        statement_spans,
    ),
    Part(
        "Instructions",
        "Python instructions that one unit of work executes in addition, by package.",
        "counts",
        instructions,
    ),
    Part(
        "Instructions of statement spans",
        "The instructions that level C adds to level B, and those of a span of OpenTelemetry's SDK"
        " for each statement.",
        "counts",
        counted_spans,
    ),
    Part("Memory and standing costs", "At level A if no level is named.", "memory", memory),
    Part(
        "With export",
        "OTLP over HTTP to a collector on the same machine; encoding and sending are timed.",
        "otlp",
        exported,
        noise,
    ),
    Part(
        "Scaling",
        "Threads run W1 and tasks run W6, on 16 connections.",
        "scaling",
        scaled,
        noise,
    ),
)


def rows(section: Section) -> list[tuple[Ratios, Row]]:
    """Each work on each database, the databases of one work together."""
    order = {row.title: n for ratios in section.ratios for n, row in enumerate(ratios.rows)}
    return sorted(
        ((ratios, row) for ratios in section.ratios for row in ratios.rows),
        key=lambda one: order[one[1].title],
    )


def all_titles(section: Section) -> dict[str, str]:
    return {name: title for ratios in section.ratios for name, title in ratios.titles.items()}


def markdown(lines: Lines) -> str:
    header, *body = lines
    return "\n".join(map(cells, (header, ["---"] * len(header), *body)))


def cells(line: Iterable[str]) -> str:
    return "| " + " | ".join(line) + " |"

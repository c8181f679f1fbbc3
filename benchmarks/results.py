"""The results as values, and the files that contain them between two runs."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path(__file__).with_name("results")
LINES = ("2.1", "2.0")
CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Row:
    """One work: its time untraced, and the ratios of each variant to it, one for each launch."""

    key: str
    title: str
    bare_seconds: float
    rounds: int
    ratios: dict[str, list[float]]

    def noise(self) -> float:
        """How far the control is from 1: the larger of its median's and half its spread."""
        control = self.ratios[CONTROL]
        return max(abs(median(control) - 1), (max(control) - min(control)) / 2)


@dataclass(frozen=True, slots=True)
class Ratios:
    """The works on one database."""

    database: str
    launches: int
    # By the variant's name, in the order of the columns.
    titles: dict[str, str]
    # Why a variant is missing.
    left_out: dict[str, str]
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number, beside its goal."""

    what: str
    measured: str
    goal: str
    reached: bool


@dataclass(frozen=True, slots=True)
class Count:
    """Python instructions that a variant adds to one unit of a work, by package."""

    key: str
    title: str
    variant: str
    instructions: dict[str, int]


@dataclass(frozen=True, slots=True)
class Section:
    """The results of one section of the page on one SQLAlchemy line."""

    machine: str
    ratios: list[Ratios] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)


def save(name: str, section: Section) -> None:
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(asdict(section), indent=1, ensure_ascii=False)
    file_of(name, sqlalchemy_line()).write_text(text + "\n", encoding="utf-8")


def saved(name: str, line: str) -> Section | None:
    file = file_of(name, line)
    if not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return Section(
        content["machine"],
        [
            Ratios(**{**ratios, "rows": [Row(**row) for row in ratios["rows"]]})
            for ratios in content["ratios"]
        ],
        [Figure(**figure) for figure in content["figures"]],
        [Count(**count) for count in content.get("counts", ())],
    )


def file_of(name: str, line: str) -> Path:
    return FOLDER / f"{name}-{line}.json"


def sqlalchemy_line() -> str:
    return ".".join(sqlalchemy.__version__.split(".")[:2])


def machine() -> str:
    return (
        f"SQLAlchemy {sqlalchemy.__version__},"
        f" {platform.python_implementation()} {platform.python_version()},"
        f" {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )


def middle(ratios: Sequence[float]) -> str:
    """The median, and the lowest and the highest launch."""
    return f"{median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]"


def duration(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 0.001 else f"{seconds * 1e3:.1f} ms"

"""The measured ratios as a table: plain text for a terminal, Markdown for a page."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import sqlalchemy

from benchmarks.variants import BARE, CONTROL, Variant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measure import Measured, Plan

# Above it, the machine was too busy for the ratios beside it to mean much.
NOISE_ALLOWED = 0.03


@dataclass(frozen=True, slots=True)
class Table:
    """One database's results: a row for each work, a column for each variant."""

    title: str
    variants: Sequence[Variant]
    measured: Sequence[Measured]
    plan: Plan

    def header(self) -> list[str]:
        return ["work", "bare", "rounds", *(variant.name for variant in self._compared())]

    def rows(self) -> list[list[str]]:
        return [
            [
                f"{of_work.work.key} {of_work.work.title}",
                duration(of_work.bare_seconds()),
                str(of_work.rounds()),
                *(ratio(of_work.ratios(variant)) for variant in self._compared()),
            ]
            for of_work in self.measured
        ]

    def legend(self) -> list[str]:
        return [
            f"Median ratio to bare [lowest..highest of {self.plan.launches} launches].",
            *(f"{variant.name}: {variant.title}." for variant in self.variants),
        ]

    def warnings(self) -> list[str]:
        return [
            f"Control noise of {of_work.work.key} {of_work.work.title} is {noise(of_work):.1%},"
            f" allowed are {NOISE_ALLOWED:.0%}: measure again on a quieter machine."
            for of_work in self.measured
            if noise(of_work) >= NOISE_ALLOWED
        ]

    def text(self) -> str:
        lines = [self.header(), *self.rows()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        body = (
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
        return "\n".join((self.title, "", *body, "", *self.legend(), *self.warnings()))

    def markdown(self) -> str:
        header = self.header()
        lines = [header, ["---"] * len(header), *self.rows()]
        body = ("| " + " | ".join(line) + " |" for line in lines)
        notes = (f"- {note}" for note in (*self.legend(), *self.warnings()))
        return "\n".join((f"### {self.title}", "", *body, "", *notes))

    def _compared(self) -> list[Variant]:
        return [variant for variant in self.variants if variant is not BARE]


def noise(measured: Measured) -> float:
    """How far the control is from 1: the larger of its median's and half its spread."""
    ratios = measured.ratios(CONTROL)
    return max(abs(median(ratios) - 1), (max(ratios) - min(ratios)) / 2)


def ratio(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.3f} [{min(ratios):.2f}..{max(ratios):.2f}]"


def duration(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 0.001 else f"{seconds * 1e3:.1f} ms"


def machine() -> str:
    return (
        f"{platform.python_implementation()} {platform.python_version()},"
        f" SQLAlchemy {sqlalchemy.__version__},"
        f" {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )

"""What each tool reports, and the file that holds it between two runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.results import FOLDER

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["FILE", "Results", "load", "save"]

FILE: Final = FOLDER / "accuracy.json"


@dataclass(frozen=True, slots=True)
class Results:
    """One run.

    Attributes:
        versions: The versions of SQLAlchemy and of the peers, by name.
        programs: The names of the programs whose tests pass without a tool, by their origin.
        reported: Which of them each tool reports, by origin and tool.
    """

    versions: Mapping[str, str]
    programs: Mapping[str, list[str]]
    reported: Mapping[str, Mapping[str, list[str]]]

    def bugs(self, tool: str) -> tuple[int, int]:
        """Return how many bugs of the corpus a tool reports, and how many there are."""
        return self._count(tool, is_bug=True)

    def right(self, tool: str) -> tuple[int, int]:
        """Return how many right programs of the corpus a tool reports, and how many there are."""
        return self._count(tool, is_bug=False)

    def _count(self, tool: str, *, is_bug: bool) -> tuple[int, int]:
        of_kind = {one for one in self.programs["corpus"] if has_bug(one) == is_bug}
        return len(of_kind & set(self.reported["corpus"][tool])), len(of_kind)

    def of_origin(self, origin: str, tool: str) -> tuple[int, int]:
        """Return how many programs of an origin a tool reports, and how many there are."""
        return len(self.reported[origin][tool]), len(self.programs[origin])

    def wrong(self, tool: str) -> list[str]:
        """Return the programs of the corpus that a tool judges otherwise than their author."""
        reported = set(self.reported["corpus"][tool])
        return [one for one in self.programs["corpus"] if has_bug(one) != (one in reported)]


def has_bug(program: str) -> bool:
    """Return whether the author of the corpus calls a program wrong."""
    return program.startswith("bug_")


def save(results: Results, file: Path = FILE) -> None:
    """Write a run into the file."""
    file.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")


def load(file: Path = FILE) -> Results:
    """Return the run in the file."""
    return Results(**json.loads(file.read_text(encoding="utf-8")))

"""Counts the programs that have run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.differential.programs import Program

__all__ = ["TALLY"]


class Tally:
    """How many programs of how many steps ran, and from which seed they were made."""

    def __init__(self) -> None:
        self.programs = 0
        self.steps = 0
        self.seed = 0

    def count(self, program: Program) -> None:
        """One more."""
        self.programs += 1
        self.steps += len(program.steps)

    def __str__(self) -> str:
        return (
            f"{self.programs} programs of {self.steps} steps, "
            f"SESSION_TRACER_TEST_PROGRAMS_SEED={self.seed}"
        )


TALLY: Final = Tally()

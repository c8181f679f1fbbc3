"""Makes two runs of one program comparable, and says how many there were."""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING

import pytest

from tests.differential.steady import steady_sets
from tests.differential.tally import TALLY

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def steady() -> Iterator[None]:
    """Have the program alone decide the order of SQLAlchemy's sets."""
    with steady_sets():
        yield
    with warnings.catch_warnings():
        # A lazy load that asyncio refuses leaves the driver's coroutine behind, traced or not.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        gc.collect()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.programs:
        terminalreporter.write_line(f"differential: {TALLY}")

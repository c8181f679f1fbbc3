"""What detectors, and the ledger for them, remember of a scope does not grow with it."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from session_tracer.detectors.flushes import AutoflushStorm
from session_tracer.detectors.loading import GetInLoop, NPlusOne
from session_tracer.detectors.reloads import RefreshAfterWrite, ReloadAfterCommit
from session_tracer.detectors.selects import RepeatedSelects
from session_tracer.detectors.single_rows import RowByRowWrites
from session_tracer.facts import FlushBegan, FlushCompleted
from tests.detectors.feeding import PlayedScope, at
from tests.detectors.reading import (
    COMMITTED,
    FLUSHED,
    get,
    lazy,
    refresh,
    reload_,
    select,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from session_tracer import Detector
    from session_tracer.facts import Fact

LINES: dict[str, tuple[Detector, Callable[[int], Iterable[Fact]]]] = {
    "n-plus-one": (NPlusOne(), lambda n: [lazy(n, at(n))]),
    "reload-after-commit": (ReloadAfterCommit(), lambda n: [reload_(n, at(n), attribute=f"a{n}")]),
    "reload-after-each-commit": (
        ReloadAfterCommit(),
        lambda n: [COMMITTED, *[reload_(m, at(n)) for m in range(5)]],
    ),
    "get-in-loop": (GetInLoop(), lambda n: [get(n, at(n))]),
    "get-in-one-loop": (GetInLoop(), lambda n: [get(n)]),
    "repeated-select": (RepeatedSelects(), lambda n: [select(n)]),
    "query-in-loop": (RepeatedSelects(), lambda n: [select(n, at(n), query=1, part_of=n)]),
    "query-in-one-loop": (RepeatedSelects(), lambda n: [select(n, query=1, part_of=n)]),
    "refresh-after-write": (RefreshAfterWrite(), lambda n: [FLUSHED, *refresh(at(n))]),
    "autoflush-storm": (
        AutoflushStorm(),
        lambda n: [FlushCompleted(1, at(n), "autoflush", 1, {"Author": 1})],
    ),
    "row-by-row-writes": (
        RowByRowWrites(),
        lambda n: [
            FlushBegan(1, at(n), "explicit"),
            select(operation="INSERT", site=at(n), rows=1, in_flush=True),
        ],
    ),
}


@pytest.mark.parametrize("what", LINES)
def test_a_program_of_very_many_lines_does_not_fill_the_memory(what: str) -> None:
    detector, happens = LINES[what]
    scope = PlayedScope([detector])
    sizes = []
    for number in range(1, 4_001):
        scope.play(*happens(number))
        if number in (2_000, 4_000):
            ledger = scope.ledger
            counted = (ledger.loads, ledger.single_rows, ledger.first_selects)
            sizes.append(len(pickle.dumps((counted, scope.memories))))
    assert sizes[1] <= sizes[0] * 1.05 + 1_000

"""That a finding does not depend on who listens: real programs, quietly and with everything on."""

from __future__ import annotations

import logging
import re
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from session_tracer import DEFAULT_DETECTORS, Exporter, Finding, Settings
from session_tracer.hooks.targets import resolve
from session_tracer.instrumentor import capture as instrument
from session_tracer.ledger import watchdog
from session_tracer.testing import capture
from tests.differential.programs import Program, programs, run
from tests.differential.test_same_as_without import PROGRAMS, SEED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.model.findings import Retraction
    from tests.differential.world import World

pytestmark = [
    pytest.mark.timeout(300 + 5 * PROGRAMS),
    # A lazy load that asyncio refuses leaves the driver's coroutine behind, traced or not.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    # And SQLAlchemy warns if the garbage collector takes an asynchronous session that it lost.
    pytest.mark.filterwarnings("ignore:The garbage collector is trying:sqlalchemy.exc.SAWarning"),
]
# Short programs make findings, too.
SENSITIVE: Final[dict[str, Any]] = {
    "commits_from_one_site": 2,
    "savepoints_per_transaction": 2,
    "autoflushes_from_one_site": 2,
    "single_row_writes": 2,
    "lazy_loads_from_one_site": 2,
    "gets_from_one_site": 2,
    "repeats_of_one_select": 2,
    "reloads_after_commit": 2,
    "refreshes_from_one_site": 2,
    "unchanged_dirty_objects": 1,
    "large_flush_objects": 2,
    "large_identity_map_objects": 6,
    "large_result_objects": 3,
}


class Reported(NamedTuple):
    """What a finding or a retraction is, without ids, and without times, which differ."""

    kind: str
    id: str
    severity: str
    remedy: str
    site: str
    session_site: str
    entity: str | None
    attribute: str | None
    number: int
    evidence: str


def reported(one: Finding | Retraction) -> Reported:
    """A finding or a retraction as it can be compared."""
    finding = one if isinstance(one, Finding) else one.finding
    return Reported(
        type(one).__name__,
        finding.id,
        finding.severity,
        finding.remedy.partition("first of all session")[0],
        str(finding.site),
        str(finding.session_site),
        finding.entity,
        finding.attribute,
        finding.count,
        # asyncio numbers the tasks of the whole process.
        re.sub(r"Task-\d+", "Task", str({
            key: value
            for key, value in one.evidence.items()
            if "_ms" not in key and key not in ("other_session_id", "holders")
        })),
    )  # fmt: skip


@contextmanager
def quietly(world: World, found: list[Reported]) -> Iterator[None]:
    """Ask for findings alone."""
    exporter = Exporter(
        on_finding=lambda one: found.append(reported(one)),
        on_retraction=lambda one: found.append(reported(one)),
    )
    instrumentation = instrument(
        resolve(world.target), "default", exporter, Settings(**SENSITIVE), DEFAULT_DETECTORS
    )
    try:
        yield
    finally:
        watchdog.settle()
        instrumentation.uninstrument()


@contextmanager
def loudly(world: World, found: list[Reported]) -> Iterator[None]:
    """Ask for everything: facts, spans, metrics, logs, and whole sessions."""
    with capture(world.target, statement_spans=True, **SENSITIVE) as told:
        yield
        watchdog.settle()
    everything: list[Finding | Retraction] = [*told.findings, *told.retractions]
    found += map(reported, everything)


def findings(program: Program) -> tuple[list[Reported], list[Reported]]:
    """What is reported quietly, and with everything asked for."""
    quiet: list[Reported] = []
    loud: list[Reported] = []
    run(program, lambda world: quietly(world, quiet))
    run(program, lambda world: loudly(world, loud))
    # Two sessions of two threads may be reported of in either order.
    return sorted(quiet, key=str), sorted(loud, key=str)


def difference(program: Program) -> str:
    """The findings that differ; empty if none does."""
    # What aiosqlite's threads still hold of a statement, and for how long, is a matter of luck.
    for _ in range(3):
        quiet, loud = findings(program)
        if quiet == loud:
            return ""
    only_quiet, only_loud = Counter(quiet) - Counter(loud), Counter(loud) - Counter(quiet)
    return f"quiet: {list(only_quiet)}\nloud: {list(only_loud)}\n{program!r}"


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_program_leads_to_the_same_findings_whoever_listens(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    @seed(SEED)
    @settings(
        max_examples=PROGRAMS,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(program=programs(is_async=is_async))
    def are_the_same(program: Program) -> None:
        found = difference(program)
        assert not found, f"SESSION_TRACER_TEST_PROGRAMS_SEED={SEED} {found}"

    are_the_same()

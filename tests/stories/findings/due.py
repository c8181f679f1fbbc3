"""Holds what is found in a story to the whole list of what is due."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from session_tracer.ledger.watchdog import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from session_tracer import CallSite, Finding
    from session_tracer.testing import Captured

# These frames are not whom a call site is about; a story's own are.
__session_tracer_hide__ = True


@dataclass(frozen=True, kw_only=True)
class Due:
    """A finding that is due, with what of its evidence matters."""

    id: str
    site: CallSite | None
    opened: CallSite | None
    remedy: str
    entity: str | None = None
    attribute: str | None = None
    count: int = 1
    evidence: Mapping[str, Any] = field(default_factory=dict)


def assert_found(captured: Captured, *due: Due, retracted: tuple[str, ...] = ()) -> None:
    """These findings were drawn and no others, these ids taken back, and nothing of ours failed."""
    matters: list[Mapping[str, Any]] = [one.evidence for one in due]
    matters += [{}] * (len(captured.findings) - len(matters))
    found = [_as_due(*one) for one in zip(captured.findings, matters, strict=False)]
    # Nobody rewrites the assertions of this module, so it says itself what differs.
    assert found == list(due), "\n".join(_differences(found, list(due)))
    assert [retraction.finding.id for retraction in captured.retractions] == list(retracted)
    assert all(retraction.finding in captured.findings for retraction in captured.retractions)
    assert captured.metrics.get("session_tracer.errors", []) == []


def _differences(found: list[Due], due: list[Due]) -> Iterator[str]:
    for one, wanted in zip_longest(found, due):
        if one is None or wanted is None:
            yield f"missing: {wanted}" if one is None else f"not due: {one}"
            continue
        for what in fields(Due):
            value, right = getattr(one, what.name), getattr(wanted, what.name)
            if value != right:
                yield f"{one.id}: {what.name} is {value!r}, not {right!r}"


def _as_due(finding: Finding, matters: Mapping[str, Any]) -> Due:
    return Due(
        id=finding.id,
        site=finding.site,
        opened=finding.session_site,
        remedy=finding.remedy,
        entity=finding.entity,
        attribute=finding.attribute,
        count=finding.count,
        evidence={key: finding.evidence.get(key) for key in matters},
    )


class Above:
    """Is equal to every greater number: time that passed."""

    def __init__(self, least: float) -> None:
        self._least = least

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int | float) and other > self._least

    __hash__ = None  # type: ignore[assignment] # two that are equal to a number need not be so

    def __repr__(self) -> str:
        return f"Above({self._least})"


def look_ahead(seconds: float) -> None:
    """Have time pass for the open sessions, as if it were so much later."""
    Watch(lambda: time.perf_counter_ns() + int(seconds * 1e9)).look()


async def until(happened: Callable[[], object], *, is_async: bool) -> None:
    """Wait as the application would, but only until that has happened."""
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        if is_async:
            await asyncio.sleep(0.01)
        else:
            time.sleep(0.01)


async def stay(here: asyncio.Event) -> None:
    """Say that this is reached, and wait for longer than any test."""
    here.set()
    await asyncio.sleep(600)

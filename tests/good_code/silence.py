"""Holds good code to silence: traced with the default settings, it yields no finding at all."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from session_tracer.testing import Captured, capture
from tests.twins import SyncSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.twins import Twin

# These frames are not whom a call site is about; a story's own are.
__session_tracer_hide__ = True

# For what needs no event loop, or has one of its own.
only_sync = pytest.mark.parametrize("is_async", [False], ids=["sync"])
# For what AsyncSession alone has.
only_async = pytest.mark.parametrize("is_async", [True], ids=["async"])


@contextmanager
def silent(target: Any, *, sessions: int, statements: int = 1) -> Iterator[Captured]:
    """Trace a block in which `sessions` end and at least `statements` run."""
    with capture(target) as captured:
        yield captured
    assert_silent(captured, sessions=sessions, statements=statements)


def assert_silent(captured: Captured, *, sessions: int, statements: int = 1) -> None:
    """Nothing was found, nothing in session_tracer failed, and everything was seen."""
    ended = captured.sessions
    said = [f"{found.id} at {found.site}: {found.message}" for found in captured.findings]
    assert not said, "\n".join(said)
    assert captured.retractions == []
    assert captured.metrics.get("session_tracer.errors", []) == [], "session_tracer failed"
    ran = sum(summary.statements for summary in ended)
    assert len(ended) == sessions, f"{len(ended)} sessions ended, not {sessions}"
    assert ran >= statements, f"{ran} statements ran, which is less than {statements}"


@asynccontextmanager
async def beginning(twin: Twin) -> AsyncIterator[Any]:
    """`with SessionLocal.begin() as session:`, which commits, or rolls back on an error."""
    if twin.is_async:
        async with twin.factory.begin() as session:
            yield session
    else:
        with twin.factory.begin() as session:
            yield SyncSession(session)

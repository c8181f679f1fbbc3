"""Gives the tests what the tracer says it does without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from session_tracer.runtime import degraded

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """What the tracer says it does without, in the order it is said."""
    monkeypatch.setattr(degraded, "_WARNED", set())
    start, end = "session_tracer does without ", ", which is not as it knows it: "
    return lambda: [message.removeprefix(start).partition(end)[0] for message in caplog.messages]

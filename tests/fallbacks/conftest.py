"""Gives the tests what is logged as missing."""

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
    """What is logged as missing, in this order."""
    monkeypatch.setattr(degraded, "_WARNED", set())
    start, end = "session_tracer: ", " is missing or has changed, therefore "
    return lambda: [message.removeprefix(start).partition(end)[0] for message in caplog.messages]

"""Tests that what is done without is said, once, and whatever becomes of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from sqlalchemy.orm import Session, sessionmaker

from session_tracer.hooks import private_api
from session_tracer.runtime import degraded
from session_tracer.testing import capture

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT: Final = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degraded, "_WARNED", set())


def test_each_thing_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        degraded.without("Session.flush", "flushes are not reported")
        degraded.without("Session.merge", "merges are not reported")
    start, middle = "session_tracer: ", " is missing or has changed, therefore "
    end = ". The application is not affected."
    assert caplog.record_tuples == [
        ("session_tracer", logging.WARNING, f"{start}{what}{middle}{loses}{end}")
        for what, loses in (
            ("Session.flush", "flushes are not reported"),
            ("Session.merge", "merges are not reported"),
        )
    ]


@pytest.fixture
def broken_handler() -> Iterator[None]:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError(record.getMessage())

    logger, handler = logging.getLogger("session_tracer"), Broken()
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


def test_a_handler_that_raises_stops_nothing(broken_handler: None) -> None:
    degraded.without("Session.flush", "flushes are not reported")


def test_all_is_there_with_this_sqlalchemy_and_python(caplog: pytest.LogCaptureFixture) -> None:
    private_api.check()
    assert caplog.record_tuples == []


def test_what_is_of_another_shape_is_not_there(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks_closer() -> bool:
        raise AttributeError

    reliance = private_api.Reliance("Session.flush", looks_closer, "flushes are not reported")
    monkeypatch.setattr(private_api, "RELIANCES", (reliance,))
    for _ in range(2):
        with capture(sessionmaker(), name="looks"):
            Session()
    (said,) = caplog.messages
    assert "Session.flush is missing or has changed" in said


def test_each_thing_stands_in_the_documentation() -> None:
    text = (CHECKOUT / "docs" / "trust.md").read_text(encoding="utf-8")
    assert [one.what for one in private_api.RELIANCES if f"`{one.what}`" not in text] == []

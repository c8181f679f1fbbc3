"""Tests what is not in a session's story, without the private thing that it relies on."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from session_tracer.exporters import log_records, otlp
from session_tracer.hooks import targets
from session_tracer.ledger import object_counter
from session_tracer.runtime import environment
from session_tracer.settings import Settings
from session_tracer.testing import capture
from session_tracer.verdicts import misuse
from session_tracer.where import tasks
from tests.fallbacks.missing import hide
from tests.fallbacks.story import library
from tests.library import Author

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from sqlalchemy.orm import InstanceState


def test_the_sessions_that_exist_are_not_traced_if_they_cannot_be_found(
    said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "KNOWS_SESSIONS", False)
    for factory in library():
        before = factory()
        with capture(factory) as told, before, factory() as after:
            before.scalars(select(Author)).all()
            after.scalars(select(Author)).all()
        assert [session.statements for session in told.sessions] == [1]
    assert said() == ["sqlalchemy.orm.session._sessions"]


def test_an_identity_map_of_another_shape_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def otherwise(self: Any, state: InstanceState[Any], key: Any) -> None:
        self._dict[key] = (state,)

    assert object_counter._works()
    identity_map = type(Session().identity_map)
    monkeypatch.setattr(identity_map, "_add_unpresent", otherwise)
    assert not object_counter._works()
    monkeypatch.delattr(identity_map, "_add_unpresent")
    assert not object_counter._works()


def test_sqlalchemys_greenlet_is_known_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_known(session: Session) -> bool:
        return misuse._greenlet() is not None

    async def ask() -> bool:
        async with AsyncSession() as session:
            return await session.run_sync(is_known)

    hide(monkeypatch, misuse._greenlet, "__sqlalchemy_greenlet_provider__")
    assert asyncio.run(ask())
    assert misuse._greenlet() is None


def test_the_public_function_tells_the_running_loop_too() -> None:
    async def ask() -> bool:
        return tasks._running_loop() is asyncio.get_running_loop()

    assert asyncio.run(ask())
    assert tasks._running_loop() is None


def test_the_proxies_of_metrics_are_known_under_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not environment.has_providers()
    proxy: Any = type(metrics.get_meter_provider())
    deferred = type("Deferred", (proxy,), {"__module__": proxy.__module__})
    monkeypatch.setattr(metrics, "get_meter_provider", deferred)
    assert not environment.has_providers()
    monkeypatch.setattr(metrics, "get_meter_provider", type("Configured", (proxy,), {}))
    assert environment.has_providers()


def test_without_the_logs_api_logs_go_to_pythons_logging(
    said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_records, "logs", None)
    assert log_records.application_logger_provider() is None
    assert said() == ["opentelemetry._logs"]


def test_without_the_logs_sdk_traces_and_metrics_are_sent(
    said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk._logs", None)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    exporter = otlp.open_exporter(Settings()).opened()
    exporter.close()
    assert not exporter.wants_logs
    assert type(exporter.tracer_provider).__module__ == "opentelemetry.sdk.trace"
    assert said() == ["opentelemetry.sdk._logs"]

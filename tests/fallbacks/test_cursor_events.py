"""Tests that statements are told the same by the engine's cursor events as by the dialect's."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as context_api
from opentelemetry import trace
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from session_tracer import facts
from session_tracer.hooks import statements
from session_tracer.testing import capture
from tests.fallbacks.missing import call_otherwise
from tests.library import Author, authors
from tests.twins import on_each_database

if TYPE_CHECKING:
    from tests.twins import Twin


def without_dialect_events(monkeypatch: pytest.MonkeyPatch) -> None:
    unheard = tuple((call_otherwise(name), one) for name, one in statements._DIALECT_LISTENERS)
    monkeypatch.setattr(statements, "_DIALECT_LISTENERS", unheard)


def engine_of(twin: Twin) -> Any:
    return twin.engine.sync_engine if isinstance(twin.engine, AsyncEngine) else twin.engine


async def program(twin: Twin) -> None:
    """Executes in each way that SQLAlchemy knows, and fails in some."""
    async with twin.session() as session:
        session.add_all(authors(3, books_each=2))
        await session.commit()
        await session.scalars(select(Author).order_by(Author.id))
        await session.run_sync(
            lambda one: one.scalars(select(Author).execution_options(yield_per=1)).all()
        )
        rows = [{"name": f"inserted {number}", "biography": ""} for number in range(3)]
        await session.execute(insert(Author), rows)
        await session.execute(insert(Author).returning(Author.id), [{**rows[0], "name": "other"}])
        await session.execute(
            update(Author), [{"id": number, "name": f"renamed {number}"} for number in (1, 2)]
        )
        await session.execute(text("SELECT 1"), execution_options={"no_parameters": True})
        with suppress(DBAPIError):
            async with session.begin_nested():
                await session.execute(insert(Author), [{"name": "renamed 1", "biography": ""}])
        with suppress(DBAPIError):
            await session.execute(text("SELECT nothing FROM nowhere"))
        await session.rollback()


def told(twin: Twin) -> list[dict[str, Any]]:
    """All that is told of each statement but for how long it took."""
    with capture(twin.factory, statement_spans=True) as captured:
        twin.run(lambda: program(twin))
    assert not captured.metrics.get("session_tracer.errors")
    return [
        {
            "type": type(fact).__name__,
            **{
                one.name: getattr(fact, one.name)
                for one in fields(fact)
                if one.name not in ("at", "duration")
            },
        }
        for fact in captured.facts
        if isinstance(fact, facts.StatementStarted | facts.StatementExecuted)
    ]


@on_each_database
def test_every_statement_is_told_the_same(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    normally = told(twin)
    without_dialect_events(monkeypatch)
    assert told(twin) == normally
    assert len(normally) > 20


def test_other_peoples_spans_are_below_ours(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(twin)
    seen: list[tuple[str, bool]] = []
    tokens: list[Any] = []

    def theirs(*_: object) -> None:
        inside = trace.get_current_span().get_span_context().is_valid
        seen.append(("before", inside))
        tokens.append(context_api.attach(context_api.set_value("theirs", True)))

    def ended(*_: object) -> None:
        context_api.detach(tokens.pop())
        seen.append(("after", trace.get_current_span().get_span_context().is_valid))

    without_dialect_events(monkeypatch)
    before = context_api.get_current()

    async def story() -> None:
        with capture(twin.factory, statement_spans=True):
            async with twin.session() as session:
                await session.execute(text("SELECT 1"))
                assert context_api.get_current() == before
                event.listen(engine, "before_cursor_execute", theirs)
                event.listen(engine, "after_cursor_execute", ended)
                await session.execute(text("SELECT 2"))
                assert context_api.get_current() == before
                event.remove(engine, "before_cursor_execute", theirs)
                event.remove(engine, "after_cursor_execute", ended)

    twin.run(story)
    assert seen == [("before", True), ("after", True)]


def test_engines_are_left_as_they_were_found(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(twin)
    engines = (engine, engine.execution_options(logging_token="optional"))

    def found() -> list[Any]:
        return [
            *("_has_events" in one.__dict__ for one in (*engines, engine.dialect)),
            *(len(one.dispatch.before_cursor_execute) for one in engines),
            len(engine.dialect.dispatch.handle_error),
        ]

    async def story() -> None:
        with capture(twin.factory) as captured:
            for one in engines:
                # The second hears of each statement from its parent as well.
                async with twin.session(**({} if twin.is_async else {"bind": one})) as session:
                    await session.execute(text("SELECT 1"))
        executed = [one for one in captured.facts if isinstance(one, facts.StatementExecuted)]
        assert len(executed) == 2

    without_dialect_events(monkeypatch)
    before = found()
    twin.run(story)
    assert found() == before


def test_a_statement_whose_error_others_hide_has_ended(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_dialect_events(monkeypatch)

    class Hidden(Exception):
        pass

    def hides(_: object) -> None:
        raise Hidden

    event.listen(engine_of(twin), "handle_error", hides)

    async def story() -> list[str]:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                with pytest.raises(Hidden):
                    await session.execute(text("SELECT nothing FROM nowhere"))
                await session.rollback()
                await session.execute(text("SELECT 1"))
        return [one.error for one in captured.facts if isinstance(one, facts.StatementExecuted)]

    first, second = twin.run(story)
    assert first
    assert not second

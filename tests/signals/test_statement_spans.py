"""Tests the spans and the metric of statements, by the stable database conventions."""

from typing import Any

import pytest
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import ReadableSpan
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from session_tracer.testing import capture
from tests.library import Author, Book, authors
from tests.signals.telling import Traces, context, of_database, told
from tests.twins import Twin, on_each_database, on_postgresql

SITE = {
    "code.function.name": "story",
    "code.file.path": "test_statement_spans.py",
    "code.line.number": "<line>",
}
UNSET = ("UNSET", None)
FAILED = ("ERROR", None)


@pytest.fixture(autouse=True, params=["live", "recorded"])
def _road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with live spans and with spans that are built when they end."""
    monkeypatch.setattr(Traces, "records", request.param == "recorded")


def statements(traces: Traces) -> list[ReadableSpan]:
    """The spans of statements."""
    return [span for span in traces.spans if span.kind.name == "CLIENT"]


def placeholder(twin: Twin, name: str, type_: str) -> str:
    """How the twin's driver writes the first parameter of a statement of SQLAlchemy's own."""
    if twin.database == "sqlite":
        return "?"
    return f"$1::{type_}" if twin.is_async else f"%({name})s::{type_}"


def written(twin: Twin, name: str) -> str:
    """How the twin's driver writes the first parameter of a text."""
    if twin.database == "sqlite":
        return "?"
    return "$1" if twin.is_async else f"%({name})s"


@on_each_database
def test_what_the_span_of_a_statement_says(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, statement_spans=True):
            async with twin.session() as session:
                await session.scalars(select(Author).where(Author.name == "a secret"))

    traces = Traces()
    twin.run(story)
    (span,) = statements(traces)
    assert span.name == "SELECT authors"
    assert told(span) == {
        "kind": "CLIENT",
        "status": UNSET,
        "attributes": {
            "db.query.text": "SELECT authors.id, authors.name \nFROM authors \n"
            f"WHERE authors.name = {placeholder(twin, 'name_1', 'VARCHAR')}",
            "db.query.summary": "SELECT authors",
            "db.operation.name": "SELECT",
            "db.collection.name": "authors",
            **of_database(twin),
            **SITE,
        },
        "events": [],
    }


def test_statements_have_no_spans_unless_asked_for(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()
        assert [span.name for span in captured.spans] == ["flush", "transaction", "session default"]
        assert "db.client.operation.duration" not in captured.metrics

    twin.run(story)


def test_spans_of_statements_are_below_the_innermost_span(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, statement_spans=True), traces.caller():
            async with twin.session() as session:
                await session.scalars(select(Book))
                async with session.begin_nested():
                    session.add_all(authors(1))
                    await session.flush()
                await session.commit()
                await session.scalars(select(Author))

    traces = Traces()
    twin.run(story)
    assert traces.tree() == [
        "caller",
        "  session default",
        "    transaction",
        "      SELECT books",
        "      savepoint",
        "        flush",
        "          SAVEPOINT",
        "          INSERT authors",
        "        RELEASE",
        "    transaction",
        "      SELECT authors",
    ]


@on_postgresql
@pytest.mark.parametrize("listened_to", [False, True], ids=["", "beside a cursor listener"])
def test_the_drivers_spans_are_below_those_of_statements(twin: Twin, listened_to: bool) -> None:
    async def story() -> None:
        with traces.of(twin, statement_spans=True), traces.caller():
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.flush()
                await session.scalars(select(Author))
                await session.rollback()

    if listened_to:
        engine = twin.engine.sync_engine if isinstance(twin.engine, AsyncEngine) else twin.engine
        event.listen(engine, "before_cursor_execute", lambda *_: None)
    traces = Traces()
    driver: Any = (AsyncPGInstrumentor if twin.is_async else PsycopgInstrumentor)()
    driver.instrument(tracer_provider=traces.provider)
    try:
        twin.run(story)
    finally:
        driver.uninstrument()
    in_sync = [
        "caller",
        "  session default",
        "    transaction",
        "      flush",
        "        INSERT authors",
        "          INSERT",
        "      SELECT authors",
        "        SELECT",
    ]
    in_async = [*in_sync[:5], "          BEGIN;", *in_sync[5:], "  ROLLBACK;"]
    assert traces.tree() == (in_async if twin.is_async else in_sync)


@on_each_database
def test_a_batch_is_called_one_and_counted(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, statement_spans=True):
            async with twin.session() as session:
                await session.execute(
                    text("INSERT INTO authors (name, biography) VALUES (:name, 'it''s 7')"),
                    [{"name": "one"}, {"name": "two"}, {"name": "three"}],
                )

    traces = Traces()
    twin.run(story)
    (span,) = statements(traces)
    assert span.name == "BATCH INSERT authors"
    assert told(span) == {
        "kind": "CLIENT",
        "status": UNSET,
        "attributes": {
            "db.query.text": "INSERT INTO authors (name, biography) "
            f"VALUES ({written(twin, 'name')}, ?)",
            "db.query.summary": "BATCH INSERT authors",
            "db.operation.name": "BATCH INSERT",
            "db.operation.batch.size": 3,
            "db.collection.name": "authors",
            **of_database(twin),
            **SITE,
        },
        "events": [],
    }


def test_a_batch_of_one_is_none(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, statement_spans=True):
            async with twin.session() as session:
                await session.execute(
                    text("UPDATE authors SET name = :name"), [{"name": "the only one"}]
                )

    traces = Traces()
    twin.run(story)
    (span,) = statements(traces)
    assert (span.name, told(span)["attributes"]) == (
        "UPDATE authors",
        {
            "db.query.text": f"UPDATE authors SET name = {written(twin, 'name')}",
            "db.query.summary": "UPDATE authors",
            "db.operation.name": "UPDATE",
            "db.collection.name": "authors",
            **of_database(twin),
            **SITE,
        },
    )


@on_postgresql
def test_one_insert_of_many_rows_is_no_batch(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, statement_spans=True):
            async with twin.session() as session:
                session.add_all(authors(5))
                await session.flush()

    traces = Traces()
    twin.run(story)
    (span,) = statements(traces)
    attributes = told(span)["attributes"]
    assert attributes.pop("db.query.text").startswith("INSERT INTO authors (name, biography)")
    assert (span.name, attributes) == (
        "INSERT authors",
        {
            "db.query.summary": "INSERT authors",
            "db.operation.name": "INSERT",
            "db.collection.name": "authors",
            **of_database(twin),
            **SITE,
        },
    )


@on_each_database
def test_no_value_is_in_the_text_of_a_query(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, statement_spans=True):
            async with twin.session() as session:
                session.add_all([Author(name="a secret", biography="a secret")])
                await session.flush()
                await session.scalars(select(Author).where(Author.name.in_(["a secret", "other"])))
                await session.scalars(
                    select(Author).where(text("name = 'a secret' AND id < 1234554321"))
                )
                await session.execute(
                    text("UPDATE authors SET name = 'a secret' WHERE id = :id"), {"id": 1234554321}
                )

    traces = Traces()
    twin.run(story)
    assert [span.name for span in statements(traces)] == [
        "INSERT authors",
        "SELECT authors",
        "SELECT authors",
        "UPDATE authors",
    ]
    for span in traces.spans:
        assert "secret" not in str(dict(span.attributes or {}))
        assert "1234554321" not in str(dict(span.attributes or {}))
    assert [dict(span.attributes or {})["db.query.text"] for span in statements(traces)][2:] == [
        "SELECT authors.id, authors.name \nFROM authors \nWHERE name = ? AND id < ?",
        f"UPDATE authors SET name = ? WHERE id = {written(twin, 'id')}",
    ]


@on_each_database
def test_a_statement_that_fails_says_the_databases_code(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, statement_spans=True):
            async with twin.session() as session:
                with pytest.raises(DBAPIError) as raised:
                    await session.execute(text("SELECT nothing FROM nowhere"))
                errors.append(raised.value)

    errors: list[DBAPIError] = []
    traces = Traces()
    twin.run(story)
    error = type_of_original(errors[0])
    (span,) = statements(traces)
    assert span.name == "SELECT nowhere"
    assert told(span) == {
        "kind": "CLIENT",
        "status": FAILED,
        "attributes": {
            "db.query.text": "SELECT nothing FROM nowhere",
            "db.query.summary": "SELECT nowhere",
            "db.operation.name": "SELECT",
            "db.collection.name": "nowhere",
            "db.response.status_code": "SQLITE_ERROR" if twin.database == "sqlite" else "42P01",
            "error.type": error,
            **of_database(twin),
            **SITE,
        },
        "events": [("exception", {"exception.type": error})],
    }


@on_each_database
def test_a_statement_that_fails_in_a_flush_fails_the_flush_too(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, statement_spans=True):
            async with twin.session() as session:
                session.add_all([*authors(1), *authors(1)])
                with pytest.raises(IntegrityError) as raised:
                    await session.flush()
                errors.append(raised.value)
                await session.rollback()

    errors: list[DBAPIError] = []
    traces = Traces()
    twin.run(story)
    span = statements(traces)[-1]
    assert span.parent == context(traces.named("flush"))
    assert told(span)["status"] == FAILED
    attributes = span.attributes or {}
    assert attributes["error.type"] == type_of_original(errors[0])
    assert attributes["db.response.status_code"] == (
        "SQLITE_CONSTRAINT_UNIQUE" if twin.database == "sqlite" else "23505"
    )
    assert told(traces.named("flush"))["status"] == FAILED
    assert told(traces.named("transaction"))["status"] == UNSET


def type_of_original(error: DBAPIError) -> str:
    """The driver's own exception, as OpenTelemetry names it."""
    type_ = type(error.orig)
    return f"{type_.__module__}.{type_.__qualname__}"


@on_each_database
def test_the_duration_of_operations_is_measured(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, name="library", statement_spans=True) as captured:
            async with twin.session() as session:
                await session.scalars(select(Author))
                await session.scalars(select(Author).where(Author.id == 1))
                await session.execute(
                    text("INSERT INTO authors (name, biography) VALUES (:name, '')"),
                    [{"name": "one"}, {"name": "two"}],
                )
                await session.rollback()
                with pytest.raises(DBAPIError) as raised:
                    await session.execute(text("SELECT nothing FROM nowhere"))
        points = captured.metrics["db.client.operation.duration"]
        ours = {"sqlalchemy.session.name": "library", **of_database(twin)}
        assert [(dict(point.attributes), point.count) for point in points] == [
            ({**ours, "db.operation.name": "SELECT", "db.collection.name": "authors"}, 2),
            ({**ours, "db.operation.name": "BATCH INSERT", "db.collection.name": "authors"}, 1),
            (
                {
                    **ours,
                    "db.operation.name": "SELECT",
                    "db.collection.name": "nowhere",
                    "error.type": type_of_original(raised.value),
                    "db.response.status_code": (
                        "SQLITE_ERROR" if twin.database == "sqlite" else "42P01"
                    ),
                },
                1,
            ),
        ]
        assert {point.explicit_bounds for point in points} == {
            (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
        }
        assert all(0 < point.sum < 60 for point in points)

    twin.run(story)

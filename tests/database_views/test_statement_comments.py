"""Tests the comments before statements: what they name, and that they change nothing else."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import (
    String,
    bindparam,
    create_engine,
    delete,
    event,
    exc,
    literal,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from session_tracer import work
from session_tracer.runtime import degraded
from session_tracer.testing import capture
from tests.database_views.drivers import run
from tests.stories.lines import marked
from tests.twins import Twin, url_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from tests.database_views.drivers import Driver

ONE = text("SELECT 1")
HOSTILE = "*/ /* /*! 1 */ -- ' \" \\ ` ? %s %(name)s %% :name $1 ; # \n\r\0 {fn x} na\xefve \u6f22"
COMMENT = re.compile(r"/\*((?:\w+='[^'*]*',?)+)\*/ (.*)", re.DOTALL)


class Base(DeclarativeBase):
    """Has a table that each database can make."""


class Shelf(Base):
    __tablename__ = "shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(50))


def parsed(statement: str) -> tuple[dict[str, str], str]:
    """The comment before a statement, and the statement."""
    match = COMMENT.fullmatch(statement)
    assert match is not None, statement
    return dict(re.findall(r"(\w+)='([^']*)'", match[1])), match[2]


@contextmanager
def sending(engine: Engine | AsyncEngine) -> Iterator[list[tuple[str, str]]]:
    """The statements as they are handed to the driver, each with how it is called."""
    dialect: Any = engine.dialect
    sent: list[tuple[str, str]] = []

    def noting(name: str) -> Any:
        execute = getattr(dialect, name)

        def note(cursor: Any, statement: str, *rest: Any) -> None:
            sent.append((name, statement))
            execute(cursor, statement, *rest)

        return note

    names = ("do_execute", "do_executemany", "do_execute_no_params")
    for name in names:
        setattr(dialect, name, noting(name))
    try:
        yield sent
    finally:
        for name in names:
            delattr(dialect, name)


@contextmanager
def sending_to_sqlite() -> Iterator[tuple[sessionmaker[Session], list[tuple[str, str]]]]:
    """A factory, and the statements that are handed to its driver."""
    engine = create_engine("sqlite://")
    with sending(engine) as sent:
        yield sessionmaker(engine), sent
    engine.dispose()


def test_the_server_is_shown_the_session_its_line_and_its_work(twin: Twin, driver: Driver) -> None:
    async def story() -> None:
        with capture(twin.factory, name="orders-db", statement_comment=True), work("GET /shelves"):
            async with twin.session() as session:
                await session.scalar(text("SELECT 1"))  # <- first
                seen = await session.scalar(text(f"SELECT {driver.own_text}"))
        fields, statement = parsed(seen)
        assert fields["first_used_site"] == str(marked(story, "<- first"))
        assert fields["session_name"] == "orders-db"
        assert fields["work"] == "GET /shelves"
        assert list(fields) == sorted(fields)
        assert statement == f"SELECT {driver.own_text}"

    run(twin, story)


def test_no_name_ends_the_comment_or_is_a_parameter(twin: Twin, driver: Driver) -> None:
    def unbound(session: Any) -> Any:
        connection = session.connection().execution_options(no_parameters=True)
        return connection.exec_driver_sql(f"SELECT {driver.own_text}, '50%'").one()

    async def story() -> None:
        with capture(twin.factory, name=HOSTILE, statement_comment=True), work(HOSTILE):
            async with twin.session() as session:
                fields, statement = parsed(await session.scalar(text(f"SELECT {driver.own_text}")))
                assert statement == f"SELECT {driver.own_text}"
                assert fields["work"] == fields["session_name"]
                assert fields["work"].startswith("_/ /_ /_! 1 _/".replace("!", "_"))
                assert fields["work"].endswith("{fn x} na_ve _")
                assert await session.scalar(select(literal("100%"))) == "100%"
                assert await session.scalar(select(literal_column("'50%'"))) == "50%"
                assert await session.scalar(text("SELECT :name"), {"name": "%s"}) == "%s"
            async with twin.session() as session:
                seen, half = await session.run_sync(unbound)
                assert parsed(seen)[1].endswith("'50%'")
                assert half == "50%"

    run(twin, story)


def write_and_read(session: Session) -> list[str]:
    """Write and read in each way that SQLAlchemy sends statements, and roll the last one back."""
    session.add_all([Shelf(label=f"shelf {number}") for number in range(3)])
    session.flush()
    rows = [{"old": f"shelf {number}", "new": f"row {number}"} for number in range(2)]
    by_label = update(Shelf).where(Shelf.label == bindparam("old")).values(label=bindparam("new"))
    session.connection().execute(by_label, rows)
    with session.begin_nested():
        session.execute(text("UPDATE shelves SET label = :new WHERE label = 'row 0'"), {"new": "a"})
    session.commit()
    session.execute(delete(Shelf))
    session.rollback()
    labels = select(Shelf.label).order_by(Shelf.label)
    return list(session.scalars(labels, execution_options={"yield_per": 2}))


LABELS = ["a", "row 1", "shelf 2"]


def test_every_statement_of_a_session_has_it_and_does_the_same(twin: Twin, driver: Driver) -> None:
    async def story() -> None:
        runs = []
        for statement_comment in (False, True):
            await twin.execute(Base.metadata.drop_all)
            await twin.execute(Base.metadata.create_all)
            with sending(twin.engine) as sent:
                with capture(twin.factory, statement_comment=statement_comment) as captured:
                    async with twin.session() as session:
                        assert await session.run_sync(write_and_read) == LABELS
                assert captured.findings == []
            runs.append(sent)
        await twin.execute(Base.metadata.drop_all)
        plain, commented = runs
        assert [(name, parsed(one)[1] if "/*" in one else one) for name, one in commented] == plain
        # The drivers for MySQL and MariaDB would send the rows of a batch one by one.
        bare = {name for name, one in commented if "/*" not in one}
        assert bare == (set() if driver.is_for_postgresql else {"do_executemany"})

    run(twin, story)


def test_a_session_in_sqlite_begins_its_transaction_as_before(
    is_async: bool, tmp_path: Path
) -> None:
    """Python's driver begins a transaction before a statement that it recognises as a write."""
    twin = Twin(url_of("sqlite", tmp_path / "shelves.db", "", is_async=is_async), is_async)

    async def story() -> None:
        await twin.execute(Base.metadata.create_all)
        with capture(twin.factory, statement_comment=True):
            async with twin.session() as session:
                assert await session.run_sync(write_and_read) == LABELS

    run(twin, story)


@pytest.mark.parametrize(
    "statement",
    [
        "/* of the application */ SELECT 1",
        "  -- of the application\nSELECT 1",
        "SELECT /*+ SeqScan(shelves) */ 1",
        "CREATE TEMPORARY TABLE notes (id int)",
        "PRAGMA user_version",
    ],
)
def test_some_statements_are_left_as_they_are(statement: str) -> None:
    with sending_to_sqlite() as (factory, sent), capture(factory, statement_comment=True):
        with factory() as session:
            session.execute(text(statement))
        assert sent == [("do_execute", statement)]


def test_a_dialect_without_comments_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(degraded, "_WARNED", set())
    with sending_to_sqlite() as (factory, sent):
        factory.kw["bind"].dialect.name = "firebird"
        with capture(factory, statement_comment=True) as captured:
            for _ in range(3):
                with factory() as session:
                    assert session.scalar(ONE) == 1
        assert sent == [("do_execute", "SELECT 1")] * 3
        assert [one.statements for one in captured.sessions] == [1, 1, 1]
    (warning,) = [one for one in caplog.messages if "statement_comment" in one]
    assert warning == (
        "session_tracer: statement_comment has no effect with the dialect firebird, therefore its "
        "statements are sent without a comment. Supported: mariadb, mysql, postgresql, sqlite."
    )


def test_work_that_cannot_be_named_leaves_the_comment_without_it() -> None:
    def name() -> str:
        raise LookupError

    with sending_to_sqlite() as (factory, sent), capture(factory, statement_comment=True):
        with work(name), factory() as session:
            assert session.scalar(ONE) == 1
        assert list(parsed(sent[0][1])[0]) == ["first_used_site", "session_name"]


def test_a_generator_that_uses_the_session_before_it_lends_it_is_not_the_line() -> None:
    def get_db(factory: sessionmaker[Session]) -> Iterator[Session]:
        with factory() as session:
            session.execute(ONE)
            yield session

    def endpoint(session: Session) -> None:
        session.execute(ONE)  # <- used

    with sending_to_sqlite() as (factory, sent), capture(factory, statement_comment=True):
        for session in get_db(factory):
            endpoint(session)
        assert parsed(sent[1][1])[0]["first_used_site"] == str(marked(endpoint, "<- used"))


def test_only_sessions_of_that_factory_have_it() -> None:
    with sending_to_sqlite() as (factory, sent):
        other = sessionmaker(factory.kw["bind"])
        session = factory()
        with capture(factory, statement_comment=True), capture(other):
            session.execute(ONE)
            with other() as another, factory.kw["bind"].connect() as connection:
                another.execute(ONE)
                connection.execute(ONE)
            assert ["/*" in one for _, one in sent] == [True, False, False]
        session.execute(ONE)
        session.close()
        assert "/*" not in sent[-1][1]


def test_a_session_that_is_open_already_has_it() -> None:
    with sending_to_sqlite() as (factory, sent), factory() as session:
        session.execute(ONE)
        with capture(factory, name="orders-db", statement_comment=True):
            session.execute(ONE)
        assert ["orders-db" in one for _, one in sent] == [False, True]


def test_the_setting_alone_decides() -> None:
    with sending_to_sqlite() as (factory, sent), capture(factory, statement_comment_trace=True):
        with factory() as session:
            session.execute(ONE)
        assert sent == [("do_execute", "SELECT 1")]


def test_nothing_else_sees_it(twin: Twin) -> None:
    """Neither errors, nor SQLAlchemy's listeners, nor what is reported."""
    heard: list[str] = []

    async def story() -> None:
        engine = twin.engine.sync_engine if isinstance(twin.engine, AsyncEngine) else twin.engine
        event.listen(engine, "before_cursor_execute", lambda *args: heard.append(args[2]))
        settings: dict[str, Any] = {"statement_comment": True, "statement_spans": True}
        with capture(twin.factory, **settings) as captured:
            async with twin.session() as session:
                for _ in range(5):
                    await session.execute(text("SELECT 1 AS again"))
                with pytest.raises(exc.DBAPIError) as refused:
                    await session.execute(text("SELECT 1 FROM nowhere"))
        assert refused.value.statement == "SELECT 1 FROM nowhere"
        seen = [*heard, *map(str, captured.findings), *map(str, captured.logs)]
        seen += [str(dict(span.attributes or {})) for span in captured.spans]
        assert any("FROM nowhere" in one for one in seen)
        assert [one for one in seen if "first_used_site='" in one] == []

    run(twin, story)


# How many there are of it.


def test_one_endpoint_sends_one_text() -> None:
    def endpoint(factory: sessionmaker[Session]) -> None:
        with work("GET /shelves"), factory() as session:
            session.execute(ONE)

    with sending_to_sqlite() as (factory, sent), capture(factory, statement_comment=True):
        for _ in range(50):
            endpoint(factory)
        assert len(set(sent)) == 1


def test_a_statement_is_sent_with_twenty_comments_and_then_without() -> None:
    with sending_to_sqlite() as (factory, sent), capture(factory, statement_comment=True):
        for number in [*range(30), 3]:
            with work(f"GET /{number}"), factory() as session:
                session.execute(ONE)
        assert len(set(sent)) == 21
        assert [one for _, one in sent[20:30]] == ["SELECT 1"] * 10
        assert "GET /3'" in sent[-1][1]  # one of the first twenty
        with work("GET /29"), factory() as session:
            session.execute(text("SELECT 2"))
        assert "GET /29'" in sent[-1][1]  # another statement


def test_the_trace_is_in_it_on_request() -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("application")
    settings: dict[str, Any] = {"statement_comment": True, "statement_comment_trace": True}
    with sending_to_sqlite() as (factory, sent), capture(factory, **settings):
        for _ in range(30):
            with tracer.start_as_current_span("GET /shelves") as span, factory() as session:
                session.execute(ONE)
            fields, _ = parsed(sent[-1][1])
            trace_id = span.get_span_context().trace_id
            assert re.fullmatch(rf"00-{trace_id:032x}-[0-9a-f]{{16}}-01", fields["traceparent"])
        with factory() as session:
            session.execute(ONE)
        assert "traceparent" in parsed(sent[-1][1])[0]  # capture() records spans of its own

"""Instrumenting what frameworks make of sessions: Flask-SQLAlchemy, SQLModel, FastAPI's way."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError
from sqlmodel import Field, SQLModel
from sqlmodel import Session as SQLModelSession
from sqlmodel import select as sqlmodel_select
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession

from session_tracer import Exporter, instrument, uninstrument
from session_tracer.testing import capture
from tests.library import Author, Base
from tests.outline import outline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from pathlib import Path

    from session_tracer.testing import Captured


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    SQLModel.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(engine: Engine) -> AsyncIterator[AsyncEngine]:
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
    yield async_engine
    await async_engine.dispose()


def sites(captured: Captured) -> list[tuple[str, str]]:
    """Where each scope was opened and closed, by function."""
    return [
        (
            summary.opened_site.function if summary.opened_site else "",
            summary.closed_site.function if summary.closed_site else "",
        )
        for summary in captured.sessions
    ]


# Flask-SQLAlchemy.


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[tuple[Flask, SQLAlchemy]]:
    """A small application: a request that succeeds, one that fails, one that does nothing."""
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'shop.db'}"
    app.testing = True
    db = SQLAlchemy(app)

    class Order(db.Model):  # type: ignore[name-defined,misc] # made by the extension
        id: Mapped[int] = mapped_column(primary_key=True)
        note: Mapped[str]

    @app.get("/orders")
    def place_order() -> str:
        db.session.add(Order(note="two books"))
        db.session.commit()
        return str(db.session.scalars(select(Order.id)).all())

    @app.get("/broken")
    def break_order() -> str:
        db.session.add(Order(note="no books"))
        db.session.flush()
        raise LookupError

    @app.get("/health")
    def health() -> str:
        return "well"

    with app.app_context():
        db.create_all()
    yield app, db
    with app.app_context():
        db.engine.dispose()


PLACED = [
    "session opened",
    "transaction began",
    "commit flush began",
    "connection acquired",
    "INSERT order",
    "flushed +1 Order",
    "connection released",
    "transaction committed",
    "transaction began",
    "connection acquired",
    "SELECT Order",
    "connection released",
    "transaction closed",
    "session close: committed",
]


@pytest.mark.parametrize("target", ["object", "scoped_session", "class", "everything"])
def test_a_flask_request_is_one_session(shop: tuple[Flask, SQLAlchemy], target: str) -> None:
    app, db = shop
    targets: dict[str, Any] = {
        "object": db,
        "scoped_session": db.session,
        "class": db.session.session_factory.class_,
        "everything": None,
    }
    with capture(targets[target]) as captured:
        client = app.test_client()
        assert client.get("/orders").text == "[1]"
        assert client.get("/health").text == "well"
    assert outline(captured.facts) == PLACED
    assert [summary.outcome for summary in captured.sessions] == ["committed"]


def test_a_flask_request_that_fails_does_not_commit(shop: tuple[Flask, SQLAlchemy]) -> None:
    app, db = shop
    with capture(db) as captured, pytest.raises(LookupError):
        app.test_client().get("/broken")
    (summary,) = captured.sessions
    assert (summary.commits, summary.new, summary.flushes) == (0, {"Order": 1}, 1)


def test_a_flask_sessions_sites_are_the_views(shop: tuple[Flask, SQLAlchemy]) -> None:
    app, db = shop
    with capture(db) as captured:
        app.test_client().get("/orders")
    assert [opened for opened, _ in sites(captured)] == ["place_order"]


@pytest.mark.parametrize("target", ["object", "everything"])
def test_a_flask_applications_sessions_are_made_by_its_object(tmp_path: Path, target: str) -> None:
    def read(**options: Any) -> list[tuple[str, str]]:
        app = Flask("shop")
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'shop.db'}"
        db = SQLAlchemy(app, **options)

        class Order(db.Model):  # type: ignore[name-defined,misc] # made by the extension
            id: Mapped[int] = mapped_column(primary_key=True)
            note: Mapped[str]

        with app.app_context():
            db.create_all()
            with capture(db if target == "object" else None, ignore={"row-by-row-writes"}) as found:
                orders = [Order(note="books") for _ in range(6)]
                db.session.add_all(orders)
                db.session.commit()
                assert {order.note for order in orders} == {"books"}
                db.session.commit()
                db.session.remove()
                with suppress(DetachedInstanceError):
                    assert orders[0].note == "books"
            db.engine.dispose()
        return [(one.id, one.remedy) for one in found.findings]

    write = 'SQLAlchemy(session_options={"expire_on_commit": False})'
    (reloaded, remedy), (detached, other) = read()
    assert (reloaded, remedy) == ("reload-after-commit", write)
    assert (detached, other.partition(",")[0]) == ("detached-lazy-load", f"use {write}")
    assert read(**eval(write.replace("SQLAlchemy", "dict"))) == []


def test_the_flask_object_and_its_session_are_one_target(shop: tuple[Flask, SQLAlchemy]) -> None:
    app, db = shop
    names: list[str] = []
    exporter = Exporter(on_session=lambda summary: names.append(summary.name))
    for target in (db, db.session, None):
        instrument(target, exporter=exporter)
    app.test_client().get("/orders")
    assert names == ["default"]
    uninstrument(db.session)
    uninstrument(None)
    app.test_client().get("/orders")
    assert names == ["default"]


# SQLModel.


class Hero(SQLModel, table=True):
    """A model as SQLModel's users write it."""

    id: int | None = Field(default=None, primary_key=True)
    name: str


HERO = [
    "session opened",
    "transaction began",
    "commit flush began",
    "connection acquired",
    "INSERT hero",
    "flushed +1 Hero",
    "connection released",
    "transaction committed",
    "transaction began",
    "connection acquired",
    "SELECT Hero",
    "connection released",
    "transaction closed",
    "session close: committed",
]


@pytest.mark.parametrize("target", [SQLModelSession, Session, None])
def test_sqlmodels_session_is_reported(engine: Engine, target: Any) -> None:
    hero = Hero(name="Ada")
    with capture(target) as captured, SQLModelSession(engine) as session:
        session.add(hero)
        session.commit()
        assert [found.name for found in session.exec(sqlmodel_select(Hero))] == ["Ada"]
    assert outline(captured.facts) == HERO
    ((opened, closed),) = sites(captured)
    assert opened == closed == "test_sqlmodels_session_is_reported"


def test_a_plain_session_is_not_sqlmodels(engine: Engine) -> None:
    with capture(SQLModelSession) as captured, Session(engine) as session:
        session.scalars(select(Author)).all()
    assert captured.facts == []


@pytest.mark.parametrize("target", [SQLModelAsyncSession, AsyncSession, SQLModelSession, None])
async def test_sqlmodels_async_session_is_reported(async_engine: AsyncEngine, target: Any) -> None:
    hero = Hero(name="Ada")
    with capture(target) as captured:
        async with SQLModelAsyncSession(async_engine) as session:
            session.add(hero)
            await session.commit()
            assert [found.name for found in await session.exec(sqlmodel_select(Hero))] == ["Ada"]
    assert outline(captured.facts) == HERO
    ((opened, closed),) = sites(captured)
    assert opened == closed == "test_sqlmodels_async_session_is_reported"


# A generator that yields the session, as FastAPI's Depends() takes it.


def serve(
    dependency: Callable[[], Generator[Session]], endpoint: Callable[[Session], None]
) -> None:
    """Do with a dependency what FastAPI does: the endpoint's exception is thrown into it."""
    with contextmanager(dependency)() as session:
        endpoint(session)


async def serve_async(
    dependency: Callable[[], AsyncIterator[AsyncSession]],
    endpoint: Callable[[AsyncSession], Any],
) -> None:
    """The same for asynchronous ones."""
    async with asynccontextmanager(dependency)() as session:
        await endpoint(session)


READ = [
    "session opened",
    "transaction began",
    "connection acquired",
    "SELECT Author",
    "connection released",
    "transaction closed",
]


def test_a_dependency_that_yields_a_session_is_one_scope(engine: Engine) -> None:
    maker = sessionmaker(engine)

    def get_session() -> Generator[Session]:
        with maker() as session:
            yield session

    def list_authors(session: Session) -> None:
        session.scalars(select(Author)).all()

    with capture(maker) as captured:
        serve(get_session, list_authors)
    assert outline(captured.facts) == [*READ, "session close: closed"]
    (summary,) = captured.sessions
    sites_of_steps = {step.verb: step.site.function for step in summary.timeline if step.site}
    assert sites_of_steps == {
        "begin": "list_authors",
        "select": "list_authors",
        "close": "get_session",
    }
    assert [opened for opened, _ in sites(captured)] == ["get_session"]


def test_a_dependency_whose_endpoint_fails_has_failed(engine: Engine) -> None:
    maker = sessionmaker(engine)

    def get_session() -> Generator[Session]:
        with maker() as session:
            yield session

    def list_authors(session: Session) -> None:
        session.scalars(select(Author)).all()
        raise LookupError

    with capture(maker) as captured, pytest.raises(LookupError):
        serve(get_session, list_authors)
    assert outline(captured.facts) == [*READ, "session close: failed with LookupError"]


def test_a_dependency_that_closes_in_its_finally_is_one_scope(engine: Engine) -> None:
    maker = sessionmaker(engine)

    def get_session() -> Generator[Session]:
        session = maker()
        try:
            yield session
        finally:
            session.close()

    def list_authors(session: Session) -> None:
        session.scalars(select(Author)).all()

    with capture(maker) as captured:
        serve(get_session, list_authors)
        with pytest.raises(LookupError):
            serve(get_session, lambda session: _read_and_fail(session))
    assert outline(captured.facts) == [
        *READ,
        "session close: closed",
        *READ,
        "session close: failed with LookupError",
    ]


def _read_and_fail(session: Session) -> None:
    session.scalars(select(Author)).all()
    raise LookupError


async def test_an_async_dependency_that_yields_a_session_is_one_scope(
    async_engine: AsyncEngine,
) -> None:
    maker = async_sessionmaker(async_engine)

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with maker() as session:
            yield session

    async def list_authors(session: AsyncSession) -> None:
        (await session.scalars(select(Author))).all()

    async def fail(session: AsyncSession) -> None:
        await list_authors(session)
        raise LookupError

    with capture(maker) as captured:
        await serve_async(get_session, list_authors)
        with pytest.raises(LookupError):
            await serve_async(get_session, fail)
    assert outline(captured.facts) == [
        *READ,
        "session close: closed",
        *READ,
        "session close: failed with LookupError",
    ]
    assert [opened for opened, _ in sites(captured)] == ["get_session"] * 2


# Scoped sessions.


def test_remove_ends_a_scoped_sessions_scope(engine: Engine) -> None:
    scoped = scoped_session(sessionmaker(engine))
    with capture(scoped) as captured:
        for _ in range(2):
            scoped.scalars(select(Author)).all()
            scoped.remove()
    assert outline(captured.facts) == [*READ, "session close: closed"] * 2
    assert sites(captured) == [("test_remove_ends_a_scoped_sessions_scope",) * 2] * 2


async def test_remove_ends_an_async_scoped_sessions_scope(async_engine: AsyncEngine) -> None:
    scoped = async_scoped_session(async_sessionmaker(async_engine), asyncio.current_task)
    with capture(scoped) as captured:
        for _ in range(2):
            (await scoped.scalars(select(Author))).all()
            await scoped.remove()
    assert outline(captured.facts) == [*READ, "session close: closed"] * 2
    assert sites(captured) == [("test_remove_ends_an_async_scoped_sessions_scope",) * 2] * 2

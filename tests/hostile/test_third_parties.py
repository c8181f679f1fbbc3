"""That sessions of other people's libraries do traced what they do untraced, and are told of."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import transaction  # type: ignore[import-untyped] # has no types
import zope.sqlalchemy  # type: ignore[import-untyped] # has no types
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, ForeignKey, select
from sqlalchemy.exc import SADeprecationWarning
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    Mapped,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)
from sqlmodel import Session as SQLModelSession
from sqlmodel import SQLModel
from sqlmodel import select as sqlmodel_select

from session_tracer.testing import capture
from tests.hostile.teams import Player, Team
from tests.hostile.worlds import alike, attempt, errors, library
from tests.library import Author

with warnings.catch_warnings():
    # It uses a decorator that SQLAlchemy 2.1 has deprecated.
    warnings.simplefilter("ignore", SADeprecationWarning)
    from advanced_alchemy.base import BigIntBase
    from advanced_alchemy.exceptions import DuplicateKeyError, NotFoundError
    from advanced_alchemy.extensions.flask import AdvancedAlchemy, SQLAlchemySyncConfig
    from advanced_alchemy.filters import CollectionFilter, LimitOffset, OrderBy
    from advanced_alchemy.repository import (
        SQLAlchemyAsyncRepository,
        SQLAlchemySyncRepository,
    )
    from advanced_alchemy.service import (
        SQLAlchemyAsyncRepositoryService,
        SQLAlchemySyncRepositoryService,
    )

if TYPE_CHECKING:
    from pathlib import Path

    from session_tracer.testing import Captured


def sites(told: Captured) -> set[str]:
    """The files of all lines that anything is said of."""
    marked = [getattr(fact, "site", None) for fact in told.facts]
    seen = {site.file for site in marked if site is not None}
    for summary in told.sessions:
        seen |= {site.file for site in (summary.opened_site, summary.closed_site) if site}
        seen |= {step.site.file for step in summary.timeline if step.site is not None}
    return seen


def stories(told: Captured) -> list[tuple[str, int, int]]:
    """How each scope ended, how often it committed, and how many statements it ran."""
    return [(summary.outcome, summary.commits, summary.statements) for summary in told.sessions]


# advanced-alchemy.


class Country(BigIntBase):
    """Has regions."""

    name: Mapped[str] = mapped_column(unique=True)
    regions: Mapped[list[Region]] = relationship(back_populates="country", lazy="selectin")


class Region(BigIntBase):
    """Lies in a country."""

    name: Mapped[str]
    country_id: Mapped[int] = mapped_column(ForeignKey("country.id"))
    country: Mapped[Country] = relationship(back_populates="regions")


class Countries(SQLAlchemySyncRepository[Country]):
    """The repository of countries."""

    model_type = Country


class CountryService(SQLAlchemySyncRepositoryService[Country, Countries]):
    """The service of countries."""

    repository_type = Countries


class AsyncCountries(SQLAlchemyAsyncRepository[Country]):
    """The same, awaited."""

    model_type = Country


class AsyncCountryService(SQLAlchemyAsyncRepositoryService[Country, AsyncCountries]):
    """The same, awaited."""

    repository_type = AsyncCountries


NORTH = {"name": "Norway", "regions": [Region(name="Viken")]}


def _countries() -> list[Country]:
    return [Country(name=name) for name in ("Chad", "Fiji", "Peru")]


def keep_countries(engine: Engine) -> list[Any]:
    """A unit of work by a repository, another by a service."""
    maker = sessionmaker(engine, expire_on_commit=False)
    got: list[Any] = []
    with maker() as session:
        countries = Countries(session=session, auto_commit=True)
        countries.add_many(_countries())
        found, total = countries.get_many_and_count(
            CollectionFilter("name", ["Chad", "Peru"]), OrderBy("name", "desc"), LimitOffset(1, 0)
        )
        got += [[country.name for country in found], total]
        chad = countries.get_one(name="Chad")
        chad.name = "Tchad"
        got.append(countries.update(chad).name)
        got.append(countries.get_or_upsert(name="Mali")[1])
        got.append(attempt(lambda: countries.get(99)))
        got.append(attempt(lambda: countries.add(Country(name="Peru"))))
    with CountryService.new(session=maker()) as service:
        got.append(service.count())
        made = service.create({"name": "Cuba"}, auto_commit=True)
        got.append(service.update({"name": "Kuba"}, item_id=made.id, auto_commit=True).name)
        got.append(service.delete(made.id, auto_commit=True).name)
        got.append(service.exists(name="Kuba"))
        service.repository.session.close()
    return got


def test_a_repository_and_a_service_of_advanced_alchemy(tmp_path: Path) -> None:
    told = alike(tmp_path, keep_countries, metadata=BigIntBase.metadata)
    assert sites(told) == {__file__}
    assert [story[:2] for story in stories(told)] == [("rolled_back", 3), ("committed", 3)]
    assert [finding.id for finding in told.findings] == []


async def keep_countries_async(maker: Any) -> list[Any]:
    """The same, awaited."""
    got: list[Any] = []
    async with maker() as session:
        countries = AsyncCountries(session=session, auto_commit=True)
        await countries.add_many(_countries())
        found, total = await countries.get_many_and_count(
            CollectionFilter("name", ["Chad", "Peru"]), OrderBy("name", "desc"), LimitOffset(1, 0)
        )
        got += [[country.name for country in found], total]
        chad = await countries.get_one(name="Chad")
        chad.name = "Tchad"
        got.append((await countries.update(chad)).name)
        for failing in (countries.get(99), countries.add(Country(name="Peru"))):
            try:
                await failing
            except (NotFoundError, DuplicateKeyError) as error:
                got.append(str(error))
    async with maker() as session:
        service = AsyncCountryService(session=session)
        got.append(await service.count())
        made = await service.create({"name": "Cuba"}, auto_commit=True)
        await service.delete(made.id, auto_commit=True)
        got.append(await service.exists(name="Cuba"))
    return got


async def test_an_async_repository_and_service_of_advanced_alchemy(tmp_path: Path) -> None:
    got: list[list[Any]] = []
    for name in ("untraced", "traced"):
        library(tmp_path / f"{name}.db", BigIntBase.metadata).dispose()
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / name}.db")
        maker = async_sessionmaker(engine, expire_on_commit=False)
        if name == "untraced":
            got.append(await keep_countries_async(maker))
        else:
            with capture(maker, statement_spans=True) as told:
                got.append(await keep_countries_async(maker))
        await engine.dispose()
    assert got[1] == got[0]
    assert errors(told) == {}
    assert sites(told) == {__file__}
    assert [story[:2] for story in stories(told)] == [("rolled_back", 2), ("committed", 2)]
    assert [finding.id for finding in told.findings] == []


# Its releases before 1.12, which needs a newer SQLAlchemy than the oldest, call it themselves.
@pytest.mark.filterwarnings("ignore:Call to deprecated function 'set_async_context'")
def test_advanced_alchemys_flask_extension(tmp_path: Path) -> None:
    library(tmp_path / "flask.db", BigIntBase.metadata).dispose()
    app = Flask("countries")
    config = SQLAlchemySyncConfig(
        connection_string=f"sqlite:///{tmp_path / 'flask.db'}",
        commit_mode="autocommit",
    )
    alchemy = AdvancedAlchemy(config, app)

    @app.get("/")
    def add() -> str:
        countries = Countries(session=alchemy.get_sync_session())
        countries.add(Country(name="Laos"))
        return str(countries.count())

    with capture() as told:
        text = app.test_client().get("/").text
    config.get_engine().dispose()
    assert text == "1"
    assert errors(told) == {}
    assert [story[:2] for story in stories(told)] == [("committed", 1)]
    assert [finding.id for finding in told.findings] == []
    assert sites(told) == {__file__}


# zope.sqlalchemy.


def by_zope(engine: Engine) -> list[Any]:
    """What is joined to a transaction manager: commits, aborts, savepoints, a doomed one."""
    scoped = scoped_session(sessionmaker(engine))
    zope.sqlalchemy.register(scoped)
    got: list[Any] = []
    with transaction.manager:
        scoped.add(Author(name="Ada"))
    with transaction.manager:
        savepoint = transaction.savepoint()
        scoped.add(Author(name="Bea"))
        scoped.flush()
        savepoint.rollback()
        got.append([author.name for author in scoped.scalars(select(Author))])
    scoped.add(Author(name="Cyd"))
    scoped.flush()
    transaction.abort()
    scoped.add(Author(name="Ada"))
    got.append(attempt(transaction.commit))
    transaction.abort()
    got.append(scoped.scalars(select(Author.name).order_by(Author.id)).all())
    transaction.abort()
    scoped.remove()
    return got


def test_a_session_joined_to_zopes_transactions(tmp_path: Path) -> None:
    told = alike(tmp_path, by_zope)
    assert sites(told) == {__file__}
    assert [story[:2] for story in stories(told)] == [
        ("committed", 1),
        ("closed", 0),  # what a savepoint took back
        ("closed", 0),
        ("closed", 0),
        ("failed", 0),
        ("closed", 0),
    ]


def test_what_zopes_transactions_abort_is_not_said_to_be_discarded(tmp_path: Path) -> None:
    told = alike(tmp_path, by_zope)
    assert [finding.id for finding in told.findings] == ["failed-flush"]


# SQLModel.


def keep_teams(engine: Engine) -> list[Any]:
    """A unit of work as SQLModel's users write it."""
    got: list[Any] = []
    with SQLModelSession(engine) as session:
        team = Team(name="Reds", players=[Player(name="Ada"), Player(name="Bea")])
        session.add(team)
        session.commit()
        session.refresh(team)
        got += [team.model_dump(), [player.model_dump() for player in team.players]]
        found = session.exec(sqlmodel_select(Player).where(Player.name == "Bea")).one()
        found.sqlmodel_update({"name": "Bee"})
        session.add(found)
        session.commit()
        got += [found == Player(id=2, name="Bee", team_id=1), repr(found), found.team is team]
        session.add(Team(name="Reds"))
        got.append(attempt(session.commit))
        session.rollback()
        session.delete(found)
        session.commit()
        got.append(session.exec(sqlmodel_select(Player.name)).all())
    got.append(attempt(lambda: team.players))
    return got


def test_sqlmodels_sessions_and_models(tmp_path: Path) -> None:
    told = alike(tmp_path, keep_teams, metadata=SQLModel.metadata)
    assert sites(told) == {__file__}
    assert [story[:2] for story in stories(told)] == [("committed", 3)]
    assert [finding.id for finding in told.findings] == ["detached-lazy-load"]


# Flask-SQLAlchemy.


def serve_letters(engine: Engine) -> list[Any]:
    """Three requests: one that writes, one that is refused, one that finds nothing."""
    app = Flask("letters")
    app.config["SQLALCHEMY_DATABASE_URI"] = str(engine.url)
    app.testing = False
    app.logger.disabled = True
    db = SQLAlchemy(app)

    class Note(db.Model):  # type: ignore[name-defined,misc] # made by the extension
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(unique=True)

    @app.get("/write/<text>")
    def write(text: str) -> str:
        db.session.add(Note(text=text))
        db.session.commit()
        page = db.paginate(db.select(Note).order_by(Note.id), per_page=1)
        return f"{page.total} {page.items[0].text}"

    @app.get("/read/<int:number>")
    def read(number: int) -> str:
        note: Note = db.get_or_404(Note, number)
        return note.text

    with app.app_context():
        db.create_all()
    client = app.test_client()
    paths = ("/write/one", "/write/two", "/write/one", "/read/1", "/read/9")
    answers = [client.get(path) for path in paths]
    with app.app_context():
        db.engine.dispose()
    return [(answer.status_code, answer.text) for answer in answers]


def test_flask_sqlalchemys_requests(tmp_path: Path) -> None:
    asked: list[str] = []

    def work(engine: Engine) -> list[Any]:
        with engine.connect() as connection:
            asked.append(str(connection.exec_driver_sql("SELECT 1").scalar()))
        return serve_letters(engine)

    told = alike(tmp_path, work)
    assert sites(told) == {__file__}
    assert [story[:2] for story in stories(told)] == [
        ("committed", 1),
        ("committed", 1),
        ("failed", 0),
        ("closed", 0),
        ("closed", 0),
    ]
    assert [finding.id for finding in told.findings] == ["failed-flush"]

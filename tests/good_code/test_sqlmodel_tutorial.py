"""The code of SQLModel's tutorial, by itself and under FastAPI."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import pytest
from sqlalchemy import Engine, StaticPool, create_engine
from sqlalchemy.orm import registry
from sqlmodel import Field, Relationship, Session, SQLModel, col, select

from tests.good_code.silence import silent


class Models(SQLModel, registry=registry()):
    """Keeps these apart from other tests' models."""


class Team(Models, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(index=True)
    heroes: list["Hero"] = Relationship(back_populates="team")


class HeroBase(Models):
    name: str = Field(index=True)
    secret_name: str
    age: int | None = Field(default=None, index=True)
    team_id: int | None = Field(default=None, foreign_key="team.id")


class Hero(HeroBase, table=True):
    id: int | None = Field(default=None, primary_key=True)
    team: Optional[Team] = Relationship(back_populates="heroes")  # noqa: UP045 - SQLModel cannot read a string with a bar


class HeroCreate(HeroBase):
    """What a request brings."""


class HeroUpdate(Models):
    """What a request may change."""

    name: str | None = None
    age: int | None = None


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Models.metadata.create_all(engine)
    yield engine
    engine.dispose()


def keep_heroes(engine: Engine) -> None:
    with Session(engine) as session:
        preventers = Team(name="Preventers")
        names = [("Deadpond", 20), ("Spider-Boy", 16), ("Rusty-Man", 48), ("Tarantula", 32)]
        session.add_all(
            Hero(name=name, secret_name="unknown", age=age, team=preventers) for name, age in names
        )
        session.commit()


def test_heroes_are_created_and_refreshed(engine: Engine) -> None:
    with silent(Session, sessions=1, statements=4):
        first = Hero(name="Deadpond", secret_name="Dive Wilson")
        second = Hero(name="Spider-Boy", secret_name="Pedro Parqueador")
        third = Hero(name="Rusty-Man", secret_name="Tommy Sharp", age=48)
        with Session(engine) as session:
            session.add(first)
            session.add(second)
            session.add(third)
            session.commit()
            assert (first.id, first.name) == (1, "Deadpond")
            session.refresh(first)
            session.refresh(second)
            session.refresh(third)
        assert (second.id, third.age) == (2, 48)


def test_heroes_are_selected(engine: Engine) -> None:
    keep_heroes(engine)
    with silent(Session, sessions=3, statements=5):
        with Session(engine) as session:
            assert len(session.exec(select(Hero)).all()) == 4
            assert session.exec(select(Hero).where(Hero.name == "Deadpond")).one().age == 20
        with Session(engine) as session:
            older = select(Hero).where(col(Hero.age) >= 20, col(Hero.age) < 40)
            assert len(session.exec(older).all()) == 2
            assert session.get(Hero, 9) is None
        with Session(engine) as session:
            joined = select(Hero, Team).join(Team).where(Team.name == "Preventers")
            assert len(session.exec(joined.offset(1).limit(2)).all()) == 2


def test_a_hero_is_updated_and_deleted(engine: Engine) -> None:
    keep_heroes(engine)
    with silent(Session, sessions=2, statements=6):
        with Session(engine) as session:
            hero = session.exec(select(Hero).where(Hero.name == "Spider-Boy")).one()
            hero.age = 17
            session.add(hero)
            session.commit()
            session.refresh(hero)
            assert hero.age == 17
        with Session(engine) as session:
            hero = session.exec(select(Hero).where(Hero.name == "Spider-Boy")).one()
            session.delete(hero)
            session.commit()
            assert session.exec(select(Hero).where(Hero.name == "Spider-Boy")).first() is None


def test_heroes_and_their_team_are_related(engine: Engine) -> None:
    with silent(Session, sessions=2, statements=6):
        with Session(engine) as session:
            preventers = Team(name="Preventers")
            rusty = Hero(name="Rusty-Man", secret_name="Tommy Sharp", age=48, team=preventers)
            session.add(rusty)
            session.commit()
            session.refresh(rusty)
            assert rusty.team is preventers
            preventers.heroes.append(Hero(name="Tarantula", secret_name="Natalia Roman-on"))
            session.add(preventers)
            session.commit()
        with Session(engine) as session:
            hero = session.exec(select(Hero).where(Hero.name == "Rusty-Man")).one()
            assert hero.team is not None
            assert [other.name for other in hero.team.heroes] == ["Rusty-Man", "Tarantula"]
            hero.team = None
            session.add(hero)
            session.commit()


# With FastAPI: a session for each request.


class NotFoundError(Exception):
    """What becomes a response with the status 404."""


def get_session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


def create_hero(session: Session, hero: HeroCreate) -> Hero:
    db_hero = Hero.model_validate(hero)
    session.add(db_hero)
    session.commit()
    session.refresh(db_hero)
    return db_hero


def read_heroes(session: Session, offset: int = 0, limit: int = 100) -> list[Hero]:
    return list(session.exec(select(Hero).offset(offset).limit(limit)).all())


def read_hero(session: Session, hero_id: int) -> Hero:
    hero = session.get(Hero, hero_id)
    if not hero:
        raise NotFoundError
    return hero


def update_hero(session: Session, hero_id: int, hero: HeroUpdate) -> Hero:
    db_hero = read_hero(session, hero_id)
    db_hero.sqlmodel_update(hero.model_dump(exclude_unset=True))
    session.add(db_hero)
    session.commit()
    session.refresh(db_hero)
    return db_hero


def delete_hero(session: Session, hero_id: int) -> dict[str, bool]:
    session.delete(read_hero(session, hero_id))
    session.commit()
    return {"ok": True}


def test_the_endpoints_of_the_tutorial(engine: Engine) -> None:
    def request(endpoint: Callable[..., Any], *arguments: Any) -> Any:
        with contextmanager(get_session)(engine) as session:
            answer = endpoint(session, *arguments)
            # FastAPI makes the response while the session is open.
            return answer.model_dump() if isinstance(answer, Hero) else answer

    with silent(Session, sessions=20, statements=30):
        for number in range(12):
            created = request(create_hero, HeroCreate(name=f"hero {number}", secret_name="unknown"))
            assert created["id"] == number + 1
        assert len(request(read_heroes)) == 12
        assert len(request(read_heroes, 10, 10)) == 2
        assert request(read_hero, 3)["name"] == "hero 2"
        assert request(update_hero, 3, HeroUpdate(age=30))["age"] == 30
        assert request(update_hero, 3, HeroUpdate(age=30))["age"] == 30
        assert request(delete_hero, 3) == {"ok": True}
        for endpoint in (read_hero, delete_hero):
            with pytest.raises(NotFoundError):
                request(endpoint, 3)

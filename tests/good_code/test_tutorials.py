"""The code of SQLAlchemy's own tutorials: the quick start, the unified tutorial, the guides."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import (
    ForeignKey,
    StaticPool,
    String,
    create_engine,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    contains_eager,
    joinedload,
    mapped_column,
    raiseload,
    relationship,
    selectinload,
)

from tests.good_code.silence import silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine


class Base(DeclarativeBase):
    """What the quick start's classes are mapped with."""


class User(Base):
    __tablename__ = "user_account"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(30))
    fullname: Mapped[str | None]
    addresses: Mapped[list[Address]] = relationship(
        back_populates="user", cascade="all, delete-orphan"
    )


class Address(Base):
    __tablename__ = "address"

    id: Mapped[int] = mapped_column(primary_key=True)
    email_address: Mapped[str]
    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    user: Mapped[User] = relationship(back_populates="addresses")


@pytest.fixture
def engine() -> Iterator[Engine]:
    """The database in memory that the tutorials use."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def keep_users(engine: Engine) -> None:
    """Those whom the tutorials begin with."""
    with Session(engine) as session:
        session.add_all(
            [
                User(
                    name="spongebob",
                    fullname="Spongebob Squarepants",
                    addresses=[Address(email_address="spongebob@sqlalchemy.org")],
                ),
                User(
                    name="sandy",
                    fullname="Sandy Cheeks",
                    addresses=[
                        Address(email_address="sandy@sqlalchemy.org"),
                        Address(email_address="sandy@squirrelpower.org"),
                    ],
                ),
                User(name="patrick", fullname="Patrick Star"),
            ]
        )
        session.commit()


# SQLAlchemy's quick start.


def test_the_quick_start_creates_objects_and_persists_them(engine: Engine) -> None:
    with silent(Session, sessions=1, statements=2):
        keep_users(engine)


def test_the_quick_start_selects_and_changes_and_deletes(engine: Engine) -> None:
    """As it stands there, in one session that nobody closes; its last word is a commit."""
    keep_users(engine)
    with silent(Session, sessions=1, statements=12):
        session = Session(engine)

        simple = select(User).where(User.name.in_(["spongebob", "sandy"]))
        assert [user.name for user in session.scalars(simple)] == ["spongebob", "sandy"]

        joined = (
            select(Address)
            .join(Address.user)
            .where(User.name == "sandy")
            .where(Address.email_address == "sandy@sqlalchemy.org")
        )
        sandy_address = session.scalars(joined).one()

        patrick = session.scalars(select(User).where(User.name == "patrick")).one()
        patrick.addresses.append(Address(email_address="patrickstar@sqlalchemy.org"))
        sandy_address.email_address = "sandy_cheeks@sqlalchemy.org"
        session.commit()

        sandy = session.get(User, 2)
        assert sandy is not None
        sandy.addresses.remove(sandy_address)
        session.flush()
        session.delete(patrick)
        session.commit()

        del session, sandy, patrick, sandy_address
        gc.collect()


# The unified tutorial: data manipulation with the ORM.


def test_the_unified_tutorial_inserts_rows_by_the_unit_of_work(engine: Engine) -> None:
    keep_users(engine)
    with silent(Session, sessions=1, statements=1):
        squidward = User(name="squidward", fullname="Squidward Tentacles")
        krabs = User(name="ehkrabs", fullname="Eugene H. Krabs")
        session = Session(engine)
        session.add(squidward)
        session.add(krabs)
        assert len(session.new) == 2
        session.flush()
        assert (squidward.id, krabs.id) == (4, 5)
        assert session.get(User, 4) is squidward
        session.commit()
        session.close()


def test_the_unified_tutorial_updates_and_deletes_and_rolls_back(engine: Engine) -> None:
    keep_users(engine)
    with silent(Session, sessions=1, statements=9):
        session = Session(engine)
        sandy = session.execute(select(User).filter_by(name="sandy")).scalar_one()
        sandy.fullname = "Sandy Squirrel"
        assert sandy in session.dirty
        fullname = session.execute(select(User.fullname).where(User.id == 2)).scalar_one()
        assert fullname == "Sandy Squirrel"
        assert sandy not in session.dirty

        patrick = session.get(User, 3)
        assert patrick is not None
        session.delete(patrick)
        assert session.execute(select(User).where(User.name == "patrick")).first() is None
        assert patrick not in session

        session.rollback()
        assert sandy.fullname == "Sandy Cheeks"
        assert patrick in session
        found = session.execute(select(User).where(User.name == "patrick")).scalar_one()
        assert found is patrick
        session.close()


def test_the_unified_tutorial_persists_and_loads_relationships(engine: Engine) -> None:
    with silent(Session, sessions=1, statements=5), Session(engine) as session:
        pearl = User(name="pkrabs", fullname="Pearl Krabs")
        first = Address(email_address="pearl.krabs@gmail.com")
        pearl.addresses.append(first)
        assert first.user is pearl
        second = Address(email_address="pearl@aol.com", user=pearl)
        assert pearl.addresses == [first, second]
        session.add(pearl)
        assert second in session
        session.commit()
        assert pearl.id == 1
        assert {address.id for address in pearl.addresses} == {1, 2}
        assert pearl.addresses[0].email_address == "pearl.krabs@gmail.com"


def test_the_unified_tutorials_strategies_of_loading(engine: Engine) -> None:
    keep_users(engine)
    with silent(Session, sessions=1, statements=5), Session(engine) as session:
        statement = select(User).options(selectinload(User.addresses)).order_by(User.id)
        assert [len(row.User.addresses) for row in session.execute(statement)] == [1, 2, 0]
        joined = (
            select(Address).options(joinedload(Address.user, innerjoin=True)).order_by(Address.id)
        )
        assert session.scalars(joined).first() is not None
        explicit = (
            select(Address)
            .join(Address.user)
            .where(User.name == "sandy")
            .options(contains_eager(Address.user))
        )
        assert {address.user.name for address in session.scalars(explicit)} == {"sandy"}
        refused = select(User).options(raiseload(User.addresses))
        assert len(session.scalars(refused).all()) == 3


def test_the_guide_to_queries_joins_aliases_and_aggregates(engine: Engine) -> None:
    keep_users(engine)
    with silent(Session, sessions=1, statements=4), Session(engine) as session:
        counted = (
            select(User.name, func.count(Address.id).label("number"))
            .join(User.addresses, isouter=True)
            .group_by(User.name)
        )
        assert {row.name: row.number for row in session.execute(counted)} == {
            "patrick": 0,
            "sandy": 2,
            "spongebob": 1,
        }
        one, other = aliased(Address), aliased(Address)
        both = (
            select(User)
            .join(User.addresses.of_type(one))
            .where(one.email_address == "sandy@sqlalchemy.org")
            .join(User.addresses.of_type(other))
            .where(other.email_address == "sandy@squirrelpower.org")
        )
        assert session.scalars(both).one().name == "sandy"
        assert session.scalar(select(User).filter_by(name="nobody")) is None
        assert session.get(User, 99) is None


def test_the_guide_to_bulk_statements(engine: Engine) -> None:
    keep_users(engine)
    with silent(Session, sessions=1, statements=4), Session(engine) as session:
        users = session.scalars(
            insert(User).returning(User),
            [{"name": f"user {n}", "fullname": f"User {n}"} for n in range(100)],
        )
        assert len(users.all()) == 100
        session.execute(update(User), [{"id": n, "fullname": "changed"} for n in range(4, 60)])
        session.execute(
            update(User).where(User.name.in_(["squidward", "sandy"])).values(fullname="Starfish"),
            execution_options={"synchronize_session": "fetch"},
        )
        session.execute(delete(User).where(User.name.like("user 9%")))
        session.commit()

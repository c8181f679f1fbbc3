"""That sessions of every make, however odd, do traced what they do untraced, and are told of."""

from __future__ import annotations

import copy
import functools
import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import pytest
from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.ext.baked import BakedQuery, bakery
from sqlalchemy.ext.horizontal_shard import ShardedSession, set_shard_id
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from session_tracer.testing import capture
from tests.good_code.silence import only_sync
from tests.hostile.worlds import alike, attempt, errors, library
from tests.library import Author, Base, Book
from tests.outline import outline
from tests.twins import on_postgresql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from session_tracer.testing import Captured
    from tests.twins import Twin


def use(session: Session) -> list[Any]:
    """A unit of work that has some of everything; what it got."""
    got: list[Any] = []
    with session:
        if not session.in_transaction() and not session.autobegin:
            got.append(attempt(lambda: session.scalars(select(Author)).all()))
            session.begin()
        first = session.scalars(select(Author).order_by(Author.id)).first()
        assert first is not None
        got += [first.name, len(first.books), session.get(Book, 1) is first.books[0]]
        session.add(Author(name="Ada"))
        with session.begin_nested():
            session.add(Author(name="Bea"))
        session.commit()
        if not session.autobegin:
            session.begin()
        session.add(Author(name="Ada"))
        got += [attempt(session.flush), attempt(session.connection)]
        session.rollback()
        if not session.autobegin:
            session.begin()
        got.append(session.scalar(select(func.count()).select_from(Author)))
    got += [attempt(lambda: first.books), attempt(lambda: first.letters.all())]
    got.append(attempt(session.connection))
    session.close()
    return got


COMMITTED = "session close: committed"


def endings(told: Captured) -> list[str]:
    """How each scope ended, as the facts say it."""
    return [line for line in outline(told.facts) if line.startswith("session close")]


class Slotted(Session):
    """Has a slot of its own beside the dictionary of its base."""

    __slots__ = ("tenant",)

    def __init__(self, bind: Engine, *, tenant: str = "nobody", **options: Any) -> None:
        super().__init__(bind, **options)
        self.tenant = tenant


class Odd(Session):
    """Is made of what it pleases, and has each of its own ends its own way."""

    def __init__(self, *, engine: Engine, log: list[str] | None = None) -> None:
        self.log = [] if log is None else log
        super().__init__(bind=engine, expire_on_commit=False)

    def close(self) -> None:
        self.log.append("close")
        super().close()

    def reset(self) -> None:
        self.log.append("reset")
        super().reset()

    def invalidate(self) -> None:
        self.log.append("invalidate")
        super().invalidate()

    def __enter__(self) -> Self:
        self.log.append("enter")
        return super().__enter__()

    def __exit__(self, *leaving: object) -> None:
        self.log.append("exit")
        super().__exit__(*leaving)

    def commit(self) -> None:
        self.log.append("commit")
        super().commit()

    def rollback(self, *, quietly: bool = False) -> None:
        self.log.append("rollback")
        super().rollback()

    def flush(self, objects: Any = None) -> None:
        self.log.append("flush")
        super().flush(objects)


class Unequal(Session):
    """Refuses to be compared, hashed or described."""

    __hash__ = None  # type: ignore[assignment] # as a class that has an __eq__ does

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __repr__(self) -> str:
        raise AssertionError("described")


class Guarded(Session):
    """Lets nobody set an attribute that it does not know."""

    KNOWN: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_session"):
            raise AttributeError(name)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a guarded session has no {name}")


def _made_by_a_function(engine: Engine) -> Callable[[], Session]:
    def make() -> Session:
        return Session(engine, info={"made": "by hand"})

    return make


def _configured_later(engine: Engine) -> Callable[[], Session]:
    maker = sessionmaker()
    maker.configure(bind=engine, expire_on_commit=False, info={"tenant": 1})
    return maker


def _scoped(engine: Engine) -> Callable[[], Session]:
    return scoped_session(sessionmaker(engine), scopefunc=lambda: "one for all")


def _bound_by_class(engine: Engine) -> Callable[[], Session]:
    return sessionmaker(binds={Author: engine, Base: engine})


FACTORIES: dict[str, Callable[[Engine], Callable[[], Session]]] = {
    "slots": lambda engine: sessionmaker(engine, class_=Slotted, tenant="somebody"),
    "own arguments": lambda engine: functools.partial(Odd, engine=engine),
    "unequal": lambda engine: sessionmaker(engine, class_=Unequal),
    "guarded": lambda engine: sessionmaker(engine, class_=Guarded),
    "binds by class": _bound_by_class,
    "future": lambda engine: sessionmaker(engine, future=True),
    "no autobegin": lambda engine: sessionmaker(engine, autobegin=False),
    "no autoflush": lambda engine: sessionmaker(engine, autoflush=False),
    "close for good": lambda engine: sessionmaker(engine, close_resets_only=False),
    "no expiry": lambda engine: sessionmaker(engine, expire_on_commit=False),
    "info": lambda engine: sessionmaker(engine, info={"of": "the factory"}),
    "a function": _made_by_a_function,
    "configured later": _configured_later,
    "scoped by a constant": _scoped,
    "joined by savepoint": lambda engine: sessionmaker(
        engine, join_transaction_mode="create_savepoint"
    ),
}


@pytest.mark.parametrize("kind", FACTORIES)
def test_a_session_of_any_make_does_what_it_would(tmp_path: Path, kind: str) -> None:
    told = alike(tmp_path, lambda engine: use(FACTORIES[kind](engine)()))
    assert endings(told)[0] == "session close: rolled_back"  # as its last transaction was
    assert {summary.statements > 4 for summary in told.sessions[:1]} == {True}
    assert {finding.id for finding in told.findings} <= {
        "failed-flush",
        "pending-rollback",
        "detached-lazy-load",
        "reused-after-close",
    }


def test_each_end_of_a_session_that_overrides_them_all_is_told_once(tmp_path: Path) -> None:
    def work(engine: Engine) -> list[str]:
        with Odd(engine=engine) as session:
            for end in (session.reset, session.invalidate, session.close):
                session.add(Author(name=f"author of {end.__name__}"))
                session.flush()
                session.rollback(quietly=True)
                end()
        return session.log

    told = alike(tmp_path, work, target=Odd)
    assert [line for line in outline(told.facts) if line.startswith("session ")] == [
        "session opened",
        "session reset: rolled_back",
        "session reopened",
        "session invalidate: rolled_back",
        "session reopened",
        "session close: rolled_back",
    ]


def _commit_one(make: Callable[..., Any], name: str = "Ada") -> None:
    with make() as session:
        session.add(Author(name=name))
        session.commit()


COMMITS = [
    "session opened",
    "transaction began",
    "commit flush began",
    "connection acquired",
    "INSERT authors",
    "flushed +1 Author",
    "connection released",
    "transaction committed",
    "session close: committed",
]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = library(tmp_path / "library.db")
    yield engine
    engine.dispose()


def test_a_factory_is_configured_and_given_another_class_while_it_is_traced(engine: Engine) -> None:
    maker: sessionmaker[Any] = sessionmaker()
    with capture(maker) as told:
        maker.configure(bind=engine, info={"tenant": 1})
        _commit_one(maker, "before")
        first = maker.class_
        maker.class_ = type("Replaced", (Session,), {})
        _commit_one(maker, "amid")
        maker.class_ = first
        _commit_one(maker, "after")
        with maker() as session:
            infos = session.info
    # A class that is put in the place of the factory's own is nobody's whom we were shown.
    assert [line for line in outline(told.facts) if "session" in line] == [
        "session opened",
        "session close: committed",
        "session opened",
        "session close: committed",
        "session opened",
        "session close: unused",
    ]
    assert infos == {"tenant": 1}
    assert maker.class_ is first
    assert errors(told) == {}


def test_begin_of_a_factory_is_a_session_and_a_transaction(tmp_path: Path) -> None:
    def work(engine: Engine) -> str:
        maker = sessionmaker(engine)
        with maker.begin() as session:
            session.add(Author(name="Ada"))

        def fail() -> None:
            with maker.begin() as session:
                session.add(Author(name="Ada"))

        return attempt(fail)

    told = alike(tmp_path, work)
    assert outline(told.facts) == [
        *COMMITS,
        *COMMITS[:4],
        "INSERT authors with IntegrityError",
        "flush failed +1 Author with IntegrityError",
        "connection released",
        "transaction rolled_back with IntegrityError",
        "session close: failed with IntegrityError",
    ]
    assert [finding.id for finding in told.findings] == ["failed-flush"]


def test_a_factory_that_is_copied_or_made_anew_by_its_parts_is_as_it_would_be(
    tmp_path: Path,
) -> None:
    def work(engine: Engine) -> list[Any]:
        maker = sessionmaker(engine)
        copied = copy.copy(maker)
        alike_ = sessionmaker(class_=maker.class_, **maker.kw)
        for number, make in enumerate((maker, copied, alike_)):
            _commit_one(make, f"author of {number}")
        return [copied.kw == maker.kw, attempt(lambda: pickle.dumps(maker)), repr(maker)[:20]]

    told = alike(tmp_path, work)
    assert outline(told.facts) == COMMITS * 3


def test_a_scoped_session_of_an_odd_scope_is_one_session_per_scope(tmp_path: Path) -> None:
    def work(engine: Engine) -> list[bool]:
        tenant = ["a"]
        scoped = scoped_session(sessionmaker(engine), scopefunc=lambda: tuple(tenant))
        made = []
        for tenant[0] in ("a", "b", "a"):
            made.append(scoped())
            _commit_here(scoped, f"author of {tenant[0]} {len(made)}")
        for tenant[0] in ("a", "b"):
            scoped.remove()
        return [made[0] is made[2], made[0] is made[1]]

    told = alike(tmp_path, work)
    assert [summary.commits for summary in told.sessions] == [2, 1]
    # That is so: one thread commits by two sessions in turn.
    assert [finding.id for finding in told.findings] == ["split-writes"]


def _commit_here(session: Any, name: str) -> None:
    session.add(Author(name=name))
    session.commit()


def test_sharded_sessions_tell_of_every_shard(tmp_path: Path) -> None:
    def work(engine: Engine) -> list[Any]:
        other = library(tmp_path / f"{id(engine)}.db")
        shards = {"north": engine, "south": other}
        maker = sessionmaker(
            class_=ShardedSession,
            shards=shards,
            shard_chooser=lambda _, instance, clause=None: (
                "north" if instance is None or instance.name < "M" else "south"
            ),
            identity_chooser=lambda *_, **__: ["north", "south"],
            execute_chooser=lambda _: ["north", "south"],
        )
        with maker() as session:
            session.add_all([Author(name="Ada"), Author(name="Zoe")])
            session.commit()
            found = session.scalars(select(Author).order_by(Author.id)).all()
            got: list[Any] = sorted(author.name for author in found)
            only = select(Author).options(set_shard_id("south"))
            got += [author.name for author in session.scalars(only)]
            got.append(attempt(lambda: session.get(Author, 1)))
            got.append([len(author.books) for author in found])
        other.dispose()
        return got

    told = alike(tmp_path, work)
    lines = outline(told.facts)
    assert lines.count("connection acquired") == 4
    assert lines[-1] == COMMITTED
    (summary,) = told.sessions
    assert (summary.new, summary.commits) == ({"Author": 2}, 1)


def test_two_engines_by_class_are_two_connections_of_one_transaction(tmp_path: Path) -> None:
    def work(engine: Engine) -> int:
        other = library(tmp_path / f"{id(engine)}.db")
        maker = sessionmaker(binds={Author: engine, Book: other})
        with maker() as session:
            session.add(Author(name="Ada"))
            session.add(Book(title="book", author_id=1))
            session.commit()
            count = session.scalar(select(func.count()).select_from(Book))
        other.dispose()
        return count or 0

    told = alike(tmp_path, work)
    (summary,) = told.sessions
    assert (summary.new, summary.commits, summary.outcome) == (
        {"Author": 1, "Book": 1},
        1,
        "committed",
    )
    assert told.findings == []


def test_legacy_and_baked_queries_are_told_as_any_other(tmp_path: Path) -> None:
    baked: Any = bakery()  # type: ignore[no-untyped-call] # SQLAlchemy's own

    def work(engine: Engine) -> list[Any]:
        maker = sessionmaker(engine)
        got: list[Any] = []
        with maker() as session:
            query = session.query(Author).filter(Author.name.like("author%"))
            got += [
                query.count(),
                len(query.limit(1).all()),
                [one.name for one in query.yield_per(2)],
            ]
            got.append(query.filter_by(name="author 1").update({"biography": "long"}))
            got.append(session.query(Book).filter_by(id=1).delete(synchronize_session="fetch"))
            got += [session.query(Author.id).all(), query.options().exists() is not None]
            by_name: BakedQuery = baked(lambda session: session.query(Author))
            by_name += lambda query: query.filter(Author.name == "author 2")
            got += [author.id for author in by_name(session).all()]
            session.commit()
        return got

    told = alike(tmp_path, work)
    (summary,) = told.sessions
    assert summary.outcome == "committed"
    assert told.findings == []
    assert [line for line in outline(told.facts) if line.endswith("Author")] != []


def test_core_statements_and_bulk_operations_are_told_too(tmp_path: Path) -> None:
    def work(engine: Engine) -> list[Any]:
        with sessionmaker(engine)() as session:
            session.bulk_save_objects([Author(name="bulk")])
            session.bulk_insert_mappings(Author.__mapper__, [{"name": "m", "biography": ""}] * 1)
            session.execute(insert(Author), [{"name": f"n{n}", "biography": ""} for n in range(3)])
            got = [session.connection().exec_driver_sql("SELECT count(*) FROM authors").scalar()]
            with suppress(IntegrityError):
                session.execute(text("INSERT INTO books (id) VALUES (1)"))
            session.commit()
        return got

    told = alike(tmp_path, work)
    assert endings(told) == [COMMITTED]


# Two phases.


@only_sync  # asyncpg has no two-phase transactions in SQLAlchemy
@on_postgresql
def test_two_phases_are_committed_prepared_and_refused_as_they_would_be(twin: Twin) -> None:
    async def story() -> list[Any]:
        got: list[Any] = []
        async with twin.session(twophase=True) as session:
            session.add(Author(name="Ada"))
            await session.commit()
        async with twin.session(twophase=True) as session:
            session.add(Author(name="Bea"))
            await session.flush()
            await session.run_sync(lambda plain: plain.prepare())
            await session.rollback()
        async with twin.session(twophase=True) as session:
            session.add(Author(name="Ada"))
            try:
                await session.commit()
            except IntegrityError as error:
                got.append(type(error))
            await session.rollback()
            got.append((await session.scalars(select(Author.name))).all())
        return got

    async def traced() -> list[Any]:
        with capture(twin.factory) as told:
            got = await story()
        assert errors(told) == {}
        assert [summary.outcome for summary in told.sessions] == [
            "committed",
            "rolled_back",
            "rolled_back",
        ]
        return got

    assert twin.run(traced) == twin.run(story) == [IntegrityError, ["Ada"]]


# Asynchronous ones.


class OwnAsync(AsyncSession):
    """Has a synchronous class of its own below, and its own way of being made."""

    sync_session_class = Slotted

    def __init__(self, *, engine: Any) -> None:
        super().__init__(engine, tenant="somebody")


def _async_factories(engine: Any) -> dict[str, Any]:
    return {
        "own class": functools.partial(OwnAsync, engine=engine),
        "sync_session_class": async_sessionmaker(engine, sync_session_class=Slotted),
        "a sessionmaker": sessionmaker(engine, class_=AsyncSession),
        "no autobegin": async_sessionmaker(engine, autobegin=False),
        "info": async_sessionmaker(engine, info={"tenant": 1}),
        "a function": lambda: AsyncSession(engine),
    }


async def _use_async(make: Any) -> list[Any]:
    got: list[Any] = []
    async with make() as session:
        if not session.sync_session.autobegin:
            await session.begin()
        found = (await session.scalars(select(Author).order_by(Author.id))).all()
        got += [author.name for author in found]
        session.add(Author(name="Ada"))
        await session.commit()
        if not session.sync_session.autobegin:
            await session.begin()
        session.add(Author(name="Ada"))
        try:
            await session.flush()
        except IntegrityError as error:
            got.append(str(error))
        await session.rollback()
    return got


@pytest.mark.parametrize(
    "kind",
    ["own class", "sync_session_class", "a sessionmaker", "no autobegin", "info", "a function"],
)
async def test_an_async_session_of_any_make_does_what_it_would(
    engine: Engine, tmp_path: Path, kind: str
) -> None:
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
    make = _async_factories(async_engine)[kind]
    untraced = await _use_async(make)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM authors WHERE name = 'Ada'")
    with capture(None, statement_spans=True) as told:
        traced = await _use_async(make)
    await async_engine.dispose()
    assert traced == untraced
    assert errors(told) == {}
    (summary,) = told.sessions
    assert (summary.outcome, summary.commits, summary.new) == ("rolled_back", 1, {"Author": 1})
    assert summary.opened_site is not None
    assert summary.opened_site.file == __file__
    assert [finding.id for finding in told.findings] == []

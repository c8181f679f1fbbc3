"""One world: a database, a factory of sessions, and what an application holds of them."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
import warnings
import weakref
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from tests.differential import observing
from tests.differential.diary import DIARY, name, plain
from tests.differential.driver import arguments
from tests.differential.listeners import GROUPS, SESSION_EVENTS, Halt, Listeners
from tests.differential.mapped import Author, Base, fill

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


__all__ = ["FACTORIES", "Observation", "Setup", "World"]

SESSIONS: Final = 3
HANDS: Final = 10

# What one step of a program did to its world.
Observation = dict[str, Any]


class Setup(NamedTuple):
    """How a world is made, in fields that print as what makes it again.

    `before` and `after` are the groups of listeners registered before and after tracing begins.
    """

    factory: str = "plain"
    target: str = "factory"
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    traced_from: int = 0
    traced_until: int = 1_000
    is_async: bool = False


class Desk(Session):
    """An application's own session, which does a little more than SQLAlchemy's."""

    def __init__(self, *args: Any, desk: str = "front", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.info["desk"] = desk

    def close(self) -> None:
        DIARY.write("spoken", "desk", "close")
        super().close()

    def commit(self) -> None:
        DIARY.write("spoken", "desk", "commit")
        super().commit()

    def add(self, instance: object, _warn: bool = True) -> None:
        DIARY.write("spoken", "desk", "add")
        super().add(instance, _warn=_warn)


class AsyncDesk(AsyncSession):
    """The same under asyncio."""

    sync_session_class = Desk

    async def close(self) -> None:
        DIARY.write("spoken", "async desk", "close")
        await super().close()


_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "no autoflush": {"autoflush": False},
    "no expire": {"expire_on_commit": False},
    "no autobegin": {"autobegin": False},
    "closes for good": {"close_resets_only": False},
    "two phases": {"twophase": True},
    "desk": {},
    "scoped": {},
    **{
        f"joins by {mode}": {"join_transaction_mode": mode}
        for mode in ("conditional_savepoint", "rollback_only", "control_fully", "create_savepoint")
    },
    "by class": {},
}
FACTORIES: Final = tuple(_OPTIONS)


class World:
    """Where a program runs; worlds are made, run and closed one after the other."""

    def __init__(self, setup: Setup) -> None:
        DIARY.begin()
        self.setup = setup
        # Both worlds are in one place, so that every message with a path in it is the same.
        self.folder = _folder()
        for database in ("first", "second"):
            path = self.folder / f"{database}.db"
            path.unlink(missing_ok=True)  # whoever is late to leave the last world keeps its file
            shutil.copyfile(_template(), path)
        self.engines: list[Any] = []
        self.engine = self._engine("first")
        self.connection: Any = self.engine.connect() if self._joins else None
        self.factory = self._factory()
        self.slots: list[Any] = [None] * SESSIONS
        self.hands: list[Any] = []
        self.streams: list[Any] = []
        self.transactions: list[Any] = []
        self._seen: list[tuple[str, weakref.ref[Any]]] = []
        self._known: set[str] = set()
        self.outside = sqlite3.connect(self.folder / "first.db", timeout=0, isolation_level=None)
        self._version: object = None
        self._listeners = Listeners(self._listened_to(), self._sync_engine)

    def _engine(self, database: str) -> Any:
        is_async = self.setup.is_async
        make: Any = create_async_engine if is_async else create_engine
        driver = "aiowritten" if is_async else "written"
        url = f"sqlite+{driver}:///{self.folder / database}.db"
        engine = make(url, connect_args=arguments(is_async=is_async))
        self.engines.append(engine)
        return engine

    @property
    def _joins(self) -> bool:
        """Whether sessions join the transaction of a connection that they are given."""
        return self.setup.factory.startswith("joins by")

    def begin(self) -> None:
        """Begin what the sessions join."""
        if self._joins:
            self.connection.begin()

    async def begin_awaited(self) -> None:
        """Begin what the sessions join, under asyncio."""
        if self._joins:
            await self.connection
            await self.connection.begin()

    @property
    def _sync_engine(self) -> Engine:
        engine: Any = self.engine
        return engine.sync_engine if isinstance(engine, AsyncEngine) else engine

    def _factory(self) -> Any:
        kind, options = self.setup.factory, dict(_OPTIONS[self.setup.factory])
        if kind == "by class":
            options["binds"] = {Base: self.engine, Author: self._engine("second")}
        elif not self._joins:
            options["bind"] = self.engine
        if self.setup.is_async:
            made = AsyncDesk if kind == "desk" else AsyncSession
            # Listeners need a class of their own, which an async_sessionmaker does not have.
            options["sync_session_class"] = type("Own", (made.sync_session_class,), {})
            maker: Any = async_sessionmaker(class_=made, **options)
            return async_scoped_session(maker, lambda: "scope") if kind == "scoped" else maker
        maker = sessionmaker(class_=Desk if kind == "desk" else Session, **options)
        return scoped_session(maker) if kind == "scoped" else maker

    def _listened_to(self) -> Any:
        if not self.setup.is_async:
            return self.factory
        maker = self.factory.session_factory if self.setup.factory == "scoped" else self.factory
        return maker.kw["sync_session_class"]

    @property
    def target(self) -> Any:
        """What is instrumented."""
        if self.setup.target == "everything":
            return None
        if self.setup.target == "class":
            return AsyncSession if self.setup.is_async else Session
        if self.setup.target == "session":
            return self.session(0)
        return self.factory

    # What a program takes hold of; what is not there is made.

    def open(self, slot: int) -> Any:
        """Put a new session in a slot; the one that was there is let go."""
        self.slots[slot % SESSIONS] = None
        options = {}
        if self._joins:
            options["bind"] = self.connection
        made = self.slots[slot % SESSIONS] = self.factory(**options)
        if isinstance(made, AsyncSession):
            self.see("async session", made)
            self.see("session", made.sync_session)
        else:
            self.see("session", made)
        return made

    def session(self, slot: int) -> Any:
        """The session in a slot, an AsyncSession where the world is one."""
        found = self.slots[slot % SESSIONS]
        return self.open(slot) if found is None else found

    def sync(self, slot: int) -> Any:
        """The Session in a slot."""
        found = self.session(slot)
        return found.sync_session if isinstance(found, AsyncSession) else found

    def hold(self, found: Any) -> Any:
        """Take mapped objects in hand; who has too many lets go of the first."""
        for one in found if isinstance(found, list | tuple) else [found]:
            if isinstance(one, list | tuple):
                self.hold(one)
            elif isinstance(one, Base):
                self.hands = [*(held for held in self.hands if held is not one), one][-HANDS:]
        return found

    def hand(self, number: int) -> Any:
        """An object in hand."""
        return self.hands[-1 - number % len(self.hands)] if self.hands else None

    def see(self, kind: str, thing: Any) -> None:
        """Ask at every step from now on whether it is still alive."""
        self._seen.append((f"{kind} {DIARY.number()}", weakref.ref(thing)))

    def listen(self, groups: tuple[str, ...]) -> None:
        """Register other people's listeners."""
        for group in GROUPS:
            if group in groups:
                self._listeners.listen(group)

    # What it looks like from outside.

    def observe(
        self, outcome: dict[str, Any], warned: list[warnings.WarningMessage]
    ) -> Observation:
        """All that can be told of the world after a step, which had the outcome."""
        diary = _in_order(DIARY.take())
        for one in self.hands:
            if name(one) not in self._known:
                self._known.add(name(one))
                self._seen.append((name(one), weakref.ref(one)))
        instances = [one for _, one in self._alive() if isinstance(one, Base)]
        sessions = [one for _, one in self._alive() if isinstance(one, Session)]
        return {
            **outcome,
            "diary": diary,
            "warnings": [
                (one.category.__name__, plain(str(one.message)), one.filename, one.lineno)
                for one in warned
            ],
            "alive": [label for label, _ in self._alive()],
            "instances": [observing.instance(one) for one in instances],
            "sessions": [observing.session(one) for one in sessions],
            "rows": self._rows(),
        }

    def _alive(self) -> list[tuple[str, Any]]:
        return [(label, one) for label, seen in self._seen if (one := seen()) is not None]

    def _rows(self) -> object:
        """All committed rows, if any changed since the last time."""
        try:
            version = self.outside.execute("PRAGMA data_version").fetchone()
            if version == self._version:
                return "as before"
            rows = {
                table.name: self.outside.execute(f"SELECT * FROM {table.name}").fetchall()
                for table in Base.metadata.sorted_tables
            }
        except sqlite3.OperationalError as locked:
            return str(locked)
        self._version = version
        return rows

    def perform(self, work: Callable[[], Any], *, in_thread: bool = False) -> Observation:
        """Do one thing, and say what came of it."""
        outcome: dict[str, Any] = {}
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if in_thread:
                thread = threading.Thread(target=self._do, args=(work, outcome))
                thread.start()
                thread.join()
            else:
                self._do(work, outcome)
        return self.observe(outcome, warned)

    def _do(self, work: Callable[[], Any], outcome: dict[str, Any]) -> None:
        before = observing.context()
        try:
            outcome["result"] = plain(self.hold(work()))
        except (Exception, Halt) as raised:
            self.failed(raised, outcome)
        outcome["context changed"] = dict(observing.context().items() ^ before.items())

    async def perform_awaited(
        self, work: Callable[[], Awaitable[Any]], *, in_task: bool = False
    ) -> Observation:
        """Do one thing under asyncio, and say what came of it."""
        outcome: dict[str, Any] = {}
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if in_task:
                await asyncio.create_task(self._do_awaited(work, outcome))
            else:
                await self._do_awaited(work, outcome)
        return self.observe(outcome, warned)

    async def _do_awaited(
        self, work: Callable[[], Awaitable[Any]], outcome: dict[str, Any]
    ) -> None:
        before = observing.context()
        try:
            outcome["result"] = plain(self.hold(await work()))
        except (Exception, Halt) as raised:
            self.failed(raised, outcome)
        outcome["context changed"] = dict(observing.context().items() ^ before.items())

    def failed(self, raised: BaseException, outcome: dict[str, Any]) -> None:
        """Say how it failed."""
        outcome["error"] = observing.error(raised)
        if type(raised).__module__ != "builtins":  # Python's own cannot be referred to weakly
            self.see(f"exception {type(raised).__qualname__}", raised)

    def let_go(self) -> None:
        """Hold nothing any more of what the program made."""
        self.hands.clear()
        self.streams.clear()
        self.transactions.clear()
        self.slots = [None] * SESSIONS
        if self.setup.factory == "scoped":
            self.factory.registry.clear()

    def close(self) -> None:
        """Leave nothing behind."""
        self._forget()
        if self.connection is not None:
            self.connection.close()
        for engine in self.engines:
            engine.dispose()

    async def close_awaited(self) -> None:
        """Leave nothing behind, under asyncio."""
        self._forget()
        if self.connection is not None:
            await self.connection.close()
        for engine in self.engines:
            await engine.dispose()

    def _forget(self) -> None:
        self._listeners.close()
        self.let_go()
        self.outside.close()


def _in_order(entries: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """The diary, with objects that were told of in the order of their addresses in another."""
    ordered: list[tuple[object, ...]] = []
    run: list[tuple[object, ...]] = []
    for entry in entries:
        if run and entry[:2] != run[0][:2]:
            ordered += sorted(run, key=repr)
            run = []
        if entry[0] == "heard" and entry[1] in _IN_ANY_ORDER:
            run.append(entry)
        else:
            ordered.append(entry)
    return ordered + sorted(run, key=repr)


# SQLAlchemy goes through sets of objects for these.
_IN_ANY_ORDER: Final = frozenset({*(name for name in SESSION_EVENTS if "_to_" in name), "expire"})


@cache
def _folder() -> Path:
    return Path(mkdtemp(prefix="differential-"))


@cache
def _template() -> Path:
    """A database with the rows that every world begins with."""
    path = _folder() / "template.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        fill(connection)
    engine.dispose()
    return path

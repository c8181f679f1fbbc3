"""What goes wrong in sessions: each mistake made once, with what is left of it."""

from __future__ import annotations

import re
import traceback
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, exc, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import raiseload, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError, ObjectDeletedError

from tests.library import Author

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class Thing:
    """Something of the application's, of which it is known how long it lives."""


class Places:
    """A database, and how its sessions are made."""

    def __init__(self, path: Path) -> None:
        self.engine = create_engine(
            f"sqlite:///{path}", pool_size=1, max_overflow=0, pool_timeout=0.01
        )
        self.maker = sessionmaker(self.engine)
        self.path = path

    @asynccontextmanager
    async def asynchronous(self) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
        """A maker for one event loop."""
        engine = create_async_engine(f"sqlite+aiosqlite:///{self.path}")
        yield async_sessionmaker(engine)
        await engine.dispose()


# What goes wrong. Each gives the error, and whether what the application let go of lives on.


def detached(places: Places) -> tuple[BaseException, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    with places.maker() as session:
        author: Any = session.scalars(select(Author)).first()
    let_go += [weakref.ref(session), weakref.ref(author)]
    error = raised(DetachedInstanceError, lambda: author.books)
    thing = author = session = None  # type: ignore[assignment] # is let go of
    return error, [one() is not None for one in let_go]


def expired(places: Places) -> tuple[BaseException, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    with places.maker() as session:
        author: Any = session.scalars(select(Author)).first()
        session.commit()
    let_go += [weakref.ref(session), weakref.ref(author)]
    error = raised(DetachedInstanceError, lambda: author.name)
    thing = author = session = None  # type: ignore[assignment] # is let go of
    return error, [one() is not None for one in let_go]


def crossed(places: Places) -> tuple[BaseException, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    with places.maker() as first, places.maker() as second:
        author: Any = first.scalars(select(Author)).first()
        let_go += [weakref.ref(second), weakref.ref(author)]
        error = raised(exc.InvalidRequestError, lambda: second.add(author))
        thing = author = None  # type: ignore[assignment] # is let go of
        first.close()
        second.close()
    second = None  # type: ignore[assignment] # is let go of
    return error, [one() is not None for one in let_go]


def pending(places: Places) -> tuple[BaseException, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    with places.maker() as session:
        author: Any = Author(name="author 0")
        let_go += [weakref.ref(session), weakref.ref(author)]
        session.add(author)
        raised(exc.IntegrityError, session.flush)
        error = raised(exc.PendingRollbackError, lambda: session.scalars(select(Author)))
        thing = author = None  # type: ignore[assignment] # is let go of
    session = None  # type: ignore[assignment] # is let go of
    return error, [one() is not None for one in let_go]


def forbidden(places: Places) -> tuple[BaseException, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    with places.maker() as session:
        author: Any = session.scalars(select(Author).options(raiseload("*"))).first()
        let_go += [weakref.ref(session), weakref.ref(author)]
        error = raised(exc.InvalidRequestError, lambda: author.books)
        thing = author = None  # type: ignore[assignment] # is let go of
    session = None  # type: ignore[assignment] # is let go of
    return error, [one() is not None for one in let_go]


def begun(places: Places) -> tuple[BaseException, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    with places.maker() as session:
        author: Any = session.scalars(select(Author)).first()
        let_go += [weakref.ref(session), weakref.ref(author)]
        error = raised(exc.InvalidRequestError, session.begin)
        thing = author = None  # type: ignore[assignment] # is let go of
    session = None  # type: ignore[assignment] # is let go of
    return error, [one() is not None for one in let_go]


def ended(places: Places) -> tuple[BaseException, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    with places.maker() as session, session.begin():
        author: Any = session.scalars(select(Author)).first()
        let_go += [weakref.ref(session), weakref.ref(author)]
        session.commit()
        error = raised(exc.InvalidRequestError, lambda: session.scalars(select(Author)))
        thing = author = None  # type: ignore[assignment] # is let go of
    session = None  # type: ignore[assignment] # is let go of
    return error, [one() is not None for one in let_go]


def gone(places: Places) -> tuple[BaseException, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    with places.maker() as session:
        author: Any = session.scalars(select(Author)).first()
        let_go += [weakref.ref(session), weakref.ref(author)]
        session.execute(text("UPDATE authors SET id = -1 WHERE id = :id"), {"id": author.id})
        session.expire_all()
        error = raised(ObjectDeletedError, lambda: author.name)
        thing = author = None  # type: ignore[assignment] # is let go of
        session.rollback()
    session = None  # type: ignore[assignment] # is let go of
    return error, [one() is not None for one in let_go]


def not_persistent(places: Places) -> tuple[BaseException, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    with places.maker() as session:
        author: Any = Author(name="new")
        session.merge(author)
        let_go += [weakref.ref(session), weakref.ref(author)]
        error = raised(exc.InvalidRequestError, lambda: session.refresh(author))
        thing = author = None  # type: ignore[assignment] # is let go of
        session.rollback()
    session = None  # type: ignore[assignment] # is let go of
    return error, [one() is not None for one in let_go]


def waiting(places: Places) -> tuple[BaseException, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    with places.maker() as first, places.maker() as second:
        first.connection()
        let_go += [weakref.ref(second)]
        error = raised(exc.TimeoutError, lambda: second.connection())
        thing = None  # type: ignore[assignment] # is let go of
    second = None  # type: ignore[assignment] # is let go of
    return error, [one() is not None for one in let_go]


def unexpected(places: Places) -> tuple[BaseException, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    with places.maker() as session:
        let_go += [weakref.ref(session)]
        error = raised(exc.NoResultFound, lambda: session.get_one(Author, 99))
        thing = None  # type: ignore[assignment] # is let go of
    session = None  # type: ignore[assignment] # is let go of
    return error, [one() is not None for one in let_go]


def raised(kind: type[BaseException], work: Callable[[], object]) -> BaseException:
    """The error of that kind, without the frames that it came by: their names are in its notes."""
    try:
        work()
    except kind as error:
        stack = traceback.extract_tb(error.__traceback__)
        names = [frame.name for frame in stack if "session_tracer" not in frame.filename]
        error.add_note(" ".join(names))
        one: BaseException | None = error
        while one is not None:
            one.__traceback__ = None
            one = one.__cause__ or one.__context__
        return error
    raise AssertionError(f"no {kind.__name__}")


MISTAKES: dict[str, Callable[[Places], tuple[BaseException, list[bool]]]] = {
    "a detached relationship": detached,
    "an expired column": expired,
    "an object of two sessions": crossed,
    "a pending rollback": pending,
    "a load that is forbidden": forbidden,
    "a begin during a transaction": begun,
    "a transaction that has ended in its block": ended,
    "a row that is gone": gone,
    "a refresh of what was merged": not_persistent,
    "a pool that is empty": waiting,
    "a result that is not there": unexpected,
}


def described(error: BaseException | None) -> list[Any]:
    """All that can be seen of an error, and of those it came from."""
    if error is None:
        return []
    own = [type(error), error.args, str(error), repr(error), sorted(vars(error))]
    return [
        # The addresses of two objects are never the same, nor are the numbers of two sessions.
        re.sub(r"0x[0-9a-f]+|\d+", "0", repr(own)),
        error.__suppress_context__,
        described(error.__cause__),
        described(error.__context__),
    ]

"""Runs the same work untraced and traced, each on a database of its own, and compares all of it."""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry import context as context_api
from sqlalchemy import Engine, create_engine, event, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer.testing import capture
from tests.library import Author, Base, Book

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import MetaData

    from session_tracer.testing import Captured

# These frames are not whom a call site is about; a test's own are.
__session_tracer_hide__ = True

__all__ = ["GOT", "Outcome", "alike", "attempt", "errors", "library", "look_at", "unit_of_work"]

_BOOK = ("title", "author_id")


@dataclass
class Outcome:
    """All that an application can see of what it did: what it got, and what its database was asked.

    `left` are the connections that had not come back to their pool.
    """

    got: Any
    asked: list[str] = field(default_factory=list)
    left: int = 0


def library(path: Path, metadata: MetaData = Base.metadata) -> Engine:
    """An engine of a new SQLite file, which has three authors with two books each."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 5})
    event.listen(engine, "connect", _in_haste)
    metadata.create_all(engine)
    if metadata is Base.metadata:
        with engine.begin() as connection:
            connection.execute(insert(Author), [{"name": f"author {n}"} for n in range(3)])
            rows = [(f"book {n}.{book}", n + 1) for n in range(3) for book in range(2)]
            connection.execute(insert(Book), [dict(zip(_BOOK, row, strict=True)) for row in rows])
    return engine


def _in_haste(connection: Any, _: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")


def unit_of_work(maker: Any) -> list[Any]:
    """Some of everything, and in the end the database is as it was."""
    got: list[Any] = []
    with maker() as session:
        author = session.scalars(select(Author).order_by(Author.id)).first()
        got.append(len(author.books))
        session.add(Author(name="Ada"))
        session.flush()
        with session.begin_nested():
            session.add(Author(name="Bea"))
        session.commit()
        got.append(author.name)
        session.add(Author(name="Ada"))
        try:
            session.flush()
        except IntegrityError:
            got.append("refused")
        session.rollback()
        session.expire(author)
        book = author.books[0]
        session.expunge(book)
        session.merge(book)
        for newcomer in session.scalars(select(Author).where(Author.name.in_(["Ada", "Bea"]))):
            session.delete(newcomer)
        session.commit()
        got.append(author.name)
    try:
        _ = author.books
    except DetachedInstanceError:
        got.append("detached")
    return got


GOT = [2, "author 0", "refused", "author 0", "detached"]


def attempt(work: Callable[[], object]) -> str:
    """What comes of it: its result, or everything that can be seen of the exception."""
    try:
        return _without_addresses(repr(work()))
    except Exception as error:
        return described(error)


def described(error: BaseException | None) -> str:
    """An exception with its text and its causes."""
    if error is None:
        return ""
    causes = " <- ".join(filter(None, map(described, (error.__cause__, error.__context__))))
    text = _without_addresses(f"{type(error).__qualname__}: {error}")
    return f"{text} <- {causes}" if causes else text


def _without_addresses(text: str) -> str:
    return re.sub("0x[0-9a-f]+", "0x", text)


def look_at(engine: Engine, work: Callable[[Engine], object]) -> Outcome:
    """Do the work, and see what the application sees."""
    asked: list[str] = []

    def connected(connection: Any, _: object) -> None:
        connection.set_trace_callback(asked.append)

    engine.dispose()
    event.listen(engine, "connect", connected)
    before = context_api.get_current()
    try:
        got = work(engine)
    finally:
        event.remove(engine, "connect", connected)
    assert context_api.get_current() is before
    gc.collect()
    left = engine.pool.checkedout() if hasattr(engine.pool, "checkedout") else 0
    engine.dispose()
    return Outcome(got, asked, left)


def alike(
    tmp_path: Path,
    work: Callable[[Engine], object],
    *,
    target: Any = None,
    metadata: MetaData = Base.metadata,
    **overrides: Any,
) -> Captured:
    """Do the work without the tracer and with it; what is told where nothing differed."""
    untraced = look_at(library(tmp_path / "untraced.db", metadata), work)
    engine = library(tmp_path / "traced.db", metadata)
    overrides = {"statement_spans": True, "record_identity": True, **overrides}
    with capture(target, **overrides) as told:
        traced = look_at(engine, work)
    assert untraced.asked, "nothing was asked of the database: nothing was compared"
    assert traced == untraced, "\n".join(_differences(untraced, traced))
    assert errors(told) == {}
    return told


def _differences(untraced: Outcome, traced: Outcome) -> list[str]:
    return [
        f"{name}: {was!r} became {is_!r}"
        for name, was, is_ in (
            ("got", untraced.got, traced.got),
            ("left", untraced.left, traced.left),
            *(("asked", *pair) for pair in zip(untraced.asked, traced.asked, strict=False)),
            ("asked", len(untraced.asked), len(traced.asked)),
        )
        if was != is_
    ]


def errors(told: Captured) -> dict[str, int]:
    """What is counted in `session_tracer.errors`, by where."""
    return {
        point.attributes["where"]: point.value
        for point in told.metrics.get("session_tracer.errors", [])
    }

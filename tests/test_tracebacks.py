"""Tests what others see of session_tracer's frames: in tracebacks, and where warnings are laid."""

from __future__ import annotations

import asyncio
import sys
import warnings
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, SAWarning
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

import session_tracer
from session_tracer import Exporter, instrument
from tests.library import Author, Base, Book

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(session_tracer.__file__).parent
SQLALCHEMY = Path(sqlalchemy.__file__).parent


def frames(error: BaseException) -> Iterator[tuple[str, str]]:
    """The files of a traceback and their lines as they are shown, the innermost last."""
    for frame in extract_tb(error.__traceback__):
        yield frame.filename, frame.line or ""


def is_ours(file: str) -> bool:
    return "session_tracer" in Path(file).parts or PACKAGE in Path(file).parents


def a_statement_that_fails(session: Any) -> Any:
    return session.execute(text("SELECT nothing FROM nowhere"))


def a_flush_that_fails(session: Any) -> Any:
    session.add_all([Author(id=7, name="one"), Author(id=7, name="another")])
    return session.flush()


def a_commit_that_fails(session: Any) -> Any:
    session.add(Book(id=7, title=None, author_id=7))
    return session.commit()


FAILING = [a_statement_that_fails, a_flush_that_fails, a_commit_that_fails]


def assert_readable(error: BaseException) -> None:
    """The innermost frame is not session_tracer's, and each of session_tracer's shows its line."""
    seen = 0
    chain: BaseException | None = error
    while chain is not None:
        files = list(frames(chain))
        assert not is_ours(files[-1][0])
        for file, line in files:
            if is_ours(file):
                seen += 1
                assert SQLALCHEMY in Path(file).parents, file
                assert line.startswith(("return ", "execute("))
        chain = chain.__cause__
    assert seen > 0


@pytest.mark.filterwarnings("ignore:New instance .* conflicts:sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("fails", FAILING)
def test_a_traceback_ends_in_sqlalchemy_and_shows_lines_that_are_there(
    fails: Callable[[Any], Any],
) -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    with (
        instrument(factory, exporter=Exporter()),
        pytest.raises(DBAPIError) as raised,
        factory() as session,
    ):
        fails(session)
    engine.dispose()
    assert_readable(raised.value)


@pytest.mark.filterwarnings("ignore:New instance .* conflicts:sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("fails", FAILING)
def test_the_same_of_asyncio(fails: Callable[[Any], Any]) -> None:
    async def fail() -> None:
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        factory = async_sessionmaker(engine)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        try:
            with instrument(factory, exporter=Exporter()):
                async with factory() as session:
                    await fails(session)
        finally:
            await engine.dispose()

    with pytest.raises(DBAPIError) as raised:
        asyncio.run(fail())
    assert_readable(raised.value)


def cartesian(session: Any) -> Any:
    return session.execute(select(Author.id, Book.id))


def places(work: Callable[[], object]) -> list[tuple[str, int]]:
    """The file and line to which SQLAlchemy's warnings are laid."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [(one.filename, one.lineno) for one in caught if issubclass(one.category, SAWarning)]


def test_a_warning_is_laid_to_the_same_line_with_and_without_tracing() -> None:
    """Where others listen to the cursor, and where they do not."""
    for listens in (False, True):
        engine = create_engine("sqlite://", poolclass=StaticPool)
        Base.metadata.create_all(engine)
        if listens:
            event.listen(engine, "before_cursor_execute", lambda *_: None)
        factory = sessionmaker(engine)

        def read(factory: sessionmaker[Any] = factory) -> None:
            with factory() as session:
                cartesian(session)

        untraced = places(read)
        engine.clear_compiled_cache()
        with instrument(factory, exporter=Exporter()):
            traced = places(read)
        assert len(untraced) == 1
        assert traced == untraced
        engine.dispose()


def test_a_warning_under_asyncio_is_not_laid_to_a_line_of_session_tracers() -> None:
    async def read() -> None:
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        factory = async_sessionmaker(engine)
        with instrument(factory, exporter=Exporter()):
            async with factory() as session:
                await cartesian(session)
        await engine.dispose()

    laid = places(lambda: asyncio.run(read()))
    assert len(laid) == 1
    assert not is_ours(laid[0][0])


def seen_by_another(run: Callable[[Any], Any]) -> list[str]:
    """The functions that run a statement, as a listener sees them that leaves SQLAlchemy out."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    seen: list[str] = []

    def listen(*_: object) -> None:
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith((str(SQLALCHEMY), "<")):
            assert frame.f_back is not None
            frame = frame.f_back
        seen.append(frame.f_code.co_name)

    event.listen(engine, "before_cursor_execute", listen)
    event.listen(engine, "commit", listen)
    event.listen(engine, "rollback", listen)
    factory = sessionmaker(engine)
    with instrument(factory, exporter=Exporter()):
        with factory() as session:
            session.add(Author(id=1, name="one"))
            session.commit()
        run(factory)
    engine.dispose()
    return seen


def executes(factory: sessionmaker[Any]) -> None:
    with factory() as session:
        session.execute(select(Author.id))
        session.scalars(select(Author)).all()
        session.get(Author, 2)


def merges(factory: sessionmaker[Any]) -> None:
    with factory() as session:
        session.merge(Author(id=1, name="another"))
        session.rollback()


def flushes(factory: sessionmaker[Any]) -> None:
    with factory() as session:
        session.add(Author(id=2, name="two"))
        session.flush()
        session.connection().exec_driver_sql("SELECT 1")


def closes(factory: sessionmaker[Any]) -> None:
    session = factory()
    session.add(Author(id=3, name="three"))
    session.flush()
    session.close()


@pytest.mark.parametrize("run", [executes, merges, flushes, closes])
def test_a_listener_sees_the_line_of_the_application(
    run: Callable[[sessionmaker[Any]], None],
) -> None:
    seen = seen_by_another(run)
    assert set(seen) == {"seen_by_another", run.__name__}

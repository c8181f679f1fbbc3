"""Who opened a session, and who used it first: a finding about its life is at the line to open."""

from __future__ import annotations

import os
import sysconfig
import threading
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, sessionmaker

from session_tracer import CallSite, Finding
from session_tracer.testing import capture
from tests.library import Author, Base

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from session_tracer.testing import Captured

Factory = sessionmaker[Session]
AsyncFactory = async_sessionmaker[AsyncSession]

_LINES = Path(__file__).read_text().splitlines()


def marked(mark: str, function: str) -> CallSite:
    """The site of the line of this file that ends in `# <- mark`."""
    (line,) = [n for n, line in enumerate(_LINES, 1) if line.endswith(f"# <- {mark}")]
    return CallSite(__file__, line, function)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def factory(engine: Engine) -> Factory:
    return sessionmaker(engine)


@pytest.fixture
async def async_factory(engine: Engine) -> AsyncIterator[AsyncFactory]:
    async_engine: AsyncEngine = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
    yield async_sessionmaker(async_engine)
    await async_engine.dispose()


def lost(captured: Captured) -> Finding:
    """The one finding: the session's changes were discarded."""
    (finding,) = captured.findings
    assert finding.id == "discarded-changes"
    return finding


def lines(finding: Finding) -> tuple[CallSite | None, CallSite | None, str | None]:
    """Its line, the line that opened the session, and the line that first used it if it says so."""
    return finding.site, finding.session_site, finding.evidence.get("first_used_site")


# Generators.


def get_session(factory: Factory) -> Iterator[Session]:
    with factory() as session:  # <- dependency
        yield session


def get_tenants_session(factory: Factory) -> Iterator[Session]:
    with factory() as session:  # <- dependency with a helper
        set_tenant(session)
        yield session


def set_tenant(session: Session) -> None:
    session.execute(text("SELECT 1"))


def get_transaction(factory: Factory) -> Iterator[Session]:
    session = factory()  # <- dependency that begins
    session.begin()
    yield session
    session.close()


@pytest.mark.parametrize(
    ("dependency", "mark"),
    [
        (get_session, "dependency"),
        (get_tenants_session, "dependency with a helper"),
        (get_transaction, "dependency that begins"),
    ],
)
def test_a_dependencys_session_is_lent_to_the_function_that_first_uses_it(
    factory: Factory, dependency: Callable[[Factory], Iterator[Session]], mark: str
) -> None:
    def register(session: Session) -> None:
        session.scalars(select(Author)).all()  # <- endpoint reads
        session.add(Author(name="Ada"))
        session.flush()  # <- endpoint flushes

    with capture(factory) as captured, contextmanager(dependency)(factory) as session:
        register(session)
    assert lines(lost(captured)) == (
        marked("endpoint flushes", "register"),
        marked(mark, dependency.__name__),
        str(marked("endpoint reads", "register")),
    )


def test_an_endpoint_that_only_adds_is_the_first_to_use_a_transaction(factory: Factory) -> None:
    def register(session: Session) -> None:
        session.add(Author(name="Ada"))  # <- endpoint adds

    with capture(factory) as captured, contextmanager(get_transaction)(factory) as session:
        register(session)
    assert lines(lost(captured)) == (
        marked("endpoint adds", "register"),
        marked("dependency that begins", "get_transaction"),
        None,  # it is the finding's line
    )


async def get_async_session(factory: AsyncFactory) -> AsyncIterator[AsyncSession]:
    async with factory() as session:  # <- async dependency
        yield session


async def test_an_async_dependencys_session_is_lent_too(async_factory: AsyncFactory) -> None:
    async def register(session: AsyncSession) -> None:
        await session.scalars(select(Author))  # <- async endpoint reads
        session.add(Author(name="Ada"))
        await session.flush()  # <- async endpoint flushes

    with capture(async_factory) as captured:
        async with asynccontextmanager(get_async_session)(async_factory) as session:
            await register(session)
    assert lines(lost(captured)) == (
        marked("async endpoint flushes", "register"),
        marked("async dependency", "get_async_session"),
        str(marked("async endpoint reads", "register")),
    )


def test_a_generator_that_reads_for_its_own_use_lends_nothing(factory: Factory) -> None:
    def names() -> Iterator[str]:
        with factory() as session:  # <- generator reads
            save(session)
            yield "Ada"

    with capture(factory) as captured:
        assert list(names()) == ["Ada"]
    assert lines(lost(captured)) == (
        marked("generator reads", "names"),
        marked("generator reads", "names"),
        None,
    )


def save(session: Session) -> None:
    session.add(Author(name="Ada"))
    session.flush()


# Plain functions.


def new_session(factory: Factory) -> Session:
    return factory()  # <- wrapper


def test_a_wrappers_session_is_lent_to_its_caller(factory: Factory) -> None:
    with capture(factory) as captured:
        session = new_session(factory)
        session.add(Author(name="Ada"))  # <- wrapper's caller adds
        session.close()
    name = "test_a_wrappers_session_is_lent_to_its_caller"
    assert lines(lost(captured)) == (
        marked("wrapper's caller adds", name),
        marked("wrapper", "new_session"),
        None,
    )


async def test_a_wrappers_async_session_is_lent_to_its_caller(async_factory: AsyncFactory) -> None:
    def new() -> AsyncSession:
        return async_factory()  # <- async wrapper

    with capture(async_factory) as captured:
        async with new() as session:
            session.add(Author(name="Ada"))  # <- async wrapper's caller adds
    name = "test_a_wrappers_async_session_is_lent_to_its_caller"
    assert lines(lost(captured)) == (
        marked("async wrapper's caller adds", name),
        marked("async wrapper", "new"),
        None,
    )


def test_a_block_that_calls_a_helper_lends_nothing(factory: Factory) -> None:
    with capture(factory) as captured, factory() as session:  # <- block
        save(session)
    block = marked("block", "test_a_block_that_calls_a_helper_lends_nothing")
    assert lines(lost(captured)) == (block, block, None)


async def test_an_async_block_that_calls_a_helper_lends_nothing(
    async_factory: AsyncFactory,
) -> None:
    async def store(session: AsyncSession) -> None:
        await session.run_sync(save)

    with capture(async_factory) as captured:
        async with async_factory() as session:  # <- async block
            await store(session)
    block = marked("async block", "test_an_async_block_that_calls_a_helper_lends_nothing")
    assert lines(lost(captured)) == (block, block, None)


def test_a_session_that_one_thread_keeps_for_others_is_not_lent(factory: Factory) -> None:
    with capture(factory) as captured:
        session = new_session(factory)
        thread = threading.Thread(target=save, args=(session,))
        thread.start()
        thread.join()
        session.close()  # <- keeper closes
    name = "test_a_session_that_one_thread_keeps_for_others_is_not_lent"
    assert lines(lost(captured)) == (
        marked("keeper closes", name),
        marked("wrapper", "new_session"),
        None,
    )


# Libraries.

PLUGIN = """\

def serve(factory, view):
    session = factory()
    try:
        view(session)
    finally:
        session.close()
"""


def of_plugin() -> Any:
    """A function of an installed package, which opens and closes the session of a view."""
    module: dict[str, Any] = {"__name__": "shop_web.plugin"}
    folder = sysconfig.get_path("purelib")
    exec(compile(PLUGIN, os.path.join(folder, "shop_web", "plugin.py"), "exec"), module)
    return module["serve"]


def register(session: Session) -> None:
    session.scalars(select(Author)).all()  # <- view reads
    session.add(Author(name="Ada"))
    session.flush()  # <- view flushes


def test_a_plugins_session_is_the_views(factory: Factory) -> None:
    with capture(factory) as captured:
        thread = threading.Thread(target=of_plugin(), args=(factory, register))
        thread.start()
        thread.join()
    assert lines(lost(captured)) == (
        marked("view flushes", "register"),
        marked("view reads", "register"),  # none of the application's lines opened it
        None,
    )


def test_a_plugins_session_is_the_views_below_a_line_of_the_application(factory: Factory) -> None:
    with capture(factory) as captured:
        of_plugin()(factory, register)  # <- serves
    assert lost(captured).site == marked("view flushes", "register")

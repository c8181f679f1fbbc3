"""The line of a finding in real frameworks: the application's own, never the framework's."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from flask import Flask, render_template_string
from flask_sqlalchemy import SQLAlchemy
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, selectinload, sessionmaker
from sqlalchemy.pool import NullPool
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession

from session_tracer import CallSite, Finding
from session_tracer.testing import Captured, capture
from tests.library import Author, Base, Book

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

_LINES = Path(__file__).read_text().splitlines()


def marked(mark: str, function: str) -> CallSite:
    """The site of the line of this file that ends in `# <- mark`."""
    (line,) = [n for n, line in enumerate(_LINES, 1) if line.endswith(f"# <- {mark}")]
    return CallSite(__file__, line, function)


def only(captured: Captured, id_: str) -> Finding:
    """The one finding, which has this id."""
    (finding,) = captured.findings
    assert finding.id == id_
    return finding


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    with sessionmaker(engine).begin() as session:
        for number in range(6):
            session.add(Author(name=f"Author {number}", books=[Book(title="Notes")]))
    yield engine
    engine.dispose()


class BookOut(BaseModel):
    """A book as a response has it."""

    model_config = ConfigDict(from_attributes=True)
    title: str


class AuthorOut(BaseModel):
    """An author as a response has it."""

    model_config = ConfigDict(from_attributes=True)
    name: str
    books: list[BookOut]


class Api:
    """A FastAPI application that is called in a thread and on an event loop of its own."""

    def __init__(self, app: FastAPI, factory: Any) -> None:
        self.app = app
        self.factory = factory

    def call(self, method: str, path: str) -> Captured:
        """What is reported of one request."""
        with capture(self.factory) as captured, ThreadPoolExecutor(1) as server:
            server.submit(asyncio.run, self._answer(method, path)).result()
        return captured

    async def _answer(self, method: str, path: str) -> None:
        transport = ASGITransport(self.app, raise_app_exceptions=False)
        client = AsyncClient(transport=transport, base_url="http://shop")
        async with getattr(self.app, "lifespan", nullcontext)(), client:  # Litestar's
            await client.request(method, path)


def pass_on(app: FastAPI) -> None:
    """A middleware of the application's own, through which every request passes."""

    class PassOn:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)

    app.add_middleware(PassOn)


# FastAPI with a sync session.


@pytest.fixture
def api(engine: Engine) -> Api:
    factory = sessionmaker(engine)

    def get_session() -> Iterator[Session]:
        with factory() as session:  # <- dependency
            yield session

    def get_transaction() -> Iterator[Session]:
        with factory.begin() as session:
            yield session

    lent, begun = Depends(get_session), Depends(get_transaction)
    app = FastAPI()
    pass_on(app)

    @app.get("/authors", response_model=list[AuthorOut])
    def authors(db: Session = lent) -> Any:
        return db.scalars(select(Author)).all()  # <- sync endpoint selects

    @app.get("/eager", response_model=list[AuthorOut])
    def eager(db: Session = lent) -> Any:
        return db.scalars(select(Author).options(selectinload(Author.books))).all()

    @app.get("/closed", response_model=AuthorOut)
    def closed() -> Any:
        with factory() as session:
            return session.get(Author, 1)  # <- endpoint returns from a block

    @app.post("/forgot")
    def forgot(db: Session = lent) -> None:
        db.scalars(select(Author)).all()  # <- sync endpoint first uses
        db.add(Author(name="Ada"))
        db.flush()  # <- sync endpoint flushes

    @app.post("/forgot-change")
    def forgot_change(db: Session = lent) -> None:
        db.get_one(Author, 1).name = "Jane"  # <- sync endpoint changes

    @app.post("/transaction")
    def transaction(db: Session = begun) -> None:
        db.add(Author(name="Jane"))

    def mail(author: Author) -> int:
        return len(author.books)  # <- background task reads

    @app.post("/background")
    def background(tasks: BackgroundTasks) -> None:
        with factory() as session:
            tasks.add_task(mail, session.get_one(Author, 1))

    @app.get("/stream")
    def stream(db: Session = lent) -> StreamingResponse:
        return StreamingResponse(one.name for one in db.scalars(select(Author)))

    return Api(app, factory)


def test_a_response_model_reads_what_the_endpoint_selected(api: Api) -> None:
    finding = only(api.call("GET", "/authors"), "n-plus-one")
    selected = marked("sync endpoint selects", "authors")
    assert finding.site == selected
    assert finding.remedy == f"select(Author).options(selectinload(Author.books)) at {selected}"
    assert api.call("GET", "/eager").findings == []


def test_a_response_model_reads_what_was_returned_from_a_block(api: Api) -> None:
    finding = only(api.call("GET", "/closed"), "detached-lazy-load")
    assert finding.site == marked("endpoint returns from a block", "closed")


def test_changes_that_an_endpoint_forgets_are_at_its_line(api: Api) -> None:
    finding = only(api.call("POST", "/forgot"), "discarded-changes")
    assert finding.site == marked("sync endpoint flushes", "forgot")
    assert finding.session_site == marked("dependency", "get_session")
    used = marked("sync endpoint first uses", "forgot")
    assert finding.evidence["first_used_site"] == str(used)
    assert finding.remedy == "session.commit()  # after the last change"


def test_changes_that_were_never_flushed_are_at_the_endpoints_last_line(api: Api) -> None:
    finding = only(api.call("POST", "/forgot-change"), "discarded-changes")
    assert finding.site == marked("sync endpoint changes", "forgot_change")


def test_a_background_task_that_reads_is_at_its_line(api: Api) -> None:
    finding = only(api.call("POST", "/background"), "detached-lazy-load")
    assert finding.site == marked("background task reads", "mail")


@pytest.mark.parametrize("path", ["/transaction", "/stream"])
def test_a_sync_endpoint_that_is_right_is_silent(api: Api, path: str) -> None:
    assert api.call("POST" if path == "/transaction" else "GET", path).findings == []


# FastAPI with an AsyncSession.


@pytest.fixture(params=[AsyncSession, SQLModelAsyncSession], ids=["sqlalchemy", "sqlmodel"])
def async_api(engine: Engine, request: pytest.FixtureRequest) -> Api:
    # Each request has an event loop of its own.
    url = f"sqlite+aiosqlite:///{engine.url.database}"
    async_engine = create_async_engine(url, poolclass=NullPool)
    factory = async_sessionmaker(async_engine, class_=request.param)

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with factory() as session:  # <- async dependency
            yield session

    async def get_transaction() -> AsyncIterator[AsyncSession]:
        async with factory.begin() as session:  # <- async dependency that begins
            yield session

    lent, begun = Depends(get_session), Depends(get_transaction)
    app = FastAPI()
    pass_on(app)

    @app.get("/authors", response_model=list[AuthorOut])
    async def authors(db: AsyncSession = lent) -> Any:
        return await (await db.stream_scalars(select(Author))).all()  # <- async endpoint selects

    @app.post("/forgot")
    async def forgot(db: AsyncSession = lent) -> None:
        db.add(Author(name="Ada"))  # <- async endpoint adds

    @app.post("/transaction")
    async def transaction(db: AsyncSession = begun) -> None:
        db.add(Author(name="Jane"))

    @app.get("/stream")
    async def stream(db: AsyncSession = lent) -> StreamingResponse:
        async def names() -> AsyncIterator[str]:
            async for author in await db.stream_scalars(select(Author)):
                yield author.name

        return StreamingResponse(names())

    return Api(app, factory)


@pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited")
def test_a_response_model_reads_what_the_async_endpoint_selected(async_api: Api) -> None:
    finding = only(async_api.call("GET", "/authors"), "implicit-async-io")
    selected = marked("async endpoint selects", "authors")
    assert finding.site == selected
    assert finding.remedy == f"select(Author).options(selectinload(Author.books)) at {selected}"


def test_changes_that_an_async_endpoint_forgets_are_at_its_line(async_api: Api) -> None:
    finding = only(async_api.call("POST", "/forgot"), "discarded-changes")
    assert finding.site == marked("async endpoint adds", "forgot")
    assert finding.session_site == marked("async dependency", "get_session")


def test_the_end_of_a_dependency_that_begins_is_the_dependencys(async_api: Api) -> None:
    captured = async_api.call("POST", "/transaction")
    assert captured.findings == []
    (summary,) = captured.sessions
    assert summary.closed_site == marked("async dependency that begins", "get_transaction")


def test_an_async_stream_that_is_right_is_silent(async_api: Api) -> None:
    assert async_api.call("GET", "/stream").findings == []


# Flask-SQLAlchemy.


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[tuple[Flask, SQLAlchemy]]:
    db = SQLAlchemy(model_class=Base)
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'shop.db'}"
    db.init_app(app)

    @app.post("/forgot")
    def forgot() -> str:
        db.session.add(Author(name="Ada"))
        db.session.flush()  # <- view flushes
        return "two"

    @app.get("/authors")
    def authors() -> str:
        found = db.session.scalars(select(Author)).all()
        return render_template_string("{% for a in found %}{{ a.books }}{% endfor %}", found=found)

    with app.app_context():
        db.create_all()
    yield app, db
    with app.app_context():
        db.engine.dispose()


def by_a_server(call: Callable[[], Any]) -> None:
    """As in a server, no line of the application is below the framework's."""
    with ThreadPoolExecutor(1) as server:
        server.submit(call).result()


def by_a_test(call: Callable[[], Any]) -> None:
    """The test's line is below the framework's, and has not closed anything."""
    call()


@pytest.mark.parametrize("run", [by_a_server, by_a_test])
def test_changes_that_a_view_forgets_are_at_its_line(
    shop: tuple[Flask, SQLAlchemy], run: Callable[[Callable[[], Any]], None]
) -> None:
    app, db = shop
    client = app.test_client()
    with capture(db) as captured:
        run(lambda: client.post("/forgot"))
    finding = only(captured, "discarded-changes")
    assert finding.site == marked("view flushes", "forgot")


# The end of a test's fixture.

FIXTURES = """\
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine, AsyncSession
from sqlalchemy.orm import Session
from tests.library import Author, Base

@pytest.fixture
def session():
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session

def test_with_a_session(session):
    session.add(Author(name="Ada"))
    session.flush()

@pytest.fixture
async def async_session():
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()

async def test_with_an_async_session(async_session):
    async_session.add(Author(name="Ada"))
    await async_session.flush()

def test_that_loses_its_own():
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Author(name="Ada"))
        session.flush()
"""


def test_what_the_end_of_a_fixture_discards_is_not_reported(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(FIXTURES)
    result = pytester.runpytest_subprocess("--session-tracer=warning", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_that_loses_its_own*"])


# Litestar with advanced-alchemy, whose plugin opens, commits and closes the session.


@pytest.fixture
def litestar_shop(engine: Engine) -> Any:
    litestar = pytest.importorskip("litestar")
    from advanced_alchemy.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemyPlugin

    url = f"sqlite+aiosqlite:///{engine.url.database}"
    config = SQLAlchemyAsyncConfig(engine_instance=create_async_engine(url, poolclass=NullPool))

    @litestar.post("/forgot")  # type: ignore[untyped-decorator] # not installed everywhere
    async def forgot(db_session: AsyncSession) -> None:
        await db_session.scalars(select(Author))  # <- handler first uses
        db_session.add(Author(name="Ada"))
        await db_session.flush()  # <- handler flushes

    return litestar.Litestar([forgot], plugins=[SQLAlchemyPlugin(config)])


@pytest.mark.filterwarnings("ignore:The declarative_mixin decorator")
@pytest.mark.filterwarnings("ignore:.*Inferred dependency field")
def test_changes_that_a_litestar_handler_forgets_are_at_its_line(litestar_shop: Any) -> None:
    finding = only(Api(litestar_shop, None).call("POST", "/forgot"), "discarded-changes")
    assert finding.site == marked("handler flushes", "forgot")
    # No line of the application opened it.
    assert finding.session_site == marked("handler first uses", "forgot")

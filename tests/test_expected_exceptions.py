"""Exceptions that are an application's answers, and no failure of the session that they leave."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from httpx import ASGITransport, AsyncClient
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.exceptions import InternalServerError, NotFound

from session_tracer import Settings
from session_tracer.testing import capture
from tests.library import Author, Base

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.twins import Twin


class OutOfStockError(Exception):
    """An answer of the application's own."""


class OutOfPaperError(OutOfStockError):
    """A more specific one."""


def outcome_with(twin: Twin, error: Exception, **settings: Any) -> tuple[str, str]:
    """The outcome and the error of a session that the error leaves."""

    async def story() -> None:
        async with twin.session() as session:
            await session.scalars(select(Author))
            raise error

    with capture(twin.factory, **settings) as captured, pytest.raises(type(error)):
        twin.run(story)
    (summary,) = captured.sessions
    assert captured.findings == []
    (span,) = [one for one in captured.spans if one.name.startswith("session ")]
    assert span.status.is_ok == (summary.outcome != "failed")
    return summary.outcome, summary.error


@pytest.mark.parametrize(
    "error",
    [HTTPException(404), HTTPException(422, "bad name"), RequestValidationError([]), NotFound()],
    ids=repr,
)
def test_an_error_of_the_client_is_no_failure(twin: Twin, error: Exception) -> None:
    assert outcome_with(twin, error) == ("closed", "")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (HTTPException(500), "fastapi.exceptions.HTTPException"),
        (HTTPException(503), "fastapi.exceptions.HTTPException"),
        (InternalServerError(), "werkzeug.exceptions.InternalServerError"),
        (OutOfStockError(), f"{__name__}.OutOfStockError"),
    ],
    ids=repr,
)
def test_every_other_error_is_a_failure(twin: Twin, error: Exception, name: str) -> None:
    assert outcome_with(twin, error) == ("failed", name)


@pytest.mark.parametrize("named", [OutOfStockError, f"{__name__}.OutOfStockError"], ids=repr)
@pytest.mark.parametrize("error", [OutOfStockError(), OutOfPaperError(), NotFound()], ids=repr)
def test_an_application_declares_its_own(twin: Twin, error: Exception, named: Any) -> None:
    expected = (*Settings.expected_exceptions, named)
    assert outcome_with(twin, error, expected_exceptions=expected) == ("closed", "")


def test_none_is_expected_if_none_is_declared(twin: Twin) -> None:
    outcome, _ = outcome_with(twin, NotFound(), expected_exceptions=())
    assert outcome == "failed"


def test_names_come_from_the_environment() -> None:
    environ = {"SESSION_TRACER_EXPECTED_EXCEPTIONS": "shop.OutOfStock, shop.errors.Conflict"}
    expected = ("shop.OutOfStock", "shop.errors.Conflict")
    assert Settings.from_env(environ).expected_exceptions == expected


@pytest.mark.parametrize("wrong", [("OutOfStock",), (17,), (int,), 17, ("shop.",)])
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected exception classes, or their names"):
        Settings(expected_exceptions=wrong)


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


def test_a_404_in_fastapi_rolls_the_work_back(factory: sessionmaker[Session]) -> None:
    def get_session() -> Iterator[Session]:
        with factory() as session:
            yield session

    def get_transaction() -> Iterator[Session]:
        with factory.begin() as session:
            yield session

    app = FastAPI()

    @app.get("/read/{id}")
    def read(id: int, session: Session = Depends(get_session)) -> None:  # noqa: A002, B008
        if session.get(Author, id) is None:
            raise HTTPException(404)

    @app.post("/write/{id}")
    def write(id: int, session: Session = Depends(get_transaction)) -> None:  # noqa: A002, B008
        session.add(Author(name="jane"))
        session.flush()
        if id > 1:
            raise HTTPException(409)

    async def request() -> list[int]:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
            return [
                (await client.get("/read/7")).status_code,
                (await client.post("/write/7")).status_code,
                (await client.post("/write/1")).status_code,
            ]

    with capture(factory) as captured:
        assert asyncio.run(request()) == [404, 409, 200]
    assert [one.outcome for one in captured.sessions] == ["closed", "rolled_back", "committed"]
    assert captured.findings == []

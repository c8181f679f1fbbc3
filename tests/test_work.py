"""For what a session works: the name that `work()` gives it, and where that name is found."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker

from session_tracer import live_sessions, work
from session_tracer.testing import capture
from tests.library import Author, Base, authors

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

Factory = sessionmaker[Session]


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[Factory]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(authors(6))
        session.commit()
    yield sessionmaker(engine)
    engine.dispose()


def works_now() -> list[str]:
    """What the open sessions work for."""
    return [one.work for one in live_sessions()]


def read(session: Session) -> None:
    session.scalars(select(Author)).all()


def lose(session: Session) -> None:
    """A mistake that is found as the session closes."""
    session.add(Author(name="lost"))
    session.flush()


def test_a_session_works_for_the_block_it_is_opened_in(factory: Factory) -> None:
    with capture(factory) as captured:
        with work("task import_orders"), factory() as session:
            lose(session)
            assert works_now() == ["task import_orders"]
        with factory() as session:
            lose(session)
            assert works_now() == [""]
    assert [one.work for one in captured.findings] == ["task import_orders", ""]
    assert [one.work for one in captured.sessions] == ["task import_orders", ""]


def test_it_does_so_until_its_end(factory: Factory) -> None:
    with capture(factory) as captured:
        with work("opens"):
            session = factory()
        with work("uses"):
            lose(session)
            session.close()
    assert [one.work for one in captured.findings] == ["opens"]


def test_a_session_that_is_used_again_works_for_the_block_of_then(factory: Factory) -> None:
    with capture(factory) as captured:
        session = factory()
        session.close()
        for name in ("first", "second"):
            with work(name):
                read(session)
                session.close()
    assert [one.work for one in captured.sessions if one.outcome != "unused"] == ["first", "second"]


def test_the_innermost_block_applies(factory: Factory) -> None:
    with capture(factory), work("outer"):
        with work("inner"), factory() as session:
            read(session)
            assert works_now() == ["inner"]
        with factory() as session:
            read(session)
            assert works_now() == ["outer"]


def test_a_block_can_be_used_again_and_nested(factory: Factory) -> None:
    block = work("again")
    with capture(factory):
        with block, block:
            with block:
                pass
            with factory() as session:
                read(session)
                assert works_now() == ["again"]
        with factory() as session:
            read(session)
            assert works_now() == [""]


def test_an_exception_ends_the_block_and_passes(factory: Factory) -> None:
    error = KeyError("the application's")
    with pytest.raises(KeyError) as raised, work("fails"):
        raise error
    assert raised.value is error
    with capture(factory), factory() as session:
        read(session)
        assert works_now() == [""]


def test_tasks_inherit_it_and_do_not_disturb_each_other(factory: Factory) -> None:
    seen: dict[str, str] = {}

    async def note(name: str) -> None:
        await asyncio.sleep(0)
        with factory() as session:
            read(session)
            seen[name] = works_now()[0]

    async def request(name: str) -> None:
        with work(name):
            await note(name)

    async def main() -> None:
        with work("main"):
            await asyncio.gather(note("inherited"), request("one"), request("two"))

    with capture(factory):
        asyncio.run(main())
    assert seen == {"inherited": "main", "one": "one", "two": "two"}


def test_a_generator_that_ends_in_another_context_does_not_disturb(factory: Factory) -> None:
    def dependency() -> Generator[Session]:
        with work("dependency"), factory() as session:
            yield session

    generator = dependency()
    seen: list[str] = []

    def begin() -> None:
        read(next(generator))
        seen.extend(works_now())

    thread = threading.Thread(target=begin)
    with capture(factory) as captured:
        thread.start()
        thread.join()
        with work("outer"):
            generator.close()
            with factory() as session:
                read(session)
                assert works_now() == ["outer"]
    assert seen == ["dependency"]
    assert [one.work for one in captured.sessions] == ["dependency", "outer"]


def test_a_function_is_called_when_the_name_is_needed(factory: Factory) -> None:
    route = ["?"]
    with capture(factory) as captured, work(lambda: f"GET {route[0]}"), factory() as session:
        lose(session)
        assert works_now() == ["GET ?"]
        route[0] = "/orders/{id}"
    assert [one.work for one in captured.findings] == ["GET /orders/{id}"]


def test_a_function_that_fails(factory: Factory, caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> str:
        raise LookupError

    with capture(factory) as captured:
        for name in (fails, fails, lambda: 17):
            with work(name), factory() as session:  # type: ignore[arg-type]
                lose(session)
    assert [one.work for one in captured.findings] == ["", "", ""]
    (point,) = captured.metrics["session_tracer.errors"]
    assert dict(point.attributes) == {"sqlalchemy.session.name": "default", "where": "work"}
    assert point.value > 0
    assert [one.getMessage() for one in caplog.records if one.name == "session_tracer"] == [
        f"session_tracer: the function {__name__}.{test_a_function_that_fails.__name__}.<locals>."
        f"{function} that names the work of sessions raised {error}. These sessions are reported "
        "without a name."
        for function, error in (("fails", "LookupError"), ("<lambda>", "TypeError"))
    ]


def test_names_with_ids_are_bounded(factory: Factory) -> None:
    with capture(factory, max_works=3) as captured:
        for number in (1, 2, 3, 4, 2, 5):
            with work(f"GET /orders/{number}"), factory() as session:
                read(session)
    assert [one.work for one in captured.sessions] == [
        "GET /orders/1", "GET /orders/2", "GET /orders/3", "_other", "GET /orders/2", "_other",
    ]  # fmt: skip


def test_a_name_of_any_length_is_shortened(factory: Factory) -> None:
    with capture(factory) as captured, work("x" * 5_000), factory() as session:
        read(session)
    assert [len(one.work) for one in captured.sessions] == [200]


@pytest.mark.parametrize("name", [17, None, b"task"])
def test_a_name_is_a_string_or_a_function(name: Any) -> None:
    with pytest.raises(TypeError, match="expected a string, or a function that returns one"):
        work(name)


def test_a_name_is_not_empty() -> None:
    with pytest.raises(ValueError, match="expected a name that is not empty"):
        work("")

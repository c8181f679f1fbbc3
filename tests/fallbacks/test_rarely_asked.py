"""Tests without the private interfaces that are only asked on rare occasions, one occasion each."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import SAWarning, SQLAlchemyError
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.orm.unitofwork import UOWTransaction

from session_tracer import live_sessions
from session_tracer.hooks import flush_contents, loader_options, locks, streams
from session_tracer.testing import capture
from session_tracer.where import tasks
from tests.fallbacks.missing import hide, rename, unfound
from tests.fallbacks.story import Factory, library, refused
from tests.library import Author, Book

if TYPE_CHECKING:
    from collections.abc import Callable


def refresh(factory: Factory) -> object:
    with factory() as session:
        return refused(lambda: session.refresh(Author(name="never added")))


def link(factory: Factory) -> object:
    with factory() as session, warnings.catch_warnings(record=True):
        warnings.filterwarnings("always", "Object of type", SAWarning)
        Book(title="never added", author=session.get_one(Author, 1))
        session.commit()
        return len(session.get_one(Author, 1).books)


def stream(factory: Factory) -> object:
    read = 0
    with factory() as session, suppress(SQLAlchemyError):
        names = text("SELECT title FROM books").execution_options(stream_results=True)
        for _ in session.execute(names):
            read += 1
            session.commit()
    return read


def lock(factory: Factory) -> object:
    with factory() as session:
        book = session.get_one(Book, 1)
        # As another transaction would: the object is left as it is.
        session.connection().execute(update(Book).values(copies=9))
        session.scalars(select(Book).where(Book.id == 1).with_for_update()).one()
        return book.copies


def write(factory: Factory) -> object:
    with factory() as session:
        for number in range(5):
            author = Author(name=f"new {number}")
            session.add(author)
            session.flush()
            session.refresh(author)
        return author.name


class Missing(NamedTuple):
    """What is taken away, the occasion, what is said of it, and the finding that is not made."""

    take: Callable[[pytest.MonkeyPatch], None]
    occasion: Callable[[Factory], object]
    said: str
    finding: str


def no_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    rename(monkeypatch, Session._validate_persistent)


def other_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    rename(monkeypatch, Session._validate_persistent, state="one")


def no_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    rename(monkeypatch, UOWTransaction.register_object)


def no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    unfound(monkeypatch, "sqlalchemy.engine.default:DefaultExecutionContext._setup_result_proxy")
    hide(monkeypatch, streams.follow, "_setup_result_proxy")


def no_function_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    unfound(monkeypatch, "sqlalchemy.orm.loading:_instance_processor")
    monkeypatch.setattr(locks, "_OF_A_ROW", "of_another_release")


def no_written_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    unfound(monkeypatch, "sqlalchemy.orm.session:SessionTransaction._take_snapshot")
    hide(monkeypatch, flush_contents.wrote, "_new")


MISSING: Final = {
    "validation": Missing(no_validation, refresh, "Session._validate_persistent", "row-gone"),
    "other validation": Missing(
        other_validation, refresh, "Session._validate_persistent", "row-gone"
    ),
    "registration": Missing(no_registration, link, "UOWTransaction.register_object", "lost-link"),
    "result": Missing(
        no_result, stream, "DefaultExecutionContext._setup_result_proxy", "interrupted-stream"
    ),
    "function of a row": Missing(no_function_of_a_row, lock, "IdentityMap.get", "stale-lock"),
    "objects of a transaction": Missing(
        no_written_objects, lock, "SessionTransaction._new", "stale-lock"
    ),
    "written objects": Missing(
        no_written_objects, write, "SessionTransaction._new", "refresh-after-write"
    ),
}


def seen(occasion: Callable[[Factory], object]) -> tuple[object, list[str], object]:
    """What the application sees, what is found, and what is counted as an error."""
    for factory in library():
        with capture(factory, ignore={"discarded-changes"}) as captured:
            result = occasion(factory)
        errors = captured.metrics.get("session_tracer.errors", [])
        return result, [one.id for one in captured.findings], errors
    raise AssertionError


@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
def test_the_finding_is_not_made_and_all_else_is_as_before(
    missing: Missing, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, findings, errors = seen(missing.occasion)
    assert (findings, errors, said()) == ([missing.finding], [], [])
    missing.take(monkeypatch)
    assert seen(missing.occasion) == (result, [], [])
    assert said() == [missing.said]


def test_without_the_options_of_a_select_a_refresh_is_reported_without_them(
    said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def remedy() -> str:
        for factory in library():
            with capture(factory, refreshes_from_one_site=2) as captured, factory() as session:
                query = select(Author).options(selectinload(Author.books))
                for author in session.scalars(query).all():
                    session.refresh(author)
            (finding,) = captured.findings
            return finding.remedy
        raise AssertionError

    again = ".execution_options(populate_existing=True)  # before the loop"
    selected = "select(Author).where(Author.id.in_(keys))"
    assert remedy() == f"{selected}.options(selectinload(Author.books)){again}"
    assert said() == []
    hide(monkeypatch, loader_options._came_with, "load_options")
    assert remedy() == f"{selected}{again}"
    assert said() == ["InstanceState.load_options"]


def test_without_the_deleted_objects_all_others_are_counted(
    said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    unfound(monkeypatch, "sqlalchemy.orm:Session.deleted")
    for factory in library():
        with capture(factory), factory() as session:
            session.get_one(Author, 1)
            session.add(Author(name="new"))
            (live,) = live_sessions()
            assert live.objects["pending"] == 1
    assert said() == ["Session._deleted"]


def test_without_the_parent_of_a_group_a_task_is_awaited_by_none(
    said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def awaiting() -> list[str]:
        async def ask() -> list[str]:
            return [one.get_name() for one in tasks.awaiting_tasks(asyncio.current_task())]

        async with asyncio.TaskGroup() as group:
            task = group.create_task(ask())
        return task.result()

    async def named() -> list[str]:
        return await asyncio.create_task(awaiting(), name="the request")

    assert "the request" in asyncio.run(named())
    unfound(monkeypatch, "asyncio:TaskGroup.__init__")
    hide(monkeypatch, tasks._awaiting, "_parent_task")
    assert asyncio.run(named()) == []
    for factory in library():
        with capture(factory):
            pass
    assert said() == ["asyncio.TaskGroup._parent_task"]

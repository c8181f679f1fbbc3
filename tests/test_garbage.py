"""Tests that session_tracer leaves no objects to the garbage collector.

It ends what it finds in whichever thread it happens to run. Where that thread has SQLite's write
lock, and what it ends is a cursor whose connection waits for the lock, both wait.
"""

from __future__ import annotations

import gc
import io
import threading
import weakref
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, delete, select, text
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import Exporter, dump, instrument, live_sessions
from session_tracer.testing import capture
from tests.library import Author, authors
from tests.signals.telling import Measurements, Traces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.twins import Twin


class Recorded(Traces):
    """Spans that are built when they end."""

    records = True


def measured(twin: Twin) -> AbstractContextManager[object]:
    """Traced at level A: metrics."""
    exporter = Exporter(meter_provider=Measurements().provider)
    return instrument(twin.factory, exporter=exporter)


def with_whole_sessions(twin: Twin) -> AbstractContextManager[object]:
    """Every session is handed on with its steps."""
    return instrument(twin.factory, exporter=Exporter(on_session=lambda _: None))


WAYS: dict[str, Callable[[Twin], AbstractContextManager[object]]] = {
    "metrics": measured,
    "recorded spans": lambda twin: Recorded().of(twin),
    "live spans": lambda twin: Traces().of(twin),
    "spans of statements": lambda twin: Recorded().of(twin, statement_spans=True),
    "whole sessions": with_whole_sessions,
    "facts": lambda twin: capture(twin.factory),
}


async def work(twin: Twin) -> None:
    """A unit of work with an object that is new, one that is read, and one read too late."""
    async with twin.session() as session:
        session.add_all(authors(2))
        await session.flush()
        author: Any = (await session.scalars(select(Author))).first()
        author.biography = "a life"
        await session.commit()
        await session.delete(author)
        await session.rollback()
        await session.execute(delete(Author))
        await session.commit()
    with suppress(DetachedInstanceError):
        author.books  # noqa: B018


@contextmanager
def left_behind() -> Iterator[list[object]]:
    """What only the garbage collector would end, of what the block makes."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def of_session_tracer(every: list[object]) -> list[str]:
    """The types of session_tracer's objects, and of frames."""
    types = {
        type(one) for one in every if isinstance(one, FrameType) or is_of_session_tracer(type(one))
    }
    return sorted(one.__qualname__ for one in types)


def is_of_session_tracer(kind: type) -> bool:
    """Whether the type is one of session_tracer's."""
    return kind.__module__.partition(".")[0] == "session_tracer"


@pytest.mark.parametrize("way", WAYS)
def test_a_unit_of_work_leaves_no_garbage(twin: Twin, way: str) -> None:
    async def story() -> list[str]:
        with WAYS[way](twin):
            await work(twin)  # what is made once
            with left_behind() as found:
                await work(twin)
        return of_session_tracer(found)

    assert twin.run(story) == []


def look() -> None:
    """Look at every session, as a person does who searches for what hangs."""
    assert len(live_sessions()) == 1
    written = io.StringIO()
    dump(written)
    assert "1 open" in written.getvalue()


def test_a_look_at_another_thread_keeps_nothing_of_its() -> None:
    class Held:
        """A variable of a function's, as a cursor is."""

    held: list[weakref.ref[Held]] = []
    entered, goes_on = threading.Event(), threading.Event()

    def in_use(session: Session) -> None:
        variable = Held()
        held.append(weakref.ref(variable))
        session.execute(text("SELECT 1"))
        entered.set()
        goes_on.wait(20)

    def use() -> None:
        with factory() as session:
            in_use(session)

    factory = sessionmaker(create_engine("sqlite://"))
    thread = threading.Thread(target=use)
    threshold = gc.get_threshold()
    with instrument(factory, exporter=Exporter()):
        gc.collect()
        gc.set_threshold(1_000_000)  # it does not run, and is not switched off either
        try:
            thread.start()
            assert entered.wait(20)
            for _ in range(3):
                look()
            goes_on.set()
            thread.join()
            assert [one() for one in held] == [None]
        finally:
            goes_on.set()
            gc.set_threshold(*threshold)

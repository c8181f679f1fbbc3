"""Stories of two threads in one session, and of threads that take turns."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError

from session_tracer.testing import capture
from tests.good_code.silence import assert_silent, only_sync
from tests.library import Author, authors, keep
from tests.stories.findings.due import Due, assert_found, until
from tests.stories.findings.gates import gate
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from tests.twins import Twin

pytestmark = only_sync


def wait_inside(session: Session, statement: Any) -> None:
    with suppress(SQLAlchemyError):
        session.execute(statement)  # <- first


def execute(session: Session) -> None:
    session.execute(text("SELECT 2"))  # <- second


def select_authors(session: Session) -> None:
    session.scalars(select(Author)).all()  # <- second


def flush(session: Session) -> None:
    session.add(Author(name="of another thread"))
    session.flush()  # <- second


def commit(session: Session) -> None:
    session.commit()  # <- second


def roll_back(session: Session) -> None:
    session.rollback()  # <- second


def close(session: Session) -> None:
    session.close()  # <- second


def begin_nested(session: Session) -> None:
    session.begin_nested()  # <- second


async def meet(twin: Twin, use: Callable[[Session], None]) -> None:
    def use_it() -> None:
        with suppress(SQLAlchemyError):
            use(session)

    with capture(twin.factory) as captured:
        async with gate(twin) as waits:
            session = twin.factory()  # <- opened
            first = threading.Thread(
                target=wait_inside, args=(session, waits.statement), name="first"
            )
            second = threading.Thread(target=use_it, name="second")
            first.start()
            await waits.reached()
            second.start()
            try:
                await until(lambda: captured.findings, is_async=False)
            finally:
                await waits.open()
                first.join()
                second.join()
            session.rollback()
            session.close()
    assert_found(
        captured,
        Due(
            id="concurrent-use",
            site=marked(use, "<- second"),
            opened=marked(meet, "<- opened"),
            remedy="with SessionLocal() as session:  # one for each thread",
            evidence={
                "used_by": 'thread "second"',
                "in_use_by": 'thread "first"',
                "in_use_at": str(marked(wait_inside, "<- first")),
            },
        ),
    )


@on_each_database
@pytest.mark.parametrize(
    "use", [execute, select_authors, flush, commit, roll_back, close, begin_nested]
)
def test_a_thread_that_comes_while_another_is_inside_a_statement(twin: Twin, use: Any) -> None:
    twin.run(lambda: meet(twin, use))


# Where SQLAlchemy refuses what it notices itself.


def flush_slowly(session: Session) -> None:
    session.add(Author(name="of the first thread"))
    session.flush()  # <- first


def flush_too(session: Session) -> None:
    session.add(Author(name="of the second thread"))
    session.flush()  # <- second


async def flush_at_once(twin: Twin) -> tuple[list[Any], Any]:
    """Two flushes, of which the second comes before the first has written anything."""
    is_flushing, is_refused = threading.Event(), threading.Event()
    refused: list[str] = []

    def wait(*_: Any) -> None:
        is_flushing.set()
        is_refused.wait(20)

    def second() -> None:
        try:
            flush_too(session)
        except InvalidRequestError as error:
            refused.append(str(error))
        is_refused.set()

    with capture(twin.factory) as captured:
        session = twin.factory()  # <- opened
        event.listen(session, "before_flush", wait)
        threads = [
            threading.Thread(target=flush_slowly, args=(session,), name="first"),
            threading.Thread(target=second, name="second"),
        ]
        threads[0].start()
        is_flushing.wait(20)
        threads[1].start()
        for thread in threads:
            thread.join()
        session.rollback()
        session.close()
    return refused, captured


def test_two_flushes_at_once(twin: Twin) -> None:
    async def story() -> None:
        refused, captured = await flush_at_once(twin)
        assert refused == ["Session is already flushing"]
        assert_found(
            captured,
            Due(
                id="concurrent-use",
                site=marked(flush_too, "<- second"),
                opened=marked(flush_at_once, "<- opened"),
                remedy="with SessionLocal() as session:  # one for each thread",
                evidence={
                    "used_by": 'thread "second"',
                    "in_use_by": 'thread "first"',
                    "in_use_at": str(marked(flush_slowly, "<- first")),
                },
            ),
        )

    twin.run(story)


# Beside it.


def in_turn(*works: Any) -> None:
    """Each in a thread of its own, after the one before."""
    for work, *arguments in works:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work, *arguments).result()


def test_threads_that_take_turns(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with capture(twin.factory) as captured:
            session = twin.factory()
            in_turn((execute, session), (select_authors, session), (flush, session))
            in_turn((begin_nested, session), (roll_back, session), (commit, session))
            in_turn((close, session))
        assert_silent(captured, sessions=1)

    twin.run(story)


def test_threads_that_wait_for_each_other(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        lock = threading.Lock()

        def work(session: Session) -> None:
            for _ in range(20):
                with lock:
                    select_authors(session)

        with (
            capture(twin.factory, repeats_of_one_select=999) as captured,
            twin.factory() as session,
            ThreadPoolExecutor(4) as pool,
        ):
            list(pool.map(work, [session] * 4))
        assert_silent(captured, sessions=1, statements=80)

    twin.run(story)


@on_each_database
def test_threads_with_a_session_each(twin: Twin) -> None:
    async def story() -> None:
        def work(statement: Any) -> None:
            with twin.factory() as session:
                wait_inside(session, statement)

        with capture(twin.factory) as captured:
            async with gate(twin) as waits:
                first = threading.Thread(target=work, args=(waits.statement,))
                first.start()
                await waits.reached()
                with twin.factory() as session:
                    execute(session)
                await waits.open()
                first.join()
        assert_silent(captured, sessions=2)

    twin.run(story)


def test_a_listener_that_uses_the_session_again(twin: Twin) -> None:
    async def story() -> None:
        def look(session: Session, *_: Any) -> None:
            session.execute(text("SELECT 3"))

        def executed(state: Any) -> None:
            if state.is_select and not state.execution_options.get("inner"):
                state.session.scalars(
                    select(Author).where(Author.id == 7), execution_options={"inner": True}
                ).all()

        with capture(twin.factory) as captured, twin.factory() as session:
            event.listen(session, "before_flush", look)
            event.listen(session, "after_flush", look)
            event.listen(session, "before_commit", look)
            event.listen(session, "do_orm_execute", executed)
            session.add(Author(name="looked at"))
            session.flush()
            select_authors(session)
            session.commit()
        assert_silent(captured, sessions=1, statements=5)

    twin.run(story)


def test_a_listener_that_is_refused_after_another_thread_began(twin: Twin) -> None:
    """It is the one that commits, all alone, who uses the session within its commit."""

    async def story() -> None:
        def look(session: Session, *_: Any) -> None:
            with pytest.raises(InvalidRequestError, match="state"):
                session.execute(text("SELECT 3"))

        with capture(twin.factory) as captured:
            session = twin.factory()
            event.listen(session, "after_commit", look)
            in_turn((flush, session), (commit, session), (close, session))
        assert captured.findings == []
        assert captured.metrics.get("session_tracer.errors", []) == []

    twin.run(story)

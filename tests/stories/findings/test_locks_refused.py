"""Stories of statements and commits that another transaction has fail, outside of a flush."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, delete, event, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import sessionmaker

from session_tracer.testing import Captured, capture
from tests.library import Author, Base, authors, keep
from tests.stories.lines import marked
from tests.twins import Twin, on_postgresql

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from sqlalchemy.orm import Session

RETRY = "roll back and repeat the whole transaction, at most a few times, where {} is caught"
SHORTER = "keep transactions short: commit before waiting, and write at their end"


# SQLite: one lock for the whole database.


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}", connect_args={"timeout": 0.01})
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


@contextmanager
def held(maker: sessionmaker[Session], begin: str) -> Iterator[sqlite3.Connection]:
    path = maker.kw["bind"].url.database
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(begin)
        yield other
        if other.in_transaction:
            other.execute("ROLLBACK")


def read(session: Session) -> None:
    session.scalars(select(Author)).all()  # <- refused


def read_by_text(session: Session) -> None:
    session.execute(text("SELECT name FROM authors"))  # <- refused


def change_in_bulk(session: Session) -> None:
    session.execute(update(Author).values(name="new"))  # <- refused


def remove_in_bulk(session: Session) -> None:
    session.execute(delete(Author))  # <- refused


@pytest.mark.parametrize(
    ("work", "begin", "operation"),
    [
        (read, "BEGIN EXCLUSIVE", "SELECT authors"),
        (read_by_text, "BEGIN EXCLUSIVE", "SELECT authors"),
        (change_in_bulk, "BEGIN IMMEDIATE", "UPDATE authors"),
        (remove_in_bulk, "BEGIN IMMEDIATE", "DELETE authors"),
    ],
)
def test_a_statement_that_meets_a_locked_database(
    maker: sessionmaker[Session], work: Any, begin: str, operation: str
) -> None:
    with held(maker, begin), capture(maker) as captured, suppress(Exception), maker() as session:
        work(session)
    (finding,) = captured.findings
    assert (finding.id, finding.severity) == ("failed-flush", "warning")
    assert finding.site == marked(work, "<- refused")
    assert finding.message == (
        f"{operation} failed with OperationalError: the database is locked by another transaction"
    )
    assert finding.remedy == RETRY.format("OperationalError")
    assert finding.evidence["alternatives"] == [SHORTER]
    assert finding.evidence["error_code"] == "SQLITE_BUSY"
    assert "trigger" not in finding.evidence
    (summary,) = captured.sessions
    assert summary.flushes == 0
    assert [log for log in captured.logs if log["event"] == "flush.failed"] == []


def commit(session: Session) -> None:
    session.add(Author(name="new"))
    session.flush()
    session.commit()  # <- refused


def test_a_connection_that_is_busy_itself_waits_for_no_other_transaction(
    maker: sessionmaker[Session],
) -> None:
    refused: list[str] = []

    @event.listens_for(maker.kw["bind"], "handle_error")
    def keep_code(context: Any) -> None:
        refused.append(context.original_exception.sqlite_errorname)

    with capture(maker) as captured, suppress(Exception), maker() as session:
        session.add_all([Author(name="one"), Author(name="two")])
        session.flush()
        driver: Any = session.connection().connection.dbapi_connection
        rows = driver.execute("UPDATE authors SET biography = 'new' RETURNING id")
        rows.fetchone()
        session.commit()
    assert refused == ["SQLITE_BUSY"]
    assert captured.findings == []


def commit_by_block(session: Session) -> None:
    with session.begin():  # <- refused
        session.add(Author(name="new"))
        session.flush()


@pytest.mark.parametrize("work", [commit, commit_by_block])
def test_a_commit_that_waits_for_a_reader_in_vain(maker: sessionmaker[Session], work: Any) -> None:
    with maker.begin() as session:
        session.add(Author(name="there"))
    with held(maker, "BEGIN") as other:
        assert other.execute("SELECT name FROM authors").fetchone() == ("there",)
        reader = other.execute("SELECT name FROM authors")
        reader.fetchone()
        with capture(maker) as captured, suppress(Exception), maker() as session:
            work(session)
    (finding,) = captured.findings
    assert (finding.id, finding.site) == ("failed-flush", marked(work, "<- refused"))
    assert finding.message == (
        "COMMIT failed with OperationalError: the database is locked by another transaction"
    )


# SQLite: a lock that the same thread or task has itself.


def hurry(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 10")
    cursor.close()


async def count_in_bulk(session: Any) -> None:
    await session.execute(update(Author).values(biography="read"))  # <- refused


async def count_by_flush(session: Any) -> None:
    session.add(Author(name="counted"))
    await session.flush()  # <- refused


async def count_apart(twin: Twin, count: Any) -> None:
    async with twin.session() as session:
        await count(session)
        await session.commit()


async def write_and_count(twin: Twin, count: Any, *, hand_over: bool, commit: bool) -> None:
    async with twin.session() as session:  # <- writes
        session.add(Author(name="new"))
        await session.flush()
        if commit:
            await session.commit()
        await (count(session) if hand_over else count_apart(twin, count))
        await session.rollback()


@pytest.mark.parametrize("count", [count_in_bulk, count_by_flush])
def test_a_session_that_waits_for_the_lock_of_its_own_thread(twin: Twin, count: Any) -> None:
    async def story() -> None:
        event.listen(getattr(twin.engine, "sync_engine", twin.engine), "connect", hurry)
        owner, line = "task" if twin.is_async else "thread", marked(write_and_count, "<- writes")
        for hand_over, commit in ((False, False), (True, False), (False, True)):
            with capture(twin.factory, ignore=IGNORED) as captured, suppress(Exception):
                await write_and_count(twin, count, hand_over=hand_over, commit=commit)
            if hand_over or commit:
                assert captured.findings == []
                continue
            (finding,) = captured.findings
            other = finding.evidence["other_session_id"]
            assert (finding.id, finding.site) == ("failed-flush", marked(count, "<- refused"))
            assert finding.message.endswith(f"locked by session {other[:6]} of the same {owner}")
            assert finding.remedy == (
                f"pass the session that was opened at {line} to this code, or commit it first: it "
                "has written and keeps the lock for as long as this code waits or repeats"
            )
            assert finding.evidence["other_opened_at"] == str(line)
            assert "alternatives" not in finding.evidence

    twin.run(story)


def test_it_was_opened_before_it_was_traced(maker: sessionmaker[Session]) -> None:
    def count() -> None:
        with maker() as session:
            session.add(Author(name="counted"))
            session.flush()

    with maker() as other:
        other.add(Author(name="new"))
        with capture(maker, ignore=IGNORED) as captured:
            other.flush()
            with suppress(Exception):
                count()
        other.rollback()
    (finding,) = captured.findings
    session = finding.evidence["other_session_id"][:6]
    assert finding.message.endswith(
        f"the database is locked by session {session} of the same thread"
    )
    assert finding.remedy.startswith("pass that session to this code, or commit it first: ")
    assert "other_opened_at" not in finding.evidence


IGNORED = {"nested-sessions", "split-writes"}


def test_the_lock_of_another_thread_is_one_to_wait_for(maker: sessionmaker[Session]) -> None:
    def leave() -> None:
        with maker() as session:
            session.add(Author(name="here"))
            session.flush()

    with ThreadPoolExecutor(1) as pool, capture(maker) as captured, maker() as other:
        other.add(Author(name="there"))
        other.flush()
        with suppress(Exception):
            pool.submit(leave).result()
        other.rollback()
    (finding,) = captured.findings
    assert finding.remedy == RETRY.format("OperationalError")


class Patience(Exception):
    """What an application raises after some attempts."""


def repeat(maker: sessionmaker[Session], attempts: int, end: Callable[[], object]) -> list[Author]:
    for _ in range(attempts):
        with maker() as session:
            try:
                return list(session.scalars(select(Author)))
            except OperationalError:
                session.rollback()
                end()
    raise Patience


def test_the_whole_transaction_repeated_is_silent_and_right(maker: sessionmaker[Session]) -> None:
    with held(maker, "BEGIN EXCLUSIVE") as other, capture(maker) as captured:
        assert repeat(maker, 2, lambda: other.execute("ROLLBACK")) == []
    assert captured.findings == []


def test_one_who_asks_for_a_lock_again_and_again_waits_for_it(
    maker: sessionmaker[Session],
) -> None:
    with held(maker, "BEGIN EXCLUSIVE"), capture(maker) as captured, pytest.raises(Patience):
        repeat(maker, 25, lambda: None)
    assert captured.findings == []


def test_a_statement_that_is_repeated_in_its_own_transaction(maker: sessionmaker[Session]) -> None:
    with held(maker, "BEGIN EXCLUSIVE") as other, capture(maker) as captured, maker() as session:
        for _ in range(3):
            try:
                session.scalars(select(Author)).all()
            except OperationalError:
                if other.in_transaction:
                    other.execute("ROLLBACK")
        session.commit()
    assert captured.findings == []


def test_an_error_that_the_caller_expects_by_name(maker: sessionmaker[Session]) -> None:
    def count() -> int:
        with maker() as session:
            return len(session.scalars(select(Author)).all())

    with held(maker, "BEGIN EXCLUSIVE"), capture(maker) as captured, suppress(OperationalError):
        count()
    assert captured.findings == []


@pytest.mark.parametrize("statement", ["SELECT nonsense", "SELECT * FROM nowhere", "no SQL"])
def test_another_error_of_a_statement_is_no_lock(
    maker: sessionmaker[Session], statement: str
) -> None:
    with capture(maker) as captured, suppress(DBAPIError), maker() as session:
        session.execute(text(statement))
    assert captured.findings == []


def test_a_flush_that_is_refused_is_reported_as_the_flush_alone(
    maker: sessionmaker[Session],
) -> None:
    def add() -> None:
        with maker() as session, session.begin():
            session.add(Author(name="new"))

    with held(maker, "BEGIN IMMEDIATE"), capture(maker) as captured, suppress(Exception):
        add()
    (finding,) = captured.findings
    assert finding.message.startswith("a commit's flush of 1 Author failed")


# PostgreSQL: a lock for each row.


async def take(session: Any) -> None:
    await session.scalars(select(Author).with_for_update(nowait=True))  # <- refused


async def take_and_go_on(session: Any) -> None:
    with suppress(DBAPIError):
        await session.scalars(select(Author).with_for_update(nowait=True))
    await session.scalars(select(Author))  # <- used


async def change_what_has_changed(session: Any) -> None:
    await session.execute(update(Author).values(name="mine"))  # <- refused


async def meet(twin: Twin, work: Callable[[Any], Awaitable[object]]) -> Captured:
    """What is found of work while another transaction holds the author's row."""
    await keep(twin, *authors(1))
    async with twin.session() as other:
        await other.scalars(select(Author).with_for_update())
        with capture(twin.factory) as captured, suppress(Exception):
            async with twin.session() as session:
                await work(session)
    return captured


@on_postgresql
def test_a_row_that_another_transaction_has_locked(twin: Twin) -> None:
    async def story() -> None:
        (finding,) = (await meet(twin, take)).findings
        assert (finding.id, finding.site) == ("failed-flush", marked(take, "<- refused"))
        error = "DBAPIError" if twin.is_async else "OperationalError"
        assert finding.message == (
            f"SELECT authors failed with {error}: the database is locked by another transaction"
        )
        assert finding.remedy == RETRY.format(error)
        assert finding.evidence["error_code"] == "55P03"

    twin.run(story)


@on_postgresql
def test_a_session_that_is_used_after_a_refused_lock_is_reported_as_that_alone(twin: Twin) -> None:
    async def story() -> None:
        captured = await meet(twin, take_and_go_on)
        assert [one.id for one in captured.findings] == ["pending-rollback"]

    twin.run(story)


@on_postgresql
def test_a_transaction_whose_snapshot_is_too_old(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured, suppress(Exception):
            async with twin.session() as session:
                isolated = {"isolation_level": "REPEATABLE READ"}
                await session.connection(execution_options=isolated)
                await session.scalars(select(Author))
                await twin.execute(lambda it: it.execute(update(Author).values(name="theirs")))
                await change_what_has_changed(session)
        found = [one for one in captured.findings if one.id == "failed-flush"]
        assert [one.site for one in found] == [marked(change_what_has_changed, "<- refused")]
        assert found[0].message.endswith(": another transaction has changed the same rows")
        assert found[0].evidence["error_code"] == "40001"

    twin.run(story)

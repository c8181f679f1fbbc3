"""Tests where a finding is raised, and that nothing is lost or hidden by it."""

from __future__ import annotations

import asyncio
import gc
import pickle
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import async_scoped_session
from sqlalchemy.orm import close_all_sessions, scoped_session, selectinload

from session_tracer import CallSite, Exporter, Finding, SessionMisuse, instrument, silence
from session_tracer import facts as what
from session_tracer.testing import capture
from tests.detectors.feeding import bare_finding
from tests.library import Author, authors, keep
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report
    from tests.twins import Twin


@dataclass
class After:
    """Finds something as soon as this many facts of a kind were published."""

    kind: type[Any]
    count: int = 1
    id: str = "too-many"

    @property
    def facts(self) -> tuple[type[Fact], ...]:
        return (self.kind,)

    def memory(self) -> list[Fact]:
        return []

    def judge(self, fact: Any, report: Report, memory: list[Fact]) -> Iterator[Finding]:
        memory.append(fact)
        if len(memory) == self.count:
            message = f"{self.kind.__name__} for the {self.count}. time"
            yield report.finding(self.id, "error", message, "less of it", fact.site)


def raising(twin: Twin, *detectors: After, **options: Any) -> Any:
    """Trace the twin's sessions, and raise what these find."""
    return capture(twin.factory, detectors=detectors, **{"raise_on": {"error"}, **options})


def led_through(error: BaseException) -> set[CallSite]:
    """The lines that the traceback leads through."""
    return {
        CallSite(frame.f_code.co_filename, line, frame.f_code.co_qualname.rpartition(".")[2])
        for frame, line in traceback.walk_tb(error.__traceback__)
    }


@pytest.fixture
def lent(twin: Twin) -> Counter[str]:
    """How many connections the pool has lent, and how many of them came back."""
    counted: Counter[str] = Counter()
    pool = getattr(twin.engine, "sync_engine", twin.engine).pool
    event.listen(pool, "checkout", lambda *_: counted.update(["out"]))
    event.listen(pool, "checkin", lambda *_: counted.update(["in"]))
    return counted


# What is raised.


FOUND = Finding(
    id="n-plus-one",
    severity="warning",
    message="Author.books was lazily loaded for 12 authors",
    remedy="select(Author).options(\n    selectinload(Author.books)\n)",
    site=CallSite("/srv/shop/app/report.py", 33, "totals"),
    session_id="0123456789abcdef",
    session_name="default",
    session_site=CallSite("/srv/shop/app/db.py", 12, "get_db"),
    entity="Author",
    attribute="books",
    count=12,
    evidence={"loads": 12},
)


def test_it_names_what_where_and_the_remedy() -> None:
    assert (
        str(SessionMisuse(FOUND))
        == """\
n-plus-one: Author.books was lazily loaded for 12 authors
    at         /srv/shop/app/report.py:33 in totals()
    opened at  /srv/shop/app/db.py:12 in get_db()
    remedy     select(Author).options(
                   selectinload(Author.books)
               )
    help       session-tracer findings n-plus-one"""
    )


def test_it_names_no_more_than_it_knows() -> None:
    nowhere = bare_finding("own", "it is so")
    assert (
        str(SessionMisuse(nowhere)) == "own: it is so\n    help       session-tracer findings own"
    )


def test_it_can_be_pickled_as_a_worker_of_tests_does() -> None:
    misuse = SessionMisuse(FOUND)
    misuse.add_note("and another")
    again = pickle.loads(pickle.dumps(misuse))
    assert (type(again), again.finding, str(again), again.__notes__) == (
        SessionMisuse,
        FOUND,
        str(misuse),
        ["and another"],
    )


# Where it is raised.


async def read_twice(session: Any) -> None:
    await session.execute(select(Author))
    await session.execute(select(Author))  # second


def test_a_select_raises_at_its_own_line(twin: Twin, lent: Counter[str]) -> None:
    async def story() -> None:
        await keep(twin, Author(name="Jane Austen"))
        with raising(twin, After(what.StatementExecuted, 2)) as captured:
            async with twin.session() as session:
                session.add(Author(name="Mary Shelley"))
                await session.flush()
                with pytest.raises(SessionMisuse) as raised:
                    await read_twice(session)
                # The transaction goes on as if nothing had been.
                assert session.in_transaction()
                assert len((await session.scalars(select(Author))).all()) == 2
                await session.commit()
                await session.rollback()
                assert len((await session.scalars(select(Author))).all()) == 2
        assert raised.value.finding is captured.findings[0]
        assert raised.value.__context__ is None
        assert not hasattr(raised.value, "__notes__")
        (summary,) = captured.sessions
        assert (summary.outcome, len(summary.findings)) == ("committed", 1)

    twin.run(story)
    assert lent["in"] == lent["out"] > 0


def test_the_traceback_leads_to_the_applications_line(twin: Twin) -> None:
    async def story() -> None:
        with raising(twin, After(what.StatementExecuted, 2)):
            async with twin.session() as session:
                with pytest.raises(SessionMisuse) as raised:
                    await read_twice(session)
        line = marked(read_twice, "second")
        assert raised.value.finding.site == line
        assert line in led_through(raised.value)

    twin.run(story)


def titles(session: Any) -> list[str]:
    (author,) = session.scalars(select(Author)).all()
    return [book.title for book in author.books]  # lazily


def test_a_lazy_load_raises_at_the_line_that_reads(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with raising(twin, After(what.AttributeLoaded)):
            async with twin.session() as session:
                with pytest.raises(SessionMisuse) as raised:
                    await session.run_sync(titles)
                assert marked(titles, "lazily") in led_through(raised.value)
                # What was not loaded can still be.
                assert len(await session.run_sync(titles)) == 2

    twin.run(story)


def test_an_eager_load_raises_and_can_be_made_up_for(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2, books_each=2))
        eagerly = select(Author).options(selectinload(Author.books))
        with raising(twin, After(what.StatementExecuted, 2)):
            async with twin.session() as session:
                with pytest.raises(SessionMisuse):
                    (await session.scalars(eagerly)).all()
                found = (await session.scalars(eagerly)).all()
                assert [len(author.books) for author in found] == [2, 2]

    twin.run(story)


def names(found: list[Author]) -> list[str]:
    return [author.name for author in found]  # expired


def test_a_reload_raises_and_can_be_made_up_for(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with raising(twin, After(what.AttributeLoaded)):
            async with twin.session() as session:
                found = (await session.scalars(select(Author))).all()
                await session.commit()
                with pytest.raises(SessionMisuse) as raised:
                    await session.run_sync(lambda _: names(found))
                assert marked(names, "expired") in led_through(raised.value)
                assert await session.run_sync(lambda _: names(found)) == ["author 0", "author 1"]

    twin.run(story)


def test_what_writes_raises_nothing_before_the_commit(twin: Twin) -> None:
    async def story() -> None:
        with raising(twin, After(what.StatementExecuted)):
            async with twin.session() as session:
                await session.execute(insert(Author).values(name="Jane Austen"))
                with pytest.raises(SessionMisuse):
                    await session.commit()
        async with twin.session() as session:
            assert len((await session.scalars(select(Author))).all()) == 1

    twin.run(story)


def test_what_a_flush_shows_is_raised_by_the_commit(twin: Twin, lent: Counter[str]) -> None:
    async def commit(session: Any) -> None:
        await session.commit()  # commits

    async def story() -> None:
        with raising(twin, After(what.FlushCompleted)):
            session = twin.session()
            session.add(Author(name="Jane Austen"))
            with pytest.raises(SessionMisuse) as raised:
                await commit(session)
            assert not session.in_transaction()
            await session.close()
        assert marked(commit, "commits") in led_through(raised.value)
        async with twin.session() as session:
            assert len((await session.scalars(select(Author))).all()) == 1

    twin.run(story)
    assert lent["in"] == lent["out"] > 0


@pytest.mark.parametrize("ending", ["close", "reset", "invalidate"])
def test_what_the_end_shows_is_raised_by_it(twin: Twin, lent: Counter[str], ending: str) -> None:
    async def leave(session: Any) -> None:
        await getattr(session, ending)()  # leaves

    async def story() -> None:
        with raising(twin, After(what.SessionClosed)) as captured:
            session = twin.session()
            await session.execute(select(Author))
            with pytest.raises(SessionMisuse) as raised:
                await leave(session)
            assert marked(leave, "leaves") in led_through(raised.value)
            assert not session.in_transaction()
            await session.execute(select(Author))
            with pytest.raises(SessionMisuse):
                await leave(session)
        assert len(captured.sessions) == 2

    twin.run(story)
    assert lent["in"] == lent["out"] > 0


async def read_in_a_block(twin: Twin) -> None:
    async with twin.session() as session:  # block
        await session.execute(select(Author))


def test_the_end_of_the_block_is_the_close(twin: Twin, lent: Counter[str]) -> None:
    async def story() -> None:
        finds = After(what.SessionClosed)
        with raising(twin, finds), pytest.raises(SessionMisuse) as raised:
            await read_in_a_block(twin)
        assert marked(read_in_a_block, "block") in led_through(raised.value)

    twin.run(story)
    assert lent["in"] == lent["out"] > 0


def test_a_block_that_commits_has_committed(twin: Twin, lent: Counter[str]) -> None:
    async def write() -> None:
        if twin.is_async:
            async with twin.factory.begin() as session:
                session.add(Author(name="Jane Austen"))
        else:
            with twin.factory.begin() as session:
                session.add(Author(name="Jane Austen"))

    async def story() -> None:
        with raising(twin, After(what.FlushCompleted)), pytest.raises(SessionMisuse):
            await write()
        async with twin.session() as session:
            assert len((await session.scalars(select(Author))).all()) == 1

    twin.run(story)
    assert lent["in"] == lent["out"] > 0


def test_several_are_raised_as_one(twin: Twin) -> None:
    async def story() -> None:
        both = After(what.FlushCompleted), After(what.TransactionEnded, id="again")
        with raising(twin, *both) as captured:
            async with twin.session() as session:
                session.add(Author(name="Jane Austen"))
                with pytest.raises(SessionMisuse) as raised:
                    await session.commit()
        first, second = captured.findings
        assert raised.value.finding == first
        assert raised.value.__notes__ == [f"and {SessionMisuse(second)}"]

    twin.run(story)


def test_what_two_tracers_find_is_raised_once(twin: Twin) -> None:
    async def story() -> None:
        finds = After(what.StatementExecuted)
        with raising(twin, finds), raising(twin, finds):
            async with twin.session() as session:
                with pytest.raises(SessionMisuse) as raised:
                    await session.execute(select(Author))
                await session.execute(select(Author))
        assert not hasattr(raised.value, "__notes__")

    twin.run(story)


# Where it is not.


@pytest.mark.parametrize(
    "options",
    [
        {"raise_on": set()},
        {"raise_on": {"error"}, "severities": {"too-many": "warning"}},
        {"raise_on": {"another-one"}},
        {"ignore": {"too-many"}},
        {"ignore": {"*@tests/test_misuse.py"}},
    ],
)
def test_what_is_not_meant_is_not_raised(twin: Twin, options: dict[str, Any]) -> None:
    async def story() -> None:
        with raising(twin, After(what.StatementExecuted), **options):
            async with twin.session() as session:
                await session.execute(select(Author))

    twin.run(story)


def test_what_is_silenced_is_not_raised(twin: Twin) -> None:
    async def story() -> None:
        with raising(twin, After(what.StatementExecuted)) as captured:
            async with twin.session() as session:
                with silence("too-many", reason="it is the test"):
                    await session.execute(select(Author))
                await session.execute(select(Author))
        assert captured.findings == []

    twin.run(story)


def test_an_exception_that_leaves_the_block_is_the_only_one(twin: Twin, lent: Counter[str]) -> None:
    error = KeyError("somebody's")

    async def fail() -> None:
        async with twin.session() as session:
            await session.execute(select(Author))
            raise error

    async def story() -> None:
        finds = After(what.SessionClosed)
        with raising(twin, finds) as captured, pytest.raises(KeyError) as raised:
            await fail()
        assert raised.value is error
        assert (error.__context__, error.__cause__, hasattr(error, "__notes__")) == (
            None,
            None,
            False,
        )
        assert len(captured.findings) == 1

    twin.run(story)
    assert lent["in"] == lent["out"] > 0


def test_an_exception_that_leaves_a_block_that_commits_is_the_only_one(
    twin: Twin,
) -> None:
    error = KeyError("somebody's")

    async def write() -> None:
        if twin.is_async:
            async with twin.factory.begin() as session:
                await session.execute(text("SELECT 1"))
                raise error
        with twin.factory.begin() as session:
            session.execute(text("SELECT 1"))
            raise error

    async def story() -> None:
        with raising(twin, After(what.SessionClosed)), pytest.raises(KeyError) as raised:
            await write()
        assert raised.value is error

    twin.run(story)


@pytest.mark.parametrize("act", ["read", "commit", "close"])
def test_what_is_being_handled_is_not_hidden(twin: Twin, act: str) -> None:
    """Whoever handles an exception may want to raise it again."""
    error = KeyError("somebody's")

    async def handle(session: Any) -> None:
        try:
            raise error
        except KeyError:
            if act == "read":
                await session.execute(select(Author))
            elif act == "commit":
                await session.commit()
            else:
                await session.close()
            raise

    async def story() -> None:
        finds = After(
            {"read": what.StatementExecuted, "close": what.SessionClosed}.get(
                act, what.FlushCompleted
            )
        )
        with raising(twin, finds) as captured:
            session = twin.session()
            session.add(Author(name="Jane Austen"))
            with pytest.raises(KeyError) as raised:
                await handle(session)
            assert raised.value is error
            assert len(captured.findings) == 1
            if act == "close":
                await session.close()
            else:  # It is due still.
                with pytest.raises(SessionMisuse):
                    await session.close()

    twin.run(story)


def test_an_error_of_the_database_is_the_only_one(twin: Twin, lent: Counter[str]) -> None:
    async def story() -> None:
        await keep(twin, Author(name="Jane Austen"))
        with raising(twin, After(what.StatementExecuted), After(what.FlushFailed)):
            session = twin.session()
            with pytest.raises(DBAPIError) as wrong:
                await session.execute(text("SELECT nothing FROM nowhere"))
            await session.rollback()
            session.add(Author(name="Jane Austen"))
            with pytest.raises(IntegrityError) as twice:
                await session.commit()
            await session.rollback()
            with pytest.raises(SessionMisuse):
                await session.close()
        for raised in (wrong, twice):
            assert not isinstance(raised.value.__context__, SessionMisuse)

    twin.run(story)
    assert lent["in"] == lent["out"] > 0


def test_a_flush_is_written_to_its_end(twin: Twin) -> None:
    """A SELECT in the middle of it raises nothing; the next one does."""

    async def story() -> None:
        reads = []

        def read(session: Any, *_: Any) -> None:
            reads.append(session.execute(select(Author.id)).all())

        with raising(twin, After(what.StatementExecuted)):
            async with twin.session() as session:
                event.listen(session.sync_session, "after_flush", read)
                session.add(Author(name="Jane Austen"))
                await session.flush()
                assert reads == [[(1,)]]
                with pytest.raises(SessionMisuse):
                    await session.execute(select(Author))
                await session.commit()
        async with twin.session() as session:
            assert len((await session.scalars(select(Author))).all()) == 1

    twin.run(story)


def test_a_commit_is_carried_out(twin: Twin) -> None:
    """A SELECT on the way to it raises nothing; the commit does when it is done."""

    async def story() -> None:
        with raising(twin, After(what.StatementExecuted)):
            async with twin.session() as session:
                read = lambda session: session.execute(select(Author.id))  # noqa: E731 - shorter
                event.listen(session.sync_session, "before_commit", read)
                session.add(Author(name="Jane Austen"))
                with pytest.raises(SessionMisuse):
                    await session.commit()
        async with twin.session() as session:
            assert len((await session.scalars(select(Author))).all()) == 1

    twin.run(story)


def test_the_garbage_collector_raises_nothing(twin: Twin) -> None:
    if twin.is_async:
        pytest.skip("SQLAlchemy warns of an asynchronous session that is not closed")

    async def story() -> None:
        with raising(twin, After(what.SessionClosed)) as captured:
            session = twin.factory()
            session.execute(select(Author))
            del session
            gc.collect()
            assert len(captured.sessions) == 1
        assert len(captured.findings) == 1

    twin.run(story)


def test_the_receiver_of_the_error_can_use_the_session(twin: Twin) -> None:
    if twin.is_async:
        pytest.skip("an exporter cannot await")
    reads = []

    async def story() -> None:
        session = twin.factory()
        exporter = Exporter(
            on_finding=lambda _: reads.append(session.execute(select(Author)).all())
        )
        detectors = [After(what.StatementExecuted)]
        with (
            instrument(twin.factory, exporter=exporter, detectors=detectors, raise_on={"error"}),
            pytest.raises(SessionMisuse),
        ):
            session.execute(select(Author))
        session.close()

    twin.run(story)
    assert reads == [[]]


def test_a_scoped_session_forgets_the_session_that_it_removes(twin: Twin) -> None:
    async def story() -> None:
        scoped: Any = (
            async_scoped_session(twin.factory, asyncio.current_task)
            if twin.is_async
            else scoped_session(twin.factory)
        )
        with raising(twin, After(what.SessionClosed)):
            first = scoped()
            await read(scoped)
            with pytest.raises(SessionMisuse):
                await removal(scoped)
            assert not scoped.registry.has()
            assert scoped() is not first
        await removal(scoped)

    async def read(scoped: Any) -> None:
        result = scoped.execute(select(Author))
        if twin.is_async:
            await result

    async def removal(scoped: Any) -> None:
        removed = scoped.remove()
        if twin.is_async:
            await removed

    twin.run(story)


def test_where_every_session_is_closed_none_is_left_open(twin: Twin) -> None:
    if twin.is_async:
        pytest.skip("it closes in the same way")

    async def story() -> None:
        with raising(twin, After(what.SessionClosed)) as captured:
            sessions = [twin.factory() for _ in range(3)]
            for session in sessions:
                session.execute(select(Author))
            close_all_sessions()
        assert [session.in_transaction() for session in sessions] == [False] * 3
        assert len(captured.findings) == 3

    twin.run(story)

"""Stories of flushes that fail, however they were asked for, and of what is no failed flush."""

from __future__ import annotations

import unittest
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from session_tracer.testing import Captured, capture
from tests.good_code.silence import only_sync
from tests.library import Author, Book, Loan, authors, keep
from tests.stories.findings.due import Above, Due, assert_found
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.twins import Twin


async def tell(twin: Twin, work: Callable[[Any], Awaitable[object]]) -> Captured:
    with capture(twin.factory) as captured, suppress(Exception):
        async with twin.session() as session:  # <- opened
            await work(session)
    return captured


async def flush(session: Any) -> None:
    session.add_all([Author(name=None), Author(name="new", books=[Book(title="first")])])
    await session.flush()  # <- flushed


async def commit(session: Any) -> None:
    (await session.get(Book, 1)).copies = -1
    try:
        await session.commit()  # <- flushed
    except IntegrityError:
        await session.rollback()
        raise


async def autoflush(session: Any) -> None:
    session.add(Author(name="author 0"))
    await session.scalars(select(Book))  # <- flushed


def books_of(author: Author) -> object:
    return author.books  # <- flushed


async def read_lazily(session: Any) -> None:
    author = await session.get(Author, 1)
    session.add(Author(name="author 0"))
    await session.run_sync(lambda _: books_of(author))


async def begin_a_savepoint(session: Any) -> None:
    session.add(Author(name=None))
    async with session.begin_nested():  # <- flushed
        pass


async def delete(session: Any) -> None:
    await session.execute(insert(Loan).values(book_id=1))
    await session.delete(await session.get(Author, 1))
    session.add(Author(name=None))
    await session.flush()  # <- flushed


FAILED: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "flush()": (
        flush,
        "Author",
        "name",
        {"trigger": "explicit", "new": {"Author": 2, "Book": 1}},
    ),
    "commit()": (
        commit,
        "Book",
        "copies_are_not_negative",
        {"trigger": "commit", "dirty": {"Book": 1}},
    ),
    "autoflush": (
        autoflush,
        "Author",
        "authors_name_key",
        {"trigger": "autoflush", "new": {"Author": 1}},
    ),
    "a lazy load": (
        read_lazily,
        "Author",
        "authors_name_key",
        {"trigger": "autoflush", "new": {"Author": 1}},
    ),
    "a savepoint that is to begin": (
        begin_a_savepoint,
        "Author",
        "name",
        {"trigger": "savepoint", "new": {"Author": 1}},
    ),
    "a deletion": (
        delete,
        "Author",
        "",
        {"trigger": "explicit", "new": {"Author": 1}, "deleted": {"Author": 1, "Book": 1}},
    ),
}


OUTSIDE = "catch IntegrityError outside of the session's block, which rolls back"


@on_each_database
@pytest.mark.parametrize("what", FAILED)
def test_a_flush_that_fails_by(twin: Twin, what: str) -> None:
    how, entity, constraint, held = FAILED[what]

    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        captured = await tell(twin, how)
        block = "async with" if twin.is_async else "with"
        remedy = OUTSIDE
        others = [f"{block} session.begin_nested(): around the code that may fail"]
        if constraint == "authors_name_key":
            others.append("insert(...).on_conflict_do_nothing(), if the row may exist")
        elif constraint == "name" or how is delete:
            others.insert(0, remedy)
            remedy = "set Author.name before the flush"
        evidence = {
            "error_type": "sqlalchemy.exc.IntegrityError",
            **held,
            "duration_ms": Above(0),
            "alternatives": others,
        }
        due = Due(
            id="failed-flush",
            site=marked(books_of if how is read_lazily else how, "<- flushed"),
            opened=marked(tell, "<- opened"),
            remedy=remedy,
            entity=entity,
            evidence=evidence,
        )
        assert_found(captured, due)
        named = captured.findings[0].evidence.get("constraint", "")
        # SQLite names none, and PostgreSQL's drivers no NOT NULL.
        is_named = twin.database == "postgresql" and constraint not in ("", "name")
        assert named == (constraint if is_named else "")

    twin.run(story)


AROUND = "catch IntegrityError outside of the savepoint's block: only the savepoint is rolled back"


async def leave_a_savepoint(session: Any) -> None:
    session.add(Author(name="kept"))
    async with session.begin_nested():  # <- flushed
        session.add(Author(name=None))


async def flush_in_a_savepoint(session: Any) -> None:
    session.add(Author(name="kept"))
    async with session.begin_nested():
        session.add(Author(name=None))
        await session.flush()  # <- flushed


@on_each_database
@pytest.mark.parametrize("how", [leave_a_savepoint, flush_in_a_savepoint])
def test_a_flush_that_fails_in_a_savepoint(twin: Twin, how: Any) -> None:
    async def story() -> None:
        captured = await tell(twin, how)
        due = Due(
            id="failed-flush",
            site=marked(how, "<- flushed"),
            opened=marked(tell, "<- opened"),
            remedy="set Author.name before the flush",
            entity="Author",
            evidence={
                "new": {"Author": 1},
                "alternatives": [AROUND],
            },
        )
        assert_found(captured, due)

    twin.run(story)


# Handled: the error is caught where it is expected, and what had failed is rolled back.


async def roll_back(session: Any) -> None:
    session.add(Author(name=None))
    try:
        await session.commit()
    except Exception:
        await session.rollback()


async def roll_back_and_go_on(session: Any) -> None:
    await roll_back(session)
    session.add(Author(name="another"))
    await session.commit()


async def catch_around_a_savepoint(session: Any) -> None:
    session.add(Author(name="kept"))
    for name in ("one", None, "two", None):
        try:
            async with session.begin_nested():
                session.add(Author(name=name))
        except IntegrityError:
            continue
    await session.commit()


async def roll_a_savepoint_back(session: Any) -> None:
    savepoint = session.begin_nested()
    if hasattr(savepoint, "__await__"):
        await savepoint
    session.add(Author(name=None))
    with suppress(IntegrityError):
        await session.flush()
    await savepoint.rollback()
    await session.commit()


async def catch_around_a_transaction(session: Any) -> None:
    with suppress(IntegrityError):
        async with session.begin():
            session.add(Author(name=None))


async def get_or_create(session: Any) -> None:
    for _ in range(2):
        session.add(Author(name="found"))
        try:
            await session.flush()
        except IntegrityError:
            await session.rollback()
            await session.scalars(select(Author).where(Author.name == "found"))
        else:
            await session.commit()


async def leave_it_to_close(session: Any) -> None:
    session.add(Author(name=None))
    with suppress(IntegrityError):
        await session.commit()


async def raise_what_callers_know(session: Any) -> None:
    try:
        await roll_back_and_raise(session)
    except LookupError:
        await session.close()


async def roll_back_and_raise(session: Any) -> None:
    session.add(Author(name=None))
    try:
        await session.commit()
    except IntegrityError as error:
        await session.rollback()
        raise LookupError("no name") from error


async def expect_it(session: Any) -> None:
    session.add(Author(name=None))
    with pytest.raises(IntegrityError):
        await session.flush()
    await session.rollback()


async def close_where_it_is_caught(session: Any) -> None:
    session.add(Author(name=None))
    try:
        await session.commit()
    except Exception:
        await session.close()


HANDLED = [
    roll_back,
    roll_back_and_go_on,
    catch_around_a_savepoint,
    roll_a_savepoint_back,
    catch_around_a_transaction,
    get_or_create,
    leave_it_to_close,
    raise_what_callers_know,
    expect_it,
    close_where_it_is_caught,
]


@pytest.mark.parametrize("how", HANDLED)
def test_what_is_handled_is_logged_and_is_no_finding(twin: Twin, how: Any) -> None:
    async def story() -> None:
        captured = await tell(twin, how)
        assert_found(captured)
        levels = {log["level"] for log in captured.logs if log["event"] == "flush.failed"}
        assert levels == {"info"}

    twin.run(story)


async def create(twin: Twin) -> None:
    async with twin.session() as session, session.begin():
        session.add(Author(name=None))


async def answer(twin: Twin) -> int:
    try:
        await create(twin)
    except IntegrityError:
        return 409
    return 201


async def try_again(twin: Twin) -> int:
    """A retry decorator of the application's own, without the decorator."""
    for attempt in range(3):
        try:
            await create(twin)
        except (IntegrityError, LookupError):
            continue
        return attempt
    return 409


async def try_the_next_or_refuse(twin: Twin) -> int:
    """Raises an error of its own only for another constraint."""
    for _ in range(3):
        try:
            await create(twin)
        except IntegrityError as error:
            if "name" in str(error):
                continue
            raise Taken from None
    return 409


async def answer_or_raise(twin: Twin) -> int:
    try:
        await create(twin)
    except (LookupError, IntegrityError) as error:
        with suppress(LookupError):
            if isinstance(error, IntegrityError):
                return 409
        raise
    return 201


async def leave_the_loop(twin: Twin) -> int:
    while True:
        try:
            await create(twin)
        except SQLAlchemyError as error:
            if error.args:
                break
            raise
    return 409


def is_duplicate(error: Exception) -> bool:
    return isinstance(error, IntegrityError)


async def ask_a_function(twin: Twin) -> int:
    try:
        await create(twin)
    except Exception as error:
        if not is_duplicate(error):
            raise
    return 409


async def ask_for_its_code(twin: Twin) -> int:
    for _ in range(3):
        try:
            await create(twin)
        except Exception as error:
            if getattr(error, "code", None) == "gkpj":
                continue
            raise
    return 409


async def expect(twin: Twin) -> int:
    with pytest.raises((IntegrityError, LookupError)):
        await create(twin)
    return 409


EXPECTING = [
    answer,
    try_again,
    try_the_next_or_refuse,
    answer_or_raise,
    leave_the_loop,
    ask_a_function,
    ask_for_its_code,
    expect,
]


@pytest.mark.parametrize("how", EXPECTING)
def test_what_is_expected_outside_of_the_session_is_handled(twin: Twin, how: Any) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            assert await how(twin) == 409
        assert_found(captured)

    twin.run(story)


class Taken(Exception):
    """The application's own error for a constraint."""


def create_or_refuse(twin: Twin) -> None:
    try:
        twin.drive(create(twin))
    except IntegrityError as error:
        if "no such" in str(error):
            return
        raise Taken from None


def _expect_text(expect: Callable[..., object], kind: type[Exception], call: object) -> object:
    return expect(kind, "", call)


# What a test's assertion calls, rather than a block in which it is called.
ASSERTIONS: dict[str, Callable[..., object]] = {
    "unittest": unittest.TestCase().assertRaises,
    "unittest's with a pattern": partial(_expect_text, unittest.TestCase().assertRaisesRegex),
    "pytest": lambda kind, call: pytest.raises(kind, call),  # noqa: RUF061 - what is tested
}


@only_sync
@pytest.mark.parametrize("how", ASSERTIONS)
@pytest.mark.parametrize("kind", [Taken, Exception])
def test_what_a_tests_assertion_calls_is_to_fail(
    twin: Twin, how: str, kind: type[Exception]
) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            ASSERTIONS[how](kind, lambda: create_or_refuse(twin))
        found = [finding.id for finding in captured.findings]
        assert found == ([] if kind is Taken else ["failed-flush"])

    twin.run(story)


async def log_whatever_fails(twin: Twin) -> None:
    try:
        await create(twin)
    except Exception:
        return


async def translate(twin: Twin) -> None:
    try:
        try:
            await create(twin)
        except Exception as error:
            raise error from None
    except Exception:
        return


async def log_and_raise(twin: Twin) -> None:
    messages: list[str] = []
    try:
        try:
            await create(twin)
        except IntegrityError as error:
            for argument in error.args:
                if not argument:
                    continue
                messages.append(argument)
            messages.sort(key=lambda message: len(message))
            raise
    except Exception:
        return


async def try_again_whatever_fails(twin: Twin) -> None:
    for attempt in range(3):
        try:
            await create(twin)
        except Exception:
            if attempt == 0:
                return
            raise


async def let_another_class_through(twin: Twin) -> None:
    try:
        await create(twin)
    except Exception as error:
        if isinstance(error, LookupError):
            raise


async def log_what_it_holds(twin: Twin) -> None:
    messages: list[object] = []
    try:
        try:
            await create(twin)
        except Exception as error:
            if error.args:
                messages.extend(error.args)
            raise LookupError from error
    except Exception:
        return


NOT_EXPECTING = [
    log_whatever_fails,
    translate,
    log_and_raise,
    try_again_whatever_fails,
    let_another_class_through,
    log_what_it_holds,
]


@pytest.mark.parametrize("how", NOT_EXPECTING)
def test_what_is_only_caught_with_everything_else_is_not_handled(twin: Twin, how: Any) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await how(twin)
        assert [finding.id for finding in captured.findings] == ["failed-flush"]
        (failed,) = [log for log in captured.logs if log["event"] == "flush.failed"]
        assert failed["level"] == "warning"

    twin.run(story)


def test_what_fails_again_and_again_is_reported_though_it_is_handled(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            for _ in range(9):
                await answer(twin)
            assert_found(captured)
            for _ in range(9):
                await answer(twin)
        assert [finding.id for finding in captured.findings] == ["failed-flush"]
        with capture(twin.factory) as captured:
            await answer(twin)
        assert_found(captured)

    twin.run(story)


async def get_or_add(twin: Twin, name: str) -> None:
    async with twin.session() as session:
        session.add(Author(name=name))
        try:
            await session.commit()
        except IntegrityError:
            await session.rollback()
            await session.scalars(select(Author).where(Author.name == name))


async def insert_or_leave(twin: Twin, name: str) -> None:
    insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[twin.database]
    async with twin.session() as session, session.begin():
        await session.execute(insert(Author).values(name=name).on_conflict_do_nothing())


async def look_first(twin: Twin, name: str) -> None:
    async with twin.session() as session, session.begin():
        if (await session.scalars(select(Author).where(Author.name == name))).first() is None:
            session.add(Author(name=name))


@on_each_database
def test_the_remedy_for_what_is_rolled_back_each_time_is_not_a_rollback(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, Author(name="there"))
        with capture(twin.factory) as captured:
            for _ in range(10):
                await get_or_add(twin, "there")
        (finding,) = captured.findings
        assert finding.message.endswith(", for the 10th time in a minute")
        assert finding.remedy == "insert(...).on_conflict_do_nothing(), if the row may exist"
        assert finding.evidence["alternatives"] == [
            "SELECT the row first, and add an object only if there is no row"
        ]
        for remedy in (insert_or_leave, look_first):
            with capture(twin.factory) as captured:
                for name in ("there", remedy.__name__) * 6:
                    await remedy(twin, name)
            assert_found(captured)
        async with twin.session() as session:
            names = sorted(await session.scalars(select(Author.name)))
        assert names == ["insert_or_leave", "look_first", "there"]

    twin.run(story)


def test_rows_that_a_savepoint_skips_may_be_many(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, savepoints_per_transaction=1_000) as captured:
            async with twin.session() as session, session.begin():
                for _ in range(30):
                    with suppress(IntegrityError):
                        async with session.begin_nested():
                            session.add(Author(name=None))
        assert_found(captured)

    twin.run(story)


async def insert_twice(session: Any) -> None:
    with pytest.raises(IntegrityError):
        await session.execute(insert(Author), [{"name": "same"}, {"name": "same"}])
    await session.rollback()


async def read_nonsense(session: Any) -> None:
    with pytest.raises(DBAPIError):
        await session.execute(text("SELECT nonsense"))
    await session.rollback()


async def flush_what_is_right(session: Any) -> None:
    session.add_all([Author(name="one"), Author(name="another")])
    await session.flush()
    session.add(Author(name="a third"))
    await session.commit()


async def raise_after_a_flush(session: Any) -> None:
    with suppress(LookupError):
        async with session.begin_nested():
            session.add(Author(name="one"))
            await session.flush()
            raise LookupError
    await session.commit()


@on_each_database
@pytest.mark.parametrize(
    "how", [insert_twice, read_nonsense, flush_what_is_right, raise_after_a_flush]
)
def test_what_is_no_failed_flush(twin: Twin, how: Any) -> None:
    async def story() -> None:
        assert_found(await tell(twin, how))

    twin.run(story)


@on_each_database
def test_what_is_only_refused_at_the_commit(twin: Twin) -> None:
    """The flush went well; the COMMIT itself fails, where the database checks at that time."""

    async def story() -> None:
        async def lend_nothing(session: Any) -> None:
            session.add(Loan(book_id=404))
            if twin.database == "postgresql":
                with pytest.raises(IntegrityError):
                    await session.commit()
                await session.rollback()
            else:
                await session.commit()

        assert_found(await tell(twin, lend_nothing))

    twin.run(story)

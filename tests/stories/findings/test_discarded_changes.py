"""Stories of sessions that are closed with changes nobody has committed or rolled back."""

from __future__ import annotations

import os
import sysconfig
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from session_tracer.testing import capture
from tests.good_code.silence import only_sync
from tests.library import Author, Book, Essay, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked
from tests.twins import Twin, on_postgresql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session


class OutOfStockError(Exception):
    """What the rules of the business raise."""


def begin_nested(session: Session) -> Any:
    return session.begin_nested()


async def first(session: Any) -> Any:
    return (await session.scalars(select(Essay).order_by(Essay.id))).first()  # <- reads


async def first_author(session: Any) -> Any:
    return (await session.scalars(select(Author).order_by(Author.id))).first()


async def add(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        session.add_all([Author(name="Ada"), Author(name="Grace")])  # <- added


async def modify(twin: Twin) -> None:
    session = twin.session()  # <- opened
    essay = await first(session)
    essay.title = "On staying"
    await session.close()  # <- closed


async def rename_an_author_with_a_new_book(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        author = await first_author(session)
        Book(title="Notes", author=author)
        author.name = "Ada"


async def take_a_book_from_an_author(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        author = await first_author(session)
        await session.refresh(author, ["books"])
        author.books.pop()


async def delete(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        await session.delete(await first(session))


async def write(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        session.add(Author(name="Ada"))
        (await session.scalars(select(Author))).all()  # <- flushed


async def write_and_reset(twin: Twin) -> None:
    session = twin.session()  # <- opened
    session.add(Author(name="Ada"))
    await session.flush()  # <- flushed
    await session.reset()  # <- closed


async def do_everything(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        essay, other = await session.scalars(select(Essay).order_by(Essay.id))
        await session.delete(other)
        essay.title = "On staying"
        await session.flush()  # <- flushed
        essay.title = "On leaving again"
        session.add(Author(name="Ada"))  # <- added


async def write_after_a_commit(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        session.add(Author(name="Ada"))
        await session.commit()
        session.add(Author(name="Grace"))
        await session.flush()  # <- flushed


async def write_in_a_savepoint_that_is_released(twin: Twin) -> None:
    async with twin.session() as session, session.begin_nested():  # <- opened # <- closed
        session.add(Author(name="Ada"))
        await session.flush()  # <- flushed


async def write_two_savepoints_deep(twin: Twin) -> None:
    async with twin.session() as session, session.begin_nested():  # <- opened # <- closed
        inner = await session.run_sync(begin_nested)
        session.add(Author(name="Ada"))
        await session.flush()  # <- flushed
        await session.run_sync(lambda _: inner.commit())


async def roll_back_only_a_savepoint(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        session.add(Author(name="Ada"))
        with suppress(OutOfStockError):
            async with session.begin_nested():  # <- flushed
                session.add(Book(title="Notes", author_id=1))
                raise OutOfStockError


async def be_closed_within_a_savepoint(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened # <- closed
        await session.run_sync(begin_nested)
        session.add(Author(name="Ada"))
        await session.flush()  # <- flushed


# Of a session that has only read: what it has changed may be for an answer alone.
IF = ", if the change is to be saved"
Evidence = dict[str, Any]
NOTHING: Evidence = dict.fromkeys(
    ("added", "modified", "removed", "flushed_new", "flushed_dirty", "flushed_deleted")
)
DISCARDED: dict[Callable[[Twin], Any], tuple[str | None, int, Evidence]] = {
    add: ("Author", 2, {"added": {"Author": 2}}),
    modify: ("Essay", 1, {"modified": {"Essay": 1}}),
    rename_an_author_with_a_new_book: ("Author", 1, {"modified": {"Author": 1}}),
    take_a_book_from_an_author: (None, 2, {"modified": {"Author": 1, "Book": 1}}),
    delete: ("Essay", 1, {"removed": {"Essay": 1}}),
    write: ("Author", 1, {"flushed_new": {"Author": 1}}),
    write_and_reset: ("Author", 1, {"flushed_new": {"Author": 1}}),
    do_everything: (
        None,
        4,
        {
            "added": {"Author": 1},
            "modified": {"Essay": 1},
            "flushed_dirty": {"Essay": 1},
            "flushed_deleted": {"Essay": 1},
        },
    ),
    write_after_a_commit: ("Author", 1, {"flushed_new": {"Author": 1}}),
    write_in_a_savepoint_that_is_released: ("Author", 1, {"flushed_new": {"Author": 1}}),
    write_two_savepoints_deep: ("Author", 1, {"flushed_new": {"Author": 1}}),
    roll_back_only_a_savepoint: ("Author", 1, {"flushed_new": {"Author": 1}}),
    be_closed_within_a_savepoint: ("Author", 1, {"flushed_new": {"Author": 1}}),
}


@pytest.mark.parametrize("discard", DISCARDED, ids=lambda story: story.__name__)
def test_changes_that_are_discarded(twin: Twin, discard: Callable[[Twin], Any]) -> None:
    entity, count, evidence = DISCARDED[discard]

    async def story() -> None:
        essays = Essay(title="On leaving"), Essay(title="On arriving")
        await keep(twin, *essays, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            await discard(twin)
        opened = marked(discard, "<- opened")
        assert_found(
            captured,
            Due(
                id="discarded-changes",
                site=marked(discard, "<- closed"),
                opened=opened,
                remedy=f"{'await ' if twin.is_async else ''}session.commit()  "
                f"# before the session is closed{IF if {*evidence} == {'modified'} else ''}",
                entity=entity,
                count=count,
                evidence={**NOTHING, **evidence, **sites(discard)},
            ),
        )

    twin.run(story)


def sites(story: Callable[..., Any]) -> Evidence:
    """Where the last of the changes was added and flushed, by the keys of evidence."""
    found: Evidence = {}
    for key in ("added", "flushed"):
        with suppress(ValueError):
            found[f"{key}_at"] = str(marked(story, f"<- {key}"))
    return found


# What is no loss.


async def commit(twin: Twin) -> None:
    async with twin.session() as session:
        session.add(Author(name="Ada"))
        (await first(session)).title = "On staying"
        await session.commit()


async def begin_a_block(twin: Twin) -> None:
    async with twin.session() as session, session.begin():
        session.add(Author(name="Ada"))


async def roll_back(twin: Twin) -> None:
    async with twin.session() as session:
        session.add(Author(name="Ada"))
        await session.flush()
        await session.rollback()


async def only_read(twin: Twin) -> None:
    async with twin.session() as session:
        await first(session)


async def change_nothing(twin: Twin) -> None:
    async with twin.session() as session:
        essay = await first(session)
        essay.title = essay.title + ""


async def change_and_change_back(twin: Twin) -> None:
    async with twin.session() as session:
        essay = await first(session)
        title, essay.title = essay.title, "On staying"
        essay.title = title


async def make_a_book_of_an_author(twin: Twin) -> None:
    async with twin.session() as session:
        author = await first_author(session)
        Book(title="Notes", author=author)


async def make_a_book_of_an_author_with_books(twin: Twin) -> None:
    async with twin.session() as session:
        author = await first_author(session)
        await session.refresh(author, ["books"])
        Book(title="Notes", author=author)


async def expunge(twin: Twin) -> None:
    async with twin.session() as session:
        author = Author(name="Ada")
        session.add(author)
        session.expunge(author)


async def expunge_all(twin: Twin) -> None:
    async with twin.session() as session:
        (await first(session)).title = "On staying"
        session.add(Author(name="Ada"))
        session.expunge_all()


async def roll_back_both_savepoints(twin: Twin) -> None:
    async with twin.session() as session:
        outer = await session.run_sync(begin_nested)
        session.add(Author(name="Ada"))
        inner = await session.run_sync(begin_nested)
        session.add(Author(name="Grace"))
        await session.flush()
        await session.run_sync(lambda _: inner.rollback())
        await session.run_sync(lambda _: outer.rollback())


async def release_an_inner_savepoint_and_roll_back_the_outer_one(twin: Twin) -> None:
    async with twin.session() as session:
        outer = await session.run_sync(begin_nested)
        async with session.begin_nested():
            session.add(Author(name="Ada"))
        await session.run_sync(lambda _: outer.rollback())


async def fail(twin: Twin) -> None:
    with suppress(OutOfStockError):
        async with twin.session() as session:
            session.add(Author(name="Ada"))
            await session.flush()
            raise OutOfStockError


async def fail_and_close(twin: Twin) -> None:
    session = twin.session()
    try:
        session.add(Author(name="Ada"))
        await session.flush()
        raise OutOfStockError
    except OutOfStockError:
        await session.close()


async def fail_and_close_in_the_end(twin: Twin) -> None:
    session = twin.session()
    with suppress(OutOfStockError):
        try:
            session.add(Author(name="Ada"))
            await session.flush()
            raise OutOfStockError
        finally:
            await session.close()


async def invalidate(twin: Twin) -> None:
    session = twin.session()
    session.add(Author(name="Ada"))
    await session.flush()
    await session.invalidate()


GOOD: tuple[Callable[[Twin], Any], ...] = (
    commit,
    begin_a_block,
    roll_back,
    only_read,
    change_nothing,
    change_and_change_back,
    make_a_book_of_an_author,
    make_a_book_of_an_author_with_books,
    expunge,
    expunge_all,
    roll_back_both_savepoints,
    release_an_inner_savepoint_and_roll_back_the_outer_one,
    fail,
    fail_and_close,
    fail_and_close_in_the_end,
    invalidate,
)


@pytest.mark.parametrize("leave", GOOD, ids=lambda story: story.__name__)
def test_a_session_that_is_closed_with_nothing_to_lose(
    twin: Twin, leave: Callable[[Twin], Any]
) -> None:
    async def story() -> None:
        await keep(twin, Essay(title="On leaving"), *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            await leave(twin)
            assert len(captured.sessions) == 1
        assert_found(captured)

    twin.run(story)


@only_sync
def test_a_generator_that_is_closed_early_discards_on_purpose(twin: Twin) -> None:
    def names() -> Iterator[str]:
        with twin.factory() as session:
            for name in ("Ada", "Grace"):
                session.add(Author(name=name))
                session.flush()
                yield name

    async def story() -> None:
        with capture(twin.factory) as captured:
            generator: Any = names()
            assert next(generator) == "Ada"
            generator.close()
            assert len(captured.sessions) == 1
        assert_found(captured)

    twin.run(story)


# What a library opens for a block of the application's, and closes at its end.
LIBRARY = """
from contextlib import asynccontextmanager

@asynccontextmanager
async def reading(sessions):
    session = sessions()
    try:
        yield session
    finally:
        await session.close()
"""


def test_a_block_whose_session_a_librarys_context_manager_opens(twin: Twin) -> None:
    file = os.path.join(sysconfig.get_path("purelib"), "shop_kit", "sessions.py")
    library: dict[str, Any] = {"__name__": "shop_kit.sessions"}
    exec(compile(LIBRARY, file, "exec"), library)

    async def rename() -> None:
        async with library["reading"](twin.session) as session:  # <- opened # <- closed
            (await first(session)).title = "On staying"

    async def story() -> None:
        await keep(twin, Essay(title="On going"))
        with capture(twin.factory) as captured:
            await rename()
        (finding,) = captured.findings
        assert finding.id == "discarded-changes"
        assert finding.site == marked(rename, "<- closed")
        assert finding.remedy.endswith(f"session.commit()  # before the session is closed{IF}")
        assert finding.evidence["last_activity_at"] == str(marked(first, "<- reads"))

    twin.run(story)


# Two phases.


def prepare(session: Session) -> None:
    session.prepare()


async def prepare_and_close(twin: Twin) -> None:
    async with twin.session(twophase=True) as session:  # <- opened # <- closed
        session.add(Author(name="Ada"))
        await session.flush()
        await session.run_sync(prepare)


async def prepare_and_commit(twin: Twin) -> None:
    async with twin.session(twophase=True) as session:
        session.add(Author(name="Ada"))
        await session.run_sync(prepare)
        await session.commit()


async def prepare_and_roll_back(twin: Twin) -> None:
    async with twin.session(twophase=True) as session:
        session.add(Author(name="Ada"))
        await session.run_sync(prepare)
        await session.rollback()


@on_postgresql
def test_a_prepared_transaction_that_is_closed(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await prepare_and_close(twin)
        assert_found(
            captured,
            Due(
                id="discarded-changes",
                site=marked(prepare_and_close, "<- closed"),
                opened=marked(prepare_and_close, "<- opened"),
                remedy=captured.findings[0].remedy,
                entity="Author",
                evidence={"flushed_new": {"Author": 1}},
            ),
        )

    twin.run(story)


@on_postgresql
def test_a_prepared_transaction_that_is_ended(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await prepare_and_roll_back(twin)
            await prepare_and_commit(twin)
        assert_found(captured)

    twin.run(story)


async def expunge_and_modify(twin: Twin) -> None:
    async with twin.session() as session:
        essay = await first(session)
        session.expunge(essay)
        essay.title = "On leaving"


async def modify_for_an_answer_and_add(twin: Twin) -> None:
    async with twin.session() as session:
        (await first(session)).title = "On leaving"
        session.add(Author(name="Ada"))


async def modify_two_of_two(twin: Twin) -> None:
    async with twin.session() as session:
        author = (await session.scalars(select(Author))).first()
        essay = await first(session)
        essay.title, author.name, author.id = "On leaving", "Grace", author.id


async def modify_after_a_commit(twin: Twin) -> None:
    async with twin.session() as session:
        essay = await first(session)
        essay.title = "On coming"
        await session.commit()
        await session.refresh(essay)
        essay.title = "On leaving"


async def modify_and_add(twin: Twin) -> None:
    async with twin.session() as session:
        (await first(session)).title = "On leaving"
        session.add(Author(name="Barbara"))


NAMED: dict[Any, tuple[list[str], str, bool]] = {
    modify: (["Essay.title"], ": Essay.title", True),
    modify_two_of_two: (["Author.name", "Essay.title"], ": Author.name and Essay.title", True),
    modify_after_a_commit: (["Essay.title"], ": Essay.title", False),
    modify_and_add: (["Essay.title"], "", False),
}


@pytest.mark.parametrize("work", NAMED, ids=lambda story: story.__name__)
def test_the_attributes_that_were_modified_are_named(twin: Twin, work: Any) -> None:
    names, named, has_only_read = NAMED[work]

    async def story() -> None:
        await keep(twin, *authors(1), Essay(title="On going"))
        with capture(twin.factory) as captured:
            await work(twin)
        (finding,) = captured.findings
        assert sorted(finding.evidence["attributes"]) == names
        first, colon, listed = finding.message.partition(": ")
        assert first.endswith("(never flushed)")
        assert colon + " and ".join(sorted(filter(None, listed.split(" and ")))) == named
        assert finding.remedy.endswith(IF) == has_only_read

    twin.run(story)


def test_what_is_not_to_be_saved_is_expunged(twin: Twin) -> None:
    """An endpoint that reads may change what it read, for its answer alone."""
    expunge = "before the change, if it is not to be saved"

    async def story() -> None:
        await keep(twin, *authors(1, books_each=1), Essay(title="On going"))
        for work, advised in (
            (modify, [f"session.expunge(essay) {expunge}"]),
            (take_a_book_from_an_author, [f"session.expunge(...) {expunge}"]),
            (modify_for_an_answer_and_add, None),
            (write, None),
        ):
            with capture(twin.factory) as captured:
                await work(twin)
            (finding,) = captured.findings
            assert finding.evidence.get("alternatives") == advised
        with capture(twin.factory) as captured:
            await expunge_and_modify(twin)
        assert_found(captured)

    twin.run(story)

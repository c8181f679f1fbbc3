"""Stories of objects that are given to a second session, and of those that may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, make_transient, selectinload

from session_tracer.testing import capture
from tests.good_code.silence import assert_silent, only_sync
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from tests.twins import Twin

ALREADY = "already attached to session"
INSTEAD = "pass that session to this code instead of opening another"


async def cross(twin: Twin, give: Any) -> None:
    async with twin.session() as first:  # <- first
        query = select(Author).options(selectinload(Author.books))
        author = (await first.scalars(query)).one()  # <- loaded
        async with twin.session() as second:  # <- second
            await give(second, author)


async def add(session: Any, author: Author) -> None:
    session.add(author)  # <- gives


async def add_all(session: Any, author: Author) -> None:
    session.add_all([Author(name="beside it"), author])  # <- gives


async def add_what_has_it(session: Any, author: Author) -> None:
    book = Book(title="related before it is added", author=author)
    await add_book(session, book)


async def add_book(session: Any, book: Book) -> None:
    session.add(book)  # <- gives


async def relate(session: Any, author: Author) -> None:
    book = Book(title="related after it was added")
    session.add(book)
    book.author = author  # <- gives


async def delete(session: Any, author: Author) -> None:
    await session.delete(author)  # <- gives


async def append(session: Any, author: Author) -> None:
    book = Book(title="appended")
    session.add(book)
    author.books.append(book)  # <- gives


def due(twin: Twin, give: Any, other: str, entity: str = "Author", **changes: Any) -> Due:
    one = entity.lower()
    values: dict[str, Any] = {
        "id": "crossed-sessions",
        "site": marked(give, "<- gives"),
        "opened": marked(cross, "<- second"),
        "remedy": f"{one} = {'await ' if twin.is_async else ''}session.merge({one})",
        "entity": entity,
        "evidence": {
            "other_session_id": other,
            "other_session_name": "default",
            "other_opened_at": str(marked(cross, "<- first")),
            "loaded_at": str(marked(cross, "<- loaded")),
            "alternatives": [INSTEAD],
        },
        **changes,
    }
    return Due(**values)


@pytest.mark.parametrize("give", [add, add_all, relate, delete])
def test_an_object_of_another_session(twin: Twin, give: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured, pytest.raises(InvalidRequestError, match=ALREADY):
            await cross(twin, give)
        first, second = captured.sessions
        assert_found(captured, due(twin, give, first.id))
        (finding,) = captured.findings
        assert (finding.session_id, finding.severity) == (second.id, "error")
        assert finding.message == (
            f"the Author object is still attached to session {first.id[:6]} (default), "
            "so this session refused it"
        )

    twin.run(story)


def test_what_an_added_object_brings_with_it(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured, pytest.raises(InvalidRequestError, match=ALREADY):
            await cross(twin, add_what_has_it)
        assert [(one.id, one.entity, one.site) for one in captured.findings] == [
            ("crossed-sessions", "Author", marked(add_book, "<- gives"))
        ]

    twin.run(story)


def test_an_object_of_this_session_that_the_other_one_takes(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured, pytest.raises(InvalidRequestError, match=ALREADY):
            await cross(twin, append)
        first, second = captured.sessions
        evidence = {
            "other_session_id": second.id,
            "other_opened_at": str(marked(cross, "<- second")),
            "loaded_at": None,
        }
        opened = marked(cross, "<- first")
        assert_found(
            captured, due(twin, append, second.id, "Book", opened=opened, evidence=evidence)
        )
        assert captured.findings[0].session_id == first.id

    twin.run(story)


async def import_all(twin: Twin) -> int:
    refused = 0
    async with twin.session() as first:
        found = (await first.scalars(select(Author))).all()
        async with twin.session() as second:
            for author in found:
                try:
                    second.add(author)  # <- gives
                except InvalidRequestError:
                    refused += 1
    return refused


def test_a_loop_is_reported_once(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(20))
        with capture(twin.factory) as captured:
            assert await import_all(twin) == 20
        assert [(one.id, one.site) for one in captured.findings] == [
            ("crossed-sessions", marked(import_all, "<- gives"))
        ]

    twin.run(story)


# The other session.


@only_sync
def test_an_object_of_a_session_that_nobody_traces(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        engine: Any = twin.engine
        with Session(engine) as untraced, capture(twin.factory) as captured:
            author = untraced.scalars(select(Author)).one()
            with pytest.raises(InvalidRequestError, match=ALREADY), twin.factory() as session:
                session.add(author)  # <- gives
        (finding,) = captured.findings
        assert finding.message == (
            "the Author object is still attached to another session, so this session refused it"
        )
        assert dict(finding.evidence) == {"alternatives": [INSTEAD]}

    twin.run(story)


@only_sync
def test_a_session_that_nobody_traces_may_refuse_what_it_likes(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        engine: Any = twin.engine
        with capture(twin.factory) as captured, twin.factory() as session:
            author = session.scalars(select(Author)).one()
            with (
                pytest.raises(InvalidRequestError, match=ALREADY),
                Session(engine) as untraced,
            ):
                untraced.add(author)
        assert_silent(captured, sessions=1)

    twin.run(story)


# Beside it.


def test_an_object_may_be_merged(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as first:
                author = (await first.scalars(select(Author))).one()
                await first.commit()
                await first.refresh(author)
                await first.commit()
                async with twin.session() as second:
                    merged = await second.merge(author, load=False)
                    assert merged is not author
        assert_silent(captured, sessions=2)

    twin.run(story)


def test_an_object_whose_first_session_was_closed(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as first:
                author = (await first.scalars(select(Author))).one()
            async with twin.session() as second:
                second.add(author)
                assert author in second.sync_session
        assert_silent(captured, sessions=2)

    twin.run(story)


def test_an_object_that_was_expunged(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as first:
                author = (await first.scalars(select(Author))).one()
                first.expunge(author)
                async with twin.session() as second:
                    second.add_all([author])
        assert_silent(captured, sessions=2)

    twin.run(story)


def test_a_copy_of_an_object(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as first:
                author = (await first.scalars(select(Author))).one()
                first.expunge(author)
                make_transient(author)
                author.id, author.name = 2, "a copy"
            async with twin.session() as second:
                second.add(author)
                await second.commit()
        assert_silent(captured, sessions=2)

    twin.run(story)


def test_an_object_that_is_added_twice_to_its_own_session(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                session.add(author)
                session.add_all([author, author])
        assert_silent(captured, sessions=1)

    twin.run(story)

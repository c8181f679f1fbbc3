"""Stories of objects that are changed after `merge()` has copied them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from session_tracer.testing import Captured, capture
from tests.library import Author, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.remedies import pasted
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.twins import Twin


async def given(twin: Twin, work: Callable[[Any, Author], Awaitable[object]]) -> Captured:
    """What is found of work in another session than the one that the author comes from."""
    await keep(twin, *authors(1))
    async with twin.session() as session:
        author = (await session.scalars(select(Author))).one()
    with capture(twin.factory) as captured, suppress(LookupError):
        async with twin.session() as session:
            await work(session, author)
    return captured


async def name_of(twin: Twin) -> str:
    async with twin.session() as session:
        name: str = await session.scalar(select(Author.name))
    return name


async def change_what_came(session: Any, author: Author) -> None:
    await session.merge(author)  # <- merged
    author.name = "new"
    await session.commit()  # <- committed


async def change_a_new_object(session: Any, author: Author) -> None:
    author = Author(id=author.id, name="copied")
    await session.merge(author)  # <- merged
    author.name = "new"
    await session.commit()  # <- committed


async def change_between_two_commits(session: Any, author: Author) -> None:
    await session.commit()
    await session.merge(author)  # <- merged
    await session.flush()
    author.name = "new"
    await session.commit()  # <- committed
    author.name = "newer"
    await session.commit()


@pytest.mark.parametrize(
    "work", [change_what_came, change_a_new_object, change_between_two_commits]
)
def test_a_change_after_merge_is_not_written(twin: Twin, work: Any) -> None:
    async def story() -> None:
        captured = await given(twin, work)
        assert await name_of(twin) != "new"
        (finding,) = captured.findings
        awaited = "await " if twin.is_async else ""
        assert_found(
            captured,
            Due(
                id="discarded-changes",
                site=marked(work, "<- merged"),
                opened=finding.session_site,
                remedy=f"author = {awaited}session.merge(author), and change what it returns",
                entity="Author",
                attribute="name",
                evidence={"committed_at": str(marked(work, "<- committed"))},
            ),
        )
        assert finding.message == (
            "the change of Author.name was not written: merge() had copied the Author object "
            "before, and the session writes its own"
        )

    twin.run(story)


async def change_what_it_returns(session: Any, author: Author) -> None:
    author = await pasted("session.merge(author)", session=session, author=author)
    author.name = "new"
    await session.commit()


async def change_before(session: Any, author: Author) -> None:
    author.name = "new"
    await session.merge(author)
    await session.commit()


async def merge_again(session: Any, author: Author) -> None:
    await session.merge(author)
    author.name = "new"
    await session.merge(author)
    await session.commit()


async def one_object_for_each_row(session: Any, author: Author) -> None:
    row = Author(id=author.id)
    for name in ("old", "older", "new"):
        row.name = name
        await session.merge(row)
    await session.commit()


@pytest.mark.parametrize(
    "work", [change_what_it_returns, change_before, merge_again, one_object_for_each_row]
)
def test_a_change_that_merge_copies_is_written_and_silent(twin: Twin, work: Any) -> None:
    async def story() -> None:
        assert_found(await given(twin, work))
        assert await name_of(twin) == "new"

    twin.run(story)


async def set_the_same(session: Any, author: Author) -> None:
    await session.merge(author)
    author.name = "".join(author.name)
    await session.commit()


async def take_over_the_key(session: Any, author: Author) -> None:
    del author
    new = Author(name="new")
    merged = await session.merge(new)
    await session.flush()
    new.id = merged.id
    await session.commit()


async def hide_before_it_is_shown(session: Any, author: Author) -> None:
    await session.merge(author)
    author.name = None  # type: ignore[assignment]
    await session.commit()


async def change_after_the_commit(session: Any, author: Author) -> None:
    await session.merge(author)
    await session.commit()
    author.name = "for the page only"


async def roll_back(session: Any, author: Author) -> None:
    await session.merge(author)
    author.name = "new"
    await session.rollback()


async def fail(session: Any, author: Author) -> None:
    await session.merge(author)
    author.name = "new"
    raise LookupError


async def merge_the_sessions_own(session: Any, author: Author) -> None:
    own = await session.merge(author)
    assert await session.merge(own) is own
    own.name = "new"
    await session.commit()


@pytest.mark.parametrize(
    "work",
    [
        set_the_same,
        take_over_the_key,
        hide_before_it_is_shown,
        change_after_the_commit,
        roll_back,
        fail,
        merge_the_sessions_own,
    ],
)
def test_what_loses_nothing_is_silent(twin: Twin, work: Any) -> None:
    async def story() -> None:
        assert_found(await given(twin, work))

    twin.run(story)


def test_a_line_in_a_loop_is_reported_once(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        with capture(twin.factory) as captured:
            every = [Author(id=number, name=f"copied {number}") for number in (1, 2, 3)]
            async with twin.session() as session:
                for one in every:
                    await session.merge(one)
                    one.name += ", and changed"
                await session.commit()
        assert [one.id for one in captured.findings] == ["discarded-changes"]

    twin.run(story)


def test_a_change_of_a_detached_object_is_not_reported(twin: Twin) -> None:
    """An application may change it for a page only, and to see more costs time with every load."""

    async def change(session: Any, author: Author) -> None:
        author.name = "new"
        await session.commit()

    async def story() -> None:
        assert_found(await given(twin, change))
        assert await name_of(twin) != "new"

    twin.run(story)

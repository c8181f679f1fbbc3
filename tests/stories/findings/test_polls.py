"""Stories of loops that wait until a SELECT has another answer, and of loops that look alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import NoResultFound

from session_tracer.testing import capture
from tests.library import Author, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from tests.twins import Twin

# After this number of turns another session makes the change that a loop waits for.
TURNS = 7
# That session is opened in the same thread or task, which is no part of the stories.
OTHER = {"nested-sessions"}


class Waiting:
    """Counts the turns of a loop; after enough of them another session renames an author."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self.turns = 0

    async def pause(self) -> None:
        """Let some time pass."""
        self.turns += 1
        if self.turns == TURNS:
            async with self.twin.session() as other:
                (await other.get(Author, 1)).name = "done"
                await other.commit()


def name_of(session: Any) -> Any:
    return session.scalar(select(Author.name).where(Author.id == 1))


async def until_it_is_done(session: Any, waiting: Waiting) -> str:
    for _ in range(20):
        name = await name_of(session)
        if name == "done":
            break
        await waiting.pause()
    return str(name)


async def in_the_condition(session: Any, waiting: Waiting) -> str:
    query = select(Author).where(Author.name == "done")
    while not (author := await session.scalar(query)):
        await waiting.pause()
    return str(author.name)


async def is_done(session: Any) -> bool:
    name = await name_of(session)
    return bool(name == "done")


async def is_one_done(session: Any) -> bool:
    return await is_done(session)


async def with_a_helper(session: Any, waiting: Waiting) -> str:
    while not await is_one_done(session):
        await waiting.pause()
    return "done"


async def with_one_that_waits_for_anything(session: Any, waiting: Waiting) -> str:
    async def wait_until(ask: Any) -> bool:
        while waiting.turns < 20:
            if await ask():
                return True
            await waiting.pause()
        return False

    assert await wait_until(lambda: is_done(session))
    return "done"


async def unless_it_is_missing(session: Any, waiting: Waiting) -> str:
    for _ in range(20):
        try:
            query = select(Author.name).where(Author.name == "done")
            name = (await session.scalars(query)).one()
        except NoResultFound:
            await waiting.pause()
        else:
            return str(name)
    return ""


async def with_fresh_objects(session: Any, waiting: Waiting) -> str:
    query = select(Author).where(Author.id == 1).execution_options(populate_existing=True)
    while True:
        author = await session.scalar(query)
        if author.name == "done":
            return str(author.name)
        await waiting.pause()


async def with_a_new_transaction_each_time(session: Any, waiting: Waiting) -> str:
    while True:
        author = await session.scalar(select(Author).where(Author.id == 1))
        if author.name == "done":
            return str(author.name)
        await waiting.pause()
        await session.commit()


POLLS = [
    until_it_is_done,
    in_the_condition,
    with_a_helper,
    with_one_that_waits_for_anything,
    unless_it_is_missing,
    with_fresh_objects,
    with_a_new_transaction_each_time,
]


@pytest.mark.parametrize("poll", POLLS)
def test_a_loop_that_waits_for_another_answer(twin: Twin, poll: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory, repeats_of_one_select=3, ignore=OTHER) as captured:
            async with twin.session() as session:
                assert await poll(session, Waiting(twin)) == "done"
        assert_found(captured)

    twin.run(story)


# Near-misses.


async def checking(session: Any) -> None:
    total = 0
    for price in [1, 2, 3, 4]:
        rate = await session.scalar(select(func.count(Author.id)))  # <- asked
        if rate is None:
            raise ValueError
        total += price * rate


def test_a_setting_that_is_read_for_each_item(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory, repeats_of_one_select=3) as captured:
            async with twin.session() as session:  # <- opened
                await checking(session)
        asked = marked(checking, "<- asked")
        assert_found(
            captured,
            Due(
                id="repeated-select",
                site=asked,
                opened=marked(story, "<- opened"),
                remedy="run it once and keep the result",
                entity="Author",
                count=3,
                evidence={"loop": str(asked)},
            ),
        )

    twin.run(story)


async def all_names(session: Any) -> list[str]:
    names: list[str] = []
    last = 0
    while True:
        query = select(Author.id, Author.name).where(Author.id > last).order_by(Author.id).limit(2)
        page = (await session.execute(query)).all()  # <- asked
        if not page:
            return names
        names += [name for _, name in page]
        last = page[-1][0]


def test_a_list_that_is_read_in_pages_for_each_item(twin: Twin) -> None:
    """Its pages are left depending on their answer, but they are read again and again."""

    async def story() -> None:
        await keep(twin, *authors(4))
        with capture(twin.factory, repeats_of_one_select=3) as captured:
            async with twin.session() as session:
                for _ in range(4):
                    assert len(await all_names(session)) == 4
        assert {finding.id for finding in captured.findings} == {"repeated-select"}
        assert captured.findings[0].site == marked(all_names, "<- asked")

    twin.run(story)


async def with_the_object_it_has(session: Any, waiting: Waiting) -> str:
    while waiting.turns < 20:
        author = await session.scalar(select(Author).where(Author.id == 1))  # <- asked
        if author.name == "done":
            return "done"
        await waiting.pause()
    return str(author.name)


def test_a_loop_that_never_sees_the_change(twin: Twin) -> None:
    """The object stays in the session, and keeps its values."""

    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory, ignore=OTHER) as captured:
            async with twin.session() as session:  # <- opened
                assert await with_the_object_it_has(session, Waiting(twin)) == "author 0"
        commit = "await session.commit()" if twin.is_async else "session.commit()"
        assert_found(
            captured,
            Due(
                id="repeated-select",
                site=marked(with_the_object_it_has, "<- asked"),
                opened=marked(story, "<- opened"),
                remedy=f"{commit}  # before each read, to see what others have committed",
                entity="Author",
                count=5,
                evidence={
                    "why": "an object in the session keeps its values until it expires, so no "
                    "change is seen",
                    "alternatives": [".execution_options(populate_existing=True)"],
                },
            ),
        )

    twin.run(story)

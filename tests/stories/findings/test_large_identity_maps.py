"""Stories of sessions that come to hold many objects, and of those that let go of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.orm import selectinload

from session_tracer.testing import capture
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Above, Due, assert_found
from tests.stories.findings.reading import tell
from tests.stories.findings.remedies import pasted, to_write
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from tests.twins import Twin

# What the application keeps of what it loads; each story empties it.
kept: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    kept.clear()


def large_map(site: Any, remedy: str, entity: str, count: int, **evidence: Any) -> Due:
    return Due(
        id="large-identity-map",
        site=site,
        opened=marked(tell, "<- opened"),
        remedy=remedy,
        entity=entity,
        count=count,
        evidence={"age_ms": Above(0), **evidence},
    )


BATCHES = "use one session for each batch of objects"
EXPUNGE = "call session.expunge_all() after each batch"


def read(session: Session, query: Select[Any]) -> None:
    for author in session.scalars(query):  # <- read
        assert author.id


def test_one_load_that_fills_the_identity_map(twin: Twin) -> None:
    async def told_of(query: Select[Any]) -> Any:
        return await tell(twin, lambda session: read(session, query), large_identity_map_objects=3)

    async def story() -> None:
        await keep(twin, *authors(3))
        assert_found(await told_of(select(Author)))
        await keep(twin, Author(name="one more"))
        captured = await told_of(select(Author))
        write = "select(Author).execution_options(yield_per=1000)"
        due = large_map(
            marked(read, "<- read"),
            write,
            "Author",
            4,
            came={"Author": 4},
            commits=0,
            alternatives=[BATCHES, EXPUNGE],
        )
        assert_found(captured, due)
        assert captured.findings[0].message == "the identity map has grown to 4 objects"
        assert_found(await told_of(pasted(to_write(captured.findings[0]).replace("1000", "2"))))

    twin.run(story)


def add_and_commit(session: Session, *, expunge: bool = False) -> None:
    for number in range(3):
        kept.append(Author(name=f"new {number}"))
        session.add(kept[-1])
        session.commit()  # <- committed
        if expunge:
            session.expunge_all()


def test_what_is_added_from_commit_to_commit(twin: Twin) -> None:
    async def story() -> None:
        captured = await tell(twin, add_and_commit, large_identity_map_objects=2)
        due = large_map(
            marked(add_and_commit, "<- committed"),
            BATCHES,
            "Author",
            3,
            came={"Author": 3},
            commits=2,
            sizes_after_commits=[1, 2],
            alternatives=[EXPUNGE],
        )
        assert_found(captured, due)
        assert captured.findings[0].message == (
            "the identity map has grown to 3 objects over 2 commits"
        )

    twin.run(story)


def test_what_is_expunged_after_each_commit(twin: Twin) -> None:
    async def story() -> None:
        def work(session: Session) -> None:
            add_and_commit(session, expunge=True)

        assert_found(await tell(twin, work, large_identity_map_objects=1))

    twin.run(story)


def test_a_session_for_each_batch(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, large_identity_map_objects=1) as captured:
            for number in range(3):
                async with twin.session() as session:
                    kept.append(Author(name=f"new {number}"))
                    session.add(kept[-1])
                    await session.commit()
        assert_found(captured)

    twin.run(story)


def read_eagerly(session: Session) -> None:
    query = select(Author).options(selectinload(Author.books))
    kept.extend(session.scalars(query))  # <- read


def read_lazily(session: Session) -> None:
    kept.append(session.get_one(Author, 1))
    kept.append(kept[0].books)  # <- read


def read_in_portions(session: Session) -> None:
    query = select(Book).execution_options(yield_per=1)
    kept.extend(session.scalars(query))  # <- read
    session.commit()


def add_all(session: Session) -> None:
    kept.extend(Author(name=f"new {number}") for number in range(4))
    session.add_all(kept)
    session.commit()  # <- read


def insert_and_return(session: Session) -> None:
    rows = [{"name": f"new {number}"} for number in range(4)]
    kept.extend(session.scalars(insert(Author).returning(Author), rows))  # <- read
    session.commit()


HOLDING = {
    "what is loaded eagerly": (
        read_eagerly,
        "select fewer Author objects at a time: each brings its Author.books",
        "Book",
        5,
    ),
    "what is loaded lazily": (read_lazily, BATCHES, "Book", 5),
    "what came in portions and was kept": (read_in_portions, BATCHES, "Book", 4),
    "what is added": (add_all, BATCHES, "Author", 4),
    "what an INSERT returns": (insert_and_return, BATCHES, "Author", 4),
}


@pytest.mark.parametrize("what", HOLDING)
def test_a_session_that_holds(twin: Twin, what: str) -> None:
    how, remedy, entity, count = HOLDING[what]

    async def story() -> None:
        await keep(twin, *authors(1, books_each=4))
        captured = await tell(twin, how, large_identity_map_objects=3)
        assert_found(captured, large_map(marked(how, "<- read"), remedy, entity, count))

    twin.run(story)


def test_many_objects_that_are_loaded_with_what_belongs_to_them(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1_000, books_each=1))
        captured = await tell(twin, read_eagerly, large_identity_map_objects=1_500)
        (finding,) = captured.findings
        assert finding.remedy == "select(Author).execution_options(yield_per=1000)"

    twin.run(story)


def read_and_forget(session: Session) -> None:
    for number in (1, 2, 3, 4):
        assert session.get(Book, number) is not None


def insert_in_bulk(session: Session) -> None:
    rows = [{"name": f"new {number}"} for number in range(4)]
    session.execute(insert(Author), rows)
    session.commit()


def read_columns(session: Session) -> None:
    kept.extend(session.execute(select(Book.id, Book.title)))


@pytest.mark.parametrize("how", [read_and_forget, insert_in_bulk, read_columns])
def test_a_session_that_does_not_hold_it(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=4))
        assert_found(await tell(twin, how, large_identity_map_objects=2))

    twin.run(story)

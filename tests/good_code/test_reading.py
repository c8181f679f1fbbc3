"""Objects read with what is needed of them, in few statements, and kept while they are used."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import (
    contains_eager,
    defer,
    immediateload,
    joinedload,
    load_only,
    selectinload,
    subqueryload,
    undefer,
)

from tests.good_code.silence import beginning, silent
from tests.library import Author, Book, authors, keep

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from tests.twins import Twin


# Eager loading.


@pytest.mark.parametrize("eagerly", [selectinload, joinedload, subqueryload, immediateload])
def test_the_books_of_many_authors(twin: Twin, eagerly: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(30, books_each=2))
        with silent(twin.factory, sessions=1):
            async with twin.session() as session:
                found = await session.scalars(select(Author).options(eagerly(Author.books)))
                assert sum(len(author.books) for author in found.unique()) == 60

    twin.run(story)


@pytest.mark.parametrize("eagerly", [selectinload, joinedload, subqueryload, immediateload])
def test_the_authors_of_many_books(twin: Twin, eagerly: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(30, books_each=2))
        with silent(twin.factory, sessions=1):
            async with twin.session() as session:
                found = await session.scalars(select(Book).options(eagerly(Book.author)))
                assert len({book.author.name for book in found}) == 30

    twin.run(story)


def test_a_join_that_fills_the_collection(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(30, books_each=2))
        joined = select(Author).join(Author.books).options(contains_eager(Author.books))
        with silent(twin.factory, sessions=1):
            async with twin.session() as session:
                found = (await session.scalars(joined)).unique().all()
                assert sum(len(author.books) for author in found) == 60

    twin.run(story)


def test_books_and_their_authors_biographies(twin: Twin) -> None:
    statement = select(Author).options(
        undefer(Author.biography), selectinload(Author.books).joinedload(Book.author)
    )

    async def story() -> None:
        await keep(twin, *authors(30, books_each=2))
        with silent(twin.factory, sessions=1):
            async with twin.session() as session:
                for author in await session.scalars(statement):
                    assert [book.author.biography for book in author.books] == ["", ""]

    twin.run(story)


def test_columns_that_are_left_out_and_not_read(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(30, books_each=1))
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                found = await session.scalars(select(Book).options(load_only(Book.title)))
                assert len({book.title for book in found}) == 30
                session.expunge_all()
                found = await session.scalars(select(Book).options(defer(Book.copies)))
                assert len({book.title for book in found}) == 30

    twin.run(story)


def test_a_relationship_that_is_refreshed_by_its_name(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=3))
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                author = await session.get_one(Author, 1)
                await session.refresh(author, ["books"])
                assert len(author.books) == 3

    twin.run(story)


def test_one_authors_book_read_lazily_again_and_again(twin: Twin) -> None:
    def read(session: Session) -> set[str]:
        author = session.get_one(Author, 1)
        return {book.title for _ in range(50) for book in author.books}

    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                assert len(await session.run_sync(read)) == 2

    twin.run(story)


def test_a_many_to_one_that_the_identity_map_serves(twin: Twin) -> None:
    """The authors are there already: reading the books' authors lazily asks nobody."""

    def read(session: Session) -> set[str]:
        kept = session.scalars(select(Author)).all()
        names = {book.author.name for book in session.scalars(select(Book))}
        assert len(kept) == len(names)
        return names

    async def story() -> None:
        await keep(twin, *authors(30, books_each=2))
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                assert len(await session.run_sync(read)) == 30

    twin.run(story)


# By key, and by statement.


def test_fifty_gets_that_the_identity_map_serves(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=1, statements=1) as captured:
            async with twin.session() as session:
                author = await session.get(Author, 1)
                for _ in range(50):
                    assert await session.get(Author, 1) is author
        assert [summary.statements for summary in captured.sessions] == [1]

    twin.run(story)


def test_gets_of_what_one_statement_has_loaded(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(30))
        with silent(twin.factory, sessions=1, statements=1):
            async with twin.session() as session:
                keys = range(1, 31)
                found = (await session.scalars(select(Author).where(Author.id.in_(keys)))).all()
                for author in found:
                    assert await session.get(Author, author.id) is author

    twin.run(story)


def test_a_few_gets_of_different_entities(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(9, books_each=1))
        with silent(twin.factory, sessions=1, statements=10):
            async with twin.session() as session:
                for key in range(1, 6):
                    for entity in (Author, Book):
                        assert await session.get(entity, key) is not None

    twin.run(story)


def test_the_same_statement_with_a_few_other_parameters(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(20))
        with silent(twin.factory, sessions=1, statements=9):
            async with twin.session() as session:
                for number in range(9):
                    named = select(Author).where(Author.name == f"author {number}")
                    assert (await session.scalar(named)).id == number + 1

    twin.run(story)


def test_a_poll_with_a_session_of_its_own_each_time(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=19, statements=19):
            for _ in range(19):
                async with twin.session() as session:
                    assert (await session.scalars(select(Book).limit(10))).all() == []

    twin.run(story)


def test_a_few_reports_of_one_session(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(10, books_each=2))
        with silent(twin.factory, sessions=1, statements=4):
            async with twin.session() as session:
                assert await session.scalar(select(func.count(Author.id))) == 10
                assert await session.scalar(select(func.sum(Book.copies))) == 20
                per_author = select(Book.author_id, func.count()).group_by(Book.author_id)
                assert len((await session.execute(per_author)).all()) == 10
                found = await session.execute(select(Author, Book).join(Author.books))
                assert len(found.all()) == 20

    twin.run(story)


# After a write.


def test_an_object_is_added_committed_and_refreshed(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                author = Author(name="Ada")
                session.add(author)
                await session.commit()
                await session.refresh(author)
                assert (author.id, author.name) == (1, "Ada")

    twin.run(story)


def test_objects_are_read_after_a_commit_that_expires_nothing(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=1):
            async with twin.session(expire_on_commit=False) as session:
                added = authors(20, books_each=1)
                session.add_all(added)
                await session.commit()
                assert [author.id for author in added] == list(range(1, 21))
                assert {len(author.books) for author in added} == {1}

    twin.run(story)


def test_objects_are_selected_again_after_a_commit(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=2):
            async with twin.session() as session:
                added = authors(20)
                session.add_all(added)
                await session.commit()
                (await session.scalars(select(Author))).all()
                assert [author.name for author in added] == [f"author {n}" for n in range(20)]

    twin.run(story)


def test_an_object_is_read_after_each_of_a_few_commits(twin: Twin) -> None:
    def work(session: Session) -> None:
        author = Author(name="Ada")
        session.add(author)
        session.commit()
        author.name = f"{author.name} Lovelace"
        session.commit()
        assert author.name == "Ada Lovelace"

    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=4):
            async with twin.session() as session:
                await session.run_sync(work)

    twin.run(story)


def test_reading_in_a_loop_with_nothing_to_flush(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(20))
        page = select(Author).order_by(Author.id).limit(2)
        with silent(twin.factory, sessions=2, statements=20) as captured:
            async with beginning(twin) as session:
                for number in range(10):
                    assert len((await session.scalars(page.offset(2 * number))).all()) == 2
            async with beginning(twin) as session:
                for number in range(10):
                    for author in await session.scalars(page.offset(2 * number)):
                        author.name = str(author.name)
        assert [(summary.new, summary.dirty) for summary in captured.sessions] == [({}, {})] * 2

    twin.run(story)


def test_reading_before_the_loop_that_writes(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(20))
        with silent(twin.factory, sessions=1, statements=2):
            async with beginning(twin) as session:
                known = {author.name: author for author in await session.scalars(select(Author))}
                for number in range(40):
                    author = known.get(f"author {number}")
                    if author is None:
                        session.add(Author(name=f"author {number}"))
                    else:
                        author.biography = "known"

    twin.run(story)


def test_reading_without_autoflush_in_the_loop_that_writes(twin: Twin) -> None:
    def work(session: Session) -> None:
        with session.no_autoflush:
            for number in range(9):
                if session.scalar(select(Author).where(Author.name == f"new {number}")) is None:
                    session.add(Author(name=f"new {number}"))

    async def story() -> None:
        with silent(twin.factory, sessions=2, statements=20):
            async with beginning(twin) as session:
                await session.run_sync(work)
            async with twin.session(autoflush=False) as session:
                for number in range(9):
                    named = select(Author).where(Author.name == f"newer {number}")
                    if await session.scalar(named) is None:
                        session.add(Author(name=f"newer {number}"))
                await session.commit()

    twin.run(story)


# Objects that have left their session.


async def _kept(twin: Twin, *options: Any) -> list[Author]:
    """Authors whose session is closed."""
    async with twin.session(expire_on_commit=False) as session:
        found: list[Author] = list(await session.scalars(select(Author).options(*options)))
        await session.commit()
    return found


def test_a_detached_object_is_merged_back(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with silent(twin.factory, sessions=3, statements=3):
            author = (await _kept(twin))[0]
            author.name = "Ada"
            async with beginning(twin) as session:
                merged = await session.merge(author)
                assert merged is not author
            async with twin.session() as session:
                assert (await session.get_one(Author, author.id)).name == "Ada"

    twin.run(story)


def test_a_detached_object_is_added_back(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with silent(twin.factory, sessions=2, statements=2):
            author = (await _kept(twin))[0]
            async with beginning(twin) as session:
                session.add(author)
                author.name = "Ada"

    twin.run(story)


def test_objects_of_a_cache_are_merged_without_a_load(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(30, books_each=1))
        with silent(twin.factory, sessions=2, statements=2):
            cached = pickle.dumps(await _kept(twin, selectinload(Author.books)))
            async with twin.session() as session:
                for author in pickle.loads(cached):
                    merged = await session.merge(author, load=False)
                    assert len(merged.books) == 1

    twin.run(story)


def test_an_object_is_expunged_and_goes_on_alone(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=1):
            async with twin.session() as session:
                author = await session.get_one(Author, 1)
                session.expunge(author)
                author.name = "a name for this page alone"
            assert author.name == "a name for this page alone"

    twin.run(story)

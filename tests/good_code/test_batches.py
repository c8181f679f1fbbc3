"""Many rows, written in batches and in bulk, and read as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import selectinload

from tests.good_code.silence import beginning, only_async, only_sync, silent
from tests.library import Author, Book, Map, authors, keep
from tests.twins import on_each_database

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from tests.twins import Twin

MANY = 6_000


def _rows(count: int) -> list[dict[str, Any]]:
    return [{"name": f"author {number}", "biography": ""} for number in range(count)]


async def keep_many(twin: Twin, count: int) -> None:
    """So many authors, quickly and untraced."""
    await twin.execute(lambda connection: connection.execute(insert(Author), _rows(count)))


async def count(session: Any, entity: type[Any]) -> int:
    return int(await session.scalar(select(func.count()).select_from(entity)))


# Writing.


def test_thirty_batches_of_fifty_from_one_line(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=30):
            async with twin.session() as session:
                for batch in range(30):
                    session.add_all(Author(name=f"author {batch}.{n}") for n in range(50))
                    await session.commit()
                assert await count(session, Author) == 1_500

    twin.run(story)


def test_batches_of_which_the_last_is_small(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=13):
            async with twin.session() as session:
                for number, author in enumerate(authors(121), 1):
                    session.add(author)
                    if number % 10 == 0:
                        await session.commit()
                await session.commit()

    twin.run(story)


def test_batches_that_are_flushed_and_expunged_and_committed_once(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=12):
            async with beginning(twin) as session:
                for batch in range(12):
                    session.add_all(Author(name=f"author {batch}.{n}") for n in range(100))
                    await session.flush()
                    session.expunge_all()

    twin.run(story)


def test_a_session_for_each_batch(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=15, statements=15):
            for batch in range(15):
                async with beginning(twin) as session:
                    session.add_all(Author(name=f"author {batch}.{n}") for n in range(20))

    twin.run(story)


def test_batches_by_key_that_are_changed_and_committed(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(120))
        with silent(twin.factory, sessions=1, statements=24):
            async with twin.session(expire_on_commit=False) as session:
                last = 0
                while True:
                    page = select(Author).where(Author.id > last).order_by(Author.id).limit(10)
                    batch = (await session.scalars(page)).all()
                    if not batch:
                        break
                    for author in batch:
                        author.name = f"{author.name} the {author.id}th"
                    await session.commit()
                    last = batch[-1].id

    twin.run(story)


def test_a_thousand_objects_in_one_flush(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=1):
            async with beginning(twin) as session:
                session.add_all(authors(1_000))

    twin.run(story)


def test_many_authors_each_with_books(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=2):
            async with beginning(twin) as session:
                session.add_all(authors(100, books_each=5))

    twin.run(story)


def test_many_objects_of_a_joined_inheritance(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=2):
            async with beginning(twin) as session:
                session.add_all(Map(scale=number) for number in range(200))

    twin.run(story)


def test_many_objects_are_changed_and_deleted_in_one_flush(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(4, books_each=50))
        with silent(twin.factory, sessions=1, statements=3):
            async with beginning(twin) as session:
                found = (await session.scalars(select(Book))).all()
                for book in found[:100]:
                    book.copies += book.id
                for book in found[100:]:
                    await session.delete(book)

    twin.run(story)


@on_each_database
def test_one_statement_that_inserts_many_rows(twin: Twin) -> None:
    async def story() -> None:
        with silent(twin.factory, sessions=1, statements=2):
            async with beginning(twin) as session:
                await session.execute(insert(Author), _rows(2_000))
                returning = insert(Book).returning(Book.id)
                books = [{"title": f"book {n}", "author_id": 1} for n in range(500)]
                assert len((await session.scalars(returning, books)).all()) == 500

    twin.run(story)


def test_one_statement_that_updates_or_deletes_many_rows(twin: Twin) -> None:
    async def story() -> None:
        await keep_many(twin, 500)
        with silent(twin.factory, sessions=1, statements=4):
            async with beginning(twin) as session:
                await session.execute(
                    update(Author), [{"id": n, "name": f"new {n}"} for n in range(1, 501)]
                )
                await session.execute(update(Author).values(biography="unknown"))
                await session.execute(delete(Author).where(Author.id > 100))
                assert await count(session, Author) == 100

    twin.run(story)


@only_sync
def test_the_bulk_methods_of_the_session(twin: Twin) -> None:
    async def story() -> None:
        books = [Book(title=f"book {number}", author_id=1) for number in range(300)]
        known = [{"id": number, "biography": "known"} for number in range(1, 301)]
        with silent(twin.factory, sessions=1, statements=3), twin.factory.begin() as session:
            session.bulk_insert_mappings(Author, _rows(300))
            session.bulk_save_objects(books)
            session.bulk_update_mappings(Author, known)

    twin.run(story)


@on_each_database
def test_an_optimistic_insert_that_does_nothing_on_conflict(twin: Twin) -> None:
    dialect: Any = postgresql if twin.database == "postgresql" else sqlite

    async def story() -> None:
        await keep(twin, *authors(1))
        with silent(twin.factory, sessions=1, statements=14):
            async with twin.session() as session:
                for _ in range(12):
                    await session.execute(
                        dialect.insert(Author)
                        .values(name="author 0", biography="")
                        .on_conflict_do_nothing()
                    )
                await session.execute(dialect.insert(Author).on_conflict_do_nothing(), _rows(100))
                await session.commit()
                assert await count(session, Author) == 100

    twin.run(story)


@on_each_database
def test_an_upsert_that_returns_the_objects(twin: Twin) -> None:
    dialect: Any = postgresql if twin.database == "postgresql" else sqlite

    async def story() -> None:
        await keep(twin, *authors(20))
        statement = dialect.insert(Author).values(_rows(40))
        statement = statement.on_conflict_do_update(
            index_elements=[Author.name], set_={"biography": "known"}
        ).returning(Author)
        with silent(twin.factory, sessions=1, statements=1):
            async with beginning(twin) as session:
                upserted = await session.scalars(
                    statement, execution_options={"populate_existing": True}
                )
                assert len(upserted.all()) == 40

    twin.run(story)


# Reading.


@on_each_database
def test_a_stream_of_thousands_of_objects(twin: Twin) -> None:
    def read(session: Session) -> int:
        streamed = session.scalars(select(Author).execution_options(yield_per=500))
        return sum(bool(author.name) for author in streamed)

    def read_and_expunge(session: Session) -> int:
        number = 0
        for author in session.scalars(select(Author).execution_options(yield_per=500)):
            session.expunge(author)
            number += bool(author.name)
        return number

    async def story() -> None:
        await keep_many(twin, MANY)
        with silent(twin.factory, sessions=2, statements=2):
            for reading in (read, read_and_expunge):
                async with twin.session() as session:
                    assert await session.run_sync(reading) == MANY

    twin.run(story)


def test_a_stream_that_is_loaded_eagerly(twin: Twin) -> None:
    def read(session: Session) -> int:
        statement = select(Author).options(selectinload(Author.books))
        streamed = session.scalars(statement.execution_options(yield_per=50))
        return sum(len(author.books) for author in streamed)

    async def story() -> None:
        await keep(twin, *authors(600, books_each=1))
        with silent(twin.factory, sessions=1, statements=13):
            async with twin.session() as session:
                assert await session.run_sync(read) == 600

    twin.run(story)


@only_async
def test_an_asynchronous_stream_of_thousands_of_objects(twin: Twin) -> None:
    async def story() -> None:
        await keep_many(twin, MANY)
        with silent(twin.factory, sessions=1):
            async with twin.session() as session:
                number = 0
                streamed = await session.stream_scalars(
                    select(Author).execution_options(yield_per=500)
                )
                async for author in streamed:
                    number += bool(author.name)
                assert number == MANY

    twin.run(story)


def test_partitions_of_a_stream(twin: Twin) -> None:
    def read(session: Session) -> list[int]:
        result = session.scalars(
            select(Author).order_by(Author.id).execution_options(yield_per=1_000)
        )
        return [len(partition) for partition in result.partitions()]

    async def story() -> None:
        await keep_many(twin, MANY)
        with silent(twin.factory, sessions=1):
            async with twin.session() as session:
                assert await session.run_sync(read) == [1_000] * 6

    twin.run(story)


def test_columns_of_thousands_of_rows(twin: Twin) -> None:
    """Rows are no objects."""

    async def story() -> None:
        await keep_many(twin, MANY)
        with silent(twin.factory, sessions=1):
            async with twin.session() as session:
                rows = await session.execute(select(Author.id, Author.name))
                assert len(rows.all()) == MANY

    twin.run(story)


def test_pages_of_a_list(twin: Twin) -> None:
    async def story() -> None:
        await keep_many(twin, 300)
        with silent(twin.factory, sessions=1, statements=31):
            async with twin.session() as session:
                assert await count(session, Author) == 300
                for page in range(30):
                    statement = select(Author).order_by(Author.id).limit(10).offset(page * 10)
                    found = (await session.scalars(statement)).all()
                    assert found[0].id == page * 10 + 1

    twin.run(story)


def test_a_stream_that_is_written_by_another_session(twin: Twin) -> None:
    """What is read is collected in chunks, and each chunk written after its page was read."""

    async def story() -> None:
        await keep_many(twin, 60)
        with silent(twin.factory, sessions=12, statements=12):
            for page in range(6):
                async with twin.session() as session:
                    statement = select(Author.id).order_by(Author.id).limit(10).offset(page * 10)
                    ids = (await session.scalars(statement)).all()
                async with beginning(twin) as session:
                    session.add_all(Book(title="Notes", author_id=id_) for id_ in ids)

    twin.run(story)

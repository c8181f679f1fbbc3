"""Stories of what a flush writes: new, changed, deleted and unchanged, by entity."""

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import selectinload

from session_tracer.facts import FlushCompleted, StatementExecuted
from session_tracer.testing import capture
from tests.library import Author, Book, Item, Map, authors, keep
from tests.outline import outline
from tests.twins import Twin, on_each_database


def test_each_entity_is_counted_under_its_own_name(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all([*authors(2, books_each=3), Item(kind="item"), Map(scale=1)])
                await session.flush()
        (summary,) = captured.sessions
        assert summary.new == {"Author": 2, "Book": 6, "Item": 1, "Map": 1}
        assert "flushed +2 Author, 6 Book, 1 Item, 1 Map" in outline(captured.facts)

    twin.run(story)


def test_subclasses_are_loaded_changed_and_deleted_under_their_own_name(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, Map(scale=1), Map(scale=2), Map(scale=3), Item(kind="item"))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                maps = (await session.scalars(select(Map).order_by(Map.scale))).all()
                (await session.scalars(select(Item))).all()
                maps[0].scale = 10
                maps[1].scale = int(maps[1].scale)
                await session.delete(maps[2])
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Map",
            "loaded 3 Map",
            "SELECT Item",
            "loaded 1 Item",
            "commit flush began",
            "UPDATE maps",
            "DELETE maps",
            "DELETE items",
            "flushed ~1 Map =1 Map -1 Map",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_a_value_set_back_to_what_it_was_is_no_change(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                first, second = (await session.scalars(select(Author))).all()
                first.name = "somebody"
                first.name = "author 0"
                second.name = "somebody else"
                await session.commit()
        assert [text for text in outline(captured.facts) if text.startswith("flushed")] == [
            "flushed ~1 Author =1 Author"
        ]
        (summary,) = captured.sessions
        assert (summary.dirty, summary.unchanged) == ({"Author": 1}, {"Author": 1})

    twin.run(story)


def test_a_flush_that_finds_nothing_changed_runs_no_statement(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                author.name = str(author.name)
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 1 Author",
            "commit flush began",
            "flushed =1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_an_object_added_to_a_collection_changes_its_parent(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                book = Book(title="a new one")
                await session.run_sync(lambda _: author.books.append(book))
                await session.commit()
        (summary,) = captured.sessions
        assert (summary.new, summary.dirty, summary.unchanged) == (
            {"Book": 1},
            {"Author": 1},
            {},
        )

    twin.run(story)


def test_a_collection_of_the_same_objects_in_another_order_is_no_change(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3, books_each=3))
        statement = select(Author).options(selectinload(Author.books)).order_by(Author.id)
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                sorted_, fewer, other = (await session.scalars(statement)).all()
                sorted_.books = sorted_.books[::-1]
                other.books = [*other.books, fewer.books[0]]
                await session.commit()
        (flushed,) = [fact for fact in captured.facts if isinstance(fact, FlushCompleted)]
        assert (flushed.unchanged, flushed.dirty["Author"]) == ({"Author": 1}, 2)

    twin.run(story)


def test_what_is_added_and_expunged_again_before_the_flush(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = Author(name="nobody")
                session.add(author)
                session.expunge(author)
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "expunged 1",
            "transaction committed",
            "session close: committed",
        ]
        (summary,) = captured.sessions
        assert summary.transitions == {"transient_to_pending": 1, "pending_to_transient": 1}

    twin.run(story)


def test_a_cascade_deletes_what_it_has_to_load_first(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.delete((await session.scalars(select(Author))).one())
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 1 Author",
            "load of relationship Author.books",
            "SELECT Book",
            "loaded 2 Book",
            "commit flush began",
            "SELECT Letter",
            "DELETE books",
            "DELETE authors",
            "flushed -1 Author, 2 Book",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]
        (summary,) = captured.sessions
        assert summary.transitions == {
            "loaded_as_persistent": 3,
            "persistent_to_deleted": 3,
            "deleted_to_detached": 3,
        }

    twin.run(story)


def test_a_deletion_rolled_back(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                await session.delete(author)
                await session.flush()
                await session.rollback()
        (summary,) = captured.sessions
        assert summary.transitions == {
            "loaded_as_persistent": 1,
            "persistent_to_deleted": 1,
            "deleted_to_persistent": 1,
            "persistent_to_detached": 1,
        }

    twin.run(story)


@on_each_database
def test_bulk_statements_write_without_a_flush(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=3))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.execute(
                    insert(Author), [{"name": f"bulk {number}"} for number in range(3)]
                )
                await session.execute(
                    update(Book), [{"id": number, "title": "changed"} for number in (1, 2)]
                )
                await session.execute(update(Book).values(copies=2))
                await session.execute(delete(Book).where(Book.id == 3))
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "INSERT Author",
            "UPDATE Book",
            "UPDATE Book",
            "DELETE Book",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]
        (summary,) = captured.sessions
        assert (summary.flushes, summary.new, summary.dirty, summary.deleted) == (0, {}, {}, {})

    twin.run(story)


@on_each_database
def test_a_bulk_insert_that_returns_its_objects(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                made = await session.scalars(
                    insert(Author).returning(Author), [{"name": "one"}, {"name": "two"}]
                )
                assert len(made.all()) == 2
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "INSERT Author",
            "loaded 2 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


def test_the_older_bulk_methods_write_without_a_flush(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.run_sync(lambda plain: plain.bulk_save_objects(authors(3)))
                await session.run_sync(
                    lambda plain: plain.bulk_insert_mappings(Author, [{"name": "mapped"}])
                )
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "INSERT authors",
            "INSERT authors",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]

    twin.run(story)


@on_each_database
def test_many_rows_in_one_call_are_one_batch(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.execute(
                    insert(Author), [{"name": f"bulk {number}"} for number in range(30)]
                )
                await session.execute(select(Author))
        executed = [fact for fact in captured.facts if isinstance(fact, StatementExecuted)]
        assert [(fact.operation, fact.batch_size) for fact in executed] == [
            ("INSERT", 30),
            ("SELECT", 1),
        ]

    twin.run(story)

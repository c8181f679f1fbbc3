"""Stories of objects that leave their session, and of every change of state, counted."""

import pytest
from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError

from session_tracer.testing import capture
from tests.library import Author, Book, authors, keep
from tests.outline import outline
from tests.stories.lines import line
from tests.twins import Twin


def test_an_object_and_what_cascades_with_it_are_expunged(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                first, second = (await session.scalars(select(Author))).all()
                books = await session.run_sync(lambda _: list(first.books))
                session.expunge(first)
                assert (len(books), second.name) == (2, "author 1")
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 2 Author",
            "load of relationship Author.books",
            "SELECT Book",
            "loaded 2 Book",
            "expunged 3",
            "connection released",
            "transaction closed",
            "session close: closed",
        ]
        (summary,) = captured.sessions
        assert summary.expunged == 3
        assert summary.transitions == {"loaded_as_persistent": 4, "persistent_to_detached": 4}
        assert (summary.identity_map_peak, summary.identity_map_size) == (4, 1)
        (step,) = [step for step in summary.timeline if step.verb == "expunge"]
        assert line(step.site) == "session.expunge(first)"

    twin.run(story)


def test_what_is_not_there_can_be_neither_expunged_nor_expired(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                with pytest.raises(InvalidRequestError, match="is not present in this Session"):
                    session.expunge(Author(name="nobody"))
                with pytest.raises(InvalidRequestError, match="is not persistent within this"):
                    session.expire(Author(name="nobody"))
        assert outline(captured.facts) == ["session opened", "session close: unused"]

    twin.run(story)


def test_everything_is_expunged_and_the_session_goes_on(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                before = (await session.scalars(select(Author))).all()
                session.add(Author(name="never written"))
                session.expunge_all()
                after = (await session.scalars(select(Author))).all()
                assert not set(before) & set(after)
                after[0].name = "changed"
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 3 Author",
            "expunged 4",
            "SELECT Author",
            "loaded 3 Author",
            "commit flush began",
            "UPDATE authors",
            "flushed ~1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]
        (summary,) = captured.sessions
        assert (summary.expunged, summary.identity_map_peak) == (4, 3)
        assert summary.transitions == {
            "loaded_as_persistent": 6,
            "transient_to_pending": 1,
            "pending_to_transient": 1,
            "persistent_to_detached": 6,
        }

    twin.run(story)


def test_a_detached_object_is_added_again(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
            async with twin.session() as session:
                session.add(author)
                author.name = "changed"
                await session.commit()
        first, second = captured.sessions
        assert first.transitions == {"loaded_as_persistent": 1, "persistent_to_detached": 1}
        assert second.transitions == {"detached_to_persistent": 1, "persistent_to_detached": 1}
        assert (second.dirty, second.identity_map_size) == ({"Author": 1}, 1)

    twin.run(story)


def test_a_new_object_from_the_first_to_the_last_state(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = Author(name="short-lived")
                session.add(author)
                await session.commit()
                await session.delete(author)
                await session.commit()
        (summary,) = captured.sessions
        assert summary.transitions == {
            "transient_to_pending": 1,
            "pending_to_persistent": 1,
            "persistent_to_deleted": 1,
            "deleted_to_detached": 1,
        }
        assert (summary.new, summary.deleted) == ({"Author": 1}, {"Author": 1})

    twin.run(story)


def test_what_is_pending_at_the_end_is_counted(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all(authors(2, books_each=1))
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "transaction closed",
            "session close: closed",
        ]
        (summary,) = captured.sessions
        assert summary.pending == 4
        assert summary.transitions == {"transient_to_pending": 4, "pending_to_transient": 4}

    twin.run(story)


def test_the_detached_are_counted_by_entity(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(2, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                everybody = (await session.scalars(select(Author))).all()
                everything = (await session.scalars(select(Book))).all()
            assert (len(everybody), len(everything)) == (2, 4)
        objects = {
            (point.attributes["sqlalchemy.object.state"], point.attributes["sqlalchemy.entity"]): (
                point.value
            )
            for point in captured.metrics["sqlalchemy.session.objects"]
        }
        assert objects == {
            ("loaded", "Author"): 2,
            ("loaded", "Book"): 4,
            ("detached", "Author"): 2,
            ("detached", "Book"): 4,
        }

    twin.run(story)

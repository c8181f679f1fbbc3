"""Stories of flushes that fail before the database is asked: by SQLAlchemy, and by listeners."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import FlushError

from session_tracer.testing import capture
from tests.library import Author, authors, keep
from tests.outline import outline
from tests.stories.excerpts import USED_AGAIN
from tests.stories.lines import line
from tests.twins import Twin


class RefusedError(Exception):
    """What an application's own listener raises."""


@pytest.fixture
def refusing_mapper() -> Iterator[None]:
    """Has the mapper of Author refuse authors without a name."""

    def before_insert(mapper: object, connection: object, author: Author) -> None:
        if author.name is None:
            raise RefusedError

    event.listen(Author, "before_insert", before_insert)
    yield
    event.remove(Author, "before_insert", before_insert)


def test_a_listener_of_the_mapper_refuses_the_flush(refusing_mapper: None, twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add(Author(name=None))
                with pytest.raises(RefusedError):
                    await session.flush()
                await session.rollback()
                session.add(Author(name="another"))
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "explicit flush began",
            "connection acquired",
            "flush failed +1 Author with RefusedError",
            "connection released",
            "transaction rolled_back",
            *USED_AGAIN,
        ]

    twin.run(story)


@pytest.fixture
def refusing_session() -> Iterator[None]:
    """Has every session refuse authors without a name, before the flush begins."""

    def before_flush(session: Session, context: object, instances: object) -> None:
        if any(isinstance(new, Author) and new.name is None for new in session.new):
            raise RefusedError

    event.listen(Session, "before_flush", before_flush)
    yield
    event.remove(Session, "before_flush", before_flush)


def test_a_flush_refused_before_it_began_is_none(refusing_session: None, twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                nobody = Author(name=None)
                session.add(nobody)
                with pytest.raises(RefusedError) as refused:
                    await session.flush()
                nobody.name = "somebody"
                with session.sync_session.no_autoflush:
                    (await session.scalars(select(Author))).all()
                await session.run_sync(lambda plain: plain.bulk_save_objects([Author(name="bulk")]))
                await session.commit()
        del refused
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT Author",
            "loaded 1 Author",
            "INSERT authors",
            "commit flush began",
            "INSERT authors",
            "flushed +1 Author",
            "connection released",
            "transaction committed",
            "session close: committed",
        ]
        (summary,) = captured.sessions
        assert "(await session.scalars(select(Author))).all()" in [
            line(step.site) for step in summary.timeline
        ]

    twin.run(story)


def test_sqlalchemy_itself_refuses_the_flush(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = Author(name="somebody")
                books: list[Any] = author.books
                books.append(None)
                session.add(author)
                with pytest.raises(FlushError):
                    await session.flush()
                await session.rollback()
                session.add(Author(name="another"))
                await session.commit()
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "explicit flush began",
            "connection acquired",
            "INSERT authors",
            "flush failed +1 Author with FlushError",
            "connection released",
            "transaction rolled_back",
            *USED_AGAIN,
        ]

    twin.run(story)

"""The detached lazy load in each signal, and those beside it that are none."""

import asyncio
import os
import traceback
from typing import Any

import pytest
from opentelemetry.trace import StatusCode
from sqlalchemy import select
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer.testing import Captured, capture
from tests.library import Author, Book, authors, keep
from tests.stories import detached
from tests.stories.lines import marked
from tests.twins import Twin

ERROR = "sqlalchemy.orm.exc.DetachedInstanceError"


async def refused(twin: Twin, name: str = "default", **settings: Any) -> Captured:
    """A capture of one collection read too late."""
    with capture(twin.factory, name=name, **settings) as captured:
        author = await detached.closed(twin, select(Author))
        with pytest.raises(DetachedInstanceError):
            detached.read_books(author)
    return captured


def test_the_log_reports_it_all(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        captured = await refused(twin, name="shop-db")
        (finding,) = captured.findings
        (event,) = [log for log in captured.logs if log["event"] == "finding"]
        (span,) = [span for span in captured.spans if span.name == "detached_load"]
        user = event.pop("thread", "") or event.pop("task")
        assert isinstance(user, str)
        assert event == {
            "timestamp": event["timestamp"],
            "level": "error",
            "event": "finding",
            "logger": "session_tracer",
            "session_id": finding.session_id,
            "session_name": "shop-db",
            "trace_id": f"{span.context.trace_id:032x}",
            "span_id": f"{span.context.span_id:016x}",
            "finding_id": "detached-lazy-load",
            "severity": "error",
            "explanation": finding.message,
            "remedy": finding.remedy,
            "site": str(marked(detached.read_books, "read")),
            "session_site": str(marked(detached.closed, "opened")),
            "entity": "Author",
            "attribute": "books",
            "count": 1,
            "why": "the relationship was never loaded",
            "departure": "close",
            "departed_ago_ms": finding.evidence["departed_ago_ms"],
            "loaded_at": str(marked(detached.closed, "loaded")),
            "opened_at": str(marked(detached.closed, "opened")),
            "departed_at": str(marked(detached.closed, "departed")),
            "help": "session-tracer findings detached-lazy-load",
            "suppressed": 0,
            "process_pid": os.getpid(),
            "host": os.uname().nodename,
        }

    twin.run(story)


def test_the_metrics_count_every_one_and_the_log_adds_them_up(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        with capture(twin.factory, name="shop-db") as captured:
            async with twin.session() as session:
                found = (await session.scalars(select(Author))).all()
            for author in found:
                with pytest.raises(DetachedInstanceError):
                    detached.read_books(author)
        (loads,) = captured.metrics["sqlalchemy.lazy_loads"]
        assert (dict(loads.attributes), loads.value) == (
            {"sqlalchemy.session.name": "shop-db", "kind": "detached"},
            3,
        )
        (findings,) = captured.metrics["sqlalchemy.findings"]
        assert (dict(findings.attributes), findings.value) == (
            {
                "sqlalchemy.session.name": "shop-db",
                "sqlalchemy.finding.id": "detached-lazy-load",
                "sqlalchemy.finding.severity": "error",
            },
            3,
        )
        # The first at once, the two others as one event when tracing ends.
        logged = [log["suppressed"] for log in captured.logs if log["event"] == "finding"]
        assert logged == [0, 1]

    twin.run(story)


def test_the_span_is_linked_to_the_session_that_held_the_object(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        captured = await refused(twin, name="shop-db")
        (finding,) = captured.findings
        (session,) = [span for span in captured.spans if span.name == "session shop-db"]
        (span,) = [span for span in captured.spans if span.name == "detached_load"]
        read = marked(detached.read_books, "read")
        code = {
            "code.function.name": read.function,
            "code.file.path": read.file,
            "code.line.number": read.line,
        }
        assert [link.context for link in span.links] == [session.context]
        assert span.parent is None
        assert dict(span.attributes or {}) == {
            "sqlalchemy.session.id": finding.session_id,
            "sqlalchemy.session.name": "shop-db",
            "sqlalchemy.session.async": twin.is_async,
            "sqlalchemy.entity": "Author",
            "sqlalchemy.attribute": "books",
            "error.type": ERROR,
            **code,
        }
        assert span.status.status_code is StatusCode.ERROR
        assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
            (
                "sqlalchemy.finding",
                {
                    "sqlalchemy.finding.id": "detached-lazy-load",
                    "sqlalchemy.finding.severity": "error",
                    "sqlalchemy.finding.message": finding.message,
                    "sqlalchemy.finding.remedy": finding.remedy,
                    "sqlalchemy.entity": "Author",
                    "sqlalchemy.attribute": "books",
                    **code,
                },
            ),
            ("exception", {"exception.type": ERROR}),
        ]

    twin.run(story)


def test_the_session_that_held_the_object_may_still_be_open(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                author = (await session.scalars(select(Author))).one()
                session.expunge(author)
                with pytest.raises(DetachedInstanceError):
                    detached.read_books(author)
        (origin,) = [span for span in captured.spans if span.name == "session default"]
        (span,) = [span for span in captured.spans if span.name == "detached_load"]
        assert [link.context for link in span.links] == [origin.context]
        assert [finding.evidence["departure"] for finding in captured.findings] == ["expunge"]

    twin.run(story)


def test_the_primary_key_is_named_only_when_asked_for(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, Author(id=1234554321, name="author nobody may see"))
        silent = await refused(twin)
        said = await refused(twin, record_identity=True)
        assert "identity" not in silent.findings[0].evidence
        assert said.findings[0].evidence["identity"] == "1234554321"
        captured = [silent.findings, silent.logs, *(span.to_json() for span in silent.spans)]
        assert "1234554321" not in str(captured)
        assert "may see" not in str([captured, said.findings, said.logs])

    twin.run(story)


def test_the_error_is_sqlalchemys_own(twin: Twin) -> None:
    def raised(read: Any, entity: object) -> tuple[object, ...]:
        with pytest.raises(DetachedInstanceError) as caught:
            read(entity)
        error = caught.value
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        return type(error), str(error), error.args, error.code, vars(error), frames

    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        reads = (
            detached.read_books,
            detached.read_biography,
            detached.read_name,
            detached.read_letters,
        )
        with capture(twin.factory) as captured:
            author = await detached.expired_by_commit(twin, select(Author))
            traced = [raised(read, author) for read in reads]
        untraced = [raised(read, author) for read in reads]
        assert traced == untraced
        assert len(captured.findings) == len(reads)

    twin.run(story)


@pytest.mark.parametrize("is_async", [True], ids=["async"])
def test_a_task_that_reads_what_another_loaded_is_the_reader(twin: Twin) -> None:
    async def reader(author: Author) -> None:
        await asyncio.sleep(0)
        with pytest.raises(DetachedInstanceError):
            [author.books for _ in range(1)]  # read

    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        with capture(twin.factory) as captured:
            author = await detached.closed(twin, select(Author))
            await asyncio.gather(reader(author))
        assert [finding.site for finding in captured.findings] == [marked(reader, "read")]

    twin.run(story)


def test_a_book_read_in_a_template_of_ones_own_names_that_line(twin: Twin) -> None:
    def sentence(books: list[Book]) -> str:
        return ", ".join(
            f"{book.title} by {book.author.name}"  # read
            for book in books
        )

    async def story() -> None:
        await keep(twin, *authors(1, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                books = (await session.scalars(select(Book))).all()
            with pytest.raises(DetachedInstanceError):
                sentence(list(books))
        assert [finding.site for finding in captured.findings] == [marked(sentence, "read")]

    twin.run(story)
